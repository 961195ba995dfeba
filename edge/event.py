"""What the daemon says over MQTT: topics and versioned payloads. This file is the public contract.

Payloads are JSON. Those that go through the outbox (`result`, `part`, `reject`, `alarm`, `bundle/disagreement`) carry
the gap-free `seq` of this node, which goes on over restarts: a reader that holds every number from its first to its
last has them all. Those that are only about now (`state`, `info`, `health`, `ledger`, `line`, `bundle`, camera
`state` and `drift`, `response`) count from 1 on each topic at each start.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from edge.drift.report import Moved
from edge.part import Pairing, Part
from edge.records import Detections, Inspection, Reason, VerdictKind

Ms = Annotated[float, Meta(description="milliseconds")]


class Envelope(msgspec.Struct, kw_only=True, frozen=True):
    """What every message begins with.

    `id` names the message for good: one that arrives twice (delivery is at least once) has the same id twice. It
    ends in `-o-<seq>` when the message came through the outbox, whose numbers have no gap; clearing a retained alarm
    uses up no number.
    """

    schema: str
    id: str = ""
    seq: int = 0
    boot: str = ""
    ts: float = 0.0  # wall clock, seconds since 1970 UTC
    mono_ns: int = 0  # monotonic clock of this boot, nanoseconds
    clock_ok: bool = True  # False: the wall clock is known to be wrong, trust `mono_ns` only


class State(Envelope, kw_only=True, frozen=True):
    """Retained on `state`; the broker publishes `offline` for us when we vanish (the MQTT will)."""

    schema: str = "edge.state.v1"
    state: str  # running or offline


class Info(Envelope, kw_only=True, frozen=True):
    """Retained on `info`: what runs here."""

    schema: str = "edge.info.v1"
    version: str
    python: str
    machine: str
    runtime: str  # e.g. "paddlelite 2.13rc0 int8 x86_64"
    bundle: str  # product and version
    bundle_digest: str
    config_hash: str
    classes: list[str]
    cameras: list[str]


class LedgerCounts(msgspec.Struct, kw_only=True, frozen=True):
    """Conservation: triggers == sum of verdicts + sum of losses, for good and over restarts."""

    triggers: int
    verdicts: dict[str, int]
    losses: dict[str, int]

    @property
    def balanced(self) -> bool:
        """Whether every trigger is accounted for."""
        return self.triggers == sum(self.verdicts.values()) + sum(self.losses.values())


class OutboxCounts(msgspec.Struct, kw_only=True, frozen=True):
    """added == delivered + evicted + depth."""

    depth: int
    bytes: int
    added: int
    delivered: int
    evicted_results: int
    evicted_alarms: int
    refused: int  # messages that could not be stored at all
    first_seq: int = 1  # numbers before it belong to an older store, which was lost or set aside


class StageTimes(msgspec.Struct, kw_only=True, frozen=True):
    """Percentiles of one stage since the last health message."""

    p50: Ms
    p99: Ms
    max: Ms


class AnswerTimes(msgspec.Struct, kw_only=True, frozen=True):
    """From the last byte of a trigger read to the last byte of its answer written."""

    n: int
    p50: Ms
    p99: Ms
    p999: Ms
    max: Ms


class LinkCounts(msgspec.Struct, kw_only=True, frozen=True):
    """The serial link to the PLC, since the start."""

    state: str  # connected, reconnecting, silent
    detail: str
    reopened: int
    answered: int
    overruns: int
    late: int  # an OK that was ready and could not be said in time
    unacknowledged: int
    garbage: int  # lines or frames thrown away
    outputs_dropped: int = 0  # pulses that were not given: their place was over, or too many waited


class EvidenceCounts(msgspec.Struct, kw_only=True, frozen=True):
    """Pictures kept on this box."""

    files: int  # parts held
    bytes: int
    written: int
    evicted: dict[str, int]  # by outcome, least valuable first
    dropped: int  # the writer could not keep up
    failed: int  # the disk did not take them


class GenealogyCounts(msgspec.Struct, kw_only=True, frozen=True):
    """The chain of rows; whoever keeps `head` can prove later that nothing was cut off."""

    rows: int
    head: str
    bytes: int
    failed: int


class RecorderCounts(msgspec.Struct, kw_only=True, frozen=True):
    """The last minutes, for an incident."""

    frames: int
    bytes: int
    reaches_s: float  # so far back
    dropped: int
    failed: int


class LineHealth(msgspec.Struct, kw_only=True, frozen=True):
    """A station that a PLC triggers."""

    recipe: str
    answers: AnswerTimes | None  # of the whole run; None before the first
    recent: AnswerTimes | None  # since the last health message
    link: LinkCounts
    no_frame: dict[str, int]  # camera -> triggers that had no frame of it
    unused: dict[str, int]  # camera -> frames that belonged to no trigger
    frame_p999_ms: Ms  # what admission reckons with for one frame
    settle_p999_ms: Ms  # and for all that comes after the last one


class Health(Envelope, kw_only=True, frozen=True):
    """On `health`, every `publish.health_s` seconds."""

    schema: str = "edge.health.v1"
    uptime_s: float
    rss_bytes: int
    fps: float
    ledger: LedgerCounts
    in_flight: int  # captured and not yet settled, by a count of their own; 0 after a clean stop
    balanced: bool
    outbox: OutboxCounts
    stages: dict[str, StageTimes]
    live_dropped: int  # live messages not sent because there was no connection
    line: LineHealth | None = None
    evidence: EvidenceCounts | None = None
    genealogy: GenealogyCounts | None = None
    recorder: RecorderCounts | None = None


class Books(Envelope, kw_only=True, frozen=True):
    """Retained on `ledger`, within a second of each change: every trigger is a verdict or a named loss."""

    schema: str = "edge.ledger.v1"
    ledger: LedgerCounts
    in_flight: int
    balanced: bool


class MasterState(msgspec.Struct, kw_only=True, frozen=True):
    """One known-bad part of the challenge."""

    serial: str
    standing: str  # found, due, missed
    found_ts: float  # 0: never


class LineState(Envelope, kw_only=True, frozen=True):
    """Retained on `line`: what the station shows to its PLC."""

    schema: str = "edge.line.v1"
    ready: bool
    error: str  # what keeps parts from passing, "" for nothing
    recipe: str
    recipe_number: int
    link: str  # connected, reconnecting, silent
    detail: str
    masters: list[MasterState]
    challenge_due_s: float | None  # negative: overdue; None: there is no challenge


class CameraState(Envelope, kw_only=True, frozen=True):
    """Retained on `camera/<id>/state`."""

    schema: str = "edge.camera_state.v1"
    camera: str
    state: str  # opening, streaming, stalled, reconnecting, ended
    detail: str = ""
    frames: int = 0
    reopened: int = 0


class Box(msgspec.Struct, kw_only=True, frozen=True):
    """One detection in pixels of the source frame."""

    xyxy: list[float]
    class_name: str
    confidence: float


class Why(msgspec.Struct, kw_only=True, frozen=True):
    """One reason of a verdict."""

    code: str
    text: str


class Result(Envelope, kw_only=True, frozen=True):
    """On `camera/<id>/result`: one a part, whatever its verdict."""

    schema: str = "edge.result.v1"
    camera: str
    part: int  # goes up with the node's parts, also over restarts; a number may be left out, none comes twice
    frame: int
    name: str
    captured_ts: float
    verdict: str  # OK, NG, REVIEW, RETAKE
    cause: str | None  # of a RETAKE
    reasons: list[Why]
    detections: list[Box]  # those that counted: of the recipe's classes, in its region, sure enough
    sharpness: float
    brightness: float
    anomaly: float | None  # higher is worse; from the limit on the part goes to a person
    anomaly_limit: float | None = None
    bundle_digest: str
    latency_ms: Ms  # from the frame in memory to the verdict, before it is made durable
    stage_ms: dict[str, float]
    evidence: str = ""  # folder on the node with its pictures, "" when none is kept


class Look(msgspec.Struct, kw_only=True, frozen=True):
    """What one camera showed of a part."""

    camera: str
    frame: int
    name: str
    captured_ts: float
    verdict: str
    cause: str | None  # of a RETAKE
    detections: list[Box]
    sharpness: float
    brightness: float
    anomaly: float | None
    anomaly_limit: float | None
    offset_ms: Ms  # the frame was taken so long after it was wanted; negative: before
    uncertainty_ms: Ms
    stage_ms: dict[str, float]


class PartResult(Envelope, kw_only=True, frozen=True):
    """On `part`: one a trigger that was accepted, whatever became of it."""

    schema: str = "edge.part.v1"
    part: int  # the result id of the answer; goes on over restarts
    serial: str
    trigger: int  # as the PLC counts them
    encoder: int | None
    triggered_ts: float
    recipe: str
    recipe_hash: str
    outcome: str  # OK, NG, REVIEW, RETAKE or the name of a loss
    say: str  # what the PLC was told
    reasons: list[Why]
    looks: list[Look]
    missing: dict[str, str]  # camera -> why there was no frame of it
    evidence: str
    bundle_digest: str
    latency_ms: Ms  # from the trigger to the verdict, before it is made durable


class Reject(Envelope, kw_only=True, frozen=True):
    """On `camera/<id>/reject`: a frame the gate refused, with what to do about it."""

    schema: str = "edge.reject.v1"
    camera: str
    part: int
    frame: int
    name: str
    cause: str
    measured: float
    limit: float
    advice: str


class Alarm(Envelope, kw_only=True, frozen=True):
    """Retained on `alarm/<code>`, and cleared there with an empty message when it is over."""

    schema: str = "edge.alarm.v1"
    code: str
    severity: str  # warning, error
    text: str
    advice: str


class Drift(Envelope, kw_only=True, frozen=True):
    """Retained on `camera/<id>/drift`: how a camera's stream stands to the good frames of its product."""

    schema: str = "edge.drift.v1"
    camera: str
    status: str  # no_baseline, learning, watching, drifted, blind
    origin: str  # of the baseline
    frames: int  # watched against it
    learned: int  # while learning: from so many frames, of
    wanted: int
    arl0: float  # frames between false alarms on average
    blind: list[str]  # signals of which calm cannot be claimed
    moved: list[Moved]
    advice: str
    text: str
    forecast: str  # where the lens and the light are heading, "" when nowhere
    evidence: str  # folder on the node with the frames that show it best, "" without


