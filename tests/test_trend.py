"""The trend of a camera: what it forecasts, when it is silent, and what it makes of bad input."""

import json
import math
import tracemalloc

import numpy as np
import pytest

from edge.errors import ConfigError
from edge.records import GateResult
from edge.trend import HOURS, SAMPLE, Limits, Trend, Update, theil_sen

HOUR = 3600.0
START = 1_795_000_000 // 3600 * 3600.0


def gate(sharpness=1000.0, brightness=120.0, dirt=None):
    probabilities = {} if dirt is None else {"ok": 1 - dirt, "dirty_lens": dirt}
    return GateResult(True, None, sharpness, brightness, 0.0, probabilities=probabilities)


def run(hours, measure, trend=None, frames=30, start=START):
    trend = trend or Trend()
    for hour in range(hours):
        for k in range(frames):
            assert trend.update(measure(hour), start + hour * HOUR + k * HOUR / frames) is Update.COUNTED
    return trend


def noisy(rng, per_hour):
    return lambda hour: gate(1000 * math.exp(per_hour * hour + rng.normal(0, 0.3)), 120 + rng.normal(0, 3))


def test_dirt_that_gathers_is_forecast_with_an_interval_that_holds():
    truth = math.log(1000 / 400) / 0.01 - 47  # hours from the last closed one
    held, hours = 0, []
    for seed in range(40):
        trend = run(49, noisy(np.random.default_rng(seed), -0.01), frames=10)
        forecast = trend.forecast(Limits(sharpness=400.0))
        assert forecast.signal == "sharpness" and "the lens needs cleaning in about" in forecast.text
        hours.append(forecast.hours)
        held += forecast.earliest <= truth <= forecast.latest
    assert held >= 35, "a 95 % interval, of 40"
    assert np.median(hours) == pytest.approx(truth, rel=0.1)


def test_a_steady_camera_is_hardly_ever_said_to_change():
    silent = sum(
        run(24, noisy(np.random.default_rng(seed), 0.0), frames=6).forecast(
            Limits(sharpness=10.0, brightness_max=200.0)
        )
        is None
        for seed in range(60)
    )
    assert silent >= 58


def test_the_probability_of_a_dirty_lens_is_forecast():
    forecast = run(20, lambda hour: gate(dirt=0.1 + 0.01 * hour)).forecast(Limits(dirt=0.5))
    assert forecast.signal == "dirt" and forecast.hours == pytest.approx(22, abs=0.5)


def test_light_that_fails_is_another_thing_to_do():
    forecast = run(20, lambda hour: gate(brightness=120 - hour)).forecast(Limits(brightness_min=80.0))
    assert forecast.signal == "brightness" and forecast.text.endswith(
        "the light needs setting in about 22 hours (22 to 22)"
    )


def test_what_is_already_over_its_limit_is_now():
    forecast = run(20, lambda hour: gate(brightness=120 - 5 * hour)).forecast(Limits(brightness_min=80.0))
    assert forecast.hours == 0 and forecast.text.endswith("needs setting now")


@pytest.mark.parametrize(
    ("hours", "limits", "why"),
    [
        (8, Limits(sharpness=900.0), "seven closed hours are too few"),
        (30, Limits(brightness_min=20.0, brightness_max=240.0), "brightness does not move"),
        (30, Limits(sharpness=1e-3), "so far ahead that nothing can be said"),
        (30, Limits(), "no limit"),
        (30, Limits(dirt=0.5), "no classifier looked"),
    ],
)
def test_silence(hours, limits, why):
    assert run(hours, lambda hour: gate(1000 * math.exp(-0.01 * hour))).forecast(limits) is None, why


