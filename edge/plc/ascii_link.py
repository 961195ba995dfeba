"""The link that speaks the ASCII dialect: see PROTOCOL.md."""

from __future__ import annotations

from edge.part import Trigger
from edge.plc.ascii_line import (
    AckLine,
    BeatLine,
    Command,
    ErrorLine,
    Garbage,
    Message,
    OutputLine,
    RecipeLine,
    SignalsLine,
    TakenLine,
    TriggerLine,
    VerdictLine,
    commands,
    encode,
)
from edge.plc.handshake import Shown
from edge.plc.thread import LinkThread

# Garbage is answered at most so often, so that a flood of it cannot fill the line: at once, and then each second.
GARBAGE_BURST, GARBAGE_PER_S = 5, 5


class AsciiLink(LinkThread):
    """Lines of text, one a command."""

    def opened(self) -> None:
        """See `LinkThread`."""
        self._reader = commands(self.settings.check)
        self._shown: Shown | None = None
        self._limit = Limit(GARBAGE_BURST, GARBAGE_PER_S, self.clock.mono_ns())
        self._say([OutputLine(switch.output, switch.on) for switch in self.outputs.states()])

    def turn(self) -> int:
        """See `LinkThread`."""
        self._say_answers()  # before what has come in: they are what the line waits for
        data = self.port.read()
        if data:
            self._say([reply for item in self._reader.feed(data) for reply in self._hear(item)])
            self._say_answers()
        now_ns = self.clock.mono_ns()
        self._say([OutputLine(switch.output, switch.on) for switch in self.outputs.run(now_ns)])
        self._say(self._signals(now_ns))
        times = (self.handshake.next_ns(now_ns), self.outputs.next_ns())
        return min(ns for ns in times if ns is not None)

    def _hear(self, item: Command | Garbage) -> list[Message]:
        """Do what a line asks for; what to say to it at once."""
        now_ns = self.clock.mono_ns()
        if isinstance(item, Garbage):
            self.garbage += 1
            return [ErrorLine(None, item.fault.value)] if self._limit.allows(now_ns) else []
        if isinstance(item, BeatLine):
            self.handshake.beat(item.counter, now_ns)
            self.outputs.counted(item.encoder)
            return []
        self.handshake.heard(now_ns)
        if isinstance(item, TriggerLine):
            return self._take(item, now_ns)
        if isinstance(item, AckLine):
            self.handshake.acknowledge(item.result_id)
            return []
        self._shown = None  # both that are left are answered by the signals
        refusal = self.handshake.set_recipe(item.number) if isinstance(item, RecipeLine) else None
        return [ErrorLine(None, refusal.value)] if refusal is not None else []

    def _take(self, line: TriggerLine, now_ns: int) -> list[Message]:
        trigger = Trigger(line.number, line.serial, line.recipe, now_ns, self.clock.ts(), line.encoder)
        receipt = self.handshake.trigger(trigger)
        if receipt.new:
            self.outputs.counted(line.encoder)  # a repetition carries the count of then
        if receipt.refusal is not None:
            return [ErrorLine(line.number, receipt.refusal.value)]
        # A Ready that falls is told before the K, so that a PLC that waits for both is never refused.
        return [*self._signals(now_ns, ready_only=True), TakenLine(line.number)]

    def _say_answers(self) -> None:
        while (saying := self.handshake.next_due(self.clock.mono_ns())) is not None:
            answer = saying.answer
            reason = answer.reason
            self._say([VerdictLine(answer.trigger.number, answer.result_id, saying.say, reason)])
            self.handshake.sent(saying, self.clock.mono_ns())

    def _signals(self, now_ns: int, ready_only: bool = False) -> list[Message]:
        """The signals, if they changed since they were said last; or only if Ready did."""
        shown, last = self.handshake.shown(now_ns), self._shown
        if shown == last or (ready_only and last is not None and shown.ready == last.ready):
            return []
        self._shown = shown
        return [SignalsLine(shown.ready, shown.busy, shown.recipe, shown.heartbeat, shown.error)]

    def _say(self, lines: list[Message]) -> None:
        if lines:
            self.port.write(b"".join(encode(line, self.settings.check) for line in lines))


class Limit:
    """So many at once, and so many a second after that.

    >>> limit = Limit(2, 1, 0)
    >>> [limit.allows(0), limit.allows(0), limit.allows(0), limit.allows(1_000_000_000)]
    [True, True, False, True]
    """

    def __init__(self, burst: int, per_s: float, now_ns: int) -> None:
        self._burst, self._per_s = burst, per_s
        self._left, self._at_ns = float(burst), now_ns

    def allows(self, now_ns: int) -> bool:
        """Whether one more may be."""
        self._left = min(self._left + (now_ns - self._at_ns) / 1e9 * self._per_s, self._burst)
        self._at_ns = now_ns
        if self._left < 1:
            return False
        self._left -= 1
        return True