class BundleRef(msgspec.Struct, kw_only=True, frozen=True):
    """One bundle that this box holds."""

    product: str
    version: int
    digest: str
    signed: bool  # False: it was installed by hand, and nobody vouched for it
    origin: str  # usb, network, local


class ShadowCounts(msgspec.Struct, kw_only=True, frozen=True):
    """What a new bundle said of live parts beside the one in charge."""

    seen: int
    wanted: int
    agreed: int
    stricter: int  # it would not have passed a part that passed
    laxer: int  # it would have passed a part that did not
    other: int  # neither passes, for other reasons
    no_time: int  # parts at which there was no spare time for it


class TrialCounts(msgspec.Struct, kw_only=True, frozen=True):
    """How a new bundle does in charge."""

    parts: int
    wanted: int
    minutes: float
    wanted_minutes: float
    starts: int
    not_ok_share: float
    usual_not_ok_share: float | None  # of the bundle before it; None: not known
    frame_ms: Ms
    usual_frame_ms: float | None


class UpdateOutcome(msgspec.Struct, kw_only=True, frozen=True):
    """What became of one attempt to bring a bundle, or of one that is on trial."""

    outcome: str  # running, installed, nothing_new, refused, failed, committed, returned, rolled_back
    code: str  # why, in one word for machines; "" where all is well
    text: str  # why, in a sentence for people
    advice: str = ""
    source: str = ""  # usb, network, local, or the address
    bundle: str = ""  # product and version
    transaction: str = ""  # of the request, "" without
    ts: float = 0.0


