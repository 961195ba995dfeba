"""Each thread of a real daemon is hung in turn, and this test is its service manager.

The sign of life stops for as long as one of the five hangs (capture, inference, outbox, publisher, PLC), and the log
and the status name it; troubles of the line (broker away, cable out, camera unplugged, disk full) do not stop it.
All cases run at the same time, most of which they wait.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import psutil
import pytest

from edge.config import Config, SimulatedCamera
from edge.event import Topics
from edge.plc.cable import PtyCable
from edge.serving import prepare
from tests.brokers import MOSQUITTO, Broker, Reader, free_port, wait_until
from tests.disks import small_disk
from tests.flow.hanging import LIMIT_S
from tests.flow.rig import PCB, REPOSITORY, Daemon

WATCHDOG_S = 7.5
FED_S = WATCHDOG_S / 3
TROUBLE_S = 2 * LIMIT_S + FED_S  # long enough for whatever would be taken for a hang
WAIT_S = 60.0
CAMERA = '[[camera]]\nid = "cam1"\nsource = "simulated"\nfps = 0.5\ndefect_rate = 1.0\nfault_rate = 0.0\n'
NOTHING = "nothing"
COMPILER = shutil.which("cc") or shutil.which("gcc")
TOPICS = Topics("edge", "site", "line", "edge")  # the config's defaults


class Manager:
    """What systemd hears of one daemon."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.settimeout(0.2)
        self.heard: list[tuple[float, str]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                continue
            self.heard.append((time.monotonic(), data.decode()))

    def pings(self) -> list[float]:
        """When a sign of life came."""
        return [at for at, text in self.heard if "WATCHDOG=1" in text]

    def said(self, words: str) -> bool:
        """Whether the status line had these words."""
        return any(text.startswith("STATUS=") and words in text for _, text in self.heard)

    def close(self) -> None:
        self._end.set()
        self._thread.join(5)
        self._socket.close()


class Watched(Daemon):
    """A daemon under a `Manager`, in which one call can be made to hang.

    Attributes:
        marks: of models that have been tried once, so that not each daemon tries them.
    """

    marks: ClassVar[Path]

    def __init__(self, folder: Path, port: int, cameras: str = CAMERA, more: str = "", health_s: float = 1.0) -> None:
        super().__init__(folder, port, cameras, more=more)
        self.config.write_text(self.config.read_text().replace("health_s = 1.0", f"health_s = {health_s}"))
        shutil.copytree(self.marks, self.state / "trials")
        self.manager = Manager(folder)
        self.file = folder / "hang"
        self.hung_s = 0.0

    def begin(self, what: str, **env: str) -> None:
        """Start it, and wait for two signs of life."""
        own = {"NOTIFY_SOCKET": self.manager.address, "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.flow.hanging", what, str(self.file), "run", "--config", str(self.config)],
                stderr=log, stdout=log, cwd=REPOSITORY,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", **own, **env},
            )  # fmt: skip
        wait_until(lambda: len(self.manager.pings()) >= 2, WAIT_S, f"two signs of life: {self.log()[-2000:]}")

    def hang(self) -> None:
        """From now on the call hangs."""
        self.hung_s = time.monotonic()
        self.file.touch()

    def pings_within(self, seconds: float) -> int:
        """How many signs of life come from now on."""
        before = len(self.manager.pings())
        time.sleep(seconds)
        return len(self.manager.pings()) - before

    def wait_ping(self) -> None:
        """Wait for the next sign of life."""
        came = len(self.manager.pings())
        wait_until(lambda: len(self.manager.pings()) > came, WAIT_S, f"a sign of life: {self.log()[-2000:]}")

    def finish(self) -> None:
        """In good order where that goes: then its children end, too."""
        self.file.unlink(missing_ok=True)
        if self.process is not None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        self.end()
        self.manager.close()


@dataclass
class Story:
    """What came of one case.

    Attributes:
        last_s, named_s: after the hang began: the last sign of life, the log's word.
        silent: signs of life that came in the time for more than one, after the culprit was named.
        again: whether it went on when the call came back, and ended as it should.
    """

    log: str = ""
    before: int = 0
    last_s: float = 0.0
    named_s: float = 0.0
    silent: int = -1
    status: bool = False
    again: bool = False
    code: int | None = None
    more: dict[str, int] = field(default_factory=dict)


def a_hang(daemon: Watched, name: str) -> Story:
    """Hang, be named, be silent or not, come back, stop in good order."""
    story = Story(before=len(daemon.manager.pings()))
    daemon.hang()
    daemon.wait_log(f"{name} hangs: no progress", WAIT_S)
    story.named_s = time.monotonic() - daemon.hung_s
    story.last_s = daemon.manager.pings()[-1] - daemon.hung_s
    story.silent = daemon.pings_within(1.4 * FED_S)
    story.status = daemon.manager.said(f"{name} hangs")
    daemon.file.unlink()
    daemon.wait_log(f"{name} moves again", WAIT_S)
    daemon.wait_ping()
    story.again = True
    story.code = daemon.stop()
    story.log = daemon.log()
    return story


