"""The monitor with the autoencoder that it asks now and then."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edge.boxes import Float
from edge.drift import plan
from edge.drift.learn import Learning
from edge.drift.monitor import DriftMonitor
from edge.drift.report import EventKind
from edge.drift.settings import Autoencoder, DriftSettings, Numbers
from edge.drift_watch import DriftWatch
from edge.errors import PredictorError
from tests.drift.frames import CLASSES, SIZE, bundle_settings, grey, judged

SPEC = Autoencoder(width=32, height=16)


class FakeAutoencoder:
    """Paints what it was given, off by a known amount; counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.off = 0.0

    def run(self, tensor: Float) -> list[Float]:
        self.asked += 1
        noise = np.random.default_rng(self.asked).normal(0, 0.02, tensor.shape)
        return [np.asarray(tensor + noise + self.off, np.float32)]


def settings() -> DriftSettings:
    errors = np.random.default_rng(0).normal(0.0305, 0.002, 200).tolist()
    measured = plan.Measured({"ae_error": errors}, CLASSES, *SIZE, autoencoder=SPEC)
    learned = plan.settings_for(measured, "drawn frames")
    base = bundle_settings()
    signals = {**base.signals, **learned.signals}
    return msgspec.structs.replace(base, signals=signals, autoencoder=SPEC)


def test_it_is_asked_on_each_tenth_frame_that_the_gate_passes() -> None:
    model, rng = FakeAutoencoder(), np.random.default_rng(1)
    watch = DriftWatch(DriftMonitor("cam1", settings(), CLASSES), model, every=10)
    for k in range(100):
        watch.look(judged(grey(rng), k, refused=50 <= k < 70))
    assert model.asked == 8
    assert "ae_error" not in watch.monitor.scores
    watch.look(judged(grey(rng), 100))
    assert "ae_error" in watch.monitor.scores


@pytest.mark.parametrize(("every", "blind_after"), [(10, 500), (400, 1200)])
def test_one_that_answers_no_more_is_missed_also_if_it_is_asked_seldom(every: int, blind_after: int) -> None:
    model, rng = FakeAutoencoder(), np.random.default_rng(1)
    watch = DriftWatch(DriftMonitor("cam1", settings(), CLASSES), model, every)
    image = grey(rng)
    watch.look(judged(image, 0))
    watch.monitor.wants_ae(every)
    events = [event for k in range(1, blind_after + 1) for event in watch.monitor.update(judged(image, k))]
    missed = [event.number for event in events if event.kind is EventKind.UNMEASURED]
    assert missed == [blind_after]


def test_its_error_is_learned_on_the_line_where_the_bundles_baseline_is_not_taken() -> None:
    model, rng = FakeAutoencoder(), np.random.default_rng(1)
    watch = DriftWatch(DriftMonitor("cam1", None, CLASSES, Learning(frames=120), SPEC), model, every=5)
    events = [event for k in range(300) for event in watch.look(judged(grey(rng), k))]
    assert [event.kind for event in events] == [EventKind.NO_BASELINE, EventKind.LEARNED]
    learned = watch.monitor.settings
    assert learned is not None and learned.autoencoder == SPEC and "ae_error" in learned.signals
    baseline = learned.signals["ae_error"].baseline
    assert isinstance(baseline, Numbers) and baseline.frames == 24
    model.off = 0.2
    moved = [event.signal for k in range(300, 400) for event in watch.look(judged(grey(rng), k))]
    assert "ae_error" in moved


def test_frames_that_it_cannot_paint_are_a_drift() -> None:
    model, rng = FakeAutoencoder(), np.random.default_rng(1)
    watch = DriftWatch(DriftMonitor("cam1", settings(), CLASSES), model, every=2)
    model.off = 0.2
    events = [event for k in range(60) for event in watch.look(judged(grey(rng), k))]
    moved = [event for event in events if event.kind is EventKind.MOVED]
    assert "ae_error" in {event.signal for event in moved}


@pytest.mark.parametrize("bundle", [None, bundle_settings()])
def test_without_a_baseline_for_it_nothing_is_asked(bundle: DriftSettings | None) -> None:
    model = FakeAutoencoder()
    watch = DriftWatch(DriftMonitor("cam1", bundle, CLASSES), model, every=1)
    watch.look(judged(grey(np.random.default_rng(1)), 0))
    assert model.asked == 0


def test_a_model_that_answers_with_another_shape_is_named() -> None:
    class Wrong:
        def run(self, tensor: Float) -> list[Float]:
            return [np.zeros((1, 1, 3, 3), np.float32)]

    watch = DriftWatch(DriftMonitor("cam1", settings(), CLASSES), Wrong(), every=1)
    with pytest.raises(PredictorError):
        watch.look(judged(grey(np.random.default_rng(1)), 0))
