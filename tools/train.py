"""Train the FP32 detector on all cores; stop it at any time and `--resume` goes on.

One process a core, one thread each, because Paddle's CPU training keeps only one core busy. Each takes a few steps of
its own, then all take the mean of their weights over gloo (local SGD, Stich, arXiv:1805.09767): a process that is held
up by other work on the machine holds up the rest less often than with gradients averaged at each step. More than one
machine: the same command under `python -m paddle.distributed.launch`.
Each epoch draws one random crop of every training image; the last part of the run uses whole images, so that the
network sees the size it will serve. Weights are averaged (EMA), and the average is what is validated and exported.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paddle
import paddle.distributed as dist
from paddle import nn
from tqdm import tqdm

from edge.preprocess import Image, InputSpec
from tools.augment import AugmentConfig, Board, photometric, training_crop
from tools.checkpoint import read_checkpoint, write_checkpoint
from tools.dataset import Dataset, Sample, data_hash, read_dataset, read_image, truth_of
from tools.errors import ToolError
from tools.evaluate import detect_all, figures
from tools.loss import LossConfig
from tools.machine import faster_training
from tools.network import MULTIPLE, TEACHER, Detector, NetworkConfig
from tools.objective import Batch, LabelLoss, Objective, Truth
from tools.physical import PhysicalConfig, mixup, physical, random_erasing
from tools.plots import figure
from tools.processes import launched, together
from tools.run_record import write_record
from tools.runtimes import LayerPredictor
from tools.synthetic import SyntheticConfig, add_marks, defect_shapes

CHECKPOINT = "last.pdckpt"
FINAL = "final.pdckpt"


@dataclass(frozen=True)
class TrainConfig:
    """The knobs of a run; `python -m tools train --help` explains them."""

    data: str
    out: str
    network: str = "default"
    epochs: int = 90
    minutes: float = 0.0
    max_steps: int = 0
    processes: int = 2
    batch: int = 4
    sync_every: int = 8
    crop: int = 320
    full_from: float = 0.88
    rate: float = 2e-3
    final_rate: float = 0.01
    warmup_steps: int = 300
    weight_decay: float = 0.03
    clip_norm: float = 10.0
    ema_decay: float = 0.999
    variation: str = "auto"
    physical: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    smoothing: float = 0.0
    drop_path: float = 0.0
    amp: bool = False
    evaluate_every: int = 6
    validation_images: int = 0
    seed: int = 1
    resume: bool = False
    start_from: str = ""


@dataclass(frozen=True)
class Hooks:
    """What another step puts into a run: its own objective, and a note at the end of each epoch.

    Both are functions of the run, named at module level so that every process of the run finds them.
    """

    objective: Callable[[Run], Objective] | None = None
    note: Callable[[Run, Sequence[Sample]], dict[str, Any]] | None = None
    step: str = "train"  # names the run record


@dataclass(frozen=True)
class Variation:
    """How the examples of a part of the run vary. Without `synthetic` no marks are drawn."""

    augment: AugmentConfig
    synthetic: SyntheticConfig | None = None


_GENERAL = AugmentConfig(rough=0.0, scale_low=0.75, scale_high=1.5)
# By name: the crops, and the whole images of the run's last part. `copper` knows what bare boards look like: almost
# binary, with synthetic defects; `copper-fine` stays closer to the real boards, for a second round.
VARIATIONS = {
    "general": (Variation(_GENERAL), Variation(replace(_GENERAL, scale_low=0.85, scale_high=1.25))),
    "copper": (
        Variation(AugmentConfig(), SyntheticConfig()),
        Variation(AugmentConfig(scale_low=0.8, scale_high=1.6), SyntheticConfig(share=0.5, most=5)),
    ),
    "copper-fine": (
        Variation(AugmentConfig(scale_low=0.8, scale_high=1.6, negative=0.12), SyntheticConfig(share=0.3, most=4)),
        Variation(AugmentConfig(scale_low=0.8, scale_high=1.6), SyntheticConfig(share=0.3, most=4)),
    ),
}
COPPER_CLASSES = ("open", "short", "mousebite", "spur", "copper", "pin-hole")


def choose_variation(name: str, classes: Sequence[str]) -> str:
    """The variation of `auto`: copper for the six defects of bare boards, else the general one.

    >>> choose_variation("auto", ["pitting"])
    'general'
    """
    if name == "auto":
        return "copper" if tuple(classes) == COPPER_CLASSES else "general"
    if name not in VARIATIONS:
        raise ToolError(f"--variation {name}: expected auto or one of {', '.join(VARIATIONS)}")
    if name != "general" and tuple(classes) != COPPER_CLASSES:
        raise ToolError(f"--variation {name} draws defects of copper, and the classes here are {', '.join(classes)}")
    return name


def network_config(name: str, classes: int, channels: int, drop_path: float = 0.0) -> NetworkConfig:
    """The network that `--network` names: `default`, `teacher`, or a JSON file of fields (as `search` writes it).

    Raises:
        ToolError: neither, or fields that no network has.
    """
    chosen: dict[str, Any] = {}
    if name == "teacher":
        chosen = dict(TEACHER)
    elif name != "default":
        try:
            chosen = json.loads(Path(name).read_text(encoding="utf-8"))
            chosen = chosen.get("network", chosen)
        except (OSError, ValueError, AttributeError) as error:
            raise ToolError(f"--network {name}: not `default`, `teacher` or a readable JSON file: {error}") from error
    unknown = set(chosen) - {f.name for f in fields(NetworkConfig)}
    if unknown:
        raise ToolError(f"--network {name}: a network has no {', '.join(sorted(unknown))}")
    try:
        return NetworkConfig(**{**chosen, "classes": classes, "channels": channels, "drop_path": drop_path})
    except (TypeError, ValueError) as error:
        raise ToolError(f"--network {name}: {error}") from error


def learning_rate(config: TrainConfig, step: int, progress: float) -> float:
    """Linear warm-up in steps, then a cosine over the run's progress in [0, 1]."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    low = config.final_rate
    return config.rate * warm * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def load_boards(samples: Sequence[Sample], spec: InputSpec) -> list[Board]:
    """All images of the samples in memory: about 0.8 MB for a grey pair of 640x640."""
    boards = []
    for s in samples:
        image = read_image(s.image, spec.channels)
        template = read_image(s.template, spec.channels) if s.template else None
        scale = min(spec.width / image.shape[1], spec.height / image.shape[0])
        boards.append(Board(image, template, s.xyxy, s.class_id, s.known, scale))
    return boards


