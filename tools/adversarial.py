"""Train on against attacks: every batch is seen clean and attacked; stop it at any time, the same command goes on.

Mixed training (Madry et al., arXiv:1706.06083): loss = (1 - share) x clean + share x attacked. `--schedule pgd` attacks
with all its steps; `--schedule fast` with a single long one from a random start (Wong et al., arXiv:2001.03994), at a
third of the time a batch, and with all steps on every so manyth batch, because training on single steps alone can
collapse. At the end of each epoch a PGD attack on a fixed part of the validation split tells how far accuracy under
attack is from that on clean images, of the averaged weights and through `edge`'s own decoding.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

from edge.preprocess import InputSpec
from tools.attack import PGD, AttackConfig, Attacked, PinnedLoss, Scene, attack, attack_scene, fast, in_grey_levels
from tools.attack import scene as scene_of
from tools.dataset import Sample, data_hash, read_dataset, read_image
from tools.errors import ToolError
from tools.evaluate import detect_all
from tools.journal import Journal
from tools.metrics import IOU_DEEPPCB, average_precision, rank
from tools.network import Detector
from tools.objective import Batch, LabelLoss, Objective
from tools.plots import figure
from tools.run_record import write_record
from tools.runtimes import LayerPredictor
from tools.stages import lasting, train_once
from tools.train import Hooks, Run, TrainConfig, add_arguments, check, spread

SCHEDULES = ("fast", "pgd")
GAP = 0.05  # clean and attacked AP further apart than this are flagged


@dataclass(frozen=True)
class AdversarialConfig:
    """The knobs of adversarial training; `python -m tools adversarial --help` explains them."""

    share: float = 0.5
    part: float = 1.0
    schedule: str = "fast"
    epsilon: float = PGD.epsilon
    step: float = PGD.step
    steps: int = PGD.steps
    pgd_every: int = 20
    ramp: float = 0.15
    probe_images: int = 16
    probe_steps: int = 5

    def attack(self, batch: int, progress: float) -> AttackConfig:
        """The attack on the batch of that number, at that share of the run in [0, 1]."""
        single = self.schedule == "fast" and not (self.pgd_every and batch % self.pgd_every == self.pgd_every - 1)
        whole = fast(self.epsilon) if single else AttackConfig(self.epsilon, self.step, self.steps)
        # Full strength at once would wash away what the network knows: the attack grows into it.
        return whole.shrunk(min(1.0, 0.1 + 0.9 * progress / self.ramp)) if self.ramp else whole

    def probe(self) -> AttackConfig:
        """The attack at the end of an epoch: few steps, which together reach twice epsilon."""
        return AttackConfig(self.epsilon, 2 * self.epsilon / self.probe_steps, self.probe_steps)


class AdversarialObjective:
    """Another objective, on clean and on attacked images.

    Args:
        inner: what is minimised on both. The attack itself is always on the loss against the labels.
        run: tells how far the training is, seeds the attacks, and in whose folder their log goes.
    """

    def __init__(self, inner: Objective, config: AdversarialConfig, run: Run):
        self._inner, self._config, self._run = inner, config, run
        self._log = AttackLog(Path(run.config.out) / f"attacks-{run.rank}.csv")

    def loss(self, network: Detector, batch: Batch) -> tuple[paddle.Tensor, dict[str, float]]:
        """See `Objective.loss`."""
        share, run = self._config.share, self._run
        count = max(1, math.ceil(self._config.part * len(batch.truth)))
        target = batch if count == len(batch.truth) else Batch(batch.images[:count], batch.truth[:count])
        how = self._config.attack(run.step, run.progress())
        rng = np.random.default_rng([run.config.seed, run.rank, run.step])
        done = attack(network, target, PinnedLoss(run.loss_config), how, rng)
        self._log.add(run.step, how, done)
        # The clean images come last, so that BatchNorm's statistics lean towards what the line will show.
        attacked, _ = self._inner.loss(network, Batch(done.images, target.truth))
        clean, parts = self._inner.loss(network, batch)
        told = {"clean": float(clean), "attacked": float(attacked)}
        told |= {f"attack_{name}": value for name, value in done.note().items()}
        return (1 - share) * clean + share * attacked, {**parts, **told}


class AttackLog:
    """A line of CSV for each attack of a process: step of the run, what was allowed, what came out."""

    def __init__(self, path: Path):
        self._path = path

    def add(self, step: int, how: AttackConfig, done: Attacked) -> None:
        """Append one attack."""
        row = {"step": step, "attack_steps": how.steps, "attack_step": round(how.step, 6), **done.note()}
        fresh = not self._path.is_file()
        with self._path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            if fresh:
                writer.writeheader()
            writer.writerow(row)


# --- At the end of an epoch -------------------------------------------------------------------------------------------


def make_scenes(samples: Sequence[Sample], spec: InputSpec) -> list[Scene]:
    """The images of the samples as the network sees them."""
    return [scene_of(read_image(s.image, spec.channels), s.xyxy, s.class_id, s.known, spec) for s in samples]


def probe(network: Detector, scenes: Sequence[Scene], spec: InputSpec, how: AttackConfig) -> dict[str, Any]:
    """AP of a network on clean and on attacked scenes, pooled, at an IoU over 0.33; and how the attacks went."""
    attacks = [attack_scene(network, one, how, np.random.default_rng(k)) for k, one in enumerate(scenes)]
    pictures = {
        "ap33_clean": [one.canvas for one in scenes],
        "ap33_attacked": [in_grey_levels(done, one) for done, one in zip(attacks, scenes, strict=True)],
    }
    truth = [(one.truth.xyxy, one.truth.class_id) for one in scenes]
    result: dict[str, Any] = {}
    for name, images in pictures.items():
        found = detect_all(LayerPredictor(network), images, spec)
        result[name] = round(average_precision(rank(found, truth, IOU_DEEPPCB)), 5)
    result["gap"] = round(result["ap33_clean"] - result["ap33_attacked"], 5)
    result["parted"] = bool(result["gap"] > GAP)
    means = {name: np.mean([done.note()[name] for done in attacks]) for name in attacks[0].note()}
    return result | {name: round(float(value), 6) for name, value in means.items()}


def verdict(epoch: int, result: dict[str, Any]) -> str:
    """The line an epoch prints.

    >>> verdict(3, {"ap33_clean": 0.98, "ap33_attacked": 0.9, "gap": 0.08, "parted": True, "epsilon": 0.03})
    'epoch 3: AP33 98.0 clean, 90.0 attacked (epsilon 0.03) <-- APART BY 8.0 POINTS, more than 5'
    """
    line = f"epoch {epoch}: AP33 {100 * result['ap33_clean']:.1f} clean, {100 * result['ap33_attacked']:.1f} attacked"
    line += f" (epsilon {result['epsilon']:g})"
    apart = f" <-- APART BY {100 * result['gap']:.1f} POINTS, more than {100 * GAP:g}"
    return line + (apart if result["parted"] else "")


def make_objective(run: Run, config: AdversarialConfig) -> AdversarialObjective:
    """For `tools.train.Hooks`."""
    return AdversarialObjective(LabelLoss(run.loss_config), config, run)


def note(run: Run, held: Sequence[Sample], config: AdversarialConfig) -> dict[str, Any]:
    """For `tools.train.Hooks`: clean and attacked accuracy side by side, printed and kept in the history."""
    scenes = make_scenes(spread(held, config.probe_images), run.data.spec)
    result = probe(run.averaged(), scenes, run.data.spec, config.probe())
    tqdm.write(verdict(run.epoch, result))
    return {"probe": result}


def hooks(config: AdversarialConfig, step: str) -> Hooks:
    """What makes a run of `train` an adversarial one."""
    return Hooks(partial(make_objective, config=config), partial(note, config=config), step)


# --- The step ---------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    d = AdversarialConfig()
    p = argparse.ArgumentParser(prog="python -m tools adversarial", description=__doc__.splitlines()[0])
    add_arguments(p)
    p.add_argument("--share", type=float, default=d.share, help="of the attacked images in the loss (%(default)s)")
    p.add_argument("--part", type=float, default=d.part, help="share of each batch that is attacked (%(default)s)")
    p.add_argument("--schedule", choices=SCHEDULES, default=d.schedule, help="(%(default)s)")
    p.add_argument("--epsilon", type=float, default=d.epsilon, help="reach of an attack, white is 1 (%(default)s)")
    p.add_argument("--step", type=float, default=d.step, help="of PGD (%(default)s)")
    p.add_argument("--steps", type=int, default=d.steps, help="of PGD (%(default)s)")
    p.add_argument("--pgd-every", type=int, default=d.pgd_every, help="fast: each so manyth batch; 0: none")
    p.add_argument("--ramp", type=float, default=d.ramp, help="share of the run in which epsilon grows (%(default)s)")
    p.add_argument("--probe-images", type=int, default=d.probe_images, help="attacked after each epoch (%(default)s)")
    p.add_argument("--probe-steps", type=int, default=d.probe_steps, help="of that attack (%(default)s)")
    return p


def check_settings(config: AdversarialConfig) -> None:
    """Refuse what cannot work.

    Raises:
        ToolError: with what is wrong and what would do.
    """
    for name in ("share", "part"):
        if not 0 < getattr(config, name) <= 1:
            raise ToolError(f"--{name} {getattr(config, name)}: expected a share above 0, at most 1")
    if not 0 <= config.ramp <= 1:
        raise ToolError(f"--ramp {config.ramp}: expected a share from 0 to 1")
    if config.pgd_every < 0:
        raise ToolError(f"--pgd-every {config.pgd_every}: expected a number of batches, or 0 for none")
    if config.probe_images < 1 or config.probe_steps < 1:
        raise ToolError("--probe-images and --probe-steps must be at least 1: without a probe nobody sees it collapse")
    for batch in (0, max(0, config.pgd_every - 1)):  # both kinds of attack of a schedule
        config.attack(batch, 1.0)


def draw(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Clean and attacked AP over the epochs, and where they part."""
    epochs = [entry["epoch"] for entry in history]
    with figure(path, "Accuracy on clean and on attacked validation images", "epoch", "pooled AP33") as axes:
        for name in ("ap33_clean", "ap33_attacked"):
            axes.plot(epochs, [entry["probe"][name] for entry in history], ".-", label=name.removeprefix("ap33_"))
        parted = [entry for entry in history if entry["probe"]["parted"]]
        places = [entry["epoch"] for entry in parted], [entry["probe"]["ap33_attacked"] for entry in parted]
        axes.plot(*places, "rx", label=f"apart by more than {100 * GAP:g} points")
        axes.legend(loc="lower right")


