"""Lays out circuit boards: tracks, bundles, pads, vias and pours, none touching another by accident."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.preprocess import Image

COPPER = 0
BARE = 255

Rng = np.random.Generator
Point = tuple[float, float]


def lay_out(rng: Rng, width: int, height: int) -> Canvas:
    """A board of one of the styles seen in the real data, without defects."""
    canvas = Canvas(width, height)
    STYLES[int(rng.choice(len(STYLES), p=STYLE_SHARES))](rng, canvas)
    return canvas


@dataclass(frozen=True)
class _Shape:
    """A disc (one point), a polyline of some width (open) or a filled polygon; points are (K, 2) x, y."""

    points: NDArray[np.int32]
    width: int
    filled: bool = False

    def paint(self, image: Image, value: int, grow: int = 0, origin: tuple[int, int] = (0, 0)) -> None:
        points = self.points - np.array(origin, np.int32)
        if len(points) == 1:
            center = (int(points[0, 0]), int(points[0, 1]))
            cv2.circle(image, center, max(1, self.width // 2 + grow), (value,), -1)
            return
        if self.filled:
            cv2.fillPoly(image, [points], (value,))
        if self.width + 2 * grow > 0:
            cv2.polylines(image, [points], self.filled, (value,), self.width + 2 * grow)


def _disc(x: float, y: float, diameter: float) -> _Shape:
    return _Shape(np.array([[round(x), round(y)]], np.int32), round(diameter))


def _rectangle(x: float, y: float, width: float, height: float, corner: int = 0) -> _Shape:
    """Centred on x, y; `corner` rounds its corners by about half of it."""
    w, h = (width - corner) / 2, (height - corner) / 2
    points = np.array([[x - w, y - h], [x + w, y - h], [x + w, y + h], [x - w, y + h]])
    return _Shape(np.rint(points).astype(np.int32), corner, filled=True)


def _line(points: NDArray[np.float64], width: float) -> _Shape:
    return _Shape(np.rint(points).astype(np.int32), max(1, round(width)))


class Canvas:
    """The board under work; `add` keeps a clearance between what does not belong together."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.image: Image = np.full((height, width), BARE, np.uint8)
        self._taken: Image = np.zeros((height, width), np.uint8)
        self.holes: Image = np.zeros((height, width), np.uint8)  # bare places where no copper may appear

    def add(self, shapes: Sequence[_Shape], holes: Sequence[_Shape] = (), clearance: int = 12) -> bool:
        """Draw one net; False, and nothing drawn, when it would come closer than `clearance` to another."""
        x1, y1, x2, y2 = self._bounds(shapes, clearance)
        if x1 >= x2 or y1 >= y2:
            return False
        wanted = np.zeros((y2 - y1, x2 - x1), np.uint8)
        for shape in shapes:
            shape.paint(wanted, 255, clearance, (x1, y1))
        if cv2.countNonZero(cv2.bitwise_and(wanted, self._taken[y1:y2, x1:x2])):
            return False
        for shape in shapes:
            shape.paint(self.image, COPPER)
            shape.paint(self._taken, 255)
        self.drill(holes)
        return True

    def drill(self, holes: Sequence[_Shape]) -> None:
        for hole in holes:
            hole.paint(self.image, BARE)
            hole.paint(self.holes, 255)

    def _bounds(self, shapes: Sequence[_Shape], margin: int) -> tuple[int, int, int, int]:
        low = np.min([shape.points.min(axis=0) - shape.width for shape in shapes], axis=0) - margin
        high = np.max([shape.points.max(axis=0) + shape.width for shape in shapes], axis=0) + margin
        return (
            max(0, int(low[0])),
            max(0, int(low[1])),
            min(self.width, int(high[0]) + 1),
            min(self.height, int(high[1]) + 1),
        )


def _walk(rng: Rng, start: Point, heading: int, legs: int, leg_px: tuple[float, float]) -> NDArray[np.float64]:
    """A track's way, (legs + 1, 2): legs in eighths of a turn, each turning by 45 degrees to either side."""
    points = [start]
    for _ in range(legs):
        length = rng.uniform(*leg_px)
        angle = heading * math.pi / 4
        points.append((points[-1][0] + length * math.cos(angle), points[-1][1] + length * math.sin(angle)))
        heading += int(rng.choice((-1, 1)))
    return np.array(points)


def _beside(way: NDArray[np.float64], offset: float) -> NDArray[np.float64]:
    """The way moved sideways, so that it stays parallel round every bend."""
    legs = np.diff(way, axis=0)
    legs /= np.linalg.norm(legs, axis=1, keepdims=True)
    normals = np.stack([-legs[:, 1], legs[:, 0]], axis=1)
    before, after = np.vstack([normals[:1], normals]), np.vstack([normals, normals[-1:]])
    mitre = (before + after) / (1 + np.sum(before * after, axis=1, keepdims=True))
    return np.asarray(way + offset * mitre, np.float64)


def _somewhere(rng: Rng, canvas: Canvas, margin: float = 0) -> Point:
    return (
        float(rng.uniform(-margin, canvas.width + margin)),
        float(rng.uniform(-margin, canvas.height + margin)),
    )


