"""`edge calibrate gate` proposes a recipe that the same line's frames pass."""

import cv2
import numpy as np
import pytest

from edge.calibrate import calibrate_gate
from edge.cli import main
from edge.errors import UsageError
from edge.gate import check
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
