"""The golden run: every model of a bundle that this device could run, on the bundle's golden samples, timed.

Each runs in a child process of low priority, since a bad `.nb` can abort the process that loads it and a daemon may be
at work beside it. What comes out is the device's passport of the bundle (`edge.bundle.passport`).
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Final, cast

import msgspec
import numpy as np

from edge import loading
from edge import parity as measures
from edge.bundle import choice
from edge.bundle import manifest as manifests
from edge.bundle import passport as passports
from edge.bundle import trial as trials
from edge.bundle.manifest import Artifact, Golden, GoldenSample, Manifest, listed
from edge.bundle.passport import Agreement, DevicePassport, Proof
from edge.capture.folder import read_image
from edge.config import Runtime
from edge.errors import BundleError, EdgeError
from edge.event import StageTimes
from edge.health import stage_times
from edge.parity import Limits
from edge.pipeline import Pipeline
from edge.predictor import BUILD_TIMEOUT_S, CPU, TENSORRT, installed_runtimes
from edge.preprocess import Image, preprocess
from edge.records import Detections, Frame, Inspection
from edge.serving import EVERYTHING, Product, opening
from edge.steps import all_of

NICE: Final = 10  # a daemon's parts go first
TIME_LIMIT_S: Final = 900.0  # until a model is loaded and compared; a small board under load needs minutes
FRAME_LIMIT_S: Final = 120.0
END_S: Final = 10.0
FRAMES: Final = 60  # are timed of each model, or as many as fit into
TIMED_S: Final = 6.0
LEAST_FRAMES: Final = 1
LAP_KEYS: Final = ("frame_ms", "predict_ms", "cpu_ms")
GREY: Final = 114


class Job(msgspec.Struct, kw_only=True, frozen=True):
    """What a child process is asked: to prove one model of a bundle."""

    folder: str
    file: str
    runtime: Runtime
    marks: str


class Lap(msgspec.Struct, kw_only=True, frozen=True):
    """What a child says of one frame, milliseconds."""

    frame_ms: float
    predict_ms: float
    cpu_ms: float


def prove(
    folder: Path,
    runtime: Runtime,
    *,
    marks: Path | None = None,
    say: Callable[[str], None] = lambda _text: None,
    frames: int = FRAMES,
    timed_s: float = TIMED_S,
) -> DevicePassport:
    """Run every model of the bundle that this device could run, compare each with the reference, time them in turns.

    Args:
        folder: the bundle. runtime: threads, execution providers and what else is wanted of the runtime.
        marks: folder that remembers which models passed their trial here. say: told how it goes on.
        frames, timed_s: so many frames of each model are timed, or as many as fit into that time; one at least.

    Raises:
        BundleError: nothing of it runs here, or what is wanted does not agree with the reference; says all reasons.
    """
    manifest = manifests.read(folder)
    artifacts = choice.fitting(manifest, loading.machine(), installed_runtimes())
    samples = len(manifests.read_golden(folder, manifest).samples) if manifest.golden is not None else 0
    anything = msgspec.structs.replace(runtime, precision="auto")
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-proof-")))
        children = []
        for artifact in artifacts:
            say(f"{artifact.file}: tried on {samples} golden samples")
            where = str((marks or scratch).resolve())
            job = Job(folder=str(folder.resolve()), file=artifact.file, runtime=anything, marks=where)
            children.append(stack.enter_context(Child(artifact, job, scratch / f"{artifact.file}.log")))
        _take_turns([child for child in children if child.proof.passed], frames, timed_s)
        proofs = [child.proof for child in children]
    if marks is not None:
        _give_away(marks)
    passport = DevicePassport(
        bundle=f"{manifest.product} {manifest.version}", digest=manifests.digest(manifest),
        here=loading.here(runtime), ts=time.time(), samples=samples, proofs=proofs,
    )  # fmt: skip
    if passports.pick(proofs, runtime.prefer, runtime.precision) is None:
        raise BundleError(_why_none(manifest, proofs, runtime))
    return passport


def _take_turns(children: Sequence[Child], frames: int, timed_s: float) -> None:
    """Time the models frame by frame in turns: what else the device does slows all of them alike."""
    until, turns = time.monotonic() + timed_s * len(children), 0
    while turns < min(frames, LEAST_FRAMES) or (turns < frames and time.monotonic() < until):
        for child in children:
            child.take_turn()
        turns += 1


class Child:
    """A process with one model, for as long as the context lasts. `proof` is what is known of the model so far."""

    def __init__(self, artifact: Artifact, job: Job, log: Path) -> None:
        self._artifact, self._job, self._log = artifact, job, log
        self._laps: list[Lap] = []
        self._unread = b""
        self.proof = Proof(file=artifact.file, runtime=artifact.runtime, precision=artifact.precision)

    def __enter__(self) -> Child:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edge.proving", msgspec.json.encode(self._job).decode()],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, bufsize=0,
                cwd=Path(__file__).resolve().parents[1],  # this very package, wherever we were called from
                start_new_session=True,
            )  # fmt: skip
        limit_s = TIME_LIMIT_S + (BUILD_TIMEOUT_S if TENSORRT in self._job.runtime.providers else 0)
        if (line := self._line(limit_s)) is not None:
            self.proof = msgspec.json.decode(line, type=Proof)
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def take_turn(self) -> None:
        """Time one frame more; a child that dies of it has not passed."""
        if self.proof.problems:
            return
        with contextlib.suppress(BrokenPipeError):
            cast(IO[bytes], self._process.stdin).write(b"\n")
        if (line := self._line(FRAME_LIMIT_S)) is not None:
            self._laps.append(msgspec.json.decode(line, type=Lap))
            frame, predict, cpu = (stage_times(np.array([getattr(lap, key) for lap in self._laps])) for key in LAP_KEYS)
            cpu_ms = cpu.p50 if self._is_alone() else None
            self.proof = msgspec.structs.replace(
                self.proof, frame_ms=frame, predict_ms=predict, cpu_ms=cpu_ms, frames=len(self._laps)
            )

    def _is_alone(self) -> bool:
        """Whether one thread of the processor does all the work, so that its time is the time of the frame."""
        return self._job.runtime.threads == 1 and set(self.proof.providers) <= {CPU}

    def _line(self, limit_s: float) -> bytes | None:
        """The next line of JSON that the child says; without one the proof has a problem."""
        until = time.monotonic() + limit_s
        stdout = cast(IO[bytes], self._process.stdout).fileno()
        while True:
            line, found, rest = self._unread.partition(b"\n")
            if found:
                self._unread = rest
                if line.startswith(b"{"):  # a runtime may print lines of its own
                    return line
                continue
            if not select.select([stdout], [], [], max(0.0, until - time.monotonic()))[0]:
                self._fail(f"took over {limit_s:.0f} s")
                return None
            if not (more := os.read(stdout, 1 << 16)):
                self._fail(self._last_words())
                return None
            self._unread += more

    def _fail(self, problem: str) -> None:
        self.proof = msgspec.structs.replace(self.proof, problems=[problem])

    def _last_words(self) -> str:
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            return "fell silent"
        how = f"was killed by signal {-code}" if code < 0 else "failed"
        last = (self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        return f"{how}: {last}"


def _why_none(manifest: Manifest, proofs: Sequence[Proof], runtime: Runtime) -> str:
    lines = [f"{proof.file}: {problem}" for proof in proofs for problem in proof.problems]
    bundle = f"the bundle {manifest.product} {manifest.version}"
    if any(proof.passed for proof in proofs):
        headline = (
            f"no {runtime.precision} model of {bundle} may run on this device, and runtime.precision wants it; set it "
            "to auto, or get another bundle"
        )
        return listed(headline, lines or [f"{proof.file} is {proof.precision}" for proof in proofs])
    return listed(f"{bundle} does not do on this device what it did where it was made; keep the one you have", lines)


def _give_away(marks: Path) -> None:
    """What root has written is the daemon's to use."""
    for path in [marks, *marks.iterdir()] if marks.is_dir() else []:
        trials.adopt(path, marks.parent)


