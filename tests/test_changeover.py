"""The story of a change of bundles, step by step: real slots on a real disk, stand-ins for models and the line."""

from __future__ import annotations

import gc
import os
import time
import weakref
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from edge import changeover as changeovers
from edge import serving
from edge.bundle import manifest as manifests
from edge.bundle import outcome as outcomes
from edge.bundle import slots
from edge.changeover import LOOK_NS, PATIENCE_NS, Changeover
from edge.config import Config, Paths, Plc, SimulatedCamera, TrialSettings
from edge.errors import BundleError, ConfigError, PredictorError
from edge.event import Disagreement, Topics
from edge.fronts import Front
from edge.incumbent import Incumbent
from edge.outbox import Draft
from edge.part import Part
from edge.probation import FAULTS_IN_A_ROW, FRAMES_LEAST, USUAL_LEAST
from edge.records import Frame, Inspection, Loss
from edge.station import Station
from tests.bundle.tiny_bundle import install, make_bundle
from tests.fakes import FakeClock
from tests.parts import look, part

MS = 1_000_000
PIXELS = np.zeros((4, 4), np.uint8)
TRIAL = TrialSettings(
    shadow_parts=4, shadow_minutes=1.0, disagree_max=0.25, parts=60, minutes=1.0, reject_rise=0.1, latency_factor=2.0
)
LIMIT_S = 60.0


class FakeFront:
    """A line on which a part waits or none does."""

    def __init__(self) -> None:
        self.is_idle = True
        self.held_ns: list[tuple[int, int]] = []
        self.problem: ConfigError | None = None

    def idle(self) -> bool:
        return self.is_idle

    def held(self, began_ns: int, ended_ns: int, holds: bool) -> None:
        self.held_ns.append((began_ns, ended_ns))

    def check(self, incumbent: Incumbent) -> None:
        if self.problem is not None:
            raise self.problem


class FakeStation:
    """What the changeover asks of a station, noted."""

    def __init__(self) -> None:
        self.alarms: dict[str, str] = {}
        self.sent: list[Any] = []
        self.rows: list[tuple[str, Mapping[str, Any]]] = []
        self.moved: set[str] = set()
        self.pictures = None

    def alarm(self, code: str, severity: str, text: str, advice: str) -> None:
        self.alarms[code] = text

    def over(self, code: str) -> None:
        self.alarms.pop(code, None)

    def tell(self, draft: Draft) -> None:
        self.sent.append(draft.message)

    def row(self, kind: str, body: Mapping[str, Any]) -> bool:
        self.rows.append((kind, body))
        return True

    def drifted(self) -> set[str]:
        return set(self.moved)


@dataclass
class FakeProduct:
    """A bundle that is loaded: its slot says how it judges."""

    digest: str
    slot: Path
    classes: tuple[str, ...] = ("open",)
    shown_from: float = 0.5
    foreign_from: float | None = None
    artifact: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(runtime="paddlelite"))


class FakeWatch:
    """Watches nothing."""

    saved = 0

    def save(self) -> None:
        self.saved += 1


@dataclass
class FakeIncumbent:
    """Judges as it is told, and takes its time."""

    product: FakeProduct
    box: Box
    watch: FakeWatch = field(default_factory=FakeWatch)
    looked: int = 0

    def pipeline_of(self, part: Part) -> FakeIncumbent:
        return self

    def inspect(self, frame: Frame) -> Inspection:
        self.looked += 1
        self.box.clock.now_ns += self.box.look_ms * MS
        opinion = self.box.opinion
        if isinstance(opinion, Exception):
            raise opinion
        return replace(look(opinion, frame.camera, PIXELS), frame=frame)


