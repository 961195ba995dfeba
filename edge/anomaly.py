"""What no one taught the detector: a score and a map of how foreign a part looks, from the detector's own features.

A small network reads the neck features of the detector, which runs as it does without it. What its outputs mean says
the `kind` of the settings that come with it in the bundle:

    energy    logits of a closed set disturbed by residual pattern learning (Liu et al., arXiv:2211.14512): the map is
              the free energy -logsumexp (Liu et al., arXiv:2010.03759)
    square    differences from what good parts show at the place (PaDiM, Defard et al., arXiv:2011.08785) or from a
              teacher (Bergmann et al., arXiv:1911.02357), in units of their spread: the map is their mean square
    nearest   squared distances to the patches of a memory bank (PatchCore, Roth et al., arXiv:2106.08265): the map is
              the least of them

The map is smoothed, and the part's score is the mean of its highest cells. Everything is unitless, and higher is worse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import cv2
import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from edge.align import AlignSettings
from edge.boxes import Float
from edge.errors import BundleError, PredictorError
from edge.records import Scores

Kind = Literal["energy", "square", "nearest"]
TAIL = 0.2  # share of good parts, the worst, that the tail of their scores is fitted to
LEAST_PARTS = 20


class Predictor(Protocol):
    """What the judge needs of an inference runtime."""

    def run(self, tensor: Float) -> list[Float]:
        """Outputs of the network for one input (1, C, H, W)."""


class AnomalySettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How a part is scored: `anomaly.json` of a bundle, written by the toolchain.

    Attributes:
        kind: what the network's output means, see the module.
        mean, scale: the map is (raw - mean) / scale, with the raw map's mean and deviation over good parts.
        smoothing: side in cells of the box that averages the map; 1: none, always odd.
        top: cells whose mean is the part's score.
        threshold: scores from here on are anomalous. overkill: share of good parts wanted over it.
        good_parts: how many the threshold rests on.
        map_limit: cells of the map from here on are shown as foreign.
        align: how a frame is brought to the place that the model knows, before the detector; None: it is not.
    """

    kind: Kind
    mean: float = 0.0
    scale: Annotated[float, Meta(gt=0)] = 1.0
    smoothing: Annotated[int, Meta(ge=1, le=31)] = 3
    top: Annotated[int, Meta(ge=1, le=10_000)] = 1
    threshold: float
    map_limit: float
    overkill: Annotated[float, Meta(gt=0, lt=0.5)] = 0.005
    good_parts: Annotated[int, Meta(ge=0)] = 0
    align: AlignSettings | None = None


def read_settings(data: bytes, origin: str) -> AnomalySettings:
    """The settings in `data`, which is JSON.

    Raises:
        BundleError: not such settings; names `origin`, and what is wrong where.

    >>> read_settings(b'{"kind": "energy", "threshold": 4.5, "map_limit": 4.5}', "anomaly.json").smoothing
    3
    """
    try:
        found = msgspec.json.decode(data, type=AnomalySettings)
    except msgspec.MsgspecError as error:
        raise BundleError(f"{origin}: {error}; install the bundle again") from error
    if found.smoothing % 2 == 0:
        raise BundleError(f"{origin}: smoothing is {found.smoothing}, expected an odd number of cells")
    if not all(math.isfinite(x) for x in (found.mean, found.scale, found.threshold, found.map_limit)):
        raise BundleError(f"{origin}: a mean, scale or limit is not finite; install the bundle again")
    return found


def raw_map(outputs: Sequence[Float], kind: Kind) -> Float:
    """The network's output (1, K, h, w) as a map (h, w), not yet smoothed; higher is worse.

    Raises:
        PredictorError: not one finite output of that shape.

    >>> logits = np.zeros((1, 2, 1, 1), np.float32)
    >>> raw_map([logits], "energy").round(3).tolist(), raw_map([logits + 3], "square").tolist()
    ([[-0.6930000185966492]], [[9.0]])
    """
    if len(outputs) != 1 or outputs[0].ndim != 4 or len(outputs[0]) != 1 or not outputs[0].size:
        shapes = ", ".join(str(out.shape) for out in outputs) or "none"
        raise PredictorError(f"the anomaly model answers (1, K, h, w), got {shapes}; install the bundle again")
    values = outputs[0][0]  # (K, h, w)
    if kind == "square":
        found = np.mean(np.square(values), axis=0)
    elif kind == "nearest":
        found = values.min(axis=0)
    else:
        most = values.max(axis=0)
        found = -(most + np.log(np.exp(values - most).sum(axis=0)))
    if not np.isfinite(found).all():  # a NaN compares as "not over the threshold": it must not pass for calm
        raise PredictorError("the anomaly model answered with numbers that are not finite; install the bundle again")
    return np.asarray(found, np.float32)


