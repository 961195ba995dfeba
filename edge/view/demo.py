"""`edge demo`, what `make run` shows: a whole simulated line on this machine, without camera, broker or network.

The daemon runs as a child process, exactly as on a device: its inference holds Python's interpreter lock from start to
end, so broker and view in the same process would stand still meanwhile and its memory could not be told from theirs.
The broker shares a process with the view, in a thread with its own event loop: both only wait for messages, a few
dozen a second, so neither slows the other, and one process less has to start before the first verdict.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

import msgspec

from edge import config, recipe
from edge.errors import EdgeError
from edge.view.state import NodeId, NodeView
from edge.view.subscribe import Subscriber, Where
from edge.view.terminal import Output, PlainLines, StopSignals, choose_output, own_output, show
from edge.view.words import ledger_sentence, proof_sentence

FIRST_VERDICT_LIMIT_S = 60.0
STOP_LIMIT_S = 20.0  # for the daemon to end by itself after SIGTERM
KILL_LIMIT_S = 5.0
LAST_WORD_LIMIT_S = 5.0  # for its last messages to come through the broker
BROKER_LIMIT_S = 10.0
POLL_S = 0.05
LOG_LINES_SHOWN = 6
STATION = NodeId("demo", "line1", "edge")
# Asks the kernel for SIGTERM when the thread that started us ends (PR_SET_PDEATHSIG), then becomes the daemon.
# Popen's preexec_fn could do it, but is not safe beside threads.
DIE_WITH_PARENT = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execvp(sys.argv[1], sys.argv[1:])"
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


class DaemonProcess:
    """The device daemon as a child that does not outlive us, its log in a file.

    It is a session of its own, so that Ctrl-C reaches only us and we end it in order.
    """

    def __init__(self, command: Sequence[str], config_file: Path, log_file: Path) -> None:
        self.log_file = log_file
        with log_file.open("ab") as sink:
            self._child = subprocess.Popen(
                [sys.executable, "-ISc", DIE_WITH_PARENT, *command, "--config", str(config_file)],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._child.poll()

    def stop(self) -> bool:
        """Ask it to end and wait. False: it had to be killed."""
        if self._child.poll() is None:
            self._child.terminate()
        try:
            self._child.wait(STOP_LIMIT_S)
            return True
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait(KILL_LIMIT_S)
            return False

    def last_lines(self) -> str:
        """The end of its log, indented."""
        with self.log_file.open("rb") as file:
            file.seek(max(0, self.log_file.stat().st_size - 8192))
            lines = file.read().decode("utf-8", "replace").splitlines()
        return "\n".join(f"  {line}" for line in [x for x in lines if x.strip()][-LOG_LINES_SHOWN:])


def demo(
    seconds: float | None,
    bundle: Path,
    seed: int,
    headless: bool = False,
    *,
    state: Path | None = None,
    command: Sequence[str] = DAEMON,
) -> int:
    """Run a simulated line and show it until Ctrl-C.

    Args:
        seconds: end by itself so long after the first verdict; None: only when told.
        bundle: the model bundle's folder.
        seed: of the simulated camera.
        headless: plain lines even on a terminal.
        state: folder that keeps outbox and log; None: a temporary one, kept only when something failed.
        command: what runs the daemon; `--config FILE` is added.

    Returns:
        0 when the daemon ended by itself in order with a ledger that balances, else 1.

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
        config_file = _write_config(folder, bundle, seed, mqtt)
        broker.start()
        subscriber = cleanup.enter_context(Subscriber(mqtt, Where(*STATION), output.heard))
        # The view listens before the daemon speaks, so it must come to hold every message from the first one on.
        if not _wait(lambda: subscriber.subscribed, BROKER_LIMIT_S):
            raise EdgeError(f"the embedded broker does not answer: {subscriber.link.text or 'no reason known'}")
        daemon = DaemonProcess(command, config_file, folder / "daemon.log")
        cleanup.callback(daemon.stop)
        line = _Line(daemon, subscriber, output, signals, file, began_s)
        if line.wait_for_first_verdict():
            line.watch(seconds)
        fine = line.stop()
    if fine and state is None:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if fine else 1


