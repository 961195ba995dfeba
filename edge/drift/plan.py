"""Which signal is watched by which detector, and a product's settings from what was measured on its good frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from edge.drift import limits, settings
from edge.drift.baseline import kinds, numbers
from edge.drift.settings import Advice, Autoencoder, Chart, DriftSettings, Features, Numbers, Side, Signal

ARL0: Final = 100_000.0  # frames between false alarms of a whole monitor: about one a day at one part a second
# The shift each chart is best at, in sigmas, is twice this and the baseline's error.
ALLOWANCE: Final = 0.5
EWMA_WEIGHT: Final = 0.05
PSI_WINDOW: Final = 200
# What the detector finds depends on how many bad parts a line makes, which no bundle can know: always learned there.
OF_THE_LINE: Final = ("confidence", "kind")
MOST_BATCH: Final = 32
NO_KIND: Final = "none"

Means = NDArray[np.float64]
Kind = Literal["cusum", "page_hinkley", "ewma", "adwin", "psi"]


@dataclass(frozen=True)
class Plan:
    """How a signal is watched, whatever the product.

    Attributes:
        least: a difference that matters in practice, in the unit; `share` of the median where that is more.
        advice: when it moves; `rises` where upwards is something else.
        data_set: how many times more of the baseline's error is allowed for when it is of a data set: such a set lacks
            whole groups of parts, and what sees the kind of part best sees that most.
    """

    unit: str
    chart: Kind
    advice: Advice
    least: float
    rises: Advice | None = None
    share: float = 0.0
    side: Side = "both"
    data_set: float = 1.0


# Light jumps when a lamp fails or someone turns a knob: CUSUM. Focus, dirt and the autoencoder's error creep, from a
# level that a baseline of a few boards knows badly: Page-Hinkley. Noise and the features' mean move a little and stay:
# EWMA. Nobody knows how confidence will move: ADWIN. A class mix is no number: PSI.
PLANS: Final[Mapping[str, Plan]] = {
    "brightness": Plan("grey levels", "cusum", "relight", least=1.0),
    "contrast": Plan("grey levels", "cusum", "relight", least=0.5),
    "sharpness": Plan("doublings", "page_hinkley", "clean", least=0.05, rises="recalibrate"),
    "noise": Plan("grey levels", "ewma", "clean", least=0.1, rises="relight"),
    "red": Plan("stops", "cusum", "relight", least=0.02),
    "blue": Plan("stops", "cusum", "relight", least=0.02),
    "confidence": Plan("", "adwin", "recalibrate", least=0.01),
    "kind": Plan("", "psi", "retrain", least=1.0),
    "feature_mean": Plan("", "ewma", "retrain", least=1e-6, share=0.005),
    "feature_spread": Plan("", "ewma", "retrain", least=1e-6, share=0.005),
    "feature_distance": Plan("sigmas", "cusum", "retrain", least=0.05, side="up", data_set=1.5),
    "ae_error": Plan("", "page_hinkley", "retrain", least=1e-9, share=0.005),  # blurred frames are easier to paint
}


@dataclass(frozen=True)
class Measured:
    """What was measured on good frames of a product.

    Attributes:
        values: of each signal, one a frame that has it; see `edge.drift.signals`. Unknown names are refused.
        classes: the detector's class names, for `kind`; without any it finds nothing, and `OF_THE_LINE` is left out.
        width, height: of the frames.
        ordered: the values are of frames in a row of one line: neighbours tell how alike neighbours are, and bad parts
            are as frequent as they are. Of a data set they are not, and `OF_THE_LINE` is left to be learned.
        ae_every: the autoencoder looks at each so-many-th frame.
    """

    values: Mapping[str, Sequence[float]]
    classes: Sequence[str]
    width: int
    height: int
    ordered: bool = False
    ae_every: int = 10
    features: Features | None = None
    autoencoder: Autoencoder | None = None


def settings_for(measured: Measured, origin: str, arl0: float = ARL0, least_confidence: float = 0.3) -> DriftSettings:
    """The settings of a product: each signal's baseline, detector and limit.

    The wanted ARL0 is that of all signals together, and alarms of any of them add up: each signal gets as many times
    more as a monitor can have signals, whether it has them or not, since some may be learned later.

    Raises:
        ValueError: a signal with too few or not finite values, one that is not known, or none at all.
    """
    unknown = sorted(set(measured.values) - set(PLANS))
    if unknown:
        raise ValueError(f"no signal is called {unknown[0]}; known: {', '.join(PLANS)}")
    each = arl0 * len(PLANS)
    leave_out = () if measured.ordered and measured.classes else OF_THE_LINE
    names = [name for name in PLANS if name in measured.values and name not in leave_out]
    if not names:
        raise ValueError("nothing was measured that could be watched")
    return DriftSettings(
        arl0=arl0,
        frames=max(len(measured.values[name]) for name in names),
        width=measured.width,
        height=measured.height,
        origin=origin,
        least_confidence=least_confidence,
        signals={name: _signal(name, measured, each) for name in names},
        features=measured.features,
        autoencoder=measured.autoencoder,
    )


def _signal(name: str, measured: Measured, arl0: float) -> Signal:
    plan, values = PLANS[name], measured.values[name]
    arl0 = max(1.0, arl0 / (measured.ae_every if name == "ae_error" else 1))
    if plan.chart == "psi":
        mix = kinds([int(v) for v in values], [NO_KIND, *measured.classes])
        chart = settings.Psi(window=PSI_WINDOW, limit=limits.psi_limit(arl0, PSI_WINDOW, mix.frames, len(mix.names)))
        return Signal(baseline=mix, chart=chart, unit=plan.unit, advice=plan.advice, rises=plan.rises)
    least = max(plan.least, plan.share * abs(float(np.median(values))))
    baseline = numbers(values, least, measured.ordered)
    batch = min(MOST_BATCH, math.ceil(baseline.correlation))
    errors = limits.BASELINE_ERRORS if measured.ordered else limits.DATA_SET_ERRORS * plan.data_set
    return Signal(
        baseline=baseline,
        chart=chart_for(plan.chart, plan.side, baseline, arl0 / batch, errors),
        unit=plan.unit,
        batch=batch,
        advice=plan.advice,
        rises=plan.rises,
    )


def chart_for(kind: Kind, side: Side, baseline: Numbers, arl0: float, errors: float = limits.BASELINE_ERRORS) -> Chart:
    """A detector with limits for an ARL0 of so many of its points.

    Args:
        errors: standard errors of the baseline that are allowed for.
    """
    frames = baseline.frames / baseline.correlation  # that many independent ones
    error = limits.baseline_error(frames, errors)
    if kind == "ewma":
        limit = limits.ewma_limit(arl0, EWMA_WEIGHT, side)
        return settings.Ewma(weight=EWMA_WEIGHT, limit=limit, allowance=error, side=side)
    if kind == "adwin":
        return settings.Adwin(delta=limits.adwin_delta(arl0), prior=frames, side=side)
    # The dead zone grows with the baseline's error; the limit is that of the dead zone meant.
    limit = limits.cusum_limit(arl0, ALLOWANCE, side)
    if kind == "page_hinkley":
        error = limits.baseline_error(frames, errors - limits.LEARNT_ERRORS)
        return settings.PageHinkley(allowance=ALLOWANCE + error, limit=limit, prior=frames, side=side)
    return settings.Cusum(allowance=ALLOWANCE + error, limit=limit, side=side)


def expected_features(means: Means) -> tuple[Features, list[float]]:
    """The features' baseline, and each frame's distance from that of the others.

    A frame is compared with the others, not with a baseline that it is part of: of a dozen frames each would be nearer
    to its own mean than any later frame can be.

    Args:
        means: (frames, C), the channels' means of each good frame; at least 3 frames.
    """
    n = len(means)
    if n < 3:
        raise ValueError(f"a baseline of features wants at least 3 frames, got {n}")
    mean, variance = means.mean(axis=0), means.var(axis=0, ddof=1)
    floor = np.maximum(1e-6, 0.01 * np.abs(mean))  # a channel that never moves would call anything far
    deviation = means - mean
    without = ((n - 1) * variance - n / (n - 1) * deviation**2) / (n - 2)  # variance of the others, (frames, C)
    sigma = np.maximum(floor, np.sqrt(np.maximum(without, 0)))
    distances = np.sqrt(((deviation * n / (n - 1) / sigma) ** 2).mean(axis=1))
    features = Features(mean=mean.tolist(), sigma=np.maximum(floor, np.sqrt(variance)).tolist())
    return features, [float(d) for d in distances]
