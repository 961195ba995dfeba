"""The drift step on a tiny product: what it writes is what the device reads, and it sees what it should."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.drift import reconstruct
from edge.drift.settings import decode
from tests.tools.tiny import tiny_dataset
from tests.tools.tiny_models import SIZE, tiny_models
from tools import drift
from tools.autoencoder import AutoencoderConfig, read_autoencoder
from tools.dataset import read_dataset
from tools.device_runtime import DevicePredictor
from tools.drift_frames import Allowed, conditions, frame_files, moved, pictures, read_grey
from tools.drift_score import Errors, Seen, errors_of, judge, separation
from tools.drift_train import CHECKPOINT
from tools.errors import DataError, ToolError
from tools.judge_model import FORMS

pytestmark = pytest.mark.timeout(600)

NETWORK = {"width": 64, "height": 32, "tile": 32, "patch": 4, "stem": 16, "inner": 32, "code": 8, "depth": 0}
BEARABLE = 1.5  # a network trained for seconds loses more in INT8 than one that is fit to be shipped
QUICK = ["--steps", "120", "--batch", "16", "--drawn", "64", "--judged", "12"]


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder with all that the step wants, and its arguments."""
    root = tmp_path_factory.mktemp("drift")
    data = tiny_dataset(root / "data", size=SIZE, channels=3, images=8, templates=True)
    (root / "network.json").write_text(json.dumps(NETWORK))
    other = root / "other"
    other.mkdir()
    for k in range(12):
        corners = np.random.default_rng(k).integers(0, 256, (2, 2), dtype=np.uint8)
        cv2.imwrite(str(other / f"{k}.png"), cv2.resize(corners, SIZE, interpolation=cv2.INTER_CUBIC))
    detector = tiny_models()[1] / "last.pdckpt"
    arguments = ["--data", str(data), "--detector", str(detector), "--network", str(root / "network.json")]
    return root, [*arguments, "--other", f"slopes={other}", *QUICK]


@pytest.fixture(scope="module")
def made(product: tuple[Path, list[str]]) -> Path:
    """What the step writes."""
    root, arguments = product
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drift, "MOST_SHIFT", BEARABLE)
        drift.main([*arguments, "--out", str(root / "out")])
    return root / "out"


def test_the_folder_holds_what_a_bundle_takes(made: Path) -> None:
    for form in FORMS:
        assert (made / form.format(name="drift")).stat().st_size > 1000
    assert not (made / "work").exists()
    assert {p.name for p in made.glob("*.png")} >= {"train.png", "errors.png", "painted_1.png"}


def test_the_settings_are_read_by_the_device_and_watch_every_signal(made: Path) -> None:
    settings = decode((made / "drift.json").read_bytes(), "drift.json")
    assert settings.frames == 16 and (settings.width, settings.height) == SIZE
    assert {"ae_error", "brightness", "sharpness", "noise", "red"} <= set(settings.signals)
    assert settings.features is not None and "feature_distance" in settings.signals
    assert settings.autoencoder == AutoencoderConfig(**NETWORK).input  # type: ignore[arg-type]


def test_the_baseline_of_the_error_is_what_the_device_s_model_says(made: Path, product: tuple[Path, list[str]]) -> None:
    settings = decode((made / "drift.json").read_bytes(), "drift.json")
    files = frame_files(read_dataset(product[0] / "data").part("validation"))
    predictor = DevicePredictor(made / FORMS[0].format(name="drift"))
    assert settings.autoencoder is not None
    errors = errors_of(predictor, pictures(read_grey(files, "frames"), settings.autoencoder)).scaled
    predictor.close()
    baseline = settings.signals["ae_error"].baseline
    assert baseline.frames == len(errors)
    assert baseline.quantiles[0] == pytest.approx(min(errors), rel=0.05)  # type: ignore[union-attr]
    assert baseline.quantiles[-1] == pytest.approx(max(errors), rel=0.05)  # type: ignore[union-attr]


def test_another_product_is_off_and_int8_is_not(made: Path) -> None:
    results = json.loads((made / "drift_run.json").read_text())["results"]
    assert results["conditions"]["slopes"]["group"] == "other"
    assert abs(results["conditions"]["slopes"]["score"]) > 1.5
    for form in ("x86 int8 nb", "armv8 int8 simulated"):
        assert abs(results["parity"][form]["score"]) < BEARABLE


def test_a_stopped_run_goes_on_to_the_same_network(product: tuple[Path, list[str]], made: Path) -> None:
    root, arguments = product
    out = root / "stopped"
    data = read_dataset(root / "data")
    args = drift.parser().parse_args([*arguments, "--out", str(out)])

    class Stopped(Exception):
        pass

    run_steps = drift.Training.one_step

    def one_step(self: drift.Training, drawn: np.ndarray) -> float:
        if self.step == 70:
            self.save(out / CHECKPOINT)
            raise Stopped
        return run_steps(self, drawn)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(drift.Training, "one_step", one_step)
        drift.learn(args, data)
    args.resume = True
    _, network, _ = drift.learn(args, data)
    whole, _ = read_autoencoder(made / CHECKPOINT)
    for name, value in whole.state_dict().items():
        np.testing.assert_allclose(network.state_dict()[name].numpy(), value.numpy(), atol=1e-5, err_msg=name)