@dataclass(frozen=True)
class Examples:
    """What turns a board into an example: variation, and the shares of images that get more than that."""

    how: Variation
    size: tuple[int, int]  # width, height
    shapes: Sequence[np.ndarray]
    physical: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0


def make_example(board: Board, rng: np.random.Generator, examples: Examples) -> tuple[Image, Truth]:
    """One training example."""
    image, truth = training_crop(board, examples.size, rng, examples.how.augment)
    if examples.how.synthetic is not None:
        image, xyxy, class_id = add_marks(
            image, truth.xyxy, truth.class_id, examples.shapes, rng, examples.how.synthetic
        )
        truth = replace(truth, xyxy=xyxy, class_id=class_id, weight=np.ones(len(xyxy), np.float32))
    if rng.random() < examples.physical:
        image = physical(image, truth.xyxy, rng, PhysicalConfig())
    else:
        image = photometric(image, rng, examples.how.augment)
    if rng.random() < examples.erasing:
        image = random_erasing(image, truth.xyxy, rng)
    return image, truth


def make_batch(boards: Sequence[Board], rng: np.random.Generator, examples: Examples) -> Batch:
    """An example of each board; with `mixup`, that share of them blended with another of the batch."""
    made = [make_example(board, rng, examples) for board in boards]
    images, truths = [image for image, _ in made], [truth for _, truth in made]
    if examples.mixup:
        images, truths = mixup(images, truths, rng, examples.mixup)
    return Batch(to_tensor(images), truths)


