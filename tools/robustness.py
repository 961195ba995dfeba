"""Accuracy under what a line does to pictures and under attacks, before and after hardening, in one table.

Corruptions come from `tools.physical`, each at five levels, and together as `field stress`. They follow the seed and
the name of the image, so that every model sees the same pictures. Attacks (PGD, see `tools.attack`) are made with the
gradients of the model's own checkpoint; what ships, an `.nb` for example, then judges their 8-bit pictures through
`edge`'s own code, and the checkpoint itself the unrounded ones (white box).

An attack succeeds on a defect that is found on the clean picture at the recipe's threshold (right class, IoU over 0.33)
and not on the attacked one. The loss rises by false boxes as well as by missed defects, so a second attack does nothing
but hide what is labelled, and a third looks for false alarms on good parts: NG where the clean picture was not.
"""

from __future__ import annotations

import argparse
import textwrap
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from edge import gate
from edge import recipe as recipes
from edge.boxes import Float
from edge.detect import Detector, Predictor
from edge.parity import assign
from edge.preprocess import Image
from edge.recipe import Recipe
from edge.records import Detections
from tools import attack as attacks
from tools.attack import AttackConfig, FalseAlarms, Hide, Scene
from tools.dataset import SPLITS, Dataset, Sample, data_hash, read_dataset, read_image, truth_of
from tools.errors import ToolError
from tools.evaluate import choose_recipe, model_hash, opened, settings_of, thresholds_of
from tools.journal import Journal
from tools.metrics import IOU_DEEPPCB, average_precision, best_f, drop_unknown, match, pool
from tools.objective import Objective
from tools.physical import CORRUPTIONS, LEVELS, corrupt, field_stress
from tools.plots import figure
from tools.run_record import write_record
from tools.train import spread
from tools.verdicts import Rate, Seen, verdict

CLEAN, FIELD = "clean", "field stress"
FIELD_DRAWS = 3  # pictures of each image: what goes wrong is drawn by lot
SHEET_PX = 200  # a picture on the sheet of examples


@dataclass(frozen=True)
class Contender:
    """A model in the table.

    Attributes:
        role: `before` or `after`. model: what ships. checkpoint: whose gradients attack it; None: no attack.
    """

    role: str
    model: Path
    checkpoint: Path | None
    recipe: Recipe

    def depends(self) -> dict[str, str]:
        """What its results depend on."""
        gradients = model_hash(self.checkpoint) if self.checkpoint else ""
        return {"model": model_hash(self.model), "checkpoint": gradients, "recipe": recipes.dump(self.recipe)}


@dataclass(frozen=True)
class Condition:
    """One kind of picture: clean, a corruption at a level, or field stress (level 0)."""

    name: str
    level: int = 0

    @property
    def draws(self) -> int:
        """Pictures of each image."""
        return FIELD_DRAWS if self.name == FIELD else 1

    def __str__(self) -> str:
        return f"{self.name} {self.level}" if self.level else self.name

    def picture(self, image: Image, sample: Sample, seed: int, draw: int = 0) -> Image:
        """The picture of a sample's image under this condition."""
        keys = [zlib.crc32(text.encode()) for text in (self.name, sample.name)]
        rng = np.random.default_rng([seed, self.level, draw, *keys])
        if self.name == CLEAN:
            return image
        if self.name == FIELD:
            return field_stress(image, rng, sample.xyxy)
        return corrupt(image, self.name, self.level, rng, sample.xyxy)


CONDITIONS = (Condition(CLEAN), Condition(FIELD), *(Condition(name, k) for name in CORRUPTIONS for k in LEVELS))


# --- Corruptions ------------------------------------------------------------------------------------------------------


def pictures(data: Dataset, samples: Sequence[Sample], condition: Condition, seed: int) -> Iterator[Image]:
    """All pictures of a condition, draw by draw."""
    for draw in range(condition.draws):
        for sample in samples:
            yield condition.picture(read_image(sample.image, data.spec.channels), sample, seed, draw)


