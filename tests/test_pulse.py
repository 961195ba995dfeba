"""Who hangs is named once, with its place; who waits on purpose, or could not move, is not."""

from __future__ import annotations

import ctypes
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from edge import ledger
from edge.clock import Beat, SystemClock
from edge.config import Mqtt
from edge.errors import EdgeError
from edge.event import Response, Topics
from edge.outbox import Outbox
from edge.publish import Publisher, Timing
from edge.pulse import Pulse
from edge.requests import RequestDesk
from edge.spool import Spool
from tests.brokers import wait_until
from tests.disks import small_disk


@contextmanager
def watching(*beats: Beat, beside: tuple[Beat, ...] = ()) -> Iterator[tuple[Pulse, list[str]]]:
    """A pulse that watches, and what it told."""
    told: list[str] = []
    pulse = Pulse(told.append)
    for beat in beats:
        pulse.watch(beat)
    for beat in beside:
        pulse.watch(beat, vital=False)
    pulse.start()
    try:
        yield pulse, told
    finally:
        pulse.stop()


@contextmanager
def stuck(beat: Beat) -> Iterator[threading.Event]:
    """A thread that has beaten once and hangs until it is released, then rests."""
    release = threading.Event()

    def run() -> None:
        beat.now()
        release.wait(60)
        beat.rest()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield release
    finally:
        release.set()
        thread.join(10)


def test_who_hangs_is_named_once_with_its_place_and_told_when_it_moves(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    beat = Beat("PLC link", 0.1)
    with watching(beat) as (pulse, told), stuck(beat) as release:
        wait_until(lambda: told, 10, "the word")
        assert told[0].startswith("PLC link hangs: no progress for ")
        assert "in wait (threading.py:" in told[0], "the innermost call, of whatever file"
        assert not pulse.fit() and pulse.named() == {"hung_plc_link": told[0]}
        time.sleep(1.2)
        assert len(told) == 1, "said once"
        release.set()
        wait_until(lambda: len(told) == 2, 10, "the end of it")
        assert told[1].startswith("PLC link moves again after ") and pulse.fit() and not pulse.named()
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.WARNING]


def test_the_place_leads_back_to_a_line_of_ours() -> None:
    entered, release = threading.Event(), threading.Event()

    def handler(_verb: str, _payload: bytes) -> Response:
        entered.set()
        release.wait(60)
        raise EdgeError("done")

    desk = RequestDesk(("status",), handler, lambda *_: b"")
    desk.beat.limit_s = 0.1
    desk.start()
    with watching(beside=(desk.beat,)) as (pulse, told):
        desk.put("status", b'{"transaction": "t"}')
        assert entered.wait(10)
        wait_until(lambda: told, 10, "the word")
        assert "called by _handle (edge/requests.py:" in told[0]
        assert pulse.fit(), "it is beside the parts"
        release.set()
    desk.stop()
    assert desk.beat.thread() is None


def test_a_thread_that_died_is_named_before_its_time_is_over() -> None:
    beat = Beat("capture cam1", 3600.0)
    thread = threading.Thread(target=beat.now, name="camera-cam1")
    thread.start()
    thread.join(10)
    with watching(beat) as (pulse, told):
        assert not pulse.fit()
        wait_until(lambda: told, 10, "the word")
        assert "its thread camera-cam1 has ended" in told[0]


def test_the_status_shows_who_still_hangs() -> None:
    first, second = Beat("publisher", 0.1), Beat("evidence", 0.1)
    with watching(first, beside=(second,)) as (pulse, told), stuck(first), stuck(second) as release:
        wait_until(lambda: len(pulse.named()) == 2, 10, "both")
        release.set()
        wait_until(lambda: len(pulse.named()) == 1, 10, "one of them to move")
        assert told[-1].startswith("publisher hangs")


def test_a_turn_that_never_ends_is_no_progress_of_the_inspection() -> None:
    pulse = Pulse(lambda _text: None, watchdog_s=0.3)
    assert pulse.inspection.limit_s == pytest.approx(0.1), "named before the service manager acts"
    assert pulse.fit(), "it has not begun"
    pulse.turn()
    assert pulse.fit()
    time.sleep(0.15)
    assert not pulse.fit()
    pulse.stop()


