"""A detector that learned a tiny data set in seconds, in every form that a bundle has; made once a test run."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import paddle

from edge.preprocess import preprocess
from tests.tools.tiny import tiny_dataset
from tools import export
from tools.checkpoint import copy_state, write_checkpoint
from tools.dataset import Dataset, read_dataset, read_image
from tools.loss import LossConfig, detection_loss
from tools.network import STRIDE, Detector, NetworkConfig
from tools.objective import Truth
from tools.paddle_model import StaticModel, compile_nb, save_layer
from tools.ptq import post_training, reduce_range

STEPS = 60
NARROW = {"stem": 8, "width8": 24, "width16": 24, "width32": 24, "depth8": 1, "depth16": 1, "depth32": 1, "neck": 24}


@functools.cache
def tiny_models() -> tuple[Path, Path]:
    """A dataset folder, and a folder of models as `export` and `quantize` leave them, with `last.pdckpt`."""
    root = Path(tempfile.mkdtemp(prefix="tiny-models-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    data = read_dataset(tiny_dataset(root / "data", size=(96, 64), channels=3, images=6, negatives=2))
    models = root / "models"
    models.mkdir()
    network = learn(data)
    write_checkpoint(models / "last.pdckpt", network, copy_state(network), data)
    save_layer(network, models / "fp32", data.spec)
    export.write_onnx(models / "fp32", models / "detector.onnx")
    quantize(data, models)
    compile_all(models)
    return root / "data", models


def learn(data: Dataset) -> Detector:
    """Learn the whole data set by heart, both splits: what is tested is the same network in its forms."""
    paddle.seed(1)
    network = Detector(NetworkConfig(classes=len(data.classes), channels=data.spec.channels, **NARROW))  # type: ignore[arg-type]
    images = np.concatenate([preprocess(read_image(s.image, data.spec.channels), data.spec)[0] for s in data.samples])
    truth = [Truth(s.xyxy, s.class_id, np.ones(len(s.xyxy), np.float32), s.known) for s in data.samples]
    optimizer = paddle.optimizer.AdamW(4e-3, parameters=network.parameters())
    network.train()
    for _ in range(STEPS):
        loss, _ = detection_loss(*network(paddle.to_tensor(images)), truth, STRIDE, LossConfig())
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
    network.eval()
    return network


def quantize(data: Dataset, models: Path) -> None:
    """INT8 for both targets, by names that `passport` looks for; for x86 in reduced range."""
    tensors = [preprocess(read_image(s.image, data.spec.channels), data.spec)[0][0] for s in data.samples]
    post_training(models / "fp32", models / "int8-armv8", tensors, "hist")
    reduced = StaticModel.load(models / "int8-armv8")
    reduce_range(reduced)
    reduced.save(models / "int8-x86")


def compile_all(models: Path) -> None:
    """The `.nb` files, side by side."""
    wanted = {
        "detector.x86_64.fp32.nb": ("fp32", "x86"),
        "detector.x86_64.int8.nb": ("int8-x86", "x86"),
        "detector.armv8.int8.nb": ("int8-armv8", "arm"),
    }
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(compile_nb, models / f, models / name, to) for name, (f, to) in wanted.items()]
        for job in jobs:
            job.result()
