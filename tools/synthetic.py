"""Synthetic defects: shapes of real defects put elsewhere, labelled by what they do to the copper around them.

A shape removes copper or adds it. Which of the six classes that makes follows from connectivity, as an inspector
reads it: a hole inside copper is a pin-hole, a bite at its edge a mousebite, a cut through it an open; copper on
its own is spurious copper, on an edge a spur, and between two conductors a short. What a designer draws is
drawn too, without a label: round drills and pads, straight slots and tracks. Defects are ragged.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from edge.boxes import Float
from edge.preprocess import Image
from tools.augment import Board, touches

OPEN, SHORT, MOUSEBITE, SPUR, COPPER, PIN_HOLE = range(6)

MARGIN_PX = 9  # between a defect and its label's sides: the median in the data, for every class
ROUND = 0.82  # share of its circumscribed circle that a shape fills from which it might be a drill or a pad
SIDE_MIN_PX = 25  # smaller labels do not occur
AREA_MIN_PX = 30  # of the changed copper; 5th percentile of real defects
GREY = 127  # darker is copper
CONTEXT_PX = 14  # how far around a shape connectivity is looked at


@dataclass(frozen=True)
class SyntheticConfig:
    """How many synthetic marks a crop gets and how they vary."""

    share: float = 0.7  # crops that get defects
    most: int = 8  # defects a crop, at most
    tries: int = 8  # places tried for each
    accept: tuple[float, ...] = (1.0, 1.0, 0.5, 0.35, 0.6, 1.0)  # by class: evens out how often chance makes each
    cracks: float = 0.35  # of the defects: long ragged lines across a conductor or a gap, drawn to fit its width
    smooth: float = 0.3  # of the other defects: ellipses, blocks and wedges on conductors, instead of real shapes
    scale_low: float = 0.6
    scale_high: float = 2.4
    stretch: float = 2.2  # anisotropy, at most
    drills: float = 0.45  # crops that get round holes
    pads: float = 0.2  # crops that get round pads
    slots: float = 0.45  # crops that get clean slots in copper
    tracks: float = 0.1  # crops that get clean tracks beside it
    mended: float = 0.5  # of those slots and tracks: bridged or cut by a defect


def defect_shapes(boards: Sequence[Board]) -> list[np.ndarray]:
    """Masks (h, w) uint8 0/255 of where inspected images differ from their templates: a shape a label at most."""
    shapes = []
    for board in boards:
        if board.template is None:
            continue
        differs = (board.test > GREY) != (board.template > GREY)
        for x1, y1, x2, y2 in board.xyxy.astype(int):
            count, labels, stats, _ = cv2.connectedComponentsWithStats(differs[y1:y2, x1:x2].astype(np.uint8))
            if count < 2:
                continue
            largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
            x, y, w, h, area = stats[largest]
            if area >= AREA_MIN_PX:
                shapes.append((labels[y : y + h, x : x + w] == largest).astype(np.uint8) * 255)
    return shapes


def vary(shape: np.ndarray, rng: np.random.Generator, config: SyntheticConfig) -> np.ndarray:
    """The shape turned, scaled and stretched: soft mask (h, w) uint8, 255 inside."""
    scale = float(np.exp(rng.uniform(np.log(config.scale_low), np.log(config.scale_high))))
    stretch = float(rng.uniform(1, config.stretch)) ** (0.5 if rng.random() < 0.5 else -0.5)
    turn = float(rng.uniform(0, 2 * np.pi))
    c, s = np.cos(turn), np.sin(turn)
    matrix = np.array([[c, -s], [s, c]]) @ np.diag([scale * stretch, scale / stretch])  # (2, 2)
    height, width = shape.shape
    corners = matrix @ np.array([[0, width, 0, width], [0, 0, height, height]])  # (2, 4)
    low, high = corners.min(axis=1), corners.max(axis=1)
    size = np.ceil(high - low).astype(int) + 2
    affine = np.concatenate([matrix, (1 - low)[:, None]], axis=1)
    return _trimmed(cv2.warpAffine(shape, affine, (int(size[0]), int(size[1])), flags=cv2.INTER_LINEAR))


def smooth_shape(rng: np.random.Generator) -> np.ndarray:
    """An ellipse, a block or a wedge of random size and direction: soft mask (h, w) uint8, 255 inside."""
    width, height = np.exp(rng.uniform(np.log(8), np.log(44), 2))
    reach = int(np.hypot(width, height)) + 2
    soft = np.zeros((2 * reach, 2 * reach), np.uint8)
    turn = float(rng.uniform(0, 360)) if rng.random() < 0.5 else float(rng.integers(4) * 90)
    kind = int(rng.integers(3))
    if kind == 0:
        cv2.ellipse(soft, ((reach, reach), (float(width), float(height)), turn), 255, -1, cv2.LINE_AA)
    else:
        corners = cv2.boxPoints(((reach, reach), (float(width), float(height)), turn))
        cv2.fillPoly(soft, [corners[: 5 - kind].round().astype(np.int32)], 255, cv2.LINE_AA)
    return _trimmed(soft)


def _trimmed(soft: np.ndarray) -> np.ndarray:
    x, y, w, h = cv2.boundingRect(cv2.findNonZero(soft) if soft.any() else np.zeros((1, 1, 2), np.int32))
    return np.asarray(soft[y : y + h, x : x + w])


def crack(length: float, rng: np.random.Generator) -> np.ndarray:
    """A ragged line of about this length in a random direction: soft mask (h, w) uint8, 255 inside."""
    steps = max(3, round(length / rng.uniform(5, 14)))
    angle = rng.uniform(0, 2 * np.pi)
    bend = rng.normal(0, 0.12) + rng.normal(0, 0.35, steps)
    heading = angle + np.cumsum(bend) * 0.6
    walk = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1) * length / steps, axis=0)  # (steps, 2)
    points = np.concatenate([np.zeros((1, 2)), walk])
    thick = rng.uniform(2, 6) * (1 + 0.5 * rng.random(steps)) * (1.6 if length > 50 else 1.0)
    pad = 10
    points += pad - points.min(axis=0)
    size = np.ceil(points.max(axis=0)).astype(int) + pad
    soft = np.zeros((int(size[1]), int(size[0])), np.uint8)
    whole = points.round().astype(int)
    for k in range(steps):
        start, end = (int(v) for v in whole[k]), (int(v) for v in whole[k + 1])
        cv2.line(soft, tuple(start), tuple(end), 255, max(2, round(float(thick[k]))), cv2.LINE_AA)
    return _trimmed(soft)


def roundness(mark: np.ndarray) -> float:
    """Share of the circle around its longer side that a mark (h, w) bool fills: 1 for a disc.

    >>> round(roundness(np.ones((10, 10), bool)), 2), round(roundness(np.ones((10, 40), bool)), 2)
    (1.27, 0.32)
    """
    y, x = np.nonzero(mark)
    longer = max(np.ptp(x), np.ptp(y)) + 1
    return float(len(x) / (np.pi / 4 * longer**2))


def classify(copper: np.ndarray, mark: np.ndarray, removes: bool) -> int | None:
    """The class that a mark makes of the copper around it, or None if it makes none clearly.

    Args:
        copper: (h, w) bool before the mark. mark: (h, w) bool where it lies; both with context around.
        removes: the mark takes copper away, else it adds some.
    """
    material = copper if removes else ~copper
    changed = mark & material
    if changed.sum() < AREA_MIN_PX or changed.sum() < 0.2 * mark.sum():
        return None
    near = cv2.dilate(changed.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    far = cv2.dilate(changed.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    contact = int((near & ~material).sum())
    if contact == 0:
        if (far & ~material).any() or roundness(changed) > ROUND:
            return None
        return PIN_HOLE if removes else COPPER
    if contact < 4:
        return None
    return _cut(copper, changed) if removes else _joined(copper, near)


def _cut(copper: np.ndarray, changed: np.ndarray) -> int | None:
    """Open if removing `changed` leaves more than one sizeable part of the one conductor it was on."""
    _, before = cv2.connectedComponents(copper.astype(np.uint8), connectivity=8)
    owners = np.unique(before[changed])
    if len(owners) != 1:
        return None
    rest = (before == owners[0]) & ~changed
    count, _, stats, _ = cv2.connectedComponentsWithStats(rest.astype(np.uint8), connectivity=8)
    areas = np.sort(stats[1:count, cv2.CC_STAT_AREA])[::-1]
    if len(areas) == 0 or (len(areas) > 1 and 4 < areas[1] < 60):
        return None
    return OPEN if len(areas) > 1 and areas[1] >= 60 else MOUSEBITE


def _joined(copper: np.ndarray, near: np.ndarray) -> int | None:
    """Short if the added copper touches two conductors or more, spur if one."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(copper.astype(np.uint8), connectivity=8)
    _, labels = cv2.connectedComponents(copper.astype(np.uint8), connectivity=8)
    touched = [k for k in np.unique(labels[near & copper]) if k]
    areas = [int(stats[k, cv2.CC_STAT_AREA]) for k in touched]
    if not areas or min(areas) < 40:
        return None
    return SHORT if len(areas) > 1 else SPUR


