"""What drift is watched by: the signals of one product, their baselines and detectors. `drift.json` of a bundle.

The baseline is what the signals were on good frames of the product. Everything that watches works on scores against
it (see `edge.drift.baseline`), so limits mean the same for every signal, product and camera.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from edge import settings
from edge.errors import BundleError
from edge.settings import Rule

FORMAT: Final = 1

Side = Literal["both", "up", "down"]
Advice = Literal["clean", "relight", "recalibrate", "retrain"]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Frames = Annotated[int, Meta(ge=1, le=10**9)]


class Cusum(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, tag="cusum"):
    """Cumulative sums; see `edge.drift.detectors.Cusum`. In sigmas of the score."""

    allowance: NotNegative
    limit: Positive
    side: Side = "both"


class PageHinkley(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, tag="page_hinkley"):
    """Page-Hinkley test against the running mean; see `edge.drift.detectors.PageHinkley`. In sigmas of the score."""

    allowance: NotNegative
    limit: Positive
    prior: NotNegative  # how many points of mean 0 the running mean starts with: the baseline's frames
    side: Side = "both"


class Ewma(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, tag="ewma"):
    """Exponentially weighted mean; see `edge.drift.detectors.Ewma`."""

    weight: Annotated[float, Meta(gt=0, le=1)]  # of the newest point
    limit: Positive  # in sigmas of the weighted mean
    allowance: NotNegative = 0.0  # beyond the limit, in sigmas of the score
    side: Side = "both"


class Adwin(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, tag="adwin"):
    """Adaptive window over scores as shares in [0, 1]; see `edge.drift.adwin.Adwin`."""

    delta: Annotated[float, Meta(gt=0, lt=1)]  # chance of a false cut in one look
    every: Annotated[int, Meta(ge=1, le=10**4)] = 8  # points from one look to the next
    buckets: Annotated[int, Meta(ge=2, le=64)] = 5  # of one size, before two are merged
    longest: Annotated[int, Meta(ge=32, le=10**6)] = 8192  # points in the window at most
    prior: NotNegative = 0.0  # points of mean 0.5 that stand before the window: the baseline's frames
    side: Side = "both"


class Psi(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, tag="psi"):
    """Population stability index over windows; see `edge.drift.psi.Psi`."""

    window: Annotated[int, Meta(ge=10, le=10**6)]
    limit: Positive


Chart = Cusum | PageHinkley | Ewma | Adwin | Psi


class Numbers(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, tag="numbers"):
    """The baseline of a signal that is a number.

    Attributes:
        frames: how many values it rests on.
        quantiles: at evenly spaced probabilities from 0 (the least value) to 1 (the greatest), not decreasing.
        centre: median, in the signal's unit.
        sigma: robust standard deviation, in the signal's unit; never under `least`.
        least: a difference that matters in practice, in the signal's unit: values that are nearer to each other count
            as one, so that a signal that hardly varies raises no alarm over nothing.
        tail: how far values go on beyond the extremes, in the signal's unit: the mean excess there.
        correlation: variance of the mean of frames in a row over what it would be if they were independent, 1 or more;
            above 1 where neighbours are alike.
    """

    frames: Frames
    quantiles: Annotated[list[float], Meta(min_length=2, max_length=1025)]
    centre: float
    sigma: Positive
    least: Positive
    tail: Positive
    correlation: Annotated[float, Meta(ge=1, le=1000)] = 1.0


class Kinds(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, tag="kinds"):
    """The baseline of a signal that is one of some kinds, such as the class of a frame's surest box.

    Attributes:
        names: of the kinds, in the order of their numbers.
        shares: of the kinds on `frames` frames; they sum to 1.
    """

    frames: Frames
    names: Annotated[list[str], Meta(min_length=2, max_length=1001)]
    shares: Annotated[list[Share], Meta(min_length=2, max_length=1001)]


class Signal(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How one signal is watched.

    Attributes:
        unit: of its values, for people; "" for a pure number.
        chart: the sequential detector and its limits.
        batch: that many frames are averaged to one point of the detector.
        advice: what helps when it moves; `rises` for when that differs upwards.
    """

    baseline: Numbers | Kinds
    chart: Chart
    unit: str = ""
    batch: Annotated[int, Meta(ge=1, le=1000)] = 1
    advice: Advice
    rises: Advice | None = None


