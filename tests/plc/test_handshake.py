"""The handshake's rules, without a port: a desk, a clock that is told, and a PLC that is played line by line."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import replace

import pytest

from edge.part import Answer, Say, Trigger
from edge.plc import desk as desk_module
from edge.plc.desk import Desk, Refusal
from edge.plc.handshake import ACKS_AWAITED, REMEMBER_S, REMEMBERED, Counts, Handshake, Saying

S = 1_000_000_000
BEAT_S, ACK_S = 1.0, 0.5


@pytest.fixture(autouse=True)
def nobody_else_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "SAID_S", 0.0)  # there is no link's thread to wait for


class Bench:
    """A handshake with both of its sides in hand."""

    def __init__(self, depth: int = 4, wire_ns: int = 0) -> None:
        self.desk = Desk(depth, frozenset({1, 2}), 1)
        self.desk.open()
        self.answered: list[tuple[int, float, Say]] = []
        self.late: list[tuple[int, bool]] = []
        self.shake = Handshake(
            self.desk,
            BEAT_S,
            ACK_S,
            lambda answer, ms, said: self.answered.append((answer.result_id, ms, said)),
            lambda answer, again: self.late.append((answer.result_id, again)),
            wire_ns,
        )
        self.now = 100 * S
        self.results = 0
        self.shake.connected(self.now)

    def wait(self, seconds: float) -> None:
        self.now += round(seconds * S)

    def trigger(self, number: int, serial: str = "A", recipe: int = 1) -> Trigger:
        return Trigger(number, serial, recipe, self.now, 0.0)

    def hear(self, number: int, serial: str = "A", recipe: int = 1) -> Trigger:
        trigger = self.trigger(number, serial, recipe)
        self.receipt = self.shake.trigger(trigger)
        return trigger

    def settle(self, say: Say = Say.OK, until_s: float | None = None) -> Answer:
        """The station takes the next trigger and answers it; `until_s` from now."""
        taken = self.desk.take(0)
        assert taken is not None and taken.trigger is not None
        self.results += 1
        until_ns = None if until_s is None else self.now + round(until_s * S)
        answer = Answer(taken.trigger, self.results, say, until_mono_ns=until_ns)
        self.desk.answer(answer)
        return answer

    def say(self) -> list[Saying]:
        """Everything that is due, said whole."""
        said = []
        while (saying := self.shake.next_due(self.now)) is not None:
            self.shake.sent(saying, self.now)
            said.append(saying)
        return said

    def words(self) -> list[tuple[int, Say]]:
        return [(saying.answer.result_id, saying.say) for saying in self.say()]

    def rounds(self, seconds: float) -> list[tuple[int, Say]]:
        """What is said when time goes on in small steps."""
        said = []
        for _ in range(round(seconds / 0.1)):
            self.wait(0.1)
            said += self.words()
        return said


def test_a_trigger_is_answered_once_and_timed_to_the_end_of_the_write() -> None:
    bench = Bench()
    bench.hear(7)
    assert (bench.receipt.refusal, bench.receipt.new, bench.receipt.answered) == (None, True, False)
    bench.settle(Say.NG)
    saying = bench.shake.next_due(bench.now)
    assert saying is not None and (saying.say, saying.first) == (Say.NG, True)
    bench.wait(0.0125)
    bench.shake.sent(saying, bench.now)
    assert bench.answered == [(1, 12.5, Say.NG)]
    assert bench.shake.acknowledge(1)
    assert bench.rounds(10) == []
    assert bench.shake.counts() == Counts(answered=1)


def test_an_answer_that_could_not_be_written_stays_due() -> None:
    bench = Bench()
    bench.hear(7)
    bench.settle()
    assert bench.shake.next_due(bench.now) is not None
    assert bench.words() == [(1, Say.OK)]
    assert len(bench.answered) == 1


def test_without_ack_an_answer_is_said_again_and_then_given_up() -> None:
    bench = Bench()
    bench.hear(7)
    bench.settle()
    assert bench.words() == [(1, Say.OK)]
    assert len(bench.rounds(ACK_S * (ACKS_AWAITED + 3))) == ACKS_AWAITED
    counts = bench.shake.counts()
    assert (counts.answered, counts.unacknowledged, len(bench.answered)) == (1, 1, 1)


def test_the_same_trigger_again_gets_what_there_is_and_no_second_part() -> None:
    bench = Bench()
    bench.hear(7)
    bench.hear(7)
    assert (bench.receipt.new, bench.receipt.answered) == (False, False)
    bench.settle()
    assert bench.words() == [(1, Say.OK)]
    bench.hear(7)
    assert (bench.receipt.new, bench.receipt.answered) == (False, True)
    assert bench.words() == [(1, Say.OK)]
    assert bench.desk.idle()
    assert bench.shake.counts().repeated == 2


def test_a_repetition_brings_an_answer_back_that_was_given_up() -> None:
    bench = Bench()
    bench.hear(7)
    bench.settle()
    bench.say()
    bench.rounds(4)
    bench.hear(7)
    assert bench.receipt.answered
    assert bench.words() == [(1, Say.OK)]


@pytest.mark.parametrize(
    ("again", "after_s", "acknowledged", "why"),
    [
        (("B", 1), 0.1, False, "another serial is another part"),
        (("A", 2), 0.1, False, "another recipe is another part"),
        (("A", 1), 0.1, True, "the PLC has the answer to the first: it means a new part"),
        (("A", 1), REMEMBER_S + 1, False, "nobody repeats a trigger after so long: the number came round"),
    ],
)
def test_a_number_used_anew_is_a_new_part(again: tuple[str, int], after_s: float, acknowledged: bool, why: str) -> None:
    bench = Bench()
    bench.hear(7)
    bench.settle()
    bench.say()
    if acknowledged:
        assert bench.shake.acknowledge(1)
    bench.wait(after_s)
    bench.hear(7, *again)
    assert bench.receipt.new, why
    bench.settle(Say.NG)
    assert bench.rounds(4)[:1] == [(2, Say.NG)], "and the first answer is not said any more"
    assert (1, Say.OK) not in bench.rounds(4)


def test_the_answer_of_a_superseded_trigger_is_never_said() -> None:
    bench = Bench()
    bench.hear(7, "A")
    bench.hear(7, "B")
    bench.settle(Say.OK)
    bench.settle(Say.NG)
    assert bench.words() == [(2, Say.NG)]
    assert bench.shake.counts().unacknowledged == 1


def test_an_answer_ready_but_not_said_is_superseded_too() -> None:
    bench = Bench()
    bench.hear(7, "A")
    bench.settle(Say.OK)
    bench.shake.collect(bench.now)
    bench.hear(7, "B")
    assert bench.words() == []
    bench.settle(Say.NG)
    assert bench.words() == [(2, Say.NG)]


def test_a_trigger_that_waits_long_for_its_answer_is_not_forgotten() -> None:
    bench = Bench()
    bench.hear(7)
    bench.wait(3 * REMEMBER_S)
    bench.hear(7)
    assert not bench.receipt.new
    bench.settle()
    assert bench.words() == [(1, Say.OK)]


def test_an_overrun_is_named_again_and_counted_once() -> None:
    bench = Bench(depth=1)
    bench.hear(1)
    for _ in range(3):
        bench.hear(2)
        assert bench.receipt.refusal is Refusal.OVERRUN
    taken = [bench.desk.take(0), bench.desk.take(0)]
    assert sum(one.overruns for one in taken if one is not None) == 1
    assert bench.shake.counts().overruns == 1


def test_before_the_station_runs_a_trigger_may_be_tried_again() -> None:
    bench = Bench()
    bench.desk = Desk(2, frozenset({1}), 1)
    bench.shake = Handshake(bench.desk, BEAT_S, ACK_S)
    bench.hear(7)
    assert bench.receipt.refusal is Refusal.NOT_RUNNING
    bench.desk.open()
    bench.hear(7)
    assert (bench.receipt.refusal, bench.receipt.new) == (None, True)


@pytest.mark.parametrize(
    ("say", "until_s", "after_s", "wire_ns", "expected", "why"),
    [
        (Say.OK, 0.1, 0.05, 0, Say.OK, "in time"),
        (Say.OK, 0.1, 0.1, 0, Say.OK, "at the last moment"),
        (Say.OK, 0.1, 0.11, 0, Say.LATE, "too late"),
        (Say.OK, 0.1, 0.098, 5_000_000, Say.LATE, "it would end on the wire after its time"),
        (Say.NG, 0.1, 5.0, 0, Say.NG, "what does not pass a part may be late"),
        (Say.FAIL, 0.1, 5.0, 0, Say.FAIL, "the same"),
        (Say.OK, None, 5.0, 0, Say.OK, "there is no deadline"),
    ],
)
def test_an_ok_is_said_in_time_or_as_late(
    say: Say, until_s: float | None, after_s: float, wire_ns: int, expected: Say, why: str
) -> None:
    bench = Bench(wire_ns=wire_ns)
    bench.hear(7)
    bench.settle(say, until_s)
    bench.wait(after_s)
    assert bench.words() == [(1, expected)], why
    assert bench.late == ([(1, False)] if expected is Say.LATE else [])
    assert bench.shake.counts().late == (expected is Say.LATE)


def test_an_ok_said_in_time_is_repeated_as_late_after_its_time() -> None:
    bench = Bench()
    bench.hear(7)
    bench.settle(Say.OK, 0.1)
    assert bench.words() == [(1, Say.OK)]
    said = bench.rounds(5)
    assert set(said) == {(1, Say.LATE)}
    bench.hear(7)
    assert bench.words() == [(1, Say.LATE)]
    assert bench.late == [(1, True)], "told once"
    assert [said for _, _, said in bench.answered] == [Say.OK]


def test_after_a_reconnection_all_that_has_no_ack_is_said_first_in_order() -> None:
    bench = Bench()
    for number in (1, 2, 3):
        bench.hear(number)
        bench.settle()
        if number < 3:
            bench.say()
    bench.shake.acknowledge(1)
    bench.wait(0.2)
    bench.shake.connected(bench.now)
    assert bench.words() == [(2, Say.OK), (3, Say.OK)]


def test_time_without_a_connection_is_not_held_against_an_answer() -> None:
    bench = Bench()
    bench.hear(7)
    bench.settle()
    bench.say()
    bench.wait(5)
    bench.shake.connected(bench.now)
    assert bench.words() == [(1, Say.OK)]
    assert bench.shake.counts().unacknowledged == 0


def test_an_answer_that_nobody_can_wait_for_any_more_is_not_said() -> None:
    bench = Bench()
    bench.hear(7)
    bench.settle()
    bench.shake.collect(bench.now)  # the cable is out
    bench.wait(REMEMBER_S + 1)
    bench.shake.connected(bench.now)
    assert bench.words() == []
    assert bench.shake.counts() == Counts(unacknowledged=1)


def test_memory_is_bounded_when_the_plc_never_acknowledges() -> None:
    bench = Bench()
    said = 0
    for number in range(1000):
        bench.hear(number)
        bench.settle()
        said += sum(saying.first for saying in bench.say())
        bench.wait(0.01)
    assert said == 1000
    assert len(bench.shake._known) <= REMEMBERED
    assert len(bench.shake._unacked) <= REMEMBERED
    assert bench.shake.counts().unacknowledged >= 1000 - REMEMBERED


def test_memory_is_bounded_when_nothing_can_be_said() -> None:
    bench = Bench()
    for number in range(1000):
        bench.hear(number)
        bench.settle()
        bench.shake.collect(bench.now)
    assert len(bench.shake._fresh) <= REMEMBERED
    assert bench.shake.counts().unacknowledged == 1000 - len(bench.shake._fresh)


def test_the_standing_answer_stays_until_its_ack() -> None:
    bench = Bench()
    for number in (1, 2):
        bench.hear(number)
        bench.settle(Say.OK, 0.3)
    head = bench.shake.head(bench.now)
    assert head is not None and (head.answer.result_id, head.first) == (1, True)
    bench.shake.sent(head, bench.now)
    bench.wait(0.4)
    head = bench.shake.head(bench.now)
    assert head is not None and (head.answer.result_id, head.say, head.first) == (1, Say.LATE, False)
    bench.shake.acknowledge(1)
    head = bench.shake.head(bench.now)
    assert head is not None and (head.answer.result_id, head.say) == (2, Say.LATE)


def test_an_ack_of_nothing_is_no_ack() -> None:
    bench = Bench()
    assert not bench.shake.acknowledge(1)
    bench.hear(7)
    bench.settle()
    assert not bench.shake.acknowledge(1), "not said yet"
    bench.say()
    assert not bench.shake.acknowledge(2)
    assert bench.shake.acknowledge(1)
    assert not bench.shake.acknowledge(1)


def test_numbers_wrap() -> None:
    bench = Bench()
    for number in (65534, 65535, 0, 1):
        bench.hear(number)
        assert bench.receipt.new
        bench.settle()
        assert [s.answer.trigger.number for s in bench.say()] == [number]
        bench.shake.acknowledge(bench.results)


def test_a_plc_without_a_sign_of_life_is_silent() -> None:
    bench = Bench()
    bench.wait(3.0)
    assert not bench.shake.silent(bench.now)
    bench.wait(0.01)
    assert bench.shake.silent(bench.now)
    bench.shake.beat(5, bench.now)
    assert not bench.shake.silent(bench.now)
    for _ in range(5):
        bench.wait(1)
        bench.shake.beat(5, bench.now)
    assert bench.shake.silent(bench.now), "a counter that stands still is no sign of life"
    bench.shake.heard(bench.now)
    assert not bench.shake.silent(bench.now)


def test_the_signals_count_once_a_heartbeat_and_show_the_desk() -> None:
    bench = Bench(depth=1)
    before = bench.shake.shown(bench.now)
    assert (before.ready, before.busy, before.recipe, before.error) == (True, False, 1, "")
    bench.hear(1)
    bench.shake.set_recipe(2)
    bench.desk.show_error("camera")
    bench.wait(BEAT_S)
    after = bench.shake.shown(bench.now)
    assert after == replace(before, ready=False, busy=True, recipe=2, error="camera", heartbeat=before.heartbeat + 1)
    assert bench.shake.shown(bench.now + 65536 * S).heartbeat == after.heartbeat


def test_the_next_thing_to_say_is_foreseen() -> None:
    bench = Bench()
    assert bench.shake.next_ns(bench.now) == bench.now + S, "the heartbeat"
    bench.hear(1)
    bench.settle()
    bench.wait(0.2)
    bench.say()
    assert bench.shake.next_ns(bench.now) == bench.now + round(ACK_S * S), "the repetition"
    bench.shake.acknowledge(1)
    assert bench.shake.next_ns(bench.now) == bench.now + round(0.8 * S)


class LossyLine:
    """A PLC by the rules of PROTOCOL.md, and a line that loses what it likes in both directions."""

    def __init__(self, seed: int, serials: bool, numbers: int) -> None:
        self.chance = random.Random(seed)
        self.serials, self.numbers = serials, numbers
        self.bench = Bench(depth=3)
        self.part = 0  # the PLC's count of parts
        self.waits: dict[int, tuple[int, Trigger]] = {}  # number -> part, its trigger
        self.heard: set[int] = set()  # numbers whose K came
        self.truth: dict[int, int] = {}  # moment of a trigger that was taken -> its part
        self.judged: list[int] = []
        self.told: list[tuple[int, int]] = []  # part, result id

    def step(self) -> None:
        self.bench.wait(self.chance.choice([0.001, 0.02, 0.3]))
        self.chance.choice([self.new_part, self.new_part, self.repeat, self.judge, self.judge, self.say, self.say])()
        if self.chance.random() < 0.02:
            self.bench.shake.connected(self.bench.now)

    def arrives(self) -> bool:
        return self.chance.random() < 0.7

    def new_part(self) -> None:
        number = (self.part + 1) % self.numbers
        if len(self.waits) >= 3 or number in self.waits:
            return
        self.part += 1
        self.waits[number] = (self.part, self.bench.trigger(number, f"S{self.part}" if self.serials else ""))
        self.heard.discard(number)
        self.send(number)

    def send(self, number: int) -> None:
        if not self.arrives():
            return
        part, trigger = self.waits[number]
        receipt = self.bench.shake.trigger(replace(trigger, at_mono_ns=self.bench.now))
        if receipt.new and receipt.refusal is None:
            self.truth[self.bench.now] = part
            self.judged.append(part)
        if not self.arrives():
            return
        self.heard.add(number)
        if receipt.refusal is not None:
            del self.waits[number]

    def repeat(self) -> None:
        for number, (_, trigger) in list(self.waits.items()):
            if self.bench.now - trigger.at_mono_ns > 5 * S:
                del self.waits[number]  # the part has gone on: not OK
        if self.waits:
            self.send(self.chance.choice(list(self.waits)))

    def judge(self) -> None:
        if not self.bench.desk.idle():
            self.bench.settle(Say.OK)

    def say(self) -> None:
        for saying in self.bench.say():
            number = saying.answer.trigger.number
            if not self.arrives() or number not in self.heard:
                continue
            waiting = self.waits.pop(number, None)
            if waiting is not None:
                assert self.truth[saying.answer.trigger.at_mono_ns] == waiting[0], "the answer of another part"
                self.told.append((waiting[0], saying.answer.result_id))
            if self.arrives():
                self.bench.shake.acknowledge(saying.answer.result_id)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("serials", "numbers", "why"),
    [(True, 8, "serials keep parts apart, even if numbers come round soon"), (False, 65536, "numbers alone do")],
)
def test_over_a_lossy_line_no_part_gets_the_answer_of_another(seed: int, serials: bool, numbers: int, why: str) -> None:
    line = LossyLine(seed, serials, numbers)
    for _ in range(1000):
        line.step()
    assert len(line.told) > 40, why
    assert len({result for _, result in line.told}) == len(line.told)
    assert len(set(line.judged)) == len(line.judged), "no part was judged twice"


def test_the_station_goes_on_when_its_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next inference would hold the interpreter between the fetching of an answer and its last byte."""
    monkeypatch.setattr(desk_module, "SAID_S", 5.0)
    bench = Bench()
    bench.hear(1)
    station = threading.Thread(target=bench.settle)
    station.start()
    while (saying := bench.shake.next_due(bench.now)) is None:
        time.sleep(0.001)
    station.join(0.1)
    assert station.is_alive(), "it is fetched, not said"
    bench.shake.sent(saying, bench.now)
    assert bench.shake.next_due(bench.now) is None
    station.join(2)
    assert not station.is_alive()