def hang_of(what: str, name: str, cable: bool = False) -> Callable[[Path, ExitStack], Story]:
    """One call of a thread hangs; there is no broker."""

    def run(folder: Path, down: ExitStack) -> Story:
        more = "[evidence]\nok_every = 1\n"
        if cable:
            more += plug(folder, down)[1]
        daemon = Watched(folder, free_port(), more=more)
        down.callback(daemon.finish)
        daemon.begin(what)
        return a_hang(daemon, name)

    return run


def plug(folder: Path, down: ExitStack) -> tuple[PtyCable, str]:
    """A cable to a PLC that says nothing, and the config for it."""
    cable = PtyCable(folder / "plc")
    cable.plug()
    down.callback(cable.pull)
    return cable, f'[plc]\nport = "{folder / "plc"}"\n'


def hang_of_requests(folder: Path, down: ExitStack) -> Story:
    """A request whose handler does not come back."""
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    broker = down.enter_context(Broker(folder / "broker"))
    daemon = Watched(folder, broker.port)
    down.callback(daemon.finish)
    daemon.begin("requests")
    daemon.wait_log("connected to", WAIT_S)
    reader = down.enter_context(Reader(broker.port))
    daemon.file.touch()
    reader.publish(TOPICS.request("status"), b'{"transaction": "t1"}')
    return a_hang(daemon, "requests")


def hang_of_the_disk(between_parts: bool) -> Callable[[Path, ExitStack], Story]:
    """The disk does not come back from a sync; between parts nobody but the check would notice."""

    def run(folder: Path, down: ExitStack) -> Story:
        if COMPILER is None:
            pytest.skip("no C compiler")
        library = folder / "hung_disk.so"
        source = Path(__file__).with_name("hung_disk.c")
        subprocess.run([COMPILER, "-shared", "-fPIC", "-o", str(library), str(source)], check=True, timeout=60)
        _, more = plug(folder, down)
        # Without a trigger no part comes.
        more = "[genealogy]\nuse = false\n" + (more if between_parts else "")
        daemon = Watched(folder, free_port(), more=more, health_s=600.0)
        down.callback(daemon.finish)
        daemon.begin(NOTHING, LD_PRELOAD=str(library), HANG_FILE=str(daemon.file))
        if between_parts:
            daemon.wait_log("alarm plc:", WAIT_S)  # nothing comes after it
            daemon.wait_ping()  # it is stored, too
        return a_hang(daemon, "outbox")

    return run


def hang_with_the_interpreter(folder: Path, down: ExitStack) -> Story:
    """No thread of Python can say anything; then the service manager ends it, as it does."""
    daemon = Watched(folder, free_port())
    down.callback(daemon.finish)
    daemon.begin("inference_with_gil")
    story = Story(before=len(daemon.manager.pings()))
    daemon.hang()
    daemon.wait_log("Timeout (0:00:0", WAIT_S)
    story.named_s = time.monotonic() - daemon.hung_s
    story.last_s = daemon.manager.pings()[-1] - daemon.hung_s
    story.silent = daemon.pings_within(1.4 * FED_S)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGABRT)
    story.code = daemon.wait(20)
    story.log = daemon.log()
    return story


def everything_away(folder: Path, down: ExitStack) -> Story:
    """A broker that hangs, a camera that dies, one that goes mute, a cable that is pulled: all at once."""
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    broker = down.enter_context(Broker(folder / "broker"))
    cable, more = plug(folder, down)
    mute = [sys.executable, "-m", "tests.flow.frame_server", "--fps", "1", "--size", "64", "--boards", "1"]
    cameras = CAMERA + "".join(
        f'[[camera]]\nid = "{name}"\nsource = "pipe"\ncommand = {json.dumps(command)}\nwidth = 64\nheight = 64\n'
        'format = "gray"\nstall_s = 1.0\nretry_s = 0.2\n'
        for name, command in (("dead", ["false"]), ("mute", ["sleep", "1000"]), ("unplugged", mute))
    )
    daemon = Watched(folder, broker.port, cameras, more)
    down.callback(daemon.finish)
    daemon.begin(NOTHING)
    daemon.wait_log("connected to", WAIT_S)
    daemon.wait_log("PLC connected", WAIT_S)
    story = Story(before=len(daemon.manager.pings()))
    broker.freeze()
    cable.pull()
    assert daemon.process is not None
    (camera,) = [child for child in psutil.Process(daemon.process.pid).children() if "--fps" in child.cmdline()]
    camera.suspend()
    story.silent = daemon.pings_within(TROUBLE_S)
    broker.kill()
    story.more["after the broker has died"] = daemon.pings_within(1.4 * FED_S)
    story.code = daemon.stop()
    story.log = daemon.log()
    return story


def disk_full(folder: Path, down: ExitStack) -> Story:
    """No byte can be stored any more; every part is a named loss."""
    disk = down.enter_context(small_disk(folder / "disk", 24))
    daemon = Watched(disk, free_port())
    daemon.log_path = folder / "daemon.log"
    down.callback(daemon.finish)
    daemon.begin(NOTHING)
    story = Story(before=len(daemon.manager.pings()))
    with open(disk / "filler", "wb") as filler:
        try:
            while True:
                filler.write(bytes(65536))
                filler.flush()
        except OSError:
            pass
    story.silent = daemon.pings_within(TROUBLE_S)
    story.log = daemon.log()
    return story


