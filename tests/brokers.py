"""A real mosquitto on a free loopback port, and a reader that keeps all it hears."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Condition
from typing import Any, NamedTuple

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
needs_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed (apt-get install mosquitto)")


def wait_until(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    """Wait for a condition; a test that waits in vain says for what."""
    limit = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < limit, f"waited {timeout_s:g} s in vain for: {what}"
        time.sleep(0.01)


def free_port() -> int:
    """A port nobody listens at just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Broker:
    """A mosquitto with this config; keeps its port over restarts.

    Args:
        folder: for its config, log and persistence.
        lines: of its config, beside the listener; anonymous clients are let in unless a line says otherwise.
    """

    def __init__(self, folder: Path, lines: Sequence[str] = ()) -> None:
        self.port = free_port()
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        config = [f"listener {self.port} 127.0.0.1", f"persistence_location {folder}/", "log_type all", *lines]
        if not any(line.startswith("allow_anonymous") for line in lines):
            config.append("allow_anonymous true")
        if os.geteuid() == 0:
            config.append("user root")  # it would drop to a user who cannot read a test's folder
        self._config = folder / "mosquitto.conf"
        self._config.write_text("\n".join(config) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Broker:
        """Start it and wait until it accepts connections."""
        assert MOSQUITTO is not None
        with open(self.folder / "mosquitto.log", "ab") as log:
            self._process = subprocess.Popen([MOSQUITTO, "-c", str(self._config)], stdout=log, stderr=log)
        wait_until(self._accepts, 10, f"mosquitto on port {self.port}: {self.log()[-2000:]}")
        return self

    def stop(self) -> None:
        """SIGTERM: it saves what it is told to persist."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: it saves nothing."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP: connections stay, nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def save(self) -> None:
        """Have it write its persistent sessions now, and wait for that."""
        assert self._process is not None
        database = self.folder / "mosquitto.db"
        before = database.stat().st_mtime_ns if database.exists() else 0
        self._process.send_signal(signal.SIGUSR1)
        wait_until(lambda: database.exists() and database.stat().st_mtime_ns > before, 5, "mosquitto.db")

    def log(self) -> str:
        """All it has logged."""
        return (self.folder / "mosquitto.log").read_text(errors="replace")

    def _accepts(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"mosquitto ended: {self.log()[-2000:]}"
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(10)
            self._process = None

    def __enter__(self) -> Broker:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


class Heard(NamedTuple):
    """One message as it came."""

    topic: str
    payload: bytes
    retain: bool


class Reader:
    """A subscriber that reconnects by itself and keeps everything; with a `name`, by a persistent session."""

    def __init__(self, port: int, topic_filter: str = "#", name: str = "", **user: str) -> None:
        self.heard: list[Heard] = []
        self.subscriptions = 0
        self._changed = Condition()
        self._filter = topic_filter
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, clean_session=not name)
        self._client.reconnect_delay_set(1, 1)
        if user:
            self._client.username_pw_set(user["username"], user["password"])
        self._client.on_connect = lambda client, *_: client.subscribe(self._filter, qos=1)
        self._client.on_subscribe = self._subscribed
        self._client.on_message = self._take
        self._client.connect("127.0.0.1", port, keepalive=10)
        self._client.loop_start()
        wait_until(lambda: self.subscriptions, 5, f"a subscription to {topic_filter}")

    def _subscribed(self, *_: Any) -> None:
        self.subscriptions += 1

    def _take(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        with self._changed:
            self.heard.append(Heard(message.topic, bytes(message.payload), message.retain))
            self._changed.notify_all()

    def on(self, topic: str) -> list[Heard]:
        """What came on one topic."""
        with self._changed:
            return [heard for heard in self.heard if heard.topic == topic]

    def wait_for(self, topic: str, n: int = 1, timeout_s: float = 10) -> list[Heard]:
        """Wait until `n` messages came on a topic."""
        with self._changed:
            enough = self._changed.wait_for(lambda: sum(h.topic == topic for h in self.heard) >= n, timeout_s)
        assert enough, (
            f"{len(self.on(topic))} of {n} messages on {topic} within {timeout_s:g} s; all: {self.heard[-20:]}"
        )
        return self.on(topic)

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        """Say something, and wait until the broker has it."""
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(5)

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
