"""`edge demo`, what `make run` shows: a whole simulated line on this machine, without camera, broker or network.

The daemon runs as a child process, exactly as on a device: its inference holds Python's interpreter lock from start to
end, so broker and view in the same process would stand still meanwhile and its memory could not be told from theirs.
The broker shares a process with the view, in a thread with its own event loop: both only wait for messages, a few
dozen a second, so neither slows the other, and one process less has to start before the first verdict.
With `--line` a third process plays the PLC, which triggers the line over a pty as it would over a serial cable.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from edge import config
from edge.errors import EdgeError
from edge.records import VerdictKind
from edge.view.child import STOP_LIMIT_S, ChildProcess
from edge.view.demo_config import STATION, write_config
from edge.view.demo_plc import PROGRAM, SimulatedPlc, account_sentence
from edge.view.state import NodeView
from edge.view.subscribe import Subscriber, Where
from edge.view.terminal import Output, PlainLines, StopSignals, choose_output, own_output, show
from edge.view.words import ledger_sentence, proof_sentence

FIRST_VERDICT_LIMIT_S = 60.0
ABANDONED_LIMIT_S = 1.0  # for a PLC whose station has gone
LAST_WORD_LIMIT_S = 5.0  # for its last messages to come through the broker
BROKER_LIMIT_S = 10.0
POLL_S = 0.05
DAEMON = (sys.executable, "-m", "edge", "run")

log = logging.getLogger(__name__)


class EmbeddedBroker:
    """An MQTT broker on a free loopback port, in a thread of its own.

    The port is ours from the moment of construction, so no other program can take it; connections wait in the
    socket's queue until `start`.

    Raises:
        EdgeError: the broker is not installed (at construction) or did not start (at `start`).
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("amqtt") is None:
            raise EdgeError(
                "the demo needs the package amqtt, which is not installed here: pip install 'edge-inspection[demo]'"
            )
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._started = threading.Event()
        self._failure: Exception | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="broker", daemon=True)

    def start(self) -> None:
        """Serve. Returns when clients are being answered."""
        self._thread.start()
        if not self._started.wait(BROKER_LIMIT_S) or self._failure is not None:
            raise EdgeError(f"the embedded broker did not start: {self._failure or 'no answer'}") from self._failure

    def stop(self) -> None:
        """Close all connections and the port."""
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # it ended between the check and the call
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(BROKER_LIMIT_S)
        self._socket.close()

    def _run(self) -> None:
        for name in ("amqtt", "transitions"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # it warns of every client that goes away
        try:
            asyncio.run(self._serve())
        except Exception as error:
            self._failure = error
        self._started.set()

    async def _serve(self) -> None:
        from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter
        from amqtt.broker import Broker

        async def serve_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await broker.external_connected(StreamReaderAdapter(reader), StreamWriterAdapter(writer), "default")

        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_exception_handler(lambda _loop, context: log.debug("broker: %s", context))
        anonymous = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
        broker = Broker({"listeners": {"default": {"type": "external"}}, "plugins": anonymous})
        await broker.start()
        server = await asyncio.start_server(serve_client, sock=self._socket)
        self._started.set()
        await self._stop.wait()
        server.close()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(broker.shutdown(), BROKER_LIMIT_S / 2)


def demo(
    seconds: float | None,
    bundle: Path,
    seed: int,
    headless: bool = False,
    *,
    line: bool = False,
    state: Path | None = None,
    command: Sequence[str] = DAEMON,
    plc_command: Sequence[str] = PROGRAM,
) -> int:
    """Run a simulated line and show it until Ctrl-C.

    Args:
        seconds: end by itself so long after the first verdict; None: only when told.
        bundle: the model bundle's folder.
        seed: of the simulated camera.
        headless: plain lines even on a terminal.
        line: a simulated PLC triggers the parts; else each frame is one.
        state: folder that keeps outbox and log; None: a temporary one, kept only when something failed.
        command: what runs the daemon; `--config FILE` is added.
        plc_command: what plays the PLC; its options are added.

    Returns:
        0 when the daemon ended by itself in order with a ledger that balances, and the PLC has an answer to each of
        its triggers; else 1.

    Raises:
        EdgeError: the demo's packages are not installed, or its folder cannot be written.
    """
    began_s = time.monotonic()
    file = own_output()
    output = PlainLines(file) if headless else choose_output(file)
    folder = _make_folder(state)
    with StopSignals() as signals, contextlib.ExitStack() as cleanup:
        broker = EmbeddedBroker()
        cleanup.callback(broker.stop)
        mqtt = config.Mqtt(port=broker.port)
        config_file = write_config(folder, bundle, seed, mqtt, line=line)
        broker.start()
        subscriber = cleanup.enter_context(Subscriber(mqtt, Where(*STATION), output.heard))
        # The view listens before the daemon speaks, so it must come to hold every message from the first one on.
        if not _wait(lambda: subscriber.subscribed, BROKER_LIMIT_S):
            raise EdgeError(f"the embedded broker does not answer: {subscriber.link.text or 'no reason known'}")
        plc = SimulatedPlc(folder, plc_command) if line else None
        if plc is not None:
            cleanup.callback(plc.child.stop, ABANDONED_LIMIT_S)
        daemon = ChildProcess([*command, "--config", str(config_file)], folder / "daemon.log")
        cleanup.callback(daemon.stop)
        running = _Line(daemon, plc, subscriber, output, signals, file, began_s)
        if running.wait_for_first_verdict():
            running.watch(seconds)
        fine = running.stop()
    if fine and state is None:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if fine else 1


class _Line:
    """The running demo: daemon, view and, where there is one, PLC together."""

    def __init__(
        self,
        daemon: ChildProcess,
        plc: SimulatedPlc | None,
        subscriber: Subscriber,
        output: Output,
        signals: StopSignals,
        file: TextIO,
        began_s: float,
    ) -> None:
        self._daemon = daemon
        self._plc = plc
        self._subscriber = subscriber
        self._output = output
        self._signals = signals
        self._began_s = began_s
        self._file: TextIO | None = file  # None: whoever read it has gone
        self._in_time = True  # the first verdict came within its limit

    def wait_for_first_verdict(self) -> bool:
        """Whether there is one to look at."""
        under = f" under a simulated PLC on {self._plc.port}" if self._plc is not None else ""
        self._tell(f"starting a simulated line{under}; its MQTT broker listens on {self._subscriber.link.address}")
        in_time = _wait(lambda: self._over() or self._has_verdict(), FIRST_VERDICT_LIMIT_S)
        self._in_time = in_time
        if not in_time or self._over():
            return False
        self._tell(f"first verdict after {time.monotonic() - self._began_s:.1f} s")
        return True

    def watch(self, seconds: float | None) -> None:
        """Show the line until Ctrl-C, the daemon's end or `seconds` from now."""
        deadline_s = time.monotonic() + (seconds if seconds is not None else float("inf"))
        self._show(lambda: self._over() or time.monotonic() > deadline_s)

    def stop(self) -> bool:
        """End PLC and daemon in order and say how it all added up. True: as it should be."""
        died = self._daemon.exit_code
        plc_fault = self._stop_plc(ABANDONED_LIMIT_S if died is not None else STOP_LIMIT_S)
        asked_mono_ns = time.monotonic_ns()
        in_order = self._daemon.stop(STOP_LIMIT_S)
        if self._daemon.exit_code == 0:
            _wait(lambda: self._node().state == "offline", LAST_WORD_LIMIT_S)
        if isinstance(self._output, PlainLines) and self._file is not None:
            self._show(lambda: True)  # what came while the daemon was ending
        if died is not None:
            return self._complain(f"the inspection daemon ended by itself with exit code {died}")
        if plc_fault and self._plc is not None:
            return self._complain(plc_fault, self._plc.child)
        if not self._in_time:
            return self._complain(f"no verdict came within {FIRST_VERDICT_LIMIT_S:.0f} s")
        if not in_order:
            return self._complain(f"the inspection daemon did not end within {STOP_LIMIT_S:.0f} s and was killed")
        if self._daemon.exit_code:
            return self._complain(f"the inspection daemon ended with exit code {self._daemon.exit_code}")
        return self._settle(asked_mono_ns)

    def _stop_plc(self, limit_s: float) -> str:
        """End it first, so that every trigger finds a station that answers; what is wrong with it, "" for nothing."""
        if self._plc is None:
            return ""
        died = self._plc.child.exit_code
        in_order = self._plc.child.stop(limit_s)
        if died is not None:
            return f"the simulated PLC ended by itself with exit code {died}"
        return "" if in_order else f"the simulated PLC did not end within {limit_s:.0f} s and was killed"

    def _show(self, ended: Callable[[], bool]) -> None:
        if not show(self._output, self._subscriber, ended):
            self._file = None

    def _settle(self, asked_mono_ns: int) -> bool:
        health, proof = self._node().health, self._node().proof
        if health is None or health.mono_ns < asked_mono_ns:  # one clock: same machine, same boot
            return self._complain("the inspection daemon ended without telling its last ledger")
        self._tell(ledger_sentence(health.ledger))
        self._tell(proof_sentence(proof))
        if not health.ledger.balanced:
            return self._complain("the ledger does not balance")
        return self._plc is None or not self._has_verdict() or self._settle_plc(self._plc)

    def _settle_plc(self, plc: SimulatedPlc) -> bool:
        """The PLC's own account: what a station says of itself proves little."""
        account = plc.account()
        if account is None:
            return self._complain("the simulated PLC ended without telling its account", plc.child)
        self._tell(account_sentence(account))
        return account.is_good or self._complain("not every trigger was answered as it has to be", plc.child)

    def _complain(self, what: str, child: ChildProcess | None = None) -> bool:
        """`child`: whose log tells more; None: the daemon's."""
        self._file = None  # to standard error
        child = child or self._daemon
        self._tell(f"{what}; its log {child.log_file} ends with:\n{child.last_lines() or '  (nothing)'}")
        return False

    def _over(self) -> bool:
        plc_ended = self._plc is not None and self._plc.child.exit_code is not None
        return self._signals.asked or self._daemon.exit_code is not None or plc_ended

    def _has_verdict(self) -> bool:
        """Whether a part was judged; of a triggered station losses are heard as well."""
        node = self._node()
        with self._subscriber.lock:
            return any(node.verdicts[kind.value] for kind in VerdictKind)

    def _node(self) -> NodeView:
        with self._subscriber.lock:
            return self._subscriber.view.nodes.get(STATION) or NodeView()

    def _tell(self, text: str) -> None:
        with contextlib.suppress(OSError):
            print(text, file=self._file or sys.stderr, flush=True)


def _wait(condition: Callable[[], bool], limit_s: float) -> bool:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(POLL_S)
    return True


def _make_folder(state: Path | None) -> Path:
    try:
        if state is None:
            return Path(tempfile.mkdtemp(prefix="edge-demo-"))
        state.mkdir(parents=True, exist_ok=True)
        return state.resolve()
    except OSError as error:
        raise EdgeError(
            f"the demo's folder {state or tempfile.gettempdir()} cannot be made: {error.strerror}; "
            "choose another with --state"
        ) from error