class BundleState(Envelope, kw_only=True, frozen=True):
    """Retained on `bundle`: which one is in charge, which is coming, and what became of the last attempt."""

    schema: str = "edge.bundle.v1"
    stage: str  # committed, shadow, trial
    active: BundleRef
    previous: BundleRef | None
    candidate: BundleRef | None
    shadow: ShadowCounts | None
    trial: TrialCounts | None
    last: UpdateOutcome | None


class Disagreement(Envelope, kw_only=True, frozen=True):
    """On `bundle/disagreement`: a part on which the bundle in shadow and the one in charge differ."""

    schema: str = "edge.disagreement.v1"
    camera: str
    frame: int
    part: int
    active: str  # the verdict that counted
    candidate: str
    active_reasons: list[Why]
    candidate_reasons: list[Why]
    active_digest: str
    candidate_digest: str
    evidence: str = ""  # folder on the node with the frame and both opinions, "" when none is kept


class Response(Envelope, kw_only=True, frozen=True):
    """On `response/<verb>`, the answer to `request/<verb>`."""

    schema: str = "edge.response.v1"
    transaction: str
    ok: bool
    text: str
    data: dict[str, str] = {}


class Request(msgspec.Struct, kw_only=True, frozen=True):
    """What a client sends on `request/<verb>`; not retained."""

    transaction: str


