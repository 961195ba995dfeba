"""A daemon as its own process, and a client that hears all it says: what the whole-process tests stand on."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.brokers import Reader, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
PCB = Path(os.environ.get("EDGE_TEST_BUNDLE", REPOSITORY / "models" / "pcb"))


class Client(Reader):
    """Hears everything of one broker, and reads it as the daemon's payloads."""

    def raw(self, ending: str) -> list[bytes]:
        """Payloads on topics that end so, in the order they came."""
        return [payload for topic, payload, _ in list(self.heard) if topic.endswith(ending)]

    def json(self, ending: str) -> list[dict[str, Any]]:
        """The same, decoded; cleared retained messages are left out."""
        return [json.loads(payload) for payload in self.raw(ending) if payload]

    def durable(self) -> dict[int, str]:
        """seq -> id of all durable messages; fails when one seq came with two ids."""
        seen: dict[int, str] = {}
        for topic, payload, _ in list(self.heard):
            durable = topic.endswith(("/result", "/reject", "/part", "/disagreement")) or "/alarm/" in topic
            if not payload or not durable:
                continue
            message = json.loads(payload)
            if "-o-" not in message["id"]:
                continue  # an alarm told again after a reconnect, or live because the disk was full
            assert seen.setdefault(message["seq"], message["id"]) == message["id"]
        return seen


class Daemon:
    """`edge run` as a child process with a config of its own."""

    def __init__(self, folder: Path, port: int, cameras: str, bundle: Path = PCB, more: str = "") -> None:
        self.state = folder / "state"
        self.log_path = folder / "daemon.log"
        self.config = folder / "edge.toml"
        self.config.write_text(
            f'[paths]\nstate = "{self.state}"\nbundle = "{bundle}"\n[mqtt]\nport = {port}\n'
            f"[publish]\nhealth_s = 1.0\n{more}\n{cameras}\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Daemon:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edge", "run", "--config", str(self.config)],
                stderr=log, stdout=log, cwd=REPOSITORY, env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        return self

    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def wait_log(self, words: str, timeout_s: float = 30.0, times: int = 1) -> None:
        wait_until(lambda: self.log().count(words) >= times, timeout_s, f"{words!r} in {self.log_path}")

    def wait(self, timeout_s: float = 60.0) -> int:
        assert self.process is not None
        return self.process.wait(timeout_s)

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait(20)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def rss_mb(self) -> float:
        """Resident memory now."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1e3

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def outbox_rows(self) -> list[dict[str, Any]]:
        """Messages on disk that no broker has acknowledged; for a daemon that does not run."""
        with sqlite3.connect(self.state / "outbox.db") as db:
            rows = db.execute("SELECT payload FROM message ORDER BY seq").fetchall()
        return [json.loads(payload) for (payload,) in rows]