def accuracy(found: Sequence[Detections], samples: Sequence[Sample]) -> dict[str, float]:
    """Pooled AP at an IoU over 0.33, and the threshold of the best F."""
    found, truth = drop_unknown(found, [sample.known for sample in samples]), truth_of(samples)
    correct = [match(detections, *labels, IOU_DEEPPCB) for detections, labels in zip(found, truth, strict=True)]
    ranking = pool(found, truth, correct)
    return {"ap33": round(average_precision(ranking), 5), "best_threshold": round(best_f(ranking)[1], 5)}


def measure_condition(
    data: Dataset,
    samples: Sequence[Sample],
    condition: Condition,
    seed: int,
    contenders: Sequence[Contender],
    predictors: Sequence[Predictor],
) -> dict[str, dict[str, Any]]:
    """Accuracy of every contender on the same pictures, and how many of these its gate would have sent back."""
    pairs = list(zip(contenders, predictors, strict=True))
    detectors = [Detector(predictor, data.spec, settings_of(c.recipe.detect)) for c, predictor in pairs]
    found: list[list[Detections]] = [[] for _ in contenders]
    refused = [0] * len(contenders)
    for picture in pictures(data, samples, condition, seed):
        for k, (contender, detector) in enumerate(zip(contenders, detectors, strict=True)):
            found[k].append(detector.detect(picture))
            refused[k] += gate.check(picture, contender.recipe.gate).cause is not None
    shown = list(samples) * condition.draws
    return {
        contender.role: {**accuracy(found[k], shown), "refused": Rate(refused[k], len(shown)).as_dict()}
        for k, contender in enumerate(contenders)
    }


def under_corruptions(
    data: Dataset,
    samples: Sequence[Sample],
    seed: int,
    contenders: Sequence[Contender],
    predictors: Sequence[Predictor],
    journal: Journal,
) -> dict[str, dict[str, Any]]:
    """What `measure_condition` says, by condition and role."""
    results = {}
    count = {condition: len(samples) * condition.draws for condition in CONDITIONS}
    done = sum(n for condition, n in count.items() if str(condition) in journal)
    with tqdm(total=sum(count.values()), initial=done, desc="corruptions", mininterval=5) as bar:
        for condition in CONDITIONS:
            bar.set_postfix_str(str(condition), refresh=False)
            fresh = str(condition) not in journal
            results[str(condition)] = journal.once(
                str(condition),
                lambda c=condition: measure_condition(data, samples, c, seed, contenders, predictors),
            )
            bar.update(count[condition] if fresh else 0)
    return results


# --- Attacks ----------------------------------------------------------------------------------------------------------


LOSS, HIDING, ALARM = "loss", "hiding", "false alarm"
OBJECTIVES: Mapping[str, Objective | None] = {LOSS: None, HIDING: Hide(), ALARM: FalseAlarms()}
JUDGES = (("device", "device"), ("white_box", "white"))  # name in the results, and in the journal
Judged = list[tuple[Sample, dict[str, Any]]]  # what `Attacker.judge` said of each


class Substitute:
    """A predictor that is given one tensor and always runs that: `edge`'s decoding of values between grey levels."""

    def __init__(self, predictor: Predictor):
        self._predictor = predictor
        self.tensor: Float | None = None

    def run(self, tensor: Float) -> list[Float]:
        """Outputs of the substitute, or of `tensor` while there is none."""
        return self._predictor.run(tensor if self.tensor is None else self.tensor)


def pack(found: Detections) -> dict[str, Any]:
    """Detections as JSON takes them."""
    columns = (found.xyxy.round(2), found.confidence.round(6), found.class_id)
    return {name: column.tolist() for name, column in zip(("xyxy", "confidence", "class_id"), columns, strict=True)}


def unpack(stored: Mapping[str, Any]) -> Detections:
    """The reverse of `pack`."""
    xyxy = np.array(stored["xyxy"], np.float32).reshape(-1, 4)
    return Detections(xyxy, np.array(stored["confidence"], np.float32), np.array(stored["class_id"], np.int64))


