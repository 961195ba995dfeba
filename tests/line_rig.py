"""A triggered station with its real disk side, on a clock and cameras that the test moves.

Outbox, genealogy, tally, desk, ring, pairing, admission, fusion are the real ones. Simulated are time, the cameras'
frames (each says in its first pixels what is on it and how long it takes to judge), and the link.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from edge.admission import Admission
from edge.capture.ring import FrameRing, Snapshot
from edge.config import Challenge, GenealogySettings, Publishing, SimulatedCamera
from edge.detect import Seen
from edge.errors import PredictorError
from edge.event import Topics
from edge.fuse import looking
from edge.gather import Gatherer
from edge.genealogy import Genealogy
from edge.keeping import restore
from edge.line import Book, Line
from edge.line_care import LineCare, Memory, recipe_at_start
from edge.outbox import Outbox
from edge.pairing import Pairer
from edge.part import Answer, Trigger
from edge.pipeline import Pipeline
from edge.plc.desk import Desk, Refusal
from edge.ports import Kept
from edge.preprocess import Image, Placement
from edge.recipe import FusionRecipe, GateRecipe, Recipe
from edge.recipes import RecipeSet, hash_of
from edge.records import Detections, Frame
from edge.station import Serving, Station
from edge.tally import Tally
from tests.fakes import FakeClock, FakeWire, FullStore, found, textured

TOPICS = Topics("edge", "s", "l", "n")
CAMERAS = ("cam1", "cam2")
GOOD, BAD, DOUBTFUL, BROKEN = range(4)  # what a picture shows, in its first pixel
SHOTS = [textured(i) for i in range(3)]

RECIPES = RecipeSet(
    (
        Recipe(name="both", number=1, takt_time_ms=100, gate=GateRecipe(sharpness_min=2000)),
        Recipe(name="first", number=2, takt_time_ms=100, fusion=FusionRecipe(cameras=["cam1"])),
        Recipe(name="patient", number=3, answer_ms=5000, fusion=FusionRecipe(optional=["cam2"])),
        Recipe(name="hasty", number=4, takt_time_ms=100, fusion=FusionRecipe(optional=["cam2"])),
    )
)


def picture(shows: int = GOOD, takes_ms: int = 5, sharp: bool = True) -> Image:
    """A frame that says what is on it, and for how long the model will look at it."""
    image = SHOTS[shows % len(SHOTS)].copy() if sharp else np.full((64, 64), 128, np.uint8)
    image[0, 0], image[0, 1] = shows, min(takes_ms, 255)
    return image


class PaintedDetector:
    """Finds what the picture says. Implements `edge.pipeline.FrameDetector`."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock

    def look(self, image: Image, lap: Callable[[str], None]) -> Seen:
        self._clock.advance(float(image[0, 1]) / 1e3)
        lap("predict")
        if image[0, 0] == BROKEN:
            raise PredictorError("the model gave up")
        boxes = {GOOD: Detections.none(), BAD: found(0.9), DOUBTFUL: found(0.4)}[int(image[0, 0])]
        return Seen(boxes, None, Placement(1.0, 0, 0), image.shape[1])


