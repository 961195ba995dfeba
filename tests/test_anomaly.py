"""The anomaly judge: maps of each kind, scores, thresholds, and what it refuses."""

import msgspec
import numpy as np
import pytest

from edge.anomaly import AnomalyJudge, AnomalySettings, limit_for, raw_map, read_settings, score_of
from edge.errors import BundleError, PredictorError

FEATURES = np.ones((1, 8, 8, 8), np.float32)


class Answers:
    """A predictor that answers the same always and keeps what it was asked."""

    def __init__(self, *outputs):
        self.outputs, self.asked = list(outputs), []

    def run(self, tensor):
        self.asked.append(tensor)
        return self.outputs


def settings(**changes):
    return msgspec.structs.replace(
        AnomalySettings(kind="square", smoothing=1, threshold=4.0, map_limit=4.0), **changes
    )


def spike(value, height=6, width=9):
    out = np.zeros((1, 2, height, width), np.float32)
    out[0, :, 2, 3] = value
    return out


def test_energy_falls_with_the_surest_class_and_does_not_overflow():
    logits = np.array([[9.0, 0.0, 1000.0], [0.0, 0.0, 0.0]], np.float32).reshape(1, 2, 1, 3)
    known, unsure, huge = raw_map([logits], "energy")[0]
    assert known == pytest.approx(-9.0001, abs=1e-3) and unsure == pytest.approx(-np.log(2), abs=1e-5)
    assert huge == pytest.approx(-1000)


def test_nearest_takes_the_least_and_square_the_mean_of_squares():
    out = np.array([3.0, -4.0], np.float32).reshape(1, 2, 1, 1)
    assert raw_map([out], "nearest").item() == -4.0
    assert raw_map([out], "square").item() == pytest.approx(12.5)


def test_a_spike_is_found_where_it_is_and_reaches_the_limit():
    scores = AnomalyJudge(Answers(spike(3.0)), settings()).judge(FEATURES)
    assert scores.anomaly == pytest.approx(9.0) and scores.anomalous and scores.anomaly_limit == 4.0
    assert np.unravel_index(scores.anomaly_map.argmax(), scores.anomaly_map.shape) == (2, 3)


def test_smoothing_spreads_a_spike_and_scale_brings_the_units():
    scores = AnomalyJudge(Answers(spike(3.0)), settings(smoothing=3, mean=1.0, scale=2.0)).judge(FEATURES)
    assert scores.anomaly == pytest.approx((9 / 9 - 1) / 2)
    assert (scores.anomaly_map == scores.anomaly_map.max()).sum() == 9


def test_the_recipes_limit_goes_before_the_bundles():
    judge = AnomalyJudge(Answers(spike(3.0)), settings(), limit=9.5)
    assert judge.judge(FEATURES).anomaly_limit == 9.5 and not judge.judge(FEATURES).anomalous


@pytest.mark.parametrize(("top", "expected"), [(1, 9.0), (2, 4.5), (54, 9 / 54), (10_000, 9 / 54)])
def test_the_score_is_the_mean_of_the_highest_cells(top, expected):
    assert score_of(raw_map([spike(3.0)], "square"), top) == pytest.approx(expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_never_pass_for_calm(value):
    with pytest.raises(PredictorError, match="not finite"):
        AnomalyJudge(Answers(spike(value)), settings()).judge(FEATURES)
    bad = FEATURES.copy()
    bad[0, 3, 2, 1] = value
    quiet = Answers(spike(0.0))  # an INT8 model answers calmly whatever it is given
    with pytest.raises(PredictorError, match="features are not finite"):
        AnomalyJudge(quiet, settings()).judge(bad)
    assert not quiet.asked


@pytest.mark.parametrize(
    "outputs",
    [(), (spike(1), spike(1)), (np.zeros((2, 2, 4, 4), np.float32),), (np.zeros((1, 4), np.float32),),
     (np.zeros((1, 2, 0, 4), np.float32),)],
)  # fmt: skip
def test_an_answer_of_another_shape_is_refused(outputs):
    with pytest.raises(PredictorError, match="answers \\(1, K, h, w\\)"):
        AnomalyJudge(Answers(*outputs), settings()).judge(FEATURES)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "truncated"),
        ('{"kind": "psychic", "threshold": 1, "map_limit": 1}', "psychic"),
        ('{"kind": "energy", "map_limit": 1}', "threshold"),
        ('{"kind": "energy", "threshold": 1, "map_limit": 1, "smoothing": 4}', "smoothing is 4"),
        ('{"kind": "energy", "threshold": 1, "map_limit": 1, "scale": 0}', "scale"),
        ('{"kind": "energy", "threshold": 1, "map_limit": 1, "colour": 0}', "colour"),
    ],
)
def test_settings_that_cannot_be_used_are_named(text, says):
    with pytest.raises(BundleError, match=r"anomaly\.json") as caught:
        read_settings(text.encode(), "anomaly.json")
    assert says in str(caught.value)


def test_settings_survive_json():
    mine = settings(top=5, mean=-4.25, overkill=0.01, good_parts=161)
    assert read_settings(msgspec.json.encode(mine), "x") == mine


@pytest.mark.parametrize("overkill", [0.005, 0.02])
def test_a_limit_keeps_the_wanted_overkill_on_other_good_parts(overkill):
    rng = np.random.default_rng(4)
    shares = [
        float((rng.gumbel(size=4000) >= limit_for(rng.gumbel(size=160), overkill).threshold).mean()) for _ in range(60)
    ]
    assert overkill / 4 < np.mean(shares) < 1.6 * overkill


def test_with_few_parts_a_limit_lies_over_all_of_them_and_says_so():
    scores = np.r_[np.zeros(30), 10.0]
    limit = limit_for(scores, 0.005)
    assert limit.threshold > 10.0 and limit.extrapolated


@pytest.mark.parametrize(
    ("good", "overkill", "says"),
    [(np.ones(19), 0.01, "at least 20"), ([*range(30), np.nan], 0.01, "finite"), (np.ones(30), 0.3, "overkill")],
)
def test_limits_from_nothing_are_refused(good, overkill, says):
    with pytest.raises(ValueError, match=says):
        limit_for(good, overkill)


def test_constant_scores_give_a_limit_that_they_do_not_reach():
    assert limit_for(np.ones(50), 0.005).threshold > 1.0