class Attacker:
    """Attacks scenes with a checkpoint's gradients and lets the shipped model and the checkpoint judge them."""

    def __init__(self, contender: Contender, predictor: Predictor, data: Dataset, config: AttackConfig, seed: int):
        from tools.runtimes import LayerPredictor, load_network

        if contender.checkpoint is None:
            raise ValueError("an attack needs gradients")
        settings = settings_of(contender.recipe.detect)
        self._config, self._seed = config, seed
        self._network = load_network(contender.checkpoint)
        self._exact = Substitute(LayerPredictor(self._network))
        self._white = Detector(self._exact, data.spec, settings)
        self._device = Detector(predictor, data.spec, settings)

    def judge(self, one: Scene, name: str, kind: str) -> dict[str, Any]:
        """What each judge finds on the clean and on the attacked scene, and how the attack went.

        Args:
            name: of the image. kind: of `OBJECTIVES`.
        """
        rng = np.random.default_rng([self._seed, *(zlib.crc32(text.encode()) for text in (name, kind))])
        done = attacks.attack_scene(self._network, one, self._config, rng, OBJECTIVES[kind])
        white_clean = self._white.detect(one.canvas)
        self._exact.tensor = done.images.numpy()
        white = self._white.detect(one.canvas)
        self._exact.tensor = None
        device = self._device.detect(attacks.in_grey_levels(done, one))
        found = {"white": white, "white_clean": white_clean}
        found |= {"device": device, "device_clean": self._device.detect(one.canvas)}
        return {"note": done.note(), **{key: pack(value) for key, value in found.items()}}


def scene_of(sample: Sample, data: Dataset, template: bool = False) -> Scene:
    """A sample, or its defect-free template, as the network sees it."""
    path = sample.template if template and sample.template is not None else sample.image
    n = 0 if template else len(sample.xyxy)
    image = read_image(path, data.spec.channels)
    return attacks.scene(image, sample.xyxy[:n], sample.class_id[:n], sample.known, data.spec)


def seen_on(one: Scene, found: Detections, sample: Sample) -> Seen:
    """What was found on a scene, in pixels of the picture on it: a recipe's region is none of the padding."""
    rows, columns = (np.flatnonzero(one.inside.any(axis=axis)) for axis in (1, 0))
    corner = np.array([columns[0], rows[0]] * 2, np.float32)
    moved = Detections(found.xyxy - corner, found.confidence, found.class_id)
    return Seen(sample.name, sample.group, moved, size=(len(columns), len(rows)))


def good_samples(samples: Sequence[Sample]) -> list[Sample]:
    """Those with a picture that is known to show no defect: a template, or the image itself."""
    return [s for s in samples if s.template is not None or (not len(s.xyxy) and s.known.all())]


def under_attack(
    attacker: Attacker, data: Dataset, samples: Sequence[Sample], journal: Journal, role: str
) -> dict[str, Judged]:
    """The stored judgements of all attacks by kind: on the images with defects, and on the good ones."""
    bad, good = [sample for sample in samples if len(sample.xyxy)], good_samples(samples)
    work = [(kind, sample) for kind in OBJECTIVES for sample in (good if kind == ALARM else bad)]
    keys = [f"{role} {kind} {sample.name}" for kind, sample in work]
    judged: dict[str, Judged] = {kind: [] for kind in OBJECTIVES}
    done = sum(key in journal for key in keys)
    with tqdm(total=len(keys), initial=done, desc=f"attacks, {role}", mininterval=5) as bar:
        for key, (kind, sample) in zip(keys, work, strict=True):
            fresh = key not in journal

            def work_on(kind: str = kind, sample: Sample = sample) -> dict[str, Any]:
                return attacker.judge(scene_of(sample, data, template=kind == ALARM), sample.name, kind)

            judged[kind].append((sample, journal.once(key, work_on)))
            bar.update(fresh)
    return judged


def hits(found: Detections, truth: tuple[Float, np.ndarray], thresholds: np.ndarray) -> set[int]:
    """Which labels are found at the thresholds."""
    keep = found.confidence >= thresholds[found.class_id]
    sure = Detections(found.xyxy[keep], found.confidence[keep], found.class_id[keep])
    return {int(i) for i in assign(sure, *truth, IOU_DEEPPCB) if i >= 0}