@dataclass
class Box:
    """A changeover on the slots of a real folder, with everything around it told what to do."""

    folder: Path
    trial: TrialSettings = TRIAL
    opinion: str | Exception = "OK"  # of a bundle in shadow
    look_ms: int = 5
    opens: list[Path] = field(default_factory=list)
    seats: list[Path] = field(default_factory=list)
    problems: dict[str, Exception] = field(default_factory=dict)  # of opening, by the slot's name
    during: Callable[[], object] | None = None  # done once, while a bundle is opened
    made: list[weakref.ref[FakeIncumbent]] = field(default_factory=list)
    plc: Plc | None = None
    number: int = 0

    def __post_init__(self) -> None:
        self.state = self.folder / "state"
        self.clock, self.front, self.station = FakeClock(), FakeFront(), FakeStation()

    def put(self, version: int) -> Path:
        return slots.put(make_bundle(self.folder / f"v{version}", version), self.state)

    def stage(self, version: int) -> Path:
        slot = self.put(version)
        slots.stage(self.state, slot, signed=True, origin="usb", transaction=f"t{version}")
        return slot

    def start(self) -> None:
        cameras: list[Any] = [SimulatedCamera(id="cam1"), SimulatedCamera(id="cam2")]
        config = Config(camera=cameras, paths=Paths(state=str(self.state)), trial=self.trial, plc=self.plc)
        self.config = config
        start = slots.note_start(self.state)
        self.changeover = Changeover(
            config, cast(Incumbent, self.incumbent(start.slot)), start, cast(Station, self.station),
            cast(Front, self.front), Topics("edge", "s", "l", "n"), self.clock, self.seat,
        )  # fmt: skip

    def incumbent(self, slot: Path) -> FakeIncumbent:
        return self.make(FakeProduct(manifests.digest(manifests.read(slot)), slot))

    def make(self, product: FakeProduct) -> FakeIncumbent:
        made = FakeIncumbent(product, self)
        self.made.append(weakref.ref(made))
        return made

    def seat(self, incumbent: Incumbent) -> None:
        self.seats.append(cast(FakeProduct, incumbent.product).slot)

    def opening(self, folder: Path, *_: object, **__: object) -> Generator[None, None, FakeProduct]:
        self.opens.append(folder)
        yield
        if (during := self.during) is not None:
            self.during = None
            during()
        if problem := self.problems.get(folder.name):
            raise problem
        yield
        return FakeProduct(manifests.digest(manifests.read(folder)), folder)

    # What a test does.

    def turn(self, seconds: float = LOOK_NS / 1e9) -> None:
        self.clock.advance(seconds)
        self.changeover.turn()
        time.sleep(0.001)  # for an errand

    def turns(self, until: Callable[[], object], what: str, each: Callable[[], object] = lambda: None) -> None:
        limit = time.monotonic() + LIMIT_S
        while not until():
            assert time.monotonic() < limit, f"{what} did not come: {self.told()}"
            each()
            self.turn(0.0)
            self.turn()

    def some_turns(self, n: int, each: Callable[[], object] = lambda: None) -> None:
        """Enough for whatever is under way; errands get their time."""
        for _ in range(n):
            each()
            self.turn(0.0)
            self.turn()
            time.sleep(0.003)

    def part(self, kind: str = "OK", ms: float = 20.0, cameras: tuple[str, ...] = ("cam1",)) -> Part:
        """A part is settled by the bundle in charge."""
        self.number += 1
        made = part(kind, self.number, cameras=cameras, image=PIXELS)
        assert made.trigger is not None
        trigger = replace(made.trigger, at_mono_ns=self.clock.now_ns)
        looks = tuple(replace(each, stage_ms={"predict": ms}) for each in made.inspections)
        made = replace(made, trigger=trigger, inspections=looks)
        self.changeover.settled(made)
        return made

    def told(self) -> object:
        mark = slots.read_trial(self.state)
        return mark, self.station.alarms, [path.name for path in self.seats]

    def slow_part(self) -> None:
        self.part()
        self.clock.advance(1)

    @property
    def stage_now(self) -> str:
        mark = slots.read_trial(self.state)
        return mark.stage if mark is not None else "none"

    @property
    def in_charge(self) -> Path:
        return cast(FakeProduct, self.changeover.incumbent.product).slot


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    made = Box(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _handle: None)  # what survives a power cut is shown elsewhere

    def prepare(slot: Path, *_: object) -> object:
        return SimpleNamespace(manifest=manifests.read(slot), recipes=None)

    def make(_config: Config, product: FakeProduct, _clock: object) -> FakeIncumbent:
        return made.make(product)

    monkeypatch.setattr(serving, "prepare", prepare)
    monkeypatch.setattr(serving, "opening", made.opening)
    monkeypatch.setattr(changeovers, "make_incumbent", make)
    made.first = install(make_bundle(tmp_path / "v1", 1), made.state)  # type: ignore[attr-defined]
    return made


