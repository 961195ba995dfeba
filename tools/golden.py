"""Golden samples: images that this project draws itself, and what the FP32 reference finds on them.

A device compares its own answers with these before it serves a bundle, so they must not depend on luck. Many
candidates are drawn, and only clear cases are taken: those whose verdict stays when confidences move a little.
Circuit boards come from the simulated line, with known defects; for any other product there is a turned metal surface
with pits, which no real part looks exactly like, but whose answers are just as repeatable. Nothing of a data set
is in them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import msgspec
import numpy as np
from tqdm import tqdm

from edge import gate
from edge.boxes import Float
from edge.bundle.manifest import Golden, GoldenBox, GoldenSample
from edge.capture.board import DEFECTS, draw_board
from edge.capture.optics import expose
from edge.decide import counting, decide, refuse
from edge.detect import Detector, DetectSettings, Predictor
from edge.parity import least_confidence
from edge.preprocess import Image, InputSpec, preprocess
from edge.recipe import DetectRecipe, Recipe
from edge.records import Detections, VerdictKind
from tools.errors import ToolError
from tools.network import STRIDE

FOLDER, EXPECTED = "golden", "expected.json"
SAMPLES = 8
CANDIDATES = 48
MARGIN = 0.08  # of confidence: INT8 moves a box by less than this
MOST_BYTES = 400_000  # of all images of a set; those that go over it are left out
SEED = 20_240_917
MOST_DEFECTS = 4
LEVEL = 8  # grey levels of the metal surface are multiples of it


@dataclass(frozen=True)
class Candidate:
    """An image that might become a golden sample, with what was drawn on it."""

    image: Image
    truths: list[GoldenBox]


@dataclass(frozen=True)
class Answer:
    """What the reference makes of a candidate.

    Attributes:
        found: boxes that matter to a verdict. margin: by how much confidences may move without another verdict.
    """

    candidate: Candidate
    found: Detections
    verdict: VerdictKind
    margin: float


def draw_candidates(classes: Sequence[str], spec: InputSpec, count: int = CANDIDATES) -> Iterator[Candidate]:
    """Candidates for a product, the same ones for the same arguments; every third has no defect."""
    boards = set(classes) <= set(DEFECTS) and spec.channels == 1
    for number in range(count):
        rng = np.random.default_rng([SEED, number])
        defects = int(rng.integers(1, MOST_DEFECTS, endpoint=True)) if number % 3 else 0
        kinds = [classes[(number + k) % len(classes)] for k in range(defects)]
        if boards:
            board, truths = draw_board(rng, spec.width, spec.height, kinds)
            boxes = [GoldenBox(xyxy=truth.xyxy, class_name=truth.class_name) for truth in truths]
            # Without the sensor's noise: it would change no answer and quadruple the file.
            yield Candidate(expose(board, rng, noise=0.0), boxes)
        else:
            yield draw_surface(rng, spec, kinds)


def draw_surface(rng: np.random.Generator, spec: InputSpec, kinds: Sequence[str]) -> Candidate:
    """A turned metal surface, as wide and high as the input, with a pit for each of `kinds`.

    Grooves and tool marks run along the turning direction, as on a screw; a pit is a cluster of cracks in a groove.
    There are few grey levels and no noise, so that the file stays small.
    """
    height, width = spec.height, spec.width
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    along = y + rng.uniform(0.1, 0.3) * x  # constant along a tool mark
    pitch = rng.uniform(0.3, 0.5) * height
    groove = np.cos(2 * np.pi * along / pitch + rng.uniform(0, 6))  # -1 at the bottom
    lines = cv2.GaussianBlur(rng.normal(0, 16, (1, 2 * (height + width))).astype(np.float32), (5, 1), 0)[0]
    lamp = np.sin(x / width * np.pi + rng.uniform(-0.5, 0.5))
    grey = rng.uniform(95, 120) + 38 * np.tanh(2 * groove) + 22 * lamp + lines[np.rint(along).astype(int)]  # (H, W)
    grey = np.rint(grey / LEVEL) * LEVEL
    boxes: list[GoldenBox] = []
    for kind in kinds:
        box = _pit(rng, grey, groove, [other.xyxy for other in boxes])
        if box is not None:
            boxes.append(GoldenBox(xyxy=box, class_name=kind))
    steel = np.array([0.74, 0.93, 1.0], np.float32)  # BGR
    image = np.clip(np.rint(grey[..., None] * steel), 0, 255).astype(np.uint8)  # (H, W, 3)
    return Candidate(np.ascontiguousarray(image[..., 1]) if spec.channels == 1 else image, boxes)


def _pit(
    rng: np.random.Generator, grey: Float, groove: Float, taken: Sequence[tuple[float, float, float, float]]
) -> tuple[float, float, float, float] | None:
    """Draw a pit into `grey` where the groove is deep; its box, or None when no free place was found."""
    height, width = grey.shape
    reach_x, reach_y = rng.uniform(0.06, 0.13) * height, rng.uniform(0.06, 0.11) * height
    for _ in range(200):
        x, y = rng.uniform(reach_x, width - reach_x), rng.uniform(reach_y, height - reach_y)
        box = (x - reach_x, y - reach_y, x + reach_x, y + reach_y)
        if groove[int(y), int(x)] > -0.3 or any(_near(box, other) for other in taken):
            continue
        shade = np.zeros((height, width), np.uint8)
        cv2.ellipse(shade, ((x, y), (1.5 * reach_x, 1.5 * reach_y), 0), (120,), cv2.FILLED)
        shade = cv2.GaussianBlur(shade, (0, 0), 0.2 * reach_y)
        for _ in range(int(rng.integers(16, 26))):
            start = (x + rng.uniform(-0.6, 0.6) * reach_x, y + rng.uniform(-0.6, 0.6) * reach_y)
            path = np.cumsum([start, *rng.uniform(-0.35, 0.35, (4, 2)) * (reach_x, reach_y)], axis=0)
            path = np.clip(path, (box[0] + 2, box[1] + 2), (box[2] - 2, box[3] - 2))
            cv2.polylines(shade, [np.rint(path).astype(np.int32)], False, (235,), int(rng.integers(1, 4)), cv2.LINE_AA)
        grey[:] = np.rint(grey * (1 - shade / 255.0) + 14 * (shade / 255.0))
        return tuple(round(float(v), 1) for v in box)  # type: ignore[return-value]
    return None


def _near(a: tuple[float, float, float, float], b: tuple[float, float, float, float], gap: float = 8) -> bool:
    return a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap


def answer(candidate: Candidate, detector: Detector, recipe: Recipe, classes: Sequence[str]) -> Answer:
    """What the reference, through the device's own gate, detector and decision, makes of a candidate.

    `detector` must give boxes down to `MARGIN` under the least confidence that matters.
    """
    every = detector.detect(candidate.image)
    gated = gate.check(candidate.image, recipe.gate)
    found = every.above(least_confidence(recipe.detect))
    height, width = candidate.image.shape[:2]
    counted = counting(every, recipe.detect, classes, (width, height))
    verdict = decide(counted, recipe.detect, classes, size=(width, height)) if gated.passed else refuse(gated)
    return Answer(candidate, found, verdict.kind, verdict_margin(counted, recipe.detect, classes))


def verdict_margin(found: Detections, recipe: DetectRecipe, classes: Sequence[str]) -> float:
    """By how much all confidences may move, at least, until the verdict on the boxes is another one.

    >>> found = Detections(np.zeros((2, 4), np.float32), np.array([0.75, 0.31], np.float32), np.array([0, 0]))
    >>> verdict_margin(found, DetectRecipe(threshold=0.5, review=0.3), ["hole"])
    0.25
    """
    threshold = np.array([recipe.class_threshold.get(classes[k], recipe.threshold) for k in found.class_id])
    review = np.minimum(threshold, recipe.review)
    bad = float((found.confidence - threshold).max(initial=-1.0))  # of the box that is most clearly a defect
    doubtful = float((found.confidence - review).max(initial=-1.0))
    if bad >= 0:  # NG
        return bad
    return min(-bad, doubtful) if doubtful >= 0 else -doubtful  # REVIEW, or OK


def choose(answers: Sequence[Answer], count: int = SAMPLES) -> list[Answer]:
    """The clearest and most different answers: about a third without boxes, then what adds most classes and verdicts.

    Raises:
        ToolError: there is no clear case at all.
    """
    clear = [a for a in answers if a.margin >= MARGIN and a.verdict is not VerdictKind.RETAKE]
    # A gate that refuses drawn surfaces, or a model in doubt everywhere, still gives answers that can be compared.
    pool = clear if len(clear) >= 2 else sorted(answers, key=lambda a: -a.margin)[:count]
    if not pool:
        raise ToolError("there is no candidate to take golden samples from")
    empty = [a for a in pool if not len(a.found)]
    marked = [a for a in pool if len(a.found)]
    chosen = empty[: max(count // 3, count - len(marked))]
    seen: set[object] = set()
    while marked and len(chosen) < count:
        best = max(marked, key=lambda a: (len(_traits(a) - seen), a.margin))
        marked = [a for a in marked if a is not best]
        seen |= _traits(best)
        chosen.append(best)
    return chosen


def _traits(answer: Answer) -> set[object]:
    """What a sample shows: its classes and its verdict."""
    return {answer.verdict, *answer.found.class_id.tolist()}


def make_golden(
    folder: Path, classes: Sequence[str], spec: InputSpec, recipe: Recipe, predictor: Predictor, reference: str
) -> Golden:
    """Draw, choose and write a golden set: `folder`/golden with PNG files and `expected.json`.

    Args:
        folder: of the bundle; samples are named relative to it.
        recipe: gate and thresholds of the bundle. predictor, reference: the FP32 model, and what to call it.

    Raises:
        ToolError: an image cannot be written.
    """
    least = least_confidence(recipe.detect)
    floor = max(0.01, least - MARGIN)
    detector = Detector(
        predictor, spec, DetectSettings((STRIDE,), floor, recipe.detect.nms_iou, recipe.detect.max_detections)
    )
    candidates = tqdm(draw_candidates(classes, spec), "golden", total=CANDIDATES, mininterval=5)
    chosen = choose([answer(candidate, detector, recipe, classes) for candidate in candidates])
    target = folder / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    for old in (*target.glob("*.png"), target / EXPECTED):
        old.unlink(missing_ok=True)
    samples, size = [], 0
    for number, a in enumerate(chosen):
        sample = _write(target / f"{number}.png", a, spec, classes)
        size += (folder / sample.file).stat().st_size
        if samples and size > MOST_BYTES:
            (folder / sample.file).unlink()
            break
        samples.append(sample)
    golden = Golden(reference=reference, least_confidence=round(least, 6), samples=samples)
    (target / EXPECTED).write_text(json.dumps(msgspec.to_builtins(golden), indent=1) + "\n", encoding="utf-8")
    return golden


def _write(path: Path, chosen: Answer, spec: InputSpec, classes: Sequence[str]) -> GoldenSample:
    if not cv2.imwrite(str(path), chosen.candidate.image, [cv2.IMWRITE_PNG_COMPRESSION, 9]):
        raise ToolError(f"{path}: the golden image cannot be written")
    found = chosen.found
    boxes = [
        GoldenBox(xyxy=tuple(round(float(v), 2) for v in xyxy), class_name=classes[k], confidence=round(float(c), 5))
        for xyxy, k, c in zip(found.xyxy, found.class_id, found.confidence, strict=True)
    ]
    return GoldenSample(
        file=f"{FOLDER}/{path.name}",
        tensor_sha256=tensor_hash(chosen.candidate.image, spec),
        verdict=chosen.verdict.value,
        detections=boxes,
        truths=chosen.candidate.truths,
    )


def tensor_hash(image: Image, spec: InputSpec) -> str:
    """SHA-256 of the tensor that the device makes of the image."""
    return hashlib.sha256(preprocess(image, spec)[0].tobytes()).hexdigest()


def read_images(folder: Path, golden: Golden, spec: InputSpec) -> list[Image]:
    """The images of a golden set, as the device decodes them.

    Raises:
        ToolError: one is missing or no longer what it was when its tensor was hashed.
    """
    flag = cv2.IMREAD_GRAYSCALE if spec.channels == 1 else cv2.IMREAD_COLOR
    images = []
    for sample in golden.samples:
        image = cv2.imread(str(folder / sample.file), flag)
        if image is None:
            raise ToolError(f"{folder / sample.file}: missing or not an image; make the golden set again")
        if tensor_hash(np.asarray(image, np.uint8), spec) != sample.tensor_sha256:
            raise ToolError(f"{folder / sample.file}: gives another tensor than when it was made; make the set again")
        images.append(np.asarray(image, np.uint8))
    return images