def to_tensor(images: Sequence[Image]) -> paddle.Tensor:
    """Images (H, W) or (H, W, 3) of one size as (B, C, H, W) in [0, 1]."""
    stack = np.stack(images)
    stack = stack[:, None] if stack.ndim == 3 else stack.transpose(0, 3, 1, 2)
    return paddle.to_tensor(np.ascontiguousarray(stack, np.float32) / np.float32(255))


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

    def __init__(self, config: TrainConfig, data: Dataset, rank: int, world: int, hooks: Hooks | None = None):
        paddle.seed(config.seed)
        self.config, self.data, self.rank, self.world = config, data, rank, world
        self.hooks = hooks or Hooks()
        self.network = Detector(self._network_config())
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

        self.scaler = paddle.amp.GradScaler(enable=config.amp)
        make = self.hooks.objective
        self.objective: Objective = make(self) if make else LabelLoss(self.loss_config)

    def _network_config(self) -> NetworkConfig:
        """The weights that the run starts from say which network it is; else `--network` does."""
        config = self.config
        if config.start_from:
            saved = read_checkpoint(Path(config.start_from))
            refuse_other_data(saved, self.data, Path(config.start_from))
            return replace(saved.network_config, drop_path=config.drop_path)
        return network_config(config.network, len(self.data.classes), self.data.spec.channels, config.drop_path)

    @property
    def loss_config(self) -> LossConfig:
        """The loss against labels, with the run's label smoothing."""
        return LossConfig(smoothing=self.config.smoothing)

    def averaged(self) -> Detector:
        """A network with the averaged weights, in evaluation mode."""
        network = Detector(self.network.config)
        network.set_state_dict(self.average.state)
        network.eval()
        return network

    def progress(self) -> float:
        """How far the run is, in [0, 1]: by epochs, or by time if a time was given and it is further."""
        by_epoch = self.epoch / self.config.epochs
        by_time = self.elapsed_s / (60 * self.config.minutes) if self.config.minutes else 0.0
        return min(1.0, max(by_epoch, by_time))

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        write_checkpoint(
            path,
            self.network,
            self.average.state,
            self.data,
            average_steps=self.average.steps,
            optimizer=self.optimizer.state_dict(),
            names=[p.name for p in self.network.parameters()],
            epoch=self.epoch,
            step=self.step,
            elapsed_s=self.elapsed_s,
            history=self.history,
            config=asdict(self.config),
        )

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        if not path.is_file():
            raise ToolError(f"{path}: missing, so there is nothing to resume; start without --resume")
        saved = read_checkpoint(path)
        refuse_other_data(saved, self.data, path)
        state = saved.state
        self.network.set_state_dict(state["network"])
        self.average.state = {k: np.array(v) for k, v in state["average"].items()}
        self.average.steps = state["average_steps"]
        now = dict(zip(state["names"], (p.name for p in self.network.parameters()), strict=True))
        self.optimizer.set_state_dict(rename_moments(state["optimizer"], now))
        self.epoch, self.step = state["epoch"], state["step"]
        self.elapsed_s, self.history = state["elapsed_s"], state["history"]

    def begin_with(self, path: Path) -> None:
        """Begin a run of its own with the averaged weights of another run's checkpoint."""
        self.network.set_state_dict(read_checkpoint(path).state["average"])
        self.average = Average(self.network, self.config.ema_decay)

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One step on this process's own batch."""
        mixed = paddle.amp.auto_cast() if self.config.amp else contextlib.nullcontext()
        with mixed:
            loss, parts = self.objective.loss(self.network, batch)
        self.scaler.scale(loss).backward()
        self.optimizer.set_lr(learning_rate(self.config, self.step, self.progress()))
        self.scaler.step(self.optimizer)
        self.scaler.update()
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


