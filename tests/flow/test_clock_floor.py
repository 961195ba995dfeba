"""What a running daemon says of its clock, when the repository has signed something later than it shows."""

from __future__ import annotations

import time
from pathlib import Path

from edge.bundle import trust_floor
from edge.event import Topics
from tests.brokers import Broker, needs_mosquitto, wait_until
from tests.flow.rig import Client, Daemon

pytestmark = needs_mosquitto

CAMERA = '[[camera]]\nid = "cam1"\nsource = "simulated"\nfps = 2.0\n'
HEALTH = Topics("edge", "site", "line", "edge").health


def test_a_clock_behind_what_was_accepted_is_told_in_every_message(tmp_path: Path) -> None:
    with Broker(tmp_path / "broker") as broker:
        client = Client(broker.port)
        daemon = Daemon(tmp_path, broker.port, CAMERA)
        folder = daemon.state / trust_floor.FOLDER
        try:
            daemon.start()
            daemon.wait_log("first verdict")
            wait_until(lambda: client.json(HEALTH), 20, "health")
            assert all(message["clock_ok"] for message in client.json(HEALTH))
            folder.mkdir(exist_ok=True)
            trust_floor.write(folder, trust_floor.Floor(serial=1, time=time.time() + 86_400))
            wait_until(lambda: not client.json(HEALTH)[-1]["clock_ok"], 20, "an update to be noticed")
            came = len(client.json("/result"))
            wait_until(lambda: len(client.json("/result")) > came + 1, 20, "another result")
            assert not client.json("/result")[-1]["clock_ok"], "durable ones, too"
            assert daemon.stop() == 0
            daemon.start()
            daemon.wait_log("first verdict", times=2)
            wait_until(lambda: len(client.json("/info")) >= 2, 20, "the second run")
            first, *_, last = client.json("/info")
            assert first["clock_ok"] and not last["clock_ok"], "the next run knows it from its first message on"
            assert daemon.stop() == 0
        finally:
            daemon.end()
            client.close()