def attack_figures(judged: Judged, data: Dataset, recipe: Recipe, judge: str) -> dict[str, Any]:
    """Success and AP by what one judge (`device` or `white`) found.

    Returns:
        `success`: of the defects found clean, those lost. `escape`: of the bad parts that were NG, those that are OK.
    """
    thresholds = thresholds_of(recipe.detect, data.classes)
    lost = had = passed = caught = 0
    scenes, clean, attacked = [], [], []
    for sample, entry in judged:
        one = scene_of(sample, data)
        pair = [drop_unknown([unpack(entry[key])], [sample.known])[0] for key in (f"{judge}_clean", judge)]
        truth = (one.truth.xyxy, one.truth.class_id)
        before, after = (hits(found, truth, thresholds) for found in pair)
        lost, had = lost + len(before - after), had + len(before)
        kinds = [verdict(seen_on(one, found, sample), recipe.detect, data.classes).value for found in pair]
        caught, passed = caught + (kinds[0] == "NG"), passed + (kinds == ["NG", "OK"])
        scenes.append(replace(sample, xyxy=truth[0]))
        clean.append(pair[0]), attacked.append(pair[1])
    return {
        "ap33_clean": accuracy(clean, scenes)["ap33"],
        "ap33": accuracy(attacked, scenes)["ap33"],
        "success": Rate(lost, had).as_dict(),
        "escape": Rate(passed, caught).as_dict(),
    }


def false_alarm_figures(judged: Judged, data: Dataset, recipe: Recipe, judge: str) -> dict[str, Any]:
    """Of the good parts that were not NG, those that an attack turned NG."""
    fine = turned = 0
    for sample, entry in judged:
        found = (unpack(entry[key]) for key in (f"{judge}_clean", judge))
        one = scene_of(sample, data, template=True)
        kinds = [verdict(seen_on(one, f, sample), recipe.detect, data.classes).value for f in found]
        fine, turned = fine + (kinds[0] != "NG"), turned + (kinds[0] != "NG" and kinds[1] == "NG")
    return Rate(turned, fine).as_dict()


def attack_notes(judged: Judged) -> dict[str, Any]:
    """Means over all attacks, and each of them by the image's name."""
    each = {sample.name: entry["note"] for sample, entry in judged}
    names = next(iter(each.values()), {})
    means = {name: round(float(np.mean([note[name] for note in each.values()])), 6) for name in names}
    return {"mean": means, "each": each}


def attack_result(
    contender: Contender, predictor: Predictor, data: Dataset, samples: Sequence[Sample], args: argparse.Namespace
) -> dict[str, Any]:
    """All figures of the attacks on one contender."""
    config = AttackConfig(args.epsilon, args.step, args.steps)
    depends = {**contender.depends(), "data": data_hash(samples), "attack": asdict(config), "seed": args.seed}
    journal = Journal(args.out / f"attacks-{contender.role}.journal", depends)
    attacker = Attacker(contender, predictor, data, config, args.seed)
    judged, recipe = under_attack(attacker, data, samples, journal, contender.role), contender.recipe
    result: dict[str, Any] = {"attack": asdict(config), "images": len(judged[LOSS])}
    for kind, seen in judged.items():
        measure = false_alarm_figures if kind == ALARM else attack_figures
        result[kind] = {name: measure(seen, data, recipe, judge) for name, judge in JUDGES} | attack_notes(seen)
    return result


def under_attacks(
    data: Dataset,
    samples: Sequence[Sample],
    seen: Mapping[str, Any],
    contenders: Sequence[Contender],
    predictors: Sequence[Predictor],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """The thresholds that each contender is judged by, and the figures of the attacks on those with gradients."""
    results: dict[str, Any] = {"thresholds": {}, "attacks": {}}
    given = {"after": args.recipe, "before": args.before_recipe}
    for contender, predictor in zip(contenders, predictors, strict=True):
        role = contender.role
        judged = with_threshold(contender, given[role], seen[CLEAN][role]["best_threshold"], data)
        results["thresholds"][role] = thresholds_of(judged.recipe.detect, data.classes).round(4).tolist()
        if contender.checkpoint is None:
            print(f"{contender.model}: not attacked, as there is no checkpoint with its gradients")
        else:
            results["attacks"][role] = attack_result(judged, predictor, data, samples, args)
    return results


# --- Tables and pictures ----------------------------------------------------------------------------------------------


ROLE = "role"
# The figures that count: name, and where the results have it.
SUMMARY: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("AP33, clean", ("conditions", CLEAN, ROLE, "ap33")),
    ("AP33, field stress", ("conditions", FIELD, ROLE, "ap33")),
    ("AP33, mean of all corruptions and levels", ("mean", ROLE)),
    ("field stress: sent back by the gate", ("conditions", FIELD, ROLE, "refused", "share")),
    ("AP33 under attack, as shipped", ("attacks", ROLE, LOSS, "device", "ap33")),
    ("AP33 under attack, white box", ("attacks", ROLE, LOSS, "white_box", "ap33")),
    ("attack success, as shipped", ("attacks", ROLE, LOSS, "device", "success", "share")),
    ("attack success, white box", ("attacks", ROLE, LOSS, "white_box", "success", "share")),
    ("success of hiding, as shipped", ("attacks", ROLE, HIDING, "device", "success", "share")),
    ("success of hiding, white box", ("attacks", ROLE, HIDING, "white_box", "success", "share")),
    ("bad parts that hiding gets passed, as shipped", ("attacks", ROLE, HIDING, "device", "escape", "share")),
    ("good parts that an attack gets rejected, as shipped", ("attacks", ROLE, ALARM, "device", "share")),
)


