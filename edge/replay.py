"""Offline verdicts over a folder of images, by the very pipeline of the daemon."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TextIO

import cv2
import msgspec

from edge.annotate import annotate
from edge.capture.folder import find_images, read_image
from edge.errors import CaptureError, ImageError, UsageError
from edge.event import Box, Why, boxes, encode
from edge.health import StageWindow
from edge.pipeline import Pipeline
from edge.records import Frame, Inspection, Loss
from edge.serving import EVERYTHING, Product


class Line(msgspec.Struct, kw_only=True, frozen=True):
    """One image of a replay, as a JSON line. A file that could not be judged has a `loss` and an `error` instead."""

    file: str
    verdict: str | None
    cause: str | None
    detections: list[Box]  # every one down to 0.01, in source pixels, whatever the recipe's threshold
    reasons: list[Why] = []
    sharpness: float | None = None
    brightness: float | None = None
    anomaly: float | None = None
    anomaly_limit: float | None = None
    latency_ms: float | None = None
    loss: str | None = None
    error: str | None = None


@dataclass
class Summary:
    """What a replay found, for the table at its end."""

    verdicts: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    defects: Counter[str] = field(default_factory=Counter)
    losses: Counter[str] = field(default_factory=Counter)
    window: StageWindow = field(default_factory=lambda: StageWindow(1_000_000))

    @property
    def judged(self) -> int:
        """Images that got a verdict."""
        return sum(self.verdicts.values())


Order = Literal["name", "time"]


def replay(
    folder: Path,
    product: Product,
    summary: Summary,
    jsonl: TextIO | None,
    annotated: Path | None,
    *,
    order: Order = "name",
    each: Callable[[Inspection], None] = lambda _inspection: None,
) -> Iterator[Line]:
    """Judge every image of a folder and its subfolders.

    Args:
        folder: images, or one image, or a glob.
        summary: counts each image as it is yielded.
        jsonl: takes one JSON line an image.
        annotated: a folder that takes each judged image with its boxes.
        order: by name, as people count; or by the time at which the file was last changed.
        each: told every inspection, in order.

    Yields:
        The line of each image.

    Raises:
        CaptureError: the folder does not exist or holds no image.
        UsageError: the folder for annotated images cannot be written.
    """
    pipeline = product.pipeline(time.monotonic_ns)
    for number, path in enumerate(in_order(find_images(folder), order), 1):
        name = str(path.relative_to(folder)) if folder in path.parents else path.name
        line, inspection = _judge(path, name, number, pipeline, product)
        _count(summary, line, inspection)
        if jsonl is not None:
            jsonl.write(encode(line).decode() + "\n")
        if annotated is not None and inspection is not None:
            _write_annotated(annotated / f"{Path(name).with_suffix('')}.jpg", inspection, product)
        if inspection is not None:
            each(inspection)
        yield line


def in_order(files: list[Path], order: Order) -> list[Path]:
    """Files that are in natural order, by that or by the time of their last change; equal times keep the names' order.

    Raises:
        CaptureError: a file is gone.
    """
    try:
        return files if order == "name" else sorted(files, key=lambda path: path.stat().st_mtime_ns)
    except OSError as error:
        raise CaptureError(f"{error.filename} cannot be read: {error.strerror}") from error


def _judge(path: Path, name: str, number: int, pipeline: Pipeline, product: Product) -> tuple[Line, Inspection | None]:
    try:
        frame = Frame(read_image(path), "replay", number, time.monotonic_ns(), time.time(), name)
        inspection = pipeline.inspect(frame, detect_refused=True)
    except (CaptureError, ImageError) as error:
        loss = Loss.CAPTURE_FAULT.value
        return Line(file=name, verdict=None, cause=None, detections=[], loss=loss, error=str(error)), None
    gate, verdict = inspection.gate, inspection.verdict
    line = Line(
        file=name,
        verdict=verdict.kind.value,
        cause=gate.cause.value if gate.cause else None,
        detections=boxes(inspection.detections.above(EVERYTHING), product.classes),
        reasons=[Why(code=r.code, text=r.text) for r in verdict.reasons],
        sharpness=round(gate.sharpness, 2),
        brightness=round(gate.brightness, 2),
        anomaly=inspection.scores.anomaly,
        anomaly_limit=inspection.scores.anomaly_limit,
        latency_ms=round(sum(inspection.stage_ms.values()), 3),
    )
    return line, inspection


def _count(summary: Summary, line: Line, inspection: Inspection | None) -> None:
    if inspection is None:
        summary.losses[line.loss or ""] += 1
        return
    summary.verdicts[line.verdict or ""] += 1
    if line.cause:
        summary.causes[line.cause] += 1
    summary.defects.update(why.code.removeprefix("defect.") for why in line.reasons if why.code.startswith("defect."))
    summary.window.add(inspection.stage_ms)


def _write_annotated(path: Path, inspection: Inspection, product: Product) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written = cv2.imwrite(
            str(path), annotate(inspection, product.classes, product.shown_from, None, product.foreign_from)
        )
    except (OSError, cv2.error) as error:
        raise UsageError(f"the annotated image {path} cannot be written: {error}") from error
    if not written:
        raise UsageError(f"the annotated image {path} cannot be written: choose another folder with --annotate")


def table(summary: Summary) -> str:
    """The summary for people: verdicts, causes, defects, losses, times."""
    total = summary.judged + sum(summary.losses.values())
    rows = [f"{total} images: " + ", ".join(f"{kind} {n}" for kind, n in sorted(summary.verdicts.items()))]
    for title, counter in (("refused", summary.causes), ("defects", summary.defects), ("lost", summary.losses)):
        if counter:
            rows.append(f"{title}: " + ", ".join(f"{name} {n}" for name, n in counter.most_common()))
    rows += [
        f"{stage:<8} p50 {times.p50:8.2f} ms   p99 {times.p99:8.2f} ms   max {times.max:8.2f} ms"
        for stage, times in summary.window.summary().items()
    ]
    return "\n".join(rows)
