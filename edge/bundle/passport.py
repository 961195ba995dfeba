"""The passport of a bundle on this device: which of its models agree here with the reference, and how fast they are.

    <state>/bundles/passports/<slot>.json      from `edge.proving`, one a slot

What runs is what the passport picked, for as long as the device is what it was when the passport was made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from edge.bundle import trial as trials
from edge.errors import BundleError
from edge.event import StageTimes
from edge.files import write_whole

FOLDER: Final = "passports"
LARGEST_BYTES: Final = 1 << 20
TIE: Final = 0.1  # a model that is not faster by more than this share is not taken for faster: times are noisy


class Here(msgspec.Struct, kw_only=True, frozen=True):
    """What a proof stands on: it says nothing of a device that is another in any of this.

    Attributes:
        machine: architecture. board: model, "" where the device does not say.
        versions: of the inference runtimes and of the libraries that make a tensor of a picture.
        threads, providers: as the site config wants them.
    """

    machine: str
    board: str
    versions: dict[str, str]
    threads: int
    providers: list[str]


class Agreement(msgspec.Struct, kw_only=True, frozen=True):
    """Boxes of one model on the golden samples, against those of the reference.

    Attributes:
        boxes: of the reference. lost: not found here. extra: found here alone, and clearly so.
        shift_p95_px: how far centres are apart, pixels of the source image. score_p95: difference in confidence. Both
            are 95th percentiles, None where nothing could be compared.
        changed: samples with another verdict.
    """

    boxes: int
    lost: int
    extra: int
    shift_p95_px: float | None
    score_p95: float | None
    changed: int


class Proof(msgspec.Struct, kw_only=True, frozen=True):
    """One model of the bundle, as it did on this device.

    Attributes:
        file, runtime, precision: as the manifest says them. providers: execution providers that were really in use.
        problems: why it may not serve; none: it may.
        agreement: None where the bundle has no golden samples, or the model did not run.
        cpu_ms: processor time of a frame, the median: what models are compared by, since others at work on the box do
            not change it. None where it says nothing: more than one thread, or a GPU.
        frame_ms: of the whole inspection of a frame. predict_ms: of the network in it. frames: how many were timed.
    """

    file: str
    runtime: str
    precision: Literal["int8", "fp32"]
    providers: list[str] = []
    problems: list[str] = []
    agreement: Agreement | None = None
    frame_ms: StageTimes | None = None
    predict_ms: StageTimes | None = None
    cpu_ms: float | None = None
    frames: int = 0

    @property
    def passed(self) -> bool:
        """Whether it may serve."""
        return not self.problems and self.frame_ms is not None


class DevicePassport(msgspec.Struct, kw_only=True, frozen=True):
    """All proofs of one bundle on this device.

    Attributes:
        bundle: product and version. digest: of the bundle.
        here: what the proofs stand on.
        ts: when they were made, seconds since 1970 UTC.
        samples: golden samples that were compared; 0: the bundle has none, and models were only run.
        proofs: in the order in which models are chosen where nothing is known of their speed.
    """

    format: int = 1
    bundle: str
    digest: str
    here: Here
    ts: float
    samples: int
    proofs: list[Proof]

    def holds(self, digest: str, here: Here) -> bool:
        """Whether it was made of this bundle, on a device that is as this one."""
        return self.format == 1 and (self.digest, self.here) == (digest, here)


def pick(proofs: Sequence[Proof], prefer: str = "auto", precision: str = "auto") -> Proof | None:
    """The fastest that passed; of those that are as fast, the first. None: none passed that is wanted.

    Args:
        prefer: a runtime whose models go before all others. precision: nothing else will do.

    >>> slow, fast = (StageTimes(p50=ms, p99=ms, max=ms) for ms in (80.0, 28.0))
    >>> proofs = [Proof(file="a.nb", runtime="paddlelite", precision="int8", frame_ms=slow),
    ...           Proof(file="a.onnx", runtime="onnxruntime", precision="fp32", frame_ms=fast)]
    >>> pick(proofs).file, pick(proofs, prefer="paddlelite").file, pick(proofs, precision="int8").file
    ('a.onnx', 'a.nb', 'a.nb')
    """
    able = [p for p in proofs if p.passed and precision in ("auto", p.precision)]
    able = [p for p in able if p.runtime == prefer] or able
    if not able:
        return None
    by_cpu = all(p.cpu_ms is not None for p in able)
    times = [p.cpu_ms if by_cpu and p.cpu_ms is not None else p.frame_ms.p50 if p.frame_ms else math.inf for p in able]
    return next(p for p, ms in zip(able, times, strict=True) if ms <= min(times) * (1 + TIE))


def path_of(slot: Path) -> Path:
    """Where the passport of a slot lies."""
    return slot.parent / FOLDER / f"{slot.name}.json"


def read(slot: Path) -> DevicePassport | None:
    """The passport of a slot; None where there is none, or none that can be understood."""
    try:
        with path_of(slot).open("rb") as file:
            return msgspec.json.decode(file.read(LARGEST_BYTES), type=DevicePassport)
    except (OSError, msgspec.DecodeError, ValueError):
        return None


def write(slot: Path, passport: DevicePassport) -> None:
    """Keep the passport of a slot, durably, and let those go whose slots are gone.

    Raises:
        BundleError: it cannot be written.
    """
    path = path_of(slot)
    try:
        path.parent.mkdir(exist_ok=True)
        trials.adopt(path.parent, slot.parent)
        write_whole(path, msgspec.json.format(msgspec.json.encode(passport), indent=2) + b"\n")
        trials.adopt(path, slot.parent)
        for old in path.parent.glob("*.json"):
            if not (slot.parent / old.stem).is_dir():
                old.unlink(missing_ok=True)
    except OSError as error:
        raise BundleError(f"the passport {path} cannot be written: {error.strerror or error}") from error


def table(passport: DevicePassport, picked: str = "") -> list[str]:
    """The proofs for people, one line each; `picked` is marked.

    >>> ms = StageTimes(p50=28.04, p99=31.5, max=40.0)
    >>> proof = Proof(file="a.nb", runtime="paddlelite", precision="int8", frame_ms=ms, predict_ms=ms)
    >>> here = Here(machine="x86_64", board="", versions={}, threads=1, providers=[])
    >>> print("\\n".join(table(DevicePassport(bundle="pcb 5", digest="", here=here, ts=0, samples=0, proofs=[proof]),
    ...       "a.nb")))
      model                        runtime      precision  p50 ms  p99 ms  cpu ms  boxes lost extra  score  agrees
    * a.nb                         paddlelite   int8         28.0    31.5       -      -    -     -      -  not compared
    """
    rows = [
        "  model                        runtime      precision  p50 ms  p99 ms  cpu ms  boxes lost extra  score  agrees"
    ]
    return rows + [_row(proof, "*" if proof.file == picked else " ") for proof in passport.proofs]


def _row(proof: Proof, mark: str) -> str:
    p50, p99 = (f"{proof.frame_ms.p50:.1f}", f"{proof.frame_ms.p99:.1f}") if proof.frame_ms else ("-", "-")
    cpu = f"{proof.cpu_ms:.1f}" if proof.cpu_ms is not None else "-"
    a = proof.agreement
    boxes, lost, extra = (str(a.boxes), str(a.lost), str(a.extra)) if a else ("-", "-", "-")
    score = f"{a.score_p95:.3f}" if a and a.score_p95 is not None else "-"
    verdict = "yes" if a else "not compared"
    if proof.problems:
        verdict = f"NO: {proof.problems[0]}"
    what = f"{mark} {proof.file:<28} {proof.runtime:<12} {proof.precision:<9}"
    return f"{what} {p50:>7} {p99:>7} {cpu:>7} {boxes:>6} {lost:>4} {extra:>5} {score:>6}  {verdict}"


def versions(runtimes: Mapping[str, str], **libraries: str) -> dict[str, str]:
    """What `Here.versions` holds, in one order.

    >>> versions({"paddlelite": "2.13rc0"}, opencv="4.11.0")
    {'opencv': '4.11.0', 'paddlelite': '2.13rc0'}
    """
    return dict(sorted({**runtimes, **libraries}.items()))
