"""Judges the frames of an incident again, by what they were judged by then, and compares to the last bit."""

from __future__ import annotations

import os
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import cv2
import msgspec

from edge import recipes as recipe_sets
from edge import settings
from edge.bundle import manifest as manifests
from edge.bundle import slots
from edge.config import Runtime
from edge.errors import BundleError, EdgeError, IncidentError, PredictorError
from edge.fuse import fuse, looking
from edge.incident_file import Entry, IncidentReader, Packed
from edge.part_record import ExactLook, PartRecord, look_of
from edge.pipeline import Pipeline
from edge.predictor import CPU
from edge.recipe import Recipe
from edge.recording import Session, this_machine, unpack
from edge.records import Frame, Inspection, VerdictKind
from edge.serving import Product, open_product

# What is compared of a look, in the order in which it is found: the first difference is nearest to its cause.
COMPARED: Final = ("gate", "boxes", "anomaly", "anomaly_limit", "anomaly_map", "verdict", "reasons")
HELD_BACK: Final = "challenge."  # reasons of a part that would be OK: whether challenge parts were owed is not in it


@dataclass
class Report:
    """What a replay has found.

    Attributes:
        frames: judged again. parts: of these frames.
        differing: parts of which something differs. first: the first difference, in words; "" when there is none.
        causes: what is not as it was then, each in words.
        not_again: what cannot be judged again: losses, refused triggers, gaps, other events; as they were recorded.
        verdicts: as they were recorded.
    """

    bundle: str = ""
    frames: int = 0
    parts: int = 0
    differing: int = 0
    first: str = ""
    causes: list[str] = field(default_factory=list)
    not_again: list[str] = field(default_factory=list)
    verdicts: Counter[str] = field(default_factory=Counter)

    @property
    def identical(self) -> bool:
        """Whether everything came out the same to the last bit."""
        return not self.differing

    def told(self, most_lines: int) -> list[str]:
        """For a person, with at most so many lines of what was not judged again."""
        kinds = ", ".join(f"{kind} {n}" for kind, n in sorted(self.verdicts.items()))
        lines = [f"{self.parts} parts ({kinds}) with {self.frames} frames judged again by {self.bundle}"]
        if self.not_again:
            lines.append("beside them, not judged again:")
        lines += [f"  {line}" for line in self.not_again[:most_lines]]
        if (more := len(self.not_again) - most_lines) > 0:
            lines.append(f"  and {more} more, see timeline.jsonl in the file")
        if self.identical:
            lines += [f"not as it was then: {cause}" for cause in self.causes]
            return [*lines, "identical: every verdict, box, score and reason, to the last bit"]
        why = self.causes or ["nothing that is known: the file was altered, or one of the two machines is faulty"]
        return [
            *lines,
            f"{self.differing} of {self.parts} parts differ; the first difference:",
            f"  {self.first}",
            f"  likely cause: {'; '.join(why)}",
        ]


def replay(file: Path, bundle: Path | None, state: Path, frames: Path | None = None) -> Report:
    """Judge every frame of an incident again.

    Args:
        file: what `edge incident export` wrote.
        bundle: the bundle to judge with; None: the one installed below `state`.
        frames: a folder that takes the frames as PNG too.

    Raises:
        IncidentError: the file cannot be used, or nothing in it can be judged again.
        EdgeError: the bundle, its model or a recipe cannot be used here.
    """
    report = Report()
    with closing(IncidentReader(file)) as incident, tempfile.TemporaryDirectory() as scratch:
        benches = _Benches(incident, bundle, state, Path(scratch), report)
        for entry in incident.entries():
            if entry.event is not None:
                report.not_again.append(f"{_clock(entry.at_ts)} {entry.event.kind} {_words(entry.event.data)}".rstrip())
            if entry.part is not None:
                _judge_part(entry, entry.part, incident, benches, report, frames)
    if not report.frames:
        raise IncidentError(f"the incident {file} holds no frame that was judged: there is nothing to compare")
    return report


def _judge_part(
    entry: Entry, part: PartRecord, incident: IncidentReader, benches: _Benches, report: Report, frames: Path | None
) -> None:
    if part.loss is not None:
        report.not_again.append(f"{_clock(part.settled_ts)} {_name(part)}: {part.loss} {part.detail}".rstrip())
    if not part.looks:
        return
    if [look.camera for look in part.looks] != [packed.camera for packed in entry.frames]:
        raise IncidentError(f"{_name(part)} has other frames in the file than it was judged by: export it again")
    bench = benches.of(entry.session)
    report.bundle = bench.told
    report.parts += 1
    report.verdicts[part.outcome] += 1
    difference, judged = "", dict[str, Inspection]()
    for look, packed in zip(part.looks, entry.frames, strict=True):
        frame = _frame(look, packed, incident)
        report.frames += 1
        _show(frame, packed, frames)
        pipeline = bench.pipeline(part)
        try:
            judged[look.camera] = pipeline.inspect(frame)
        except EdgeError as error:
            difference = difference or f"camera {look.camera}: then {look.verdict}, now it cannot be judged: {error}"
            continue
        difference = difference or first_difference(look, look_of(judged[look.camera]))
    if not difference:
        difference = _verdict_difference(part, judged, bench, report)
    if difference:
        report.differing += 1
        if not report.first:
            report.first = f"{_name(part)} at {_clock(part.settled_ts)}, {difference}"
            report.causes = bench.causes()