def test_what_could_not_move_for_want_of_the_interpreter_is_not_blamed(caplog: pytest.LogCaptureFixture) -> None:
    """Paddle Lite's `run` holds the interpreter; so does this call."""
    beat, ready, free, end = Beat("PLC link", 1.0), threading.Event(), threading.Event(), threading.Event()

    def run() -> None:
        beat.now()
        ready.set()
        free.wait(60)
        end.wait(0.2)  # it needs a moment, and gets it
        while not end.is_set():
            beat.now()
            end.wait(0.02)
        beat.rest()

    thread = threading.Thread(target=run)
    with watching(beat) as (pulse, told):
        thread.start()
        ready.wait(60)
        ctypes.PyDLL(None).usleep(2_500_000)
        free.set()
        wait_until(pulse.fit, 10, "it to move")
        time.sleep(1.2)
        assert not told and not pulse.named()
        end.set()
        thread.join(10)


def test_without_a_standard_error_there_is_a_watchdog_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    pulse = Pulse(lambda _text: None, watchdog_s=30.0)
    pulse.start()
    pulse.turn()
    assert pulse.fit()
    pulse.stop()


# The beats of the parts that talk to a network or a disk.


@contextmanager
def mute_server(drip: bool) -> Iterator[tuple[int, Callable[[], int]]]:
    """Takes every connection and says nothing, or one byte at a time; its port, and how many came."""
    came: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.02)
        end = threading.Event()

        def run() -> None:
            while not end.is_set():
                with suppress(TimeoutError):
                    came.append(listener.accept()[0])
                for connection in came if drip else ():
                    with suppress(OSError):
                        connection.send(b"\x16")

        thread = threading.Thread(target=run)
        thread.start()
        yield listener.getsockname()[1], lambda: len(came)
        end.set()
        thread.join(10)
        for connection in came:
            connection.close()


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("drip", [False, True])
def test_a_broker_that_never_answers_is_no_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: bool, drip: bool
) -> None:
    monkeypatch.setattr("edge.publish.HUNG_S", 3.0)
    with mute_server(drip) as (port, came), closing(Outbox(tmp_path / "o.db", 10**6, "b", SystemClock())) as outbox:
        timing = Timing(connect_s=0.4, backoff_min_s=0.05, backoff_max_s=0.1)
        publisher = Publisher(
            Mqtt(port=port, tls=tls), Topics("e", "s", "l", "n"), outbox, "b", SystemClock(), _none, (), timing
        )
        with watching(publisher.beat) as (_, told):
            publisher.start()
            wait_until(lambda: came() >= 6, 60, "one attempt after the other")
            assert not told
            publisher.stop(5)
    assert publisher.beat.thread() is None


def _none(_verb: str, _payload: bytes) -> Response:
    raise AssertionError("nobody asked")


def test_an_idle_outbox_is_really_written_to_and_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "o.db-wal"
    with closing(Outbox(tmp_path / "o.db", 10**6, "b", SystemClock())) as outbox:
        outbox.save_ledger(ledger.empty(), 7)
        before, counts = log.read_bytes(), outbox.counts()
        outbox.check()
        assert log.read_bytes() == before, "not due: something was written just now"
        monkeypatch.setattr("edge.outbox.CHECK_EVERY_S", 0.0)
        outbox.save_ledger(ledger.empty(), 7)
        before = log.read_bytes()
        outbox.check()
        assert log.read_bytes() != before
        assert (outbox.ledger(), outbox.counts()) == ((ledger.empty(), 7), counts)
    with closing(Outbox(tmp_path / "o.db", 10**6, "b", SystemClock())) as again:
        assert again.ledger() == (ledger.empty(), 7)


def test_a_full_disk_answers_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.outbox.CHECK_EVERY_S", 0.0)
    disk = tmp_path / "disk"
    with small_disk(disk, 1), closing(Outbox(disk / "o.db", 10**6, "b", SystemClock())) as outbox:
        with open(disk / "filler", "wb", buffering=0) as filler, pytest.raises(OSError):
            while True:
                filler.write(bytes(4096))
        for _ in range(20):
            outbox.check()
        assert not outbox.beat.hangs() and outbox.beat.thread() is None


def test_a_disk_that_refuses_is_progress_of_the_one_who_writes(tmp_path: Path) -> None:
    tried: list[float] = []

    class Refusing:
        def begin(self) -> None:
            tried.append(time.monotonic())
            raise OSError(28, "No space left on device")

        def write(self, item: str) -> None: ...
        def make_room(self, item: str) -> bool:
            return False

        def lost(self, item: str) -> None: ...
        def idle(self, in_trouble: bool) -> None: ...
        def end(self) -> None: ...

    spool: Spool[str] = Spool("evidence", tmp_path, Refusing(), retry_s=1.5)
    spool.beat.limit_s = 1.0
    with watching(beside=(spool.beat,)) as (_, told):
        spool.start()
        wait_until(lambda: len(tried) >= 3, 30, "it to be tried again and again")
        assert not told
        spool.stop(5)
    assert spool.beat.thread() is None
