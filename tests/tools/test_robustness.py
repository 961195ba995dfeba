"""The robustness table: the same pictures for all, what counts as a successful attack, and the whole step."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from edge.recipe import DetectRecipe, Recipe
from edge.records import Detections
from tests.tools.tiny import tiny_dataset
from tools import robustness
from tools.attack import Scene
from tools.checkpoint import copy_state, write_checkpoint
from tools.dataset import Dataset, Sample, read_dataset, read_image
from tools.errors import ToolError
from tools.network import Detector, NetworkConfig
from tools.objective import Truth
from tools.physical import CORRUPTIONS
from tools.robustness import (
    CLEAN,
    CONDITIONS,
    FIELD,
    Condition,
    Substitute,
    accuracy,
    attack_figures,
    false_alarm_figures,
    good_samples,
    hits,
    pack,
    scene_of,
    seen_on,
    unpack,
)
from tools.verdicts import verdict

NARROW = {"stem": 8, "width8": 16, "width16": 16, "width32": 16, "depth8": 1, "depth16": 1, "depth32": 1, "neck": 16}
RECIPE = Recipe(detect=DetectRecipe(threshold=0.5, review=0.3))


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return read_dataset(tiny_dataset(tmp_path / "data", templates=True, images=3))


@pytest.fixture
def samples(data: Dataset) -> list[Sample]:
    return data.part("validation")


def found(boxes: Any, confidence: list[float], kinds: Any) -> Detections:
    xyxy = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(xyxy, np.array(confidence, np.float32), np.array(kinds, np.int64))


NOTHING = found([], [], [])


def test_pictures_follow_seed_name_and_draw_and_not_the_choice_of_images(samples: list[Sample]) -> None:
    image = read_image(samples[0].image)
    noise = Condition("noise", 3)
    first = noise.picture(image, samples[0], 1)
    assert np.array_equal(first, noise.picture(image, samples[0], 1))
    assert not np.array_equal(first, noise.picture(image, samples[0], 2)), "another seed"
    assert not np.array_equal(first, noise.picture(image, samples[1], 1)), "another image"
    stress = [Condition(FIELD).picture(image, samples[0], 1, draw).tobytes() for draw in range(3)]
    assert len(set(stress)) == 3
    assert np.array_equal(Condition(CLEAN).picture(image, samples[0], 1), image)


def test_every_corruption_is_measured_at_every_level() -> None:
    names = {str(condition) for condition in CONDITIONS}
    assert len(names) == len(CONDITIONS) == 2 + 5 * len(CORRUPTIONS)
    assert {"clean", "field stress", "glare 1", "jpeg 5"} <= names


def test_hits_need_class_overlap_and_threshold() -> None:
    truth = (np.array([[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]], np.float32), np.array([0, 1, 1]))
    boxes = [[0, 0, 10, 10], [20, 20, 30, 30], [44, 44, 54, 54]]
    thresholds = np.array([0.5, 0.75])
    assert hits(found(boxes, [0.5, 0.75, 0.9], [0, 1, 1]), truth, thresholds) == {0, 1}
    assert hits(found(boxes, [0.49, 0.69, 0.9], [0, 1, 1]), truth, thresholds) == set()
    assert hits(found(boxes[:2], [0.9, 0.9], [1, 0]), truth, thresholds) == set()


def stored(sample: Sample, clean: Detections, attacked: Detections) -> tuple[Sample, dict[str, Any]]:
    return sample, {"device_clean": pack(clean), "device": pack(attacked), "note": {"epsilon": 0.03}}


def test_attack_success_counts_only_defects_that_were_found_before(data: Dataset, samples: list[Sample]) -> None:
    one, two = (s for s in samples if len(s.xyxy) == 1)
    pair = next(s for s in samples if len(s.xyxy) == 2)
    everything = found(pair.xyxy, [0.9, 0.8], pair.class_id)
    half = found(pair.xyxy, [0.9, 0.4], pair.class_id)
    seen = [
        stored(pair, everything, half),  # one of two is lost, and the part is still NG
        stored(one, found(one.xyxy, [0.9], one.class_id), NOTHING),  # lost, and the part passes
        stored(two, NOTHING, NOTHING),  # never found: no success of the attack
    ]
    result = attack_figures(seen, data, RECIPE, "device")
    assert (result["success"]["count"], result["success"]["of"]) == (2, 3)
    assert (result["escape"]["count"], result["escape"]["of"]) == (1, 2)
    assert result["ap33_clean"] == pytest.approx(0.75) and result["ap33"] == pytest.approx(0.5)


def test_false_alarms_count_only_good_parts_that_were_not_rejected_before(data: Dataset, samples: list[Sample]) -> None:
    alarm, doubt = found([[0, 0, 9, 9]], [0.9], [0]), found([[0, 0, 9, 9]], [0.4], [0])
    seen = [stored(s, a, b) for s, a, b in zip(samples, (NOTHING, alarm, doubt), (alarm, alarm, doubt), strict=True)]
    result = false_alarm_figures(seen, data, RECIPE, "device")
    assert (result["count"], result["of"]) == (1, 2)


def test_a_recipes_region_is_of_the_picture_and_not_of_its_padding(samples: list[Sample]) -> None:
    """A picture of 60 x 100 in the middle of 100 x 100."""
    inside = np.zeros((100, 100), bool)
    inside[:, 20:80] = True
    truth = Truth(np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros(0, np.float32), np.ones(2, bool))
    one = Scene(np.zeros((100, 100), np.uint8), truth, inside)
    found_at_30 = seen_on(one, found([[25, 40, 35, 60]], [0.9], [0]), samples[0])
    assert found_at_30.size == (60, 100) and found_at_30.found.xyxy.tolist() == [[5, 40, 15, 60]]
    for region, kind in (((0.0, 0.0, 0.2, 1.0), "NG"), ((0.25, 0.0, 0.25, 1.0), "OK")):
        assert verdict(found_at_30, DetectRecipe(region=region), ("a", "b")).value == kind


def test_classes_that_nobody_looked_for_count_neither_way(samples: list[Sample]) -> None:
    sample = replace(samples[0], known=np.array([True, False]), xyxy=samples[0].xyxy[:1], class_id=np.array([0]))
    alarm = found([sample.xyxy[0], [50, 50, 60, 60]], [0.5, 0.9], [0, 1])
    assert accuracy([alarm], [sample])["ap33"] == 1.0
    assert accuracy([alarm], [replace(sample, known=np.array([True, True]))])["ap33"] == 0.5


def test_detections_survive_the_journal() -> None:
    before = found([[1.25, 2, 30.5, 40]], [0.123456], [1])
    after = unpack(json.loads(json.dumps(pack(before))))
    assert np.array_equal(before.xyxy, after.xyxy) and np.array_equal(before.class_id, after.class_id)
    assert after.confidence == pytest.approx(before.confidence)
    assert len(unpack(json.loads(json.dumps(pack(NOTHING))))) == 0


def test_good_pictures_are_templates_and_images_without_a_defect(data: Dataset, samples: list[Sample]) -> None:
    bare = replace(samples[0], template=None)
    empty = replace(bare, xyxy=bare.xyxy[:0], class_id=bare.class_id[:0])
    partly = replace(empty, known=np.array([True, False]))
    assert good_samples([samples[1], bare, empty, partly]) == [samples[1], empty]
    picture = scene_of(samples[1], data, template=True)
    assert len(picture.truth.xyxy) == 0
    assert np.array_equal(picture.canvas, read_image(samples[1].template))


def test_a_substitute_runs_what_it_is_given() -> None:
    class Echo:
        def run(self, tensor: np.ndarray) -> list[np.ndarray]:
            return [tensor]

    substitute = Substitute(Echo())
    assert substitute.run(np.zeros(2))[0].tolist() == [0, 0]
    substitute.tensor = np.ones(2)
    assert substitute.run(np.zeros(2))[0].tolist() == [1, 1]


def checkpoint(path: Path, data: Dataset, seed: int) -> Path:
    """A network that finds something, if not the right thing: its head is unsure instead of sure of nothing."""
    paddle.seed(seed)
    network = Detector(NetworkConfig(classes=2, **NARROW))
    network.cls.bias.set_value(paddle.full([2], -1.0))
    write_checkpoint(path, network, copy_state(network), data)
    return path


@pytest.fixture
def command(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    few = [c for c in CONDITIONS if not c.level or c.name in ("noise", "jpeg")]
    monkeypatch.setattr(robustness, "CONDITIONS", few)
    monkeypatch.setattr(robustness, "CORRUPTIONS", {"noise": None, "jpeg": None})
    monkeypatch.setattr(robustness, "write_sheet", lambda *_: None)
    before, after = (checkpoint(tmp_path / f"{k}.pdckpt", data, k) for k in (1, 2))
    where = ["--data", str(data.root), "--out", str(tmp_path / "out"), "--images", "2", "--steps", "2"]
    return [*where, "--model", str(after), "--before", str(before)]


def test_the_whole_step(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    robustness.main(command)
    record = json.loads((tmp_path / "out" / "robustness.json").read_text())["results"]
    assert record["images"] == 2 and set(record["conditions"]["noise 5"]) == {"before", "after"}
    for role in ("before", "after"):
        attack = record["attacks"][role]
        assert attack["images"] == 2 and attack["attack"]["steps"] == 2
        for kind in ("loss", "hiding", "false alarm"):
            mean = attack[kind]["mean"]
            assert mean["final_loss"] > mean["first_loss"] and len(attack[kind]["each"]) == 2
            assert 0.027 < mean["largest"] <= 0.0301
        assert attack["false alarm"]["white_box"]["of"] <= 2
        both = attack["loss"]
        assert both["device"]["ap33_clean"] == both["white_box"]["ap33_clean"], "both judges are the same network"
    table = (tmp_path / "out" / "robustness.md").read_text()
    assert "| figure, % | before | after |" in table and "| noise |" in table and "attack success, white box" in table
    assert (tmp_path / "out" / "robustness.png").stat().st_size > 1000

    def again(*_: object) -> None:
        raise AssertionError("a finished piece was made once more")

    monkeypatch.setattr(robustness, "measure_condition", again)
    monkeypatch.setattr(robustness.Attacker, "judge", again)
    robustness.main(command)
    assert json.loads((tmp_path / "out" / "robustness.json").read_text())["results"] == record


def test_a_model_without_gradients_is_measured_but_not_attacked(
    command: list[str], data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tools.paddle_model import save_layer
    from tools.runtimes import load_network

    save_layer(load_network(tmp_path / "2.pdckpt"), tmp_path / "static", data.spec)
    robustness.main([*command[: command.index("--model")], "--model", str(tmp_path / "static")])
    record = json.loads((tmp_path / "out" / "robustness.json").read_text())["results"]
    assert record["attacks"] == {} and "not attacked" in capsys.readouterr().out
    assert "| attack success, white box | - |" in (tmp_path / "out" / "robustness.md").read_text()


@pytest.mark.parametrize("option", ["--model", "--before", "--before-checkpoint"])
def test_a_missing_file_is_named(command: list[str], option: str) -> None:
    with pytest.raises(ToolError, match=r"nowhere\.pdckpt: missing"):
        robustness.main([*command, option, "nowhere.pdckpt"])


@pytest.mark.parametrize("channels", [1, 3])
def test_the_sheet_shows_every_corruption_at_every_level(tmp_path: Path, channels: int) -> None:
    data = read_dataset(tiny_dataset(tmp_path / "data", channels=channels, size=(128, 96)))
    robustness.write_sheet(data, data.samples[0], 1, tmp_path / "sheet.png")
    page = read_image(tmp_path / "sheet.png", channels)
    assert page.shape[:2] == ((len(CORRUPTIONS) + 1) * 152, 6 * 202)
