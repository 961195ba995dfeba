"""The judges that a bundle brings beside its detector, loaded as the recipe wants them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from edge import anomaly, gate_classifier, loading
from edge.anomaly import AnomalyJudge
from edge.bundle.manifest import JudgeName, Manifest
from edge.config import Runtime
from edge.drift import reconstruct
from edge.drift import settings as drift_settings
from edge.drift.settings import DriftSettings
from edge.errors import BundleError, ConfigError, PredictorError
from edge.gate_classifier import GateClassifier
from edge.predictor import Predictor
from edge.recipe import Recipe


@dataclass(frozen=True)
class Judges:
    """What looks at a frame beside the detector; None where the bundle has no such judge or the recipe wants none.

    Attributes:
        gate: names what is wrong with a frame.
        anomaly: finds on the detector's features what the detector never learned.
        drift: baselines of the product's stream. autoencoder: its network.
    """

    gate: GateClassifier | None = None
    anomaly: AnomalyJudge | None = None
    drift: DriftSettings | None = None
    autoencoder: Predictor | None = None

    def under(self, recipe: Recipe) -> Judges:
        """The same networks as another recipe of the product wants them."""
        gate = self.gate if recipe.gate.classifier != "never" else None
        foreign = self.anomaly if recipe.anomaly.use else None
        return replace(
            self,
            gate=gate.under(recipe.gate) if gate is not None else None,
            anomaly=foreign.under(recipe.anomaly.review) if foreign is not None else None,
        )


def all_wanted(recipes: Sequence[Recipe]) -> Recipe:
    """A recipe that wants every judge that one of these wants: what has to be loaded for all of them."""
    first = recipes[0]
    classifier = next((r.gate.classifier for r in recipes if r.gate.classifier != "never"), "never")
    return msgspec.structs.replace(
        first,
        gate=msgspec.structs.replace(first.gate, classifier=classifier),
        anomaly=msgspec.structs.replace(first.anomaly, use=any(r.anomaly.use for r in recipes)),
        drift=msgspec.structs.replace(first.drift, use=any(r.drift.use for r in recipes)),
    )


def opening_judges(
    folder: Path, manifest: Manifest, recipe: Recipe, runtime: Runtime, trial_marks: Path | None = None
) -> Generator[None, None, Judges]:
    """Load the judges in this thread, each tried in a child process first; a step ends after each.

    Raises:
        BundleError: settings that cannot be used or are another model's, or nothing of a judge runs on this device.
        ConfigError: the recipe wants no anomaly judge on a product of which only good parts are known.
        PredictorError: a judge's model cannot be loaded or run here.
    """

    def network(name: JudgeName) -> Predictor:
        return loading.open_judge(folder, manifest, name, runtime, trial_marks)

    check_wanted(manifest, recipe)
    classifier = foreign = drift = autoencoder = None
    if "gate" in manifest.judges and recipe.gate.classifier != "never":
        settings = gate_classifier.read_settings(*_settings(folder, manifest, "gate"))
        classifier = GateClassifier(network("gate"), settings, recipe.gate)
        yield
    if "anomaly" in manifest.judges and recipe.anomaly.use:
        found = anomaly.read_settings(*_settings(folder, manifest, "anomaly"))
        foreign = AnomalyJudge(network("anomaly"), found, recipe.anomaly.review)
        yield
    if "drift" in manifest.judges and recipe.drift.use:
        drift = drift_settings.decode(*_settings(folder, manifest, "drift"))
        autoencoder = network("drift") if drift.autoencoder is not None else None
        yield
    judges = Judges(classifier, foreign, drift, autoencoder)
    _try_on_grey(judges, manifest)
    return judges


def check_wanted(manifest: Manifest, recipe: Recipe) -> None:
    """Whether something of the bundle would judge parts by this recipe.

    Raises:
        ConfigError: nothing would, and every part would be OK.
    """
    if not manifest.classes and not recipe.anomaly.use:
        problem = "anomaly.use: false, and the bundle has no classes: nothing would ever be found; set it to true"
        raise ConfigError(f"the recipe {recipe.name}", [problem])


def _try_on_grey(judges: Judges, manifest: Manifest) -> None:
    """Run each judge once, which also warms it up: a model that is not the one of its settings shows now.

    Raises:
        BundleError: a judge's model and settings do not belong together.
    """
    grey = np.full((64, 64), 114, np.uint8)
    name: JudgeName = "gate"
    try:
        if judges.gate is not None:
            judges.gate.probabilities(grey)
        name = "anomaly"
        if judges.anomaly is not None:
            judges.anomaly.judge(np.zeros((1, *manifest.judges[name].shape), np.float32))
        name = "drift"
        if judges.drift is not None and judges.drift.autoencoder is not None and judges.autoencoder is not None:
            tensor = reconstruct.prepare(grey, judges.drift.autoencoder)
            reconstruct.error(tensor, judges.autoencoder.run(tensor)[0])
    except PredictorError as error:
        raise BundleError(
            f"the {name} judge of {manifest.product} {manifest.version} is not the one of its settings ({error}): "
            "make the bundle again"
        ) from error


def _settings(folder: Path, manifest: Manifest, name: JudgeName) -> tuple[bytes, str]:
    """The bytes of a judge's settings, and what errors call them."""
    path = folder / manifest.judges[name].settings
    try:
        return path.read_bytes(), str(path)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}; install the bundle again") from error
