"""Between link and station: every trigger comes out exactly once, and every one that was taken is answered."""

from __future__ import annotations

import threading

import pytest

from edge.part import Answer, Say, Trigger
from edge.plc import desk as desk_module
from edge.plc.desk import ANSWERS_KEPT, REFUSED_KEPT, Desk, Refusal, Signals


def trigger(number: int, recipe: int = 0) -> Trigger:
    return Trigger(number, f"S{number}", recipe, number, 0.0)


def desk(depth: int = 2) -> tuple[Desk, list[int]]:
    counted: list[int] = []
    made = Desk(depth, frozenset({1, 2}), 1, lambda: counted.append(1))
    return made, counted


def test_triggers_come_in_their_order_with_what_was_refused_before_each() -> None:
    made, counted = desk()
    made.open()
    assert [made.offer(trigger(n)) for n in (1, 2, 3, 4)] == [None, None, Refusal.OVERRUN, Refusal.OVERRUN]
    first, second, rest = made.take(0), made.take(0), made.take(0)
    assert first is not None and second is not None and rest is not None
    assert (first.trigger and first.trigger.number, first.overruns) == (1, 0)
    assert (second.trigger and second.trigger.number, second.overruns) == (2, 0)
    assert rest.trigger is None and [t.number for t in rest.refused] == [3, 4] and rest.overruns == 2
    assert made.take(0) is None and len(counted) == 4


def test_refusals_between_two_triggers_come_with_the_second() -> None:
    """A refused trigger may have fired the cameras: which frames are whose depends on the order."""
    made, _ = desk(depth=1)
    made.open()
    made.offer(trigger(1))
    assert made.take(0) is not None
    made.offer(trigger(2))
    made.answer(Answer(trigger(1), 1, Say.OK))
    made.offer(trigger(3))
    taken = made.take(0)
    assert taken is not None and taken.trigger is not None
    assert taken.trigger.number == 3 and [t.number for t in taken.refused] == [2]


def test_a_flood_of_refusals_is_counted_in_bounded_memory() -> None:
    made, counted = desk()
    made.open()
    for n in range(10_000):
        made.offer(trigger(n))
    made.take(0)
    made.take(0)
    taken = made.take(0)
    assert taken is not None and taken.overruns == 9998 and len(taken.refused) == REFUSED_KEPT
    assert len(counted) == 10_000


def test_before_the_opening_a_trigger_is_refused_and_counted_after_the_close_it_is_none() -> None:
    made, counted = desk()
    assert made.offer(trigger(1)) is Refusal.NOT_RUNNING and len(counted) == 1
    assert not made.signals().ready
    made.open()
    assert made.signals() == Signals(ready=True, busy=False, error="", recipe=1)
    made.offer(trigger(2))
    made.close()
    assert made.offer(trigger(3)) is Refusal.NOT_RUNNING and len(counted) == 2
    assert made.take(0) is None
    (left,) = made.remaining()
    assert left.overruns == 1 and left.trigger is not None and left.trigger.number == 2


def test_a_recipe_is_set_for_the_triggers_to_come() -> None:
    made, _ = desk(depth=4)
    made.open()
    made.offer(trigger(1))
    assert made.set_recipe(2) is None and made.set_recipe(7) is Refusal.UNKNOWN_RECIPE
    made.offer(trigger(2))
    made.offer(trigger(3, recipe=1))
    taken = [made.take(0) for _ in range(3)]
    assert [t.trigger.recipe for t in taken if t is not None and t.trigger is not None] == [1, 2, 1]
    assert made.signals().recipe == 2


def test_an_answer_wakes_the_link_and_is_fetched_once() -> None:
    made, _ = desk()
    woken = threading.Event()
    made.attach(woken.set)
    made.open()
    made.offer(trigger(1))
    made.take(0)
    assert made.signals().busy
    woken.clear()
    made.answer(Answer(trigger(1), 1, Say.NG, "defect.open"))
    assert woken.is_set() and not made.signals().busy
    assert [a.result_id for a in made.answers()] == [1] and made.answers() == []


def test_answers_that_no_link_fetches_are_bounded_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = desk()
    made.open()
    monkeypatch.setattr(desk_module, "SAID_S", 0.0)
    for n in range(ANSWERS_KEPT + 3):
        made.answer(Answer(trigger(n), n, Say.OK))
    given = made.answers()
    assert made.forgotten == 3 and len(given) == ANSWERS_KEPT and given[0].result_id == 3


def test_the_error_is_shown_until_it_is_taken_down() -> None:
    made, _ = desk()
    news: list[int] = []
    made.attach(lambda: news.append(1))
    made.show_error("challenge.overdue")
    made.show_error("challenge.overdue")
    assert made.signals().error == "challenge.overdue" and len(news) == 1
    made.show_error("")
    assert made.signals().error == "" and len(news) == 2