def _serve(job: Job) -> None:
    """In the child: load the model as the daemon does, compare, say the proof; then a frame for each line that comes.

    Raises:
        EdgeError: it cannot be loaded or run.
    """
    folder = Path(job.folder)
    manifest = manifests.read_unverified(folder)  # whoever asked has checked the files
    artifact = next(a for a in manifest.artifacts if a.file == job.file)
    alone = msgspec.structs.replace(manifest, artifacts=[artifact])
    product = all_of(
        opening(folder, job.runtime, min_confidence=EVERYTHING, trial_marks=Path(job.marks), manifest=alone)
    )
    golden = manifests.read_golden(folder, manifest) if manifest.golden is not None else None
    images = [read_image(folder / s.file) for s in golden.samples] if golden is not None else [_grey(product)]
    problems, agreement = _compared(product, folder, golden, images) if golden is not None else ([], None)
    proof = Proof(
        file=artifact.file, runtime=artifact.runtime, precision=artifact.precision, problems=problems,
        providers=list(product.predictor.providers), agreement=agreement,
    )  # fmt: skip
    pipeline = product.pipeline_of(product.recipe, time.monotonic_ns)
    first = _lap(pipeline, images[0])
    frame, predict = (StageTimes(p50=ms, p99=ms, max=ms) for ms in (first.frame_ms, first.predict_ms))
    _answer(msgspec.structs.replace(proof, frames=1, frame_ms=frame, predict_ms=predict))
    for number, _ in enumerate(sys.stdin):
        _answer(_lap(pipeline, images[number % len(images)]))