def score_of(anomaly_map: Float, top: int) -> float:
    """Mean of the `top` highest cells of a map (h, w); of all, if there are fewer.

    >>> score_of(np.array([[1, 5], [3, 2]], np.float32), 2)
    4.0
    """
    flat = anomaly_map.ravel()
    top = min(top, flat.size)
    return float(np.partition(flat, flat.size - top)[flat.size - top :].mean())


class AnomalyJudge:
    """Scores parts by the detector's features. Made and used in one thread, as its predictor is.

    Args:
        limit: scores from here on are anomalous, where the recipe says so; None: the settings' threshold.
    """

    def __init__(self, predictor: Predictor, settings: AnomalySettings, limit: float | None = None) -> None:
        self._predictor = predictor
        self.settings = settings
        self._limit = settings.threshold if limit is None else limit

    def under(self, limit: float | None) -> AnomalyJudge:
        """The same network by another recipe's limit."""
        return AnomalyJudge(self._predictor, self.settings, limit)

    def judge(self, features: Float) -> Scores:
        """Anomaly score and map of one part.

        Args:
            features: float32 (1, C, h, w), the detector's last output.

        Raises:
            PredictorError: the runtime failed, or features or answer are not finite.

        >>> class Fixed:
        ...     def run(self, tensor): return [np.zeros((1, 2, 4, 4), np.float32)]
        >>> judge = AnomalyJudge(Fixed(), AnomalySettings(kind="energy", threshold=0.0, map_limit=0.0))
        >>> scores = judge.judge(np.ones((1, 8, 8, 8), np.float32))
        >>> scores.anomaly.__round__(4), scores.anomalous, scores.anomaly_map.shape
        (-0.6931, False, (4, 4))
        """
        # INT8 kernels turn NaN into a number, so it has to be caught before. A sum is NaN or infinite if any term is.
        if not math.isfinite(float(features.sum())):
            raise PredictorError("the detector's features are not finite; install the bundle again")
        s = self.settings
        found = (raw_map(self._predictor.run(features), s.kind) - np.float32(s.mean)) / np.float32(s.scale)
        if s.smoothing > 1:
            found = np.asarray(cv2.blur(found, (s.smoothing, s.smoothing), borderType=cv2.BORDER_REPLICATE), np.float32)
        return Scores(score_of(found, s.top), self._limit, found)


@dataclass(frozen=True)
class Limit:
    """A threshold and what it rests on.

    Attributes:
        threshold: scores from here on are anomalous.
        extrapolated: it lies beyond the quantile that so few good parts can show.
    """

    threshold: float
    extrapolated: bool


def limit_for(good: Sequence[float] | NDArray[np.float64], overkill: float) -> Limit:
    """The threshold that about `overkill` of good parts like these reach.

    The worst fifth of their scores is taken for exponential (peaks over threshold, Pickands 1975): the threshold is
    u + mean excess x ln(share over u / overkill). It is never under the order statistic that a good part exceeds with
    a chance of at most `overkill` (conformal, Vovk et al. 2005), where there are enough parts for one, and never under
    the highest score where there are not.

    Args:
        good: scores of good parts, at least 20. overkill: in (0, 0.2].

    Raises:
        ValueError: too few scores, one that is not finite, or an overkill out of range.

    >>> limit = limit_for(np.linspace(0, 1, 1000), 0.01)
    >>> round(limit.threshold, 3), limit.extrapolated, limit_for(np.linspace(0, 1, 50), 0.01).extrapolated
    (1.101, False, True)
    """
    scores = np.sort(np.asarray(good, np.float64))
    if len(scores) < LEAST_PARTS:
        raise ValueError(f"a threshold wants at least {LEAST_PARTS} good parts, got {len(scores)}")
    if not np.isfinite(scores).all():
        raise ValueError("a score of a good part is not finite")
    if not 0 < overkill <= TAIL:
        raise ValueError(f"overkill is {overkill}, expected a share in (0, {TAIL}]")
    edge = float(np.quantile(scores, 1 - TAIL))
    excess = float(np.mean(scores[scores >= edge] - edge))
    tail = edge + excess * math.log(TAIL / overkill)
    rank = math.ceil((len(scores) + 1) * (1 - overkill))
    enough = rank <= len(scores)
    shown = float(scores[rank - 1]) if enough else float(scores[-1])
    return Limit(max(tail, math.nextafter(shown, math.inf)), not enough)
