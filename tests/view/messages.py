"""Messages of a node, for tests of what a view makes of them."""

from __future__ import annotations

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
