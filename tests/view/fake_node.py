"""A small node that says over MQTT what the daemon says: real payloads through paho, no camera and no model.

Run as a program it takes `--config FILE` like the daemon, and a misbehaviour from the variable FAKE_NODE.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from pathlib import Path

import msgspec
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edge import config, event, ledger
from edge.records import Loss, VerdictKind
from tests.view import messages

ADVICE = "Focus the lens, clean it, and check that the part is at rest when the frame is taken."


class FakeNode:
    """Publishes as one node; `boot` and the numbers are those of one start of the daemon."""

    def __init__(self, settings: config.Mqtt, topics: event.Topics, boot: str = "b00t", seed: int = 1) -> None:
        self.topics = topics
        self.counts = ledger.empty()
        self._boot = boot
        self._random = random.Random(seed)
        self._seq = {"o": 0, "l": 0}
        self._begun_s = time.monotonic()
        self._settings = settings
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=f"fake-{topics.node}", clean_session=True)
        self.client.username_pw_set(settings.username, settings.password)
        self.client.will_set(topics.state, event.encode(event.State(state="offline")), qos=1, retain=True)

    def start(self) -> None:
        self.client.connect(self._settings.host, self._settings.port, 30)
        self.client.loop_start()
        self.live(self.topics.state, event.State(state="running"), retain=True)
        self.live(self.topics.info, self.info(), retain=True)
        self.live(self.topics.camera("top", "state"), event.CameraState(camera="top", state="streaming"), retain=True)

    def info(self) -> event.Info:
        return event.Info(
            version="0.1.0", python="3.10.13", machine="x86_64", runtime="paddlelite 2.13rc0 int8 x86_64",
            bundle="pcb 1.2.0", bundle_digest="1a2b3c4d5e6f7788", config_hash="00ff", classes=["open", "short"],
            cameras=["top"],
        )  # fmt: skip

    def live(self, topic: str, message: event.Envelope, retain: bool = False) -> mqtt.MQTTMessageInfo:
        return self._publish(topic, message, "l", retain)

    def durable(self, topic: str, message: event.Envelope, retain: bool = False) -> mqtt.MQTTMessageInfo:
        return self._publish(topic, message, "o", retain)

    def _publish(self, topic: str, message: event.Envelope, stream: str, retain: bool) -> mqtt.MQTTMessageInfo:
        self._seq[stream] += 1
        stamped = event.stamp(
            message, seq=self._seq[stream], boot=self._boot, ts=time.time(), mono_ns=time.monotonic_ns(),
            clock_ok=True, stream=stream,
        )  # fmt: skip
        return self.client.publish(topic, event.encode(stamped), qos=1, retain=retain)

    def part(self) -> None:
        """One inspected part: every fifth blurred, every third of the others bad."""
        number = self.counts.triggers + 1
        kind = VerdictKind.RETAKE if number % 5 == 0 else VerdictKind.NG if number % 3 == 0 else VerdictKind.OK
        self.counts = ledger.judged(self.counts, kind)
        self.durable(self.topics.camera("top", "result"), self.result(number, kind))
        if kind is VerdictKind.RETAKE:
            reject = event.Reject(
                camera="top", part=number, frame=number, name="", cause="blur", measured=41.2, limit=80.0, advice=ADVICE
            )
            self.durable(self.topics.camera("top", "reject"), reject)

    def result(self, number: int, kind: VerdictKind) -> event.Result:
        texts = {VerdictKind.NG: "short with confidence 0.93 at (120, 88)", VerdictKind.RETAKE: "blurred: 41.2 < 80"}
        reasons = [event.Why(code="x", text=texts[kind])] if kind in texts else []
        sharp = 41.2 if kind is VerdictKind.RETAKE else self._random.uniform(250, 400)
        return event.Result(
            camera="top", part=number, frame=number, name="", captured_ts=time.time(), verdict=kind.value,
            cause="blur" if kind is VerdictKind.RETAKE else None, reasons=reasons, detections=[], sharpness=sharp,
            brightness=120.0, anomaly=None, bundle_digest="1a2b3c4d5e6f7788", latency_ms=self._random.uniform(10, 20),
            stage_ms={"gate": 1.0, "detect": 9.0},
        )  # fmt: skip

    def triggered_part(self) -> None:
        """One part of a line under a PLC: every fifth lost, every third of the others bad."""
        number = self.counts.triggers + 1
        outcome = "deadline" if number % 5 == 0 else "NG" if number % 3 == 0 else "OK"
        if outcome == "deadline":
            self.counts = ledger.lost(self.counts, Loss.DEADLINE, 1)
        else:
            self.counts = ledger.judged(self.counts, VerdictKind(outcome))
        self.durable(self.topics.part, messages.part(number, outcome))
        self.live(self.topics.ledger, messages.books(number), retain=True)

    def health(self) -> mqtt.MQTTMessageInfo:
        outbox = event.OutboxCounts(
            depth=0, bytes=0, added=self._seq["o"], delivered=self._seq["o"], evicted_results=0, evicted_alarms=0,
            refused=0,
        )  # fmt: skip
        message = event.Health(
            uptime_s=time.monotonic() - self._begun_s, rss_bytes=143_000_000, fps=5.0, ledger=self.counts,
            in_flight=0, balanced=self.counts.balanced, outbox=outbox, stages={}, live_dropped=0,
        )  # fmt: skip
        return self.live(self.topics.health, message)

    def stop(self) -> None:
        """In order: last health, offline, goodbye."""
        self.health()
        last = self.live(self.topics.state, event.State(state="offline"), retain=True)
        if self.client.is_connected():
            last.wait_for_publish(5)
        self.client.disconnect()
        self.client.loop_stop()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    settings = msgspec.toml.decode(parser.parse_args().config.read_bytes(), type=config.Config)
    misbehaviour = os.environ.get("FAKE_NODE", "")
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: asked.append(number))
    if misbehaviour == "dies at once":
        print("starting", file=sys.stderr)
        print("edge: the bundle models/none has no manifest: install one", file=sys.stderr)
        return 2
    station = settings.station
    node = FakeNode(settings.mqtt, event.Topics(settings.mqtt.prefix, station.site, station.line, station.node))
    node.start()
    part, limit_s = 0, time.monotonic() + 120
    while time.monotonic() < limit_s and (not asked or misbehaviour == "deaf"):
        part += 1
        if misbehaviour != "silent":
            node.triggered_part() if settings.plc is not None else node.part()
        if part % 20 == 1 and misbehaviour != "no health":
            node.health()
        if part == 10 and misbehaviour == "dies later":
            print("edge: the disk is gone: put it back", file=sys.stderr)
            os._exit(7)
        time.sleep(0.02)
    if misbehaviour == "unbalanced":
        node.counts = msgspec.structs.replace(node.counts, triggers=node.counts.triggers + 2)
    if misbehaviour == "no health":
        os._exit(0)
    node.counts = ledger.lost(node.counts, Loss.SHUTDOWN, 1)
    node.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
