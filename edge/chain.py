"""The chain of the genealogy: what a row says, and how each proves the one before it. No I/O.

The hash of a row is SHA-256 over the 64 hex digits of the hash before it (zeros for row 1) and the row's content, JSON
with sorted keys and no spaces as it is stored: `printf %s%s BEFORE BODY | sha256sum`. The content holds the row's
number, kind and time too; the columns beside it only help queries, and have to agree with it. So a row that is altered,
removed, added or moved breaks the chain. Whoever can write the file can also compute a whole new end: that shows
against a head hash published before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from edge.part import Part
from edge.records import Inspection

FIRST_HASH = "0" * 64  # stands before row 1

MOST_REASONS = 20
MOST_TEXT = 200  # characters of one reason
MOST_CLASSES = 8
SURE_ENOUGH = 0.05  # a class's best confidence is told from here on


@dataclass(frozen=True)
class About:
    """What is the same for all parts of a run.

    Attributes:
        bundle: digest of the bundle that judges. config_hash: of the site config in force.
        classes: the bundle's, in the order of its class ids.
    """

    bundle: str = ""
    config_hash: str = ""
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One row as it is stored.

    Attributes:
        n: counts the rows of the chain from 1, without a gap.
        kind: begin, part, void, late, override, bundle, challenge, recipe, start, stop or prune.
        ts: wall clock, seconds since 1970, UTC: of a part when it was settled, of the others when they were written.
        part: number of the part that it is about, None for none. serial: of that part, None for none.
        outcome: what became of it in one word: a verdict or a loss; of an override the verdict given.
        body: the content as JSON. hash: 64 hex digits.
    """

    n: int
    kind: str
    ts: float
    part: int | None
    serial: str | None
    outcome: str | None
    body: bytes
    hash: str

    @property
    def content(self) -> dict[str, Any]:
        """The content, {} when it cannot be read."""
        try:
            return msgspec.json.decode(self.body, type=dict[str, Any])
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
            return {}


def link(before: str, body: bytes) -> str:
    """The hash of a row with that content, after a row with the hash `before`; both 64 hex digits.

    >>> link(FIRST_HASH, b'{"n":1}')[:16]
    'd72c261cbe5387f5'
    """
    return hashlib.sha256(str(before).encode("utf-8", "surrogateescape") + body).hexdigest()


def canonical(content: Mapping[str, Any]) -> bytes:
    """The content as it is hashed and stored. What is no text in it, as in odd file names, is written as `?`.

    >>> canonical({"b": 1.5, "a": "ö"}).decode()
    '{"a":"ö","b":1.5}'
    """
    try:
        return msgspec.json.encode(content, order="sorted")
    except UnicodeEncodeError:
        return msgspec.json.encode(_printable(msgspec.to_builtins(content)), order="sorted")


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {_printable(key): _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list | tuple) else value


def columns(content: Mapping[str, Any]) -> tuple[Any, ...]:
    """What the columns kind, ts, part, serial and outcome of a row with that content hold."""
    get = content.get
    return get("kind"), get("ts"), get("part"), get("serial") or None, get("outcome") or None


def fault(row: Row, before: str) -> str:
    """What is wrong with a row that follows one with the hash `before`, in words; "" when nothing is."""
    content = row.content if isinstance(row.body, bytes) else {}
    number = content.get("n")
    if not isinstance(row.body, bytes) or link(before, row.body) != row.hash:
        if isinstance(number, int) and number != row.n:
            return f"row {row.n}: it stands in the place of another, its content is that of row {number}"
        if isinstance(row.body, bytes) and row.n > 1 and link(FIRST_HASH, row.body) == row.hash:
            return f"row {row.n}: the chain is begun anew here, as if nothing were before it"
        return f"row {row.n}: altered, its hash is not that of its content after the row before"
    if number != row.n:
        return f"row {row.n}: its number was altered, its content says {number}"
    if row.kind == "begin" and row.n != 1:
        return f"row {row.n}: the chain is begun anew here"
    have = (row.kind, row.ts, row.part, row.serial, row.outcome)
    if have != columns(content):
        names = ("kind", "ts", "part", "serial", "outcome")
        odd = [name for name, a, b in zip(names, have, columns(content), strict=True) if a != b]
        return f"row {row.n}: its columns do not match its content: {', '.join(odd)}"
    return ""


def part_content(part: Part, evidence: str, about: About) -> dict[str, Any]:
    """What the row of a part says of it."""
    verdict, trigger = part.verdict, part.trigger
    reasons = verdict.reasons if verdict is not None else ()
    return {
        "part": part.number,
        "serial": part.serial,
        "outcome": part.outcome,
        "reasons": [[reason.code, reason.text[:MOST_TEXT]] for reason in reasons[:MOST_REASONS]],
        "more_reasons": max(0, len(reasons) - MOST_REASONS),
        "detail": part.detail[:MOST_TEXT],
        "trigger": None if trigger is None else [trigger.number, round(trigger.at_ts, 6), trigger.encoder],
        "recipe": part.recipe,
        "recipe_hash": part.recipe_hash,
        "bundle": about.bundle,
        "config": about.config_hash,
        "evidence": evidence,
        "cameras": {x.frame.camera: _look(x, about.classes) for x in part.inspections},
        "missing": {camera: why[:MOST_TEXT] for camera, why in part.missing.items()},
    }


def _look(inspection: Inspection, classes: tuple[str, ...]) -> dict[str, Any]:
    """One camera's frame in numbers; `top`: the best confidence of each class, surest first."""
    frame, gate, scores, found = inspection.frame, inspection.gate, inspection.scores, inspection.detections
    top: dict[str, float] = {}
    for confidence, class_id in zip(found.confidence, found.class_id, strict=True):
        name = classes[int(class_id)] if 0 <= int(class_id) < len(classes) else f"class {int(class_id)}"
        if confidence >= SURE_ENOUGH and name not in top and len(top) < MOST_CLASSES:
            top[name] = round(float(confidence), 4)
    return {
        "frame": frame.number,
        "verdict": inspection.verdict.kind.value,
        "sharpness": round(gate.sharpness, 2),
        "brightness": round(gate.brightness, 2),
        "anomaly": None if scores.anomaly is None else round(scores.anomaly, 4),
        "top": top,
    }