def main(arguments: Sequence[str]) -> None:
    """Run the step; the same command goes on after a stop."""
    values = vars(parser().parse_args(arguments))
    config = AdversarialConfig(**{f.name: values.pop(f.name) for f in fields(AdversarialConfig)})
    training = TrainConfig(**values)
    check_settings(config)
    check(training)
    data, out = read_dataset(Path(training.data)), Path(training.out)
    depends = {"train": lasting(training), "adversarial": asdict(config), "data": data_hash(data.samples)}
    journal = Journal(out / "adversarial.journal", depends)
    train_once(training, hooks(config, "adversarial-training"), journal, "training")
    done = json.loads((out / "adversarial-training.json").read_text(encoding="utf-8"))["results"]
    history = [{"epoch": entry["epoch"], "probe": entry["probe"]} for entry in done["history"]]
    draw(history, out / "adversarial.png")
    parted = [entry["epoch"] for entry in history if entry["probe"]["parted"]]
    result = {"validation": done["validation"], "last": history[-1]["probe"], "parted_in_epochs": parted}
    settings = {**asdict(training), "adversarial": asdict(config), "depends": depends}
    write_record(out / "adversarial.json", "adversarial", settings, {**result, "history": history})
    print(verdict(history[-1]["epoch"], history[-1]["probe"]))
