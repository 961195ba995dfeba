"""Models of what good parts look like: each finds a foreign patch on drawn features; the step on drawn photos."""

import json

import cv2
import numpy as np
import pytest

from edge.anomaly import read_settings
from tests.tools.tiny_models import tiny_models
from tools import normal_parts
from tools.errors import ToolError
from tools.normality import MODELS, GaussianNetwork, coreset, gaussian, places, semi_orthogonal, smoothed


def drawn(n, seed):
    """Features (n, 6, 8, 10): a fixed layout with noise."""
    layout = np.random.default_rng(0).normal(0, 2, (6, 8, 10))
    return (layout + np.random.default_rng(seed).normal(0, 0.3, (n, 6, 8, 10))).astype(np.float32)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_foreign_patch_is_the_highest_of_the_map(name):
    model = MODELS[name](drawn(24, 1))
    part = drawn(1, 2)[0]
    calm = model(part)
    part[:, 4, 7] = -9.0, 9.0, -9.0, 9.0, -9.0, 9.0
    found = model(part)
    assert found.shape == (8, 10) and np.isfinite(found).all() and calm.max() < found.max()
    y, x = np.unravel_index(found.argmax(), found.shape)
    assert abs(y - 4) <= 1 and abs(x - 7) <= 1


def test_only_models_of_places_see_a_patch_that_belongs_elsewhere():
    good, part = drawn(24, 1), drawn(1, 2)[0]
    part[:, 1, 1] = good[0, :, 6, 8]
    for name in ("gaussian", "places"):
        found = MODELS[name](good)(part)
        assert np.unravel_index(found.argmax(), found.shape) == (1, 1)
    found = MODELS["bank"](good)(part)
    assert found[1, 1] < found.max()


def test_a_shift_by_one_cell_is_forgiven_by_places_alone():
    good = drawn(24, 1)
    shifted = np.roll(drawn(1, 2)[0], 1, axis=2)
    inside = (slice(None), slice(2, -2))
    assert places(good, reach=1)(shifted)[inside].max() < 0.5 * places(good, reach=0)(shifted)[inside].max()


def test_constant_good_parts_do_not_divide_by_zero():
    model = gaussian(np.ones((4, 2, 3, 3), np.float32) * np.array([1.0, 5.0]).reshape(1, 2, 1, 1), floor=0.1)
    assert np.isfinite(model(np.zeros((2, 3, 3), np.float32))).all()


def test_a_coreset_spreads_and_ends_with_the_rows():
    rows = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    assert coreset(rows, 10).shape == (10, 3) and coreset(rows, 99).shape == (50, 3)


def test_the_network_is_the_gaussian_of_the_projected_features():
    import paddle

    good, part = drawn(24, 1), drawn(1, 3)
    projection = semi_orthogonal(4, 6, 0)
    model = gaussian(np.einsum("kc,nchw->nkhw", projection, good))
    network = GaussianNetwork(projection, model, 1)
    network.eval()
    got = network(paddle.to_tensor(part)).numpy()
    want = model(np.einsum("kc,chw->khw", projection, part[0]))
    assert got.shape == (1, 4, 8, 10) and np.allclose(np.square(got[0]).mean(axis=0), want, rtol=1e-3)


def test_more_channels_than_there_are_cannot_be_orthogonal():
    with pytest.raises(ValueError, match="7 channels"):
        semi_orthogonal(7, 6, 0)


def test_smoothing_keeps_the_mean_and_one_keeps_all():
    found = np.zeros((5, 5), np.float32)
    found[2, 2] = 9
    assert smoothed(found, 1) is found and smoothed(found, 3)[2, 2] == pytest.approx(1.0)


# --- The step ---------------------------------------------------------------------------------------------------------


def photo(seed, foreign=False):
    """A drawn part, a few pixels out of place, in other noise."""
    rng = np.random.default_rng(seed)
    picture = np.full((96, 192, 3), 60, np.uint8)
    for x, y, shade in ((20, 20, 200), (70, 40, 120), (130, 25, 230), (150, 65, 170)):
        cv2.rectangle(picture, (x, y), (x + 22, y + 16), (shade, shade // 2, 90), -1)
    if foreign:
        cv2.circle(picture, (100, 70), 9, (10, 240, 240), -1)
    picture = np.roll(picture, rng.integers(-5, 6, 2), axis=(0, 1))
    return np.clip(picture + rng.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for name, count, foreign in (("good", 24, False), ("unseen", 6, False), ("bad", 6, True)):
        (root / name).mkdir()
        for k in range(count):
            cv2.imwrite(str(root / name / f"{name}-{k}.png"), photo(100 * len(name) + k, foreign))
    return root


def arguments(root, out, *more):
    checkpoint = tiny_models()[1] / "last.pdckpt"
    given = ["--good", root / "good", "--unseen", root / "unseen", "--bad", root / "bad", "--checkpoint", checkpoint]
    return [str(a) for a in (*given, "--size", 192, 96, "--width", 16, "--pool", 1, "--out", out, *more)]


def test_the_step_ships_a_model_that_tells_bad_from_good(folders, tmp_path, monkeypatch):
    monkeypatch.delitem(MODELS, "student")  # the slow one has its own test
    normal_parts.main(arguments(folders, tmp_path / "out"))
    results = json.loads((tmp_path / "out" / "anomaly.record.json").read_text())["results"]
    settings = read_settings((tmp_path / "out" / "anomaly.json").read_bytes(), "anomaly.json")
    assert settings.kind == "square" and settings.align is not None and settings.good_parts == 24
    assert results["int8"]["auroc"] > 0.9
    assert results["parity_int8_fp32"]["correlation"] > 0.95
    assert results["false_alarms"]["of"] == 6
    page = (tmp_path / "out" / "anomaly.md").read_text()
    assert page.count("\n| ") >= 4 + len(MODELS) and "0.5 %" in page
    limits = [point["threshold"] for point in results["operating_points"]]
    assert limits == sorted(limits, reverse=True) and limits[0] == pytest.approx(settings.threshold, abs=1e-3)
    forms = ("x86_64.int8.nb", "armv8.int8.nb", "onnx")
    for name in (*(f"{x}.{form}" for x in ("anomaly", "detector") for form in forms), "scores.png", "models.png"):
        assert (tmp_path / "out" / name).stat().st_size


@pytest.mark.parametrize(
    ("more", "says"), [(["--patterns", "*", "no*", "*"], "matches no"), (["--size", "190", "96"], "multiples of 32")]
)
def test_what_cannot_work_is_refused(folders, tmp_path, more, says):
    with pytest.raises(ToolError, match=says):
        normal_parts.main(arguments(folders, tmp_path / "out", *more))
