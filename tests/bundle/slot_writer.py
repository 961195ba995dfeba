"""A process that installs, tries, keeps, returns and rolls back bundles as fast as it can, on a disk that is cut.

Prints a line after each step, once that step was said to be durable: `Told` as JSON.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from edge.bundle import links, slots
from edge.bundle import outcome as outcomes
from edge.bundle.trial import Trial
from edge.event import UpdateOutcome
from tests.bundle.tiny_bundle import make_bundle

MODEL_BYTES = 150_000


class Told(msgspec.Struct, kw_only=True, frozen=True):
    """What stands after a step."""

    step: str
    put: str | None = None  # the slot that was put last
    mark: Trial | None
    links: tuple[str | None, str | None, str | None]
    floor: int
    outcome: UpdateOutcome | None


def told(state: Path, step: str = "", put: str | None = None) -> Told:
    """What stands in a state folder."""
    active, previous, candidate = (_link(state / "bundles" / name) for name in links.LINKS)
    return Told(
        step=step,
        put=put,
        mark=slots.read_trial(state),
        links=(active, previous, candidate),
        floor=slots.floor(state, "pcb"),
        outcome=outcomes.read(state),
    )


def _link(path: Path) -> str | None:
    return os.readlink(path) if path.is_symlink() else None


def _steps(state: Path, source: Path, version: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """The life of one bundle, each time another one."""
    slot = slots.put(source, state)
    yield f"put {slot.name}", lambda: slot
    yield "stage", lambda: slots.stage(state, slot, signed=version % 5 > 0, origin="usb", transaction=str(version))
    if version % 7 == 3:
        yield "refuse", lambda: slots.refuse(state, "differs", "it differs")
        return
    yield "activate", lambda: slots.activate(state)
    yield "start", lambda: slots.note_start(state)
    if version % 3 == 2:
        yield "go back", lambda: slots.go_back(state, "slow", "it is slow")
        return
    yield "commit", lambda: slots.commit(state)
    if version % 4 == 1 and version > 1:
        yield "rollback", lambda: slots.rollback(state)


def main(state: Path, sources: Path) -> None:
    """Go on until killed."""
    put = None
    for version in itertools.count(1):
        source = make_bundle(sources / str(version), version, MODEL_BYTES)
        for step, do in _steps(state, source, version):
            do()
            put = step[4:] if step.startswith("put ") else put
            sys.stdout.write(msgspec.json.encode(told(state, step, put)).decode() + "\n")
            sys.stdout.flush()
            time.sleep(random.uniform(0.0, 0.1))  # what was not waited for is not on the disk now
        shutil.rmtree(source)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