def summary_rows(results: Mapping[str, Any], roles: Sequence[str]) -> list[tuple[str, list[float | None]]]:
    """Name, and value by role, of the figures that count; None: not measured."""

    def get(role: str, keys: Sequence[str]) -> float | None:
        value: Any = results
        for key in keys:
            value = None if value is None else value.get(role if key == ROLE else key)
        return value

    return [(name, [get(role, keys) for role in roles]) for name, keys in SUMMARY]


def mean_accuracy(seen: Mapping[str, Any], role: str) -> float:
    """Mean AP33 over all corruptions and levels."""
    values = [seen[str(condition)][role]["ap33"] for condition in CONDITIONS if condition.level]
    return round(float(np.mean(values)), 5)


def markdown(results: Mapping[str, Any], roles: Sequence[str]) -> str:
    """Both tables, in per cent."""
    seen = results["conditions"]
    lines = [f"| figure, % | {' | '.join(roles)} |", f"|---|{'---:|' * len(roles)}"]
    for name, values in summary_rows(results, roles):
        lines.append(f"| {name} | {' | '.join(map(_percent, values))} |")
    lines += ["", f"| AP33 by level, {' -> '.join(roles)} | {' | '.join(map(str, LEVELS))} |"]
    lines.append(f"|---|{'---:|' * len(LEVELS)}")
    for name in CORRUPTIONS:
        entries = [seen[str(Condition(name, level))] for level in LEVELS]
        cells = [" -> ".join(_percent(entry[role]["ap33"]) for role in roles) for entry in entries]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def draw(results: Mapping[str, Any], roles: Sequence[str], path: Path) -> None:
    """AP over the level for each corruption, and bars of the figures that count."""
    seen, side = results["conditions"], 3
    with figure(path, "AP33 under corruptions and attacks", nrows=side, ncols=side, figsize=(10, 8)) as axes:
        *places, last = axes.flat
        for axis, name in zip(places, CORRUPTIONS, strict=False):
            for role in roles:
                levels = [CLEAN, *(str(Condition(name, level)) for level in LEVELS)]
                axis.plot([0, *LEVELS], [seen[level][role]["ap33"] for level in levels], ".-", label=role)
            axis.set_title(name, fontsize=9), axis.set_ylim(0, 1.02)
        places[0].legend()
        rows = [(name, values) for name, values in summary_rows(results, roles) if None not in values]
        for k, role in enumerate(roles):
            heights = np.arange(len(rows)) + (k - (len(roles) - 1) / 2) * 0.35
            last.barh(heights, [values[k] for _, values in rows], 0.35, label=role)
        last.set_yticks(range(len(rows)), [textwrap.fill(name, 26) for name, _ in rows], fontsize=6)
        last.invert_yaxis()


def write_sheet(data: Dataset, sample: Sample, seed: int, path: Path) -> None:
    """A page of examples: what each corruption makes of one image, a row each, levels from left to right."""
    image = read_image(sample.image, data.spec.channels)
    rows = [[image, *(Condition(name, k).picture(image, sample, seed) for k in LEVELS)] for name in CORRUPTIONS]
    rows.append([Condition(FIELD).picture(image, sample, seed, draw) for draw in range(len(LEVELS) + 1)])
    page = np.vstack([np.hstack([_thumbnail(picture) for picture in row]) for row in rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), page):
        raise ToolError(f"{path}: cannot be written")