def refuse_other_data(saved: Any, data: Dataset, path: Path) -> None:
    """Check that a checkpoint was made for these classes and this kind of image.

    Raises:
        ToolError: it was not.
    """
    if saved.classes != data.classes or saved.spec.channels != data.spec.channels:
        raise ToolError(
            f"{path}: knows {', '.join(saved.classes)} on {saved.spec.channels} channels, and the data has "
            f"{', '.join(data.classes)} on {data.spec.channels}: start without it"
        )


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """`count` of the samples, evenly over all; all of them for 0."""
    if not count or count >= len(samples):
        return list(samples)
    return [samples[i] for i in np.linspace(0, len(samples) - 1, count).round().astype(int)]


def validate(run: Run, samples: Sequence[Sample]) -> dict[str, Any]:
    """Figures of the averaged weights on the samples."""
    spec = run.data.spec
    images = (read_image(s.image, spec.channels) for s in samples)
    found = detect_all(LayerPredictor(run.averaged()), images, spec)
    return figures(found, truth_of(samples), run.data.classes)


def examples_now(run: Run, shapes: Sequence[np.ndarray]) -> Examples:
    """How examples are made at this point of the run: square crops, and whole images in its last part."""
    config, spec = run.config, run.data.spec
    crops, whole = VARIATIONS[choose_variation(config.variation, run.data.classes)]
    full = run.progress() >= config.full_from
    size = (spec.width, spec.height) if full else (config.crop, config.crop)
    return Examples(whole if full else crops, size, shapes, config.physical, config.erasing, config.mixup)