def _frame(look: ExactLook, packed: Packed, incident: IncidentReader) -> Frame:
    image = unpack(incident.read(packed.member), tuple(packed.shape))
    return Frame(image, look.camera, look.frame, look.captured_mono_ns, look.captured_ts, look.name)


def _show(frame: Frame, packed: Packed, folder: Path | None) -> None:
    if folder is None:
        return
    path = folder / Path(packed.member).with_suffix(".png").name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        ok, encoded = cv2.imencode(".png", frame.image)
        path.write_bytes(encoded.tobytes() if ok else b"")
    except OSError as error:
        raise IncidentError(f"the frame {path} cannot be written: {error.strerror or error}") from error


def _verdict_difference(part: PartRecord, judged: Mapping[str, Inspection], bench: _Bench, report: Report) -> str:
    """How the verdict over all cameras differs; "" when it does not, or when there was none."""
    if part.verdict is None:
        return ""
    if part.trigger is None:  # a line without triggers: the frame's verdict is the part's
        now = next(iter(judged.values())).verdict
    else:
        recipe = bench.recipe(part)
        fused = fuse(judged, part.missing, recipe.fusion, looking(recipe.fusion, bench.cameras))
        if fused is None:
            return f"verdict: then {part.verdict}, now none"
        now = fused
    if part.reasons and part.reasons[0].code.startswith(HELD_BACK) and now.kind is VerdictKind.OK:
        held = f"was OK and held back, {part.reasons[0].code}: {part.reasons[0].text}"
        report.not_again.append(f"{_clock(part.settled_ts)} {_name(part)} {held}")
        return ""
    then = {"verdict": part.verdict, "reasons": [msgspec.to_builtins(reason) for reason in part.reasons]}
    again = {"verdict": now.kind.value, "reasons": [{"code": r.code, "text": r.text} for r in now.reasons]}
    return _differs(then, again, "")


def first_difference(then: ExactLook, now: ExactLook) -> str:
    """The first difference between two looks at one frame, in words; "" when there is none, to the last bit."""
    one, other = msgspec.to_builtins(then), msgspec.to_builtins(now)
    for name in COMPARED:
        if words := _differs(_without_names(one[name]), _without_names(other[name]), name):
            return f"camera {then.camera}, {words}"
    return ""


def _without_names(value: Any) -> Any:
    """Boxes without the names of their classes, which are the bundle's and not a finding."""
    if isinstance(value, list):
        return [_without_names(item) for item in value]
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if key != "class_name"}
    return value


