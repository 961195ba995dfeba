"""Messages of a node, for tests of what a view makes of them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edge import event
from edge.view.state import Heard, LineView, NodeId

AOI = NodeId("plant", "smt1", "aoi")
TOPICS = event.Topics("edge", *AOI)
TS = 1_800_000_000.0


def state(name: str) -> event.State:
    return event.State(state=name)


def info() -> event.Info:
    return event.Info(
        version="0.1.0", python="3.10.13", machine="x86_64", runtime="paddlelite 2.13rc0 int8 x86_64",
        bundle="pcb 1.2.0", bundle_digest="1a2b3c4d5e6f7788", config_hash="00ff", classes=["open"], cameras=["top"],
    )  # fmt: skip


def health(triggers: int = 10, ok: int | None = None, depth: int = 0, evicted: int = 0) -> event.Health:
    counts = event.LedgerCounts(
        triggers=triggers, verdicts={"OK": triggers if ok is None else ok, "NG": 0}, losses={"overrun": 0}
    )
    outbox = event.OutboxCounts(
        depth=depth, bytes=0, added=12, delivered=12 - depth, evicted_results=evicted, evicted_alarms=0, refused=0
    )
    return event.Health(
        uptime_s=192.0, rss_bytes=143_000_000, fps=5.0, ledger=counts, in_flight=0,
        balanced=counts.balanced, outbox=outbox,
        stages={}, live_dropped=0,
    )  # fmt: skip


def camera_state(name: str, detail: str = "", reopened: int = 0) -> event.CameraState:
    return event.CameraState(camera="top", state=name, detail=detail, reopened=reopened)


def result(
    part: int, verdict: str = "OK", text: str = "", ms: float = 12.0, sharpness: float = 300.0, camera: str = "top"
) -> event.Result:
    return event.Result(
        camera=camera, part=part, frame=part, name="", captured_ts=TS + part, verdict=verdict, cause=None,
        reasons=[event.Why(code="c", text=text)] if text else [], detections=[], sharpness=sharpness, brightness=100.0,
        anomaly=None, bundle_digest="1a2b", latency_ms=ms, stage_ms={},
    )  # fmt: skip


def books(triggers: int = 10, ok: int | None = None, in_flight: int = 0) -> event.Books:
    counts = event.LedgerCounts(
        triggers=triggers, verdicts={"OK": triggers if ok is None else ok}, losses={"overrun": 0}
    )
    return event.Books(ledger=counts, in_flight=in_flight, balanced=counts.balanced)


def master(serial: str, standing: str = "found", found_ts: float = TS) -> event.MasterState:
    return event.MasterState(serial=serial, standing=standing, found_ts=found_ts)


def line(
    ready: bool = True, error: str = "", link: str = "connected", detail: str = "",
    masters: Sequence[event.MasterState] = (), due_s: float | None = None, recipe: str = "pcb-a", number: int = 2,
) -> event.LineState:  # fmt: skip
    return event.LineState(
        ready=ready, error=error, recipe=recipe, recipe_number=number, link=link, detail=detail, masters=list(masters),
        challenge_due_s=due_s,
    )  # fmt: skip


def line_health(n: int = 1234, no_frame: dict[str, int] | None = None, **link: int) -> event.LineHealth:
    times = event.AnswerTimes(n=n, p50=41.2, p99=66.0, p999=71.3, max=88.1) if n else None
    counts = {"reopened": 0, "answered": n, "overruns": 0, "late": 0, "unacknowledged": 0, "garbage": 0, **link}
    return event.LineHealth(
        recipe="pcb-a", answers=times, recent=times, link=event.LinkCounts(state="connected", detail="", **counts),
        no_frame={"top": 0} if no_frame is None else no_frame, unused={"top": 812}, frame_p999_ms=38.0,
        settle_p999_ms=9.0,
    )  # fmt: skip


def line_node_health(triggers: int = 10, **changes: object) -> event.Health:
    """Of a triggered station that keeps pictures, recordings and rows."""
    changes = {
        "line": line_health(),
        "evidence": event.EvidenceCounts(
            files=37, bytes=120_000_000, written=40, evicted={"OK": 3, "NG": 0}, dropped=0, failed=0
        ),
        "genealogy": event.GenealogyCounts(rows=1300, head="9f8e7d6c5b4a39281706", bytes=2_000_000, failed=0),
        "recorder": event.RecorderCounts(frames=1512, bytes=80_000_000, reaches_s=725.0, dropped=0, failed=0),
        **changes,
    }
    return msgspec.structs.replace(health(triggers), **changes)


def look(camera: str = "top", sharpness: float = 300.0) -> event.Look:
    return event.Look(
        camera=camera, frame=1, name="", captured_ts=TS, verdict="OK", cause=None, detections=[], sharpness=sharpness,
        brightness=100.0, anomaly=None, anomaly_limit=None, offset_ms=-4.0, uncertainty_ms=16.5, stage_ms={},
    )  # fmt: skip


def part(
    number: int, outcome: str = "OK", text: str = "", say: str | None = None, ms: float = 41.2,
    missing: dict[str, str] | None = None, cameras: Sequence[str] = ("top",), serial: str | None = None,
) -> event.PartResult:  # fmt: skip
    return event.PartResult(
        part=number, serial=f"P{number:06d}" if serial is None else serial, trigger=number % 65536, encoder=None,
        triggered_ts=TS + number, recipe="pcb-a", recipe_hash="77aa", outcome=outcome,
        say=say or (outcome if outcome.isupper() else "FAIL"), reasons=[event.Why(code="c", text=text)] if text else [],
        looks=[look(camera) for camera in cameras], missing=missing or {}, evidence="", bundle_digest="1a2b",
        latency_ms=ms,
    )  # fmt: skip


def reject(part: int, cause: str = "blur", advice: str = "Clean the lens.") -> event.Reject:
    return event.Reject(
        camera="top", part=part, frame=part, name="", cause=cause, measured=41.2, limit=80.0, advice=advice
    )


def alarm(code: str, severity: str = "error", text: str | None = None) -> event.Alarm:
    return event.Alarm(code=code, severity=severity, text=text or f"{code} is wrong", advice="Repair it.")


def put(
    view: LineView, topic: str, message: event.Envelope, *, seq: int = 1, boot: str = "b00t", stream: str = "o",
    retained: bool = False, at_s: float = 1.0,
) -> Heard | None:  # fmt: skip
    """Fold a message that was stamped as the outbox does."""
    stamped = event.stamp(message, seq=seq, boot=boot, ts=TS, mono_ns=1, clock_ok=True, stream=stream)
    return view.fold(topic, event.encode(stamped), at_s=at_s, retained=retained)