class Autoencoder(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The input of the autoencoder, (pixel - mean) * scale; see `edge.drift.reconstruct`, which also has its error.

    Attributes:
        width, height: of the picture that it reads, pixels.
        tile: side of the pieces of the frame, at its own resolution, that the picture is put together from; it divides
            both sides. 0: the whole frame, scaled to the picture's size.
    """

    width: Annotated[int, Meta(ge=8, le=4096)]
    height: Annotated[int, Meta(ge=8, le=4096)]
    tile: Annotated[int, Meta(ge=0, le=4096)] = 0
    channels: Literal[1, 3] = 1
    scale: Annotated[float, Meta(gt=0, le=1000)] = 1 / 255
    mean: Annotated[float, Meta(ge=0, le=255)] = 0.0


class Features(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The detector's features on the baseline: mean and sigma over frames of each channel's mean over a frame."""

    mean: Annotated[list[float], Meta(min_length=1, max_length=4096)]
    sigma: Annotated[list[Positive], Meta(min_length=1, max_length=4096)]


class DriftSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How a product's stream is watched for drift; `drift.json` in a bundle.

    Attributes:
        arl0: frames between false alarms on average, of all signals together, that the limits were chosen for.
        frames: good frames that the baseline rests on.
        width, height: of those frames; frames of another size have no baseline here.
        origin: where the baseline is from, for people: `validation images of pcb`, `learned from cam1`.
        least_confidence: boxes that are less sure do not count.
        signals: by name, see `edge.drift.signals`.
    """

    format: Annotated[int, Meta(ge=1)] = FORMAT
    arl0: Annotated[float, Meta(ge=1)] = 100_000
    frames: Frames
    width: Annotated[int, Meta(ge=1, le=65536)]
    height: Annotated[int, Meta(ge=1, le=65536)]
    origin: str = ""
    least_confidence: Share = 0.3
    signals: Annotated[dict[str, Signal], Meta(min_length=1)]
    features: Features | None = None
    autoencoder: Autoencoder | None = None


def _not_decreasing(quantiles: Sequence[float]) -> str | None:
    falls = any(b < a for a, b in pairwise(quantiles))
    return "quantiles fall somewhere: they must be in order, from the least value to the greatest" if falls else None


def _shares_fit(names: Sequence[str], shares: Sequence[float]) -> str | None:
    if len(names) != len(shares):
        return f"{len(names)} names but {len(shares)} shares: give each kind its share"
    return None if abs(sum(shares) - 1) < 1e-3 else f"shares sum to {sum(shares):g}: they must sum to 1"


def _chart_fits(baseline: Mapping[str, Any], chart: Mapping[str, Any]) -> str | None:
    kinds, psi = baseline.get("type") == "kinds", chart.get("type") == "psi"
    if kinds == psi:
        return None
    return "a baseline of kinds is watched by psi" if kinds else "psi watches kinds: give a baseline of type kinds"


def _tiles_fit(width: int, height: int, tile: int) -> str | None:
    fits = tile == 0 or (width % tile == 0 and height % tile == 0)
    return None if fits else f"tile {tile} does not divide {width}x{height}: give a side that does, or 0"


def _features_fit(mean: Sequence[float], sigma: Sequence[float]) -> str | None:
    return None if len(mean) == len(sigma) else f"{len(mean)} means but {len(sigma)} sigmas: one of each a channel"


_RULES: Final[settings.Rules] = {
    Numbers: (Rule(("quantiles",), _not_decreasing),),
    Kinds: (Rule(("names", "shares"), _shares_fit),),
    Signal: (Rule(("baseline", "chart"), _chart_fits),),
    Features: (Rule(("mean", "sigma"), _features_fit),),
    Autoencoder: (Rule(("width", "height", "tile"), _tiles_fit),),
}


def decode(raw: bytes, origin: str) -> DriftSettings:
    """The settings in the text of a `drift.json`.

    Args:
        origin: names the file in errors.

    Raises:
        BundleError: not JSON, or made for a newer release.
        ConfigError: settings that cannot be used; every problem is named.

    >>> decode(b'{"format": 1}', "drift.json")
    Traceback (most recent call last):
    edge.errors.ConfigError: drift.json cannot be used:
      - frames: missing; it must be given: a whole number from 1 to 1000000000
      - width: missing; it must be given: a whole number from 1 to 65536
      - height: missing; it must be given: a whole number from 1 to 65536
      - signals: missing; it must be given: a table
    """
    try:
        data = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BundleError(f"the drift settings {origin} are not valid JSON: {error}") from error
    if isinstance(data, dict) and isinstance(data.get("format"), int) and data["format"] > FORMAT:
        raise BundleError(f"{origin} has format {data['format']}, this edge knows up to {FORMAT}: update edge")
    if not isinstance(data, dict):
        raise BundleError(f"the drift settings {origin} are not a JSON object: make the bundle again")
    return settings.check(data, DriftSettings, origin, _RULES)


def encode(what: DriftSettings) -> bytes:
    """The text of a `drift.json`, which `decode` reads back as the same settings."""
    return msgspec.json.format(msgspec.json.encode(what), indent=1) + b"\n"
