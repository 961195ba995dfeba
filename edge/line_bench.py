"""Measures this machine as a station under a PLC: the simulated one on a pty, the daemon as its own process."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import cv2
import msgspec

from edge import answer_chart, recipe
from edge.answer_times import Histogram
from edge.bundle import manifest as manifests
from edge.capture.simulated import SimulatedSource
from edge.config import Plc, SimulatedCamera
from edge.errors import EdgeError
from edge.plc.cable import PtyCable
from edge.plc.players import make_player
from edge.plc.simulate import Plan, Simulator

DISTINCT_FRAMES = 12
FPS = 30.0
STOP_S = 20.0


@dataclass(frozen=True)
class LineBench:
    """What is measured.

    Attributes:
        rate: triggers a second. seconds: for so long. cameras: so many, each 640x640 at 30 frames a second.
        budget_ms: trigger to answer at most; None: twice the time between two triggers.
        chart: a picture of the answer times is written here, a PNG; None: none.
    """

    bundle: Path
    rate: float = 5.0
    seconds: float = 30.0
    cameras: int = 1
    budget_ms: float | None = None
    chart: Path | None = None


def bench_line(wanted: LineBench) -> int:
    """Measure and print; 0 when every trigger was answered, 1 when one was not.

    Raises:
        EdgeError: the bundle cannot be run here, or the daemon did not start.
    """
    budget_ms = wanted.budget_ms if wanted.budget_ms is not None else 2000 / wanted.rate
    with tempfile.TemporaryDirectory(prefix="edge-line-") as name:
        folder = Path(name)
        _write_frames(folder, wanted.cameras)
        config = _write_config(folder, wanted, budget_ms)
        times = Histogram()
        with (folder / "log").open("w+") as log, _daemon(config, folder) as child:
            try:
                report = _play(folder, wanted, log)
            finally:
                _stop(child)
            log.seek(0)
            for row in (msgspec.json.decode(line) for line in log if line.strip()):
                if row["word"] is not None and row["said"] == 1:
                    times.add(row["ms"])
        if not times.count:
            raise EdgeError(f"the station answered nothing; it said: {(folder / 'daemon.log').read_text()[-500:]}")
    _print(wanted, report, times, budget_ms)
    if wanted.chart is not None:
        title = f"{wanted.bundle.name}: {wanted.rate:g} triggers a second, {wanted.cameras} cameras of 640x640"
        answer_chart.draw(times, title, wanted.chart, budget_ms)
    return 1 if report["unanswered"] else 0


def _write_frames(folder: Path, cameras: int) -> None:
    """Boards as BMP files: read in a fraction of a millisecond, so that decoding is no part of the figure."""
    for camera in range(cameras):
        source = SimulatedSource(SimulatedCamera(id="bench", seed=camera, fault_rate=0.0, defect_rate=0.2))
        (folder / f"cam{camera}").mkdir()
        for i in range(DISTINCT_FRAMES):
            cv2.imwrite(str(folder / f"cam{camera}" / f"{i:02}.bmp"), source.image(i))


def _write_config(folder: Path, wanted: LineBench, budget_ms: float) -> Path:
    own = recipe.load(wanted.bundle / manifests.read(wanted.bundle).recipe)
    timed = msgspec.structs.replace(own, takt_time_ms=1000 / wanted.rate, answer_ms=budget_ms)
    (folder / "recipe.toml").write_text(recipe.dump(timed))
    cameras = "".join(
        f'[[camera]]\nid = "cam{i}"\nsource = "folder"\npath = "{folder}/cam{i}"\nfps = {FPS}\nloop = true\n'
        for i in range(wanted.cameras)
    )
    config = folder / "edge.toml"
    config.write_text(
        f'[paths]\nstate = "{folder}/state"\nbundle = "{wanted.bundle.resolve()}"\nrecipe = "{folder}/recipe.toml"\n'
        f'[mqtt]\nport = 9\n[publish]\nimage_every_s = 0.0\n[plc]\nport = "{folder}/plc"\n{cameras}'
    )
    return config


def _daemon(config: Path, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "edge", "run", "--config", str(config)]
    with (folder / "daemon.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def _play(folder: Path, wanted: LineBench, log: TextIO) -> dict[str, Any]:
    plan = Plan(rate=wanted.rate, seconds=wanted.seconds, wait_ready=True)
    settings = Plc(port=str(folder / "plc"))
    return Simulator(plan, PtyCable(folder / "plc"), make_player(settings), log).run()


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()


def _print(wanted: LineBench, report: dict[str, Any], times: Histogram, budget_ms: float) -> None:
    told = times.percentiles()
    words = ", ".join(f"{word} {n}" for word, n in sorted({**report["answered"], **report["refused"]}.items()))
    print(f"{report['sent']} triggers, {wanted.rate:g} a second, {wanted.cameras} cameras of 640x640: {words}")
    print(f"unanswered: {report['unanswered']}")
    print(f"{'trigger to answer, ms':<24}{'p50':>9}{'p99':>9}{'p99.9':>9}{'max':>9}")
    print(f"{'as the PLC sees it':<24}{told.p50:>9.2f}{told.p99:>9.2f}{told.p999:>9.2f}{told.max:>9.2f}")
    print(f"budget {budget_ms:g} ms; {times.over(budget_ms)} answers took longer")