def _thumbnail(picture: Image) -> Image:
    height, width = picture.shape[:2]
    size = (SHEET_PX, max(1, round(SHEET_PX * height / width)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.copyMakeBorder(small, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=(128, 128, 128)), np.uint8)


# --- The step ---------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    d = attacks.PGD
    p = argparse.ArgumentParser(prog="python -m tools robustness", description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="dataset folder, made by `import`")
    p.add_argument("--split", choices=SPLITS, default="validation")
    p.add_argument("--model", type=Path, required=True, help="a .nb, .onnx or .pdckpt file, or a model's folder")
    p.add_argument("--checkpoint", type=Path, help="whose gradients attack it; default: the model, if it is one")
    p.add_argument("--recipe", type=Path, help="thresholds; default: for each model that of its best F on clean ones")
    p.add_argument("--before", type=Path, help="the model to compare with")
    p.add_argument("--before-checkpoint", type=Path, help="whose gradients attack that one")
    p.add_argument("--before-recipe", type=Path)
    p.add_argument("--images", type=int, default=0, help="so many, evenly over the split; 0: all")
    p.add_argument("--attack-images", type=int, default=0, help="of these, to attack; 0: all")
    p.add_argument("--epsilon", type=float, default=d.epsilon, help="reach of an attack, white is 1 (%(default)s)")
    p.add_argument("--step", type=float, default=d.step, help="of PGD (%(default)s)")
    p.add_argument("--steps", type=int, default=d.steps, help="of PGD (%(default)s)")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--out", type=Path, required=True, help="folder of robustness.json, .md, .png and its journals")
    return p


def contenders_of(args: argparse.Namespace, data: Dataset) -> list[Contender]:
    """The models of the table, the one before first."""
    rows = [("after", args.model, args.checkpoint, args.recipe)]
    if args.before is not None:
        rows.insert(0, ("before", args.before, args.before_checkpoint, args.before_recipe))
    found = []
    for role, model, checkpoint, recipe in rows:
        gradients = checkpoint or (model if model.suffix == ".pdckpt" else None)
        for path in (model, gradients):
            if path is not None and not path.exists():
                raise ToolError(f"{path}: missing")
        found.append(Contender(role, model, gradients, choose_recipe(recipe, None, data.classes)))
    return found


@contextmanager
def all_open(contenders: Sequence[Contender], data: Dataset) -> Iterator[list[Predictor]]:
    """A predictor for each contender."""
    with ExitStack() as stack:
        yield [stack.enter_context(opened(c.model, data.spec, data.classes)) for c in contenders]


def with_threshold(contender: Contender, chosen: Path | None, best: float, data: Dataset) -> Contender:
    """The contender with the threshold of its best F, unless a recipe was given."""
    if chosen is not None:
        return contender
    return replace(contender, recipe=choose_recipe(None, float(np.clip(best, 0.02, 0.98)), data.classes))


def main(arguments: Sequence[str]) -> None:
    """Run the step; the same command goes on after a stop."""
    args = parser().parse_args(arguments)
    data = read_dataset(args.data)
    samples = spread(data.part(args.split), args.images)
    contenders = contenders_of(args, data)
    roles = [contender.role for contender in contenders]
    depends = {"data": data_hash(samples), "seed": args.seed, **{c.role: c.depends() for c in contenders}}
    journal = Journal(args.out / "robustness.journal", depends)
    write_sheet(data, samples[0], args.seed, args.out / "corruptions.png")
    with all_open(contenders, data) as predictors:
        seen = under_corruptions(data, samples, args.seed, contenders, predictors, journal)
        attacked = under_attacks(data, spread(samples, args.attack_images), seen, contenders, predictors, args)
    means = {role: mean_accuracy(seen, role) for role in roles}
    results = {"images": len(samples), "field_draws": FIELD_DRAWS, "conditions": seen, "mean": means, **attacked}
    write_record(args.out / "robustness.json", "robustness", {**vars(args), "depends": depends}, results)
    table = markdown(results, roles)
    (args.out / "robustness.md").write_text(table, encoding="utf-8")
    draw(results, roles, args.out / "robustness.png")
    print(table)
