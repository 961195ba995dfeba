"""A product with all that a station needs to judge parts by it, so that another one can take its place at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.clock import Clock
from edge.config import Challenge, Config
from edge.errors import ConfigError
from edge.fuse import looking
from edge.line import Book
from edge.part import Part
from edge.pipeline import Pipeline
from edge.recipe import Recipe
from edge.serving import Product, decisive_confidence
from edge.settings import did_you_mean
from edge.station import Serving
from edge.stream_watch import StreamWatch


@dataclass(frozen=True)
class Incumbent:
    """A product ready to be in charge. Made and used in the inspection thread.

    Attributes:
        pipeline: by its first recipe. serving: what the station says of it.
        books: recipe number -> how its parts are judged; none without a PLC.
        watch: of the stream of frames; None where the recipe wants none.
    """

    product: Product
    pipeline: Pipeline
    serving: Serving
    books: Mapping[int, Book]
    watch: StreamWatch | None

    def pipeline_of(self, part: Part) -> Pipeline:
        """What judges a part: by the recipe that its trigger asked for."""
        book = self.books.get(part.trigger.recipe) if part.trigger is not None else None
        return book.pipeline if book is not None else self.pipeline


def make_incumbent(config: Config, product: Product, clock: Clock) -> Incumbent:
    """Put it together; nothing of it is in charge yet."""
    cameras = [camera.id for camera in config.camera]
    recipes = product.recipes.recipes if config.plc is not None else ()
    return Incumbent(
        product,
        product.pipeline(clock.mono_ns),
        _serving(product),
        {recipe.number: _book(recipe, product, cameras, clock) for recipe in recipes},
        _watch(config, product, clock),
    )


def _serving(product: Product) -> Serving:
    return Serving(
        product.classes,
        product.shown_from,
        product.digest,
        product.foreign_from,
        product.recipe.name,
        product.recipes.hashes[product.recipe.name],
    )


def _book(recipe: Recipe, product: Product, cameras: list[str], clock: Clock) -> Book:
    budget = recipe.budget_ms
    return Book(
        recipe,
        product.recipes.hashes[recipe.name],
        product.pipeline_of(recipe, clock.mono_ns),
        decisive_confidence(recipe.detect),
        looking(recipe.fusion, cameras),
        int(budget * 1e6) if budget is not None else None,
    )


def _watch(config: Config, product: Product, clock: Clock) -> StreamWatch | None:
    """Each detector has a folder of its own: one on trial does not touch what was learned of the one before."""
    if not product.recipe.drift.use:
        return None
    model = product.manifest.files.get(product.artifact.file, product.digest)
    folder = Path(config.paths.state) / "drift" / product.manifest.product
    return StreamWatch(
        product.judges, product.recipe, product.classes, folder / model[:12], clock, model, before=folder
    )


def holds(product: Product) -> bool:
    """Whether its inferences hold the interpreter: those of Paddle Lite do, those of ONNX Runtime do not."""
    return product.artifact.runtime == "paddlelite"


def check_masters(challenge: Challenge | None, classes: Sequence[str]) -> None:
    """A master with a defect that nothing can find would be missed for ever.

    Raises:
        ConfigError: a master has a defect that the bundle does not know.
    """
    named = {master.defect for master in challenge.master if master.defect is not None} if challenge else set()
    unknown = sorted(named.difference(classes))
    if unknown:
        hints = [f"`{name}` is no class of this bundle, {did_you_mean(name, classes)}" for name in unknown]
        raise ConfigError("the config", [f"challenge.master: defect: {hint}" for hint in hints])