class RecipeRequest(Request, kw_only=True, frozen=True):
    """On `request/recipe`: judge by another recipe from the next trigger on. By its number, name or a part number."""

    recipe: int | str


class OverrideRequest(Request, kw_only=True, frozen=True):
    """On `request/override`: a person judges a part anew; it becomes a row of the genealogy."""

    part: int
    verdict: str  # OK, NG
    operator: str
    reason: str


class UpdateRequest(Request, kw_only=True, frozen=True):
    """On `request/update`: look for a newer bundle now. What becomes of it is told on `bundle`."""


class RollbackRequest(Request, kw_only=True, frozen=True):
    """On `request/rollback`: go back to the bundle before this one."""

    reason: str


PAYLOADS: tuple[type[msgspec.Struct], ...] = (
    State, Info, Health, Books, CameraState, LineState, Result, PartResult, Reject, Alarm, Drift, Response, Request,
    RecipeRequest, OverrideRequest, BundleState, Disagreement, UpdateRequest, RollbackRequest,
)  # fmt: skip


@dataclass(frozen=True)
class Topics:
    """Every topic of one node, below `<prefix>/v1/<site>/<line>/<node>/`."""

    prefix: str
    site: str
    line: str
    node: str

    def _at(self, *levels: str) -> str:
        return "/".join([self.prefix, "v1", self.site, self.line, self.node, *levels])

    @property
    def state(self) -> str:
        """
        >>> Topics("edge", "plant", "smt1", "aoi").state
        'edge/v1/plant/smt1/aoi/state'
        """
        return self._at("state")

    @property
    def info(self) -> str:
        return self._at("info")

    @property
    def health(self) -> str:
        return self._at("health")

    @property
    def ledger(self) -> str:
        return self._at("ledger")

    @property
    def line_state(self) -> str:
        return self._at("line")

    @property
    def part(self) -> str:
        return self._at("part")

    @property
    def bundle(self) -> str:
        return self._at("bundle")

    @property
    def disagreement(self) -> str:
        return self._at("bundle", "disagreement")

    def camera(self, camera: str, what: str) -> str:
        """`what` is state, result, reject, image or drift."""
        return self._at("camera", camera, what)

    def alarm(self, code: str) -> str:
        return self._at("alarm", code)

    def request(self, verb: str) -> str:
        return self._at("request", verb)

    def response(self, verb: str) -> str:
        return self._at("response", verb)


def boxes(shown: Detections, classes: Sequence[str]) -> list[Box]:
    """Detections as they are written everywhere: pixels to a tenth, confidence to 1e-4."""
    return [
        Box(
            xyxy=[round(float(v), 1) for v in xyxy],
            class_name=classes[int(class_id)],
            confidence=round(float(confidence), 4),
        )
        for xyxy, class_id, confidence in zip(shown.xyxy, shown.class_id, shown.confidence, strict=True)
    ]


def result_of(
    inspection: Inspection,
    part: int,
    classes: Sequence[str],
    shown_from: float,
    bundle_digest: str,
    latency_ms: float,
    evidence: str = "",
) -> Result:
    """The result message of one inspection; `shown_from`: as for `Inspection.told`."""
    frame, gate, verdict = inspection.frame, inspection.gate, inspection.verdict
    return Result(
        camera=frame.camera,
        part=part,
        frame=frame.number,
        name=frame.name,
        captured_ts=frame.captured_ts,
        verdict=verdict.kind.value,
        cause=gate.cause.value if gate.cause else None,
        reasons=[Why(code=r.code, text=r.text) for r in verdict.reasons],
        detections=boxes(inspection.told(shown_from), classes),
        sharpness=round(gate.sharpness, 2),
        brightness=round(gate.brightness, 2),
        anomaly=_rounded(inspection.scores.anomaly),
        anomaly_limit=_rounded(inspection.scores.anomaly_limit),
        bundle_digest=bundle_digest,
        latency_ms=round(latency_ms, 3),
        stage_ms={stage: round(ms, 3) for stage, ms in inspection.stage_ms.items()},
        evidence=evidence,
    )


