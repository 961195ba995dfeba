"""Run lengths by simulation: the many-stream detectors are those of the device, and the figures are true."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from edge.drift import plan, settings
from edge.drift.baseline import kinds, numbers
from edge.drift.detectors import Outcome
from edge.drift.settings import Signal
from edge.drift.watch import Watch, make_detector
from tests.tools.tiny import tiny_dataset
from tools import arl, arl_runs
from tools.arl_charts import AdwinMany, many
from tools.errors import DataError, ToolError
from tools.stream_table import Meter, Rows

BASELINE = numbers(np.random.default_rng(0).normal(size=100).tolist(), 1e-6)
MIX = kinds([0] * 80 + [1] * 15 + [2] * 5, ["none", "open", "short"])
CHARTS = {
    "cusum": settings.Cusum(allowance=0.5, limit=4),
    "cusum up": settings.Cusum(allowance=0.5, limit=4, side="up"),
    "page_hinkley": settings.PageHinkley(allowance=0.4, limit=4, prior=60),
    "page_hinkley down": settings.PageHinkley(allowance=0.4, limit=4, prior=60, side="down"),
    "ewma": settings.Ewma(weight=0.1, limit=2.5, allowance=0.05),
    "ewma down": settings.Ewma(weight=0.1, limit=2.5, side="down"),
    "adwin": settings.Adwin(delta=0.5, prior=60),
    "adwin up": settings.Adwin(delta=0.5, longest=200, side="up"),
    "psi": settings.Psi(window=50, limit=0.15),
}


@pytest.mark.parametrize("name", CHARTS)
def test_many_streams_alarm_where_the_devices_detector_does(name: str) -> None:
    chart = CHARTS[name]
    signal = Signal(baseline=MIX if name == "psi" else BASELINE, chart=chart, advice="clean")
    rng = np.random.default_rng(1)
    points = rng.normal(0.1, 1.1, (600, 8))
    points[400:] += 0.7
    if name.startswith("adwin"):
        points = 0.5 + 0.5 * np.vectorize(math.erf)(points / math.sqrt(2))
    if name == "psi":
        points = rng.choice(3, (600, 8), p=[0.7, 0.2, 0.1]).astype(float)
    detector = many(signal, 8)
    together = np.stack([detector.step(row) for row in points])  # (points, streams)
    assert together.any(), "or nothing is compared"
    for k in range(8):
        alone = make_detector(signal)
        expected = [t for t, x in enumerate(points[:, k]) if alone.update(float(x)) is Outcome.DRIFT]
        if isinstance(detector, AdwinMany):
            expected = expected[:1]
        assert np.flatnonzero(together[:, k]).tolist() == expected


def test_points_are_what_the_devices_watch_feeds_its_detector() -> None:
    values = np.random.default_rng(2).normal(0.5, 1, 40)
    for kind in ("cusum", "adwin"):
        signal = arl_runs.normal_signal(kind, "both", 100, 1e6)
        watch = Watch("x", signal)
        fed: list[float] = []
        watch._detector.update = lambda x, fed=fed: fed.append(x) or Outcome.CALM  # type: ignore[method-assign]
        for value in values:
            watch.update(float(value))
        assert fed == pytest.approx(arl_runs.points_of(values, signal).tolist(), abs=1e-4)


def test_a_known_run_length_is_found() -> None:
    """A Shewhart chart in a CUSUM's clothes: alarms have the chance p, so runs have a mean of 1/p."""
    signal = Signal(baseline=BASELINE, chart=settings.Cusum(allowance=2.0, limit=1e-9, side="up"), advice="clean")
    scores = np.random.default_rng(3).normal(size=(2000, 500))
    length, alarms = arl_runs.run_length(arl_runs.normal_alarms(signal, scores), 2000)
    assert length == pytest.approx(1 / 0.02275, rel=0.1) and alarms == 500


def test_delays_are_counted_from_the_change_and_early_alarms_left_out() -> None:
    signal = Signal(baseline=BASELINE, chart=settings.Cusum(allowance=0.5, limit=5.0), advice="clean")
    rng = np.random.default_rng(0)
    calm, off = {"x": np.zeros(10)}, {"x": np.full(10, 3.0)}
    seen = arl_runs.delays({"x": signal}, calm, off, 50, 20, 10, rng)
    assert set(seen.of(["x"]).tolist()) == {3.0}, "2.5 a frame against 5: over it with the third"
    assert seen.first() == {"x": 1.0}
    always = arl_runs.delays({"x": signal}, off, off, 50, 20, 10, rng)
    assert len(always.of(["x"])) == 0
    never = arl_runs.delays({"x": signal}, calm, calm, 50, 20, 10, rng)
    assert np.isinf(never.of(["x"])).all()
    assert arl._delay(never.of(["x"])) == {"found": 0.0, "mean": None, "p50": None, "p90": None}


