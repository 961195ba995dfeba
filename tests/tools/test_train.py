"""Dry runs of training: it learns something, stops, and goes on exactly where it stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import pytest

from tests.tools.tiny import tiny_dataset
from tools import train
from tools.checkpoint import read_checkpoint
from tools.dataset import read_dataset
from tools.errors import ToolError
from tools.network import Detector, NetworkConfig
from tools.runtimes import load_network
from tools.train import TrainConfig, learning_rate, network_config

ROOT = Path(__file__).parents[2]
NARROW = {"stem": 8, "width8": 16, "width16": 16, "width32": 16, "depth8": 1, "depth16": 1, "depth32": 1, "neck": 16}


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    (tmp_path / "narrow.json").write_text(json.dumps(NARROW))
    return TrainConfig(
        str(tiny_dataset(tmp_path / "data", templates=True)),
        str(tmp_path / "run"),
        network=str(tmp_path / "narrow.json"),
        epochs=4,
        processes=1,
        batch=2,
        crop=64,
        full_from=0.7,
        warmup_steps=2,
        evaluate_every=0,
    )


def weights(out: str) -> dict[str, np.ndarray]:
    return paddle.load(str(Path(out) / train.CHECKPOINT), return_numpy=True)["network"]


def run(config: TrainConfig) -> dict[str, object]:
    train.check(config)
    Path(config.out).mkdir(parents=True, exist_ok=True)
    train.work(config)
    return dict(json.loads((Path(config.out) / "train.json").read_text()))


def test_stopped_and_resumed_equals_uninterrupted(config: TrainConfig, tmp_path: Path) -> None:
    whole = replace(config, out=str(tmp_path / "whole"), physical=0.5, erasing=0.5, mixup=0.5, drop_path=0.2)
    run(whole)
    stopped = replace(whole, out=config.out)
    run(replace(stopped, max_steps=4))  # two epochs of two steps
    record = run(replace(stopped, resume=True))
    one, two = weights(whole.out), weights(config.out)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert record["settings"]["train_images"] == 4 and record["versions"]["paddlepaddle"]  # type: ignore[index]
    assert [note["epoch"] for note in record["results"]["history"]] == [1, 2, 3, 4]  # type: ignore[index]
    assert load_network(Path(config.out) / train.FINAL)
    assert (Path(config.out) / "train.png").stat().st_size > 1000


def test_a_small_task_is_learnt(config: TrainConfig, tmp_path: Path) -> None:
    data = tiny_dataset(tmp_path / "more", images=8, templates=True)
    long = replace(config, data=str(data), epochs=60, rate=5e-3, full_from=0.5, ema_decay=0.9, batch=4)
    record = run(long)
    assert record["results"]["validation"]["ap33_pooled"] > 0.3  # type: ignore[index]


def test_colour_and_long_inputs_train(config: TrainConfig, tmp_path: Path) -> None:
    data = tiny_dataset(tmp_path / "long", size=(128, 64), channels=3, classes=("pit",))
    record = run(replace(config, data=str(data), epochs=2, full_from=0.5, physical=1.0))
    saved = read_checkpoint(Path(config.out) / train.FINAL)
    assert (saved.spec.width, saved.spec.height, saved.spec.channels) == (128, 64, 3) and saved.classes == ("pit",)
    assert record["settings"]["network"]["channels"] == 3  # type: ignore[index]


def test_two_processes_train_over_gloo(config: TrainConfig) -> None:
    arguments = ["--data", config.data, "--out", config.out, "--network", config.network, "--epochs", "1"]
    arguments += ["--batch", "2", "--crop", "64", "--evaluate-every", "0", "--warmup-steps", "1"]
    train.main(arguments)
    assert (Path(config.out) / train.FINAL).is_file()


def test_the_launcher_of_several_machines_starts_the_same_step(config: TrainConfig, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir"]
    command += [str(tmp_path / "logs"), str(ROOT / "tools" / "__main__.py"), "train", "--data", config.data]
    command += ["--out", config.out, "--network", config.network, "--epochs", "1", "--batch", "2", "--crop", "64"]
    command += ["--evaluate-every", "0", "--warmup-steps", "1"]
    environment = {**os.environ, "PADDLE_DISTRI_BACKEND": "gloo"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, cwd=tmp_path)
    logs = "".join(path.read_text() for path in (tmp_path / "logs").glob("*"))
    assert done.returncode == 0, done.stderr[-2000:] + logs[-2000:]
    record = json.loads((Path(config.out) / "train.json").read_text())
    assert record["results"]["steps"] == 1  # two processes share four images, two a step


def test_resume_without_checkpoint_says_so(config: TrainConfig) -> None:
    with pytest.raises(ToolError, match="nothing to resume"):
        run(replace(config, resume=True))


def test_a_damaged_checkpoint_is_named(config: TrainConfig, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pdckpt"
    bad.write_bytes(b"\x80\x04garbage" * 20)
    with pytest.raises(ToolError, match=r"bad\.pdckpt: damaged"):
        run(replace(config, start_from=str(bad)))


def test_weights_for_other_classes_are_refused(config: TrainConfig, tmp_path: Path) -> None:
    run(replace(config, max_steps=1))
    other = tiny_dataset(tmp_path / "other", classes=("dent",))
    with pytest.raises(ToolError, match=r"knows hole, bar .* the data has dent"):
        run(replace(config, data=str(other), start_from=str(Path(config.out) / train.FINAL)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"crop": 50}, "--crop is 50, and must be a positive multiple of 32"),
        ({"mixup": 1.5}, "--mixup 1.5: expected a share"),
        ({"amp": True}, "--amp needs a GPU"),
        ({"variation": "steel"}, "--variation steel: expected auto or one of"),
        ({"variation": "copper"}, "draws defects of copper"),
        ({"network": "nowhere.json"}, r"--network nowhere\.json: not `default`"),
    ],
)
def test_what_cannot_work_is_refused_before_it_starts(config: TrainConfig, change: dict, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        train.check(replace(config, **change))


def test_network_file_with_an_unknown_field(tmp_path: Path) -> None:
    path = tmp_path / "net.json"
    path.write_text(json.dumps({"network": {"width64": 3}}))
    with pytest.raises(ToolError, match="a network has no width64"):
        network_config(str(path), 2, 1)


def test_weights_that_are_no_numbers_never_replace_a_checkpoint(config: TrainConfig) -> None:
    run_ = train.Run(config, read_dataset(Path(config.data)), 0, 1)
    train.refuse_nonsense(run_)
    run_.average.state["reg.bias"][1] = np.nan
    with pytest.raises(ToolError, match=r"not numbers \(reg\.bias, 1 tensors\).*lower --rate than 0\.002"):
        train.refuse_nonsense(run_)


def test_learning_rate_warms_up_and_ends_low() -> None:
    config = TrainConfig("", "", rate=1.0, warmup_steps=10, final_rate=0.01)
    rates = [learning_rate(config, step, progress) for step, progress in [(0, 0), (9, 0), (99, 0.5), (999, 1.0)]]
    assert rates == pytest.approx([0.1, 1.0, 0.505, 0.01])


def test_time_budget_ends_a_run_before_its_epochs(config: TrainConfig) -> None:
    run = train.Run(replace(config, epochs=100, minutes=1.0), read_dataset(Path(config.data)), 0, 1)
    run.epoch, run.elapsed_s = 10, 45.0
    assert run.progress() == pytest.approx(0.75)
    run.elapsed_s = 0.0
    assert run.progress() == pytest.approx(0.1)


def test_every_process_gets_its_own_boards_and_as_many(config: TrainConfig) -> None:
    data = read_dataset(Path(config.data))
    shares = [train.Run(config, data, rank, 2).share(9) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1]) == 4 and not set(shares[0]) & set(shares[1])


@pytest.mark.parametrize("block", ["mixer", "basic"])
def test_network_output_shapes_and_calm_start(block: str) -> None:
    network = Detector(NetworkConfig(block=block))
    network.eval()
    cls, reg = network(paddle.zeros([1, 1, 96, 64]))
    assert cls.shape == [1, 6, 12, 8] and reg.shape == [1, 4, 12, 8]
    assert float(paddle.nn.functional.sigmoid(cls).max()) < 0.1