def train_epoch(run: Run, boards: Sequence[Board], shapes: Sequence[np.ndarray], bar: tqdm) -> dict[str, float]:
    """One crop of every board; returns mean losses."""
    config = run.config
    examples = examples_now(run, shapes)
    batch = max(1, round(config.batch * config.crop**2 / (examples.size[0] * examples.size[1])))
    rng = np.random.default_rng([config.seed, run.epoch, run.rank + 1])
    paddle.seed(int(rng.integers(1 << 31)))  # DropPath draws from Paddle's own generator: a resumed run draws the same
    mine = run.share(len(boards))
    sums: dict[str, float] = {}
    run.network.train()
    steps = max(1, len(mine) // batch)
    start, since = time.monotonic(), 0
    for k in range(steps):
        chosen = [boards[i] for i in mine[k * batch : (k + 1) * batch]]
        parts = run.train_step(make_batch(chosen, rng, examples))
        since += 1
        last = k + 1 == steps or (config.max_steps and run.step >= config.max_steps)
        if since == config.sync_every or last:
            run.sync(since, time.monotonic() - start)
            start, since = time.monotonic(), 0
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + value / steps
        bar.n = round(100 * min(1.0, run.progress() + (k + 1) / steps / config.epochs * (not config.minutes)), 2)
        size = "x".join(map(str, examples.size))
        bar.set_postfix_str(f"epoch {run.epoch + 1} size {size} loss {parts['loss']:.3f}", refresh=False)
        bar.update(0)
        # A run by time ends within an epoch: one of whole images can take minutes.
        if last or (config.minutes and since == 0 and run.progress() >= 1):
            break
    run.epoch += 1
    return sums


def work(config: TrainConfig, hooks: Hooks | None = None) -> None:
    """One process of the run, from load to the last checkpoint."""
    paddle.set_device("gpu" if paddle.device.is_compiled_with_cuda() and not launched() else "cpu")
    cv2.setNumThreads(1)
    rank, world = 0, 1
    if launched():
        dist.init_parallel_env()
        rank, world = dist.get_rank(), dist.get_world_size()
    data = read_dataset(Path(config.data))
    run = Run(config, data, rank, world, hooks)
    if config.resume:
        run.load(Path(config.out) / CHECKPOINT)
    elif config.start_from:
        run.begin_with(Path(config.start_from))
    boards = load_boards(data.part("train"), data.spec)
    shapes = defect_shapes(boards) if choose_variation(config.variation, data.classes) != "general" else []
    held = spread(data.part("validation"), config.validation_images)
    with progress_bar(run) as bar:
        while run.progress() < 1 and not (config.max_steps and run.step >= config.max_steps):
            start = time.monotonic()
            losses = train_epoch(run, boards, shapes, bar)
            if rank == 0:
                _close_epoch(run, losses, held, bar, time.monotonic() - start)
            if world > 1:
                dist.barrier()
    if rank == 0:
        _finish(run)


def progress_bar(run: Run) -> tqdm:
    """A bar in per cent of the run with the time left; only the first process shows it."""
    return tqdm(
        total=100.0,
        initial=100 * run.progress(),
        unit="%",
        disable=run.rank != 0,
        mininterval=5,
        desc=run.hooks.step,
        bar_format="{desc} {percentage:5.1f}% [{elapsed}, left {remaining}] {postfix}",
    )


def _close_epoch(run: Run, losses: dict[str, float], held: Sequence[Sample], bar: tqdm, took_s: float) -> None:
    note: dict[str, Any] = {"epoch": run.epoch, "step": run.step, "seconds": round(took_s, 1)}
    note.update({name: round(value, 4) for name, value in losses.items()})
    every = run.config.evaluate_every
    if every and run.epoch % every == 0:
        note["validation"] = validate(run, held)
    if run.hooks.note is not None:
        note.update(run.hooks.note(run, held))
    refuse_nonsense(run)
    run.history.append(note)
    tqdm.write(f"{time.strftime('%H:%M:%S')} {note}", file=bar.fp)
    run.save(Path(run.config.out) / CHECKPOINT)


def refuse_nonsense(run: Run) -> None:
    """Check that every averaged weight is a number, before the checkpoint of an epoch replaces the one before.

    Raises:
        ToolError: one is not.
    """
    broken = [name for name, value in run.average.state.items() if not np.isfinite(value).all()]
    if broken:
        raise ToolError(
            f"epoch {run.epoch} left weights that are not numbers ({broken[0]}, {len(broken)} tensors): go on from the "
            f"checkpoint of the epoch before with --resume and a lower --rate than {run.config.rate:g}"
        )


def _finish(run: Run) -> None:
    out, config, data = Path(run.config.out), run.config, run.data
    run.save(out / FINAL)
    train, held = data.part("train"), data.part("validation")
    result = validate(run, held)
    crops, whole = VARIATIONS[choose_variation(config.variation, data.classes)]
    settings = {
        **asdict(config),
        "variations": {"crops": asdict(crops), "whole": asdict(whole)},
        "loss": asdict(run.loss_config),
        "network": run.network.config.as_dict(),
        "parameters": int(sum(p.size for p in run.network.parameters())),
        "train_images": len(train),
        "train_sha256": data_hash(train),
        "validation_images": len(held),
        "validation_sha256": data_hash(held),
    }
    outcome = {"validation": result, "elapsed_s": run.elapsed_s, "steps": run.step, "history": run.history}
    write_record(out / f"{run.hooks.step}.json", run.hooks.step, settings, outcome)
    plot_history(run.history, out / f"{run.hooks.step}.png")
    print(f"final validation: {result}", flush=True)


def plot_history(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss by epoch, and pooled AP33 where it was measured."""
    with figure(path, "Training", ncols=2, figsize=(9, 3.6)) as (left, right):
        left.plot([n["epoch"] for n in history], [n["loss"] for n in history])
        left.set_xlabel("epoch")
        left.set_ylabel("loss")
        measured = [n for n in history if "validation" in n]
        right.plot([n["epoch"] for n in measured], [n["validation"]["ap33_pooled"] for n in measured], "o-")
        right.set_xlabel("epoch")
        right.set_ylabel("pooled AP33, validation, averaged weights")


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools train", description=__doc__.splitlines()[0])
    add_arguments(p)
    return p


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The knobs of `TrainConfig`, for this step and for those that train on."""
    d = TrainConfig("", "")
    p.add_argument("--data", required=True, help="dataset folder, holds dataset.json")
    p.add_argument("--out", required=True, help="folder for checkpoints and the run record")
    p.add_argument("--network", default=d.network, help="default, teacher, or a JSON file of `search` (%(default)s)")
    p.add_argument("--epochs", type=int, default=d.epochs, help="crops drawn of each image (%(default)s)")
    p.add_argument("--minutes", type=float, default=d.minutes, help="end by this training time; 0: by epochs only")
    p.add_argument("--max-steps", type=int, default=d.max_steps, help="stop early, for a dry run; 0: no")
    p.add_argument("--processes", type=int, default=d.processes, help="one a core (%(default)s)")
    p.add_argument("--batch", type=int, default=d.batch, help="crops a process and step (%(default)s)")
    p.add_argument("--sync-every", type=int, default=d.sync_every, help="own steps between meetings (%(default)s)")
    p.add_argument("--crop", type=int, default=d.crop, help="side of a crop in pixels, times 32 (%(default)s)")
    p.add_argument("--full-from", type=float, default=d.full_from, help="share of the run on crops (%(default)s)")
    p.add_argument("--rate", type=float, default=d.rate, help="peak learning rate (%(default)s)")
    p.add_argument("--final-rate", type=float, default=d.final_rate, help="last rate as a share (%(default)s)")
    p.add_argument("--warmup-steps", type=int, default=d.warmup_steps)
    p.add_argument("--weight-decay", type=float, default=d.weight_decay)
    p.add_argument("--clip-norm", type=float, default=d.clip_norm, help="of the gradient, over all parameters")
    p.add_argument("--ema-decay", type=float, default=d.ema_decay)
    p.add_argument("--variation", default=d.variation, help=f"auto, {', '.join(VARIATIONS)} (%(default)s)")
    p.add_argument("--physical", type=float, default=d.physical, help="share with glare, blur, noise, occlusion, ...")
    p.add_argument("--erasing", type=float, default=d.erasing, help="share with RandomErasing")
    p.add_argument("--mixup", type=float, default=d.mixup, help="share blended with another image")
    p.add_argument("--smoothing", type=float, default=d.smoothing, help="label smoothing, 0 to 0.3")
    p.add_argument("--drop-path", type=float, default=d.drop_path, help="most probable skip of a block, 0 to 0.5")
    p.add_argument("--amp", action="store_true", help="mixed precision, on a GPU")
    p.add_argument("--evaluate-every", type=int, default=d.evaluate_every, help="epochs; 0: at the end only")
    p.add_argument("--validation-images", type=int, default=d.validation_images, help="at an epoch's end; 0: all")
    p.add_argument("--seed", type=int, default=d.seed)
    p.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    p.add_argument("--start-from", default=d.start_from, metavar="CHECKPOINT", help="weights of another run")


def check(config: TrainConfig) -> None:
    """Refuse, before any process starts, what cannot work.

    Raises:
        ToolError, DataError: with what is wrong and what would do.
    """
    data = read_dataset(Path(config.data))
    sizes = {"--crop": config.crop, "the input's width": data.spec.width, "the input's height": data.spec.height}
    for name, value in sizes.items():
        if value <= 0 or value % MULTIPLE:
            raise ToolError(f"{name} is {value}, and must be a positive multiple of {MULTIPLE}")
    for name in ("physical", "erasing", "mixup", "smoothing", "drop_path", "full_from"):
        if not 0 <= getattr(config, name) <= 1:
            raise ToolError(f"--{name.replace('_', '-')} {getattr(config, name)}: expected a share from 0 to 1")
    if config.amp and not paddle.device.is_compiled_with_cuda():
        raise ToolError("--amp needs a GPU build of Paddle, and this one runs on the CPU only: leave it out")
    choose_variation(config.variation, data.classes)
    network_config(config.network, len(data.classes), data.spec.channels)
    data.part("train")
    data.part("validation")


def run_all(config: TrainConfig, hooks: Hooks | None = None) -> None:
    """Check, start the processes, train, and wait for them."""
    check(config)
    Path(config.out).mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    faster_training()
    if config.processes == 1 or launched():
        work(config, hooks)
    else:
        together(work, (config, hooks), config.processes)


def main(arguments: Sequence[str]) -> None:
    """Run the step."""
    run_all(TrainConfig(**vars(parser().parse_args(arguments))))
