"""`edge calibrate gate` proposes a recipe that the same line's frames pass."""

from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest

from edge import calibrate
from edge.calibrate import calibrate_gate
from edge.cli import main
from edge.errors import BundleError, UsageError
from edge.gate import check
from edge.gate_classifier import OUTPUTS, GateClassifier, GateClassifierSettings
from edge.recipe import CLASSIFIED, GateRecipe
from tests.boards import drawn_boards

WHOLE = (0.0, 0.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    for i, image in enumerate(drawn_boards(24)):
        cv2.imwrite(str(folder / f"{i}.png"), image)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def test_the_proposal_passes_other_good_boards_and_refuses_blurred_ones(boards):
    proposal = calibrate_gate(boards, WHOLE, 0.005)
    recipe, good = proposal.recipe, proposal.good
    assert len(good.measures) == 24 and len(good.unusable) == 1 and "broken.png" in good.unusable[0]
    assert (proposal.refused, proposal.looked_at) == (0, 0)
    others = drawn_boards(20, seed=99)
    assert sum(not check(image, recipe).passed for image in others) <= 1
    blurred = [np.asarray(cv2.GaussianBlur(image, (0, 0), 3), np.uint8) for image in others]
    assert all(check(image, recipe).cause is not None for image in blurred)


def test_too_few_frames_are_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "one.png"), drawn_boards(1)[0])
    with pytest.raises(UsageError, match="holds 1 usable images and a proposal wants at least 20"):
        calibrate_gate(tmp_path, WHOLE, 0.005)


def test_the_command_prints_a_recipe_that_loads(boards, tmp_path, capsys):
    from edge import recipe

    assert main(["calibrate", "gate", str(boards), "--roi", "0.1", "0.1", "0.8", "0.8"]) == 0
    file = tmp_path / "recipe.toml"
    file.write_text(capsys.readouterr().out)
    assert recipe.load(file).gate.roi == (0.1, 0.1, 0.8, 0.8)


@pytest.mark.parametrize(
    "arguments", [("--roi", "0.5", "0", "0.6", "1"), ("--refuse", "0.7"), ("--roi", "-0.1", "0", "1", "1")]
)
def test_senseless_arguments_are_refused(boards, arguments, capsys):
    assert main(["calibrate", "gate", str(boards), *arguments]) == 2
    assert "edge: " in capsys.readouterr().err


class Soft:
    """A classifier's network that finds every frame rather defocused, one more than another."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def run(self, tensor):
        logits = np.full((1, len(OUTPUTS)), -6.0, np.float32)
        logits[0, OUTPUTS.index("ok")] = 0.0
        logits[0, OUTPUTS.index("defocus")] = self.rng.normal(1.0, 0.2)
        return [logits]


@pytest.fixture
def soft_bundle(monkeypatch):
    settings = GateClassifierSettings(limits=dict.fromkeys(CLASSIFIED, 0.5))

    def opened(bundle, roi):
        return GateClassifier(Soft(), settings, GateRecipe(roi=roi)), settings

    monkeypatch.setattr(calibrate, "open_classifier", opened)


def test_with_a_bundle_the_classifier_gets_limits_and_a_range_of_its_own(boards, soft_bundle):
    proposal = calibrate_gate(boards, WHOLE, 0.005, Path("bundle"))
    recipe = proposal.recipe
    assert {"defocus"} <= set(recipe.classifier_limit) <= {"motion", "defocus"}, (
        "others keep the bundle's"
    )
    assert 0.73 < recipe.classifier_limit["defocus"] < 1 and proposal.refused == 0
    assert recipe.usual_sharpness == pytest.approx(np.median([m.sharpness for m in proposal.good.measures]), rel=1e-3)
    sharp = [m.sharpness for m in proposal.good.measures]
    blurred = [m.sharpness for m in proposal.good.defocused]
    assert np.quantile(blurred, 0.9) < recipe.sure_sharpness <= max(blurred) + 0.1 < np.median(sharp)
    assert proposal.looked_at < len(sharp)


def test_the_command_says_what_the_proposal_would_do(boards, soft_bundle, tmp_path, capsys):
    from edge import recipe

    assert main(["calibrate", "gate", str(boards), "--bundle", "bundle"]) == 0
    said = capsys.readouterr().out
    assert "# refuses 0 of them (0.0 %)" in said and "# the classifier looks at" in said
    file = tmp_path / "recipe.toml"
    file.write_text(said)
    loaded = recipe.load(file).gate
    assert loaded.classifier_limit["defocus"] > 0.7 and loaded.sure_sharpness > 0


def test_a_bundle_without_a_classifier_is_said_so(boards, monkeypatch):
    class Bare:
        judges: ClassVar = {}

    monkeypatch.setattr(calibrate.manifests, "read", lambda folder: Bare)
    with pytest.raises(BundleError, match="has no classifier for the gate: calibrate without --bundle"):
        calibrate_gate(boards, WHOLE, 0.005, Path("bundle"))
