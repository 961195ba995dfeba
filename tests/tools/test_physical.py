"""Pictures suffer as they do in a camera, the same way for the same seed, and labels stay true."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tools import physical
from tools.errors import ToolError
from tools.objective import Truth
from tools.physical import (
    CORRUPTIONS,
    LEVELS,
    Conditions,
    Cover,
    ErasingConfig,
    PhysicalConfig,
    corrupt,
    field_stress,
    mixup,
    motion_kernel,
    photograph,
    random_erasing,
)

ALWAYS = PhysicalConfig(
    occlusion=1, glare=1, motion=1, defocus=1, exposure=1, noise=1, jpeg=1, occluded_share=0.2, glare_share=0.2
)


def scene(channels: int = 1, height: int = 120, width: int = 160) -> np.ndarray:
    """Stripes and a gradient of greys, with all contrasts that a corruption can spoil."""
    y, x = np.mgrid[:height, :width]
    grey = ((x // 8 % 2) * 90 + 60 + y / 2).astype(np.uint8)
    return grey if channels == 1 else np.dstack([grey, grey // 2, 255 - grey])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_keeps_the_shape_and_follows_the_seed(name: str, channels: int) -> None:
    image = scene(channels)
    before = image.copy()
    first, again = (corrupt(image, name, 3, rng(4)) for _ in range(2))
    assert first.shape == image.shape and first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert np.array_equal(image, before), "the scene itself was changed"
    assert not np.array_equal(first, image)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_level_is_worse_than_the_one_before(name: str) -> None:
    image = scene().astype(np.float64)
    seeds = range(12)
    damage = [np.mean([np.abs(corrupt(scene(), name, k, rng(s)) - image).mean() for s in seeds]) for k in LEVELS]
    assert damage == sorted(damage) and damage[0] < 0.75 * damage[-1]


@pytest.mark.parametrize(("name", "level"), [("rain", 1), ("noise", 0), ("noise", 6), ("jpeg", 2.5)])
def test_unknown_corruption_or_level_is_refused(name: str, level: float) -> None:
    with pytest.raises(ToolError, match=r"rain|level"):
        corrupt(scene(), name, level, rng())  # type: ignore[arg-type]


def test_a_good_camera_changes_nothing() -> None:
    assert np.array_equal(photograph(scene(), Conditions(), rng()), scene())
    every_grey = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    through_light = photograph(every_grey, Conditions(stops=1e-9), rng())
    assert np.abs(through_light.astype(int) - every_grey).max() <= 1


@pytest.mark.parametrize(("angle", "length"), [(0.0, 7.0), (math.pi / 2, 4.5), (0.3, 11.0), (2.2, 5.3), (1.0, 0.4)])
def test_a_motion_kernel_is_a_path_of_that_length_and_direction(angle: float, length: float) -> None:
    kernel = motion_kernel(angle, length).astype(np.float64)
    y, x = (axis - kernel.shape[k] // 2 for k, axis in enumerate(np.mgrid[: kernel.shape[0], : kernel.shape[1]]))
    along = x * math.cos(angle) + y * math.sin(angle)
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    assert (kernel * x).sum() == pytest.approx(0, abs=1e-5) and (kernel * y).sum() == pytest.approx(0, abs=1e-5)
    # The variance of a uniform path, plus at most that of spreading each point over its four pixels.
    assert length**2 / 12 - 1e-6 <= (kernel * along**2).sum() <= length**2 / 12 + 0.26


def test_blur_mixes_light_and_not_grey_levels() -> None:
    image = np.zeros((40, 41), np.uint8)
    image[:, ::2] = 255
    mixed = max(photograph(image, Conditions(motion_px=6), rng(s))[10:30, 10:30].mean() for s in range(6))
    assert mixed == pytest.approx(188, abs=3), "half of the light; the mean of the grey levels would be 128"


@pytest.mark.parametrize(("stops", "grey", "expected"), [(1, 128, 177), (-1, 128, 89), (3, 200, 255), (1, 0, 33)])
def test_exposure_is_in_stops_and_lifts_even_black(stops: float, grey: int, expected: int) -> None:
    out = photograph(np.full((8, 8), grey, np.uint8), Conditions(stops=stops), rng())
    assert abs(int(out[0, 0]) - expected) <= 2


def test_noise_is_shot_noise() -> None:
    """At twice the light there is half as much noise again of a fixed share; near black the read noise remains."""
    light = physical.STRAY + (1 - physical.STRAY) * physical._to_linear(np.array([30, 128, 200]) / 255)
    for grey, level in zip((30, 128, 200), light, strict=True):
        out = photograph(np.full((200, 200), grey, np.uint8), Conditions(full_well=2000), rng(2))
        seen = physical._to_linear(out / 255.0) * (1 - physical.STRAY) + physical.STRAY
        expected = math.sqrt(level / 2000 + (physical.READ_NOISE_E / 2000) ** 2)
        assert seen.std() == pytest.approx(expected, rel=0.08)


def test_defocus_spreads_a_point_over_a_disc() -> None:
    image = np.zeros((41, 41), np.uint8)
    image[20, 20] = 255
    y, x = np.nonzero(photograph(image, Conditions(defocus_px=4.0), rng()) > 10)
    assert 3.5 <= np.hypot(y - 20, x - 20).max() <= 5.5
    assert len(y) == pytest.approx(math.pi * 4.3**2, rel=0.25)


def test_glare_saturates_the_share_it_should() -> None:
    image = np.full((300, 300), 40, np.uint8)
    shares = [(photograph(image, Conditions(glare_share=0.02), rng(s)) == 255).mean() for s in range(40)]
    assert 0.008 < np.mean(shares) < 0.03 and max(shares) < 0.08


def test_occluders_cover_the_share_they_should() -> None:
    shares = []
    for seed in range(40):
        cover = Cover((300, 300))
        physical.add_occluders(np.full((300, 300), 0.5, np.float32), 0.03, rng(seed), cover)
        shares.append(cover.hidden.mean())
    assert 0.02 < np.mean(shares) < 0.05 and max(shares) < 0.12


@pytest.mark.parametrize("seed", range(10))
def test_no_box_is_hidden_for_more_than_its_share(seed: int) -> None:
    boxes = np.array([[10, 10, 40, 30], [60, 50, 75, 66], [100, 0, 160, 60], [0, 90, 30, 120.0]], np.float32)
    cover = Cover((120, 160), boxes, 0.3)
    light = np.full((120, 160), 0.5, np.float32)
    physical.add_occluders(light, 0.4, rng(seed), cover)
    physical.add_glare(light, 0.3, rng(seed), cover)
    assert cover.hidden.any()
    for x1, y1, x2, y2 in boxes.astype(int):
        assert cover.hidden[y1:y2, x1:x2].mean() <= 0.3


@pytest.mark.parametrize("seed", range(10))
def test_what_is_not_counted_as_hidden_is_changed_little(seed: int) -> None:
    """The rule above is of use only if `hidden` is where the picture really went."""
    cover = Cover((200, 200))
    light = np.full((200, 200), 0.5, np.float32)
    physical.add_occluders(light, 0.05, rng(seed), cover)
    assert np.abs(light - 0.5)[~cover.hidden].max() <= 0.3  # two thin edges may lie on each other


def test_cover_counts_what_lies_there_already() -> None:
    cover = Cover((20, 20), np.array([[0, 0, 10, 10]], np.float32), 0.5)
    assert cover.hide(np.ones((4, 10), bool), 0, 0)
    assert cover.hide(np.ones((4, 10), bool), 0, 0), "the same pixels again hide nothing more"
    assert not cover.hide(np.ones((2, 10), bool), 0, 4)
    assert cover.hide(np.ones((10, 10), bool), 10, 10)
    assert cover.hidden.sum() == 140


def test_field_stress_always_does_something_and_differs() -> None:
    pictures = [field_stress(scene(3), rng(s)) for s in range(25)]
    assert all(not np.array_equal(p, scene(3)) for p in pictures)
    assert len({p.tobytes() for p in pictures}) == 25


@pytest.mark.parametrize("channels", [1, 3])
def test_training_pictures_keep_their_boxes_to_see(channels: int) -> None:
    image, boxes = scene(channels), np.array([[30, 30, 60, 50]], np.float32)
    changed = [physical.physical(image, boxes, rng(s), ALWAYS) for s in range(8)]
    assert all(out.shape == image.shape and out.dtype == np.uint8 for out in changed)
    none = PhysicalConfig(occlusion=0, glare=0, motion=0, defocus=0, exposure=0, noise=0, jpeg=0)
    assert np.array_equal(physical.physical(image, boxes, rng(), none), image)


def test_training_amounts_stay_within_the_config() -> None:
    config = PhysicalConfig()
    drawn = [physical.random_conditions(rng(s), config) for s in range(400)]
    assert max(c.motion_px for c in drawn) <= config.motion_px
    assert max(abs(c.stops) for c in drawn) <= config.stops
    assert min(c.full_well for c in drawn if c.full_well) >= config.full_well
    assert min(c.jpeg_quality for c in drawn if c.jpeg_quality) >= config.jpeg_quality
    assert not any(c.motion_px and c.defocus_px for c in drawn)
    assert sum(c.motion_px > 0 for c in drawn) / 400 == pytest.approx(config.motion, abs=0.06)


@pytest.mark.parametrize("channels", [1, 3])
def test_random_erasing_spares_boxes(channels: int) -> None:
    image = np.full((100, 100) if channels == 1 else (100, 100, 3), 77, np.uint8)
    boxes = np.array([[20, 20, 50, 40], [60, 60, 95, 95]], np.float32)
    config = ErasingConfig(area_low=0.02, area_high=0.3)
    erased = 0
    for seed in range(40):
        changed = (random_erasing(image, boxes, rng(seed), config) != 77).reshape(100, 100, -1).any(axis=2)
        erased += changed.any()
        for x1, y1, x2, y2 in boxes.astype(int):
            assert changed[y1:y2, x1:x2].mean() <= config.most_covered
    assert erased > 25
    assert (image == 77).all()


def truth(box: float, known: list[bool]) -> Truth:
    xyxy = np.full((1, 4), box, np.float32)
    return Truth(xyxy, np.array([int(box)]), np.ones(1, np.float32), np.array(known))


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_mixup_blends_pictures_and_weighs_boxes(kind: type) -> None:
    images = [np.full((4, 6), v, kind) for v in (0, 100, 200)]
    mixed, truths = mixup(images, [truth(0, [1, 1]), truth(1, [1, 0]), truth(2, [1, 1])], rng(3))
    assert all(image.dtype == kind for image in mixed)
    assert [int(image[0, 0]) for image in images] == [0, 100, 200]
    for i, t in enumerate(truths):
        assert t.weight.sum() == pytest.approx(1) and t.weight.dtype == np.float32
        assert t.class_id[0] == i and t.class_id[1] != i
        assert mixed[i].flat[0] == pytest.approx(float(100 * (t.weight * t.class_id).sum()), abs=0.51)
        assert t.known.tolist() == [True, 1 not in t.class_id], "a class is known where it is known in both"


def test_mixup_of_one_picture_or_of_none() -> None:
    images, truths = [np.zeros((4, 4), np.uint8)], [truth(0, [True])]
    assert mixup(images, truths, rng())[1] == truths
    two, both = [np.zeros((4, 4, 3), np.uint8)] * 2, [truth(0, [True]), truth(1, [True])]
    assert mixup(two, both, rng(), probability=0)[1] == both
