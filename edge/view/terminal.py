"""`edge watch`: verdicts, rejects, sharpness, latency, ledger, outbox and alarms of a line in a terminal; and of one
that a PLC triggers what it shows to the PLC, its parts, answer times and link.

On a terminal it draws; anywhere else (a pipe, journald) it writes one plain line for each thing that happens.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Protocol, TextIO

from edge import config, event
from edge.errors import EdgeError, PublishError
from edge.view.state import Heard, NodeId
from edge.view.subscribe import Link, Subscriber, Where
from edge.view.words import bundle_words, line_words, plain_line, proof_sentence

if TYPE_CHECKING:
    from rich.console import Console, Group

REDRAW_S = 0.25
POLL_S = 0.05  # how soon a stop is noticed
SETTLE_S = 1.0  # after connecting, so long for what the broker retains to arrive
ONCE_LIMIT_S = 10.0  # a single picture waits at most so long for a broker
CLOSE_LIMIT_S = 2.0
HEALTH_LINE_S = 30.0  # a node's plain health line at most so often
BACKLOG = 10_000  # plain lines that may wait for a slow reader
ONCE_SIZE = (100, 40)  # columns and rows of a single picture that goes to a pipe

Ended = Callable[[], bool]


class Output(Protocol):
    """Where a view goes."""

    def heard(self, heard: Heard) -> None:
        """Called in the network thread with each new message; returns at once."""

    def run(self, subscriber: Subscriber, stop: threading.Event) -> None:
        """Show until `stop` is set. May block for as long as the terminal or pipe does."""


class StopSignals:
    """Ctrl-C, SIGTERM and a closed terminal only set a flag."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True


def watch(
    settings: config.Mqtt,
    stop: threading.Event | None = None,
    *,
    site: str | None = None,
    line: str | None = None,
    node: str | None = None,
    once: bool = False,
    seconds: float | None = None,
) -> int:
    """Show a line until told to stop.

    Args:
        settings: the broker and how to log in.
        stop: ends the view when set; None: Ctrl-C, SIGTERM or a closed terminal do (main thread only). It is polled,
            never waited for: a signal handler that sets an event which the main thread waits for can deadlock.
        site, line, node: which nodes; None: all.
        once: show one picture of what is known now, then end.
        seconds: end after so long; None: only when told.

    Returns:
        0, or 1 when no broker was reached or, for `once`, no node was heard.

    Raises:
        PublishError: the broker refused the login, or a password or certificate file cannot be used.
        EdgeError: the library that draws is not installed.
    """
    if stop is None:
        with StopSignals() as signals:
            return _watch(settings, Where(site, line, node), lambda: signals.asked, once, seconds)
    return _watch(settings, Where(site, line, node), stop.is_set, once, seconds)


def _watch(settings: config.Mqtt, where: Where, stopped: Ended, once: bool, seconds: float | None) -> int:
    file = own_output()
    output = choose_output(file, plain=once)
    deadline_s = time.monotonic() + (seconds if seconds is not None else float("inf"))
    with Subscriber(settings, where, output.heard) as subscriber:
        if once:
            return _show_once(subscriber, stopped, file)
        show(output, subscriber, lambda: stopped() or time.monotonic() > deadline_s)
        return _farewell(subscriber)


def show(output: Output, subscriber: Subscriber, ended: Ended) -> bool:
    """Run an output until `ended`, in a thread of its own since writing to a terminal or pipe has no time limit.

    Returns:
        Whether the output can still be written to; it returns early when whoever reads it has gone.

    Raises:
        PublishError: the broker refused the login.
    """
    stop = threading.Event()
    failures: list[Exception] = []
    thread = threading.Thread(target=_run, args=(output, subscriber, stop, failures), name="view", daemon=True)
    thread.start()
    while thread.is_alive() and subscriber.refused is None and not ended():
        time.sleep(POLL_S)
    stop.set()
    thread.join(CLOSE_LIMIT_S)
    check_login(subscriber)
    for failure in failures:
        if not isinstance(failure, OSError):  # an OSError is the pipe's reader or the terminal having gone
            raise failure
    return not failures and not thread.is_alive()


def check_login(subscriber: Subscriber) -> None:
    """Raise PublishError when the broker refused the login."""
    if subscriber.refused is not None:
        raise PublishError(
            f"the broker at {subscriber.link.address} refuses this login ({subscriber.refused}): "
            "correct mqtt.username and mqtt.password, or the certificate"
        )


def own_output() -> TextIO:
    """Standard output on a descriptor of our own: a thread stuck in writing to it holds no lock of `sys.stdout`."""
    try:
        descriptor = os.dup(sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):  # replaced by something that is not a file
        return sys.stdout
    return os.fdopen(descriptor, "w", encoding=sys.stdout.encoding, errors="replace")


def choose_output(file: TextIO, plain: bool = False) -> Output:
    """A picture on a terminal, plain lines elsewhere.

    Raises:
        EdgeError: it is a terminal but the library that draws is not installed.
    """
    if plain or not file.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        return PlainLines(file)
    return Picture(make_console(file))


