"""Images for tests: boards of the simulated line, without faults."""

from __future__ import annotations

from edge.capture.simulated import SimulatedSource
from edge.config import SimulatedCamera
from edge.preprocess import Image


def drawn_boards(n: int, seed: int = 1) -> list[Image]:
    """The first `n` boards of a line, 640x640 grey, half of them with defects."""
    source = SimulatedSource(SimulatedCamera(id="draw", fps=1000.0, fault_rate=0.0, seed=seed))
    source.open()
    grabs = [source.read(5.0) for _ in range(n)]
    return [grab.image for grab in grabs if grab is not None]
