"""Killed at any step, every change of slots happened or did not, the active slot is whole, and the next install works.

Each scenario runs in a child that kills itself (SIGKILL) before or after its n-th call that changes files, for every n:
with `--slow` every such call, without it those by which a change is seen (rename, symlink). What the child has said to
be done is done; what it was doing is done or not.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge import settings
from edge.bundle import links, slots
from edge.bundle import manifest as manifests
from edge.bundle import trial as trials
from edge.config import Runtime
from edge.errors import BundleError
from edge.serving import open_product
from tests.bundle.killing import CHANGING, NAMING, killed_at, places
from tests.bundle.tiny_bundle import install, make_bundle

PCB = Path(__file__).parents[2] / "models/pcb"
Step = Callable[[], object]


@dataclass(frozen=True)
class Scenario:
    """What is done to a state folder, step by step; `fewest`: so many places to kill it at."""

    before: Callable[[Path, Path], object]  # (state, bundles by version)
    steps: Callable[[Path, Path], list[Step]]
    fewest: int


def put_and_stage(state: Path, source: Path, *, signed: bool = True) -> None:
    slots.stage(state, slots.put(source, state), signed=signed, origin="usb", transaction="t")


def two_installed(state: Path, made: Path) -> None:
    install(made / "1", state)
    install(made / "2", state)


def one_in_shadow(state: Path, made: Path) -> None:
    two_installed(state, made)
    put_and_stage(state, made / "3")


def one_on_trial(state: Path, made: Path) -> None:
    one_in_shadow(state, made)
    slots.activate(state)


def started_three_times(state: Path, made: Path) -> None:
    one_on_trial(state, made)
    for _ in range(3):
        slots.note_start(state)


def started_in_shadow(state: Path, made: Path) -> None:
    one_in_shadow(state, made)
    for _ in range(3):
        slots.note_start(state)


def active_damaged(state: Path, made: Path) -> None:
    two_installed(state, made)
    (slots.active(state) / "CARD.md").write_text("x")


def install_steps(state: Path, made: Path) -> list[Step]:
    return [
        lambda: slots.put(made / "3", state),
        lambda: slots.stage(state, slots.put(made / "3", state), signed=True, origin="usb"),
    ]


def stay(state: Path, made: Path) -> list[Step]:
    return [
        *install_steps(state, made),
        lambda: slots.activate(state),
        lambda: slots.note_start(state),
        lambda: slots.commit(state),
    ]


SCENARIOS: Mapping[str, Scenario] = {
    "tried and kept": Scenario(two_installed, stay, 500),
    "tried and returned": Scenario(
        two_installed, lambda s, m: [*stay(s, m)[:-1], lambda: slots.go_back(s, "slow", "it is slow")], 500
    ),
    "refused in shadow": Scenario(
        two_installed, lambda s, m: [*install_steps(s, m), lambda: slots.refuse(s, "differs", "it differs")], 350
    ),
    "the very first": Scenario(lambda *_: None, lambda s, m: [*install_steps(s, m), lambda: slots.commit(s)], 300),
    "over a damaged active slot": Scenario(active_damaged, lambda s, m: [*install_steps(s, m)], 300),
    "another candidate": Scenario(one_in_shadow, lambda s, m: [lambda: put_and_stage(s, m / "4")], 300),
    "the fourth start": Scenario(started_three_times, lambda s, _: [lambda: slots.note_start(s)], 60),
    "the fourth start in shadow": Scenario(started_in_shadow, lambda s, _: [lambda: slots.note_start(s)], 60),
    "a start with a damaged slot": Scenario(active_damaged, lambda s, _: [lambda: slots.note_start(s)], 60),
    "a start and a stop": Scenario(
        one_on_trial, lambda s, _: [lambda: slots.note_start(s), lambda: slots.note_stop(s)], 60
    ),
    "rollback": Scenario(two_installed, lambda s, _: [lambda: slots.rollback(s)] * 2, 120),
    "rollback while on trial": Scenario(one_on_trial, lambda s, _: [lambda: slots.rollback(s)], 60),
}


def settled(state: Path) -> tuple[object, ...]:
    """What counts of a state folder, once whoever comes next has finished what was begun."""
    bundles = state / "bundles"
    if not bundles.is_dir():
        return (None,) * 4
    with slots._changing(state, "nothing"):
        mark = links.settle(bundles)
    led = [os.readlink(bundles / name) if (bundles / name).is_symlink() else None for name in links.LINKS]
    origins = slots.told(state) if led[0] else None
    if mark is not None:
        mark = msgspec.structs.replace(mark, began=0.0, text="")  # which names folders
    return (mark, tuple(led), slots.floor(state, "pcb"), (origins.signed, origins.origin) if origins else None)


def name_of(state: Path) -> str | None:
    """What `active` points at."""
    link = state / "bundles" / links.ACTIVE
    return os.readlink(link) if link.is_symlink() else None


def loads(state: Path) -> int | None:
    """Version of the active slot, every file of it read and checked; None: nothing was ever installed."""
    return manifests.read(slots.active(state)).version if name_of(state) is not None else None


def next_install_works(state: Path, source: Path) -> None:
    """From whatever state: the next one comes, is tried and stays, and nothing is left of what was cut short."""
    try:
        slots.stage(state, slots.put(source, state), signed=True, origin="network")
    except BundleError as error:
        assert "is on trial" in str(error)
        slots.go_back(state, "test", "to make place")
        slots.stage(state, slots.put(source, state), signed=True, origin="network")
    slots.activate(state)
    slots.commit(state)
    assert loads(state) == manifests.read(source).version == slots.floor(state, "pcb")
    bundles = state / "bundles"
    names = {path.name for path in bundles.iterdir()}
    used = {os.readlink(bundles / name) for name in links.LINKS if (bundles / name).is_symlink()}
    assert names - used <= {".lock", "active", "previous", trials.TRIAL, trials.ORIGINS, trials.FLOOR}
    assert {name for name in names if trials.is_slot(name)} == used


@pytest.fixture(autouse=True)
def same_manifests(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same five manifests are read some ten thousand times: what is wrong with each is looked up once."""
    known: dict[bytes, list[str]] = {}
    find = settings.find_problems

    def look_up(data: Any, *rest: Any) -> list[str]:
        text = msgspec.json.encode(data)
        if text not in known:
            known[text] = find(data, *rest)
        return known[text]

    monkeypatch.setattr(settings, "find_problems", look_up)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory, where there is such a folder: a kill takes nothing from the page cache."""
    shm = Path("/dev/shm")
    if not shm.is_dir() or not os.access(shm, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=shm) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles by version."""
    folder = tmp_path_factory.mktemp("made")
    for version in (1, 2, 3, 4, 9):
        make_bundle(folder / str(version), version, 100)
    return folder