def first(box: Box) -> Path:
    return next((box.state / "bundles").glob("pcb-1-*"))


def started(box: Box) -> Path:
    """Start, and learn what is usual: a tenth is not OK, 20 ms a frame."""
    box.start()
    for k in range(USUAL_LEAST):
        box.part("NG" if k % 10 == 0 else "OK")
        box.clock.advance(0.1)
    return first(box)


def in_shadow(box: Box, version: int = 2) -> Path:
    slot = box.stage(version)
    box.turns(lambda: box.changeover.shadow is not None, "the shadow")
    return slot


def on_trial(box: Box, version: int = 2) -> Path:
    slot = in_shadow(box, version)
    box.turns(lambda: box.changeover.probation is not None, "the trial", box.part)
    return slot


# The way to the commit.


def test_a_bundle_is_opened_seen_swapped_tried_and_kept(box: Box) -> None:
    old = started(box)
    slot = in_shadow(box)
    assert (box.stage_now, box.in_charge, box.seats) == ("shadow", old, []), "nothing is changed by a look"
    box.turns(lambda: box.seats, "the swap", box.part)
    shadow = box.changeover.shadow
    assert shadow is not None and (shadow.seen, shadow.disagreed) == (4, 0)
    box.turns(lambda: box.changeover.probation is not None, "the trial")
    assert (box.stage_now, box.in_charge, slots.active(box.state)) == ("trial", slot, slot)
    for _ in range(box.trial.parts - 1):
        box.part()
    box.some_turns(10)
    box.clock.advance(60)
    box.some_turns(10)
    assert box.stage_now == "trial", "one part is lacking"
    box.part()
    box.turns(lambda: box.stage_now == "committed", "the commit")
    box.some_turns(10)
    assert box.seats == [slot] and box.opens == [slot] and not box.station.alarms
    old_digest, new_digest = (manifests.digest(manifests.read(each)) for each in (old, slot))
    assert box.station.rows == [("bundle", {"from": old_digest, "to": new_digest, "slot": slot.name})]
    last = outcomes.read(box.state)
    assert last is not None and (last.outcome, last.transaction) == ("committed", "t2")


def test_it_is_not_kept_before_its_minutes(box: Box) -> None:
    started(box)
    on_trial(box)
    for _ in range(box.trial.parts):
        box.part()
    box.some_turns(20)
    assert box.stage_now == "trial"
    box.clock.advance(60)
    box.turns(lambda: box.stage_now == "committed", "the commit")


def test_nothing_holds_the_bundle_before_once_it_was_replaced_for_good(box: Box) -> None:
    started(box)
    old = weakref.ref(box.changeover.incumbent)
    slot = on_trial(box)
    assert old() is not None, "it may have to be returned to"
    box.clock.advance(60)
    box.turns(lambda: box.stage_now == "committed", "the commit", box.part)
    box.turns(lambda: gc.collect() >= 0 and old() is None, "the end of the old one")
    assert box.in_charge == slot


def test_without_parts_in_shadow_it_goes_on_trial_at_once(box: Box) -> None:
    box.trial = msgspec.structs.replace(TRIAL, shadow_parts=0)
    started(box)
    slot = box.stage(2)
    box.turns(lambda: box.changeover.probation is not None, "the trial")
    assert box.changeover.shadow is None and box.in_charge == slot


def test_a_bundle_that_is_active_already_is_taken_over_without_a_shadow(box: Box) -> None:
    started(box)
    slot = box.stage(2)
    slots.activate(box.state)  # as `edge bundle install --now` does
    box.turns(lambda: box.changeover.probation is not None, "the trial")
    assert box.changeover.shadow is None and (box.in_charge, box.seats) == (slot, [slot])


