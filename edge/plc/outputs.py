"""What moves or lights after a verdict: when each output is on, and what carries it.

Every output is off at the start, at the end, and while there is no link. An output is a help to the line and never its
only barrier: the PLC passes a part on an OK in time and on nothing else.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from edge.config import Output, Plc
from edge.errors import PlcError
from edge.part import Answer, Say, Trigger
from edge.plc.handshake import OnAnswered
from edge.plc.port import Line, SerialPort

PENDING = 64  # pulses that wait for their time, for each output; beyond them the oldest is dropped
ENCODER = 1 << 32  # encoder counts go from 0 to 2^32 - 1 and over, either way
RETRY_NS = 1_000_000_000  # a line's port that cannot be opened is tried again so often


@dataclass(frozen=True)
class Switch:
    """An output goes on or off."""

    output: str
    on: bool


class Schedule:
    """When one output is on. Pure: time, answers and encoder counts are told.

    A pulse whose place or time is over when the answer comes is dropped: it would hit another part. Without a delay a
    pulse begins with the answer.
    """

    def __init__(self, output: Output) -> None:
        self.output = output
        self.dropped: Counter[str] = Counter()  # overflow, missed, no_encoder, encoder_reset, link_lost
        self._starts_ns: deque[int] = deque()
        self._targets: deque[int] = deque()  # encoder counts
        self._encoder: int | None = None
        self._off_ns: int | None = None  # None: the output is off

    def answered(self, trigger: Trigger, said: Say, now_ns: int) -> None:
        """An answer was said; a LATE counts as FAIL."""
        word = "FAIL" if said is Say.LATE else said.value
        if word not in self.output.on:
            return
        if self.output.delay_counts is not None:
            self._plan_counts(trigger, self.output.delay_counts, now_ns)
        else:
            self._plan_time(trigger, self.output.delay_ms or 0.0, now_ns)

    def counted(self, encoder: int) -> None:
        """Where the belt is now. A belt that stands still keeps its pulses waiting."""
        last, self._encoder = self._encoder, encoder
        if last is not None and self._went_back(last, encoder) > (self.output.delay_counts or 0):
            self._drop("encoder_reset", len(self._targets))
            self._targets.clear()

    def step(self, now_ns: int) -> bool:
        """Whether the output is on now."""
        while self._starts_ns and self._starts_ns[0] <= now_ns:
            start_ns = self._starts_ns.popleft()
            if start_ns + self._pulse_ns <= now_ns:
                self._drop("missed")
            else:
                self._begin(start_ns)
        while self._targets and self._reached(self._targets[0]):
            self._targets.popleft()
            self._begin(now_ns)
        if self._off_ns is not None and now_ns >= self._off_ns:
            self._off_ns = None
        return self._off_ns is not None

    def next_ns(self) -> int | None:
        """When `step` will tell something else by time alone; None: not by time."""
        times = [*list(self._starts_ns)[:1], *([self._off_ns] if self._off_ns is not None else [])]
        return min(times) if times else None

    def reset(self) -> None:
        """Off, and nothing waits any more: the link is lost."""
        self._drop("link_lost", len(self._starts_ns) + len(self._targets))
        self._starts_ns.clear()
        self._targets.clear()
        self._encoder = None
        self._off_ns = None

    def _plan_time(self, trigger: Trigger, delay_ms: float, now_ns: int) -> None:
        start_ns = trigger.at_mono_ns + round(delay_ms * 1e6) if delay_ms else now_ns
        self._starts_ns = deque(sorted([*self._starts_ns, start_ns]))
        self._bound(self._starts_ns)

    def _plan_counts(self, trigger: Trigger, delay: int, now_ns: int) -> None:
        if not delay:
            self._begin(now_ns)
            return
        if trigger.encoder is None:
            self._drop("no_encoder")
            return
        target = (trigger.encoder + delay) % ENCODER
        if self._encoder != target and self._reached(target):
            self._drop("missed")
            return
        self._targets.append(target)
        self._bound(self._targets)

    def _bound(self, waiting: deque[int]) -> None:
        if len(waiting) > PENDING:
            waiting.popleft()
            self._drop("overflow")

    def _drop(self, cause: str, pulses: int = 1) -> None:
        if pulses:
            self.dropped[cause] += pulses

    def _begin(self, start_ns: int) -> None:
        off_ns = start_ns + self._pulse_ns
        self._off_ns = off_ns if self._off_ns is None else max(self._off_ns, off_ns)

    @property
    def _pulse_ns(self) -> int:
        return round(self.output.pulse_ms * 1e6)

    def _reached(self, target: int) -> bool:
        return self._encoder is not None and (self._encoder - target) % ENCODER < ENCODER // 2

    @staticmethod
    def _went_back(last: int, encoder: int) -> int:
        back = (last - encoder) % ENCODER
        return back if back < ENCODER // 2 else 0


class Outputs:
    """All outputs of a link, with what carries them. Used by the link's thread alone.

    Outputs by way of the PLC are told by the dialect: `run` returns their changes, `bits` their states.
    """

    def __init__(self, outputs: Sequence[Output], plc: Plc | None = None) -> None:
        """`plc` is the link's own port, for outputs whose lines are of that port."""
        self._schedules = [Schedule(output) for output in outputs]
        self._on = {output.id: False for output in outputs}
        self._own: SerialPort | None = None
        paths = {output.port for output in outputs if output.port is not None}
        self._ports = {path: _LinePort(path) for path in sorted(paths) if plc is None or path != plc.port}
        self._failed: Counter[str] = Counter()

    @property
    def own_lines(self) -> tuple[Line, ...]:
        """Modem lines of the link's own port that are outputs: low while they are off."""
        return tuple(sorted({_line(s.output) for s in self._schedules if self._is_own(s.output)}))

    @property
    def plc_ids(self) -> tuple[str, ...]:
        """Outputs that the PLC carries, in the order of the config."""
        return tuple(s.output.id for s in self._schedules if s.output.via == "plc")

    def use_port(self, port: SerialPort) -> None:
        """The link's own port."""
        self._own = port

    def listening(self, on_answered: OnAnswered, now_ns: Callable[[], int]) -> OnAnswered:
        """`on_answered`, and the outputs hear of it too."""

        def both(answer: Answer, ms: float, said: Say) -> None:
            for schedule in self._schedules:
                schedule.answered(answer.trigger, said, now_ns())
            on_answered(answer, ms, said)

        return both

    def counted(self, encoder: int | None) -> None:
        """The encoder count that a trigger or a heartbeat brought."""
        for schedule in self._schedules if encoder is not None else ():
            schedule.counted(cast(int, encoder))

    def run(self, now_ns: int) -> list[Switch]:
        """Switch the lines; the changes of outputs that the PLC carries."""
        told = []
        for schedule in self._schedules:
            on, output = schedule.step(now_ns), schedule.output
            if on == self._on[output.id]:
                continue
            self._on[output.id] = on
            if output.via == "plc":
                told.append(Switch(output.id, on))
            else:
                self._set_line(output, on, now_ns)
        return told

    def states(self) -> list[Switch]:
        """Every output that the PLC carries, as it is: to be told after the port was opened."""
        return [Switch(name, self._on[name]) for name in self.plc_ids]

    def bits(self) -> int:
        """The same as a number: bit 0 is the first of `plc_ids`."""
        return sum(1 << index for index, name in enumerate(self.plc_ids) if self._on[name])

    def next_ns(self) -> int | None:
        """When `run` has something to do by time alone; None: not by time."""
        times = [ns for ns in (schedule.next_ns() for schedule in self._schedules) if ns is not None]
        return min(times) if times else None

    def rest(self) -> None:
        """The link's port was opened, its lines are low: the ports of the other lines follow."""
        for port in self._ports.values():
            port.rest()

    def link_lost(self) -> None:
        """Everything off."""
        for schedule in self._schedules:
            schedule.reset()
            output = schedule.output
            if self._on[output.id] and output.via != "plc":
                self._set_line(output, False, 0)
            self._on[output.id] = False

    def close(self) -> None:
        """Everything off, for good."""
        self.link_lost()
        for port in self._ports.values():
            port.close()

    def dropped(self) -> Mapping[str, int]:
        """Pulses that were not given, by cause; `line` for those whose line could not be set."""
        total = Counter(self._failed)
        for schedule in self._schedules:
            total.update(dict(schedule.dropped))  # a copy in one step: the link's thread goes on counting
        return dict(total)

    def _is_own(self, output: Output) -> bool:
        return output.via != "plc" and output.port not in self._ports

    def _set_line(self, output: Output, on: bool, now_ns: int) -> None:
        line = _line(output)
        try:
            if self._is_own(output):
                if self._own is not None and (on or self._own.is_open):
                    self._own.set_line(line, on)
            else:
                self._ports[str(output.port)].set_line(line, on, now_ns)
        except PlcError:
            if on:
                self._failed["line"] += 1


class _LinePort:
    """A port that is there for its modem lines only."""

    def __init__(self, path: str) -> None:
        self._port = SerialPort(Plc(port=path), ("rts", "dtr"))
        self._tried_ns = -RETRY_NS

    def rest(self) -> None:
        """Open it, so that its lines are low."""
        if not self._port.is_open:
            try:
                self._port.open()
            except PlcError:
                return  # it is tried again with the next pulse

    def set_line(self, line: Line, on: bool, now_ns: int) -> None:
        """Raises `PlcError` when the port or its line is not there."""
        if not self._port.is_open and on and now_ns - self._tried_ns >= RETRY_NS:
            self._tried_ns = now_ns
            self._port.open()
        if on or self._port.is_open:
            self._port.set_line(line, on)

    def close(self) -> None:
        self._port.close()


def _line(output: Output) -> Line:
    return "rts" if output.via == "rts" else "dtr"
