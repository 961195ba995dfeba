"""Training of a drift autoencoder: paint a good frame's picture from a noisy one of it.

Pictures are drawn once: each good frame turned and shifted as allowed, a few times over. A step takes pieces of some:
the network is all convolutions, so what it learns on a piece holds for the whole, and costs less. It adds noise,
anew each time, so that the network learns to leave out what differs from pixel to pixel (a denoising autoencoder:
Vincent et al., ICML 2008). The schedule goes by steps, so the same command gives the same network, stopped and resumed
or not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

from edge.boxes import Float
from edge.drift.reconstruct import in_squares, prepare
from edge.preprocess import Image
from tools.autoencoder import Autoencoder, AutoencoderConfig, read_autoencoder, write_autoencoder
from tools.drift_frames import Allowed, moved
from tools.errors import ToolError
from tools.plots import figure
from tools.train import rename_moments

CHECKPOINT = "drift.pdckpt"
NOTE_EVERY = 50  # steps
SAVE_EVERY_S = 30.0


@dataclass(frozen=True)
class TrainConfig:
    """Knobs of the training; the same values and frames give the same network.

    Attributes:
        steps: of `batch` pictures each. rate: peak of the learning rate, which falls as a cosine.
        noise: the most that is added to a picture, standard deviation as a share of white.
        drawn: pictures drawn in all. crop: side of the piece of a picture that is learned from at once, pixels.
    """

    steps: int = 2000
    batch: int = 16
    rate: float = 4e-3
    weight_decay: float = 1e-4
    noise: float = 0.06
    drawn: int = 2000
    crop: int = 128
    seed: int = 1


def draw_pictures(frames: Sequence[Image], config: AutoencoderConfig, how: Allowed, count: int, seed: int) -> Float:
    """Pictures (count, 1, H, W) of the frames in turn, each turned and shifted as allowed."""
    rng = np.random.default_rng([seed, 0])
    turns = tqdm(range(count), "draw pictures", mininterval=5)
    return np.concatenate([prepare(moved(frames[i % len(frames)], how, rng), config.input) for i in turns])


class Training:
    """A training run that can stop after any step."""

    def __init__(self, network: AutoencoderConfig, config: TrainConfig):
        paddle.seed(config.seed)
        self.config = config
        self.network = Autoencoder(network)
        self.rate = paddle.optimizer.lr.CosineAnnealingDecay(
            config.rate, max(1, config.steps), eta_min=config.rate / 50
        )
        self.optimizer = paddle.optimizer.AdamW(
            self.rate, parameters=self.network.parameters(), weight_decay=config.weight_decay
        )
        self.step = 0
        self.elapsed_s = 0.0
        self.losses: list[float] = []  # mean of each NOTE_EVERY steps

    def save(self, path: Path) -> None:
        """Write everything needed to go on."""
        optimizer = {k: v.numpy() if hasattr(v, "numpy") else v for k, v in self.optimizer.state_dict().items()}
        state = {"step": self.step, "elapsed_s": self.elapsed_s, "losses": self.losses, "optimizer": optimizer}
        names = [p.name for p in self.network.parameters()]
        write_autoencoder(path, self.network, train=asdict(self.config), names=names, **state)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ToolError: none there, damaged, or of other settings.
        """
        network, state = read_autoencoder(path)
        same = network.config == self.network.config and state.get("train") == asdict(self.config)
        if not same:
            raise ToolError(f"{path}: begun with other settings: give the same arguments, or start without --resume")
        self.network.set_state_dict(network.state_dict())
        if state["step"] < self.config.steps:
            now = dict(zip(state["names"], (p.name for p in self.network.parameters()), strict=True))
            moments = rename_moments(state["optimizer"], now)
            self.optimizer.set_state_dict({k: _tensor(v) for k, v in moments.items()})
        self.step, self.elapsed_s, self.losses = state["step"], state["elapsed_s"], list(state["losses"])

    def one_step(self, pictures: Float) -> float:
        """Learn from one batch; returns the mean square error."""
        config = self.config
        rng = np.random.default_rng([config.seed, 1, self.step])
        clean = self._pieces(pictures, rng)  # (B, 1, crop, crop)
        amount = rng.uniform(0, config.noise, (config.batch, 1, 1, 1)).astype(np.float32)
        noisy = clean + amount * rng.standard_normal(clean.shape, np.float32)
        painted = self.network(paddle.to_tensor(noisy))
        wanted = paddle.to_tensor(in_squares(clean, tuple(painted.shape)))
        loss = (painted - wanted).square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.clear_grad()
        self.rate.step()
        self.step += 1
        return float(loss)

    def _pieces(self, pictures: Float, rng: np.random.Generator) -> Float:
        """Pieces of random pictures; tiles are not cut."""
        count, _, height, width = pictures.shape
        network = self.network.config
        unit = network.tile or network.cell
        high, wide = (min(side, max(unit, self.config.crop // unit * unit)) for side in (height, width))
        chosen = rng.integers(0, count, self.config.batch)
        tops = unit * rng.integers(0, (height - high) // unit + 1, self.config.batch)
        lefts = unit * rng.integers(0, (width - wide) // unit + 1, self.config.batch)
        picked = zip(chosen, tops, lefts, strict=True)
        return np.stack([pictures[i, :, y : y + high, x : x + wide] for i, y, x in picked])


def _tensor(value: Any) -> Any:
    return paddle.to_tensor(value) if isinstance(value, np.ndarray) else value


def train(run: Training, pictures: Float, checkpoint: Path) -> Autoencoder:
    """Train to the last step and keep a checkpoint; returns the network in evaluation mode.

    Raises:
        ToolError: the loss is no number any more.
    """
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    run.network.train()
    began = saved = time.monotonic()
    before_s, sums = run.elapsed_s, []
    bar = tqdm(range(run.step, run.config.steps), "train", run.config.steps - run.step, mininterval=5)
    for _ in bar:
        sums.append(run.one_step(pictures))
        if run.step % NOTE_EVERY == 0 or run.step == run.config.steps:
            run.losses.append(float(np.mean(sums)))
            bar.set_postfix_str(f"error {run.losses[-1]:.4f}", refresh=False)
            sums = []
            if not np.isfinite(run.losses[-1]):
                raise ToolError(f"the loss is no number after {run.step} steps: use a lower --rate")
            now = time.monotonic()
            run.elapsed_s = before_s + now - began
            if now - saved > SAVE_EVERY_S or run.step == run.config.steps:
                run.save(checkpoint)
                saved = now
    run.network.eval()
    return run.network


def plot_losses(losses: Sequence[float], path: Path) -> None:
    """The mean square error by step."""
    steps = [NOTE_EVERY * (k + 1) for k in range(len(losses))]
    with figure(path, "Training of the drift autoencoder", "step", "mean square error of the picture") as axes:
        axes.semilogy(steps, losses)