# Between parts only.


def test_no_step_of_opening_is_taken_while_a_part_waits_but_now_and_then(box: Box) -> None:
    started(box)
    box.front.is_idle = False
    box.stage(2)
    box.turns(lambda: box.opens, "the first step")
    steps = len(box.front.held_ns)
    box.turn((PATIENCE_NS - 2 * LOOK_NS) / 1e9)
    assert len(box.front.held_ns) == steps, "a part waits"
    box.turn(2.5 * LOOK_NS / 1e9)
    assert len(box.front.held_ns) == steps + 1, "it has waited for long"
    box.front.is_idle = True
    box.turn(0.0)
    assert len(box.front.held_ns) == steps + 2


def test_a_look_is_taken_only_in_the_time_that_parts_leave(box: Box) -> None:
    started(box)
    slot = in_shadow(box)
    shadow = box.changeover.shadow
    assert shadow is not None
    box.part()
    box.turn(0.0)
    assert shadow.seen == 1, "how long it takes has to be measured once"
    box.clock.advance(0.095)
    box.part()
    box.turn(0.097)  # 3 ms are left until the next part, and a look takes 5
    assert shadow.counts().no_time == 1
    box.part()
    box.front.is_idle = False
    box.turn(0.0)
    assert (shadow.seen, shadow.counts().no_time) == (1, 1), "a part waits"
    box.part()
    assert shadow.counts().no_time == 2, "the one before went by"
    box.front.is_idle = True
    box.turn(0.0)
    assert shadow.seen == 2 and box.front.held_ns[-1][1] - box.front.held_ns[-1][0] == 5 * MS
    assert slots.candidate(box.state) == slot


def test_every_camera_of_a_part_is_looked_at(box: Box) -> None:
    started(box)
    in_shadow(box)
    box.part(cameras=("cam1", "cam2"))
    box.turn(0.0)
    assert box.changeover.shadow is not None and box.changeover.shadow.seen == 2


# Refused in shadow.


def test_a_bundle_that_judges_otherwise_is_refused_and_every_disagreement_told(box: Box) -> None:
    old = started(box)
    slot = in_shadow(box)
    box.opinion = "NG"
    box.turns(lambda: box.stage_now == "refused", "the refusal", box.part)
    box.turns(lambda: "bundle" in box.station.alarms, "the alarm")
    mark = slots.read_trial(box.state)
    assert mark is not None and (mark.code, mark.slot) == ("disagreement", slot.name)
    assert (box.in_charge, box.seats, slots.active(box.state)) == (old, [], old)
    told = [each for each in box.station.sent if isinstance(each, Disagreement)]
    assert len(told) == TRIAL.shadow_parts and {(each.active, each.candidate) for each in told} == {("OK", "NG")}
    assert told[0].active_digest == manifests.digest(manifests.read(old)) != told[0].candidate_digest
    box.some_turns(20, box.part)
    assert box.opens == [slot], "it is not tried again by itself"


@pytest.mark.parametrize("where", ["open", "front", "look"])
def test_a_bundle_that_cannot_serve_is_refused_and_the_next_one_comes(box: Box, where: str) -> None:
    started(box)
    if where == "front":
        box.front.problem = ConfigError("the bundle", ["its recipes have the numbers 7, and the PLC knows 1"])
    slot = box.stage(2)
    if where == "open":
        box.problems[slot.name] = PredictorError("the model cannot be loaded")
    if where == "look":
        box.opinion = PredictorError("not finite")
    box.turns(lambda: box.stage_now == "refused", "the refusal", box.part)
    box.turns(lambda: "bundle" in box.station.alarms, "the alarm")
    mark = slots.read_trial(box.state)
    assert mark is not None and mark.code == ("fault" if where == "look" else "cannot_serve")
    box.front.problem, box.opinion = None, "OK"
    other = on_trial(box, 3)
    assert box.in_charge == other


