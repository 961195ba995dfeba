"""A triggered station: each trigger one answer, in time or not OK, by its recipe, with its row on the disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge import event
from edge.config import Challenge, Config, Master, Plc, SimulatedCamera
from edge.errors import ConfigError, EdgeError, GenealogyError
from edge.line import PAIRS_TO_TRUST
from edge.line_assembly import make_line
from edge.line_care import override
from edge.part import Say
from edge.plc.desk import Refusal
from edge.station import FAULTS_BEFORE_RESTART
from tests.fakes import FakeClock, decoded
from tests.line_rig import BAD, BROKEN, CAMERAS, DOUBTFUL, GOOD, TOPICS, LineRig, picture

Make = Callable[..., LineRig]
SLOW = 90  # ms for one frame: two of them are over a budget of 100 ms


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[LineRig] = []

    def new(**keywords: object) -> LineRig:
        made.append(LineRig(tmp_path, **keywords))  # type: ignore[arg-type]
        return made[-1]

    yield new
    made[-1].kill()  # those before it were killed by the test


def parts(rig: LineRig) -> list[dict[str, object]]:
    """The part messages in the outbox."""
    return [decoded(row.payload) for row in rig.outbox.pending(0, 1000) if row.topic == TOPICS.part]


@pytest.mark.parametrize(
    ("first", "second", "say", "reason", "why"),
    [
        (GOOD, GOOD, Say.OK, "", "both cameras see a good part"),
        (GOOD, BAD, Say.NG, "defect.open", "the worst rules"),
        (DOUBTFUL, GOOD, Say.REVIEW, "doubt.open", "doubt is not OK"),
        (DOUBTFUL, BAD, Say.NG, "defect.open", "a defect rules over doubt"),
        (GOOD, BROKEN, Say.RETAKE, "no_frame", "a frame that could not be judged is none"),
        (BROKEN, BAD, Say.NG, "defect.open", "a defect stays one, whatever the other camera did"),
        (BROKEN, BROKEN, Say.FAIL, "processing_fault", "nothing was judged"),
    ],
)
def test_two_cameras_make_one_verdict(make: Make, first: int, second: int, say: Say, reason: str, why: str) -> None:
    rig = make()
    answer = rig.part(picture(first), picture(second))
    assert answer is not None and (answer.say, answer.reason) == (say, reason), why
    (row,) = rig.rows.find(part=answer.result_id)
    assert row.outcome == (say.value if say is not Say.FAIL else reason) and row.serial == "S1"
    (message,) = parts(rig)
    assert message["say"] == say.value and message["part"] == answer.result_id == 1
    assert [counts.used for counts in rig.ring.counts().values()] == [1, 1]
    assert rig.station.counts.balanced and rig.station.counts.triggers == rig.tally.count == 1


def test_a_missing_camera_is_not_ok_unless_the_recipe_can_do_without(make: Make) -> None:
    rig = make()
    without = rig.part(picture(), recipe=1)
    assert without is not None and (without.say, without.reason) == (Say.RETAKE, "no_frame")
    other = rig.part(picture(), number=2, recipe=3)
    assert other is not None and other.say is Say.OK, "optional there"
    alone = rig.part(picture(), number=3, recipe=2)
    assert alone is not None and alone.say is Say.OK, "not even asked there"
    assert rig.line.no_frame == {"cam2": 2}
    nothing = rig.part(number=4)
    assert nothing is not None and (nothing.say, nothing.reason) == (Say.FAIL, "capture_fault")
    assert "cam1: no " in str(parts(rig)[-1]["reasons"])


def test_when_time_is_up_the_answer_is_the_fail_safe(make: Make) -> None:
    rig = make()
    asked_ns = rig.clock.mono_ns()
    answer = rig.part(picture(takes_ms=SLOW), picture(takes_ms=SLOW))
    assert answer is not None and (answer.say, answer.reason) == (Say.FAIL, "deadline")
    assert rig.station.counts.losses["deadline"] == 1
    assert answer.until_mono_ns == asked_ns + 100_000_000
    (row,) = rig.rows.find(part=answer.result_id)
    assert row.outcome == "deadline" and "came too late" in str(row.content["detail"])


def test_what_cannot_be_done_in_time_is_not_begun(make: Make) -> None:
    """By what judging took so far; the answer then comes at once, not at the deadline."""
    rig = make()
    rig.part(picture(takes_ms=SLOW), picture(takes_ms=SLOW))
    asked_ns = rig.clock.mono_ns()
    answer = rig.part(picture(takes_ms=SLOW), picture(takes_ms=SLOW), number=2)
    assert answer is not None and answer.reason == "deadline"
    took_ms = (rig.clock.mono_ns() - asked_ns) / 1e6 - 200  # the rig waits 200 ms after each part
    assert took_ms < 100, "it was refused, but for one frame to measure by"
    found = [rig.part(picture(), picture(), number=n) for n in range(3, 60)]
    assert found[-1] is not None and found[-1].say is Say.OK, "and it does not refuse for ever"


@pytest.mark.parametrize(("shows", "say", "reason"), [(GOOD, Say.FAIL, "deadline"), (BAD, Say.NG, "defect.open")])
def test_a_camera_that_is_late_does_not_hold_up_what_another_has_seen(
    make: Make, shows: int, say: Say, reason: str
) -> None:
    """Judging takes 30 ms a frame by the estimate, so of 100 ms one may wait for some 35."""
    rig = make(prior_ms=25)
    asked_ns = rig.clock.mono_ns()
    rig.trigger(1)
    rig.shoot(picture(shows), "cam1")
    rig.shoot(picture(), "cam2", after_ms=49)  # within its window, but after that
    rig.line.turn(0)
    assert [(a.say, a.reason) for a in rig.answers] == [(say, reason)]
    assert rig.clock.mono_ns() - asked_ns < 45_000_000


def test_an_overrun_is_answered_by_name_and_counted(make: Make) -> None:
    rig = make(depth=1)
    assert rig.trigger(1) is None
    assert rig.trigger(2) is Refusal.OVERRUN and rig.trigger(3) is Refusal.OVERRUN
    for camera in ("cam1", "cam2"):
        rig.shoot(picture(), camera)
    while rig.line.turn(0):
        pass
    counts = rig.station.counts
    assert counts.losses["overrun"] == 2 and counts.triggers == rig.tally.count == 3 and len(rig.answers) == 1


def test_a_recipe_is_the_one_of_the_trigger_not_of_the_moment(make: Make) -> None:
    rig = make()
    rig.trigger(1)  # recipe 1 is set
    rig.desk.set_recipe(2)
    rig.clock.advance(0.12)
    rig.trigger(2)
    rig.shoot(picture(), "cam1")
    while rig.line.turn(0):
        pass
    rig.care.tick()
    assert [m["recipe"] for m in parts(rig)] == ["both", "first"]
    kinds = [row.kind for row in rig.rows.find(part=1)]
    assert kinds == ["part"]
    assert any(m.recipe == "first" for topic, m in rig.wire.told if isinstance(m, event.LineState))


def test_an_unknown_recipe_is_a_named_loss(make: Make) -> None:
    rig = make()
    answer = rig.part(picture(), picture(), recipe=9)
    assert answer is not None and (answer.say, answer.reason) == (Say.FAIL, "unknown_recipe")
    assert "recipe" in {row.topic.rpartition("/")[2] for row in rig.outbox.pending(0, 100)}
    assert rig.station.counts.losses["processing_fault"] == 1


def test_recipe_requests_by_name_number_and_part_number(make: Make) -> None:
    rig = make()
    for wanted, number in (("patient", 3), (2, 2)):
        answer = rig.care.set_recipe(json.dumps({"transaction": "t", "recipe": wanted}).encode())
        assert answer.ok and rig.desk.signals().recipe == number
    with pytest.raises(EdgeError, match="there is no recipe 'patent', did you mean `patient`"):
        rig.care.set_recipe(b'{"transaction": "t", "recipe": "patent"}')
    with pytest.raises(EdgeError, match="the request is not understood"):
        rig.care.set_recipe(b'{"transaction": "t"}')
    assert rig.desk.signals().recipe == 2


def test_what_is_not_on_the_disk_is_not_said(make: Make) -> None:
    rig = make()
    rig.store.full = True
    answer = rig.part(picture(), picture())
    assert answer is not None and (answer.say, answer.result_id) == (Say.FAIL, 1)
    assert [row.kind for row in rig.rows.find(part=1)] == ["part", "void"], "the row was there before the ledger failed"
    rig.store.full = False
    again = rig.part(picture(), picture(), number=2)
    assert again is not None and (again.say, again.result_id) == (Say.OK, 2)
    assert rig.station.counts.losses["processing_fault"] == 1 and rig.station.counts.balanced


def test_a_row_without_its_ledger_is_void_after_a_kill(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make()
    rig.part(picture(), picture())

    def dies(*_: object) -> list[int]:
        raise SystemExit

    monkeypatch.setattr(rig.store, "add", dies)  # between row and ledger
    with pytest.raises(SystemExit):
        rig.part(picture(), picture(), number=2)
    assert len(rig.answers) == 1, "it was not said"
    rig.kill()
    again = make(clock=rig.clock)
    assert [row.kind for row in again.rows.find(part=2)] == ["part", "void"]
    assert again.station.counts.losses["shutdown"] == 1 and again.station.counts.balanced
    answer = again.part(picture(), picture(), number=9)
    assert answer is not None and answer.result_id > 2, "no number comes twice"


def test_an_ordered_stop_answers_what_waits(make: Make) -> None:
    rig = make()
    rig.trigger(1)
    rig.trigger(2)
    rig.trigger(3)
    rig.stop()
    assert [(a.trigger.number, a.say, a.reason) for a in rig.answers] == [
        (1, Say.FAIL, "shutdown"),
        (2, Say.FAIL, "shutdown"),
    ]
    counts = rig.station.counts
    assert counts.losses["shutdown"] == 2 and counts.losses["overrun"] == 1 and counts.triggers == rig.tally.count
    assert rig.trigger(4) is Refusal.NOT_RUNNING


def test_a_stop_while_it_waits_for_a_frame(make: Make) -> None:
    rig = make()
    rig.trigger(1)
    rig.stopping = True
    rig.line.turn(0)
    assert rig.answers[0].reason == "shutdown"


def test_recipe_and_challenge_outlive_a_restart(make: Make) -> None:
    rig = make(challenge=Challenge(master=[Master(serial="M1", defect="open")], overdue="block"))
    rig.desk.set_recipe(3)
    held = rig.part(picture(), picture())
    assert held is not None and (held.say, held.reason) == (Say.RETAKE, "challenge.overdue")
    assert rig.desk.signals().error == "challenge.overdue"
    master = rig.part(picture(BAD), picture(), number=2, serial="M1")
    assert master is not None and master.say is Say.NG
    passed = rig.part(picture(), picture(), number=3)
    assert passed is not None and passed.say is Say.OK and rig.desk.signals().error == ""
    rig.stop()
    rig.kill()
    again = make(clock=rig.clock, challenge=Challenge(master=[Master(serial="M1", defect="open")], overdue="block"))
    assert again.desk.signals().recipe == 3
    passed = again.part(picture(), picture(), number=4)
    assert passed is not None and passed.say is Say.OK, "the master was found an hour ago at most"


def test_a_missed_master_never_passes_itself_and_blocks_the_rest(make: Make) -> None:
    rig = make(challenge=Challenge(master=[Master(serial="M1")]))
    rig.part(picture(BAD), picture(), serial="M1")
    missed = rig.part(picture(), picture(), number=2, serial="M1")
    assert missed is not None and (missed.say, missed.reason) == (Say.RETAKE, "challenge.missed")
    held = rig.part(picture(), picture(), number=3)
    assert held is not None and held.say is Say.RETAKE
    bad = rig.part(picture(BAD), picture(), number=4)
    assert bad is not None and bad.say is Say.NG, "a bad part is told as bad all the same"
    assert any(row.topic.endswith("/alarm/challenge.missed") for row in rig.outbox.pending(0, 1000))
    rig.part(picture(BAD), picture(), number=5, serial="M1")
    passed = rig.part(picture(), picture(), number=6)
    assert passed is not None and passed.say is Say.OK


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"part": 1, "verdict": "OK", "operator": "mk", "reason": "a hair"}, "part 1: OK by mk"),
        ({"part": 1, "verdict": "REVIEW", "operator": "mk", "reason": "a hair"}, 'must be one of "OK", "NG"'),
        ({"part": 1, "verdict": "OK", "operator": " ", "reason": "a hair"}, "operator and reason must say something"),
        ({"part": 77, "verdict": "OK", "operator": "mk", "reason": "a hair"}, "77"),
        ({"part": "one"}, "not understood"),
    ],
)
def test_an_override_is_a_row(make: Make, request_: dict[str, object], expected: str) -> None:
    rig = make()
    rig.part(picture(BAD), picture())
    payload = json.dumps({"transaction": "t", **request_}).encode()
    try:
        text = override(rig.rows, payload).text
        assert [row.kind for row in rig.rows.find(part=1)] == ["part", "override"]
    except EdgeError as error:
        text = str(error)
    assert expected in text


def test_a_late_ok_gets_its_row(make: Make) -> None:
    rig = make()
    answer = rig.part(picture(), picture())
    assert answer is not None
    rig.care.late(answer, False)
    rig.care.answered(answer, 120.0, Say.LATE)
    rig.care.tick()
    assert [row.kind for row in rig.rows.find(part=1)] == ["part", "late"]
    health = rig.care.health(rig.line.no_frame, rig.ring, rig.admission)
    assert health.answers is not None and health.answers.max == 120.0 and health.recent is not None
    assert rig.care.health(rig.line.no_frame, rig.ring, rig.admission).recent is None


def test_stamps_of_the_time_of_an_inference_are_doubted(make: Make) -> None:
    """A trigger that came while a model ran was stamped too late by as much as nobody knows."""
    rig = make(clock=FakeClock())
    rig.part(picture(takes_ms=30), picture(takes_ms=30), recipe=3)
    rig.gatherer.held(rig.clock.mono_ns() - 20_000_000, rig.clock.mono_ns() + 1_000_000)
    rig.part(picture(), picture(), number=2, recipe=3)
    first, second = (m["looks"][0]["uncertainty_ms"] for m in parts(rig))  # type: ignore[index]
    assert second >= first + 20 or "missing" in str(parts(rig)[1])


def test_the_plc_is_shown_what_keeps_parts_from_passing(make: Make) -> None:
    rig = make()
    assert rig.desk.signals().error == ""
    rig.station.alarm("camera_cam1", "error", "camera cam1 is stalled", "Check its cable.")
    rig.clock.advance(1)
    rig.care.tick()
    assert rig.desk.signals().error == "camera"
    rig.station.over("camera_cam1")
    rig.store.full = True
    rig.part(picture(), picture())
    rig.clock.advance(1)
    rig.care.tick()
    assert rig.desk.signals().error == "disk"
    rig.store.full = False
    rig.part(picture(), picture(), number=2)
    rig.clock.advance(1)
    rig.care.tick()
    assert rig.desk.signals().error == ""


@pytest.mark.parametrize(
    ("owner", "name", "say", "why"),
    [
        ("gatherer", "gather", Say.FAIL, "while it waits for frames"),
        ("care", "weigh", Say.FAIL, "between judgement and disk"),
        ("station", "settle_part", Say.FAIL, "on the way to the disk"),
        ("rows", "append_part", Say.FAIL, "with an error that the genealogy does not promise"),
        ("admission", "add_settle", Say.OK, "after the answer"),
        ("station", "afterwards", Say.OK, "after the answer"),
    ],
)
def test_whatever_fails_a_trigger_is_counted_and_answered_once(
    make: Make, monkeypatch: pytest.MonkeyPatch, owner: str, name: str, say: Say, why: str
) -> None:
    rig = make()

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr(getattr(rig, owner), name, fails)
    with pytest.raises(RuntimeError):
        rig.part(picture(), picture())
    assert [a.say for a in rig.answers] == [say], why
    counts = rig.station.counts
    assert counts.balanced and counts.triggers == rig.tally.count == 1 and not rig.desk.signals().busy
    assert counts.losses["processing_fault"] == (say is Say.FAIL)


def test_a_fault_between_disk_and_answer_does_not_count_a_trigger_twice(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make()
    real = rig.station.settle_part

    def fails(*arguments: object) -> bool:
        real(*arguments)  # type: ignore[arg-type]
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr(rig.station, "settle_part", fails)
    with pytest.raises(RuntimeError):
        rig.part(picture(), picture())
    assert [(a.say, a.result_id) for a in rig.answers] == [(Say.FAIL, 1)]
    assert rig.station.counts.triggers == rig.tally.count == 1


def test_at_the_stop_one_part_that_fails_does_not_cost_the_others_their_answer(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make()
    rig.trigger(1)
    rig.trigger(2)
    monkeypatch.setattr(rig.rows, "append_part", lambda *_: 1 / 0)
    rig.stop()
    assert [(a.trigger.number, a.say) for a in rig.answers] == [(1, Say.FAIL), (2, Say.FAIL)]
    assert rig.station.counts.triggers == rig.tally.count == 2


@pytest.mark.parametrize(
    ("recipe", "say", "why"),
    [(1, Say.FAIL, "a part wants both cameras, and the time for one of them was up"),
     (4, Say.OK, "it can do without the second, also when that was waited for until there was no time left")],
)  # fmt: skip
def test_time_that_is_up_for_an_optional_camera_loses_no_part(make: Make, recipe: int, say: Say, why: str) -> None:
    rig = make(prior_ms=25)
    rig.trigger(1, recipe=recipe)
    rig.shoot(picture(), "cam1")
    rig.shoot(picture(), "cam2", after_ms=49)  # within its window, but after that
    rig.line.turn(0)
    assert [a.say for a in rig.answers] == [say], why


def test_alarms_of_the_line_end_when_their_cause_does(make: Make) -> None:
    rig = make()
    rig.part(picture(), picture(), recipe=9)
    assert "recipe" in rig.station.standing()
    rig.part(picture(), picture(), number=2)
    assert "recipe" not in rig.station.standing()


def test_parts_that_come_too_close_are_one_alarm_until_they_do_no_more(make: Make) -> None:
    rig = make()
    for number in range(3):  # each 60 ms after the one before, and the recipe says 100
        asked_ns = rig.clock.mono_ns()
        rig.trigger(number)
        for camera in CAMERAS:
            rig.shoot(picture(takes_ms=1), camera, after_ms=45)
        rig.line.turn(0)
        rig.clock.now_ns = asked_ns + 60_000_000
    told = [decoded(r.payload) for r in rig.outbox.pending(0, 1000) if r.topic.endswith("/alarm/pairing")]
    assert len(told) == 1, "a line that is too quick does not fill the outbox with alarms"
    assert "is nearer to trigger 1" in str(told[0]["text"])
    rig.clock.advance(1)
    stood = 0
    while "pairing" in rig.station.standing() and stood < 2 * PAIRS_TO_TRUST:
        stood += 1
        rig.part(picture(), picture(), number=stood)
    assert PAIRS_TO_TRUST - 3 < stood <= PAIRS_TO_TRUST, "it stands until parts are told apart again for a while"


def test_only_what_had_no_frame_is_counted_as_that(make: Make) -> None:
    rig = make()
    rig.part(picture(takes_ms=120), picture())  # the second is not judged: no time was left
    (message,) = parts(rig)
    assert message["missing"] == {"cam2": "no time was left for 1 of 2 frames"} and len(message["looks"]) == 1  # type: ignore[arg-type]
    rig.part(picture(BROKEN), picture(), number=2)
    assert rig.line.no_frame == {}


def test_a_disk_that_is_well_again_is_told_without_a_part(make: Make) -> None:
    """The PLC is shown `disk`, and a line that waits for its end before it triggers again must not wait for ever."""
    rig = make()
    rig.store.full = True
    rig.part(picture(), picture())
    rig.clock.advance(1)
    rig.care.tick()
    assert rig.desk.signals().error == "disk"
    rig.store.full = False
    rig.station.save()
    rig.clock.advance(1)
    rig.care.tick()
    assert rig.desk.signals().error == ""


def test_numbers_of_parts_go_on_where_the_outbox_was_lost(make: Make, tmp_path: Path) -> None:
    rig = make()
    rig.part(picture(), picture())
    rig.part(picture(), picture(), number=2)
    rig.kill()
    for path in tmp_path.glob("outbox.db*"):
        path.unlink()
    again = make(clock=rig.clock)
    assert again.station.counts.triggers == again.tally.count == 0, "counting begins anew"
    answer = again.part(picture(), picture(), number=3)
    assert answer is not None and answer.result_id == 3, "the PLC saw 1 and 2 before"


@pytest.mark.parametrize(("recipe", "say"), [(1, Say.RETAKE), (2, Say.OK)])
def test_a_frame_is_judged_by_the_limits_of_the_triggers_recipe(make: Make, recipe: int, say: Say) -> None:
    """A blurred frame, which the first recipe's gate refuses, while the other recipe is set."""
    rig = make()
    rig.desk.set_recipe(3 - recipe)
    answer = rig.part(picture(sharp=False), picture(sharp=False), recipe=recipe)
    assert answer is not None and answer.say is say


