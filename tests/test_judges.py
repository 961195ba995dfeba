"""Which judges a bundle and a recipe bring together; what each of them says is tested where it lives."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edge.bundle import manifest as manifests
from edge.bundle.manifest import Features, Judge, Manifest
from edge.config import Runtime
from edge.errors import BundleError, ConfigError
from edge.judges import Judges, opening_judges
from edge.recipe import AnomalyRecipe, DriftRecipe, GateRecipe, Recipe
from edge.steps import all_of
from tests.flow.rig import PCB


@pytest.fixture
def plain() -> Manifest:
    """A manifest without any judge."""
    return msgspec.structs.replace(manifests.read_unverified(PCB), judges={}, features=None)


def with_judges(plain: Manifest) -> Manifest:
    judges = {
        name: Judge(artifacts=plain.artifacts, shape=(1, 64, 64), settings=f"{name}.json")
        for name in ("gate", "anomaly", "drift")
    }
    return msgspec.structs.replace(plain, judges=judges, features=Features(channels=64, stride=8))


def test_a_bundle_without_judges_has_none(plain: Manifest, tmp_path: Path) -> None:
    assert all_of(opening_judges(tmp_path, plain, Recipe(), Runtime())) == Judges()


@pytest.mark.parametrize(
    ("recipe", "lacking"),
    [
        (Recipe(), "gate.json"),
        (Recipe(gate=GateRecipe(classifier="never")), "anomaly.json"),
        (Recipe(gate=GateRecipe(classifier="never"), anomaly=AnomalyRecipe(use=False)), "drift.json"),
    ],
)
def test_a_judge_that_is_wanted_and_lacks_its_settings_is_named(
    plain: Manifest, tmp_path: Path, recipe: Recipe, lacking: str
) -> None:
    with pytest.raises(BundleError, match=f"{lacking} cannot be read"):
        all_of(opening_judges(tmp_path, with_judges(plain), recipe, Runtime()))


def test_what_the_recipe_does_not_want_is_not_even_opened(plain: Manifest, tmp_path: Path) -> None:
    recipe = Recipe(gate=GateRecipe(classifier="never"), anomaly=AnomalyRecipe(use=False), drift=DriftRecipe(use=False))
    assert all_of(opening_judges(tmp_path, with_judges(plain), recipe, Runtime())) == Judges()


def test_a_product_of_good_parts_only_is_not_served_without_its_anomaly_judge(plain: Manifest, tmp_path: Path) -> None:
    good_only = msgspec.structs.replace(with_judges(plain), classes=[], strides=[])
    recipe = Recipe(gate=GateRecipe(classifier="never"), anomaly=AnomalyRecipe(use=False))
    with pytest.raises(ConfigError, match="nothing would ever be found; set it to true"):
        all_of(opening_judges(tmp_path, good_only, recipe, Runtime()))


def test_a_model_that_is_not_the_one_of_its_settings_is_refused_at_the_start(tmp_path: Path) -> None:
    read = manifests.read_unverified(PCB)
    if "anomaly" not in read.judges or "drift" not in read.judges:
        pytest.skip("the bundle under test has not all judges")
    mixed = {**read.judges, "drift": msgspec.structs.replace(read.judges["anomaly"], settings="drift.json")}
    with pytest.raises(BundleError, match=r"the drift judge of pcb .* is not the one of its settings"):
        all_of(opening_judges(PCB, msgspec.structs.replace(read, judges=mixed), Recipe(), Runtime(), tmp_path))
