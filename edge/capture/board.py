"""Draws circuit boards as a thresholded line scan shows them: copper black, bare laminate white.

A board is laid out first (tracks, bundles, pads, vias, pours; nothing touches by accident), then the defects
are put where their kind can occur, found by distances and rays on the finished layout. The look follows the
DeepPCB photographs (Tang et al. 2019, "On-line PCB Defect Detector On A New PCB Defect Dataset"): strokes of a
small brush, boxes about 10 px larger than what was changed, edges rough by a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.capture.layout import BARE, COPPER, Canvas, Point, Rng, lay_out
from edge.preprocess import Image

DEFECTS = ("open", "short", "mousebite", "spur", "copper", "pin-hole")

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Truth:
    """A defect that was drawn: its box in pixels (x1, y1, x2, y2) and its kind, one of `DEFECTS`."""

    xyxy: tuple[float, float, float, float]
    class_name: str


def draw_board(rng: Rng, width: int, height: int, defects: Sequence[str]) -> tuple[Image, list[Truth]]:
    """One board with the wanted defects on it.

    Args:
        rng: the only source of chance: the same state gives the same board.
        defects: kinds to draw, of `DEFECTS`; a kind the layout has no room for is left out.

    Returns:
        The board, (height, width) uint8 of 0 and 255, and what was drawn on it.

    Raises:
        ValueError: a kind that does not exist.

    >>> image, truths = draw_board(np.random.default_rng(1), 320, 240, ["open", "copper"])
    >>> image.shape, [truth.class_name for truth in truths]
    ((240, 320), ['open', 'copper'])
    """
    unknown = set(defects) - set(DEFECTS)
    if unknown:
        raise ValueError(f"no such defect: {', '.join(sorted(unknown))}; there are {', '.join(DEFECTS)}")
    canvas = lay_out(rng, width, height)
    truths = _Etcher(rng, canvas).draw(defects) if defects else []
    return _roughen(rng, canvas.image), truths


TRIES = 80  # places looked at for one defect before it is left out
DARTS = 12_000  # random pixels among which the places for one kind are looked for
RAY_PX = 72  # how far a ray looks for the next edge
BORDER_PX = 24  # no defect is centred closer to the image's border
BOX_MARGIN_PX = (7, 11)  # the labels of the real data leave so much around what was changed


class _Etcher:
    """Puts defects on a layout; places are found on the layout as it was before the first."""

    def __init__(self, rng: Rng, canvas: Canvas) -> None:
        self.rng = rng
        self.image = canvas.image
        self.height, self.width = canvas.image.shape
        self.holes = canvas.holes
        self.copper = canvas.image == COPPER  # (H, W)
        self.inside: Floats = _distance(canvas.image == COPPER)  # to the next bare pixel, 0 on bare ones
        self.outside: Floats = _distance(canvas.image != COPPER)  # to the next copper, 0 on copper
        self.boxes: list[tuple[float, float, float, float]] = []

    def draw(self, kinds: Sequence[str]) -> list[Truth]:
        truths = []
        place: dict[str, Callable[[int, int], bool]] = {
            "open": self._open,
            "short": self._short,
            "mousebite": self._mousebite,
            "spur": self._spur,
            "copper": self._copper,
            "pin-hole": self._pin_hole,
        }
        edge = self._spots(np.abs(self.inside - 1) < 0.3)
        bare, deep = self._spots(self.outside > 9), self._spots(self.inside > 5)
        where = {"copper": bare, "pin-hole": deep}
        for kind in kinds:
            box = self._try(where.get(kind, edge), place[kind])
            if box is not None:
                truths.append(Truth(box, kind))
        return truths

    def _spots(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Random pixels (y, x) of the mask that lie far enough from the border, (N, 2)."""
        # Thrown darts instead of np.argwhere over every pixel: a twentieth of its time.
        ys = self.rng.integers(BORDER_PX, self.height - BORDER_PX, DARTS)
        xs = self.rng.integers(BORDER_PX, self.width - BORDER_PX, DARTS)
        hit = mask[ys, xs]
        return np.stack([ys[hit], xs[hit]], axis=1)

    def _try(
        self, spots: NDArray[np.int64], place: Callable[[int, int], bool]
    ) -> tuple[float, float, float, float] | None:
        """Draw at the first spot that suits and does not touch an earlier defect; its box, or None."""
        for _ in range(TRIES if len(spots) else 0):
            y, x = (int(v) for v in spots[self.rng.integers(len(spots))])
            reach = RAY_PX + 20
            x1, y1 = max(0, x - reach), max(0, y - reach)
            window = self.image[y1 : y + reach, x1 : x + reach]
            before = window.copy()
            if not place(x, y):
                continue
            box = self._box(window != before, x1, y1)
            if box is not None and not any(_overlap(box, other) for other in self.boxes):
                self.boxes.append(box)
                return box
            window[:] = before
        return None

    def _box(self, changed: NDArray[np.bool_], x1: int, y1: int) -> tuple[float, float, float, float] | None:
        """What changed, with the margin the labels have; None when too little did to be a defect."""
        ys, xs = np.nonzero(changed)
        if len(xs) < 8:
            return None
        margin = self.rng.integers(*BOX_MARGIN_PX, size=4, endpoint=True)
        return (
            float(max(0, x1 + xs.min() - margin[0])),
            float(max(0, y1 + ys.min() - margin[1])),
            float(min(self.width, x1 + xs.max() + 1 + margin[2])),
            float(min(self.height, y1 + ys.max() + 1 + margin[3])),
        )

    def _outward(self, x: int, y: int) -> Point:
        """The unit normal of the copper's edge at x, y, pointing away from the copper."""
        dx = self._signed(x + 4, y) - self._signed(x - 4, y)
        dy = self._signed(x, y + 4) - self._signed(x, y - 4)
        norm = math.hypot(dx, dy)
        return (dx / norm, dy / norm) if norm > 1e-6 else (0.0, 0.0)

    def _signed(self, x: int, y: int) -> float:
        return float(self.outside[y, x] - self.inside[y, x])

    def _run(self, x: float, y: float, direction: Point, copper: bool) -> int:
        """How many pixels from x, y that way are copper (or bare), at most `RAY_PX`."""
        steps = np.arange(1, RAY_PX + 1)
        xs = np.rint(x + steps * direction[0]).astype(int)
        ys = np.rint(y + steps * direction[1]).astype(int)
        inside = (xs >= 0) & (ys >= 0) & (xs < self.width) & (ys < self.height)
        same = np.full(RAY_PX, copper)
        same[inside] = self.copper[ys[inside], xs[inside]]
        return int(RAY_PX if (same == copper).all() else np.argmin(same == copper))

    def _stroke(self, start: Point, end: Point, thickness: int, value: int, wobble_px: float = 1.5) -> None:
        """A hand-drawn line: straight, but for a little wobble."""
        t = np.linspace(0, 1, 5)[:, None]
        points = np.array(start) * (1 - t) + np.array(end) * t
        points[1:-1] += self.rng.uniform(-wobble_px, wobble_px, (3, 2))
        cv2.polylines(self.image, [np.rint(points).astype(np.int32)], False, (value,), thickness)

    def _open(self, x: int, y: int) -> bool:
        """Cut a track right through."""
        nx, ny = self._outward(x, y)
        width = 1 + self._run(x, y, (-nx, -ny), copper=True)
        if not 5 <= width <= 46 or (nx, ny) == (0.0, 0.0):
            return False
        if self._in_hole(x + 4 * nx, y + 4 * ny) or self._in_hole(x - (width + 4) * nx, y - (width + 4) * ny):
            return False
        cx, cy = x - nx * width / 2, y - ny * width / 2
        for side in (-1, 1):  # a track goes on to both sides, as wide as here
            away = side * (10 + width / 2)
            px, py = round(cx - ny * away), round(cy + nx * away)
            if not (0 <= px < self.width and 0 <= py < self.height):
                return False
            if not 0.35 * width <= self.inside[py, px] <= 0.75 * width + 2:
                return False
        self._cut((x, y), (nx, ny), width)
        return True

    def _cut(self, edge: Point, outward: Point, width: int) -> None:
        """One broad stroke across, or two or three scratches."""
        (x, y), (nx, ny) = edge, outward
        scratches = int(self.rng.choice((1, 2, 3), p=(0.65, 0.2, 0.15)))
        thickness = int(self.rng.integers(4, 9)) if scratches == 1 else 2
        for k in range(scratches):
            along, slant = 5.0 * k, self.rng.uniform(-0.35, 0.35) * min(width, 24)
            start = (x + 3 * nx - ny * along, y + 3 * ny + nx * along)
            depth = width + 3
            end = (x - depth * nx - ny * (along + slant), y - depth * ny + nx * (along + slant))
            self._stroke(start, end, thickness, BARE)

    def _short(self, x: int, y: int) -> bool:
        """Bridge the gap to the next copper."""
        nx, ny = self._outward(x, y)
        gap = self._run(x, y, (nx, ny), copper=False)
        if not 6 <= gap < RAY_PX - 10 or self._in_hole(x + 3 * nx, y + 3 * ny):
            return False
        slant = self.rng.uniform(-0.25, 0.25) * gap
        end = (x + (gap + 3) * nx - ny * slant, y + (gap + 3) * ny + nx * slant)
        if not self._is_copper(*end):
            return False
        thickness = int(self.rng.integers(3, 9 if gap < 30 else 6))
        self._stroke((x - 2 * nx, y - 2 * ny), end, thickness, COPPER, wobble_px=1.5 + gap / 25)
        return True

    def _mousebite(self, x: int, y: int) -> bool:
        """Nibble at an edge, but leave the track connected."""
        nx, ny = self._outward(x, y)
        width = 1 + self._run(x, y, (-nx, -ny), copper=True)
        thickness = int(self.rng.integers(3, 7))
        deepest = min(0.65 * width, width - 2.5) - thickness / 2
        if deepest < 1 or self._in_hole(x + 3 * nx, y + 3 * ny):
            return False
        depth = min(deepest, self.rng.uniform(4, 15))
        lean = self.rng.uniform(-9, 9)
        self._stroke((x + 2 * nx, y + 2 * ny), self._at(x, y, (nx, ny), -depth, lean), thickness, BARE, 1.0)
        if depth < 6 or self.rng.random() < 0.4:  # a second nibble beside the first
            along = self.rng.uniform(4, 9) * (1 if lean > 0 else -1)
            start = self._at(x, y, (nx, ny), 2, along)
            self._stroke(start, self._at(x, y, (nx, ny), -0.6 * depth, along), thickness, BARE, 1.0)
        return True

    def _spur(self, x: int, y: int) -> bool:
        """Let copper stick out of an edge, without reaching the next copper."""
        nx, ny = self._outward(x, y)
        length = self.rng.uniform(7, 17)
        for turn in (-0.6, 0.0, 0.6):
            direction = (nx * math.cos(turn) - ny * math.sin(turn), nx * math.sin(turn) + ny * math.cos(turn))
            if self._run(x, y, direction, copper=False) < length + 9:
                return False
        if self._in_hole(x + 3 * nx, y + 3 * ny):
            return False
        thickness = int(self.rng.integers(4, 9))
        tip = self._at(x, y, (nx, ny), length, self.rng.uniform(-7, 7))
        self._stroke((x - 2 * nx, y - 2 * ny), tip, thickness, COPPER, 1.0)
        if self.rng.random() < 0.3:
            base = self._at(x, y, (nx, ny), 0, self.rng.uniform(-6, 6))
            self._stroke(base, self._at(x, y, (nx, ny), 0.5 * length, 0), thickness, COPPER, 1.0)
        return True

    def _copper(self, x: int, y: int) -> bool:
        """Leave a speck of copper where there should be none."""
        return not self._in_hole(x, y) and self._speck(x, y, float(self.outside[y, x]) - 7, COPPER)

    def _pin_hole(self, x: int, y: int) -> bool:
        """Leave a hole in the copper."""
        return self._speck(x, y, float(self.inside[y, x]) - 3, BARE)

    def _speck(self, x: int, y: int, room_px: float, value: int) -> bool:
        """A blob, a short stroke or a scribble that stays within `room_px` of x, y."""
        thickness = int(self.rng.integers(3, 10))
        reach = min(room_px - thickness / 2, self.rng.uniform(2, 10))
        if reach < 1.5:
            return False
        angle = self.rng.uniform(0, 2 * math.pi)
        dx, dy = reach * math.cos(angle), reach * math.sin(angle)
        if reach > 6 and self.rng.random() < 0.4:  # a scribble
            points = np.array((x, y)) + self.rng.uniform(-reach, reach, (int(self.rng.integers(5, 9)), 2))
            cv2.polylines(self.image, [np.rint(points).astype(np.int32)], False, (value,), 2)
        else:
            self._stroke((x - dx, y - dy), (x + dx, y + dy), thickness, value, 2.0)
        return True

    def _at(self, x: float, y: float, outward: Point, out: float, along: float) -> Point:
        """The point so far out of an edge and so far along it."""
        return (x + out * outward[0] - along * outward[1], y + out * outward[1] + along * outward[0])

    def _is_copper(self, x: float, y: float) -> bool:
        px, py = round(x), round(y)
        return 0 <= px < self.width and 0 <= py < self.height and bool(self.copper[py, px])

    def _in_hole(self, x: float, y: float) -> bool:
        px, py = min(max(round(x), 0), self.width - 1), min(max(round(y), 0), self.height - 1)
        return bool(self.holes[py, px])


def _distance(mask: NDArray[np.bool_]) -> Floats:
    """Pixels to the next False, 0 there; a mask without any False gets a large number everywhere."""
    return np.asarray(cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3), np.float32)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _roughen(rng: Rng, image: Image) -> Image:
    """Etched and thresholded: edges that waver and fray by about a pixel."""
    height, width = image.shape
    soft = cv2.GaussianBlur(image, (5, 5), 0.9)
    waver = rng.integers(36, 100, (height // 16 + 1, width // 16 + 1), dtype=np.uint8)
    fray = rng.integers(0, 120, (height // 2 + 1, width // 2 + 1), dtype=np.uint8)
    limit = cv2.add(
        cv2.resize(waver, (width, height), interpolation=cv2.INTER_LINEAR),
        cv2.resize(fray, (width, height), interpolation=cv2.INTER_NEAREST),
    )
    return np.asarray(cv2.compare(soft, limit, cv2.CMP_GT), np.uint8)