def test_an_hour_of_another_product_does_not_turn_the_line():
    def measure(hour):
        return gate(5.0 if hour in (7, 19) else 1000 * math.exp(-0.01 * hour))

    assert run(30, measure).slope("sharpness").per_hour == pytest.approx(-0.01, rel=0.01)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_named_and_not_counted(value):
    trend = run(10, lambda hour: gate(1000 - hour))
    before = trend.state()
    assert trend.update(gate(sharpness=value), START + 10 * HOUR) is Update.NOT_A_NUMBER
    assert trend.update(gate(brightness=value), START + 10 * HOUR) is Update.NOT_A_NUMBER
    assert trend.update(gate(), value) is Update.NOT_A_NUMBER
    assert trend.state() == before


def test_clocks_that_jump_begin_the_trend_anew():
    for ts, outcome in ((START - 5 * HOUR, Update.CLOCK_WENT_BACK), (START + 1e8, Update.CLOCK_JUMPED_AHEAD)):
        trend = run(20, lambda hour: gate(1000 * math.exp(-0.01 * hour)))
        assert trend.update(gate(), ts) is outcome
        assert trend.slope("sharpness") is None
        assert run(20, lambda hour: gate(), trend, start=ts + HOUR).slope("sharpness") is not None, "it goes on"


def test_a_small_step_back_and_a_holiday_are_no_jumps():
    trend = run(10, lambda hour: gate())
    assert trend.update(gate(), START + 9 * HOUR - 2) is Update.COUNTED
    assert trend.update(gate(), START + 15 * 24 * HOUR) is Update.COUNTED


def test_another_resolution_begins_the_trend_anew():
    trend = Trend()
    assert trend.update(gate(), START, (480, 640)) is Update.COUNTED
    assert trend.update(gate(), START + 1) is Update.COUNTED, "size unknown"
    assert trend.update(gate(), START + 2, (960, 1280)) is Update.RESOLUTION_CHANGED
    assert trend.update(gate(), START + 3, (960, 1280)) is Update.COUNTED


def test_a_restart_changes_nothing():
    measure = noisy(np.random.default_rng(4), -0.02)
    one = run(20, measure, frames=200)
    other = Trend()
    other.restore(json.loads(json.dumps(one.state())))
    assert other.state() == one.state()
    for trend in (one, other):
        run(6, lambda hour: gate(700.0 - hour), trend, start=START + 20 * HOUR, frames=200)
    assert other.state() == one.state() and other.slope("sharpness") == one.slope("sharpness")


@pytest.mark.parametrize(
    "damage", [{"version": 9}, {"closed": 3}, {"kept": [[1.0]]}, {"last_ts": "x"}, {"hour": [1]}, {"closed": [[1, 2]]}]
)
def test_a_damaged_state_is_refused_and_the_trend_usable(damage):
    trend = Trend()
    with pytest.raises(ConfigError, match="the trend begins anew"):
        trend.restore({**run(10, lambda hour: gate()).state(), **damage})
    assert trend.update(gate(), START) is Update.COUNTED


def test_memory_is_constant_and_the_sample_is_fair():
    trend = run(HOURS + 40, lambda hour: gate(), frames=6)
    assert len(trend.state()["closed"]) == HOURS
    rising = Trend()
    for k in range(20_000):
        rising.update(gate(math.exp(k / 20_000)), START + k * HOUR / 20_001)
    kept = np.array(rising.state()["kept"])[:, 0]
    assert len(kept) == SAMPLE and 0.4 < np.median(kept) < 0.6, "neither the first frames nor the last"
    tracemalloc.start()
    run(3, lambda hour: gate(), rising, frames=2000, start=START + HOUR)
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 100_000


def test_slopes_agree_with_published_tables():
    slope = theil_sen(list(range(10)), [9, 7, 8, 6, 5, 4, 3.5, 2, 1, 0.5])
    assert slope.p_value == pytest.approx(0.00018, abs=5e-5), "Kendall's S = -43 of 45, variance 125"
    assert slope.low <= slope.per_hour <= slope.high < 0
    assert theil_sen([0, 1, 2], [4, 4, 4]).p_value == 1.0