def test_a_master_whose_defect_no_model_can_find_is_refused_at_the_start() -> None:
    """It would be missed each time, and parts held back for ever."""
    master = Challenge(master=[Master(serial="M1", defect="shrt")])
    config = Config(camera=[SimulatedCamera(id="cam1")], plc=Plc(port="/dev/plc"), challenge=master)
    incumbent = SimpleNamespace(product=SimpleNamespace(classes=("open", "short")), books={})
    with pytest.raises(ConfigError, match="`shrt` is no class of this bundle, did you mean `short`"):
        make_line(config, incumbent, *[None] * 6)  # type: ignore[arg-type]


@pytest.mark.parametrize("lost", ["overrun", "unknown_recipe"])
def test_a_trigger_without_a_look_has_fired_its_camera_all_the_same(make: Make, lost: str) -> None:
    """Where frames are counted, those of the trigger after it must not be taken for its own."""
    rig = make(pairing="counter", depth=1)

    def fire(number: int, recipe: int = 3) -> None:
        rig.trigger(number, recipe=recipe)
        for camera in CAMERAS:
            rig.shoot(picture(), camera)
        rig.ring.wait(rig.clock.mono_ns() + 5_000_000)
        rig.clock.advance(0.12)

    fire(1)
    if lost == "overrun":
        fire(2)
    while rig.line.turn(0):
        pass
    if lost == "unknown_recipe":
        fire(2, recipe=9)
        rig.line.turn(0)
    fire(3)
    rig.line.turn(0)
    message = parts(rig)[-1]
    assert message["trigger"] == 3 and [look["frame"] for look in message["looks"]] == [3, 3]  # type: ignore[attr-defined]