def test_a_person_who_rolls_back_ends_the_shadow(box: Box) -> None:
    older = started(box)
    held = install(make_bundle(box.folder / "v0", 2), box.state)
    box.turns(lambda: box.in_charge == held, "the held one")
    in_shadow(box, 3)
    slots.rollback(box.state, "by hand")
    box.turns(lambda: box.in_charge == older, "the bundle before")
    assert box.stage_now == "rolled_back" and "changeover" not in box.station.alarms


def test_another_bundle_takes_the_place_of_one_in_shadow(box: Box) -> None:
    started(box)
    one = in_shadow(box)
    other = box.stage(3)
    box.turns(lambda: box.seats, "the swap", box.part)
    assert box.seats == [other] and box.opens == [one, other] and not box.station.alarms


# Returned from trial.


def spoil(box: Box, how: str) -> None:
    if how == "rejects":
        for _ in range(USUAL_LEAST):
            box.part("NG")
    elif how == "latency":
        for _ in range(FRAMES_LEAST):
            box.part(ms=50.0)
    elif how == "fault":
        for _ in range(FAULTS_IN_A_ROW):
            box.changeover.fault("not finite")
    elif how == "drift":
        box.station.moved.add("score up on cam1")
    else:
        for _ in range(USUAL_LEAST):
            box.part(Loss.DEADLINE.value)


@pytest.mark.parametrize("how", ["rejects", "latency", "fault", "drift", "deadline"])
def test_a_bundle_out_of_its_limits_is_returned_to_the_loaded_one(box: Box, how: str) -> None:
    old = started(box)
    box.station.moved.add("sharpness down on cam1")  # it moved under the bundle before: not held against this one
    before = box.changeover.incumbent
    slot = on_trial(box)
    box.some_turns(5)
    assert box.stage_now == "trial"
    spoil(box, how)
    box.turns(lambda: box.stage_now == "returned" and slots.active(box.state) == old, "the return")
    mark = slots.read_trial(box.state)
    assert mark is not None and mark.slot == slot.name
    assert mark.code == ("rejects" if how == "deadline" else how)
    assert box.seats == [slot, old] and box.changeover.incumbent is before and box.opens == [slot]
    assert slots.active(box.state) == old and slot.name in box.station.alarms["bundle"]
    assert [body["slot"] for _, body in box.station.rows] == [slot.name, old.name]
    box.some_turns(10, box.part)
    assert len(box.seats) == 2


@pytest.mark.parametrize("loss", [Loss.OVERRUN, Loss.CAPTURE_FAULT])
def test_losses_that_no_bundle_makes_do_not_count(box: Box, loss: Loss) -> None:
    started(box)
    on_trial(box)
    for _ in range(2 * USUAL_LEAST):
        box.part(loss.value)
    box.some_turns(10)
    assert box.stage_now == "trial" and box.changeover.probation is not None
    assert box.changeover.probation.counts(0).parts == 0


def test_a_person_who_rolls_back_ends_the_trial(box: Box) -> None:
    old = started(box)
    slot = on_trial(box)
    slots.rollback(box.state, "by hand")
    box.turns(lambda: box.in_charge == old, "the bundle before")
    assert box.seats == [slot, old] and box.stage_now == "rolled_back"
    box.some_turns(10, box.part)
    assert box.seats == [slot, old] and slots.previous(box.state) is None


def test_after_a_return_the_next_one_is_measured_by_the_bundle_that_stayed(box: Box) -> None:
    box.trial = msgspec.structs.replace(TRIAL, shadow_parts=0)  # parts in shadow would hide those of the one that left
    started(box)
    box.stage(2)
    box.turns(lambda: box.changeover.probation is not None, "the trial")
    spoil(box, "rejects")
    box.turns(lambda: box.stage_now == "returned", "the return")
    slot = box.stage(3)
    box.turns(lambda: box.in_charge == slot and box.changeover.probation is not None, "the next trial")
    assert box.changeover.probation is not None
    usual = box.changeover.probation.counts(0).usual_not_ok_share
    assert usual is not None and usual <= 0.1


# A disk that does not take it.