def test_other_settings_do_not_go_on_with_the_checkpoint(made: Path, product: tuple[Path, list[str]]) -> None:
    with pytest.raises(ToolError, match="begun with other settings"):
        drift.main([*product[1], "--out", str(made), "--resume", "--rate", "0.5"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--other", "x"], "expected NAME=FOLDER"),
        (["--network", "missing.json"], "not a network of `drift_search`"),
        (["--other", "x=/"], "holds no image|expected"),
    ],
)
def test_what_cannot_be_is_said_first(
    product: tuple[Path, list[str]], tmp_path: Path, arguments: list[str], message: str
) -> None:
    if arguments[1] == "x=/":
        arguments = ["--other", f"x={tmp_path}"]
    with pytest.raises((ToolError, DataError), match=message):
        drift.main([*product[1], "--out", str(tmp_path / "out"), *arguments])


def test_good_frames_are_templates_with_their_images_or_unlabelled_ones(tmp_path: Path) -> None:
    with_templates = read_dataset(tiny_dataset(tmp_path / "a", images=3, templates=True, negatives=1))
    assert len(frame_files(with_templates.part("train"))) == 8
    without = read_dataset(tiny_dataset(tmp_path / "b", images=3, negatives=2))
    assert len(frame_files(without.part("train"))) == 2
    with pytest.raises(DataError, match="no image is good"):
        frame_files(read_dataset(tiny_dataset(tmp_path / "c", images=3)).part("train"))


def test_moving_a_part_keeps_what_focus_and_noise_change() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
    turned = moved(frame, Allowed(degrees=5, shift=0.05, quarter_turns=True), np.random.default_rng(1))
    assert turned.shape == frame.shape and not np.array_equal(turned, frame)
    before, after = (float(np.abs(np.diff(f.astype(float), axis=1)).mean()) for f in (frame, turned))
    assert after == pytest.approx(before, rel=0.05)


def test_a_frame_that_is_not_square_is_not_turned_by_quarters() -> None:
    frame = np.zeros((100, 200), np.uint8)
    for seed in range(8):
        assert moved(frame, Allowed(quarter_turns=True), np.random.default_rng(seed)).shape == (100, 200)


def test_conditions_are_drawn_alike_for_the_same_seed() -> None:
    frames = [np.full((64, 64), 90, np.uint8)] * 3
    spec = AutoencoderConfig(width=64, height=64, tile=0).input
    change = conditions(Allowed())["degraded"]["noise 3"]
    first, again = (pictures(frames, spec, change, seed=3) for _ in range(2))
    assert np.array_equal(first, again) and not np.array_equal(first, pictures(frames, spec, change, seed=4))


def errors(scaled: list[float]) -> Errors:
    return Errors(scaled, [0.5 * value for value in scaled])


def test_scores_are_those_of_the_monitor() -> None:
    rng = np.random.default_rng(0)
    good, shifted, same = (errors(rng.normal(mean, 0.1, 400).tolist()) for mean in (1, 1.1, 1))
    far = errors([9.0] * 5)
    seen = judge(good, {"allowed": {"a": same}, "degraded": {"d": shifted}, "other": {"o": far}})
    assert seen["d"].score == pytest.approx(1, abs=0.15) and seen["d"].percent == pytest.approx(10, abs=1.5)
    assert abs(seen["a"].score) < 0.15 and seen["o"].score > 3.5
    assert separation(seen) == pytest.approx((seen["d"].score + seen["o"].score) / 2 - abs(seen["a"].score))


def test_a_fall_of_the_error_counts_as_a_rise_does() -> None:
    up, down = (Seen("degraded", 9, 1.0, 0.0, s, 0.0) for s in (1.5, -1.5))
    assert separation({"up": up}) == separation({"down": down}) == 1.5


def test_int8_that_is_far_off_is_refused() -> None:
    want = np.random.default_rng(0).normal(1, 0.1, 50)
    near = drift.parity({"fp32": want, "x86 int8 nb": want * 1.001})["x86 int8 nb"]
    assert near["median_percent"] == pytest.approx(0.1) and 0 < near["score"] < 0.05
    with pytest.raises(ToolError, match=r"x86 int8 nb: scores of good frames move by 0\.\d+"):
        drift.parity({"fp32": want, "x86 int8 nb": want + 0.1})
    with pytest.raises(ToolError, match="move by nan"):
        drift.parity({"fp32": want, "x86 int8 nb": want * np.nan})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"width": 100}, "multiples of 8"),
        ({"tile": 48}, "tile is 48"),
        ({"kernel": 5}, "kernel is 5"),
        ({"code": 0}, "code"),
    ],
)
def test_networks_that_cannot_be_are_refused(config: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoencoderConfig(**config)


def test_the_network_paints_squares_in_the_order_of_the_error() -> None:
    config = AutoencoderConfig(**NETWORK)  # type: ignore[arg-type]
    tensor = np.random.default_rng(0).random((2, 1, 32, 64)).astype(np.float32)
    squares = reconstruct.in_squares(tensor, (2, config.cell**2, 32 // config.cell, 64 // config.cell))
    assert squares[1, 5 * config.cell + 3, 2, 1] == tensor[1, 0, 2 * config.cell + 5, config.cell + 3]
