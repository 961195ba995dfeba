"""Conservation of a triggered line over arbitrary orders of triggers, faults, restarts and recipe changes.

A state machine drives the real station (outbox, genealogy, tally, desk, pairing, admission, fusion) on a clock that it
moves. At every moment: triggers == verdicts + losses + those in hand; each accepted trigger is answered once; an OK was
said only of good frames, by the recipe of its trigger, with its row on the disk; result ids only go up; the chain of
rows is whole.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edge.chain import FIRST_HASH, Row, fault
from edge.genealogy import GenealogyReader
from edge.part import Answer, Say
from edge.plc.desk import Refusal
from tests.fakes import FakeClock
from tests.line_rig import BAD, BROKEN, CAMERAS, DOUBTFUL, GOOD, RECIPES, LineRig, picture

SHOWS = st.sampled_from([GOOD, GOOD, GOOD, BAD, DOUBTFUL, BROKEN])
# Cameras without which no part of a recipe passes.
NEEDED = {1: ("cam1", "cam2"), 2: ("cam1",), 3: ("cam1",), 4: ("cam1",)}
NAMES = {recipe.number: recipe.name for recipe in RECIPES.recipes}
WANT_SHARP = (1,)  # recipes whose gate refuses a frame without detail
WINDOW_NS = 50_000_000
ENOUGH_FAULTS = 8  # in a row and the process would start over, which is another test


class Station(RuleBasedStateMachine):
    """What a line may do to its station, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="edge-conservation-"))
        self.clock = FakeClock()
        self.number = self.offered = self.accepted = self.refused = self.killed = self.broken = 0
        self.said: list[tuple[int, Say]] = []  # result id, word; over all runs
        self.recipe_of: dict[int, int] = {}

    @initialize()
    def start(self) -> None:
        self.rig = LineRig(self.folder, self.clock)
        self.told, self.used = 0, set[tuple[str, int]]()

    def teardown(self) -> None:
        self.rig.store.full = False
        self.rig.stop()
        self.note_answers()
        self.rig.kill()
        self.check_files()
        shutil.rmtree(self.folder)

    @rule(recipe=st.sampled_from([0, 0, 0, 1, 2, 3, 4, 9]), same_moment=st.booleans())
    def trigger(self, recipe: int, same_moment: bool) -> None:
        if not same_moment:
            self.clock.advance(0.12)
        self.number += 1
        set_now = self.rig.desk.signals().recipe
        refusal = self.rig.trigger(self.number, f"S{self.number}", recipe)
        self.offered += 1
        if refusal is None:
            self.accepted += 1
            self.recipe_of[self.number] = recipe or set_now
        else:
            assert refusal is Refusal.OVERRUN
            self.refused += 1

    @rule(camera=st.sampled_from(CAMERAS), shows=SHOWS, takes_ms=st.sampled_from([1, 5, 40, 200]),
          after_ms=st.floats(-5, 40), sharp=st.booleans())  # fmt: skip
    def shoot(self, camera: str, shows: int, takes_ms: int, after_ms: float, sharp: bool) -> None:
        if shows == BROKEN and self.broken >= ENOUGH_FAULTS:
            return
        self.broken += shows == BROKEN
        self.rig.shoot(picture(shows, takes_ms, sharp), camera, after_ms)

    @rule()
    def good_pair(self) -> None:
        for camera in CAMERAS:
            self.rig.shoot(picture(GOOD, 2), camera, 1.0)

    @rule(parts=st.lists(st.tuples(st.sampled_from([0, 1, 2, 3, 4]), st.sampled_from([GOOD, GOOD, BAD, DOUBTFUL]),
                                   st.booleans(), st.sampled_from([2.0, 2.0, 30.0, -80.0, None])),
                         min_size=2, max_size=8))  # fmt: skip
    def whole_parts(self, parts: list[tuple[int, int, bool, float | None]]) -> None:
        """A line as it runs most of the day: rules one by one rarely make a part that is judged to the end."""
        for recipe, shows, sharp, after_ms in parts:
            self.trigger(recipe, same_moment=False)
            self.rig.shoot(picture(GOOD, 2, sharp), "cam1", 1.0)
            if after_ms is not None:
                self.rig.shoot(picture(shows, 2, sharp), "cam2", after_ms)
            self.settle_all()

    @rule()
    def turn(self) -> None:
        self.rig.line.turn(0)
        self.rig.station._faults_in_a_row = 0  # starting over is another test

    @rule()
    def settle_all(self) -> None:
        while self.rig.line.turn(0):
            self.rig.station._faults_in_a_row = 0
        assert self.rig.station.counts.triggers == self.rig.tally.count, "nothing is in hand, so all is settled"
        assert not self.rig.desk.signals().busy

    @rule(number=st.sampled_from([1, 2, 3, 8]))
    def change_recipe(self, number: int) -> None:
        known = self.rig.desk.set_recipe(number) is None
        assert known == (number in NAMES)
        self.rig.care.tick()

    @rule(camera=st.sampled_from(CAMERAS))
    def camera_fault(self, camera: str) -> None:
        self.rig.ring.fault(camera, "unplugged")

    @rule(full=st.booleans())
    def disk(self, full: bool) -> None:
        self.rig.store.full = full

    @rule(seconds=st.sampled_from([0.01, 0.3, 5.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.rig.care.tick()

    @rule()
    @precondition(lambda self: not self.rig.store.full)
    def restart(self) -> None:
        self.rig.stop()
        self.note_answers()
        self.rig.kill()
        self.again()

    @rule()
    def kill(self) -> None:
        self.note_answers()
        in_hand = self.rig.tally.count - self.rig.station.counts.triggers
        self.killed += in_hand
        self.rig.kill()
        self.again()

    def again(self) -> None:
        recipe = self.rig.desk.signals().recipe
        self.rig = LineRig(self.folder, self.clock)
        self.told, self.used = 0, set[tuple[str, int]]()
        assert self.rig.station.counts.balanced and recipe in NAMES

    def note_answers(self) -> None:
        for answer in self.rig.answers[self.told :]:
            self.told += 1
            self.said.append((answer.result_id, answer.say))
            wanted = self.recipe_of[answer.trigger.number]
            assert answer.trigger.recipe == wanted
            rows = self.rig.rows.find(part=answer.result_id)
            if rows and rows[-1].kind == "part":
                self.check_row(rows[-1], answer, wanted)
            else:
                assert answer.say is Say.FAIL, "what is not on the disk is not OK"

    def check_row(self, row: Row, answer: Answer, recipe: int) -> None:
        body = row.content
        if answer.say is Say.OK:
            assert row.outcome == "OK" and row.kind == "part"
            assert set(body["cameras"]) >= set(NEEDED[recipe])
        for camera, look in body["cameras"].items():
            frame = self.rig.shot[camera, look["frame"]]
            assert abs(frame.captured_mono_ns - answer.trigger.at_mono_ns) <= WINDOW_NS, "the frame of another part"
            assert (camera, frame.number) not in self.used, "a frame shows one part"
            self.used.add((camera, frame.number))
            if answer.say is Say.OK:
                assert frame.image[0, 0] == GOOD and (frame.image.std() > 20 or recipe not in WANT_SHARP)
        if recipe in NAMES and row.kind == "part" and body["recipe"]:
            assert body["recipe"] == NAMES[recipe], "a verdict by the wrong recipe"

    @invariant()
    def balanced(self) -> None:
        if not hasattr(self, "rig"):
            return
        self.note_answers()
        counts, tally = self.rig.station.counts, self.rig.tally.count
        assert counts.balanced and tally == self.offered
        assert counts.triggers <= tally
        ids = [part for part, _ in self.said]
        assert ids == sorted(set(ids)) and 0 not in ids, "result ids only go up, also where nothing could be stored"

    def check_files(self) -> None:
        assert len(self.said) + self.killed >= self.accepted
        with GenealogyReader(self.folder / "genealogy.db") as reader:
            before = FIRST_HASH
            for row in reader.rows():
                assert fault(row, before) == ""
                before = row.hash


Station.TestCase.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)
TestConservation = Station.TestCase