def _place(
    image: Image,
    soft: np.ndarray,
    rng: np.random.Generator,
    spots: np.ndarray,
    boxes: Float,
    accept: Sequence[float],
    removes: bool,
) -> tuple[Float, int] | None:
    """Put the shape on a random spot of `spots` (N, 2) if it makes a class there; draws into `image`."""
    height, width = soft.shape
    x, y = (spots[rng.integers(len(spots))] - np.array([width, height]) // 2).astype(int)
    side = image.shape[0]
    if x < MARGIN_PX or y < MARGIN_PX or x + width > side - MARGIN_PX or y + height > side - MARGIN_PX:
        return None
    x1, y1 = max(0, x - CONTEXT_PX), max(0, y - CONTEXT_PX)
    x2, y2 = min(side, x + width + CONTEXT_PX), min(side, y + height + CONTEXT_PX)
    if len(boxes) and touches(np.array([x1, y1, x2, y2], np.float32), boxes):
        return None
    patch = image[y1:y2, x1:x2]
    alpha = np.zeros(patch.shape, np.uint8)
    alpha[y - y1 : y - y1 + height, x - x1 : x - x1 + width] = soft
    copper = patch <= GREY
    kind = classify(copper, alpha > GREY, removes)
    if kind is None or rng.random() >= accept[kind]:
        return None
    paint(patch, alpha, 255 if removes else 0)
    ys, xs = np.nonzero((alpha > GREY) & (copper == removes))
    return _label(xs.min() + x1, ys.min() + y1, xs.max() + x1 + 1, ys.max() + y1 + 1, side), kind


def _label(x1: int, y1: int, x2: int, y2: int, side: int) -> Float:
    """The label that the data would give a defect of these bounds."""
    grow_x = max(MARGIN_PX, (SIDE_MIN_PX - (x2 - x1)) / 2)
    grow_y = max(MARGIN_PX, (SIDE_MIN_PX - (y2 - y1)) / 2)
    return np.clip(np.array([x1 - grow_x, y1 - grow_y, x2 + grow_x, y2 + grow_y], np.float32), 0, side)


def paint(patch: Image, alpha: np.ndarray, value: int) -> None:
    """Blend `value` into the patch in place, as far as alpha (0 to 255) says."""
    weight = alpha.astype(np.float32) / 255
    patch[:] = (patch * (1 - weight) + value * weight + 0.5).astype(np.uint8)


def draw_rounds(image: Image, rng: np.random.Generator, boxes: Float, hole: bool) -> None:
    """One to four round drills in copper, or pads beside it, clear of everything else; no label."""
    material = (image <= GREY) if hole else (image > GREY)
    distance = cv2.distanceTransform(material.astype(np.uint8), cv2.DIST_L2, 3)
    radius = float(rng.uniform(4, 14) if hole else rng.uniform(5, 24))
    spots = np.argwhere(distance > radius + 4)[:, ::-1]
    for _ in range(int(rng.integers(1, 5)) if len(spots) else 0):
        x, y = (int(v) for v in spots[rng.integers(len(spots))])
        around = np.array([x, y, x, y], np.float32) + np.array([-1, -1, 1, 1], np.float32) * (radius + 4)
        if len(boxes) and touches(around, boxes):
            continue
        shift = 4
        centre = (x << shift, y << shift)
        cv2.circle(image, centre, round(radius * (1 << shift)), 255 if hole else 0, -1, cv2.LINE_AA, shift)


def _angular_path(start: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Corners (K, 2) of a line that goes straight, turns by a right angle, goes straight, up to four times."""
    quarter = int(rng.integers(4))
    tilt = np.pi / 4 if rng.random() < 0.15 else 0.0
    points = [start.astype(float)]
    for _ in range(int(rng.integers(1, 5))):
        angle = quarter * np.pi / 2 + tilt
        points.append(points[-1] + rng.uniform(15, 110) * np.array([np.cos(angle), np.sin(angle)]))
        quarter += 1 if rng.random() < 0.5 else 3
    return np.array(points)


def draw_line(image: Image, rng: np.random.Generator, boxes: Float, slot: bool) -> np.ndarray:
    """A clean slot in copper, or a track beside it, straight with right angles; no label.

    It may run out of its material at an end, as isolation slots do, or cross a wide conductor from edge to edge.

    Returns:
        Points (N, 2) on its middle line, none if it found no place.
    """
    material = (image <= GREY) if slot else (image > GREY)
    distance = cv2.distanceTransform(material.astype(np.uint8), cv2.DIST_L2, 3)
    width = int(rng.integers(4, 14))
    crosses = slot and rng.random() < 0.4
    spots = np.argwhere(distance > (18 if crosses else width / 2 + 4))[:, ::-1]
    for _ in range(6 if len(spots) else 0):
        spot = spots[rng.integers(len(spots))]
        path = _crossing(spot, material, rng) if crosses else _angular_path(spot, rng)
        path = path.round().astype(np.int32)
        centre, alpha = np.zeros_like(image), np.zeros_like(image)
        cv2.polylines(centre, [path], False, 255)
        clear = distance[centre > 0] > width / 2 + 3
        around = np.concatenate([path.min(axis=0) - width, path.max(axis=0) + width]).astype(np.float32)
        share = 0.5 if crosses else 0.85
        if len(clear) < 20 or clear.mean() < share or (len(boxes) and touches(around, boxes)):
            continue
        uneven = rng.random() < 0.5
        for start, end in itertools.pairwise(path):
            own = max(3, round(width * rng.uniform(0.5, 1.3))) if uneven else width
            cv2.line(alpha, tuple(map(int, start)), tuple(map(int, end)), 255, own, cv2.LINE_AA)
        paint(image, alpha, 255 if slot else 0)
        return np.argwhere((centre > 0) & (distance > width / 2))[:, ::-1]
    return np.empty((0, 2), np.int64)


def _crossing(spot: np.ndarray, material: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Corners (K, 2) of a line through the spot from edge to edge of its conductor, in two or three parts."""
    side = len(material)
    axis = int(rng.integers(2))
    ends = []
    for way in (-1, 1):
        point = spot.copy()
        while 0 <= point[0] < side and 0 <= point[1] < side and material[point[1], point[0]]:
            point[axis] += way
        point[axis] += 4 * way
        ends.append(point.astype(float))
    if rng.random() < 0.5:
        return np.stack([ends[0], spot.astype(float), ends[1]])
    shift = np.zeros(2)
    shift[1 - axis] = rng.uniform(-40, 40)
    return np.stack([ends[0], spot.astype(float), spot + shift, ends[1] + shift])


def _mend(
    image: Image,
    rng: np.random.Generator,
    middle: np.ndarray,
    boxes: list[Float],
    kinds: list[int],
    slot: bool,
    config: SyntheticConfig,
) -> None:
    """Bridge a drawn slot, or cut a drawn track, somewhere on its middle line; adds the label."""
    for _ in range(config.tries):
        taken = np.array(boxes, np.float32).reshape(-1, 4)
        placed = _place(image, smooth_shape(rng), rng, middle, taken, (1.0, 1.0, 0.2, 0.2, 0.0, 0.0), not slot)
        if placed is not None:
            boxes.append(placed[0])
            kinds.append(placed[1])
            return


class _Places:
    """Where marks can go on a crop.

    Attributes:
        middles: by whether copper is removed, points (N, 2) on the middle line of conductors or of the gaps between.
        reach: by the same, distance (S, S) from each pixel to the edge of its conductor or gap.
    """

    def __init__(self, image: Image, rng: np.random.Generator):
        ridge = cv2.morphologyEx(image, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
        self._edges = np.argwhere(ridge > GREY)[:, ::-1]
        self._anywhere = rng.integers(0, image.shape[0], (64, 2))
        self.middles, self.reach = {}, {}
        for removes, material in ((True, image <= GREY), (False, image > GREY)):
            reach = cv2.distanceTransform(material.astype(np.uint8), cv2.DIST_L2, 3)
            peak = (reach >= cv2.dilate(reach, np.ones((5, 5), np.uint8)) - 0.2) & (reach > 3) & (reach < 48)
            self.middles[removes] = np.argwhere(peak)[:, ::-1]
            self.reach[removes] = reach

    def choose(self, rng: np.random.Generator, style: str, removes: bool) -> np.ndarray:
        """Points (N, 2) to choose from: one on a middle line for cracks, there or on edges, else mostly edges."""
        middles = self.middles[removes]
        if style == "crack" or (style == "smooth" and rng.random() < 0.5):
            return middles[rng.integers(len(middles))][None] if len(middles) else middles
        return self._edges if len(self._edges) and rng.random() < 0.7 else self._anywhere


def add_marks(
    image: Image,
    xyxy: Float,
    class_id: np.ndarray,
    shapes: Sequence[np.ndarray],
    rng: np.random.Generator,
    config: SyntheticConfig,
) -> tuple[Image, Float, np.ndarray]:
    """A crop with more defects on it: image (S, S), boxes (N, 4), classes (N,), each longer by what was added."""
    image = image.copy()
    boxes, kinds = list(xyxy), list(class_id)
    for probability, slot in ((config.slots, True), (config.tracks, False)):
        middle = draw_line(image, rng, xyxy, slot) if rng.random() < probability else xyxy[:0]
        if len(middle) and rng.random() < config.mended:
            _mend(image, rng, middle, boxes, kinds, slot, config)
    taken = np.array(boxes, np.float32).reshape(-1, 4)
    for probability, hole in ((config.drills, True), (config.pads, False)):
        if rng.random() < probability:
            draw_rounds(image, rng, taken, hole)
    if not shapes or rng.random() >= config.share:
        return image, taken, np.array(kinds, np.int64)
    places = _Places(image, rng)
    for _ in range(int(rng.integers(1, config.most + 1))):
        removes = bool(rng.random() < 0.5)
        style = "crack" if rng.random() < config.cracks else "smooth" if rng.random() < config.smooth else "real"
        for _ in range(config.tries):
            spots = places.choose(rng, style, removes)
            if len(spots) == 0:
                break
            if style == "crack":
                soft = crack(2 * places.reach[removes][spots[0, 1], spots[0, 0]] * rng.uniform(1.05, 1.7), rng)
            elif style == "smooth":
                soft = smooth_shape(rng)
            else:
                soft = vary(shapes[rng.integers(len(shapes))], rng, config)
            taken = np.array(boxes, np.float32).reshape(-1, 4)
            accept = config.accept if style != "smooth" else (*config.accept[:4], 0.0, 0.0)
            placed = _place(image, soft, rng, spots, taken, accept, removes)
            if placed is not None:
                boxes.append(placed[0])
                kinds.append(placed[1])
                break
    return image, np.array(boxes, np.float32).reshape(-1, 4), np.array(kinds, np.int64)
