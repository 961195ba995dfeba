"""Train the FP32 detector on both cores; stop it at any time and `--resume` goes on.

One process a core, one thread each, because Paddle's CPU training keeps only one core busy. Each takes a few steps of
its own, then all take the mean of their weights over gloo (local SGD, Stich, arXiv:1805.09767): a process that is held
up by other work on the machine holds up the rest less often than with gradients averaged at each step.
Each epoch draws one random crop of every training board, with synthetic defects on many; the last part of the run
uses full images, so that the network sees the size it will serve. Weights are averaged (EMA), and the average is what
is validated and exported.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paddle
import paddle.distributed as dist
from paddle import nn
from tqdm import tqdm

from edge.boxes import Float
from edge.preprocess import Image
from tools.augment import AugmentConfig, Board, photometric, training_crop
from tools.deeppcb import VALIDATION_GROUPS, Sample, data_hash, read_image, read_index, split
from tools.errors import ToolError
from tools.evaluate import detect_all, figures, truth_of
from tools.loss import LossConfig, detection_loss
from tools.network import STRIDE, Detector, NetworkConfig
from tools.run_record import write_record
from tools.runtimes import LayerPredictor
from tools.synthetic import SyntheticConfig, add_marks, defect_shapes

CHECKPOINT = "last.pdckpt"
FINAL = "final.pdckpt"
PR_SET_PDEATHSIG = 1  # of prctl(2)


@dataclass(frozen=True)
class TrainConfig:
    """The knobs of a run; `python -m tools train --help` explains them."""

    data: str
    out: str
    validation_groups: tuple[str, ...] = VALIDATION_GROUPS
    epochs: int = 90
    minutes: float = 0.0
    max_steps: int = 0
    processes: int = 2
    batch: int = 4
    sync_every: int = 8
    crop: int = 352
    full: int = 640
    full_from: float = 0.88
    rate: float = 2e-3
    final_rate: float = 0.01
    warmup_steps: int = 300
    weight_decay: float = 0.03
    clip_norm: float = 10.0
    ema_decay: float = 0.999
    evaluate_every: int = 6
    seed: int = 1
    resume: bool = False
    start_from: str = ""
    fine: bool = False


def learning_rate(config: TrainConfig, step: int, progress: float) -> float:
    """Linear warm-up in steps, then a cosine over the run's progress in [0, 1]."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    low = config.final_rate
    return config.rate * warm * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def load_boards(samples: Sequence[Sample]) -> list[Board]:
    """All images of the samples in memory: about 0.8 MB a pair."""
    return [Board(read_image(s.test), read_image(s.template), s.xyxy, s.class_id) for s in samples]


@dataclass(frozen=True)
class Variation:
    """How the examples of a part of the run vary."""

    augment: AugmentConfig
    synthetic: SyntheticConfig


CROPS = Variation(AugmentConfig(), SyntheticConfig())
# A second round closer to the real boards: the wide variation alone leaves even the training boards underfitted.
FINE = Variation(AugmentConfig(scale_low=0.8, scale_high=1.6, negative=0.12), SyntheticConfig(share=0.3, most=4))
FULL = Variation(AugmentConfig(scale_low=0.8, scale_high=1.6), SyntheticConfig(share=0.5, most=5))


def make_example(
    board: Board, shapes: Sequence[np.ndarray], size: int, rng: np.random.Generator, how: Variation
) -> tuple[Image, Float, np.ndarray]:
    """One training example: image (size, size), boxes (N, 4), class ids (N,)."""
    image, xyxy, class_id = training_crop(board, size, rng, how.augment)
    image, xyxy, class_id = add_marks(image, xyxy, class_id, shapes, rng, how.synthetic)
    return photometric(image, rng, how.augment), xyxy, class_id


def make_batch(
    boards: Sequence[Board], shapes: Sequence[np.ndarray], size: int, rng: np.random.Generator, how: Variation
) -> tuple[paddle.Tensor, list[tuple[Float, np.ndarray]]]:
    """Images (B, 1, size, size) in [0, 1] and the boxes and classes of each."""
    examples = [make_example(board, shapes, size, rng, how) for board in boards]
    images = np.stack([image for image, _, _ in examples])[:, None].astype(np.float32) / 255
    return paddle.to_tensor(images), [(xyxy, class_id) for _, xyxy, class_id in examples]


