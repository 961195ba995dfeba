"""Decoding against hand-made maps; the detector end to end on a predictor that answers with a known map."""

import numpy as np
import pytest

from edge.detect import Detector, DetectSettings, decode
from edge.errors import PredictorError
from edge.preprocess import InputSpec


def level(classes, height, width):
    return np.full((1, classes, height, width), -12, np.float32), np.zeros((1, 4, height, width), np.float32)


def inverse_softplus(y):
    return np.log(np.expm1(y))


def test_distances_are_measured_from_the_cell_centre():
    logits, raw = level(3, 4, 6)
    logits[0, 2, 1, 5] = 2.0
    raw[0, :, 1, 5] = inverse_softplus(np.array([0.5, 1.0, 2.0, 0.25]))
    xyxy, confidence, class_id = decode([logits, raw], [8], 0.3)
    assert np.allclose(xyxy, [[44 - 4, 12 - 8, 44 + 16, 12 + 2]], atol=1e-4)
    assert confidence[0] == pytest.approx(1 / (1 + np.exp(-2)))
    assert class_id.tolist() == [2]


def test_one_cell_may_speak_for_two_classes():
    logits, raw = level(2, 2, 2)
    logits[0, :, 0, 1] = [1.0, 3.0]
    _, confidence, class_id = decode([logits, raw], [8], 0.5)
    assert sorted(class_id.tolist()) == [0, 1] and len(confidence) == 2


def test_levels_are_joined():
    fine, coarse = level(1, 4, 4), level(1, 2, 2)
    fine[0][0, 0, 0, 0], coarse[0][0, 0, 1, 1] = 1.0, 2.0
    xyxy, _, _ = decode([*fine, *coarse], [8, 16], 0.5)
    centres = (xyxy[:, :2] + xyxy[:, 2:]) / 2
    assert centres.tolist() == [[4, 4], [24, 24]]


def test_nothing_above_the_threshold():
    xyxy, confidence, class_id = decode(list(level(2, 3, 3)), [8], 0.01)
    assert xyxy.shape == (0, 4) and len(confidence) == len(class_id) == 0


def test_outputs_must_match_strides():
    with pytest.raises(ValueError, match="2 strides want 4 outputs"):
        decode(list(level(1, 2, 2)), [8, 16], 0.5)


class KnownMap:
    """A predictor that finds the same two overlapping boxes of one class on every input."""

    def __init__(self):
        self.logits, self.raw = level(1, 8, 8)
        self.logits[0, 0, 3, 3], self.logits[0, 0, 3, 4] = 3.0, 1.0
        self.raw[0] = inverse_softplus(np.float32(2.0))

    def run(self, tensor):
        return [self.logits, self.raw]


@pytest.mark.parametrize(("nms_iou", "expected"), [(0.5, 1), (0.95, 2)])
def test_detector_suppresses_and_maps_back(nms_iou, expected):
    detector = Detector(KnownMap(), InputSpec(64, 64, 1), DetectSettings((8,), nms_iou=nms_iou))
    found = detector.detect(np.zeros((128, 256), np.uint8))
    assert len(found) == expected
    # Scale 1/4 and 16 rows of padding above: the cell centre (28, 28) with 16 px each way is 4 x that minus padding.
    assert found.xyxy[0].tolist() == [48, 0, 176, 112]


def test_candidates_are_bounded_by_the_most_confident():
    class Noise:
        def run(self, tensor):
            rng = np.random.default_rng(0)
            return [rng.normal(0, 1, (1, 2, 16, 16)).astype(np.float32), np.full((1, 4, 16, 16), -9, np.float32)]

    few = DetectSettings((8,), max_candidates=5, max_detections=100)
    all_of_them = DetectSettings((8,), max_candidates=10_000, max_detections=5)
    image, spec = np.zeros((128, 128), np.uint8), InputSpec(128, 128, 1)
    assert np.allclose(
        Detector(Noise(), spec, few).detect(image).confidence,
        Detector(Noise(), spec, all_of_them).detect(image).confidence,
    )


def test_stages_are_told():
    laps = []
    Detector(KnownMap(), InputSpec(64, 64, 1), DetectSettings((8,))).detect(np.zeros((64, 64), np.uint8), laps.append)
    assert laps == ["preprocess", "predict", "decode"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_gone_mad_is_an_error_not_an_empty_result(value):
    logits, raw = level(2, 3, 3)
    logits[0, 1, 2, 2] = value
    with pytest.raises(PredictorError, match="not finite"):
        decode([logits, raw], [8], 0.5)


def test_what_lies_on_the_padding_is_no_detection():
    on_padding = KnownMap()
    on_padding.logits[0, 0, 3, :] = -12
    on_padding.logits[0, 0, 0, 4] = 3.0  # centre (36, 4), 16 px each way; the image begins at row 24
    on_padding.raw[0, :, 0, 4] = inverse_softplus(np.float32(2.0))
    detector = Detector(on_padding, InputSpec(64, 64, 1), DetectSettings((8,)))
    assert len(detector.detect(np.zeros((64, 64), np.uint8))) == 1
    assert len(detector.detect(np.zeros((16, 64), np.uint8))) == 0


class WithFeatures(KnownMap):
    """The same, and features of three channels behind; or features alone."""

    def __init__(self, alone=False):
        super().__init__()
        self.alone, self.tensors = alone, []

    def run(self, tensor):
        self.tensors.append(tensor.copy())
        features = np.full((1, 3, 8, 8), 2.0, np.float32)
        return [features] if self.alone else [*super().run(tensor), features]


def test_features_come_beside_the_detections_and_change_none():
    frame = np.zeros((64, 64), np.uint8)
    plain = Detector(KnownMap(), InputSpec(64, 64, 1), DetectSettings((8,))).look(frame)
    seen = Detector(WithFeatures(), InputSpec(64, 64, 1), DetectSettings((8,))).look(frame)
    assert plain.features is None and seen.features is not None and seen.features.shape == (1, 3, 8, 8)
    assert np.array_equal(seen.detections.xyxy, plain.detections.xyxy)


def test_a_network_of_features_alone_finds_nothing_and_gives_them():
    seen = Detector(WithFeatures(alone=True), InputSpec(64, 64, 1), DetectSettings(())).look(
        np.zeros((64, 64), np.uint8)
    )
    assert len(seen.detections) == 0 and seen.features is not None


class Off:
    """A part that lies 5 px right of and 3 px above its place."""

    def shift(self, image):
        return 5, -3


def test_a_part_off_its_place_is_brought_back_and_told_where_it_lies():
    spot = np.zeros((64, 64), np.uint8)
    spot[17, 35] = 255
    straight, off = WithFeatures(), WithFeatures()
    there = Detector(straight, InputSpec(64, 64, 1), DetectSettings((8,))).look(spot)
    seen = Detector(off, InputSpec(64, 64, 1), DetectSettings((8,)), Off()).look(spot)
    assert off.tensors[0][0, 0, 20, 30] == 1.0, "the network sees it at its place"
    assert seen.shift == (5, -3)
    assert np.allclose(seen.detections.xyxy, there.detections.xyxy + np.array([5, -3, 5, -3]))
