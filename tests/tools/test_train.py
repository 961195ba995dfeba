"""Dry runs of training: it learns something, stops, and goes on exactly where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import pytest

from tools import train
from tools.errors import ToolError
from tools.network import Detector
from tools.runtimes import load_network
from tools.train import TrainConfig, learning_rate


@pytest.fixture
def config(pcb_root: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        str(pcb_root),
        str(tmp_path / "run"),
        validation_groups=("groupB",),
        epochs=4,
        processes=1,
        batch=2,
        crop=64,
        full=96,
        full_from=0.7,
        warmup_steps=2,
        evaluate_every=0,
    )


def weights(out: str) -> dict[str, np.ndarray]:
    return paddle.load(str(Path(out) / train.CHECKPOINT), return_numpy=True)["network"]


def run(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train without validating: the full-size network on 640x640 is not what is tested here."""
    monkeypatch.setattr(train, "validate", lambda run, samples: {})
    Path(config.out).mkdir(parents=True, exist_ok=True)
    train.work(config)


def test_stopped_and_resumed_equals_uninterrupted(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = replace(config, out=str(tmp_path / "whole"))
    run(whole, monkeypatch)
    run(replace(config, max_steps=4), monkeypatch)  # two epochs of two steps
    run(replace(config, resume=True), monkeypatch)
    one, two = weights(whole.out), weights(config.out)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    record = json.loads((Path(config.out) / "train.json").read_text())
    assert record["settings"]["train_images"] == 4 and record["versions"]["paddlepaddle"]
    assert [note["epoch"] for note in record["results"]["history"]] == [1, 2, 3, 4]
    assert load_network(Path(config.out) / train.FINAL)


def test_two_processes_train_over_gloo(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--data", config.data, "--out", config.out, "--validation-groups", "groupB", "--epochs", "1"]
    arguments += ["--batch", "2", "--crop", "64", "--evaluate-every", "0", "--warmup-steps", "1"]
    train.main(arguments)
    assert (Path(config.out) / train.FINAL).is_file()


def test_resume_without_checkpoint_says_so(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ToolError, match="nothing to resume"):
        run(replace(config, resume=True), monkeypatch)


def test_learning_rate_warms_up_and_ends_low() -> None:
    config = TrainConfig("", "", rate=1.0, warmup_steps=10, final_rate=0.01)
    rates = [learning_rate(config, step, progress) for step, progress in [(0, 0), (9, 0), (99, 0.5), (999, 1.0)]]
    assert rates == pytest.approx([0.1, 1.0, 0.505, 0.01])


def test_time_budget_ends_a_run_before_its_epochs() -> None:
    run = train.Run(TrainConfig("", "", epochs=100, minutes=1.0), 0, 1)
    run.epoch, run.elapsed_s = 10, 45.0
    assert run.progress() == pytest.approx(0.75)
    run.elapsed_s = 0.0
    assert run.progress() == pytest.approx(0.1)


def test_every_process_gets_its_own_boards_and_as_many() -> None:
    shares = [train.Run(TrainConfig("", ""), rank, 2).share(9) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1]) == 4 and not set(shares[0]) & set(shares[1])


def test_network_output_shapes_and_calm_start() -> None:
    network = Detector()
    network.eval()
    cls, reg = network(paddle.zeros([1, 1, 96, 64]))
    assert cls.shape == [1, 6, 12, 8] and reg.shape == [1, 4, 12, 8]
    assert float(paddle.nn.functional.sigmoid(cls).max()) < 0.1
