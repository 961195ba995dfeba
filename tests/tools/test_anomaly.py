"""Residual pattern learning: losses, cells, fitting on drawn features, and the whole step on a tiny data set."""

import json
from dataclasses import replace

import numpy as np
import paddle
import pytest

from edge.anomaly import read_settings
from tests.tools.tiny import tiny_dataset
from tests.tools.tiny_models import SIZE, tiny_models
from tools import anomaly
from tools.anomaly_data import Cells, cell_labels, pool_features, pool_labels
from tools.anomaly_fit import FitConfig, energy_map, fit_head, fit_residual, logits_of, make_network
from tools.anomaly_metrics import separation, wilson
from tools.anomaly_net import IGNORE, OUTLIER, AnomalyConfig, contrast, rpl_losses
from tools.errors import ToolError

QUICK = FitConfig(head_steps=120, steps=150, batch=4, window=12, energy=0.3, views=32)
SMALL = AnomalyConfig(channels=8, classes=2, pool=1, hidden=16, kernel=3, inner=16, projection=8)


def drawn_cells(n=24, seed=0, shift=0.0):
    """Features in which background, two classes and outliers lie in different directions, with noise."""
    rng = np.random.default_rng(seed)
    label = np.zeros((n, 12, 12), np.uint8)
    label[:, 1:4, 1:4], label[:, 1:4, 7:10] = 1, 2
    label[:, 7:10, 2:5] = OUTLIER
    centres = np.zeros((256, 8), np.float32)
    centres[0, 0] = centres[1, 1] = centres[2, 2] = 4.0
    centres[OUTLIER, [0, 3]] = 3.0, 3.0  # like background, and something else besides
    features = centres[label].transpose(0, 3, 1, 2) + rng.normal(0, 0.4, (n, 8, 12, 12)) + shift
    return Cells(features.astype(np.float16), label)


@pytest.fixture(scope="module")
def fitted():
    own, context = drawn_cells(), drawn_cells(seed=1, shift=0.5)
    network = make_network(SMALL, 1)
    fit_head(network, own, QUICK)
    before = {k: v.numpy().copy() for k, v in network.head.state_dict().items()}
    losses = fit_residual(network, own, context, QUICK)
    return network, before, losses


def test_an_untrained_residual_block_changes_nothing():
    network, cells = make_network(SMALL, 3), drawn_cells(2)
    assert np.allclose(logits_of(network, cells.features, True), logits_of(network, cells.features, False), atol=1e-6)


def test_the_residual_block_finds_outliers_and_leaves_the_head_as_it_was(fitted):
    network, before, losses = fitted
    after = network.head.state_dict()
    assert all((after[k].numpy() == v).all() for k, v in before.items())
    fresh = drawn_cells(6, seed=9)
    vanilla, found = energy_map(network, fresh.features, False), energy_map(network, fresh.features)
    outlier, known = fresh.label == OUTLIER, fresh.label < OUTLIER
    was, now = separation(vanilla[outlier], vanilla[known]), separation(found[outlier], found[known])
    assert now.auroc > 0.97 and now.auroc >= was.auroc and now.fpr95 <= was.fpr95
    assert np.abs(found[known] - vanilla[known]).mean() < 0.5 * np.abs(found[outlier] - vanilla[outlier]).mean()
    assert set(losses) == {"inlier", "outlier", "contrast"} and losses["contrast"] > 0


def test_training_on_pooled_cells_and_serving_whole_features_agree():
    network = make_network(replace(SMALL, pool=2), 5)
    network.residual.project.weight.set_value(paddle.randn(network.residual.project.weight.shape))
    features = drawn_cells(2).features.astype(np.float32)
    with paddle.no_grad():
        served = network(paddle.to_tensor(features)).numpy()
    assert served.shape == (2, 3, 6, 6)
    assert np.allclose(served, logits_of(network, pool_features(features, 2)), atol=1e-4)


def test_known_cells_keep_their_class(fitted):
    network, _, _ = fitted
    fresh = drawn_cells(6, seed=9)
    known = fresh.label < OUTLIER
    chosen = logits_of(network, fresh.features).argmax(axis=1)
    assert (chosen[known] == fresh.label[known]).mean() > 0.95


def test_a_head_without_known_defects_is_refused():
    cells = drawn_cells(2)
    with pytest.raises(ToolError, match="no cell shows a known defect"):
        fit_head(make_network(SMALL, 1), Cells(cells.features, np.zeros_like(cells.label)), QUICK)


def test_ignored_cells_teach_nothing():
    logits = paddle.to_tensor([[5.0, 0.0], [-3.0, 9.0]])
    inlier, outlier = rpl_losses(logits, logits * 0.1, paddle.to_tensor([IGNORE, IGNORE]))
    assert float(inlier) == 0.0 and float(outlier) == 0.0


def test_inliers_pay_for_a_shift_that_softmax_does_not_see():
    vanilla = paddle.to_tensor([[6.0, 0.0]])
    label = paddle.to_tensor([0])
    paper = [float(rpl_losses(vanilla + by, vanilla, label, stay=0.0)[0]) for by in (0.0, -4.0)]
    ours = [float(rpl_losses(vanilla + by, vanilla, label)[0]) for by in (0.0, -4.0)]
    assert paper[0] == pytest.approx(paper[1], abs=1e-5) and ours[1] > ours[0] + 1


