"""A product ready to be inspected: bundle, recipe and detector put together."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge import loading
from edge import recipe as recipe_files
from edge import recipes as recipe_sets
from edge.align import Aligner
from edge.bundle import manifest as manifests
from edge.bundle.manifest import Artifact, Manifest
from edge.config import Config, Runtime
from edge.detect import Detector, DetectSettings
from edge.errors import BundleError
from edge.judges import Judges, all_wanted, check_wanted, opening_judges
from edge.pipeline import Pipeline
from edge.predictor import Predictor, installed_runtimes
from edge.preprocess import InputSpec
from edge.recipe import DetectRecipe, Recipe
from edge.recipes import RecipeSet
from edge.steps import all_of

# What offline commands report, whatever the recipe says: whoever measures accuracy needs the whole curve.
EVERYTHING = 0.01


@dataclass(frozen=True)
class Product:
    """A loaded bundle. Made and used in one thread, as its predictor is."""

    manifest: Manifest
    artifact: Artifact
    recipe: Recipe
    spec: InputSpec
    predictor: Predictor
    detector: Detector
    digest: str
    judges: Judges  # as all recipes together want them
    recipes: RecipeSet
    wanted_providers: tuple[str, ...] = ()

    def pipeline(self, clock_ns: Callable[[], int]) -> Pipeline:
        """The inspection path of this product, with all its judges."""
        return self._pipeline(self.detector, self.recipe, clock_ns)

    def pipeline_of(self, recipe: Recipe, clock_ns: Callable[[], int]) -> Pipeline:
        """The inspection path by another recipe of this product's set; the networks are shared."""
        settings = replace(self.detector.settings, **_limits_of(recipe.detect))
        return self._pipeline(self.detector.under(settings), recipe, clock_ns)

    def _pipeline(self, detector: Detector, recipe: Recipe, clock_ns: Callable[[], int]) -> Pipeline:
        judges = self.judges.under(recipe)
        return Pipeline(detector, recipe, self.classes, clock_ns, classifier=judges.gate, anomaly=judges.anomaly)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by class id."""
        return tuple(self.manifest.classes)

    @property
    def shown_from(self) -> float:
        """The least confidence of a box that matters to a verdict, and so is told and drawn."""
        return decisive_confidence(self.recipe.detect)

    @property
    def foreign_from(self) -> float | None:
        """Cells of the anomaly map are drawn as foreign from here on; None without an anomaly judge."""
        return self.judges.anomaly.settings.map_limit if self.judges.anomaly is not None else None

    @property
    def runtime(self) -> str:
        """What runs the model, in one line, with the execution providers that really do.

        `paddlelite 2.13rc0 int8 x86_64`, `onnxruntime 1.23.2 fp32 any on CPUExecutionProvider`.
        """
        version, using = installed_runtimes().get(self.artifact.runtime, "?"), self.predictor.providers
        line = f"{self.artifact.runtime} {version} {self.artifact.precision} {self.artifact.arch}"
        if not using:
            return line
        idle = [name for name in self.wanted_providers if name not in using]
        return f"{line} on {', '.join(using)}" + (f"; {', '.join(idle)} did not start" if idle else "")


def decisive_confidence(recipe: DetectRecipe) -> float:
    """Boxes under this confidence change no verdict.

    >>> decisive_confidence(DetectRecipe(review=0.3, class_threshold={"open": 0.2}))
    0.2
    """
    return min([recipe.review, recipe.threshold, *recipe.class_threshold.values()])


def input_spec(manifest: Manifest) -> InputSpec:
    """The input contract that the bundle states."""
    i = manifest.input
    return InputSpec(i.width, i.height, i.channels, i.scale, i.mean)


def open_product(
    folder: Path,
    runtime: Runtime,
    *,
    recipe_file: Path | None = None,
    recipe_folder: Path | None = None,
    cameras: Sequence[str] = (),
    min_confidence: float | None = None,
    trial_marks: Path | None = None,
) -> Product:
    """Check a bundle, try its model in a child process, and load it in this thread.

    Args:
        folder: the bundle.
        runtime: which runtime and precision are wanted.
        recipe_file: a recipe instead of the bundle's own.
        recipe_folder: a set of recipes instead of one. cameras: of the station, which recipes may name.
        min_confidence: least confidence of a detection; None keeps those that can change a verdict.
        trial_marks: folder that remembers which models passed their trial here, and what an execution provider
            compiled, so that a restart is quicker.

    Raises:
        BundleError: the bundle is incomplete, altered or not for this device.
        ConfigError: the recipe cannot be used.
        PredictorError: the model cannot be loaded or run here.
    """
    steps = opening(
        folder,
        runtime,
        recipe_file=recipe_file,
        recipe_folder=recipe_folder,
        cameras=cameras,
        min_confidence=min_confidence,
        trial_marks=trial_marks,
    )
    return all_of(steps)


@dataclass(frozen=True)
class Prepared:
    """What of opening a bundle needs no thread of its own: its manifest, with every file checked, and the recipes."""

    manifest: Manifest
    recipes: RecipeSet


def prepare(folder: Path, config: Config, trial_marks: Path | None) -> Prepared:
    """What of opening a bundle may happen in any thread: check files and recipes, try models in child processes.

    Raises:
        EdgeError: as `open_product`.
    """
    manifest, paths = manifests.read(folder), config.paths
    recipes = _recipes_of(
        folder,
        manifest,
        Path(paths.recipe) if paths.recipe else None,
        Path(paths.recipes) if paths.recipes else None,
        [camera.id for camera in config.camera],
    )
    _ = recipes.hashes  # of hundreds of recipes they take a while, and not in the inspection thread
    spec = input_spec(manifest)
    shape = (1, spec.channels, spec.height, spec.width)
    loading.try_models(folder, manifest, shape, config.runtime, trial_marks)
    return Prepared(manifest, recipes)


def opening(
    folder: Path,
    runtime: Runtime,
    *,
    recipe_file: Path | None = None,
    recipe_folder: Path | None = None,
    cameras: Sequence[str] = (),
    min_confidence: float | None = None,
    trial_marks: Path | None = None,
    manifest: Manifest | None = None,
    recipes: RecipeSet | None = None,
) -> Generator[None, None, Product]:
    """`open_product` in steps of some ten milliseconds, so that a station opens another bundle between two parts.

    Args:
        manifest: of the bundle, when its files were checked already. recipes: instead of files and cameras; both as
            `prepare` gives them.

    Raises:
        EdgeError: as `open_product`, in any step.
    """
    manifest = manifest or manifests.read(folder)
    artifact = loading.chosen(manifest, runtime, folder=folder)
    recipes = recipes or _recipes_of(folder, manifest, recipe_file, recipe_folder, cameras)
    recipe = recipes.recipes[0]
    spec = input_spec(manifest)
    digest = manifests.digest(manifest)
    yield
    shape = (1, spec.channels, spec.height, spec.width)
    predictor = loading.open_model(folder, manifest, artifact, shape, runtime, trial_marks)
    yield
    _check_outputs(predictor, manifest, spec)
    yield
    settings = DetectSettings(
        strides=tuple(manifest.strides),
        **_limits_of(recipe.detect, min_confidence),
    )
    judges = yield from opening_judges(folder, manifest, all_wanted(recipes.recipes), runtime, trial_marks)
    align = judges.anomaly.settings.align if judges.anomaly is not None else None
    detector = Detector(predictor, spec, settings, Aligner(align) if align is not None else None)
    providers = tuple(loading.providers_of(artifact, runtime))
    return Product(manifest, artifact, recipe, spec, predictor, detector, digest, judges, recipes, providers)


def _recipes_of(
    folder: Path, manifest: Manifest, recipe_file: Path | None, recipe_folder: Path | None, cameras: Sequence[str]
) -> RecipeSet:
    if recipe_folder is not None:
        recipes = recipe_sets.load_set(recipe_folder, manifest.classes, cameras)
    else:
        alone = recipe_files.load(recipe_file or folder / manifest.recipe, classes=manifest.classes)
        recipes = recipe_sets.set_of_one(alone, cameras) if cameras else RecipeSet((alone,))
    for each in recipes.recipes:
        check_wanted(manifest, each)
    return recipes


def _limits_of(recipe: DetectRecipe, min_confidence: float | None = None) -> dict[str, Any]:
    """What the detector takes from a recipe."""
    return {
        "min_confidence": decisive_confidence(recipe) if min_confidence is None else min_confidence,
        "nms_iou": recipe.nms_iou,
        "max_detections": recipe.max_detections,
    }


def _check_outputs(predictor: Predictor, manifest: Manifest, spec: InputSpec) -> None:
    """Run once on grey, which also warms up, and compare what comes with what the manifest says.

    Raises:
        BundleError: the model is not the one that the manifest describes.
    """
    outputs = predictor.run(np.full((1, spec.channels, spec.height, spec.width), 0.5, np.float32))
    expected = [
        (1, channels, spec.height // stride, spec.width // stride)
        for stride in manifest.strides
        for channels in (len(manifest.classes), 4)
    ]
    if (features := manifest.features) is not None:
        expected.append((1, features.channels, spec.height // features.stride, spec.width // features.stride))
    shapes = [output.shape for output in outputs]
    if shapes != expected:
        raise BundleError(
            f"the model of {manifest.product} {manifest.version} answers with outputs of shapes {shapes}, and its "
            f"manifest (classes, strides, input) promises {expected}: make the bundle again"
        )