class ScheduledRing(FrameRing):
    """A ring whose frames come when their time has come; waiting moves the clock."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(CAMERAS, clock_ns=clock.mono_ns)
        self._test_clock = clock
        self.due: list[Frame] = []

    def wait(self, until_ns: int, seen: int = 0) -> Snapshot:
        self._come()
        if super().wait(0).version <= seen:
            next_ns = min((f.captured_mono_ns for f in self.due), default=until_ns)
            self._test_clock.now_ns = max(self._test_clock.now_ns, min(next_ns, until_ns))
            self._come()
        return super().wait(0)

    def _come(self) -> None:
        now_ns = self._test_clock.mono_ns()
        come = sorted((f for f in self.due if f.captured_mono_ns <= now_ns), key=lambda f: f.captured_mono_ns)
        self.due = [f for f in self.due if f.captured_mono_ns > now_ns]
        for frame in come:
            self.put(frame)


class LineRig:
    """One run of the station on the files of a folder; a second one on the same folder goes on."""

    def __init__(
        self,
        folder: Path,
        clock: FakeClock | None = None,
        challenge: Challenge | None = None,
        depth: int = 2,
        prior_ms: int = 10,
        pairing: Literal["time", "counter"] = "time",
    ) -> None:
        self.clock = clock or FakeClock()
        self.wire = FakeWire()
        self.stopping = False
        self.answers: list[Answer] = []
        self._frames = {camera: 0 for camera in CAMERAS}
        self.shot: dict[tuple[str, int], Frame] = {}  # every frame of this run by camera and number
        self.tally = Tally(folder / "triggers")
        self.outbox = Outbox(folder / "outbox.db", 50_000_000, "boot", self.clock)
        self.store = FullStore(self.outbox)
        self.rows = Genealogy(folder / "genealogy.db", self.clock, "boot", GenealogySettings())
        counts, parts = restore(self.outbox, self.tally, self.rows)
        pipelines = {
            r.number: Pipeline(PaintedDetector(self.clock), r, ["open"], self.clock.mono_ns) for r in RECIPES.recipes
        }
        self.station = Station(
            pipelines[1],
            Serving(("open",), 0.3, "digest"),
            self.store,
            self.wire,
            TOPICS,
            self.clock,
            Publishing(image_every_s=0.0),
            counts,
            parts,
            lambda: self.tally.count,
            None,
            Kept(rows=self.rows),
        )
        memory = Memory(folder / "line.json")
        self.desk = Desk(depth, RECIPES.numbers, recipe_at_start(RECIPES, memory).number, self.tally.add)
        self.desk.attach(self._fetch)
        self.ring = ScheduledRing(self.clock)
        self.admission = Admission(prior_ms * 1_000_000, 1_000_000)
        pairers = {c: Pairer(SimulatedCamera(id=c, pairing=pairing)) for c in CAMERAS}
        self.gatherer = Gatherer(self.ring, pairers, self.admission, self.clock, lambda: self.stopping)
        self.care = LineCare(self.desk, self.station, RECIPES, self.wire, TOPICS, self.clock, memory, challenge)
        self.line = Line(
            self.desk, self.gatherer, self._books(pipelines), self.station, self.admission, self.clock, self.care
        )
        self.desk.open()

    def _books(self, pipelines: Mapping[int, Pipeline]) -> dict[int, Book]:
        return {
            r.number: Book(
                r,
                hash_of(r),
                pipelines[r.number],
                0.3,
                looking(r.fusion, CAMERAS),
                int(r.budget_ms * 1e6) if r.budget_ms else None,
            )
            for r in RECIPES.recipes
        }

    def _fetch(self) -> None:
        self.answers += self.desk.answers()

    def trigger(self, number: int = 1, serial: str = "S1", recipe: int = 0) -> Refusal | None:
        """The PLC asks."""
        return self.desk.offer(Trigger(number, serial, recipe, self.clock.mono_ns(), self.clock.ts()))

    def shoot(self, image: Image, camera: str = "cam1", after_ms: float = 2.0) -> None:
        """A frame that will be in memory so long from now."""
        self._frames[camera] += 1
        at_ns = self.clock.mono_ns() + int(after_ms * 1e6)
        number = self._frames[camera]
        self.shot[camera, number] = Frame(image, camera, number, at_ns, self.clock.ts(), f"{number}.png")
        self.ring.due.append(self.shot[camera, number])

    def part(self, *images: Image, number: int = 1, serial: str = "S1", recipe: int = 0) -> Answer | None:
        """Trigger, a frame of each camera, one turn; the answer."""
        before = len(self.answers)
        self.trigger(number, serial, recipe)
        for camera, image in zip(CAMERAS, images, strict=False):
            self.shoot(image, camera)
        self.line.turn(0)
        self.care.tick()
        self.clock.advance(0.2)
        return self.answers[-1] if len(self.answers) > before else None

    def stop(self) -> None:
        """An ordered stop; files stay open."""
        self.line.finish()
        self.care.finish()
        self.station.save()

    def close(self) -> None:
        """An ordered stop, and the end."""
        self.stop()
        self.kill()

    def kill(self) -> None:
        """What `kill -9` leaves: files as they are. (Closing them writes nothing that was not committed.)"""
        self.rows.close()
        self.outbox.close()
        self.tally.close()
