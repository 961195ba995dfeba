"""The recipe: what a bad one says, and that what is written reads back."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge import recipe as recipes
from edge.errors import ConfigError
from edge.recipe import DetectRecipe, GateRecipe, Recipe

CLASSES = ["open", "short", "mousebite"]


def write(text: str, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "expected", "why"),
    [
        ("[detect]\nreview = 0.6", "review (0.6) is above threshold (0.5): set", "against a default"),
        ("[detect]\nthreshold = 0.2", "review (0.3) is above threshold (0.2)", "the default against it"),
        ("[detect]\nthreshold = 1", "threshold = 1: must be a number between 0 and 1", "nothing is ever that sure"),
        ("[detect.class_threshold]\nopem = 0.2", "`opem` is no class of this bundle, did you mean `open`?", "a slip"),
        ("[detect.class_threshold]\nzebra = 0.2", "known: `mousebite`, `open`, `short`", "nothing like it: all names"),
        ("[detect.class_threshold]\nopen = 2", "detect.class_threshold.open = 2: must be a number", "by its path"),
        ("[gate]\nroi = [0, 0, 1]", "gate.roi = [0,0,1]: must be a list of 4 values", "three"),
        ("[gate]\nroi = [0.5, 0, 0.6, 1]", "reaches out of the frame", "over the right side"),
        ("[gate]\nroi = [0, 0, 0, 1]", "has no area", "an empty region measures nothing"),
        ("[gate]\nbrightness_min = 200.0\nbrightness_max = 100.0", "is not below", "no frame could pass"),
        ("[gate]\nsharpness = 3", "gate.sharpness: unknown key; did you mean `sharpness_min`?", "a short name"),
        ("[gate]\nsharpness_min = nan", "sharpness_min = nan: must be a number", "nothing compares with nan"),
        ("[gates]", "gates: unknown key; did you mean `gate`?", "a misspelt table"),
    ],
)
def test_a_wrong_recipe_says_what_is_wrong(text: str, expected: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        recipes.load(write(text, tmp_path), classes=CLASSES)
    assert any(expected in problem for problem in caught.value.problems), f"{why}: {caught.value.problems}"


def test_both_kinds_of_problems_come_together(tmp_path: Path) -> None:
    text = "[gate]\nsaturated_max = 2\n[detect]\nreview = 0.9\n[detect.class_threshold]\nopem = 0.2\nshrt = 0.3"
    with pytest.raises(ConfigError) as caught:
        recipes.load(write(text, tmp_path), classes=CLASSES)
    assert len(caught.value.problems) == 3, "the two unknown classes are one sentence"
    assert "opem" in str(caught.value) and "shrt" in str(caught.value)


def test_without_the_classes_their_names_are_not_checked(tmp_path: Path) -> None:
    found = recipes.load(write("[detect.class_threshold]\nopem = 0.2", tmp_path))
    assert found.detect.class_threshold == {"opem": 0.2}


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        (Recipe(), "the defaults"),
        (Recipe(name='pcb "A" \u00b5', gate=GateRecipe(roi=(0.1, 0.0, 0.9, 1.0))), "quotes, a tuple"),
        (Recipe(detect=DetectRecipe(class_threshold={"open": 0.2, "pin hole": 0.25})), "a class name with a space"),
    ],
)
def test_what_is_written_reads_back(recipe: Recipe, why: str, tmp_path: Path) -> None:
    assert recipes.load(write(recipes.dump(recipe), tmp_path)) == recipe, why
