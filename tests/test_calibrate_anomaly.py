"""`edge calibrate anomaly` proposes a limit that the same line's good frames do not reach."""

import cv2
import numpy as np
import pytest

from edge import recipe, serving
from edge.calibrate import calibrate_anomaly
from edge.cli import main
from edge.errors import BundleError, PredictorError, UsageError
from edge.records import Scores
from tests.boards import drawn_boards


class FakeProduct:
    """A product whose part's score is its mean grey level over 10; dark frames cannot be judged."""

    class judges:
        anomaly = object()

    def pipeline(self, clock_ns):
        return self

    def inspect(self, frame, *, detect_refused):
        assert detect_refused  # whatever the gate thinks
        if frame.image.mean() < 1:
            raise PredictorError("the anomaly model answered with numbers that are not finite")
        score = float(frame.image.mean()) / 10
        found = type("Inspection", (), {})()
        found.scores = Scores(score, 10.0, np.zeros((2, 2), np.float32))
        return found


@pytest.fixture
def product(monkeypatch):
    found = FakeProduct()
    monkeypatch.setattr(serving, "open_product", lambda folder, runtime: found)
    return found


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    for i, image in enumerate(drawn_boards(30)):
        cv2.imwrite(str(folder / f"{i}.png"), image)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def test_the_limit_lies_over_all_of_few_frames_and_says_so(boards, product, tmp_path):
    found = calibrate_anomaly(boards, tmp_path, 0.005)
    assert len(found.scores) == 30 and len(found.unusable) == 1 and "broken.png" in found.unusable[0]
    assert found.limit.threshold > max(found.scores) and found.limit.extrapolated
    assert found.reached == sum(s >= 10.0 for s in found.scores) and found.bundle_limit == 10.0


def test_the_command_prints_a_recipe_that_loads(boards, product, tmp_path, capsys):
    assert main(["calibrate", "anomaly", str(boards), "--bundle", str(tmp_path), "--overkill", "0.02"]) == 0
    out = capsys.readouterr()
    file = tmp_path / "recipe.toml"
    file.write_text(out.out)
    scores = [float(cv2.imread(str(boards / f"{i}.png"), 0).mean()) / 10 for i in range(30)]
    assert recipe.load(file).anomaly.review > max(scores)
    assert "broken.png" in out.err


def test_a_limit_is_never_made_of_numbers_that_are_none(boards, product, tmp_path, capsys):
    cv2.imwrite(str(boards / "black.png"), np.zeros((64, 64), np.uint8))
    try:
        with pytest.raises(PredictorError, match="not finite"):
            calibrate_anomaly(boards, tmp_path, 0.005)
        assert main(["calibrate", "anomaly", str(boards), "--bundle", str(tmp_path)]) == 2
        assert "not finite" in capsys.readouterr().err
    finally:
        (boards / "black.png").unlink()


def test_too_few_frames_and_a_bundle_without_judge_are_refused(tmp_path, product, monkeypatch):
    cv2.imwrite(str(tmp_path / "one.png"), drawn_boards(1)[0])
    with pytest.raises(UsageError, match="holds 1 usable images and a limit wants at least 20"):
        calibrate_anomaly(tmp_path, tmp_path, 0.005)
    monkeypatch.setattr(product.judges, "anomaly", None)
    with pytest.raises(BundleError, match="has no anomaly judge"):
        calibrate_anomaly(tmp_path, tmp_path, 0.005)


@pytest.mark.parametrize("overkill", ["0", "0.3", "-1"])
def test_senseless_shares_are_refused(boards, overkill, capsys, tmp_path):
    assert main(["calibrate", "anomaly", str(boards), "--bundle", str(tmp_path), "--overkill", overkill]) == 2
    assert "--overkill" in capsys.readouterr().err
