"""A class left out and looked for as unknown: truth on the grid, baselines, figures, and the whole step, tiny."""

import json
import shutil

import numpy as np
import pytest

from tests.tools.tiny import tiny_dataset
from tests.tools.tiny_models import NARROW, SIZE
from tools import leave_out, unknown
from tools.checkpoint import copy_state, write_checkpoint
from tools.dataset import read_dataset
from tools.errors import ToolError
from tools.network import Detector, NetworkConfig
from tools.unknown import BACKGROUND, KNOWN_DEFECT, LEFT_OUT, UNKNOWN


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Original data with two classes, and a detector (not trained) and data without `bar`."""
    root = tmp_path_factory.mktemp("unknown")
    data = tiny_dataset(root / "data", size=SIZE, channels=3, images=20, templates=True)
    leave_out.main(["--data", str(data), "--class-name", "bar", "--out", str(root / "lodo" / "bar-data")])
    (root / "lodo" / "bar").mkdir()
    without = read_dataset(root / "lodo" / "bar-data")
    network = Detector(NetworkConfig(classes=1, channels=3, **NARROW))
    write_checkpoint(root / "lodo" / "bar" / "final.pdckpt", network, copy_state(network), without)
    return root


def test_the_grid_tells_unknown_from_known_and_leaves_a_margin_out(folders):
    data = read_dataset(folders / "data")
    sample = next(s for s in data.samples if set(s.class_id) == {0, 1})
    grid = unknown.truth_grid(sample, 1, (SIZE[1], SIZE[0]))
    assert grid.shape == (SIZE[1] // 8, SIZE[0] // 8) and {UNKNOWN, LEFT_OUT} <= set(np.unique(grid))
    low, high = np.split(sample.xyxy[sample.class_id == 1][0], 2)
    cells = np.argwhere(grid == UNKNOWN)[:, ::-1] * 8 + 4
    assert (cells >= low).all() and (cells < high).all()
    swapped = unknown.truth_grid(sample, 0, (SIZE[1], SIZE[0]))
    assert (swapped[grid == UNKNOWN] == KNOWN_DEFECT).mean() > 0.9 and (grid == BACKGROUND).any()


def test_baselines_rank_the_unsure_over_the_sure():
    logits = np.array([[9.0, 0.1], [0.0, 0.0], [0.0, 0.0]]).reshape(1, 3, 1, 2)
    for name, found in unknown.baselines(logits).items():
        assert found.shape == (1, 1, 2) and found[0, 0, 1] > found[0, 0, 0], name


def test_components_are_counted_by_their_highest_point(folders):
    data = read_dataset(folders / "data")
    samples = [s for s in data.part("validation") if (s.class_id == 1).any()]
    good = np.random.default_rng(0).normal(size=200)
    size = (SIZE[1], SIZE[0])
    truth = np.stack([unknown.truth_grid(s, 1, size) for s in samples])
    high = np.where(truth == UNKNOWN, 50.0, 0.0)
    found = unknown.component_figures(high, truth, good, samples, 1, 0.05)
    count = sum(int((s.class_id == 1).sum()) for s in samples)
    assert found["defects"] == count and found["to_review"] > 0.9
    nothing = unknown.component_figures(np.zeros_like(high) - 5, truth, good, samples, 1, 0.05)
    assert nothing["to_review"] == 0.0 and nothing["good_parts_over"][0] <= 10


def test_the_step_measures_every_method_and_what_stays_the_same(folders, tmp_path):
    arguments = ["--data", folders / "data", "--detectors", folders / "lodo", "--classes", "bar", "--images", "12"]
    arguments += ["--head-steps", "20", "--steps", "10", "--overkill", "0.05", "--pool", "1", "--out", tmp_path]
    arguments += ["--retrain", "bar", "--retrain-minutes", "0"]
    unknown.main([str(a) for a in arguments])
    result = json.loads((tmp_path / "unknown.json").read_text())["results"]["bar"]
    assert set(result["methods"]) == {"max softmax", "entropy", "energy", "RPL", "RPL + CoroCL"}
    for figures in (*result["methods"].values(), *result["retrained"]["methods"].values()):
        assert 0 <= figures["all_known"]["auprc"] <= 1 and figures["all_known"]["unknown"] > 0
        assert figures["background"]["known"] < figures["all_known"]["known"]
    known = result["ap33_known"]
    assert known["identical_to_the_bit"] == known["images"] == 20 and known["detector"] == known["with_features"]
    assert result["retrained"]["steps"] == 1
    table = (tmp_path / "unknown.md").read_text()
    assert table.count("| bar |") == 6 and (tmp_path / "bar.png").is_file()
    unknown.main([str(a) for a in arguments])  # goes on from the journal: at once
    assert (tmp_path / "unknown.md").read_text() == table


@pytest.mark.parametrize(("more", "says"), [(["--retrain", "hole"], "--retrain hole"), ([], "expected all classes")])
def test_what_cannot_work_is_refused(folders, tmp_path, more, says):
    detectors = tmp_path / "lodo"
    shutil.copytree(folders / "data", detectors / "bar-data")
    arguments = ["--data", folders / "data", "--detectors", detectors, "--classes", "bar", "--out", tmp_path, *more]
    with pytest.raises(ToolError, match=says):
        unknown.main([str(a) for a in arguments])