def test_contrast_wants_kinds_apart_whatever_the_context():
    apart = paddle.to_tensor(np.repeat(np.eye(2, dtype=np.float32), 2, axis=0))  # two outliers, two inliers
    kinds = paddle.to_tensor([True, True, False, False])
    both = paddle.concat([kinds, kinds])
    good = float(contrast(apart, kinds, paddle.concat([apart, apart]), both))
    swapped = paddle.concat([apart, apart.flip(0)])  # in the other context the kinds have changed places
    assert good < 0.01 < 1.0 < float(contrast(apart, kinds, swapped, both))


def test_cells_of_a_box_and_of_an_outlier():
    outlier = np.zeros((64, 64), bool)
    outlier[40:48, 40:48] = True
    label = cell_labels((64, 64), np.array([[0, 0, 32, 32]], np.float32), np.array([1]), outlier, 8)
    assert label[1, 1] == 2 and label[0, 0] == IGNORE and label[7, 0] == 0
    assert label[5, 5] == OUTLIER and (label[4:7, 4:7] != 0).all()
    assert pool_labels(label[None], 2)[0].tolist()[2] == [0, IGNORE if label[4, 3] == IGNORE else 0, OUTLIER, IGNORE]


def test_pooling_drops_a_last_odd_cell():
    assert pool_features(np.ones((1, 3, 5, 7), np.float32), 2).shape == (1, 3, 2, 3)
    assert pool_labels(np.zeros((1, 5, 7), np.uint8), 2).shape == (1, 2, 3)


def test_separation_against_counting_pairs():
    rng = np.random.default_rng(0)
    unknown, known = rng.integers(0, 9, 40) + 2.0, rng.integers(0, 9, 70) + 0.0
    pairs = np.mean((unknown[:, None] > known) + 0.5 * (unknown[:, None] == known))
    found = separation(unknown, known)
    assert found.auroc == pytest.approx(pairs, abs=1e-5)
    limit = np.sort(unknown)[int(np.floor(0.05 * 40))]
    assert found.fpr95 == pytest.approx((known >= limit).mean(), abs=1e-5)
    for bad in (np.array([]), np.array([np.nan])):
        with pytest.raises(ValueError):
            separation(bad, known)


@pytest.mark.parametrize(("count", "of"), [(0, 0), (0, 50), (50, 50), (3, 161)])
def test_intervals_hold_the_share(count, of):
    low, high = wilson(count, of)
    assert 0 <= low <= (count / of if of else 0) <= high <= 1


# --- The step ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The step's folder for the tiny detector, on data with templates."""
    folder = tmp_path_factory.mktemp("anomaly")
    data = tiny_dataset(folder / "data", size=SIZE, channels=3, images=20, templates=True, groups=("A", "B", "C"))
    checkpoint = tiny_models()[1] / "last.pdckpt"
    arguments = ["--data", data, "--checkpoint", checkpoint, "--hold", "C", "--images", "16", "--head-steps", "30"]
    arguments += ["--steps", "20", "--out", folder / "out", "--donors", data / "images" / "C", "--overkill", "0.05"]
    arguments += ["--contrast", "0.1"]
    anomaly.main([str(a) for a in arguments])
    return folder / "out"


def test_the_step_leaves_all_that_a_bundle_needs(trained):
    for name in ("anomaly.x86_64.int8.nb", "anomaly.armv8.int8.nb", "anomaly.onnx"):
        assert 0 < (trained / name).stat().st_size < 200_000
    settings = read_settings((trained / "anomaly.json").read_bytes(), "anomaly.json")
    assert settings.kind == "energy" and settings.good_parts == 20 and settings.overkill == 0.05
    assert (trained / "scores.png").is_file()
    page = (trained / "anomaly.md").read_text()
    assert f"{settings.threshold:.3f}" in page and "of 20" in page and "pasted outlier" in page


def test_the_record_counts_what_had_no_part_in_the_threshold(trained):
    results = json.loads((trained / "anomaly.record.json").read_text())["results"]
    assert results["held_out"]["of"] == 20 and results["good"]["over"] == 0
    low, high = results["held_out"]["interval_95"]
    assert low <= results["held_out"]["per_1000"] <= high
    assert results["parity_int8_fp32"]["parts"] == 20 and results["parity_int8_fp32"]["correlation"] > 0.8


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--hold", "Z"], "--hold Z"),
        (["--hold", "A"], "not all"),
        (["--smoothing", "2"], "odd"),
        ([], "at least 20 good"),
    ],
)
def test_what_cannot_work_is_refused_at_once(tmp_path, more, says):
    data = tiny_dataset(tmp_path / "data", size=SIZE, channels=3, templates=True)
    checkpoint = tiny_models()[1] / "last.pdckpt"
    with pytest.raises(ToolError, match=says):
        anomaly.main(["--data", str(data), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "o"), *more])


def test_donors_that_are_none_are_refused(tmp_path):
    with pytest.raises(ToolError, match="holds no"):
        anomaly.read_donors([tmp_path], 1)


def test_good_parts_are_templates_or_images_without_labels(tmp_path):
    from tools.dataset import read_dataset

    with_templates = read_dataset(tiny_dataset(tmp_path / "a", templates=True)).samples
    assert all("template" in p.path.name for p in anomaly.good_parts(with_templates))
    without = read_dataset(tiny_dataset(tmp_path / "b", negatives=3)).samples
    assert len(anomaly.good_parts(without)) == 6
    unsure = [replace(s, known=np.zeros_like(s.known)) for s in without]
    assert not anomaly.good_parts(unsure)