def part_result_of(
    part: Part, evidence: str, classes: Sequence[str], shown_from: float, bundle_digest: str, latency_ms: float
) -> PartResult:
    """The message of a part that was triggered; `shown_from`: as for `Inspection.told`."""
    trigger = part.trigger
    if trigger is None:
        raise ValueError(f"part {part.number} was not triggered: its frame has a result of its own")
    reasons = part.verdict.reasons if part.verdict is not None else (Reason(part.reason, part.detail),)
    return PartResult(
        part=part.number,
        serial=part.serial,
        trigger=trigger.number,
        encoder=trigger.encoder,
        triggered_ts=trigger.at_ts,
        recipe=part.recipe,
        recipe_hash=part.recipe_hash,
        outcome=part.outcome,
        say=part.say.value,
        reasons=[Why(code=r.code, text=r.text) for r in reasons],
        looks=[_look(x, part.pairings.get(x.frame.camera), classes, shown_from) for x in part.inspections],
        missing=dict(part.missing),
        evidence=evidence,
        bundle_digest=bundle_digest,
        latency_ms=round(latency_ms, 3),
    )


def _look(inspection: Inspection, pairing: Pairing | None, classes: Sequence[str], shown_from: float) -> Look:
    frame, gate, scores = inspection.frame, inspection.gate, inspection.scores
    return Look(
        camera=frame.camera,
        frame=frame.number,
        name=frame.name,
        captured_ts=frame.captured_ts,
        verdict=inspection.verdict.kind.value,
        cause=gate.cause.value if gate.cause else None,
        detections=boxes(inspection.told(shown_from), classes),
        sharpness=round(gate.sharpness, 2),
        brightness=round(gate.brightness, 2),
        anomaly=_rounded(scores.anomaly),
        anomaly_limit=_rounded(scores.anomaly_limit),
        offset_ms=round(pairing.offset_ms, 3) if pairing else 0.0,
        uncertainty_ms=round(pairing.uncertainty_ms, 3) if pairing else 0.0,
        stage_ms={stage: round(ms, 3) for stage, ms in inspection.stage_ms.items()},
    )


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 4)


def reject_of(inspection: Inspection, part: int) -> Reject:
    """The alarm of a refused frame. Only for an inspection whose verdict is RETAKE."""
    frame, gate = inspection.frame, inspection.gate
    if inspection.verdict.kind is not VerdictKind.RETAKE or gate.cause is None or gate.limit is None:
        raise ValueError(f"a reject message wants a refused frame, this one is {inspection.verdict.kind}")
    return Reject(
        camera=frame.camera,
        part=part,
        frame=frame.number,
        name=frame.name,
        cause=gate.cause.value,
        measured=round(gate.measured, 3),
        limit=gate.limit,
        advice=gate.advice,
    )


AnyEnvelope = TypeVar("AnyEnvelope", bound=Envelope)


def stamp(
    message: AnyEnvelope, *, seq: int, boot: str, ts: float, mono_ns: int, clock_ok: bool, stream: str
) -> AnyEnvelope:
    """The message with its envelope filled in. `stream` keeps ids of different seq counters apart."""
    return msgspec.structs.replace(
        message, id=f"{boot}-{stream}-{seq}", seq=seq, boot=boot, ts=ts, mono_ns=mono_ns, clock_ok=clock_ok
    )


def encode(message: msgspec.Struct) -> bytes:
    """The payload as JSON. What is not text in it, such as a file name in another encoding, is shown as `?`."""
    try:
        return msgspec.json.encode(message)
    except UnicodeEncodeError:
        return msgspec.json.encode(_printable(msgspec.to_builtins(message)))


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list) else value


def payload_name(payload: type[msgspec.Struct]) -> str:
    """The name and version of a payload, as its `schema` field says it.

    >>> payload_name(Result), payload_name(RecipeRequest)
    ('edge.result.v1', 'edge.recipe_request.v1')
    """
    fields = {field.name: field for field in msgspec.structs.fields(payload)}
    if "schema" in fields:
        return str(fields["schema"].default)
    return f"edge.{re.sub('(?<!^)(?=[A-Z])', '_', payload.__name__).lower()}.v1"


def json_schemas() -> dict[str, bytes]:
    """The JSON Schema (draft 2020-12) of every payload by its name, for those who read us in another language.

    >>> sorted(json_schemas())[0]
    'edge.alarm.v1'
    """
    schemas = {}
    for payload in PAYLOADS:
        name = payload_name(payload)
        head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"urn:{name}"}
        text = msgspec.json.encode({**head, **msgspec.json.schema(payload)}, order="sorted")
        schemas[name] = msgspec.json.format(text, indent=2) + b"\n"
    return schemas
