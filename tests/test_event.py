"""The payloads are a contract: their schemas and samples are kept as golden files.

A change that is meant is taken over with `GOLDEN=write pytest tests/test_event.py`, and read in the diff.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec
import pytest

from edge import event
from edge.drift.report import FrameRef, Moved
from edge.event import Topics

GOLDEN = Path(__file__).parent / "golden"
HEAD = {"id": "b00t-o-7", "seq": 7, "boot": "b00t", "ts": 1790000000.25, "mono_ns": 123456789, "clock_ok": True}
COUNTS = event.LedgerCounts(triggers=3, verdicts={"OK": 1, "NG": 1}, losses={"overrun": 1})
TIMES = event.AnswerTimes(n=3, p50=50.0, p99=60.5, p999=61.0, max=61.25)

SAMPLES: dict[str, msgspec.Struct] = {
    "edge.state.v1": event.State(**HEAD, state="running"),
    "edge.info.v1": event.Info(
        **HEAD,
        version="0.1.0",
        python="3.10.12",
        machine="aarch64",
        runtime="paddlelite 2.13rc0 int8 aarch64",
        bundle="pcb 3",
        bundle_digest="sha256:00ff",
        config_hash="sha256:ff00",
        classes=["open", "short"],
        cameras=["cam1"],
    ),
    "edge.health.v1": event.Health(
        **HEAD,
        uptime_s=30.5,
        rss_bytes=123456789,
        fps=9.97,
        ledger=COUNTS,
        in_flight=0,
        balanced=True,
        outbox=event.OutboxCounts(
            depth=1, bytes=900, added=9, delivered=5, evicted_results=2, evicted_alarms=1, refused=0, first_seq=1
        ),
        stages={"detect": event.StageTimes(p50=40.0, p99=44.5, max=50.25)},
        live_dropped=2,
        line=event.LineHealth(
            recipe="pcb-a",
            answers=TIMES,
            recent=None,
            link=event.LinkCounts(
                state="connected", detail="", reopened=1, answered=3, overruns=1, late=0, unacknowledged=0, garbage=2
            ),
            no_frame={"cam1": 1},
            unused={"cam1": 7},
            frame_p999_ms=45.5,
            settle_p999_ms=4.25,
        ),
        evidence=event.EvidenceCounts(files=4, bytes=9000, written=5, evicted={"OK": 1}, dropped=0, failed=0),
        genealogy=event.GenealogyCounts(rows=9, head="ab" * 32, bytes=4096, failed=0),
        recorder=event.RecorderCounts(frames=9, bytes=9000, reaches_s=599.5, dropped=0, failed=0),
    ),
    "edge.bundle.v1": event.BundleState(
        **HEAD,
        stage="trial",
        active=event.BundleRef(product="pcb", version=5, digest="00ff", signed=True, origin="usb"),
        previous=event.BundleRef(product="pcb", version=4, digest="ff00", signed=False, origin="local"),
        candidate=None,
        shadow=event.ShadowCounts(seen=50, wanted=50, agreed=48, stricter=1, laxer=1, other=0, no_time=3),
        trial=event.TrialCounts(
            parts=20,
            wanted=200,
            minutes=1.5,
            wanted_minutes=10.0,
            starts=1,
            not_ok_share=0.25,
            usual_not_ok_share=0.2,
            frame_ms=40.5,
            usual_frame_ms=None,
        ),
        last=event.UpdateOutcome(
            outcome="installed", code="", text="pcb 5 is installed", source="usb", bundle="pcb 5", ts=1790000000.0
        ),
    ),
    "edge.disagreement.v1": event.Disagreement(
        **HEAD,
        camera="cam1",
        frame=8,
        part=7,
        active="OK",
        candidate="NG",
        active_reasons=[],
        candidate_reasons=[event.Why(code="defect.short", text="short 0.91 at 10,20")],
        active_digest="ff00",
        candidate_digest="00ff",
        evidence="shadow/20261127/7-cam1",
    ),
    "edge.update_request.v1": event.UpdateRequest(transaction="t-1"),
    "edge.rollback_request.v1": event.RollbackRequest(transaction="t-2", reason="too many rejects"),
    "edge.ledger.v1": event.Books(**HEAD, ledger=COUNTS, in_flight=0, balanced=True),
    "edge.line.v1": event.LineState(
        **HEAD,
        ready=True,
        error="challenge.overdue",
        recipe="pcb-a",
        recipe_number=3,
        link="connected",
        detail="",
        masters=[event.MasterState(serial="MASTER-1", standing="due", found_ts=1790000000.0)],
        challenge_due_s=-12.5,
    ),
    "edge.camera_state.v1": event.CameraState(
        **HEAD, camera="cam1", state="streaming", detail="", frames=12, reopened=1
    ),
    "edge.result.v1": event.Result(
        **HEAD,
        camera="cam1",
        part=4,
        frame=12,
        name="board-12.png",
        captured_ts=1790000000.125,
        verdict="NG",
        cause=None,
        reasons=[event.Why(code="defect", text="open at 10, 20")],
        detections=[event.Box(xyxy=[10.0, 20.5, 30.0, 40.5], class_name="open", confidence=0.9731)],
        sharpness=812.25,
        brightness=127.5,
        anomaly=None,
        bundle_digest="sha256:00ff",
        latency_ms=51.25,
        stage_ms={"gate": 1.5, "detect": 40.25},
    ),
    "edge.part.v1": event.PartResult(
        **HEAD,
        part=4,
        serial="SN4711",
        trigger=17,
        encoder=123456,
        triggered_ts=1790000000.0,
        recipe="pcb-a",
        recipe_hash="00ff" * 16,
        outcome="NG",
        say="NG",
        reasons=[event.Why(code="defect.open", text="cam1: open 0.97 at 10,20 size 20x20 px")],
        looks=[
            event.Look(
                camera="cam1",
                frame=12,
                name="",
                captured_ts=1790000000.125,
                verdict="NG",
                cause=None,
                detections=[event.Box(xyxy=[10.0, 20.5, 30.0, 40.5], class_name="open", confidence=0.9731)],
                sharpness=812.25,
                brightness=127.5,
                anomaly=None,
                anomaly_limit=None,
                offset_ms=-1.5,
                uncertainty_ms=16.75,
                stage_ms={"gate": 1.5, "detect": 40.25},
            )
        ],
        missing={"cam2": "no frame within 50 ms"},
        evidence="2026-11-27/NG/000004-SN4711",
        bundle_digest="sha256:00ff",
        latency_ms=61.5,
    ),
    "edge.reject.v1": event.Reject(
        **HEAD,
        camera="cam1",
        part=5,
        frame=13,
        name="",
        cause="blur",
        measured=12.5,
        limit=100.0,
        advice="Clean the lens.",
    ),
    "edge.alarm.v1": event.Alarm(
        **HEAD, code="outbox", severity="error", text="the disk is full", advice="Free some space."
    ),
    "edge.drift.v1": event.Drift(
        **HEAD,
        camera="cam1",
        status="drifted",
        origin="bundle pcb 4",
        frames=5000,
        learned=0,
        wanted=0,
        arl0=100000.0,
        blind=["ae_error"],
        moved=[
            Moved(
                signal="brightness",
                unit="grey levels",
                direction="down",
                since=FrameRef(number=4100, name="", captured_ts=1790000000.0, value=119.5, score=-2.5),
                frames_ago=40,
                found=FrameRef(number=4140, name="", captured_ts=1790000040.0, value=118.0, score=-2.75),
                baseline=127.5,
                now=119.5,
                sigmas=-2.5,
                detector="Cusum",
                advice="relight",
                text="the image is darker: 127.5 -> 119.5 grey levels (-2.5 sigmas)",
            )
        ],
        advice="Check lamps.",
        text="cam1: the image is darker.",
        forecast="the lens needs cleaning in about 47 hours",
        evidence="/var/lib/edge/drift/pcb/cam1",
    ),
    "edge.response.v1": event.Response(**HEAD, transaction="t-1", ok=True, text="running", data={"depth": "0"}),
    "edge.request.v1": event.Request(transaction="t-1"),
    "edge.recipe_request.v1": event.RecipeRequest(transaction="t-2", recipe="A-77"),
    "edge.override_request.v1": event.OverrideRequest(
        transaction="t-3", part=4, verdict="OK", operator="mk", reason="scratch on the fixture"
    ),
}
BY_NAME = {event.payload_name(payload): payload for payload in event.PAYLOADS}


def golden(name: str, found: bytes) -> bytes:
    path = GOLDEN / name
    if os.environ.get("GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(found)
    return path.read_bytes()


def test_every_payload_has_a_schema_and_a_sample() -> None:
    assert set(event.json_schemas()) == set(SAMPLES) == set(BY_NAME)


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_schema_is_the_golden_one(name: str) -> None:
    found = event.json_schemas()[name]
    assert found.decode() == golden(f"{name}.schema.json", found).decode()


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_sample_is_written_as_ever_and_read_back(name: str) -> None:
    found = event.encode(SAMPLES[name]) + b"\n"
    wanted = golden(f"{name}.json", found)
    assert found == wanted
    assert msgspec.json.decode(wanted, type=BY_NAME[name]) == SAMPLES[name]


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_reader_of_this_version_takes_what_a_later_one_adds(name: str) -> None:
    later = {**msgspec.to_builtins(SAMPLES[name]), "added_in_a_later_version": 1}
    assert msgspec.json.decode(msgspec.json.encode(later), type=BY_NAME[name]) == SAMPLES[name]


def test_stamp_fills_the_envelope_and_leaves_the_rest() -> None:
    stamped = event.stamp(
        event.State(state="running"), seq=7, boot="b00t", ts=1.5, mono_ns=2, clock_ok=False, stream="o"
    )
    assert stamped == event.State(state="running", id="b00t-o-7", seq=7, boot="b00t", ts=1.5, mono_ns=2, clock_ok=False)


def test_topics_are_distinct_and_below_the_node() -> None:
    topics = Topics("factory/edge", "plant", "smt1", "aoi")
    every = [
        topics.state,
        topics.info,
        topics.health,
        topics.ledger,
        topics.line_state,
        topics.part,
        *(topics.camera("cam1", what) for what in ("state", "result", "reject", "image", "drift")),
        topics.alarm("blur"),
        topics.request("status"),
        topics.response("status"),
    ]
    assert len(set(every)) == len(every)
    assert all(re.fullmatch(r"factory/edge/v1/plant/smt1/aoi/[a-z0-9/]+", topic) for topic in every)


def test_ledger_balance_is_a_sum() -> None:
    assert COUNTS.balanced
    assert not msgspec.structs.replace(COUNTS, triggers=4).balanced
