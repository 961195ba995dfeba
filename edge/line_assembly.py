"""Puts a triggered station together: desk, frames, recipes, admission, the serial link."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.admission import Admission
from edge.capture.ring import FrameRing
from edge.clock import Clock
from edge.config import Config
from edge.errors import ConfigError
from edge.event import Topics
from edge.fronts import Triggered
from edge.gather import Gatherer
from edge.incumbent import Incumbent, check_masters, holds
from edge.line import Book, Line
from edge.line_care import MEMORY, LineCare, Memory, recipe_at_start
from edge.pairing import Pairer
from edge.plc.desk import Desk
from edge.plc.link import Link, make_link
from edge.ports import Wire
from edge.records import Frame
from edge.serving import Product
from edge.station import Station

WARM_UP, WARM_UP_BOOKS = 3, 4  # frames of each recipe, and recipes
FRAMES_A_PART = 4  # kept of each camera for every part that may wait, and for the one in hand


@dataclass(frozen=True)
class Made:
    """What the daemon starts, turns and stops."""

    front: Triggered
    care: LineCare
    desk: Desk
    link: Link


def make_line(
    config: Config,
    incumbent: Incumbent,
    station: Station,
    wire: Wire,
    topics: Topics,
    clock: Clock,
    on_trigger: Callable[[], None],
    meanwhile: Callable[[], bool],
) -> Made:
    """Build it; nothing is started. Of the config [plc] must be there.

    Raises:
        ConfigError: there is no [plc], or a master has a defect that the bundle does not know.
    """
    if config.plc is None:
        raise ConfigError("the config", ["plc: missing; it must be given: a table"])
    product, books = incumbent.product, incumbent.books
    check_masters(config.challenge, product.classes)
    cameras = [camera.id for camera in config.camera]
    memory = Memory(Path(config.paths.state) / MEMORY)
    desk = Desk(config.plc.queue, product.recipes.numbers, recipe_at_start(product.recipes, memory).number, on_trigger)
    ring = FrameRing(cameras, FRAMES_A_PART * (config.plc.queue + 1), clock.mono_ns)
    admission = Admission(_longest_ns(books.values(), product, clock), settle_prior_ns=0)
    pairers = {settings.id: Pairer(settings) for settings in config.camera}
    gatherer = Gatherer(ring, pairers, admission, clock, meanwhile, holds=holds(product))
    care = LineCare(desk, station, product.recipes, wire, topics, clock, memory, config.challenge)
    line = Line(desk, gatherer, books, station, admission, clock, care)
    link = make_link(config.plc, desk, clock, care.answered, care.late, config.output)
    care.link = link.status
    return Made(Triggered(line, care, ring, station, admission, config.challenge), care, desk, link)


def _longest_ns(books: Iterable[Book], product: Product, clock: Clock) -> int:
    """What judging one frame takes at most, of a few that show nothing but noise: the first parts reckon with it."""
    spec = product.spec
    noise = np.random.default_rng(0).integers(0, 256, (spec.height, spec.width), dtype=np.uint8)
    longest_ns = 0
    for book in list(books)[:WARM_UP_BOOKS]:
        for number in range(WARM_UP):
            began_ns = clock.mono_ns()
            book.pipeline.inspect(Frame(noise, "warm-up", number, began_ns, 0.0), detect_refused=True)
            longest_ns = max(longest_ns, clock.mono_ns() - began_ns)
    return longest_ns
