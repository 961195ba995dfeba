"""Training and quantization of the gate's classifier."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn
from tqdm import tqdm

from edge.gate_classifier import OUTPUTS
from tools.gate_data import Mosaics, turned, unpack
from tools.gate_network import SPEC, GateNetwork
from tools.paddle_model import StaticModel, compile_nb, save_layer
from tools.ptq import filters, post_training, reduce_range, set_scales
from tools.ranges import collect, scale_of

RATE, FINAL_RATE, WARM_STEPS = 3e-3, 0.02, 60
BATCH = 64
WEIGHT_DECAY = 0.02
SMOOTHING = 0.05  # of the labels: keeps the outputs from saturating, so that they still rank what is far from a limit
PERCENT = 0.9999  # of the magnitudes that INT8 keeps
OUTPUT_LAYER_FP32 = 1


@dataclass(frozen=True)
class Trained:
    """What a training left: the network, and the loss of each epoch."""

    network: GateNetwork
    losses: tuple[float, ...]


def rate_at(progress: float, step: int) -> float:
    """Linear warm-up, then a cosine over the progress in [0, 1]."""
    return (
        RATE
        * min(1.0, (step + 1) / WARM_STEPS)
        * (FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress)))
    )


def fit(mosaics: Mosaics, labels: np.ndarray, epochs: int, seed: int, name: str = "train") -> Trained:
    """Train a network on packed mosaics (N, 64, 64) and labels (N,), places in `OUTPUTS`."""
    paddle.seed(seed)
    rng = np.random.default_rng(seed)
    network = GateNetwork()
    network.train()
    optimizer = paddle.optimizer.AdamW(RATE, parameters=network.parameters(), weight_decay=WEIGHT_DECAY)
    steps = epochs * (len(labels) // BATCH)
    losses, of_epoch, step = [], [], 0
    bar = tqdm(total=steps, desc=name, mininterval=5)
    for _ in range(epochs):
        for some in np.array_split(rng.permutation(len(labels)), max(1, len(labels) // BATCH)):
            optimizer.set_lr(rate_at(step / max(1, steps), step))
            of_epoch.append(_step(network, optimizer, turned(unpack(mosaics[some]), rng), labels[some]))
            step += 1
            bar.update()
        losses.append(round(float(np.mean(of_epoch)), 4))
        bar.set_postfix_str(f"loss {losses[-1]:.3f}")
        of_epoch = []
    bar.close()
    network.eval()
    return Trained(network, tuple(losses))


def _step(network: GateNetwork, optimizer: Any, batch: np.ndarray, labels: np.ndarray) -> float:
    logits = network(paddle.to_tensor(batch)).flatten(1)
    truth = nn.functional.label_smooth(nn.functional.one_hot(paddle.to_tensor(labels), len(OUTPUTS)), epsilon=SMOOTHING)
    loss = nn.functional.cross_entropy(logits, truth, soft_label=True)
    loss.backward()
    optimizer.step()
    optimizer.clear_grad()
    return float(loss)


def logits_of(network: GateNetwork, mosaics: Mosaics) -> np.ndarray:
    """Outputs (N, outputs) for packed mosaics (N, 64, 64)."""
    parts = []
    with paddle.no_grad():
        for start in range(0, len(mosaics), BATCH):
            parts.append(network(paddle.to_tensor(unpack(mosaics[start : start + BATCH]))).flatten(1).numpy())
    return np.concatenate(parts)


def quantize(network: GateNetwork, calibration: Mosaics, work: Path) -> dict[str, Path]:
    """INT8 models of the network: Paddle model folders by target, `x86_64` and `armv8`, and the FP32 one, `fp32`.

    All convolutions but the last are quantized; weights keep to half the range for x86 (see `tools.ptq`).

    Args:
        calibration: packed mosaics whose activations set the scales.
    """
    folders = {name: work / name for name in ("fp32", "x86_64", "armv8")}
    save_layer(network, folders["fp32"], SPEC)
    tensors = list(unpack(calibration))
    names = list(filters(StaticModel.load(folders["fp32"])))
    kept, skipped = names[:-OUTPUT_LAYER_FP32], names[-OUTPUT_LAYER_FP32:]
    post_training(folders["fp32"], work / "base", tensors[:1], "abs_max", skipped)
    histograms = collect(folders["fp32"], kept, tensors)
    scales = {name: scale_of(histogram, "hist", PERCENT) for name, histogram in histograms.items()}
    for target in ("x86_64", "armv8"):
        model = StaticModel.load(work / "base")
        set_scales(model, scales)
        if target == "x86_64":
            reduce_range(model)
        model.save(folders[target])
    return folders


def compile_all(folders: dict[str, Path], out: Path) -> list[Path]:
    """Both `.nb` of the quantized models."""
    made = []
    for target, places in (("x86_64", "x86"), ("armv8", "arm")):
        made.append(out / f"gate.{target}.int8.nb")
        compile_nb(folders[target], made[-1], places)
    return made


def run_all(predictor: Any, mosaics: Mosaics) -> np.ndarray:
    """Outputs (N, outputs) of any predictor for packed mosaics, one at a time as a device runs them."""
    outputs = [predictor.run(unpack(one[None]))[0].reshape(-1) for one in tqdm(mosaics, "run", mininterval=5)]
    return np.stack(outputs)
