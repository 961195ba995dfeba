"""The embedded broker under paho clients for minutes: nothing lost, nobody disconnected, memory flat, wills kept."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

pytest.importorskip("amqtt")

SECONDS = float(os.environ.get("EDGE_SOAK_S", "300"))
RATE_HZ = 20.0
BROKER = """
import sys
from edge.view.demo import EmbeddedBroker
broker = EmbeddedBroker(); broker.start(); print(broker.port, flush=True); sys.stdin.read(); broker.stop()
"""


@pytest.fixture
def broker() -> Iterator[tuple[int, int]]:
    """Port and process id of a broker with a process, hence a memory, of its own."""
    child = subprocess.Popen([sys.executable, "-c", BROKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    yield int(child.stdout.readline()), child.pid
    child.stdin.close()
    assert child.wait(15) == 0


class Client:
    """A paho client that counts what reaches it and every connection it loses."""

    def __init__(self, port: int, name: str, topics: str = "", will: str = "") -> None:
        self.lost = 0
        self.heard: list[bytes] = []
        self.retained: dict[str, bytes] = {}
        self._ready = threading.Event()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name)
        self.client.on_disconnect = self._on_disconnect
        self.client.on_message = self._on_message
        self.client.on_subscribe = lambda *_: self._ready.set()
        if will:
            self.client.will_set(will, b"offline", qos=1, retain=True)
        self.client.connect("127.0.0.1", port, 10)
        self.client.loop_start()
        if topics:
            self.client.subscribe(topics, 1)
            assert self._ready.wait(5)

    def _on_disconnect(self, *_: object) -> None:
        self.lost += 1

    def _on_message(self, _client: mqtt.Client, _user: object, message: mqtt.MQTTMessage) -> None:
        if message.retain:
            self.retained[message.topic] = bytes(message.payload)
        elif message.topic.startswith("line/part"):
            self.heard.append(bytes(message.payload[:8]))

    def vanish(self) -> None:
        """Cut the connection without a goodbye."""
        self.client.loop_stop()
        sock = self.client.socket()
        assert sock is not None
        sock.close()

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 60)
def test_serves_qos_1_retained_and_wills_without_growth_or_disconnects(broker: tuple[int, int]) -> None:
    port, pid = broker
    publisher, subscriber = Client(port, "publisher"), Client(port, "subscriber", "#")
    sent, wills, warm_bytes = 0, 0, 0
    begun_s = time.monotonic()
    while (now_s := time.monotonic() - begun_s) < SECONDS:
        publisher.client.publish("line/part", f"{sent:08d}".encode() + b"x" * 1000, qos=1)
        if sent % int(RATE_HZ) == 0:
            publisher.client.publish("line/image", b"j" * 60_000, qos=0)
            publisher.client.publish("line/info", f"{sent}".encode(), qos=1, retain=True)
        if sent % int(RATE_HZ * 15) == 0:
            Client(port, f"doomed-{wills}", will=f"line/state/{wills}").vanish()
            wills += 1
        if not warm_bytes and now_s > SECONDS / 5:
            warm_bytes = rss_bytes(pid)
        sent += 1
        time.sleep(max(0.0, sent / RATE_HZ - (time.monotonic() - begun_s)))
    deadline_s = time.monotonic() + 10
    while len(subscriber.heard) < sent and time.monotonic() < deadline_s:
        time.sleep(0.1)
    late = Client(port, "late", "line/#")
    while len(late.retained) < wills + 1 and time.monotonic() < deadline_s + 10:
        time.sleep(0.1)
    grown = rss_bytes(pid) - warm_bytes
    print(
        f"{sent} messages in {SECONDS:.0f} s, {wills} wills, RSS {warm_bytes / 1e6:.1f} MB then {grown / 1e6:+.1f} MB"
    )
    assert subscriber.heard == [f"{n:08d}".encode() for n in range(sent)]
    assert (publisher.lost, subscriber.lost) == (0, 0)
    assert {topic: text for topic, text in late.retained.items() if "state" in topic} == {
        f"line/state/{n}": b"offline" for n in range(wills)
    }
    assert grown < 5_000_000
    for client in (publisher, subscriber, late):
        client.close()