# What hangs -> how it is done, and what the log must say of the place.
HANGS = {
    "capture": (hang_of("capture", "capture cam1"), "_read (edge/capture/camera.py:"),
    "inference": (hang_of("inference", "inspection"), "edge/pipeline.py:"),
    # By the system call itself where that can be had.
    "outbox": (hang_of_the_disk(between_parts=False) if COMPILER else hang_of("outbox", "outbox"), "(edge/outbox.py:"),
    "outbox between parts": (hang_of_the_disk(between_parts=True), "called by check (edge/outbox.py:"),
    "publisher": (hang_of("publisher", "publisher"), "open (edge/session.py:"),
    "plc": (hang_of("plc", "PLC link", cable=True), "turn (edge/plc/ascii_link.py:"),
}
BESIDE = {
    "requests": (hang_of_requests, "hung_requests"),
    "evidence": (hang_of("evidence", "evidence"), "hung_evidence"),
    "recorder": (hang_of("recorder", "the recording"), "hung_the_recording"),
}
OTHERS = {
    "gil": hang_with_the_interpreter,
    "everything away": everything_away,
    "disk full": disk_full,
}
TROUBLES = {
    "everything away": (
        "camera dead: reconnecting", "camera mute: stalled", "camera unplugged: stalled", "PLC reconnecting",
        "refuses the connection",
    ),
    "disk full": ("alarm outbox: ", "refuses the connection"),
}  # fmt: skip
ALL = {**{name: case for name, (case, _) in (*HANGS.items(), *BESIDE.items())}, **OTHERS}


@pytest.fixture(scope="module")
def stories(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Story]]]:
    """Those cases that are asked for, at the same time."""
    own = [item for item in request.session.items if item.fspath == request.node.fspath]
    wanted = [item.callspec.params["what"] for item in own if hasattr(item, "callspec")]

    Watched.marks = tmp_path_factory.mktemp("marks")
    prepare(PCB, Config(camera=[SimulatedCamera(id="cam1")]), Watched.marks)
    folders = {name: tmp_path_factory.mktemp(name.replace(" ", "_")) for name in wanted}

    def run(name: str) -> Story:
        with ExitStack() as down:
            return ALL[name](folders[name], down)

    with ThreadPoolExecutor(len(ALL)) as pool:
        yield {name: pool.submit(run, name) for name in wanted}


def told(what: str, story: Story) -> None:
    """A line for who runs it with -s."""
    print(
        f"{what:20} pings before {story.before}, the last {story.last_s:+5.1f} s after the hang, "
        f"named after {story.named_s:4.1f} s, {story.silent} in the {1.4 * FED_S:.1f} s after that"
    )


@pytest.mark.parametrize("what", HANGS)
def test_a_thread_that_hangs_stops_the_sign_of_life_and_is_named(stories: dict[str, Future[Story]], what: str) -> None:
    story = stories[what].result()
    told(what, story)
    place = HANGS[what][1]
    assert story.before >= 2 and story.silent == 0, story.log
    assert any("hangs" in line and place in line and "will restart" in line for line in story.log.splitlines())
    assert story.status, "the status names it too"
    assert story.again and story.code == 0, "it goes on as if nothing had been, and its books balance"
    assert "Traceback" not in story.log


@pytest.mark.parametrize("what", BESIDE)
def test_a_hang_beside_the_parts_is_an_alarm_and_stops_nothing(stories: dict[str, Future[Story]], what: str) -> None:
    story = stories[what].result()
    told(what, story)
    assert story.before >= 2 and story.silent >= 1, story.log
    assert f"alarm {BESIDE[what][1]}:" in story.log and f"alarm {BESIDE[what][1]} is over" in story.log
    assert story.status and story.code == 0


@pytest.mark.parametrize("what", ["gil"])
def test_a_hang_that_holds_the_interpreter_is_named_too(stories: dict[str, Future[Story]], what: str) -> None:
    story = stories[what].result()
    told(what, story)
    assert story.before >= 2 and story.silent == 0, story.log
    dump = story.log.partition("Timeout (0:00:0")[2].partition("Fatal Python error: Aborted")
    assert dump[1] and "in hang_with_gil" in dump[0] and "in inspect" in dump[0] and "in loop" in dump[0]
    assert "in hang_with_gil" in dump[2], "the same once more when it is ended"
    assert story.code == -signal.SIGABRT


@pytest.mark.parametrize("what", ["everything away", "disk full"])
def test_troubles_of_the_line_do_not_stop_the_sign_of_life(stories: dict[str, Future[Story]], what: str) -> None:
    story = stories[what].result()
    told(what, story)
    assert story.before >= 2 and story.silent >= 2, story.log
    assert all(count >= 1 for count in story.more.values())
    assert all(trouble in story.log for trouble in TROUBLES[what]), "they were there"
    assert "hangs" not in story.log