def _lap(pipeline: Pipeline, image: Image) -> Lap:
    began_ns = time.process_time_ns()
    stage_ms = _inspect(pipeline, image, 0).stage_ms
    cpu_ms = (time.process_time_ns() - began_ns) / 1e6
    return Lap(frame_ms=sum(stage_ms.values()), predict_ms=stage_ms["predict"], cpu_ms=cpu_ms)


def _answer(message: msgspec.Struct) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def _grey(product: Product) -> Image:
    return np.full((product.spec.height, product.spec.width), GREY, np.uint8)


def _compared(
    product: Product, folder: Path, golden: Golden, images: Sequence[Image]
) -> tuple[list[str], Agreement | None]:
    """What is wrong with the model's answers to the golden samples, and how far they are off."""
    problems = [
        f"{sample.file} becomes another input here than where the bundle was made: pictures are decoded or scaled in "
        "another way; install the OpenCV that the requirements name"
        for sample, image in zip(golden.samples, images, strict=True)
        if hashlib.sha256(preprocess(image, product.spec)[0].tobytes()).hexdigest() != sample.tensor_sha256
    ][:1]
    pipeline = product.pipeline(time.monotonic_ns)
    seen = [_inspect(pipeline, image, n) for n, image in enumerate(images)]
    wanted = [_reference(sample, product.classes) for sample in golden.samples]
    found = [inspection.detections for inspection in seen]
    verdicts = [(s.verdict, i.verdict.kind.value) for s, i in zip(golden.samples, seen, strict=True)]
    least, limits = golden.least_confidence, limits_of(folder, product.manifest, product.artifact.precision)
    total = measures.agreement(wanted, found, least, verdicts)
    sure = sum(measures.pairs(w, f, least + limits.score_p95)[3] for w, f in zip(wanted, found, strict=True))
    problems += [
        f"judges {sample.file} {now}, the reference {was}"
        for sample, (was, now) in zip(golden.samples, verdicts, strict=True)
        if was != now
    ][:3]
    problems += [text for text in measures.exceeded("golden samples", limits, total) if "golden_verdicts" not in text]
    if total.lost + sure > limits.unmatched * total.boxes:
        problems.append(f"{total.lost} of {total.boxes} boxes of the reference are not found, and {sure} others are")
    return problems, Agreement(
        boxes=total.boxes, lost=total.lost, extra=sure, changed=total.changed,
        shift_p95_px=_number(total.shift_p95_px), score_p95=_number(total.score_p95),
    )  # fmt: skip


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 5)


def _inspect(pipeline: Pipeline, image: Image, number: int) -> Inspection:
    frame = Frame(image, "golden", number + 1, time.monotonic_ns(), time.time())
    return pipeline.inspect(frame, detect_refused=True)  # the reference also searched what the gate refuses


def _reference(sample: GoldenSample, classes: Sequence[str]) -> Detections:
    """What the reference found on a sample."""
    xyxy = np.array([box.xyxy for box in sample.detections], np.float32).reshape(-1, 4)
    confidence = np.array([box.confidence for box in sample.detections], np.float32)
    return Detections(
        xyxy, confidence, np.array([classes.index(box.class_name) for box in sample.detections], np.int64)
    )


def limits_of(folder: Path, manifest: Manifest, precision: str) -> Limits:
    """What a model of that precision may differ by: as the bundle's passport says, else what is usual."""
    usual = measures.BY_PRECISION[precision]
    if manifest.passport is None:
        return usual
    try:
        told = msgspec.json.decode((folder / manifest.passport).read_bytes())["limits"][precision]
        return Limits(**{name: math.inf if value is None else float(value) for name, value in told.items()})
    except (OSError, msgspec.DecodeError, KeyError, TypeError, ValueError, AttributeError):
        return usual


def _child(text: str) -> int:
    os.nice(max(0, NICE - os.nice(0)))
    try:
        _serve(msgspec.json.decode(text, type=Job))
    except EdgeError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever asked has gone
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1]))