def test_the_count_of_triggers_follows_the_ledger_where_a_power_cut_took_its_last_moments(
    make: Make, tmp_path: Path
) -> None:
    rig = make()
    rig.part(picture(), picture())
    rig.kill()
    (tmp_path / "triggers").unlink()
    again = make(clock=rig.clock)
    again.part(picture(), picture(), number=2)
    assert again.station.counts.triggers == again.tally.count == 2


def test_a_drift_watch_holds_stamps_up_as_an_inference_does(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make()
    monkeypatch.setattr(rig.station, "afterwards", lambda _: rig.clock.advance(0.03))
    rig.part(picture(), recipe=2)
    held_ms = [(ended - began) / 1e6 for began, ended in rig.gatherer._holds]
    assert held_ms == [35.0], "one after the other: as one"


def test_at_the_stop_nobody_is_told_any_more_that_the_station_is_ready(make: Make) -> None:
    rig = make()
    rig.care.tick()
    rig.stop()
    states = [m.ready for _, m in rig.wire.told if isinstance(m, event.LineState)]
    assert states == [True, False], "the message stays at the broker"


def test_a_row_that_could_not_be_marked_as_void_is_marked_before_any_other_is_stored(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes the row, then neither the ledger nor the mark; the PLC hears another number each time."""
    rig = make()
    rig.store.full = True
    real = rig.rows.append

    def full(kind: str, body: dict[str, object]) -> str:
        raise GenealogyError("disk full")

    monkeypatch.setattr(rig.rows, "append", full)
    for number in (1, 2):
        rig.part(picture(), picture(), number=number)
    rig.store.full = False
    rig.part(picture(), picture(), number=3)
    rig.station.save()
    assert rig.outbox.ledger()[1] == 0, "so that a start from here marks the row"
    monkeypatch.setattr(rig.rows, "append", real)
    rig.part(picture(), picture(), number=4)
    assert [(a.say, a.result_id) for a in rig.answers] == [*((Say.FAIL, n) for n in (1, 2, 3)), (Say.OK, 4)]
    assert [row.kind for row in rig.rows.find(part=1)] == ["part", "void"]
    assert rig.rows.find(part=2) == rig.rows.find(part=3) == [] and rig.outbox.ledger()[1] == 4


def test_a_model_that_fails_again_and_again_ends_the_run_with_every_part_answered(make: Make) -> None:
    rig = make()
    for number in range(1, FAULTS_BEFORE_RESTART // 2):
        rig.part(picture(BROKEN), picture(BROKEN), number=number)
    with pytest.raises(EdgeError, match="10 frames in a row could not be judged"):
        rig.part(picture(BROKEN), picture(BROKEN), number=99)
    assert len(rig.answers) == FAULTS_BEFORE_RESTART // 2 and rig.answers[-1].trigger.number == 99
    assert rig.station.counts.losses["processing_fault"] == rig.tally.count == FAULTS_BEFORE_RESTART // 2


def test_a_number_that_was_said_without_a_row_does_not_come_again_after_a_kill(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make()

    def full(*_: object) -> str:
        raise GenealogyError("disk full")

    monkeypatch.setattr(rig.rows, "append_part", full)
    rig.store.full = True  # else the alarm would bring the number to the disk
    said = rig.part(picture(), picture())
    rig.kill()
    again = make(clock=rig.clock)
    answer = again.part(picture(), picture(), number=2)
    assert said is not None and answer is not None and (said.result_id, answer.result_id) == (1, 2)


def test_a_recipe_that_is_gone_after_a_restart_is_told(make: Make, tmp_path: Path) -> None:
    (tmp_path / "line.json").write_text('{"recipe": 7}')
    rig = make()
    assert rig.desk.signals().recipe == 1 and "recipe_gone" in rig.station.standing()
    (alarm,) = (decoded(row.payload) for row in rig.outbox.pending(0, 10) if row.topic.endswith("/recipe_gone"))
    assert alarm["text"] == "recipe 7, which was set before, is gone: both is set"
    rig.desk.set_recipe(2)
    rig.care.tick()
    assert "recipe_gone" not in rig.station.standing()


@pytest.mark.parametrize(
    ("holds_ms", "stamp_ms", "late_ms", "why"),
    [
        ([], 50, 0, "nothing ran"),
        ([(0, 37)], 20, 20, "it may have come when the model began"),
        ([(0, 37)], 39, 37, "a thread that stood still has just caught up"),
        ([(0, 37)], 45, 0, "long after it"),
        ([(10, 37)], 5, 0, "before it"),
        ([(0, 37), (38, 75)], 76, 75, "one after the other without a rest"),
        ([(0, 37), (60, 97)], 98, 37, "with a rest between them"),
    ],
)
def test_how_late_a_stamp_may_be(
    make: Make, holds_ms: list[tuple[int, int]], stamp_ms: int, late_ms: int, why: str
) -> None:
    gatherer = make().gatherer
    for began, ended in holds_ms:
        gatherer.held(began * 1_000_000, ended * 1_000_000)
    assert gatherer._lateness_ns(stamp_ms * 1_000_000) == late_ms * 1_000_000, why


def test_an_inference_that_was_over_before_takes_nothing_from_the_reach(make: Make) -> None:
    """Ten parts a second, 40 ms each, and a camera that runs free at 30 a second: the nearest frame is 15 ms off."""
    rig = make()
    rig.gatherer.held(rig.clock.mono_ns() - 60_000_000, rig.clock.mono_ns() - 20_000_000)
    rig.trigger(1, recipe=2)
    rig.shoot(picture(), "cam1", after_ms=15)
    rig.line.turn(0)
    assert rig.answers[0].say is Say.OK
