"""A camera's drift monitor together with the autoencoder that it asks now and then."""

from __future__ import annotations

from edge.detect import Predictor
from edge.drift import reconstruct
from edge.drift.monitor import DriftMonitor
from edge.drift.report import Event
from edge.records import Inspection


class DriftWatch:
    """Watches one camera's frames, after their verdict. Made and used in one thread, as its predictor is.

    Args:
        monitor: of the camera.
        autoencoder: of the product, where its bundle has one.
        every: it looks at each so-many-th frame.

    Attributes:
        answered: whether the autoencoder looked at the last frame, and said how far off it was.
    """

    def __init__(self, monitor: DriftMonitor, autoencoder: Predictor | None, every: int) -> None:
        self.monitor = monitor
        self._autoencoder = autoencoder
        self._every = every
        self.answered = False

    def look(self, inspection: Inspection) -> list[Event]:
        """Take one frame; what is new.

        Raises:
            PredictorError: the autoencoder failed, or answered with what is no number.
        """
        self.answered = False
        error = self._error(inspection) if inspection.gate.passed and self.monitor.wants_ae(self._every) else None
        self.answered = error is not None
        return self.monitor.update(inspection, inspection.features, error)

    def _error(self, inspection: Inspection) -> float | None:
        spec = self.monitor.autoencoder
        if self._autoencoder is None or spec is None:
            return None
        tensor = reconstruct.prepare(inspection.frame.image, spec)
        return reconstruct.error(tensor, self._autoencoder.run(tensor)[0])