def make_console(file: TextIO, size: tuple[int, int] | None = None) -> Console:
    """A console that draws to `file`; NO_COLOR is honoured by the library.

    Raises:
        EdgeError: the library is not installed.
    """
    try:
        from rich.console import Console
    except ImportError as error:
        raise EdgeError(
            "the view needs the package rich, which is not installed here: "
            "pip install 'edge-inspection[view]', or pipe the output (edge watch | cat) for plain lines"
        ) from error
    width, height = size or (None, None)
    return Console(file=file, width=width, height=height, highlight=False, markup=False, emoji=False)


class Picture:
    """A full-screen picture, redrawn a few times a second; the terminal is as it was when it ends."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def heard(self, heard: Heard) -> None:
        """The picture shows the state, not each message."""

    def run(self, subscriber: Subscriber, stop: threading.Event) -> None:
        """See `Output`."""
        from rich.live import Live

        with Live(
            console=self._console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        ) as live:
            while not stop.is_set():
                live.update(_picture(subscriber, self._console), refresh=True)
                stop.wait(REDRAW_S)
            # After a resize tmux would leave the lower part of the picture on the screen we return to.
            live.update("", refresh=True)
            self._console.clear()


class PlainLines:
    """One line of text for each verdict or part, reject, alarm and change of state."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._waiting: queue.Queue[str] = queue.Queue(BACKLOG)
        self._skipped = 0
        self._told: dict[NodeId, float] = {}  # when a node's health was last told
        self._line_told: dict[NodeId, str] = {}  # what a node showed to its PLC, as it was last told
        self._bundle_told: dict[NodeId, str] = {}  # the same of its bundles
        self._link: tuple[bool, str] | None = None

    def heard(self, heard: Heard) -> None:
        """See `Output`."""
        if isinstance(heard.message, event.Health):
            now_s = time.monotonic()
            if now_s - self._told.get(heard.node, float("-inf")) < HEALTH_LINE_S:
                return
            self._told[heard.node] = now_s
        if isinstance(heard.message, event.LineState):  # it comes again each minute, with the time until a challenge
            words = line_words(heard.message)
            if self._line_told.get(heard.node) == words:
                return
            self._line_told[heard.node] = words
        if isinstance(heard.message, event.BundleState):  # it comes again with each count
            words = bundle_words(heard.message)
            if self._bundle_told.get(heard.node) == words:
                return
            self._bundle_told[heard.node] = words
        text = plain_line(heard)
        if not text:
            return
        try:
            self._waiting.put_nowait(text)
        except queue.Full:
            self._skipped += 1

    def run(self, subscriber: Subscriber, stop: threading.Event) -> None:
        """See `Output`."""
        while True:
            last_round = stop.is_set()
            with subscriber.lock:
                link = subscriber.link
            self._write_link(link)
            self._write_waiting()
            if last_round:
                return
            stop.wait(POLL_S)

    def _write_link(self, link: Link) -> None:
        if (link.connected, link.text) in (self._link, (False, "")):  # no change, or nothing known yet
            return
        self._link = (link.connected, link.text)
        what = "connected" if link.connected else "not connected, trying again"
        self._file.write(f"broker {link.address} {what}" + (f": {link.text}\n" if link.text else "\n"))
        self._file.flush()

    def _write_waiting(self) -> None:
        lines = []
        while not self._waiting.empty():
            lines.append(self._waiting.get_nowait() + "\n")
        if self._skipped:
            lines.append(f"{self._skipped} lines left out: whoever reads this is too slow\n")
            self._skipped = 0
        if lines:
            self._file.write("".join(lines))
            self._file.flush()


def _run(output: Output, subscriber: Subscriber, stop: threading.Event, failures: list[Exception]) -> None:
    try:
        output.run(subscriber, stop)
    except Exception as error:
        failures.append(error)


def _picture(subscriber: Subscriber, console: Console, least_height: int = 0) -> Group:
    from edge.view.draw import screen

    width, height = console.size
    height = max(height, least_height)
    with subscriber.lock:
        return screen(
            subscriber.view,
            subscriber.link,
            now_s=time.monotonic(),
            width=width,
            height=height,
            ascii_only=console.options.ascii_only,
        )


def _show_once(subscriber: Subscriber, stopped: Ended, file: TextIO) -> int:
    console = make_console(file, None if file.isatty() else ONCE_SIZE)
    limit_s = time.monotonic() + ONCE_LIMIT_S
    while not stopped() and subscriber.refused is None and time.monotonic() < limit_s:
        link = subscriber.link
        if link.connected and time.monotonic() - link.since_s > SETTLE_S:
            break
        time.sleep(POLL_S)
    check_login(subscriber)
    console.print(_picture(subscriber, console, least_height=ONCE_SIZE[1]))  # it may scroll: nothing gives way
    return 0 if subscriber.link.connected and subscriber.view.nodes else 1


def _farewell(subscriber: Subscriber) -> int:
    """A last word on standard error, which a picture leaves behind and a pipe does not carry."""
    with subscriber.lock:
        proofs = [f"{node_id}: {proof_sentence(node.proof)}" for node_id, node in subscriber.view.nodes.items()]
        reached = subscriber.ever_connected
        link = subscriber.link
    for text in proofs:
        print(text, file=sys.stderr)
    if not reached:
        print(f"no broker was reached at {link.address}: {link.text}", file=sys.stderr)
    return 0 if reached else 1
