"""Where a camera is heading: its sharpness, exposure and dirt by the hour, and when the lens needs cleaning.

What a frame measures depends on the part on it, so single frames say nothing of the camera: each hour is summed up by
its median, over a sample of its frames that is drawn fairly however many there are (reservoir sampling, Vitter, ACM
TOMS 11, 1985). A line through the hours' medians by the median of all pairwise slopes (Theil 1950; Sen, JASA 63, 1968)
is not moved by an hour of another product or of a lamp that failed, and Kendall's test tells a slope from chance. No
forecast is made where there is no significant slope, too little time, or a limit that lies too far ahead to be meant.

Memory is constant: the last `HOURS` hours and one sample. Time is what the caller says it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import NormalDist
from typing import Any

import numpy as np

from edge.errors import ConfigError
from edge.records import GateResult

HOUR_S = 3600.0
HOURS = 168  # a week: older hours are forgotten
SAMPLE = 101  # frames that stand for an hour
LEAST_FRAMES = 5  # an hour with fewer is not counted
LEAST_HOURS = 8
LONGEST_FORECAST = 4  # times the span that was watched
LARGEST_JUMP_S = 30 * 86400.0  # a clock that moves further ahead in one frame was set, and not by a holiday
SIGNIFICANCE = 0.01
INTERVAL = 0.95

VERSION = 1
SIGNALS = ("sharpness", "brightness", "dirt")


class Update(str, Enum):
    """What became of one measurement."""

    COUNTED = "counted"
    NOT_A_NUMBER = "not_a_number"  # a measure or the time is not finite: ignored
    CLOCK_WENT_BACK = "clock_went_back"  # earlier than an hour that is closed: the trend begins anew
    CLOCK_JUMPED_AHEAD = "clock_jumped_ahead"  # more than 30 days at once: the trend begins anew
    RESOLUTION_CHANGED = "resolution_changed"  # sharpness is another quantity now: the trend begins anew


@dataclass(frozen=True)
class Slope:
    """A line through hours.

    Attributes:
        per_hour: change in an hour. level: of the line at the last hour.
        low, high: ends of the 95 % interval of the change; low_level, high_level: of the lines that rise like this.
        p_value: of a slope so far from 0 by chance (Kendall's test, two-sided).
    """

    per_hour: float
    level: float
    low: float
    low_level: float
    high: float
    high_level: float
    p_value: float


@dataclass(frozen=True)
class Forecast:
    """When a limit will be reached if things go on like this.

    Attributes:
        signal: what moves: sharpness, brightness or dirt.
        hours: until the limit is reached; 0: it is reached.
        earliest, latest: ends of the 95 % interval, hours; latest is infinite where the slope may be next to none.
        slope: of the signal; sharpness by its natural logarithm, since dirt and blur divide it.
        text: for a technician.
    """

    signal: str
    hours: float
    earliest: float
    latest: float
    slope: Slope
    text: str


@dataclass(frozen=True)
class Limits:
    """What a signal may reach. None: not watched.

    Attributes:
        sharpness: least variance of the Laplacian. brightness_min, brightness_max: grey levels.
        dirt: most probability of a dirty lens, 0 to 1.
    """

    sharpness: float | None = None
    brightness_min: float | None = None
    brightness_max: float | None = None
    dirt: float | None = None


def theil_sen(hours: Sequence[float], values: Sequence[float]) -> Slope:
    """The median of all pairwise slopes, with Sen's interval and Kendall's test.

    Args:
        hours: growing. values: as many; at least 3.

    >>> slope = theil_sen([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [5, 4.5, 4, 3.5, 99, 2.5, 2, 1.5, 1, 0.5])
    >>> slope.per_hour, slope.level, round(slope.p_value, 4)
    (-0.5, 0.5, 0.0013)
    """
    n = len(hours)
    x, y = np.asarray(hours, np.float64), np.asarray(values, np.float64)
    first, second = np.triu_indices(n, 1)  # a week has 14,000 pairs: in Python alone they would hold up a part
    rises = y[second] - y[first]
    slopes = np.sort(rises / (x[second] - x[first]))
    score = int(np.sign(rises).sum())
    ties = [int(count) for count in np.unique(y, return_counts=True)[1]]
    variance = (n * (n - 1) * (2 * n + 5) - sum(t * (t - 1) * (2 * t + 5) for t in ties)) / 18
    per_hour = float(np.median(slopes))

    def level(rise: float) -> float:
        return float(np.median(y + rise * (x[-1] - x)))

    if variance <= 0:  # every value the same
        return Slope(0.0, values[0], 0.0, values[0], 0.0, values[0], 1.0)
    z = max(0, abs(score) - 1) / math.sqrt(variance)
    reach = NormalDist().inv_cdf(0.5 + INTERVAL / 2) * math.sqrt(variance)
    m = len(slopes)
    low = float(slopes[max(0, math.floor((m - reach) / 2))])
    high = float(slopes[min(m - 1, math.ceil((m + reach) / 2))])
    return Slope(per_hour, level(per_hour), low, level(low), high, level(high), 2 * (1 - NormalDist().cdf(z)))


def _median(values: Sequence[float]) -> float:
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


class Trend:
    """The slow change of one camera's frames. `update` with each result of the gate, ask `forecast` when you like.

    >>> trend = Trend()
    >>> for hour in range(24):
    ...     for frame in range(6):
    ...         gate = GateResult(True, None, sharpness=1000 * math.exp(-0.01 * hour), brightness=120.0, saturated=0.0)
    ...         outcome = trend.update(gate, hour * 3600.0 + frame)
    >>> forecast = trend.forecast(Limits(sharpness=500.0))
    >>> forecast.text
    'sharpness falls by 1.0 % an hour; the lens needs cleaning in about 47 hours (47 to 47)'
    >>> trend.forecast(Limits(brightness_min=30.0, brightness_max=220.0)) is None
    True
    """

    def __init__(self, hours: int = HOURS, sample: int = SAMPLE) -> None:
        self._hours, self._sample = hours, sample
        self._reset()

    def _reset(self) -> None:
        self._closed: list[tuple[int, dict[str, float]]] = []  # hour since 1970, median of each signal
        self._hour: int | None = None
        self._last_ts = 0.0
        self._kept: list[tuple[float, ...]] = []  # of the running hour, in the order of SIGNALS; dirt may be NaN
        self._seen = 0
        self._size: tuple[int, int] | None = None

    def update(self, gate: GateResult, ts: float, size: tuple[int, int] | None = None) -> Update:
        """Count one frame.

        Args:
            gate: what the gate measured; refused frames count too, or a camera that gets worse would look well.
            ts: when it was taken, seconds since 1970.
            size: height and width of the frame; another one than before begins the trend anew.

        >>> trend, gate = Trend(), GateResult(True, None, sharpness=500.0, brightness=120.0, saturated=0.0)
        >>> trend.update(gate, 7200.0).value, trend.update(gate, 10_900.0).value, trend.update(gate, 60.0).value
        ('counted', 'counted', 'clock_went_back')
        >>> trend.update(gate, math.nan).value, trend.update(gate, 1e9).value
        ('not_a_number', 'clock_jumped_ahead')
        """
        values = _values(gate)
        if not (math.isfinite(ts) and all(math.isfinite(v) for v in values[:2])):
            return Update.NOT_A_NUMBER
        outcome = self._continues(ts, size)
        if outcome is not Update.COUNTED:
            self._reset()
        hour = math.floor(ts / HOUR_S)
        if self._hour is not None and hour > self._hour:
            self._close()
        # A frame that is late within a second or two of the hour's end belongs to the running one.
        self._hour = hour if self._hour is None else max(hour, self._hour)
        self._last_ts, self._size = ts, size or self._size
        self._keep(values)
        return outcome

    def _continues(self, ts: float, size: tuple[int, int] | None) -> Update:
        if size is not None and self._size is not None and size != self._size:
            return Update.RESOLUTION_CHANGED
        if self._hour is None:
            return Update.COUNTED
        if ts < (self._hour - 1) * HOUR_S:
            return Update.CLOCK_WENT_BACK
        return Update.CLOCK_JUMPED_AHEAD if ts - self._last_ts > LARGEST_JUMP_S else Update.COUNTED

    def _keep(self, values: tuple[float, ...]) -> None:
        """Keep a fair sample of the hour. Chance comes from a hash of the count, so that a restart repeats nothing."""
        self._seen += 1
        if len(self._kept) < self._sample:
            self._kept.append(values)
            return
        place = _scattered(self._seen) % self._seen
        if place < self._sample:
            self._kept[place] = values

    def _close(self) -> None:
        if self._hour is not None and len(self._kept) >= LEAST_FRAMES:
            medians = {}
            for name, column in zip(SIGNALS, zip(*self._kept, strict=True), strict=True):
                finite = [v for v in column if math.isfinite(v)]
                if len(finite) >= LEAST_FRAMES:
                    medians[name] = _median(finite)
            self._closed = [*self._closed, (self._hour, medians)][-self._hours :]
        self._kept, self._seen = [], 0

    def slope(self, signal: str) -> Slope | None:
        """The line through the closed hours of `signal`; None with fewer than `LEAST_HOURS`.

        Sharpness is in natural logarithms.
        """
        points = [(float(hour), medians[signal]) for hour, medians in self._closed if signal in medians]
        if len(points) < LEAST_HOURS:
            return None
        return theil_sen([hour for hour, _ in points], [value for _, value in points])

    def forecast(self, limits: Limits) -> Forecast | None:
        """Which limit is reached first, and when; None where nothing moves significantly towards one."""
        found = [self._towards(name, limit, sign) for name, limit, sign in _watched(limits)]
        return min((f for f in found if f is not None), key=lambda f: f.hours, default=None)

    def _towards(self, signal: str, limit: float, sign: int) -> Forecast | None:
        """The forecast of one limit; `sign` is 1 where the signal must not rise over it, -1 where not fall below."""
        slope = self.slope(signal)
        if slope is None or slope.p_value > SIGNIFICANCE or slope.per_hour * sign <= 0:
            return None
        hours = _until(limit, slope.level, slope.per_hour, sign)
        if hours > LONGEST_FORECAST * (self._closed[-1][0] - self._closed[0][0]):
            return None
        ends = ((slope.low_level, slope.low), (slope.high_level, slope.high))
        earliest, latest = sorted(_until(limit, level, rise, sign) for level, rise in ends)
        return Forecast(signal, hours, earliest, latest, slope, _text(signal, slope, hours, earliest, latest))

    def state(self) -> dict[str, Any]:
        """All that is remembered, as JSON can hold it."""
        return {
            "version": VERSION,
            "closed": [[hour, medians] for hour, medians in self._closed],
            "hour": self._hour,
            "last_ts": self._last_ts,
            "kept": [[None if math.isnan(v) else v for v in values] for values in self._kept],
            "seen": self._seen,
            "size": self._size,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            ConfigError: it is not such a state; the trend is then as new.

        >>> trend = Trend()
        >>> trend.restore({"version": 0})
        Traceback (most recent call last):
        ...
        edge.errors.ConfigError: the trend's state cannot be used:
          - version 0, expected 1: the trend begins anew
        """
        self._reset()
        if state.get("version") != VERSION:
            problem = f"version {state.get('version')}, expected {VERSION}: the trend begins anew"
            raise ConfigError("the trend's state", [problem])
        try:
            closed = [(int(hour), _finite(medians)) for hour, medians in state["closed"]][-self._hours :]
            hour = None if state["hour"] is None else int(state["hour"])
            kept = [tuple(math.nan if v is None else float(v) for v in values) for values in state["kept"]]
            size = None if state["size"] is None else (int(state["size"][0]), int(state["size"][1]))
            last_ts, seen = float(state["last_ts"]), int(state["seen"])
            if any(len(values) != len(SIGNALS) for values in kept) or not math.isfinite(last_ts):
                raise ValueError("a sample or its time is incomplete")
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            problem = f"{type(error).__name__}: {error}: the trend begins anew"
            raise ConfigError("the trend's state", [problem]) from error
        self._closed, self._hour, self._last_ts = closed, hour, last_ts
        self._kept, self._seen, self._size = kept[: self._sample], max(seen, len(kept)), size


def _finite(medians: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(medians[name]) for name in SIGNALS if name in medians and math.isfinite(medians[name])}


def _values(gate: GateResult) -> tuple[float, ...]:
    """The signals of one frame, in the order of SIGNALS; dirt is NaN where the classifier did not look."""
    sharpness = math.log(max(gate.sharpness, 0.01)) if math.isfinite(gate.sharpness) else math.nan
    return sharpness, gate.brightness, gate.probabilities.get("dirty_lens", math.nan)


def _scattered(n: int) -> int:
    """A number that is as good as random, of a count (the finalizer of splitmix64).

    >>> _scattered(1) % 100, _scattered(2) % 100, _scattered(3) % 100
    (35, 0, 79)
    """
    mask = (1 << 64) - 1
    n = (n * 0x9E3779B97F4A7C15) & mask
    n = ((n ^ (n >> 30)) * 0xBF58476D1CE4E5B9) & mask
    n = ((n ^ (n >> 27)) * 0x94D049BB133111EB) & mask
    return n ^ (n >> 31)


def _watched(limits: Limits) -> list[tuple[str, float, int]]:
    """Signal, limit and sign of each limit that is set and not out of reach."""
    found = []
    if limits.sharpness is not None and limits.sharpness > 0:
        found.append(("sharpness", math.log(limits.sharpness), -1))
    if limits.brightness_min is not None and limits.brightness_min > 0:
        found.append(("brightness", limits.brightness_min, -1))
    if limits.brightness_max is not None and limits.brightness_max < 255:
        found.append(("brightness", limits.brightness_max, 1))
    if limits.dirt is not None and limits.dirt < 1:
        found.append(("dirt", limits.dirt, 1))
    return found


def _until(limit: float, level: float, per_hour: float, sign: int) -> float:
    """Hours until a line reaches the limit; 0 where it has, infinite where it does not move towards it."""
    left, rate = (limit - level) * sign, per_hour * sign
    if left <= 0:
        return 0.0
    return left / rate if rate > 0 else math.inf


def _text(signal: str, slope: Slope, hours: float, earliest: float, latest: float) -> str:
    moves = {
        "sharpness": f"sharpness falls by {100 * -math.expm1(slope.per_hour):.1f} % an hour",
        "brightness": f"brightness {'rises' if slope.per_hour > 0 else 'falls'} by {abs(slope.per_hour):.2g} an hour",
        "dirt": f"the probability of a dirty lens rises by {slope.per_hour:.2g} an hour",
    }[signal]
    what = "the light needs setting" if signal == "brightness" else "the lens needs cleaning"
    until = f"{latest:.0f}" if math.isfinite(latest) else "never"
    when = "now" if hours < 0.5 else f"in about {hours:.0f} hours ({earliest:.0f} to {until})"
    return f"{moves}; {what} {when}"