def _differs(then: Any, now: Any, where: str) -> str:
    """The first place where two plain values differ, and how; "" when they are the same to the last bit."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in [*then, *(key for key in now if key not in then)]:
            if words := _differs(then.get(key), now.get(key), f"{where} {key}".strip()):
                return words
        return ""
    if isinstance(then, list) and isinstance(now, list):
        for number, (one, other) in enumerate(zip(then, now, strict=False), 1):
            if words := _differs(one, other, f"{where} {number}"):
                return words
        return f"{where}: then {len(then)}, now {len(now)}" if len(then) != len(now) else ""
    return "" if _same(then, now) else f"{where}: then {_value(then)}, now {_value(now)}"


def _same(one: Any, other: Any) -> bool:
    """
    >>> _same(0.1, 0.1), _same(0.0, -0.0), _same(1.0, 1)
    (True, False, True)
    """
    numbers = [value for value in (one, other) if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(numbers) == 2:
        return struct.pack("<d", one) == struct.pack("<d", other)
    return bool(one == other)


def _value(value: Any) -> str:
    return "nothing" if value is None else f"{value!r}" if isinstance(value, (float, str)) else f"{value}"


class _Bench:
    """A product as one run of the daemon served it."""

    def __init__(self, session: Session, product: Product, cameras: Sequence[str], notes: Sequence[str]) -> None:
        self.session = session
        self.product = product
        self.cameras = tuple(cameras)
        self._notes = list(notes)
        self._recipes = {recipe_sets.hash_of(recipe): recipe for recipe in product.recipes.recipes}
        self._pipelines: dict[str, Pipeline] = {}

    @property
    def told(self) -> str:
        product = self.product
        return f"{product.manifest.product} {product.manifest.version} on {product.runtime}"

    def recipe(self, part: PartRecord) -> Recipe:
        """The recipe that a part was judged by.

        Raises:
            IncidentError: it is not in the file.
        """
        recipe = self._recipes.get(part.recipe_hash)
        if recipe is None:
            raise IncidentError(
                f"{_name(part)} was judged by a recipe {part.recipe!r} that is not in the file "
                f"({part.recipe_hash[:12]}...): it cannot be judged again"
            )
        return recipe

    def pipeline(self, part: PartRecord) -> Pipeline:
        """The inspection path of its recipe."""
        if part.recipe_hash not in self._pipelines:
            self._pipelines[part.recipe_hash] = self.product.pipeline_of(self.recipe(part), time.monotonic_ns)
        return self._pipelines[part.recipe_hash]

    def causes(self) -> list[str]:
        """What is not as it was, most telling first."""
        session, product, here = self.session, self.product, this_machine()
        now = f"{product.manifest.product} {product.manifest.version}"
        pairs = [
            ("the bundle", f"{session.product} {session.product_version} {session.bundle_digest[:12]}",
             f"{now} {product.digest[:12]}"),
            ("the model's file", session.artifact, product.artifact.file),
            ("the runtime", session.runtime, product.runtime),
            ("the architecture", session.machine, here["machine"]),
            ("the libraries", session.libraries, here["libraries"]),
            ("the processor", session.processor, here["processor"]),
        ]  # fmt: skip
        return [f"{what}: {then} then, {now} now" for what, then, now in pairs if then != now] + self._notes


class _Benches:
    """The products of an incident's sessions, each opened when it is first wanted, in this thread."""

    def __init__(
        self, incident: IncidentReader, bundle: Path | None, state: Path, scratch: Path, report: Report
    ) -> None:
        self._incident = incident
        self._bundle = bundle
        self._state = state
        self._scratch = scratch
        self._report = report
        self._benches: dict[int, _Bench] = {}

    def of(self, number: int) -> _Bench:
        """Of a session of the file."""
        if number not in self._benches:
            bench = self._benches[number] = self._open(number, self._incident.session(number))
            self._report.causes += [cause for cause in bench.causes() if cause not in self._report.causes]
        return self._benches[number]

    def _open(self, number: int, session: Session) -> _Bench:
        config = settings.parse_toml(session.config.encode(), f"sessions/{number}.toml")
        cameras = [str(camera.get("id")) for camera in config.get("camera", []) if isinstance(camera, dict)]
        runtime = _runtime_of(config)
        folder = self._scratch / str(number)
        folder.mkdir()
        for sha, text in session.recipes.items():
            (folder / f"{sha}.toml").write_text(text, encoding="utf-8")
        if not session.recipes:
            raise IncidentError(f"sessions/{number}.json names no recipe: its parts cannot be judged again")
        bundle = self._bundle or _installed(self._state, session.bundle_digest)
        notes: list[str] = []
        try:
            product = self._product(bundle, runtime, folder, cameras)
        except PredictorError as error:
            if runtime.providers == [CPU]:
                raise
            notes.append(f"the execution providers: {', '.join(runtime.providers)} cannot be used here ({error})")
            product = self._product(bundle, msgspec.structs.replace(runtime, providers=[CPU]), folder, cameras)
        return _Bench(session, product, cameras, notes)

    def _product(self, bundle: Path, runtime: Runtime, recipes: Path, cameras: Sequence[str]) -> Product:
        files = sorted(recipes.iterdir())
        # What the daemon's start has tried and compiled here, where we may use it: an execution provider takes minutes.
        own = self._state / "trials"
        marks = own if os.access(own if own.exists() else self._state, os.W_OK) else self._scratch / "trials"
        if len(files) == 1:
            return open_product(bundle, runtime, recipe_file=files[0], trial_marks=marks)
        return open_product(bundle, runtime, recipe_folder=recipes, cameras=cameras, trial_marks=marks)


def _runtime_of(config: Mapping[str, Any]) -> Runtime:
    """As the site wanted it; its defaults where that cannot be read."""
    try:
        return msgspec.convert(config.get("runtime", {}), Runtime)
    except msgspec.ValidationError:
        return Runtime()


def _installed(state: Path, digest: str) -> Path:
    """The installed bundle of that digest, or else the active one.

    Raises:
        IncidentError: none is installed.
    """
    try:
        active = slots.active(state)
    except BundleError as error:
        raise IncidentError(f"{error}, or name one with --bundle") from error
    for link in (active, slots.previous(state) or active):
        try:
            if manifests.digest(manifests.read_unverified(link)) == digest:
                return link
        except EdgeError:
            continue
    return active


def _name(part: PartRecord) -> str:
    return f"part {part.number}" + (f" ({part.trigger.serial})" if part.trigger and part.trigger.serial else "")


def _clock(ts: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(ts)) + f".{int(ts * 1000) % 1000:03d} UTC"
    except (OverflowError, ValueError, OSError):  # a clock that is beyond any calendar
        return f"{ts} s"


def _words(data: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in data.items())
