"""Signals of frames as the device would measure them: good ones, and the same ones under conditions that drift.

Each frame is measured once and kept in a journal; streams are then drawn from the rows by chance.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from edge import gate
from edge.detect import Detector, Predictor
from edge.drift import plan, reconstruct, signals
from edge.drift.settings import Autoencoder
from edge.preprocess import Image
from edge.recipe import Recipe
from edge.records import Frame, Inspection, Scores, Verdict, VerdictKind
from tools.dataset import read_image
from tools.journal import Journal
from tools.physical import corrupt

CLEAN = "clean"
OTHER_PRODUCT = "product"


@dataclass(frozen=True)
class Rows:
    """What was measured on frames under one condition.

    Attributes:
        values: of each signal, (frames,).
        means: (frames, C), the mean of each channel of the features; C is 0 without features.
        frame: (frames,) which of the good frames each was made of.
        refused: share of the frames that the gate would not pass.
    """

    values: dict[str, np.ndarray]
    means: np.ndarray
    frame: np.ndarray
    refused: float


@dataclass(frozen=True)
class Meter:
    """Measures frames as the device does, whatever its gate says: the gate's share is told apart.

    Attributes:
        autoencoder: with its input, of a product that has one.
    """

    detector: Detector
    recipe: Recipe
    channels: int
    autoencoder: tuple[Predictor, Autoencoder] | None = None

    def row(self, image: Image) -> dict[str, object]:
        """Signals, channel means and whether the gate refuses, as JSON has it."""
        judged = gate.check(image, self.recipe.gate)
        seen = self.detector.look(image)
        passed = gate.judge(gate.measure(image, self.recipe.gate.roi), gate.GateRecipe())
        frame = Frame(image, "table", 0, 0, 0.0)
        inspection = Inspection(frame, passed, seen.detections, Scores(), Verdict(VerdictKind.OK))
        error = None
        if self.autoencoder is not None:
            predictor, spec = self.autoencoder
            tensor = reconstruct.prepare(image, spec)
            error = reconstruct.error(tensor, predictor.run(tensor)[0])
        values = signals.measure(inspection, seen.features, error, None, self.recipe.detect.review)
        means = [] if seen.features is None else [round(float(m), 6) for m in signals.channel_means(seen.features)]
        return {"values": values, "means": means, "refused": not judged.passed}


def measure(
    meter: Meter, files: Sequence[Path], conditions: Sequence[tuple[str, int]], most: int, journal: Journal
) -> dict[tuple[str, int], Rows]:
    """Rows of good frames, and of up to `most` of them under each condition.

    Args:
        conditions: a corruption of `tools.physical` and its level.
    """
    tables = {(CLEAN, 0): _rows(meter, list(enumerate(files)), CLEAN, 0, journal)}
    chosen = [(int(k), files[int(k)]) for k in np.linspace(0, len(files) - 1, min(most, len(files)))]
    for name, level in conditions:
        tables[name, level] = _rows(meter, chosen, name, level, journal)
    return tables


def measure_other(meter: Meter, files: Sequence[Path], like: Path, journal: Journal) -> Rows:
    """Rows of another product's frames, brought to the size of this one's."""
    height, width = read_image(like, meter.channels).shape[:2]
    rows = []
    for file in tqdm(files, OTHER_PRODUCT, mininterval=5):

        def one(file: Path = file) -> dict[str, object]:
            image = read_image(file, meter.channels)
            return meter.row(np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8))

        rows.append((0, journal.once(f"{OTHER_PRODUCT} {file}", one)))
    return _table(rows)


def _rows(meter: Meter, files: Sequence[tuple[int, Path]], name: str, level: int, journal: Journal) -> Rows:
    rows = []
    for k, file in tqdm(files, f"{name} {level}", mininterval=5):

        def one(file: Path = file) -> dict[str, object]:
            image = read_image(file, meter.channels)
            if name != CLEAN:
                seed = zlib.crc32(f"{name} {level} {file.name}".encode())
                image = corrupt(image, name, level, np.random.default_rng(seed))
            return meter.row(image)

        rows.append((k, journal.once(f"{name} {level} {file}", one)))
    return _table(rows)


def _table(rows: Sequence[tuple[int, dict]]) -> Rows:
    names = [name for name in plan.PLANS if all(name in row["values"] for _, row in rows)]
    return Rows(
        values={name: np.array([row["values"][name] for _, row in rows], np.float64) for name in names},
        means=np.array([row["means"] for _, row in rows], np.float64).reshape(len(rows), -1),
        frame=np.array([k for k, _ in rows]),
        refused=float(np.mean([row["refused"] for _, row in rows])),
    )


def levels(names: Sequence[str], which: Sequence[int]) -> Iterator[tuple[str, int]]:
    """Each corruption at each level."""
    yield from ((name, level) for name in names for level in which)
