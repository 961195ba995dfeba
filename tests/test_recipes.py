"""A set of recipes: every problem of every file at once, and nothing ambiguous in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge import recipe as single
from edge.config import Runtime
from edge.errors import ConfigError
from edge.recipe import AnomalyRecipe, DetectRecipe, FusionRecipe, GateRecipe, Recipe
from edge.recipes import RecipeSet, hash_of, load_set, set_of_one
from edge.records import Frame
from edge.serving import open_product
from tests.boards import drawn_boards
from tests.flow.rig import PCB

CLASSES, CAMERAS = ("open", "short"), ("cam1", "cam2")


def folder(tmp_path: Path, **files: str) -> Path:
    for name, text in files.items():
        (tmp_path / f"{name}.toml").write_text(text)
    return tmp_path


def problems(tmp_path: Path, **files: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_set(folder(tmp_path, **files), CLASSES, CAMERAS)
    assert str(tmp_path) in str(caught.value)
    return caught.value.problems


def test_recipes_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    found = load_set(
        folder(tmp_path, b='name = "b"\nnumber = 2\npart_numbers = ["7"]', a='name = "a"\nnumber = 10'),
        CLASSES,
        CAMERAS,
    )
    assert [recipe.name for recipe in found.recipes] == ["b", "a"] and found.numbers == {2, 10}
    by_part, by_number = found.find("7"), found.find(10)
    assert by_part is not None and by_part.name == "b", "a part number is text, also where it looks like a number"
    assert by_number is not None and by_number.name == "a" and found.find(7) is None and found.find("") is None


@pytest.mark.parametrize(
    ("files", "expected", "why"),
    [
        ({"a": 'name = "a"'}, "a: number is missing", "a PLC could not name it"),
        ({"a": 'name = "a"\nnumber = 1', "b": 'name = "b"\nnumber = 1'}, "b: number 1 is also that of a", "ambiguous"),
        (
            {"a": 'name = "a"\nnumber = 1\npart_numbers = ["X"]', "b": 'name = "X"\nnumber = 2'},
            "X: name or part number X is also that of a",
            "a name that is another's part number",
        ),
        (
            {"a": 'name = "a"\nnumber = 1\n[fusion]\ncameras = ["cam3"]'},
            "there is no camera `cam3`",
            "a strange camera",
        ),
        (
            {"a": 'name = "a"\nnumber = 1\n[fusion]\ncameras = ["cam1"]\noptional = ["cam2"]'},
            "optional: cam2 is not among cameras",
            "optional and never looked at",
        ),
        ({"a": 'number = 1\n[detect]\nclasses = ["opem"]'}, "a.toml: detect: classes: `opem` is no class", "a slip"),
        ({"a": "number = 1\n[detect]\nregion = [0.5, 0, 0.6, 1]"}, "region [0.5, 0, 0.6, 1] reaches out", "too wide"),
        ({"a": "number = 1\ntakt_time_ms = 10\nanswer_ms = 200"}, "more than 16 takt times", "parts would pile up"),
        (
            {"a": 'name = "a"\nnumber = 1', "b": 'name = "b"\nnumber = 2\n[drift]\nuse = false'},
            "b: drift is not as in a",
            "that of the first alone would count",
        ),
        ({}, "it holds no recipe", "an empty folder"),
    ],
)
def test_what_cannot_be_used_is_told(files: dict[str, str], expected: str, why: str, tmp_path: Path) -> None:
    assert any(expected in problem for problem in problems(tmp_path, **files)), why


def test_the_problems_of_all_files_come_at_once(tmp_path: Path) -> None:
    found = problems(tmp_path, a="number = 1\nx = 1", b="number = -1", c="not toml")
    assert [problem.partition(":")[0] for problem in found] == ["a.toml", "b.toml", "c.toml"]


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the folder of recipes cannot be read: No such file"):
        load_set(tmp_path / "none", CLASSES, CAMERAS)


def test_one_recipe_may_have_no_number_but_its_cameras_are_checked() -> None:
    assert set_of_one(Recipe(), CAMERAS).numbers == {0}
    with pytest.raises(ConfigError, match="there is no camera `cam9`"):
        set_of_one(Recipe(fusion=FusionRecipe(cameras=["cam9"])), CAMERAS)


def test_a_hash_is_of_all_that_a_recipe_says() -> None:
    base = Recipe(name="a")
    assert (
        len({hash_of(base), hash_of(Recipe(name="b")), hash_of(Recipe(name="a", detect=DetectRecipe(review=0.2)))}) == 3
    )


def test_recipes_of_one_bundle_judge_each_in_its_own_way(tmp_path: Path) -> None:
    """One network, three recipes: strict, blind to all but one class, and with a gate that refuses everything."""
    strict = Recipe(name="strict", number=1, detect=DetectRecipe(threshold=0.3, review=0.02))
    refusing = Recipe(name="refusing", number=2, gate=GateRecipe(sharpness_min=1e6))
    plain = Recipe(name="plain", number=3, anomaly=AnomalyRecipe(use=False), gate=GateRecipe(classifier="never"))
    for recipe in (strict, refusing, plain):
        (tmp_path / f"{recipe.name}.toml").write_text(single.dump(recipe))
    product = open_product(PCB, Runtime(), recipe_folder=tmp_path, cameras=("cam1",))
    assert isinstance(product.recipes, RecipeSet) and product.recipe == strict
    frame = Frame(drawn_boards(1)[0], "cam1", 1, 0, 0.0)
    found = {r.name: product.pipeline_of(r, lambda: 0).inspect(frame) for r in product.recipes.recipes}
    assert found["refusing"].verdict.kind.value == "RETAKE"
    assert found["strict"].scores.anomaly is not None and found["plain"].scores.anomaly is None
    same = product.pipeline_of(strict, lambda: 0).inspect(frame)
    assert np.array_equal(same.detections.xyxy, found["strict"].detections.xyxy), "recipes leave each other alone"
    assert len(found["strict"].detections) >= len(found["plain"].detections), "each has its own least confidence"