class _Line:
    """The running demo: daemon and view together."""

    def __init__(
        self,
        daemon: DaemonProcess,
        subscriber: Subscriber,
        output: Output,
        signals: StopSignals,
        file: TextIO,
        began_s: float,
    ) -> None:
        self._daemon = daemon
        self._subscriber = subscriber
        self._output = output
        self._signals = signals
        self._began_s = began_s
        self._file: TextIO | None = file  # None: whoever read it has gone
        self._in_time = True  # the first verdict came within its limit

    def wait_for_first_verdict(self) -> bool:
        """Whether there is one to look at."""
        self._tell(f"starting a simulated line; its MQTT broker listens on {self._subscriber.link.address}")
        judged = _wait(lambda: self._over() or bool(self._node().verdicts), FIRST_VERDICT_LIMIT_S)
        self._in_time = judged
        if not judged or self._over():
            return False
        self._tell(f"first verdict after {time.monotonic() - self._began_s:.1f} s")
        return True

    def watch(self, seconds: float | None) -> None:
        """Show the line until Ctrl-C, the daemon's end or `seconds` from now."""
        deadline_s = time.monotonic() + (seconds if seconds is not None else float("inf"))
        self._show(lambda: self._over() or time.monotonic() > deadline_s)

    def stop(self) -> bool:
        """End the daemon in order and say how it all added up. True: as it should be."""
        died = self._daemon.exit_code
        asked_mono_ns = time.monotonic_ns()
        in_order = self._daemon.stop()
        if in_order and died is None:
            _wait(lambda: self._node().state == "offline", LAST_WORD_LIMIT_S)
        if isinstance(self._output, PlainLines) and self._file is not None:
            self._show(lambda: True)  # what came while the daemon was ending
        if died is not None:
            return self._complain(f"the inspection daemon ended by itself with exit code {died}")
        if not self._in_time:
            return self._complain(f"no verdict came within {FIRST_VERDICT_LIMIT_S:.0f} s")
        if not in_order:
            return self._complain(f"the inspection daemon did not end within {STOP_LIMIT_S:.0f} s and was killed")
        if self._daemon.exit_code:
            return self._complain(f"the inspection daemon ended with exit code {self._daemon.exit_code}")
        return self._settle(asked_mono_ns)

    def _show(self, ended: Callable[[], bool]) -> None:
        if not show(self._output, self._subscriber, ended):
            self._file = None

    def _settle(self, asked_mono_ns: int) -> bool:
        health, proof = self._node().health, self._node().proof
        if health is None or health.mono_ns < asked_mono_ns:  # one clock: same machine, same boot
            return self._complain("the inspection daemon ended without telling its last ledger")
        self._tell(ledger_sentence(health.ledger))
        self._tell(proof_sentence(proof))
        return health.ledger.balanced or self._complain("the ledger does not balance")

    def _complain(self, what: str) -> bool:
        self._file = None  # to standard error
        log_file = self._daemon.log_file
        self._tell(f"{what}; its log {log_file} ends with:\n{self._daemon.last_lines() or '  (nothing)'}")
        return False

    def _over(self) -> bool:
        return self._signals.asked or self._daemon.exit_code is not None

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


def _write_config(folder: Path, bundle: Path, seed: int, mqtt: config.Mqtt) -> Path:
    """The site config of the simulated line, to be read and tried out by a curious user."""
    text = f"""\
# Written by the demo: a simulated line on this machine.
[station]
site = {_quoted(STATION.site)}
line = {_quoted(STATION.line)}
node = {_quoted(STATION.node)}

[paths]
state = {_quoted(str(folder / "state"))}
bundle = {_quoted(str(bundle.resolve()))}
{_recipe_line(folder, bundle)}
[mqtt]
host = {_quoted(mqtt.host)}
port = {mqtt.port}

[publish]
health_s = 2.0

[[camera]]
source = "simulated"
id = "top"
seed = {seed}
"""
    path = folder / "edge.toml"
    try:
        path.write_text(text, "utf-8")
        (folder / "daemon.log").touch()
    except OSError as error:
        raise EdgeError(
            f"{error.filename} cannot be written: {error.strerror}; choose another folder with --state"
        ) from error
    return path


def _recipe_line(folder: Path, bundle: Path) -> str:
    """The bundle's recipe with drift judged by this line: drawn boards are no photographs of real ones.

    Empty where the bundle's recipe cannot be read: the daemon will say so.
    """
    try:
        own = recipe.load(bundle / "recipe.toml")
        changed = msgspec.structs.replace(own, drift=msgspec.structs.replace(own.drift, baseline="line"))
        path = folder / "recipe.toml"
        path.write_text(recipe.dump(changed), "utf-8")
    except (EdgeError, OSError):
        return ""
    return f"recipe = {_quoted(str(path))}\n"


def _quoted(text: str) -> str:
    """A TOML basic string; JSON's escapes are a subset of its own."""
    return json.dumps(text, ensure_ascii=False)
