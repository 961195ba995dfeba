"""The view as a technician runs it: against a real mosquitto, on a terminal and into a pipe."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge import config, event
from edge.errors import EdgeError, PublishError
from edge.view import terminal
from edge.view.subscribe import Subscriber, Where
from tests.brokers import Broker, free_port, needs_mosquitto, wait_until
from tests.view.fake_node import FakeNode
from tests.view.messages import alarm, books, line, line_node_health

pytestmark = needs_mosquitto

WATCH = """
import sys
from edge import config
from edge.errors import EdgeError
from edge.view import terminal
try:
    sys.exit(terminal.watch(config.Mqtt(port=int(sys.argv[1])), once="once" in sys.argv))
except EdgeError as error:
    sys.exit(f"edge: {error}")
"""


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as running:
        yield running


def make_node(port: int, name: str = "aoi") -> FakeNode:
    node = FakeNode(config.Mqtt(port=port), event.Topics("edge", "plant", "smt1", name))
    node.start()
    return node


def watch_in_background(port: int, out: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", WATCH, str(port), *arguments], stdout=out.open("wb"), stderr=subprocess.PIPE
    )


def end(child: subprocess.Popen[bytes]) -> tuple[int, str]:
    """SIGTERM; its exit code and what it said on standard error."""
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=10)
    return child.returncode, said.decode()


def test_into_a_pipe_it_writes_a_line_a_verdict_reject_and_alarm(broker: Broker, tmp_path: Path) -> None:
    out = tmp_path / "out"
    node = make_node(broker.port)
    child = watch_in_background(broker.port, out)
    wait_until(lambda: "aoi is running" in out.read_text(), 10, "the retained state")
    for _ in range(10):
        node.part()
    node.durable(node.topics.alarm("disk"), alarm("disk"), retain=True)
    node.client.publish(node.topics.alarm("disk"), b"", qos=1, retain=True)
    wait_until(lambda: "alarm over: disk" in out.read_text(), 10, "the last message")
    node.client.publish(node.topics.state, b"nonsense", qos=1)
    code, said = end(child)
    text = out.read_text()
    assert code == 0
    assert text.count(" aoi part ") == 10 + 2, "ten verdicts and two rejects"
    assert "rejected, blur: measured 41.2, limit 80; Focus the lens" in text
    assert "ALARM error disk: disk is wrong; Repair it." in text
    assert f"broker 127.0.0.1:{broker.port} connected" in text
    assert "\x1b" not in text, "no colour in a file"
    assert "plant/smt1/aoi: messages 1..13: all 13 held, no gap" in said
    node.stop()


def test_of_a_triggered_station_it_writes_parts_and_each_change_of_what_the_plc_sees(
    broker: Broker, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    node = make_node(broker.port)
    node.live(node.topics.line_state, line(due_s=600.0), retain=True)
    child = watch_in_background(broker.port, out)
    wait_until(lambda: "line Ready" in out.read_text(), 10, "what is retained")
    for minutes in (9, 8, 7):
        node.live(node.topics.line_state, line(due_s=60.0 * minutes), retain=True)
        node.triggered_part()
    node.live(node.topics.line_state, line(link="silent", detail="no heartbeat for 3 s"), retain=True)
    wait_until(lambda: "PLC silent" in out.read_text(), 10, "the last message")
    code, said = end(child)
    text = out.read_text()
    assert code == 0
    assert text.count(" aoi line Ready") == 2, "not each minute that brings the challenge nearer"
    assert [text.count(f" trigger {number} {outcome} ") for number, outcome in ((1, "OK"), (2, "OK"), (3, "NG"))] == [
        1, 1, 1,
    ]  # fmt: skip
    assert "plant/smt1/aoi: messages 1..3: all 3 held, no gap" in said
    node.stop()


def test_follows_a_broker_that_goes_away_and_comes_back(broker: Broker, tmp_path: Path) -> None:
    node = make_node(broker.port)
    with Subscriber(config.Mqtt(port=broker.port), Where(site="plant")) as subscriber:
        seen = subscriber.view.nodes
        wait_until(lambda: seen and next(iter(seen.values())).state == "running", 10, "the retained state")
        node.durable(node.topics.alarm("disk"), alarm("disk"), retain=True).wait_for_publish(5)
        wait_until(lambda: next(iter(seen.values())).alarms, 5, "the alarm")
        broker.kill()
        wait_until(lambda: not subscriber.link.connected, 5, "the loss to be noticed")
        assert "refused" in subscriber.link.text or "lost" in subscriber.link.text
        broker.start()
        wait_until(lambda: subscriber.link.connected, 10, "the way back")
        assert not next(iter(seen.values())).alarms, "this mosquitto kept nothing: the alarm is not known to stand"
    node.client.disconnect()
    node.client.loop_stop()


def test_a_node_that_vanishes_is_offline(broker: Broker) -> None:
    node = make_node(broker.port)
    with Subscriber(config.Mqtt(port=broker.port), Where()) as subscriber:
        seen = subscriber.view.nodes
        wait_until(lambda: seen and next(iter(seen.values())).state == "running", 10, "the retained state")
        node.client.loop_stop()
        sock = node.client.socket()
        assert sock is not None
        sock.close()
        wait_until(lambda: next(iter(seen.values())).state == "offline", 10, "the will")


@pytest.mark.parametrize(
    ("where", "expected", "reason"),
    [
        (Where(), {"aoi", "spi"}, "all"),
        (Where("plant", "smt1"), {"aoi", "spi"}, "a line"),
        (Where(node="spi"), {"spi"}, "one node"),
        (Where(line="smt2"), set(), "another line"),
    ],
)
def test_filter(broker: Broker, where: Where, expected: set[str], reason: str) -> None:
    nodes = [make_node(broker.port, name) for name in ("aoi", "spi")]
    with Subscriber(config.Mqtt(port=broker.port), where) as subscriber:
        wait_until(lambda: subscriber.link.connected, 5, "a connection")
        wait_until(lambda: len(subscriber.view.nodes) >= len(expected), 5, reason)
        assert {node.node for node in subscriber.view.nodes} == expected, reason
    for node in nodes:
        node.stop()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Broker]:
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", passwords, "tech", "right"], check=True, timeout=10)
    passwords.chmod(0o644)
    with Broker(tmp_path, ["allow_anonymous false", f"password_file {passwords}"]) as running:
        yield running


@pytest.mark.parametrize("username", [None, "tech", "nobody"])
def test_a_refused_password_is_one_sentence(guarded: Broker, username: str | None) -> None:
    settings = config.Mqtt(port=guarded.port, username=username, password="wrong" if username else None)
    with pytest.raises(PublishError, match=r"refuses this login.*: correct mqtt\.username and mqtt\.password"):
        terminal.watch(settings, threading.Event(), seconds=10)


def test_a_password_from_a_file(guarded: Broker, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("right\n")
    settings = config.Mqtt(port=guarded.port, username="tech", password_file=str(secret))
    assert terminal.watch(settings, threading.Event(), seconds=1.0) == 0


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"username": "a", "password_file": "/nowhere"}, r"mqtt\.password_file /nowhere cannot be read: No such file"),
        ({"tls": True, "ca_file": "/nowhere.pem"}, r"mqtt\.ca_file /nowhere\.pem cannot be read: No such file"),
        ({"host": "a" * 70}, "is not the name of a host"),
    ],
)
def test_settings_that_cannot_work_are_said_at_once(settings: dict[str, object], match: str) -> None:
    with pytest.raises(PublishError, match=match):
        terminal.watch(config.Mqtt(**settings), threading.Event(), seconds=5)  # type: ignore[arg-type]


def test_no_broker_is_said_and_is_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    assert terminal.watch(config.Mqtt(port=free_port()), threading.Event(), seconds=0.5) == 1
    out, err = capfd.readouterr()
    assert "not connected, trying again: connection refused" in out
    assert "no broker was reached" in err


def test_a_stop_that_is_set_already_ends_it_at_once(broker: Broker) -> None:
    stop = threading.Event()
    stop.set()
    begun_s = time.monotonic()
    terminal.watch(config.Mqtt(port=broker.port), stop)
    assert time.monotonic() - begun_s < 5


@pytest.mark.parametrize(("with_node", "code"), [(True, 0), (False, 1)])
def test_once_prints_one_picture(broker: Broker, tmp_path: Path, with_node: bool, code: int) -> None:
    pytest.importorskip("rich")
    node = make_node(broker.port) if with_node else None
    child = watch_in_background(broker.port, tmp_path / "out", "once")
    assert child.wait(15) == code
    text = (tmp_path / "out").read_text()
    assert ("RUNNING  plant/smt1/aoi" if with_node else "none heard yet") in text
    assert "\x1b" not in text
    if node is not None:
        node.stop()


def test_once_shows_all_of_a_triggered_station(broker: Broker, tmp_path: Path) -> None:
    pytest.importorskip("rich")
    node = make_node(broker.port)
    node.live(node.topics.line_state, line(error="challenge.missed"), retain=True)
    node.live(node.topics.ledger, books(7), retain=True).wait_for_publish(5)
    child = watch_in_background(broker.port, tmp_path / "out", "once")
    for _ in range(40):  # health is not retained
        node.live(node.topics.health, line_node_health(7))
        if child.poll() is not None:
            break
        time.sleep(0.1)
    assert child.wait(15) == 0
    text = (tmp_path / "out").read_text()
    for wanted in (
        "ERROR a master was missed",
        "p99.9 71.3",
        "balanced: 7 = OK 7",
        "head 9f8e7d6c5b4a",
        "reaches back",
    ):
        assert wanted in text, f"{wanted!r} not in {text}"
    node.stop()


def test_without_the_drawing_library_a_terminal_gets_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tty(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(EdgeError, match=r"pip install 'edge-inspection\[view\]'"):
        terminal.choose_output(Tty())
    assert isinstance(terminal.choose_output(io.StringIO()), terminal.PlainLines)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(terminal.choose_output(Tty()), terminal.PlainLines)


def test_ends_when_the_reader_of_its_lines_has_gone(broker: Broker) -> None:
    node = make_node(broker.port)
    child = subprocess.Popen(
        [sys.executable, "-c", WATCH, str(broker.port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    child.stdout.close()
    for _ in range(100):
        node.part()
        if child.poll() is not None:
            break
        time.sleep(0.05)
    _, said = child.communicate(timeout=10)
    assert child.returncode == 0
    assert b"Traceback" not in said
    node.stop()


def test_ends_although_nobody_reads_its_full_pipe(broker: Broker) -> None:
    node = make_node(broker.port)
    child = subprocess.Popen(
        [sys.executable, "-c", WATCH, str(broker.port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    fcntl.fcntl(child.stdout, fcntl.F_SETPIPE_SZ if hasattr(fcntl, "F_SETPIPE_SZ") else 1031, 4096)
    child.stdout.peek(1)  # type: ignore[attr-defined]  # it has begun
    for _ in range(300):
        node.part()
    node.health().wait_for_publish(5)
    time.sleep(0.5)
    child.send_signal(signal.SIGTERM)
    child.wait(10)
    said = child.stderr.read() if child.stderr else b""
    assert child.returncode == 0, said
    assert b"Fatal" not in said
    node.stop()


def test_on_a_terminal_it_draws_follows_a_resize_and_leaves_the_screen_as_it_was(broker: Broker) -> None:
    pytest.importorskip("rich")
    node = make_node(broker.port)
    for _ in range(20):
        node.part()
    node.health()
    master, slave = pty.openpty()
    set_size(slave, 24, 80)
    child = subprocess.Popen(
        [sys.executable, "-c", WATCH, str(broker.port)],
        stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(slave)
    screen = Tape(master)
    screen.wait_for(r"RUNNING.*plant/smt1/aoi", 10)
    assert "\x1b[?1049h" in screen.text, "another screen, so that the user's own is kept"
    node.part()
    screen.wait_for(r"#21", 10)
    set_size(master, 40, 120)
    node.part()
    screen.wait_for("─" * 90, 10)
    child.send_signal(signal.SIGINT)
    screen.wait_for(r"\x1b\[\?1049l", 10)
    assert child.wait(10) == 0
    assert "Traceback" not in screen.text
    os.close(master)
    node.stop()


class Tape:
    """All that a program writes to its terminal."""

    def __init__(self, master: int) -> None:
        self._master = master
        self._raw = b""

    @property
    def text(self) -> str:
        return self._raw.decode("utf-8", "replace")

    def wait_for(self, pattern: str, limit_s: float) -> None:
        deadline_s = time.monotonic() + limit_s
        while not re.search(pattern, self.text):
            assert time.monotonic() < deadline_s, f"{pattern} did not appear in {self.text[-3000:]!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    self._raw += os.read(self._master, 65536)
                except OSError:  # the program has ended
                    time.sleep(0.05)


def set_size(terminal_fd: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal_fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
