"""Judges join a bundle that stands: the detector says what it said, to the bit, and the device runs them all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest
from paddle import nn

from edge.bundle import manifest
from edge.config import Runtime
from edge.errors import BundleError
from edge.gate_classifier import CLASSIFIED, OUTPUTS, SHAPE
from edge.serving import open_product
from tests.tools import tiny_models
from tools import export, make_bundle, passport
from tools.checkpoint import read_checkpoint
from tools.dataset import read_dataset
from tools.errors import ToolError
from tools.judge_model import write_judge
from tools.judges import main
from tools.network import ConvNorm, Detector
from tools.paddle_model import save_layer
from tools.runtimes import load_network

pytestmark = pytest.mark.timeout(600)  # models are made first, on a machine that may be busy


class Classifier(nn.Layer):
    """As small as a gate's classifier can be."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(1, 32, 16, 16)
        self.last = nn.Conv2D(32, len(OUTPUTS), 1)
        self.pool = nn.AdaptiveAvgPool2D(1)

    def forward(self, mosaic: paddle.Tensor) -> paddle.Tensor:
        return self.pool(self.last(self.stem(mosaic)))


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gate")
    paddle.seed(2)
    tensors = list(np.random.default_rng(1).normal(0, 0.4, (20, *SHAPE[1:])).astype(np.float32))
    write_judge(Classifier(), "gate", tensors, folder, keep_fp32=["last"])
    (folder / "gate.json").write_text(json.dumps({"limits": {cause: 0.999 for cause in CLASSIFIED}}))
    (folder / "gate.md").write_text("Trained on noise.\n")
    for name in ("roc.png", "painted_1.png"):
        cv2.imwrite(str(folder / name), np.full((90, 120, 3), 200, np.uint8))
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    data, models = tiny_models.tiny_models()
    more = [
        "--passport",
        str(tiny_models.tiny_passport()),
        "--recipe",
        str(tiny_models.tiny_passport() / "recipe.toml"),
    ]
    make_bundle.main(["--data", str(data), "--models", str(models), "--out", str(tmp_path / "tiny"), *more])
    return tmp_path / "tiny"


def with_features(folder: Path, network: Detector) -> Path:
    """The detector's forms with features, and their passport, made as an engineer makes them."""
    data, _ = tiny_models.tiny_models()
    models = folder / "models"
    network.gives_features = True
    save_layer(network, models / "fp32", read_dataset(data).spec)
    export.write_onnx(models / "fp32", models / "detector.onnx")
    tiny_models.quantize(read_dataset(data), models)
    tiny_models.compile_all(models)
    return models


@pytest.fixture(scope="module")
def featured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    data, models = tiny_models.tiny_models()
    folder = tmp_path_factory.mktemp("featured")
    new = with_features(folder, load_network(models / "last.pdckpt"))
    arguments = ["--data", str(data), "--models", str(new), "--reference", str(models / "last.pdckpt")]
    arguments += ["--recipe", str(tiny_models.tiny_passport() / "recipe.toml"), "--out", str(folder / "passport")]
    passport.main([*arguments, "--limit", *tiny_models.BEARABLE])
    return new, folder / "passport"


def test_judges_and_features_join_and_the_detector_stays_what_it_is(
    bundle: Path, gate: Path, featured: tuple[Path, Path]
) -> None:
    models, proof = featured
    main(["--bundle", str(bundle), "--gate", str(gate), "--models", str(models), "--passport", str(proof)])
    built = manifest.read(bundle)
    assert built.version == 2 and list(built.judges) == ["gate"]
    assert built.features == manifest.Features(channels=24, stride=8)
    product = open_product(bundle, Runtime())
    assert product.judges.gate is not None
    seen = product.detector.look(np.full((64, 128, 3), 90, np.uint8))
    assert seen.features is not None and seen.features.shape == (1, 24, 8, 16)
    said = json.loads((gate / "judges.record.json").read_text())["results"]["identical"]
    assert set(said) == {"detector.x86_64.int8.nb", "detector.x86_64.fp32.nb", "detector.onnx"}
    assert min(said.values()) > 1
    card = (bundle / "CARD.md").read_text()
    assert "# Model card: `tiny` 2" in card and "### Gate\n\nTrained on noise." in card
    assert "![gate roc](plots/gate-roc.png)" in card and (bundle / "plots" / "gate-roc.png").is_file()
    assert not list((bundle / "plots").glob("*painted*")), "pictures of the data set stay outside"
    assert f"| `gate.onnx` | {(bundle / 'gate.onnx').stat().st_size:,} |" in card


def test_a_judge_that_comes_again_takes_the_place_of_the_old_one(bundle: Path, gate: Path) -> None:
    main(["--bundle", str(bundle), "--gate", str(gate)])
    main(["--bundle", str(bundle), "--gate", str(gate)])
    assert manifest.read(bundle).version == 3
    assert (bundle / "CARD.md").read_text().count("### Gate") == 1


def test_another_detector_is_refused_and_the_bundle_stays(
    bundle: Path, gate: Path, featured: tuple[Path, Path], tmp_path: Path
) -> None:
    before = manifest.read(bundle)
    paddle.seed(9)
    checkpoint = tiny_models.tiny_models()[1] / "last.pdckpt"
    other = with_features(tmp_path / "other", Detector(read_checkpoint(checkpoint).network_config))
    with pytest.raises(ToolError, match="says something else than the bundle's on sample 0"):
        main(["--bundle", str(bundle), "--gate", str(gate), "--models", str(other), "--passport", str(featured[1])])
    assert manifest.read(bundle) == before


@pytest.mark.parametrize(
    ("arguments", "said", "why"),
    [
        ([], "no judge is given", "nothing to do"),
        (["--gate", "GATE", "--models", "GATE"], "--models needs --passport", "a passport of other files"),
        (["--drift", "GATE"], r"lacks drift\.x86_64\.int8\.nb, .*drift\.json", "the wrong folder"),
    ],
)
def test_what_does_not_go_together_is_refused(
    bundle: Path, gate: Path, arguments: list[str], said: str, why: str
) -> None:
    given = [str(gate) if word == "GATE" else word for word in arguments]
    with pytest.raises(ToolError, match=said):
        main(["--bundle", str(bundle), *given])


def test_settings_that_the_device_cannot_use_leave_the_old_bundle(bundle: Path, gate: Path, tmp_path: Path) -> None:
    spoiled = tmp_path / "spoiled"
    shutil.copytree(gate, spoiled)
    (spoiled / "gate.json").write_text('{"limits": {}}')
    with pytest.raises(ToolError, match="limits name"):
        main(["--bundle", str(bundle), "--gate", str(spoiled)])
    assert manifest.read(bundle).version == 1
    with pytest.raises(BundleError, match="no bundle at"):
        main(["--bundle", str(tmp_path / "none"), "--gate", str(gate)])


def test_a_folder_that_is_no_bundle_is_not_emptied(bundle: Path, gate: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(ToolError, match=r"holds thesis\.txt, which is no part of a bundle"):
        main(["--bundle", str(bundle), "--gate", str(gate), "--out", str(mine)])
    assert (mine / "thesis.txt").read_text() == "years of work"
