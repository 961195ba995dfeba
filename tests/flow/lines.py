"""A line for flow tests: the real outbox and publisher under load, and a reader that proves what arrived."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import msgspec

from edge import ledger
from edge.clock import SystemClock
from edge.config import Mqtt
from edge.event import Alarm, Envelope, Response, Topics
from edge.outbox import Draft, Kind, Outbox
from edge.publish import Publisher, Timing
from tests.brokers import Reader, wait_until

MESSAGE = Alarm(code="c", severity="warning", text="x" * 600, advice="")


class Line:
    """One node's outbox and publisher, not yet started; ends everything it began."""

    def __init__(self, folder: Path, port: int, settings: Mqtt | None = None, ack_s: float = 60.0) -> None:
        self.topics = Topics("edge", "plant", "line", "n")
        self._topic = self.topics.camera("cam1", "result")
        self._port = port
        clock = SystemClock()
        self.outbox = Outbox(folder / "outbox.db", 50_000_000, "b", clock)
        timing = Timing(connect_s=3.0, backoff_min_s=0.1, backoff_max_s=1.0, ack_s=ack_s)
        self.publisher = Publisher(
            settings or Mqtt(port=port), self.topics, self.outbox, "b", clock, _no_request, (), timing
        )
        self._reader: Reader | None = None
        self._load: threading.Thread | None = None
        self._enough = threading.Event()
        self.add_s: list[float] = []

    def part(self) -> int:
        """One message into the outbox."""
        (seq,) = self.outbox.add([Draft(self._topic, Kind.RESULT, False, MESSAGE)], ledger.empty(), 0)
        return seq

    def read(self, *, clean: bool) -> None:
        """Subscribe; not clean: by a session that a broker keeps while the reader is away."""
        self._reader = Reader(self._port, self._topic, name="" if clean else "reader")

    def begin_load(self, gap_s: float) -> None:
        """A part every `gap_s` seconds, in a thread."""

        def run() -> None:
            due = time.monotonic()
            while not self._enough.is_set():
                begun = time.perf_counter()
                self.part()
                self.add_s.append(time.perf_counter() - begun)
                due += gap_s
                time.sleep(max(0.0, due - time.monotonic()))

        self._load = threading.Thread(target=run)
        self._load.start()

    def end_load(self) -> int:
        """Stop the load; how many parts there were."""
        self._enough.set()
        if self._load is not None:
            self._load.join(10)
        return self.outbox.counts().added

    def seqs(self) -> list[int]:
        """The numbers the reader holds, as they came."""
        return [head.seq for head in self._heads()]

    def ids(self) -> dict[int, set[str]]:
        """The ids that came under each number."""
        found: dict[int, set[str]] = {}
        for head in self._heads():
            found.setdefault(head.seq, set()).add(head.id)
        return found

    def wait_delivered(self, n: int, timeout_s: float, *, complete: bool = True) -> None:
        """Wait until the reader holds the numbers 1 to `n`; incomplete: or until that time is over."""
        limit = time.monotonic() + timeout_s
        while len(set(self.seqs())) < n and time.monotonic() < limit:
            time.sleep(0.05)
        assert not complete or len(set(self.seqs())) >= n

    def wait_reader_current(self, timeout_s: float) -> None:
        """Wait until the reader holds what is the latest now: it is connected, and was since the last restart."""
        latest = self.outbox.counts().added
        wait_until(lambda: max(self.seqs(), default=0) >= latest, timeout_s, f"the reader to hold {latest}")

    def _heads(self) -> list[Envelope]:
        assert self._reader is not None
        return [msgspec.json.decode(heard.payload, type=Envelope) for heard in self._reader.on(self._topic)]

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_load()
        self.publisher.stop(3)
        self.outbox.close()
        if self._reader is not None:
            self._reader.close()


def _no_request(_verb: str, _payload: bytes) -> Response:
    raise AssertionError("nobody asked")
