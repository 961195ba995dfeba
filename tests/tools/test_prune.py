"""Pruning: what is cut, what it costs, what is left, and the whole step on tiny data."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import pytest

from edge.preprocess import InputSpec
from tests.tools.tiny import tiny_dataset
from tools import prune
from tools.checkpoint import copy_state, write_checkpoint
from tools.dataset import read_dataset
from tools.errors import ToolError
from tools.journal import Journal
from tools.network import TEACHER, Detector, NetworkConfig
from tools.prune import Cut, Pruner, choose_widths, cuts_of, multiply_adds, with_widths
from tools.runtimes import load_network

NARROW = NetworkConfig(
    classes=2, stem=16, width8=16, width16=24, width32=24, depth8=1, depth16=2, depth32=1, neck=16, kernel=3, expand=2.0
)
SPEC = InputSpec(96, 64, 1)
BASIC = {**NARROW.as_dict(), "block": "basic", "channels": 3}


def seeded(config: NetworkConfig) -> Detector:
    """An untrained network whose BatchNorm layers are not all the same."""
    paddle.seed(3)
    network = Detector(config)
    for name, value in network.state_dict().items():
        if "norm" in name:
            value.set_value(paddle.rand(value.shape) + 0.5)
    network.eval()
    return network


def pruner_of(network: Detector) -> Pruner:
    return Pruner(network, paddle.rand([2, network.config.channels, 64, 96]))


@pytest.mark.parametrize("config", [NARROW, NetworkConfig(**BASIC), NetworkConfig(**TEACHER)])
def test_multiplications_are_those_that_paddleslim_counts(config: NetworkConfig) -> None:
    from paddleslim.analysis import dygraph_flops

    shape = [1, config.channels, SPEC.height, SPEC.width]
    assert multiply_adds(config, SPEC) == dygraph_flops(Detector(config), shape, only_conv=True)


@pytest.mark.parametrize("config", [NARROW, NetworkConfig(**BASIC)])
def test_every_width_can_be_cut_and_the_network_stays_whole(config: NetworkConfig) -> None:
    network = seeded(config)
    image = paddle.rand([1, config.channels, 64, 96])
    before = [out.numpy() for out in network(image)]
    pruner, cuts = pruner_of(network), cuts_of(config)
    assert {cut.name for cut in cuts} >= {"stem", "width8", "width16", "width32", "neck", "inner.0", "inner.5"}
    widths = {cut.name: cut.width - 8 for cut in cuts}
    small = pruner.cut(cuts, widths)
    assert {cut.name: cut.width for cut in cuts_of(small.config)} == widths
    assert [out.shape for out in small(image)] == [[1, 2, 8, 12], [1, 4, 8, 12]]
    for mine, theirs in zip(network(image), before, strict=True):
        assert np.array_equal(mine.numpy(), theirs)


@pytest.mark.parametrize(
    ("cut", "layers"),
    [
        ("inner.2", ["stage16.1.expand"]),
        ("stem", ["stem"]),
        ("width16", ["down16", *(f"stage16.{i}.{part}" for i in range(2) for part in ("look", "project"))]),
        ("neck", ["lateral8", "lateral16", "lateral32", "cls_tower", "reg_tower"]
            + [f"fuse{i}.{part}" for i in (8, 16) for part in ("look", "project")]),
    ],
)  # fmt: skip
def test_channels_that_say_nothing_go_without_a_trace(cut: str, layers: list[str]) -> None:
    """The weakest channels go, in all layers the same ones: what always was zero changes nothing by its absence."""
    network = seeded(NARROW)
    width = {c.name: c.width for c in cuts_of(NARROW)}[cut]
    silent = np.random.default_rng(0).permutation(width)[:8]
    state = network.state_dict()
    for name in (f"{layer}.{part}" for layer in layers for part in ("conv.weight", "norm.bias", "norm._mean")):
        values = state[name].numpy()
        values[silent] = 0
        state[name].set_value(values)
    image = paddle.rand([1, 1, 64, 64])
    small = pruner_of(network).cut(cuts_of(NARROW), {cut: width - 8})
    assert multiply_adds(small.config, SPEC) < multiply_adds(NARROW, SPEC)
    for mine, theirs in zip(small(image), network(image), strict=True):
        assert np.allclose(mine.numpy(), theirs.numpy(), atol=1e-5)


def test_a_layer_that_paddleslim_does_not_know_is_named() -> None:
    with pytest.raises(ToolError, match=r"reg.*sets nothing"):
        pruner_of(seeded(NARROW)).cut([Cut("nothing", ("reg",), 16)], {"nothing": 8})


def test_statistics_are_those_of_the_images_and_the_network_stays_as_it_is() -> None:
    network = seeded(NARROW)
    images, before = paddle.rand([4, 1, 64, 64]), copy_state(network)
    seen = prune.statistics(network, images)
    assert np.allclose(seen["stem.norm._mean"], network.stem.conv(images).mean([0, 2, 3]).numpy(), atol=1e-4)
    assert np.allclose(seen["stem.norm._variance"], network.stem.conv(images).numpy().var((0, 2, 3)), rtol=1e-3)
    assert not any(layer.training for layer in network.sublayers())
    assert all(np.array_equal(before[name], value.numpy()) for name, value in network.state_dict().items())


def test_statistics_follow_a_cut() -> None:
    """A network whose statistics are exactly those of the images stays one of these."""
    network, images = seeded(NARROW), paddle.rand([4, 1, 64, 64])
    network.set_state_dict(network.state_dict() | prune.statistics(network, images))
    small = Pruner(network, images).cut(cuts_of(NARROW), {"width8": 8, "inner.1": 24})
    state = small.state_dict()
    for name, seen in prune.statistics(small, images).items():
        assert np.allclose(state[name].numpy(), seen, rtol=1e-3, atol=1e-4), name
    whole = Pruner(network, images).cut(cuts_of(NARROW), {})
    state = network.state_dict()
    assert all(np.allclose(v.numpy(), state[name].numpy(), rtol=1e-5) for name, v in whole.state_dict().items())


def test_sensitivity_measures_each_width_alone_and_goes_on(tmp_path: Path) -> None:
    cuts, seen = cuts_of(NARROW), []

    def score(network: Detector) -> float:
        seen.append({cut.name: cut.width for cut in cuts_of(network.config)})
        return 1 - 0.01 * (24 - network.config.width32)

    pruner = pruner_of(seeded(NARROW))
    for _ in range(2):
        costs = prune.sensitivity(pruner, cuts, [0.3, 0.6], score, Journal(tmp_path / "x.journal", {}))
    whole = {cut.name: cut.width for cut in cuts}
    assert seen[0] == whole
    assert all(sum(widths[name] != whole[name] for name in whole) == 1 for widths in seen[1:])
    assert costs["width32"] == pytest.approx({24: 0, 16: 0.08, 8: 0.16})
    assert costs["inner.0"] == {32: 0, 24: 0, 16: 0}
    assert len(seen) == 1 + sum(len(measured) - 1 for measured in costs.values())


def test_what_costs_nothing_goes_first_and_what_costs_too_much_stays() -> None:
    costs = {"width16": {24: 0.0, 16: 0.5, 8: 0.9}, "inner.1": {48: 0.0, 8: 0.0}, "inner.2": {48: 0.0, 8: 0.04}}
    widths = choose_widths(NARROW, SPEC, costs, 0.93, 0.1)
    assert widths["width16"] == 24 and widths["inner.1"] < 24 and widths["inner.1"] < widths["inner.2"]
    small = multiply_adds(with_widths(NARROW, widths), SPEC)
    assert 0.85 < small / multiply_adds(NARROW, SPEC) <= 0.93
    with pytest.raises(ToolError, match=r"(?s)only \d+% .* and 60% should: ask for less"):
        choose_widths(NARROW, SPEC, costs, 0.4, 0.1)


def test_the_search_for_a_latency_ends_near_it() -> None:
    asked = []

    def choose(goal: float) -> dict[str, int]:
        asked.append(goal)
        return {"width8": round(1000 * goal)}

    found = prune.widths_for_latency(choose, lambda widths: 0.3 + 0.7 * widths["width8"] / 1000, 0.7)
    assert found["width8"] / 1000 == pytest.approx(4 / 7, abs=0.05) and len(asked) <= 5


@pytest.fixture
def trained(tmp_path: Path) -> list[str]:
    """A dataset and a checkpoint: arguments of the step."""
    data = tiny_dataset(tmp_path / "data", size=(64, 64), images=4)
    network = seeded(replace(NARROW, depth16=1, width8=24))
    write_checkpoint(tmp_path / "a.pdckpt", network, copy_state(network), read_dataset(data))
    return ["--data", str(data), "--checkpoint", str(tmp_path / "a.pdckpt"), "--out", str(tmp_path / "out")]


QUICK = "--epochs 2 --processes 1 --crop 64 --batch 2 --keep 0.8 --images 2 --ratios 0.5 --evaluate-every 0 --no-nb"


def test_whole_step(trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*trained, *QUICK.split(), "--most-loss", "1"]
    prune.main(arguments)
    record = json.loads((tmp_path / "out/prune.json").read_text())
    before, pruned, tuned = (record["results"][name] for name in ("before", "pruned", "tuned"))
    assert pruned["multiply_adds"] <= 0.8 * before["multiply_adds"] and pruned["parameters"] < before["parameters"]
    assert tuned["network"] == pruned["network"] and tuned["validation"]["images"] == 4
    assert load_network(tmp_path / "out/final.pdckpt").config.inner_widths() == tuple(tuned["network"]["inner"])
    assert (tmp_path / "out/prune.png").stat().st_size > 5000
    assert "tuned" in capsys.readouterr().out
    written = (tmp_path / "out/last.pdckpt").stat().st_mtime_ns
    prune.main(arguments)  # all is done: nothing is trained again
    assert (tmp_path / "out/last.pdckpt").stat().st_mtime_ns == written


@pytest.mark.skipif(importlib.util.find_spec("paddlelite") is None, reason="no Paddle Lite for this machine")
def test_time_and_size_are_those_of_the_nb(trained: list[str], tmp_path: Path) -> None:
    data, whole = read_dataset(Path(trained[1])), tmp_path / "a.pdckpt"
    network = load_network(whole)
    cuts = cuts_of(network.config)
    small = pruner_of(network).cut(cuts, {cut.name: 8 for cut in cuts})
    write_checkpoint(tmp_path / "b.pdckpt", small, copy_state(small), data)
    found = prune.describe_nb({"before": whole, "pruned": tmp_path / "b.pdckpt"}, data.spec, tmp_path)
    assert found["pruned"]["nb_bytes"] == (tmp_path / "nb/pruned/detector.nb").stat().st_size
    assert found["pruned"]["nb_bytes"] < found["before"]["nb_bytes"]
    assert all(0 < form["nb_ms"] < 1000 for form in found.values())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--keep", "1.5"], "--keep 1.5: expected a share"),
        (["--ratios", "0"], "--ratios 0.0: expected a share"),
        (["--latency-target", "2"], "--latency-target 2.0: expected a share"),
        (["--most-loss", "-1"], "--most-loss must be"),
        (["--checkpoint", "no.pdckpt"], "no.pdckpt: missing"),
    ],
)
def test_bad_arguments_are_refused(trained: list[str], more: list[str], words: str) -> None:
    with pytest.raises(ToolError, match=words):
        prune.main([*trained, *QUICK.replace("--keep 0.8 ", "").split(), *more])