def _pad(rng: Rng, x: float, y: float, size: float) -> tuple[list[_Shape], list[_Shape]]:
    """One pad and its hole, if it is of the kind that has one."""
    kind = rng.integers(4)
    if kind == 0:
        return [_rectangle(x, y, size, size * rng.uniform(0.7, 1.1), int(size * rng.choice((0, 0.35))))], []
    if kind == 1:
        return [_disc(x, y, size)], []
    if kind == 2 and size >= 22:
        return [_disc(x, y, size * 1.25)], [_disc(x, y, size * rng.uniform(0.45, 0.7))]
    return [_rectangle(x, y, size * rng.uniform(0.9, 1.9), size * 0.9, int(size * 0.4))], []


def _add_bundle(rng: Rng, canvas: Canvas) -> None:
    """Parallel tracks that cross the board."""
    width = rng.integers(6, 10)
    pitch = width + rng.integers(10, 17)
    heading = int(rng.integers(8))
    back = 0.75 * max(canvas.width, canvas.height)
    x, y = _somewhere(rng, canvas)
    angle = heading * math.pi / 4
    start = (x - back * math.cos(angle), y - back * math.sin(angle))
    way = _walk(rng, start, heading, 4, (0.7 * back, 1.1 * back) if rng.random() < 0.3 else (0.3 * back, 0.7 * back))
    for k in range(int(rng.integers(3, 9))):
        canvas.add([_line(_beside(way, k * pitch), width)], clearance=8)


def _add_track(rng: Rng, canvas: Canvas, width: float, leg_px: tuple[float, float]) -> None:
    """A track with a pad on each end, here and there one in the middle."""
    way = _walk(rng, _somewhere(rng, canvas, 30), int(rng.integers(8)), int(rng.integers(1, 5)), leg_px)
    shapes, holes = [_line(way, width)], []
    size = max(20.0, width * rng.uniform(1.1, 2.2))
    for x, y in (way[0], way[-1]):
        pad, hole = _pad(rng, float(x), float(y), size)
        shapes += pad
        holes += hole
    canvas.add(shapes, holes, clearance=int(rng.integers(10, 22)))


def _add_pad_row(rng: Rng, canvas: Canvas) -> None:
    """Pads of one component, in a row, some with a stub of track."""
    x, y = _somewhere(rng, canvas)
    size = float(rng.uniform(20, 46))
    pitch = size * rng.uniform(1.4, 2.2)
    step = (pitch, 0.0) if rng.random() < 0.5 else (0.0, pitch)
    ring = rng.random() < 0.35
    stub = float(rng.uniform(30, 110))
    for k in range(int(rng.integers(2, 8))):
        px, py = x + k * step[0], y + k * step[1]
        if ring:
            canvas.add([_disc(px, py, size * 1.3)], [_disc(px, py, size * 0.8)], clearance=8)
            continue
        shapes = [_rectangle(px, py, size if step[1] else size * 0.6, size if step[0] else size * 0.6, 6)]
        if rng.random() < 0.6:
            end = (px + (stub if step[1] else 0), py + (stub if step[0] else 0))
            shapes.append(_line(np.array([(px, py), end]), float(rng.choice((6, 8, 12)))))
        canvas.add(shapes, clearance=8)


def _add_pour(rng: Rng, canvas: Canvas, size_px: tuple[float, float]) -> None:
    """A plane of copper with cut corners, drilled and slotted."""
    x, y = _somewhere(rng, canvas)
    w, h = rng.uniform(*size_px) / 2, rng.uniform(*size_px) / 2
    cut = rng.uniform(0, 0.6, 4) * min(w, h)
    points = []
    for k, (sx, sy) in enumerate(((-1, -1), (1, -1), (1, 1), (-1, 1))):
        corner = [(x + sx * w, y + sy * (h - cut[k])), (x + sx * (w - cut[k]), y + sy * h)]
        points += corner if k % 2 == 0 else corner[::-1]
    outline = _Shape(np.rint(np.array(points)).astype(np.int32), int(rng.choice((0, 8))), filled=True)
    holes = []
    count = int(rng.integers(0, 5))
    for k in range(count):
        diameter = rng.uniform(12, 34)
        hx, hy = x + (1.4 * (k + 0.5) / count - 0.7) * w, y + rng.uniform(-0.7, 0.7) * h
        slot = count == 1 and rng.random() < 0.4
        holes.append(_rectangle(hx, hy, 3 * diameter, diameter, 2) if slot else _disc(hx, hy, diameter))
    canvas.add([outline], holes if min(w, h) > 40 else [], clearance=int(rng.integers(12, 30)))


def _add_meander(rng: Rng, canvas: Canvas, x: float, y: float, width: float, bare: bool) -> None:
    """A square wave, of copper or of bare laminate, downwards from x, y."""
    swing, step = rng.uniform(24, 70), rng.uniform(24, 60)
    points = []
    for k in range(int(rng.integers(3, 9))):
        side = x + (swing if k % 2 else 0)
        points += [(side, y + k * step), (side, y + (k + 1) * step)]
    shape = _line(np.array(points), width)
    if bare:
        shape.paint(canvas.image, BARE)
    else:
        canvas.add([shape], clearance=9)


