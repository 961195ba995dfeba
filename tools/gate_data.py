"""Examples for the gate's classifier: frames of several products, spoilt or not, as the mosaics that it reads.

A frame is good as captured, taken again by a good camera, or with a fault that costs the product nothing (see
`tools.gate_limits`); it is bad from the level on that costs a tenth of the recall. What lies between has no place in
training, and is counted apart in tests. Training frames are cut, made smaller and given other looks, so that a few
products become many; test frames are whole and as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from edge.gate import Measures, measure
from edge.gate_classifier import MAP, OUTPUTS, SIDE, mosaic
from edge.preprocess import Image
from edge.recipe import CLASSIFIED
from tools.gate_faults import MOST, conditions
from tools.gate_limits import Limits
from tools.gate_products import Product, another_look, another_size
from tools.physical import photograph

Rng = np.random.Generator
Mosaics = np.ndarray  # (N, 64, 64) float16, see `pack`

OK_SHARE = 0.42  # of training examples
OFTEN = {  # of the others
    "motion": 0.27,
    "defocus": 0.27,
    "overexposed": 0.11,
    "underexposed": 0.11,
    "occluded": 0.12,
    "dirty_lens": 0.12,
}
AS_CAPTURED, HARMLESS_SHARE = 0.2, 0.5  # of the good ones
LOOKS, SMALLER = 0.6, 0.4  # of training frames that get another look, another size
CAPTURED = 400  # frames tested as they are
LARGEST_CUT = 512  # pixels a side of a training frame
WORSE = 4.0  # times the harmful level, the worst of training
TESTED = (1.0, 1.5, 2.5)  # times the harmful level, in tests


@dataclass(frozen=True)
class Example:
    """One frame as the gate sees it, and the truth.

    Attributes:
        label: `ok`, a cause, or `between`. frame: number of the product's frame.
        cause, level: the fault that it has, "" and 0 for none; where the frame is ok the fault costs nothing.
        measures: what the cheap part says.
    """

    label: str
    cause: str
    level: float
    frame: int
    measures: Measures
    retaken: bool = False  # by the camera of `tools.physical`


def pack(tensor: np.ndarray) -> np.ndarray:
    """A mosaic (1, 1, 64, 64) as float16 (64, 64): far finer than the steps of an INT8 input."""
    return tensor[0, 0].astype(np.float16)


def unpack(packed: Mosaics) -> np.ndarray:
    """Packed mosaics (N, 64, 64) as float32 (N, 1, 64, 64)."""
    return packed[:, None].astype(np.float32)


def _camera(how_sharp: Mapping[str, float], rng: Rng) -> dict[str, float]:
    """Noise, codec and lamp of some camera: of good and bad frames alike, so that they tell nothing."""
    return {
        "full_well": float(400 * 50 ** rng.random()),
        "jpeg_quality": int(rng.integers(60, 99)),
        "stops": how_sharp.get("stops", 0.0) or float(rng.uniform(-0.2, 0.2)),
    }


def training_frame(image: Image, rng: Rng) -> tuple[Image, float]:
    """The frame cut, with another size and look by chance, and the size that it has now as a share."""
    share = float(rng.uniform(0.4, 1.0)) if rng.random() < SMALLER else 1.0
    image = another_size(image, share)
    height, width = image.shape[:2]
    h, w = (max(min(side, 96), min(LARGEST_CUT, int(side * rng.uniform(0.5, 1)))) for side in (height, width))
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    image = image[top : top + h, left : left + w]
    return (another_look(image, rng) if rng.random() < LOOKS else image), share


def training_example(image: Image, limits: Mapping[str, Limits], rng: Rng) -> tuple[np.ndarray, str]:
    """Packed mosaic and label of one training example."""
    image, share = training_frame(image, rng)
    cause = str(rng.choice(list(OFTEN), p=list(OFTEN.values())))
    of_size = share if cause in ("motion", "defocus") else 1.0
    label = cause
    if rng.random() < OK_SHARE:
        label, kind = "ok", rng.random()
        if kind < AS_CAPTURED:
            return pack(mosaic(image)), label
        level = limits[cause].harmless * of_size * rng.random() if kind < AS_CAPTURED + HARMLESS_SHARE else 0.0
    else:
        level = min(MOST[cause], limits[cause].harmful * of_size * math.exp(math.log(WORSE) * rng.random() ** 1.5))
    how = conditions(cause, level, rng)
    how = replace(how, **_camera({"stops": how.stops}, rng))
    return pack(mosaic(photograph(image, how, rng))), label


def training_set(product: Product, limits: Mapping[str, Limits], count: int, seed: int) -> tuple[Mosaics, np.ndarray]:
    """`count` training examples: packed mosaics (N, 64, 64) and labels (N,), places in `OUTPUTS`."""
    mosaics = np.empty((count, SIDE, SIDE), np.float16)
    labels = np.empty(count, np.int64)
    order = np.random.default_rng(seed).permutation(np.arange(count) % len(product))
    for n in tqdm(range(count), f"examples {product.name}", mininterval=5):
        mosaics[n], label = training_example(product.read(int(order[n])), limits, np.random.default_rng([seed, n]))
        labels[n] = OUTPUTS.index(label)
    return mosaics, labels


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly.

    >>> evenly(10, 3), evenly(2, 5)
    ([0, 4, 9], [0, 1])
    """
    return [int(v) for v in np.linspace(0, count - 1, min(most, count))]