class Average:
    """Exponential moving average of parameters and BatchNorm statistics; young averages move faster."""

    def __init__(self, network: nn.Layer, decay: float):
        self.decay = decay
        self.steps = 0
        self.state = {name: value.numpy().copy() for name, value in network.state_dict().items()}

    def update(self, network: nn.Layer, steps: int) -> None:
        """Move towards the network as it is now, `steps` steps after the last call."""
        self.steps += steps
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps)) ** steps
        for name, value in network.state_dict().items():
            mine = self.state[name]
            mine *= keep
            mine += (1 - keep) * value.numpy()


def rename_moments(state: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Optimizer state under the names that the parameters have now; Paddle numbers them anew in each process.

    >>> rename_moments({"conv_1.w_moment1_0": 5, "LR_Scheduler": 1}, {"conv_1.w": "conv_9.w"})
    {'conv_9.w_moment1_0': 5, 'LR_Scheduler': 1}
    """
    renamed = {}
    for key, value in state.items():
        owner = max((old for old in names if key.startswith(f"{old}_")), key=len, default=None)
        renamed[key if owner is None else names[owner] + key[len(owner) :]] = value
    return renamed


class Run:
    """One process of a training run: network, optimizer, average, and where it stands."""

    def __init__(self, config: TrainConfig, rank: int, world: int):
        paddle.seed(config.seed)
        self.config, self.rank, self.world = config, rank, world
        self.network = Detector(NetworkConfig())
        decayed = {p.name for p in self.network.parameters() if p.ndim > 1}
        self.optimizer = paddle.optimizer.AdamW(
            learning_rate=config.rate,
            parameters=self.network.parameters(),
            weight_decay=config.weight_decay,
            apply_decay_param_fun=decayed.__contains__,
            grad_clip=nn.ClipGradByGlobalNorm(config.clip_norm),
        )
        self.average = Average(self.network, config.ema_decay)
        self.epoch = self.step = 0
        self.elapsed_s = 0.0
        self.history: list[dict[str, Any]] = []

    def progress(self) -> float:
        """How far the run is, in [0, 1]: by epochs, or by time if a time was given and it is further."""
        by_epoch = self.epoch / self.config.epochs
        by_time = self.elapsed_s / (60 * self.config.minutes) if self.config.minutes else 0.0
        return min(1.0, max(by_epoch, by_time))

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        state = {
            "network": {k: v.numpy() for k, v in self.network.state_dict().items()},
            "average": self.average.state,
            "average_steps": self.average.steps,
            "optimizer": self.optimizer.state_dict(),
            "names": [p.name for p in self.network.parameters()],
            "epoch": self.epoch,
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "history": self.history,
            "config": asdict(self.config),
        }
        partial = path.with_suffix(".partial")
        paddle.save(state, str(partial))
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        if not path.is_file():
            raise ToolError(f"{path}: missing, so there is nothing to resume; start without --resume")
        state = paddle.load(str(path), return_numpy=True)
        self.network.set_state_dict(state["network"])
        self.average.state = {k: np.array(v) for k, v in state["average"].items()}
        self.average.steps = state["average_steps"]
        now = dict(zip(state["names"], (p.name for p in self.network.parameters()), strict=True))
        self.optimizer.set_state_dict(rename_moments(state["optimizer"], now))
        self.epoch, self.step = state["epoch"], state["step"]
        self.elapsed_s, self.history = state["elapsed_s"], state["history"]

    def begin_with(self, path: Path) -> None:
        """Begin a run of its own with the averaged weights of another run's checkpoint."""
        if not path.is_file():
            raise ToolError(f"{path}: missing, so there are no weights to start from")
        self.network.set_state_dict(paddle.load(str(path), return_numpy=True)["average"])
        self.average = Average(self.network, self.config.ema_decay)

    def train_step(self, images: paddle.Tensor, truth: list[tuple[Float, np.ndarray]]) -> dict[str, float]:
        """One step on this process's own batch."""
        cls, reg = self.network(images)
        loss, parts = detection_loss(cls, reg, truth, STRIDE, LossConfig())
        loss.backward()
        self.optimizer.set_lr(learning_rate(self.config, self.step, self.progress()))
        self.optimizer.step()
        self.optimizer.clear_grad()
        self.step += 1
        return {**parts, "loss": float(loss)}

    def _average_weights(self) -> None:
        """Give every process the mean of all processes' weights and BatchNorm statistics."""
        if self.world == 1:
            return
        state = self.network.state_dict()
        flat = paddle.concat([value.reshape([-1]) for value in state.values()])
        dist.all_reduce(flat)
        mean = flat.numpy() / self.world
        start = 0
        for value in state.values():
            value.set_value(mean[start : start + value.size].reshape(value.shape))
            start += value.size

    def sync(self, steps: int, seconds: float) -> None:
        """Bring the processes together after so many steps of their own, which took so long."""
        self._average_weights()
        self._agree_on_time(seconds)
        if self.rank == 0:
            self.average.update(self.network, steps)

    def _agree_on_time(self, seconds: float) -> None:
        """Add to the elapsed time what the slowest process took, so that all keep the same schedule."""
        took = paddle.to_tensor([seconds], dtype="float32")
        if self.world > 1:
            dist.all_reduce(took, op=dist.ReduceOp.MAX)
        self.elapsed_s += float(took)

    def share(self, count: int) -> list[int]:
        """This process's boards of the epoch, in the epoch's order (same permutation in every process)."""
        order = np.random.default_rng([self.config.seed, self.epoch]).permutation(count)
        even = count - count % self.world
        return [int(i) for i in order[:even][self.rank :: self.world]]


def validate(run: Run, samples: Sequence[Sample]) -> dict[str, Any]:
    """Figures of the averaged weights on the validation boards."""
    network = Detector(NetworkConfig())
    network.set_state_dict(run.average.state)
    found = detect_all(LayerPredictor(network), [read_image(s.test) for s in samples])
    return figures(found, truth_of(samples))


def train_epoch(run: Run, boards: Sequence[Board], shapes: Sequence[np.ndarray], bar: tqdm) -> dict[str, float]:
    """One crop of every board; returns mean losses."""
    config = run.config
    full = run.progress() >= config.full_from
    size = config.full if full else config.crop
    batch = max(1, round(config.batch * (config.crop / size) ** 2))
    how = FINE if config.fine else FULL if full else CROPS
    rng = np.random.default_rng([config.seed, run.epoch, run.rank + 1])
    mine = run.share(len(boards))
    sums: dict[str, float] = {}
    run.network.train()
    steps = max(1, len(mine) // batch)
    start, since = time.monotonic(), 0
    for k in range(steps):
        chosen = [boards[i] for i in mine[k * batch : (k + 1) * batch]]
        parts = run.train_step(*make_batch(chosen, shapes, size, rng, how))
        since += 1
        last = k + 1 == steps or (config.max_steps and run.step >= config.max_steps)
        if since == config.sync_every or last:
            run.sync(since, time.monotonic() - start)
            start, since = time.monotonic(), 0
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + value / steps
        bar.n = round(100 * min(1.0, run.progress() + (k + 1) / steps / config.epochs * (not config.minutes)), 2)
        bar.set_postfix_str(f"epoch {run.epoch + 1} size {size} loss {parts['loss']:.3f}", refresh=False)
        bar.update(0)
        if last:
            break
    run.epoch += 1
    return sums


def end_with_parent() -> None:
    """Have the kernel end this process when the one that started it ends: a killed run leaves nobody training."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def work(config: TrainConfig) -> None:
    """One process of the run, from load to the last checkpoint."""
    if config.processes > 1:
        end_with_parent()
    paddle.set_device("cpu")
    cv2.setNumThreads(1)
    if config.processes > 1:
        dist.init_parallel_env()
    rank, world = (dist.get_rank(), config.processes) if config.processes > 1 else (0, 1)
    run = Run(config, rank, world)
    out = Path(config.out)
    if config.resume:
        run.load(out / CHECKPOINT)
    elif config.start_from:
        run.begin_with(Path(config.start_from))
    train, held = split(read_index(Path(config.data)), config.validation_groups)
    boards = load_boards(train)
    shapes = defect_shapes(boards)
    bar = tqdm(
        total=100.0,
        initial=100 * run.progress(),
        unit="%",
        disable=rank != 0,
        mininterval=5,
        desc="train",
        bar_format="{desc} {percentage:5.1f}% [{elapsed}, left {remaining}] {postfix}",
    )
    while run.progress() < 1 and not (config.max_steps and run.step >= config.max_steps):
        start = time.monotonic()
        losses = train_epoch(run, boards, shapes, bar)
        if rank == 0:
            _close_epoch(run, losses, held, bar, time.monotonic() - start)
        if world > 1:
            dist.barrier()
    bar.close()
    if rank == 0:
        _finish(run, train, held)


def _close_epoch(run: Run, losses: dict[str, float], held: Sequence[Sample], bar: tqdm, took_s: float) -> None:
    note: dict[str, Any] = {"epoch": run.epoch, "step": run.step, "seconds": round(took_s, 1)}
    note.update({name: round(value, 4) for name, value in losses.items()})
    every = run.config.evaluate_every
    if every and run.epoch % every == 0:
        note["validation"] = validate(run, held)
    run.history.append(note)
    tqdm.write(f"{time.strftime('%H:%M:%S')} {note}", file=bar.fp)
    run.save(Path(run.config.out) / CHECKPOINT)


def _finish(run: Run, train: Sequence[Sample], held: Sequence[Sample]) -> None:
    out = Path(run.config.out)
    run.save(out / FINAL)
    result = validate(run, held)
    settings = {
        **asdict(run.config),
        "variation": {"crops": asdict(CROPS), "fine": asdict(FINE), "full": asdict(FULL)},
        "loss": asdict(LossConfig()),
        "network": asdict(NetworkConfig()),
        "train_images": len(train),
        "train_sha256": data_hash(train),
        "validation_sha256": data_hash(held),
    }
    outcome = {"validation": result, "elapsed_s": run.elapsed_s, "steps": run.step, "history": run.history}
    write_record(out / "train.json", "train", settings, outcome)
    print(f"final validation: {result}", flush=True)


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    d = TrainConfig("", "")
    p = argparse.ArgumentParser(prog="python -m tools train", description=__doc__.splitlines()[0])
    p.add_argument("--data", required=True, help="unpacked DeepPCB folder, holds trainval.txt")
    p.add_argument("--out", required=True, help="folder for checkpoints and the run record")
    p.add_argument("--validation-groups", nargs="+", default=list(d.validation_groups), metavar="GROUP")
    p.add_argument("--epochs", type=int, default=d.epochs, help="crops drawn of each board (%(default)s)")
    p.add_argument("--minutes", type=float, default=d.minutes, help="end by this training time; 0: by epochs only")
    p.add_argument("--max-steps", type=int, default=d.max_steps, help="stop early, for a dry run; 0: no")
    p.add_argument("--processes", type=int, default=d.processes, help="one a core (%(default)s)")
    p.add_argument("--batch", type=int, default=d.batch, help="crops a process and step (%(default)s)")
    p.add_argument("--sync-every", type=int, default=d.sync_every, help="own steps between meetings (%(default)s)")
    p.add_argument("--crop", type=int, default=d.crop, help="side of a crop in pixels, times 32 (%(default)s)")
    p.add_argument("--full", type=int, default=d.full, help="side in the last part of the run (%(default)s)")
    p.add_argument("--full-from", type=float, default=d.full_from, help="share of the run on crops (%(default)s)")
    p.add_argument("--rate", type=float, default=d.rate, help="peak learning rate (%(default)s)")
    p.add_argument("--final-rate", type=float, default=d.final_rate, help="last rate as a share (%(default)s)")
    p.add_argument("--warmup-steps", type=int, default=d.warmup_steps)
    p.add_argument("--weight-decay", type=float, default=d.weight_decay)
    p.add_argument("--clip-norm", type=float, default=d.clip_norm, help="of the gradient, over all parameters")
    p.add_argument("--ema-decay", type=float, default=d.ema_decay)
    p.add_argument("--evaluate-every", type=int, default=d.evaluate_every, help="epochs; 0: at the end only")
    p.add_argument("--seed", type=int, default=d.seed)
    p.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    p.add_argument("--start-from", default=d.start_from, metavar="CHECKPOINT", help="weights of another run")
    p.add_argument("--fine", action="store_true", help="a second round: less variation, more real boards")
    return p


def main(arguments: Sequence[str]) -> None:
    """Run the step."""
    values = vars(parser().parse_args(arguments))
    values["validation_groups"] = tuple(values["validation_groups"])
    config = TrainConfig(**values)
    if config.crop % 32 or config.full % 32:
        raise ToolError(f"--crop {config.crop} and --full {config.full} must be multiples of 32")
    split(read_index(Path(config.data)), config.validation_groups)  # refuse bad data before starting processes
    Path(config.out).mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    if config.processes == 1:
        work(config)
    else:
        dist.spawn(work, args=(config,), nprocs=config.processes, backend="gloo")
