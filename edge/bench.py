"""Measures this machine: the stages, the whole path against the bare model, the runtimes, start-up and memory.

Speed is given as a ratio within one run: what is compared takes turns on the same frames, so that a busy machine
slows both.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge import ledger
from edge.capture.folder import find_images, read_image
from edge.capture.intake import Taken
from edge.capture.simulated import SimulatedSource
from edge.clock import SystemClock
from edge.config import Publishing, Runtime, SimulatedCamera
from edge.errors import EdgeError
from edge.event import Envelope, Topics
from edge.loading import machine
from edge.outbox import Outbox
from edge.predictor import Float, Predictor, installed_runtimes, load
from edge.preprocess import Image, preprocess
from edge.records import Frame
from edge.serving import Product, open_product
from edge.station import Serving, Station
from edge.stream_watch import StreamWatch

DISTINCT_FRAMES = 16
JUDGES = ("gate", "classify", "anomaly", "watch, after it")  # stages that look at a frame beside the detector
WARM_UP = 5
START_LIMIT_S = 60.0
SETTLE_S = 10.0  # the daemon runs so long before its memory is read

Times = NDArray[np.float64]


class NoWire:
    """A station's live side without a broker, as on a line whose network is down."""

    def live(self, topic: str, message: Envelope, retain: bool = False) -> None:
        """Nobody hears it."""

    def live_bytes(self, topic: str, payload: bytes) -> bool:
        """Nobody hears it."""
        return False

    def clear(self, topic: str) -> None:
        """Nothing to take down."""

    def connected(self) -> bool:
        """Never."""
        return False

    def live_dropped(self) -> int:
        """Not counted here."""
        return 0


def bench(bundle: Path, frames: int, images: Path | None) -> int:
    """Measure and print; 0 when everything could be measured.

    Args:
        frames: frames of each measurement.
        images: a folder to take the frames from; None draws boards.

    Raises:
        EdgeError: the bundle cannot be run here.
    """
    pictures = _pictures(images)
    product = open_product(bundle, Runtime())
    height, width = pictures[0].shape[:2]
    print(
        f"{product.manifest.product} {product.manifest.version} on {product.runtime}; {frames} frames {width}x{height}"
    )
    _print_path(product, pictures, frames)
    _print_runtimes(bundle, product, pictures, frames)
    _print_daemon(bundle)
    return 0


def _pictures(images: Path | None) -> list[Image]:
    if images is not None:
        return [read_image(path) for path in find_images(images)[:DISTINCT_FRAMES]]
    source = SimulatedSource(SimulatedCamera(id="bench", fps=1000.0, fault_rate=0.0))
    source.open()
    grabs = [source.read(5.0) for _ in range(DISTINCT_FRAMES)]
    return [grab.image for grab in grabs if grab is not None]


def _print_path(product: Product, pictures: list[Image], frames: int) -> None:
    """Stages and the ratio of the whole path to the bare predictor call, taking turns frame by frame."""
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder:
        clock = SystemClock()
        outbox = Outbox(Path(folder) / "outbox.db", 256_000_000, "bench", clock)
        pipeline = product.pipeline(clock.mono_ns)
        serving = Serving(product.classes, product.shown_from, product.digest)
        station = Station(
            pipeline, serving, outbox, NoWire(), Topics("edge", "bench", "bench", "bench"), clock, Publishing(),
            ledger.empty(), 0, lambda: 0,
        )  # fmt: skip
        watch = StreamWatch(product.judges, product.recipe, product.classes, Path(folder) / "drift", clock)
        stages: dict[str, list[float]] = {}
        bare, path = [], []
        for i in range(-WARM_UP, frames):
            picture = pictures[i % len(pictures)]
            tensor, _ = preprocess(picture, product.spec)
            bare_ms = _run_ms(product.predictor, tensor)
            frame = Frame(picture, "bench", i + WARM_UP + 1, clock.mono_ns(), clock.ts())
            began = time.perf_counter()
            inspection = station.settle(Taken(frame=frame, overruns=0, faults=0))
            path_ms = (time.perf_counter() - began) * 1e3
            if inspection is None:
                continue
            began = time.perf_counter()
            watch.look(inspection)
            watch_ms = (time.perf_counter() - began) * 1e3
            if i < 0 or not inspection.gate.passed:
                continue
            bare.append(bare_ms)
            path.append(path_ms)
            stage_ms = dict(inspection.stage_ms)
            stage_ms["commit and rest"] = path_ms - sum(stage_ms.values())
            stage_ms["watch, after it"] = watch_ms
            for stage, ms in stage_ms.items():
                stages.setdefault(stage, []).append(ms)
        outbox.close()
    if not path:
        raise EdgeError("every frame was refused by the gate, so there is no path to measure; use other --images")
    print(f"\n{'stage, ms':<24}{'p50':>9}{'p99':>9}{'p99.9':>9}")
    for stage, times in stages.items():
        _print_times(stage, np.array(times))
    _print_times("whole path", np.array(path))
    _print_times("bare predictor.run()", np.array(bare))
    ratio = np.median(path) / np.median(bare)
    print(f"whole path / bare predictor: {ratio:.3f} at p50; {1e3 / np.mean(path):.1f} frames a second")
    beside = sum(float(np.mean(stages[name])) for name in JUDGES if name in stages)
    print(f"judges beside the detector: {beside:.2f} ms on average, {100 * beside / np.mean(bare):.1f} % of it")