def run(scenario: Scenario, made: Path, folder: Path, calls: Sequence[str]) -> int:
    """Kill it before and after each of these calls; returns how often."""
    start, work, fine = folder / "start", folder / "work", folder / "fine"
    start.mkdir()
    scenario.before(start, made)
    shutil.copytree(start, fine, symlinks=True)
    states = [settled(fine)]
    damaged = name_of(start) is not None and not links.whole(slots.active(start))
    for step in scenario.steps(fine, made):
        step()
        states.append(settled(fine))
    kills, killed, seen = 0, True, set()
    while killed:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(start, work, symlinks=True)
        killed, done = killed_at(kills, scenario.steps(work, made), calls)
        kills += killed
        if not damaged:
            seen.add(loads(work))
        assert None not in seen or name_of(start) is None, "there was an active bundle, and now there is none"
        found = settled(work)
        assert found in states[done : done + 2], f"killed at {kills - killed}, after {done} steps"
        if name_of(work) is not None:
            assert slots.note_start(work).problem == ""
            seen.add(loads(work))
        next_install_works(work, made / "9")
    assert len(seen) > 1 or len({state[1] for state in states}) < 3, f"always the same: {seen}"
    return kills


EVERY_CALL = pytest.param(CHANGING, 1, id="every call", marks=[pytest.mark.slow, pytest.mark.timeout(1800)])


@pytest.mark.parametrize(("calls", "share"), [pytest.param(NAMING, 30, id="renames"), EVERY_CALL])
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_anywhere_it_happened_or_it_did_not(
    name: str, calls: Sequence[str], share: int, made: Path, folder: Path
) -> None:
    kills = run(SCENARIOS[name], made, folder, calls)
    print(f"{name}: killed at {kills} places")
    assert kills >= SCENARIOS[name].fewest // share


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_bundle_with_models_opens_after_a_kill(folder: Path) -> None:
    """The shipped bundle and the next version of it: what is active is loaded by the runtime and run."""
    wanted = 12
    start, work = folder / "start", folder / "work"
    newer = folder / "newer"
    shutil.copytree(PCB, newer)
    said = msgspec.json.decode((newer / "manifest.json").read_bytes())
    said["version"] += 1
    (newer / "manifest.json").write_bytes(msgspec.json.encode(said))
    install(PCB, start)

    def steps(state: Path) -> list[Step]:
        return [
            lambda: slots.stage(state, slots.put(newer, state), signed=True, origin="usb"),
            lambda: slots.activate(state),
            lambda: slots.commit(state),
        ]

    shutil.copytree(start, work, symlinks=True)
    last, versions = places(steps(work)) - 1, set()
    for turn in range(wanted):
        shutil.rmtree(work)
        shutil.copytree(start, work, symlinks=True)
        assert killed_at(last * (turn + 1) // wanted, steps(work))[0]
        versions.add(open_product(slots.note_start(work).slot, Runtime()).manifest.version)
    assert versions == {said["version"] - 1, said["version"]}
