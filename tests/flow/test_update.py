"""A newer bundle on its whole way: published and signed, asked for over MQTT or brought in a folder, tried, kept."""

from __future__ import annotations

import functools
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.bundle import slots
from tests.brokers import needs_mosquitto, wait_until
from tests.flow.rig import REPOSITORY
from tests.flow.test_changeover import FIRST, Box
from tests.small_bundles import small_bundle

pytestmark = needs_mosquitto

# The small bundle has no judges, so it may differ from the shipped one.
TRIAL = "[trial]\nshadow_parts = 3\ndisagree_max = 1.0\nparts = 3\nminutes = 0.0\nreject_rise = 1.0\n"


class Publisher:
    """A repository made by `python -m tools publish`, and a web server that gives it away."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.keys, self.repository = folder, folder / "keys", folder / "repository"
        self._run("keys", self.keys, "--products", "pcb")
        roots = [self.keys / f"root-{n}" / f"root-{n}.key" for n in (1, 2)]
        self._run(
            "init", self.repository, "--roots", *roots, self.keys / "root-3" / "root-3.key",
            "--targets", self.keys / "targets" / "targets.key", "--online", self.keys / "online" / "online.key",
            "--products", f"pcb={self.keys / 'product-pcb' / 'product-pcb.key'}",
        )  # fmt: skip
        handler = functools.partial(Quiet, directory=str(self.repository))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def add(self, version: int) -> None:
        bundle = small_bundle(self.folder / f"pcb-{version}", version, product="pcb")
        keys = [self.keys / "product-pcb" / "product-pcb.key", self.keys / "online" / "online.key"]
        self._run("add", self.repository, bundle, "--keys", *keys)

    def _run(self, *words: object) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "tools", "publish", *map(str, words)],
            cwd=REPOSITORY, env={**os.environ, "EDGE_PUBLISH_PASSPHRASE": "of a test"}, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher]:
    made = Publisher(tmp_path / "publisher")
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def box(tmp_path: Path, publisher: Publisher) -> Iterator[Box]:
    root = tmp_path / "root.json"
    made = Box(tmp_path, f'{TRIAL}[update]\nroot = "{root}"\nurl = "{publisher.url}"\n')
    edge(made, "trust", publisher.repository / "metadata" / "1.root.json")
    yield made
    made.end()


def edge(box: Box, *words: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "edge", "bundle", *map(str, words), "--config", str(box.daemon.config)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_asked_over_mqtt_it_comes_over_the_network_and_on_a_stick_it_comes_the_same_way(
    box: Box, publisher: Publisher
) -> None:
    publisher.add(FIRST + 1)
    retained = json.dumps({"transaction": "of last year"}).encode()
    box.client.publish("edge/v1/site/line/edge/request/update", retained, retain=True)
    box.daemon.start()
    box.wait_results(1)
    told = box.wait_told(lambda told: told["active"]["version"] == FIRST, "the first bundle")
    assert told["last"] is None and not box.client.json("/response/update"), "it would be done at each start"
    answer = box.ask("update")
    assert answer["ok"], answer
    come = box.wait_told(lambda told: told["last"] and told["last"]["outcome"] == "committed", "the commit", 240)
    assert (come["active"]["version"], come["active"]["signed"]) == (FIRST + 1, True)
    assert (come["active"]["origin"], come["last"]["transaction"]) == ("network", answer["transaction"])
    again = box.client.json("/response/update")
    box.client.publish(
        "edge/v1/site/line/edge/request/update", json.dumps({"transaction": answer["transaction"]}).encode()
    )
    wait_until(lambda: len(box.client.json("/response/update")) > len(again), 20, "the same answer again")
    assert box.client.json("/response/update")[-1]["id"] == answer["id"], "a repeated request is not carried out again"

    publisher.add(FIRST + 2)
    said = edge(box, "import", publisher.folder / "repository")
    assert "INSTALLED" in said and f"pcb {FIRST + 2}" in said
    come = box.wait_told(
        lambda told: told["active"]["version"] == FIRST + 2 and told["stage"] == "committed",
        "the bundle of the stick",
        120,
    )
    assert come["active"]["origin"] == "usb" and come["previous"]["version"] == FIRST + 1
    assert edge(box, "import", publisher.folder / "repository").count("NOTHING NEW") == 1
    assert box.daemon.stop() == 0, box.daemon.log()
    assert box.client.json("/edge/ledger")[-1]["balanced"]
    assert slots.floor(box.state, "pcb") == FIRST + 2
