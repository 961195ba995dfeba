"""A line of circuit boards that needs no camera: drawn, spoiled here and there, with the truth about each."""

from __future__ import annotations

import numpy as np

from edge.capture.base import Grab
from edge.capture.board import DEFECTS, Truth, draw_board
from edge.capture.layout import Rng
from edge.capture.optics import expose
from edge.capture.pacing import Pacer
from edge.config import SimulatedCamera
from edge.errors import SourceEndedError
from edge.preprocess import Image

FAULTS = ("motion", "defocus", "overexposed", "underexposed")
MOST_DEFECTS = 6  # on one board of 640x640; the real data has about as many on the average
_PLAN, _BOARD, _CAMERA = range(3)  # separate streams of chance: what one draws does not shift the others


class SimulatedSource:
    """Boards on a schedule, the same ones for the same seed; implements `Source`.

    Board i depends on the seed and i only, not on what was drawn before. Its name tells i: "board-000012".
    """

    def __init__(self, settings: SimulatedCamera) -> None:
        self._settings = settings
        self._pacer = Pacer(settings.fps)
        self._next = 0

    def open(self) -> None:
        """Start over at board 0."""
        self._next = 0

    def read(self, timeout_s: float) -> Grab | None:
        """The next board, when it is due; see `Source.read`."""
        if self._settings.boards and self._next >= self._settings.boards:
            raise SourceEndedError(f"all {self._settings.boards} boards of the simulated line were drawn")
        if not self._pacer.wait(timeout_s):
            return None
        number = self._next
        self._next += 1
        return Grab(self.image(number), f"board-{number:06d}")

    def close(self) -> None:
        """Nothing is held open."""

    def image(self, number: int) -> Image:
        """Board `number` as the camera sees it, (height, width) uint8."""
        defects, fault = self._plan(number)
        board, _ = self._board(number, defects)
        rng = self._rng(number, _CAMERA)
        # A good lamp still wanders by a few percent.
        exposure, motion_px, defocus_px = float(rng.uniform(0.92, 1.1)), 0.0, 0.0
        if fault == "motion":
            motion_px = float(rng.uniform(32, 50))
        elif fault == "defocus":
            defocus_px = float(rng.uniform(8, 14))
        elif fault == "overexposed":
            exposure = float(rng.uniform(20.5, 28))
        elif fault == "underexposed":
            exposure = float(rng.uniform(0.055, 0.072))
        return expose(board, rng, motion_px, defocus_px, exposure)

    def truth(self, number: int) -> tuple[list[Truth], str]:
        """The defects on board `number`, and what spoils its picture: one of `FAULTS` or "none".

        >>> SimulatedSource(SimulatedCamera(id="a", defect_rate=0, fault_rate=0)).truth(7)
        ([], 'none')
        """
        defects, fault = self._plan(number)
        return self._board(number, defects)[1], fault

    def _plan(self, number: int) -> tuple[list[str], str]:
        rng = self._rng(number, _PLAN)
        bad, spoiled = rng.random() < self._settings.defect_rate, rng.random() < self._settings.fault_rate
        count = int(rng.integers(1, MOST_DEFECTS, endpoint=True)) if bad else 0
        defects = [DEFECTS[k] for k in rng.integers(len(DEFECTS), size=count)]
        return defects, FAULTS[int(rng.integers(len(FAULTS)))] if spoiled else "none"

    def _board(self, number: int, defects: list[str]) -> tuple[Image, list[Truth]]:
        return draw_board(self._rng(number, _BOARD), self._settings.width, self._settings.height, defects)

    def _rng(self, number: int, stream: int) -> Rng:
        return np.random.default_rng([self._settings.seed, number, stream])