def _signal_board(rng: Rng, canvas: Canvas) -> None:
    """Fine bundles, vias and small pads."""
    area = canvas.width * canvas.height / 640**2
    for _ in range(int(rng.integers(1, 4))):
        _add_bundle(rng, canvas)
    for _ in range(round(rng.integers(2, 7) * area)):
        _add_pad_row(rng, canvas)
    for _ in range(round(rng.integers(20, 50) * area)):
        _add_track(rng, canvas, float(rng.uniform(6, 10)), (40, 150))
    if rng.random() < 0.5:
        _add_meander(rng, canvas, *_somewhere(rng, canvas), width=7, bare=False)
    for _ in range(round(rng.integers(0, 25) * area)):
        canvas.add([_disc(*_somewhere(rng, canvas), rng.uniform(13, 30))], clearance=12)


def _power_board(rng: Rng, canvas: Canvas) -> None:
    """Wide tracks, pours, drilled pads, some small parts between."""
    area = canvas.width * canvas.height / 640**2
    for _ in range(round(rng.integers(2, 9) * area)):
        _add_pour(rng, canvas, (70, 360))
    for _ in range(round(rng.integers(8, 24) * area)):
        _add_track(rng, canvas, float(rng.uniform(20, 64)), (80, 330))
    for _ in range(round(rng.integers(10, 40) * area)):
        _add_track(rng, canvas, float(rng.uniform(6, 24)), (40, 190))
    for _ in range(int(rng.integers(0, 3))):
        _add_pad_row(rng, canvas)
    if rng.random() < 0.3:
        canvas.add([_disc(*_somewhere(rng, canvas), rng.uniform(100, 330))], clearance=20)


def _striped_board(rng: Rng, canvas: Canvas) -> None:
    """Planes of copper parted by narrow gaps, with windows, meanders and drilled holes."""
    _power_planes(rng, canvas)
    if rng.random() < 0.5:  # the strips were drawn upright
        turned = Canvas(canvas.height, canvas.width)
        _power_planes(rng, turned)
        canvas.image = np.ascontiguousarray(turned.image.T)
        canvas.holes = np.ascontiguousarray(turned.holes.T)


def _power_planes(rng: Rng, canvas: Canvas) -> None:
    canvas.image[:] = BARE
    top = int(rng.uniform(-1.5, 1) * 0.2 * canvas.height)
    x = float(rng.uniform(-60, 40))
    gap_px = rng.uniform(12, 50)
    while x < canvas.width:
        strip = float(rng.uniform(30, 190))
        _rectangle(x + strip / 2, top + canvas.height / 2 + 40, strip, canvas.height + 80).paint(canvas.image, COPPER)
        if strip > 110:
            _fill_strip(rng, canvas, x, strip, top)
        x += strip + gap_px * rng.uniform(0.7, 1.3)


def _fill_strip(rng: Rng, canvas: Canvas, x: float, strip: float, top: int) -> None:
    """What a wide strip holds: a meandering gap, a window with copper in it, or drilled holes."""
    kind = rng.integers(3)
    y = float(max(top, 0) + rng.uniform(30, 90))
    if kind == 0:
        _add_meander(rng, canvas, x + 25, y, float(rng.uniform(8, 13)), bare=True)
    elif kind == 1:
        w, h, frame = strip * 0.62, float(rng.uniform(120, 260)), float(rng.uniform(12, 26))
        _rectangle(x + strip / 2, y + h / 2, w, h, 24).paint(canvas.image, BARE)
        _rectangle(x + strip / 2, y + h / 2, w - 2 * frame, h - 2 * frame, 16).paint(canvas.image, COPPER)
    else:
        pitch, diameter = float(rng.uniform(50, 140)), float(rng.uniform(11, 26))
        canvas.drill([_disc(x + strip / 2, y + k * pitch, diameter) for k in range(8)])


def _sector_board(rng: Rng, canvas: Canvas) -> None:
    """Great discs of copper, with diagonal slots and wide holes."""
    for _ in range(2):
        x, y = _somewhere(rng, canvas, 60)
        radius = float(rng.uniform(0.3, 0.62) * max(canvas.width, canvas.height))
        if not canvas.add([_disc(x, y, 2 * radius)], clearance=int(rng.uniform(30, 70))):
            continue
        canvas.drill([_disc(x + rng.uniform(-0.4, 0.4) * radius, y, rng.uniform(40, 160))])
        for _ in range(int(rng.integers(1, 4))):
            way = _walk(rng, (x, y), int(rng.integers(8)), 2, (0.4 * radius, radius))
            _line(way, float(rng.uniform(12, 26))).paint(canvas.image, BARE)
    for _ in range(6):
        _add_track(rng, canvas, float(rng.uniform(8, 26)), (40, 200))


STYLES: tuple[Callable[[Rng, Canvas], None], ...] = (_power_board, _signal_board, _striped_board, _sector_board)
STYLE_SHARES = (0.38, 0.24, 0.28, 0.1)