def _print_runtimes(bundle: Path, product: Product, pictures: list[Image], frames: int) -> None:
    """Every model of the bundle that runs here, one thread each, taking turns."""
    tensors = [preprocess(picture, product.spec)[0] for picture in pictures]
    installed = installed_runtimes()
    loaded = {
        f"{a.runtime} {installed[a.runtime]} {a.precision}": load(a.runtime, bundle / a.file, threads=1)
        for a in product.manifest.artifacts
        if a.runtime in installed and a.arch in (machine(), "any")
    }
    times: dict[str, list[float]] = {name: [] for name in loaded}
    for i in range(-WARM_UP, frames):
        tensor = tensors[i % len(tensors)]
        for name, predictor in loaded.items():
            ms = _run_ms(predictor, tensor)
            if i >= 0:
                times[name].append(ms)
    print(f"\n{'same network, 1 thread':<32}{'p50':>9}{'p99':>9}{'p99.9':>9}{'ratio':>8}")
    base = np.median(next(iter(times.values())))
    for name, values in times.items():
        _print_times(name, np.array(values), 32, f"{np.median(values) / base:8.2f}")


def _print_daemon(bundle: Path) -> None:
    """Start-up and memory of the daemon as its own process, first start and second."""
    print(f"\n{'daemon':<24}{'first verdict, s':>18}{'RSS, MB':>10}{'peak, MB':>10}")
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder:
        config = Path(folder) / "edge.toml"
        config.write_text(
            f'[paths]\nstate = "{folder}/state"\nbundle = "{bundle.resolve()}"\n'
            "[mqtt]\nport = 9\n[publish]\nimage_every_s = 0.0\n"
            '[[camera]]\nid = "cam1"\nsource = "simulated"\nfps = 5.0\n'
        )
        for which in ("first start", "second start"):
            start_s, rss_mb, peak_mb = _run_daemon(config)
            print(f"{which:<24}{start_s:>18.2f}{rss_mb:>10.0f}{peak_mb:>10.0f}")


def _run_daemon(config: Path) -> tuple[float, float, float]:
    began = time.monotonic()
    command = [sys.executable, "-m", "edge", "run", "--config", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as child:
        try:
            _wait_for_first_verdict(child)
            start_s = time.monotonic() - began
            time.sleep(SETTLE_S)
            status = Path(f"/proc/{child.pid}/status").read_text()
        finally:
            child.terminate()
            try:
                child.wait(15)
            except subprocess.TimeoutExpired:
                child.kill()
    return start_s, _kb(status, "VmRSS:") / 1e3, _kb(status, "VmHWM:") / 1e3


def _wait_for_first_verdict(child: subprocess.Popen[bytes]) -> None:
    if child.stderr is None:
        raise EdgeError("the daemon was started without its log")
    os.set_blocking(child.stderr.fileno(), False)
    selector = selectors.DefaultSelector()
    selector.register(child.stderr, selectors.EVENT_READ)
    said, limit = b"", time.monotonic() + START_LIMIT_S
    while time.monotonic() < limit and child.poll() is None:
        if selector.select(0.1):
            said += child.stderr.read() or b""
        if b"first verdict" in said:
            return
    raise EdgeError(f"the daemon gave no verdict within {START_LIMIT_S:.0f} s; it said: {said.decode()[-500:]}")


def _kb(status: str, field: str) -> float:
    return next(float(line.split()[1]) for line in status.splitlines() if line.startswith(field))


def _run_ms(predictor: Predictor, tensor: Float) -> float:
    began = time.perf_counter()
    predictor.run(tensor)
    return (time.perf_counter() - began) * 1e3


def _print_times(name: str, ms: Times, width: int = 24, more: str = "") -> None:
    p50, p99, p999 = np.percentile(ms, [50, 99, 99.9])
    print(f"{name:<{width}}{p50:>9.2f}{p99:>9.2f}{p999:>9.2f}{more}")