def test_an_autoencoder_that_looks_seldom_speaks_late() -> None:
    signal = Signal(baseline=BASELINE, chart=settings.Cusum(allowance=0.5, limit=5.0), advice="clean")
    calm, off = {"ae_error": np.zeros(10)}, {"ae_error": np.full(10, 3.0)}
    seen = arl_runs.delays({"ae_error": signal}, calm, off, 100, 20, 10, np.random.default_rng(0))
    assert set(seen.of(["ae_error"]).tolist()) == {21.0}


def good_rows(count: int = 200) -> Rows:
    rng = np.random.default_rng(4)
    values = {"brightness": rng.normal(128, 3, count), "sharpness": rng.normal(9, 0.2, count)}
    values |= {"confidence": rng.uniform(size=count), "kind": rng.choice(3, count).astype(float)}
    return Rows(values, rng.normal(1, 0.1, (count, 16)), np.arange(count), 0.0)


def test_whole_monitors_of_measured_frames_are_calm_and_then_speak(tmp_path: Path) -> None:
    options = arl.parser().parse_args(
        ["--out", str(tmp_path), "--frames", "300", "--streams", "100", "--halves", "2", "--delay-halves", "1",
         "--horizon", "200"]
    )  # fmt: skip
    good = good_rows()
    dark = Rows({**good.values, "brightness": good.values["brightness"] - 9}, good.means, good.frame, 0.25)
    found = arl.on_frames({("clean", 0): good, ("dark", 2): dark}, ("open", "short"), options, np.random.default_rng(0))
    assert found["good"] == 200 and len(found["halves"]) == 2
    assert found["same_frames"]["arl0"] > 10_000
    late = found["delays"][0]
    assert late["refused"] == 0.25 and late["all"]["p50"] < 12 and next(iter(late["first"])) == "brightness"
    text = arl.frames_table(found)
    assert "| dark | 2 | 25% |" in text and "brightness" in text
    arl.draw({"frames": found}, tmp_path / "arl1.png")
    assert (tmp_path / "arl1.png").stat().st_size > 1000


def test_halves_share_no_frame() -> None:
    for half in arl_runs.halves(good_rows(), ("open", "short"), 3, 10, 1e5, np.random.default_rng(0)):
        assert half.settings.frames == 100 and len(half.others) == 100
        assert set(half.signals) == {"brightness", "sharpness", "confidence", "kind", "feature_distance"}
        assert all(len(points) == 100 for points in half.clean.values())


def test_the_step_on_normal_scores_leaves_table_picture_and_record(tmp_path: Path) -> None:
    arl.main(["--out", str(tmp_path), "--frames", "200", "--streams", "20"])
    record = json.loads((tmp_path / "arl.json").read_text())
    assert {row["detector"] for row in record["results"]["normal"]["calm"]} == set(arl.KINDS)
    assert "| 1.5 |" in (tmp_path / "arl.md").read_text() and (tmp_path / "arl1.png").exists()


def test_frames_without_what_measures_them_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="go together"):
        arl.main(["--out", str(tmp_path), "--data", str(tmp_path)])


def test_of_each_plan_a_signal_gets_as_much_more_as_there_are_signals() -> None:
    fitted = arl_runs.fit(good_rows(), np.arange(200), ("open", "short"), 10, 1e5)
    chart = fitted.signals["brightness"].chart
    assert isinstance(chart, settings.Cusum)
    reach = 2 * plan.ALLOWANCE * (chart.limit + 1.166)
    assert (math.exp(reach) - reach - 1) / (2 * plan.ALLOWANCE**2) / 2 == pytest.approx(1e5 * len(plan.PLANS), rel=0.01)


@pytest.fixture
def line(tmp_path: Path) -> Path:
    """A bundle's worth of good frames that no data set has to be fetched for."""
    return tiny_dataset(tmp_path / "data", size=(640, 640), groups=("A", "B"), images=10, templates=True)


def test_the_step_measures_frames_with_a_bundle_and_goes_on_where_it_stopped(
    line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(arl, "CONDITIONS", ("dark", "defocus"))
    monkeypatch.setattr(arl, "LEVELS", (3,))
    arguments = ["--bundle", "models/pcb", "--data", str(line), "--other", str(line), "--out", str(tmp_path / "out"),
                 "--changed", "4", "--frames", "100", "--streams", "20", "--halves", "1", "--delay-halves", "1",
                 "--horizon", "100"]  # fmt: skip
    with pytest.raises(DataError, match="are too few"):
        arl.main([*arguments[:3], str(few(tmp_path)), *arguments[4:]])
    arl.main(arguments)
    first = json.loads((tmp_path / "out" / "arl.json").read_text())["results"]["frames"]
    assert first["good"] == 20 and {row["condition"] for row in first["delays"]} == {"dark", "defocus", "product"}
    monkeypatch.setattr(Meter, "row", lambda *_: pytest.fail("a frame was measured again"))
    arl.main(arguments)
    assert "| dark | 3 |" in capsys.readouterr().out


def few(root: Path) -> Path:
    return tiny_dataset(root / "few", size=(64, 64), images=2)
