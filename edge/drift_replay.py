"""Watches a folder's images for drift, in their order, as the daemon watches a camera."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edge.drift import chart
from edge.drift.baseline import LEAST_FRAMES
from edge.drift.learn import Learning
from edge.drift.monitor import DriftMonitor
from edge.drift.trace import Trace
from edge.drift_watch import DriftWatch
from edge.errors import UsageError
from edge.records import Inspection
from edge.serving import Product


class DriftReplay:
    """The monitor of a replay, and what it told.

    Args:
        product: its bundle's baseline is taken, where there is one.
        learn: learn from so many good images instead; None: only where the bundle has no baseline, or the recipe wants
            the line's own.
        arl0: frames between false alarms on average, for a learned baseline.

    Raises:
        UsageError: too few images to learn from, or an ARL0 that is none.
    """

    def __init__(self, product: Product, learn: int | None, arl0: float) -> None:
        if learn is not None and learn < LEAST_FRAMES + 2:
            raise UsageError(f"--learn {learn} is too few for a baseline: use at least {LEAST_FRAMES + 2}")
        if not (math.isfinite(arl0) and arl0 >= 1):
            raise UsageError(f"--arl0 {arl0:g} is no average run length: use the frames between two false alarms")
        judges = product.judges
        learning = Learning(arl0=arl0) if learn is None else Learning(frames=learn, arl0=arl0)
        of_bundle = learn is None and product.recipe.drift.baseline == "bundle"
        bundle, eye = judges.drift if of_bundle else None, judges.drift.autoencoder if judges.drift else None
        monitor = DriftMonitor("replay", bundle, product.classes, learning, eye)
        self._watch = DriftWatch(monitor, judges.autoencoder, product.recipe.drift.every)
        self._title = f"{product.manifest.product} {product.manifest.version}"
        self.trace = Trace()

    def look(self, inspection: Inspection) -> None:
        """Take the next image's inspection.

        Raises:
            PredictorError: the autoencoder failed.
        """
        events = self._watch.look(inspection)
        self.trace.add(inspection.frame.name, self._watch.monitor.scores, events)

    def told(self) -> Iterator[str]:
        """What happened, and the report, in lines for people."""
        for mark in self.trace.marks:
            advice = f" {mark.event.advice}" if mark.event.advice else ""
            yield f"{self.trace.names[mark.at]}: {mark.event.code} {mark.event.kind.value}, {mark.event.text}.{advice}"
        report = self._watch.monitor.report()
        yield f"drift: {report.status}. {report.text}"
        for moved in report.moved:
            yield f"  {moved.signal} shows best on {', '.join(ref.name for ref in moved.best)}"

    def write(self, report: Path | None, picture: Path | None) -> None:
        """Write the report as JSON, and the chart as PNG, where wanted.

        Raises:
            UsageError: they cannot be written, or there is nothing to draw.
        """
        if report is not None:
            try:
                report.write_bytes(msgspec.json.format(msgspec.json.encode(self._watch.monitor.report()), indent=1))
            except OSError as error:
                raise UsageError(f"the report {report} cannot be written: {error.strerror or error}") from error
        if picture is not None:
            chart.draw(self.trace, f"drift of {self._title}", picture)
