"""A station that judges nothing: it takes triggers from the desk and answers them at once, or as it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from edge.part import Answer, Say, Trigger
from edge.plc.desk import Desk


def always_ok(trigger: Trigger) -> Say:
    return Say.OK


class EchoStation:
    """Answers each trigger after `takes_s`. Keeps what it took, with the recipe that it would judge by."""

    def __init__(
        self,
        desk: Desk,
        judge: Callable[[Trigger], Say] = always_ok,
        takes_s: float = 0.0,
        until_s: float | None = None,
    ) -> None:
        self.taken: list[Trigger] = []
        self.overruns = 0
        self.parts = 0
        self._desk, self._judge, self._takes_s, self._until_s = desk, judge, takes_s, until_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="station")

    def __enter__(self) -> EchoStation:
        self._desk.open()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._stop.is_set():
            taken = self._desk.take(0.05)
            if taken is None:
                continue
            self.overruns += taken.overruns
            if taken.trigger is not None:
                self._settle(taken.trigger)

    def _settle(self, trigger: Trigger) -> None:
        self.taken.append(trigger)
        if self._takes_s:
            time.sleep(self._takes_s)
        self.parts += 1
        say = self._judge(trigger)
        until_ns = None if self._until_s is None else trigger.at_mono_ns + int(self._until_s * 1e9)
        self._desk.answer(Answer(trigger, self.parts, say, "" if say is Say.OK else "defect.short", until_ns))