def trial_plan(
    product: Product, limits: Mapping[str, Limits], frames: int, rng: Rng
) -> Iterator[tuple[int, str, str, float]]:
    """What is made of which frame: its number, label, cause and level.

    Up to `CAPTURED` frames once as captured; `frames` of them once harmless, once between and at each tested level,
    by cause.
    """
    for i in evenly(len(product), CAPTURED):
        yield i, "ok", "", 0.0
    for i in evenly(len(product), frames):
        yield i, "ok", "motion", 0.0
        for cause in CLASSIFIED:
            x = limits[cause]
            yield i, "ok", cause, x.harmless * rng.random()
            yield i, "between", cause, rng.uniform(x.harmless, x.harmful)
            for times in TESTED:
                if x.harmful * times <= MOST[cause] or times == 1:
                    yield i, cause, cause, x.harmful * times


def trial_set(product: Product, limits: Mapping[str, Limits], frames: int, seed: int) -> tuple[Mosaics, list[Example]]:
    """Test examples: packed mosaics (N, 64, 64) and what each is."""
    plan = list(trial_plan(product, limits, frames, np.random.default_rng(seed)))
    mosaics, examples = np.empty((len(plan), SIDE, SIDE), np.float16), []
    for n, (i, label, cause, level) in enumerate(tqdm(plan, f"tests {product.name}", mininterval=5)):
        image, rng = product.read(i), np.random.default_rng([seed, n])
        if cause:
            image = photograph(image, conditions(cause, level, rng), rng)
        mosaics[n] = pack(mosaic(image))
        examples.append(Example(label, cause if level else "", level, i, measure(image), bool(cause)))
    return mosaics, examples


def turned(batch: np.ndarray, rng: Rng) -> np.ndarray:
    """Mosaics (N, 1, 64, 64) of frames turned over by chance, each map for itself: gravity has no say on most lines."""
    maps = batch.reshape(len(batch), 2, MAP, 2, MAP).transpose(0, 1, 3, 2, 4).copy()  # (N, 2, 2, 32, 32)
    down, across, over = (rng.random((3, len(batch))) < 0.5)  # fmt: skip
    maps[down] = maps[down][..., ::-1, :]
    maps[across] = maps[across][..., ::-1]
    maps[over] = maps[over].swapaxes(-1, -2)
    return np.ascontiguousarray(maps.transpose(0, 1, 3, 2, 4)).reshape(batch.shape)


def together(sets: Sequence[tuple[Mosaics, np.ndarray]]) -> tuple[Mosaics, np.ndarray]:
    """Several training sets as one."""
    return np.concatenate([m for m, _ in sets]), np.concatenate([labels for _, labels in sets])
