"""Training through rounding: on the layers that are wanted only, and true to what the quantized program computes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from edge.preprocess import InputSpec
from tests.tools.test_quantize import Product
from tools.errors import ToolError
from tools.layers import Layer, read_layers
from tools.loss import LossConfig
from tools.network import Detector, NetworkConfig
from tools.objective import Batch, Truth
from tools.paddle_model import StaticModel, save_layer
from tools.plan import Decision, Plan
from tools.qat import RoundedLoss, Rounder, round_layers, rounders, twin_of
from tools.quantize import main, with_scales
from tools.quantize import quantize as quantize_model

pytestmark = pytest.mark.timeout(600)  # models are made first, on a machine that may be busy

SIZES = {"stem": 16, "width8": 16, "width16": 16, "width32": 16, "depth8": 1, "depth16": 1, "depth32": 1, "neck": 16}
SCALES = {"stage8.0.expand.conv": 4.0, "stage8.0.project.conv": 3.0, "cls_tower.conv": 5.0}


@pytest.fixture
def network() -> Detector:
    paddle.seed(0)
    made = Detector(NetworkConfig(classes=2, expand=2.0, **SIZES))
    made.eval()
    return made


def test_twin_shares_every_weight_and_statistic(network: Detector) -> None:
    twin = twin_of(network)
    twin.eval()
    image = paddle.rand([1, 1, 32, 32])
    assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(twin(image), network(image), strict=True))
    network.stem.conv.weight.set_value(network.stem.conv.weight * 2)
    network.stem.norm._mean.set_value(network.stem.norm._mean + 1)
    assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(twin(image), network(image), strict=True))


def test_only_planned_layers_are_rounded(network: Detector) -> None:
    twin = twin_of(network)
    round_layers(twin, SCALES, 7)
    assert set(rounders(twin)) == set(SCALES)
    assert {name: r.scale for name, r in rounders(twin).items()} == SCALES
    assert not rounders(network), "the network that is exported stays as it was"
    assert isinstance(network.stage8[0].expand.conv, nn.Conv2D)


def test_gradient_passes_rounding_and_stops_at_clipping() -> None:
    rounder = Rounder()
    rounder.eval()
    x = paddle.to_tensor([0.301, -0.8, 2.0, -3.0], stop_gradient=False)
    y = rounder(x)
    y.sum().backward()
    assert np.allclose(y.numpy(), np.array([38, -102, 127, -127]) / 127, atol=1e-6)
    assert x.grad.numpy().tolist() == [1, 1, 0, 0] and rounder.scale == 1


def test_unknown_layer_is_named(network: Detector) -> None:
    with pytest.raises(ToolError, match="no convolution nose"):
        round_layers(network, {"nose": 1.0}, 8)


def planned(layers: list[Layer], weights: str) -> Plan:
    decisions = [Decision(x.name, x.filter, x.shape, x.name in SCALES, "", 1.0, 0.5, "test") for x in layers]
    return Plan("x86", weights, "ms", "test", tuple(decisions))


def test_rounded_twin_computes_what_the_quantized_program_does(network: Detector, tmp_path: Path) -> None:
    save_layer(network, tmp_path / "fp32", InputSpec(64, 64, 1))
    image = np.random.default_rng(0).random((1, 1, 64, 64)).astype(np.float32)
    plan = planned(read_layers(tmp_path / "fp32"), "full")
    quantize_model(tmp_path / "fp32", tmp_path / "base", image[0], plan)
    with_scales(tmp_path / "base", tmp_path / "int8", plan, SCALES)
    twin = twin_of(network)
    round_layers(twin, SCALES, 8)
    twin.eval()
    plain, want = network(paddle.to_tensor(image)), StaticModel.load(tmp_path / "int8").run(image)
    for fp32, mine, theirs in zip(plain, twin(paddle.to_tensor(image)), want, strict=True):
        moved = np.abs(fp32.numpy() - theirs).max()
        assert moved > 0 and np.abs(mine.numpy() - theirs).max() < 0.1 * moved


def test_a_step_through_rounding_reaches_the_shared_weights(network: Detector) -> None:
    network.train()
    objective = RoundedLoss(network, SCALES, 7, LossConfig())
    truth = Truth(np.array([[8, 8, 40, 40]], np.float32), np.array([1]), np.ones(1, np.float32), np.ones(2, bool))
    loss, parts = objective.loss(network, Batch(paddle.rand([1, 1, 64, 64]), [truth]))
    loss.backward()
    assert np.isfinite(float(loss)) and "cls" in parts
    for layer in (network.stem.conv, network.stage8[0].expand.conv, network.stage8[0].look.conv, network.cls):
        assert np.abs(layer.weight.grad.numpy()).max() > 0
    assert objective.scales() != SCALES, "the scales follow what they see"


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Product:
    return Product(tmp_path_factory.mktemp("product"))


def test_step_trains_on_and_measures_both(product: Product, tmp_path: Path) -> None:
    training = ["--train", "--checkpoint", str(product.checkpoint), "--max-steps", "2", "--processes", "1"]
    main(product.arguments(tmp_path, "--target", "x86", "--algorithm", "avg", *training))
    results = json.loads((tmp_path / "quantize.json").read_text())["results"]
    assert set(results["lost_points"]) == {"avg", "qat"} and (tmp_path / "m.nb").is_file()
    learned = json.loads((tmp_path / "training" / "scales.json").read_text())
    assert set(learned) == set(results["int8_layers"])
    before, after = StaticModel.load(product.model), StaticModel.load(tmp_path / "training" / "fp32")
    names = [op.input("Filter")[0] for op in before.operators("conv2d")]
    renamed = [op.input("Filter")[0] for op in after.operators("conv2d")]
    assert any(not np.array_equal(before.weight(a), after.weight(b)) for a, b in zip(names, renamed, strict=True))


def test_checkpoint_of_another_model_is_refused(product: Product, tmp_path: Path) -> None:
    other = Product(tmp_path / "other")
    paddle.seed(9)
    network = Detector(NetworkConfig(classes=2, expand=2.0, **{**SIZES, "neck": 32}))
    save_layer(network, tmp_path / "x", InputSpec(64, 96, 1))
    arguments = product.arguments(tmp_path / "out", "--target", "x86", "--algorithm", "avg", "--train")
    with pytest.raises(ToolError, match=r"c\.pdckpt: .* was not exported from it"):
        main([*arguments, "--model", str(tmp_path / "x"), "--checkpoint", str(other.checkpoint)])


LEAVE = """
import numpy as np, paddle
from tools.loss import LossConfig
from tools.network import Detector, NetworkConfig
from tools.objective import Batch, Truth
from tools.qat import RoundedLoss
network = Detector(NetworkConfig(classes=2))
objective = RoundedLoss(network, {"stage8.0.expand.conv": 4.0}, 7, LossConfig())
truth = Truth(np.array([[8, 8, 40, 40]], np.float32), np.array([1]), np.ones(1, np.float32), np.ones(2, bool))
objective.loss(network, Batch(paddle.rand([1, 1, 64, 64]), [truth]))[0].backward()
"""


def test_a_process_that_trained_ends() -> None:
    """A graph with a PyLayer in it, kept by a layer until Python ends, hung the process."""
    subprocess.run([sys.executable, "-c", LEAVE], timeout=90, check=True, capture_output=True)