def break_once(monkeypatch: pytest.MonkeyPatch, name: str, times: int = 1) -> list[str]:
    """Have a function of the slots fail so often, as a full disk does; the calls that were made."""
    real, calls = getattr(slots, name), list[str]()

    def failing(*args: Any, **kwargs: Any) -> object:
        calls.append(name)
        if len(calls) <= times:
            raise BundleError(f"{name}: No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(slots, name, failing)
    return calls


def test_a_disk_that_does_not_take_the_swap_leaves_the_old_one_in_charge(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = started(box)
    break_once(monkeypatch, "activate")
    in_shadow(box)
    box.turns(lambda: "bundle" in box.station.alarms, "the alarm", box.part)
    assert (box.in_charge, box.seats, slots.active(box.state)) == (old, [], old)
    assert "No space left" in box.station.alarms["bundle"] and box.stage_now == "refused"


def test_a_disk_that_does_not_take_the_commit_is_asked_again(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    started(box)
    calls = break_once(monkeypatch, "commit", 3)
    on_trial(box)
    box.clock.advance(60)
    box.turns(lambda: "bundle_disk" in box.station.alarms, "the alarm", box.part)
    box.turns(lambda: "bundle_disk" not in box.station.alarms, "the end of the alarm", box.part)
    assert len(calls) == 4 and box.stage_now == "committed"


def test_what_is_usual_is_not_known_when_the_disk_did_not_take_it(box: Box) -> None:
    started(box)
    (box.state / "update").mkdir(exist_ok=True)
    (box.state / "update" / f"{changeovers.USUAL}.new").mkdir()  # as bad as a full disk
    slot = on_trial(box)
    assert box.in_charge == slot and "changeover" not in box.station.alarms


# Starts.


def test_a_trial_goes_on_over_a_restart_with_what_was_usual_before(box: Box) -> None:
    old = started(box)
    slot = on_trial(box)
    box.seats.clear()
    box.start()
    box.turns(lambda: box.changeover.probation is not None, "the trial")
    assert box.changeover.probation is not None
    counts = box.changeover.probation.counts(0)
    assert counts.starts == 1 and counts.usual_frame_ms == 20
    assert counts.usual_not_ok_share is not None and 0.05 < counts.usual_not_ok_share < 0.15
    spoil(box, "latency")
    box.turns(lambda: box.in_charge == old, "the return")
    assert box.opens[-1] == old, "it is not loaded in a new process"
    assert box.seats == [old] and slots.active(box.state) == old and box.stage_now == "returned"
    assert slot.name in box.station.alarms["bundle"]


def test_a_trial_that_goes_on_over_a_restart_is_committed(box: Box) -> None:
    started(box)
    on_trial(box)
    box.start()
    box.turns(lambda: box.changeover.probation is not None, "the trial")
    box.clock.advance(60)
    box.turns(lambda: box.stage_now == "committed", "the commit", box.part)
    assert len(box.seats) == 1


def test_the_fourth_start_is_told(box: Box) -> None:
    old = started(box)
    slot = on_trial(box)
    for _ in range(slots.MOST_STARTS):
        box.start()
    assert box.changeover.slot == slot
    box.start()
    box.turn()
    assert box.changeover.slot == old and box.stage_now == "returned"
    assert slot.name in box.station.alarms["bundle"] and old.name in box.station.alarms["bundle"]


def test_a_first_bundle_stays_without_one_before_it(tmp_path: Path, box: Box) -> None:
    box.state = tmp_path / "fresh"
    slot = box.stage(5)
    box.start()
    box.turns(lambda: box.changeover.probation is not None, "the trial")
    box.clock.advance(60)
    box.turns(lambda: box.stage_now == "committed", "the commit", box.part)
    assert box.in_charge == slot and not box.station.alarms


def test_a_fault_of_the_program_is_told_and_the_line_goes_on(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    started(box)

    def broken(_state: Path) -> None:
        raise RuntimeError("what nobody thought of")

    monkeypatch.setattr(slots, "trial_stamp", broken)
    box.some_turns(5)
    assert "what nobody thought of" in box.station.alarms["changeover"]


# Something else is wanted meanwhile.


def test_a_second_bundle_staged_while_the_first_is_opened_is_not_given_up_for_it(box: Box) -> None:
    started(box)
    one, other = box.stage(2), list[Path]()
    box.during = lambda: other.append(box.stage(3))  # the first one's slot goes with that
    box.problems[one.name] = PredictorError("the model file is missing")
    box.turns(lambda: box.changeover.shadow is not None, "the shadow of the second")
    mark = slots.read_trial(box.state)
    assert mark is not None and (mark.slot, mark.stage) == (other[0].name, "shadow") and not one.exists()


def test_without_a_shadow_a_replaced_bundle_never_comes_into_charge(box: Box) -> None:
    box.trial = msgspec.structs.replace(TRIAL, shadow_parts=0)
    started(box)
    box.stage(2)
    other = list[Path]()
    box.during = lambda: other.append(box.stage(3))
    box.turns(lambda: box.changeover.probation is not None, "the trial")
    assert box.seats == other and box.in_charge == other[0]


def test_what_is_rolled_back_while_it_is_opened_never_comes_into_charge(box: Box) -> None:
    old = started(box)
    slot = box.stage(2)
    slots.activate(box.state)
    box.during = lambda: slots.rollback(box.state, "by hand")
    box.turns(lambda: box.opens and box.during is None, "the rollback")
    box.some_turns(30, box.part)
    assert box.seats == [] and slots.active(box.state) == old and box.opens == [slot]


def test_what_was_refused_and_is_installed_by_hand_all_the_same_comes_into_charge(box: Box) -> None:
    started(box)
    slot = in_shadow(box)
    box.opinion = "NG"
    box.turns(lambda: "bundle" in box.station.alarms, "the refusal", box.part)
    slots.stage(box.state, slot, signed=True, origin="local")
    slots.activate(box.state)
    box.turns(lambda: box.in_charge == slot, "the swap", box.part)
    assert box.seats == [slot]


def test_a_rollback_to_what_cannot_be_opened_does_not_outlive_it(box: Box) -> None:
    started(box)
    new = install(make_bundle(box.folder / "new", 2), box.state)
    box.turns(lambda: box.in_charge == new, "the newer one")
    slots.rollback(box.state, "by hand")
    old = slots.active(box.state)
    box.problems[old.name] = ConfigError("the recipe", ["class_threshold: there is no class `x`"])
    box.turns(lambda: slots.active(box.state) == new, "the way back", box.part)
    box.turns(lambda: old.name in box.station.alarms.get("bundle", ""), "the alarm")
    assert box.in_charge == new and box.seats == [new]


# A line that never pauses.


def test_a_shadow_on_a_line_that_never_pauses_ends_at_its_minutes(box: Box) -> None:
    started(box)
    slot = in_shadow(box)
    box.front.is_idle = False
    box.turns(lambda: box.in_charge == slot, "the swap", box.slow_part)
    shadow = box.changeover.shadow
    assert shadow is not None and shadow.seen == 0 and shadow.counts().no_time > 30


def test_a_rollback_is_seen_on_a_line_that_never_pauses(box: Box) -> None:
    older = started(box)
    held = install(make_bundle(box.folder / "held", 2), box.state)
    box.turns(lambda: box.in_charge == held, "the held one")
    in_shadow(box, 3)
    box.front.is_idle = False
    slots.rollback(box.state, "by hand")
    box.turns(lambda: box.in_charge == older, "the older one", box.slow_part)


# What nobody thought of.


@pytest.mark.parametrize("where", ["open", "look"])
def test_an_unexpected_error_is_the_bundle_s_and_the_next_one_comes(box: Box, where: str) -> None:
    started(box)
    slot = box.stage(2)
    if where == "open":
        box.problems[slot.name] = OSError(12, "Cannot allocate memory")
    else:
        box.opinion = ValueError("operands could not be broadcast together")
    box.turns(lambda: box.stage_now == "refused", "the refusal", box.part)
    mark = slots.read_trial(box.state)
    assert mark is not None and mark.code == ("fault" if where == "look" else "cannot_serve")
    assert "changeover" not in box.station.alarms
    box.opinion = "OK"
    assert box.in_charge != on_trial(box, 3) or box.seats == [box.in_charge]


def test_a_candidate_that_kills_the_process_is_given_up_after_a_few_starts(box: Box) -> None:
    old = started(box)
    box.stage(2)
    for _ in range(slots.MOST_STARTS + 1):
        start = slots.note_start(box.state)
    assert start.trial is not None and (start.trial.stage, start.slot) == ("refused", old)


def test_a_return_that_the_disk_does_not_take_is_done_and_asked_for_again(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = started(box)
    calls = break_once(monkeypatch, "go_back", 2)
    slot = on_trial(box)
    spoil(box, "rejects")
    box.turns(lambda: box.in_charge == old, "the return")
    box.turns(lambda: "bundle_disk" in box.station.alarms, "the alarm of the disk")
    assert slots.active(box.state) == slot
    box.turns(lambda: box.stage_now == "returned" and slots.active(box.state) == old, "the mark")
    box.turns(lambda: "bundle_disk" not in box.station.alarms, "the end of the alarm")
    assert len(calls) == 3 and box.seats == [slot, old]


def test_a_first_bundle_out_of_its_limits_goes_on_since_there_is_no_other(tmp_path: Path, box: Box) -> None:
    box.state = tmp_path / "fresh"
    slot = box.stage(5)
    box.start()
    box.turns(lambda: box.changeover.probation is not None, "the trial")
    box.station.moved.add("score up on cam1")
    box.turns(lambda: "no bundle before it" in box.station.alarms.get("bundle", ""), "the alarm")
    box.station.moved.clear()
    box.clock.advance(60)
    box.turns(lambda: box.stage_now == "committed" and not box.station.alarms, "the commit", box.part)
    assert box.in_charge == slot


def test_the_next_attempt_ends_the_alarm_of_the_last(box: Box) -> None:
    started(box)
    in_shadow(box)
    box.opinion = "NG"
    box.turns(lambda: "bundle" in box.station.alarms, "the refusal", box.part)
    box.opinion = "OK"
    on_trial(box, 3)
    assert not box.station.alarms


def test_what_cannot_be_opened_is_not_opened_again_and_again(box: Box) -> None:
    old = started(box)
    slot = on_trial(box)
    box.problems[old.name] = PredictorError("the model cannot be loaded")
    slots.rollback(box.state, "by hand")
    box.turns(lambda: old.name in box.station.alarms.get("bundle", ""), "the alarm", box.part)
    box.some_turns(30, box.part)
    assert box.opens == [slot, old] and box.in_charge == slot


def test_nothing_holds_a_bundle_that_was_given_up(box: Box) -> None:
    started(box)
    in_shadow(box)
    candidate = box.made[-1]
    assert candidate() is not None
    box.opinion = "NG"
    box.turns(lambda: "bundle" in box.station.alarms, "the refusal", box.part)
    box.turns(lambda: gc.collect() >= 0 and candidate() is None, "the end of the candidate")


def test_what_the_watch_learned_is_kept_at_the_swap(box: Box) -> None:
    started(box)
    watch = cast(FakeIncumbent, box.changeover.incumbent).watch
    on_trial(box)
    assert watch.saved == 1


def test_with_a_plc_every_camera_s_look_is_wanted(box: Box) -> None:
    box.plc = Plc(port="/dev/ttyS9")
    started(box)
    in_shadow(box)
    assert box.changeover.shadow is not None and box.changeover.shadow.counts().wanted == 2 * TRIAL.shadow_parts


def test_a_start_that_could_not_be_counted_is_told(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    real = slots.note_start
    monkeypatch.setattr(slots, "note_start", lambda state: replace(real(state), problem="the start cannot be counted"))
    box.start()
    box.turn()
    assert box.station.alarms == {"bundle": "the start cannot be counted"}


def test_a_bundle_that_is_put_in_charge_by_hand_while_it_is_opened_for_its_shadow_is_taken_over(box: Box) -> None:
    started(box)
    slot = box.stage(2)
    box.during = lambda: slots.activate(box.state, slot.name)
    box.turns(lambda: box.in_charge == slot, "the new one", box.part)
    assert box.stage_now in ("trial", "committed")
