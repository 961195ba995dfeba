"""Adversarial training: its loss, its schedule, what it tells, and the whole step on tiny data."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import paddle
import pytest

from tests.tools.tiny import tiny_dataset
from tools import adversarial
from tools.adversarial import AdversarialConfig, AdversarialObjective, check_settings, make_scenes, probe, verdict
from tools.attack import AttackConfig, batch_of
from tools.checkpoint import read_checkpoint
from tools.dataset import read_dataset
from tools.errors import ToolError
from tools.loss import LossConfig
from tools.network import Detector, NetworkConfig
from tools.objective import Batch, LabelLoss, Truth
from tools.train import CHECKPOINT

NARROW = {"stem": 8, "width8": 16, "width16": 16, "width32": 16, "depth8": 1, "depth16": 1, "depth32": 1, "neck": 16}


class Spy:
    """An objective that keeps what it was asked, and answers with the mean of the images."""

    def __init__(self) -> None:
        self.asked: list[tuple[np.ndarray, bool]] = []

    def loss(self, network: Detector, batch: Batch) -> tuple[paddle.Tensor, dict[str, float]]:
        self.asked.append((batch.images.numpy(), network.training))
        return batch.images.mean() + 0 * network.cls.bias.sum(), {"mine": 1.0}


@pytest.fixture
def network() -> Detector:
    paddle.seed(2)
    made = Detector(NetworkConfig(classes=2, **NARROW))
    made.train()
    return made


@pytest.fixture
def batch() -> Batch:
    images = np.random.default_rng(1).random((4, 1, 64, 64), np.float32)
    box = np.array([[10, 10, 30, 30]], np.float32)
    truths = [Truth(box, np.array([k % 2]), np.ones(1, np.float32), np.ones(2, bool)) for k in range(4)]
    return Batch(paddle.to_tensor(images), truths)


def run_at(tmp_path: Path, step: int = 0, progress: float = 1.0) -> Any:
    config = SimpleNamespace(out=str(tmp_path), seed=1)
    return SimpleNamespace(config=config, rank=0, step=step, progress=lambda: progress, loss_config=LossConfig())


def test_the_loss_is_shared_between_clean_and_attacked(network: Detector, batch: Batch, tmp_path: Path) -> None:
    spy = Spy()
    objective = AdversarialObjective(spy, AdversarialConfig(share=0.25), run_at(tmp_path))
    loss, parts = objective.loss(network, batch)
    (attacked, training), (clean, _) = spy.asked
    assert training, "both are seen in training mode"
    assert np.array_equal(clean, batch.images.numpy())
    assert 0.02 < np.abs(attacked - clean).max() <= 0.03 + 1e-6
    assert float(loss) == pytest.approx(0.25 * attacked.mean() + 0.75 * clean.mean(), rel=1e-5)
    assert parts["attacked"] == pytest.approx(attacked.mean(), rel=1e-5) and parts["mine"] == 1.0
    assert parts["attack_final_loss"] > parts["attack_first_loss"]
    loss.backward()
    assert network.cls.bias.grad is not None


def test_a_part_of_the_batch(network: Detector, batch: Batch, tmp_path: Path) -> None:
    spy = Spy()
    AdversarialObjective(spy, AdversarialConfig(part=0.5), run_at(tmp_path)).loss(network, batch)
    assert [len(images) for images, _ in spy.asked] == [2, 4]


def test_attacks_follow_seed_and_step(network: Detector, batch: Batch, tmp_path: Path) -> None:
    seen = []
    for step in (5, 5, 6):
        spy = Spy()
        AdversarialObjective(spy, AdversarialConfig(), run_at(tmp_path, step)).loss(network, batch)
        seen.append(spy.asked[0][0])
    assert np.array_equal(seen[0], seen[1]) and not np.array_equal(seen[0], seen[2])


def test_each_attack_is_logged(network: Detector, batch: Batch, tmp_path: Path) -> None:
    config = AdversarialConfig(schedule="pgd", steps=2)
    for step in range(3):
        AdversarialObjective(LabelLoss(), config, run_at(tmp_path, step)).loss(network, batch)
    rows = list(csv.DictReader((tmp_path / "attacks-0.csv").open()))
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    for row in rows:
        assert float(row["epsilon"]) == 0.03 and row["attack_steps"] == "2"
        assert float(row["final_loss"]) > float(row["first_loss"])
        assert 0 < float(row["mean"]) < float(row["largest"]) <= 0.0301


@pytest.mark.parametrize(
    ("config", "batch", "progress", "steps", "epsilon", "why"),
    [
        (AdversarialConfig(schedule="pgd", ramp=0), 0, 0.0, 10, 0.03, "no ramp: full strength at once"),
        (AdversarialConfig(schedule="pgd", ramp=0.5), 0, 0.0, 10, 0.003, "a tenth at the start"),
        (AdversarialConfig(schedule="pgd", ramp=0.5), 0, 0.25, 10, 0.0165, "half way up"),
        (AdversarialConfig(schedule="pgd", ramp=0.5), 0, 0.9, 10, 0.03, "and not beyond"),
        (AdversarialConfig(pgd_every=4, ramp=0), 2, 1.0, 1, 0.03, "fast takes one step"),
        (AdversarialConfig(pgd_every=4, ramp=0), 3, 1.0, 10, 0.03, "but every fourth batch all of them"),
        (AdversarialConfig(pgd_every=0, ramp=0), 3, 1.0, 1, 0.03, "unless told not to"),
    ],
)
def test_schedule(
    config: AdversarialConfig, batch: int, progress: float, steps: int, epsilon: float, why: str
) -> None:
    how = config.attack(batch, progress)
    assert (how.steps, how.epsilon) == (steps, pytest.approx(epsilon)), why
    assert how.step == pytest.approx(1.25 * epsilon if steps == 1 else epsilon / 3)


@pytest.mark.parametrize(
    "bad", [{"share": 0.0}, {"share": 1.1}, {"part": 0}, {"ramp": 2}, {"epsilon": -1}, {"steps": 0}, {"probe_steps": 0}]
)
def test_settings_that_cannot_work_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ToolError):
        check_settings(AdversarialConfig(**bad))  # type: ignore[arg-type]


def test_apart_by_more_than_five_points_is_flagged() -> None:
    near = {"ap33_clean": 0.98, "ap33_attacked": 0.94, "gap": 0.04, "parted": False, "epsilon": 0.03}
    assert "APART" not in verdict(1, near) and "98.0 clean, 94.0 attacked" in verdict(1, near)
    assert "APART BY 8.0" in verdict(1, near | {"ap33_attacked": 0.9, "gap": 0.08, "parted": True})


def command(tmp_path: Path, *more: str) -> list[str]:
    (tmp_path / "narrow.json").write_text(json.dumps(NARROW))
    data = tmp_path / "data"
    if not data.is_dir():
        tiny_dataset(data)
    fixed = ["--network", str(tmp_path / "narrow.json"), "--processes", "1", "--batch", "2", "--crop", "64"]
    where = ["--data", str(data), "--out", str(tmp_path / "run")]
    probes = ["--probe-images", "2", "--probe-steps", "2", "--evaluate-every", "0", "--pgd-every", "2", "--steps", "2"]
    return [*where, *fixed, *probes, "--epochs", "3", "--warmup-steps", "1", "--full-from", "1", *more]


def test_the_whole_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adversarial.main(command(tmp_path))
    printed = capsys.readouterr().out
    assert printed.count("clean,") >= 3 and "epoch 3" in printed
    record = json.loads((tmp_path / "run" / "adversarial.json").read_text())
    history = record["results"]["history"]
    assert [entry["epoch"] for entry in history] == [1, 2, 3]
    assert {"ap33_clean", "ap33_attacked", "gap", "parted", "first_loss", "final_loss"} <= set(history[0]["probe"])
    assert record["settings"]["adversarial"]["schedule"] == "fast"
    assert (tmp_path / "run" / "adversarial.png").stat().st_size > 1000
    rows = list(csv.DictReader((tmp_path / "run" / "attacks-0.csv").open()))
    assert {row["attack_steps"] for row in rows} == {"1", "2"}


def test_a_stopped_step_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    adversarial.main(command(tmp_path))
    whole = read_checkpoint(tmp_path / "run" / CHECKPOINT).state
    stopped = command(tmp_path, "--max-steps", "4")  # two epochs
    stopped[stopped.index("--out") + 1] = str(tmp_path / "stopped")
    adversarial.main(stopped)
    journal = tmp_path / "stopped" / "adversarial.journal"
    journal.write_text("\n".join(journal.read_text().splitlines()[:2]) + "\n")  # begun, and not done
    adversarial.main(stopped[:-2])
    again = read_checkpoint(tmp_path / "stopped" / CHECKPOINT).state
    assert [entry["probe"] for entry in again["history"]] == [entry["probe"] for entry in whole["history"]]
    assert all(np.array_equal(again["network"][name], value) for name, value in whole["network"].items())


def test_training_makes_attacks_weaker(tmp_path: Path) -> None:
    """The loss that PGD reaches comes down further than without adversarial training."""
    data = read_dataset(tiny_dataset(tmp_path / "data", size=(64, 64)))
    scenes = make_scenes(data.part("train"), data.spec)
    reached = {}
    for name in ("plain", "hardened"):
        paddle.seed(5)
        network = Detector(NetworkConfig(classes=2, **NARROW))
        config = AdversarialConfig(ramp=0, pgd_every=0, share=0.7, epsilon=0.1)
        mixed = AdversarialObjective(LabelLoss(), config, run_at(tmp_path))
        objective = mixed if name == "hardened" else LabelLoss()
        optimizer = paddle.optimizer.Adam(5e-3, parameters=network.parameters())
        network.train()
        for _ in range(60):
            objective.loss(network, batch_of(scenes))[0].backward()
            optimizer.step()
            optimizer.clear_grad()
        reached[name] = probe(network, scenes, data.spec, AttackConfig(0.1, 0.03, 5))
    assert min(result["ap33_clean"] for result in reached.values()) > 0.7
    assert reached["hardened"]["final_loss"] < 0.8 * reached["plain"]["final_loss"]
    assert reached["hardened"]["gap"] < reached["plain"]["gap"]
