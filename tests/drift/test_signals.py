"""What is measured on a frame."""

from __future__ import annotations

import time

import cv2
import numpy as np
import pytest

from edge.drift import signals
from edge.drift.settings import Features
from tests.boards import drawn_boards
from tests.drift.frames import grey, judged


@pytest.mark.parametrize("shape", [(1, 1), (1, 640), (640, 1), (2, 3), (48, 64), (480, 640, 3), (1, 9, 3)])
@pytest.mark.parametrize("level", [0, 77, 255])
def test_any_frame_has_finite_statistics(shape: tuple[int, ...], level: int) -> None:
    values = signals.statistics(np.full(shape, level, np.uint8))
    assert all(np.isfinite(list(values.values())))
    assert values["brightness"] == pytest.approx(level, abs=1) and values["contrast"] == values["noise"] == 0
    assert signals.is_constant(values)
    assert ("red" in values) == (len(shape) == 3)


def test_each_statistic_sees_its_own_change() -> None:
    board = drawn_boards(1)[0]
    before = signals.statistics(board)
    noisy = np.clip(board + np.random.default_rng(0).normal(0, 6, board.shape), 0, 255).astype(np.uint8)
    assert signals.statistics(noisy)["noise"] > before["noise"] + 2
    darker = signals.statistics((board * 0.8).astype(np.uint8))
    assert darker["brightness"] == pytest.approx(0.8 * before["brightness"], rel=0.02)
    assert darker["contrast"] == pytest.approx(0.8 * before["contrast"], rel=0.03)
    colour = cv2.cvtColor(board, cv2.COLOR_GRAY2BGR)
    warm = np.clip(colour * [0.7, 1.0, 1.0], 0, 255).astype(np.uint8)
    assert signals.statistics(warm)["blue"] == pytest.approx(np.log2(0.7), abs=0.05)
    assert abs(signals.statistics(colour)["blue"]) < 1e-6 and abs(signals.statistics(warm)["red"]) < 0.02


def test_of_a_refused_frame_only_the_image_counts() -> None:
    image = grey(np.random.default_rng(0))
    features = np.ones((1, 4, 8, 8), np.float32)
    passed = signals.measure(judged(image, 1, confidence=0.9), features, 0.5, None, 0.3)
    refused = signals.measure(judged(image, 1, confidence=0.9, refused=True), features, 0.5, None, 0.3)
    assert set(passed) - set(refused) == {"confidence", "kind", "feature_mean", "feature_spread", "ae_error"}
    assert passed["confidence"] == pytest.approx(0.9) and passed["kind"] == 1


def test_the_surest_box_counts_if_it_is_sure_enough() -> None:
    image = grey(np.random.default_rng(0))
    sure = signals.measure(judged(image, 1, confidence=0.8, class_id=1), None, None, None, 0.3)
    unsure = signals.measure(judged(image, 1, confidence=0.2, class_id=1), None, None, None, 0.3)
    assert (sure["kind"], unsure["kind"], unsure["confidence"]) == (2, 0, 0)


def test_moments_are_those_of_all_cells_and_another_network_has_no_distance() -> None:
    features = np.random.default_rng(0).gamma(2, 1, (1, 6, 80, 80)).astype(np.float32)
    values = signals.moments(features, Features(mean=[2.0] * 6, sigma=[0.1] * 6))
    assert values["feature_mean"] == pytest.approx(features.mean(), rel=0.05)
    assert values["feature_spread"] == pytest.approx(features.std(), rel=0.05)
    assert values["feature_distance"] < 2
    assert "feature_distance" not in signals.moments(features, Features(mean=[2.0], sigma=[0.1]))


@pytest.mark.slow
def test_a_frame_costs_less_than_half_a_millisecond() -> None:
    board = drawn_boards(1)[0]
    features = np.random.default_rng(0).random((1, 64, 80, 80), np.float32)
    expected = Features(mean=[0.5] * 64, sigma=[0.1] * 64)
    inspection = judged(board, 1, confidence=0.9)
    times = []
    for _ in range(500):
        began = time.perf_counter()
        signals.measure(inspection, features, None, expected, 0.3)
        times.append(time.perf_counter() - began)
    assert np.median(times) < 0.5e-3
