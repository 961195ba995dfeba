"""Mining: each score by hand, the choice on planted cases, labels read back, and the step on a folder of evidence."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paddle
import pytest

from edge.records import Detections
from tests.tools.seeing import SeeingPredictor
from tests.tools.tiny import tiny_dataset
from tools import mining
from tools.checkpoint import copy_state, write_checkpoint
from tools.dataset import Dataset, read_dataset, read_image
from tools.errors import DataError, ToolError
from tools.evaluate import choose_recipe
from tools.formats.raw import Problems
from tools.journal import Journal
from tools.mine import Looked, Looker, Pick, Watched, look_at_all, main, prelabels, read_anomaly, unusual
from tools.mining import DISAGREE, DIVERSE, NEAR, UNUSUAL, Finding
from tools.model_info import Purpose, purpose_of
from tools.network import Detector, NetworkConfig
from tools.prelabels import WRITERS, Prelabelled, unique_names

CLASSES = ("hole", "bar")
A, B = [10, 10, 30, 30], [50, 40, 70, 60]


def boxes(*rows: tuple[list[float], float, int]) -> Detections:
    return Detections(
        np.array([r[0] for r in rows], np.float32).reshape(-1, 4),
        np.array([r[1] for r in rows], np.float32),
        np.array([r[2] for r in rows], np.int64),
    )


def test_nearness_is_that_of_the_nearest_box_to_its_own_threshold() -> None:
    found = mining.near_threshold(boxes((A, 0.95, 0), (B, 0.68, 1)), np.array([0.5, 0.7]), CLASSES)
    assert found.score > 0.9 and found.text == "bar 0.68, threshold 0.70"
    assert mining.near_threshold(boxes(), np.array([0.5, 0.5]), CLASSES).score == 0.0


@pytest.mark.parametrize(
    ("other", "score", "text"),
    [
        pytest.param(boxes((A, 0.7, 0)), 0.1, "hole 0.80, other 0.70", id="less sure"),
        pytest.param(boxes(), 0.8, "hole 0.80, other 0.00", id="missed"),
        pytest.param(boxes((A, 0.8, 0), (B, 0.6, 1)), 0.6, "bar 0.00, other 0.60", id="only the other sees it"),
        pytest.param(boxes((A, 0.8, 1)), 0.8, "hole 0.80, other 0.00", id="another class is another finding"),
        pytest.param(boxes((B, 0.9, 0)), 0.9, "hole 0.00, other 0.90", id="another place is another finding"),
    ],
)
def test_disagreement(other: Detections, score: float, text: str) -> None:
    finding = mining.disagreement(boxes((A, 0.8, 0)), other, CLASSES, "other")
    assert finding.score == pytest.approx(score, abs=1e-6) and finding.text == text


def test_agreement_is_no_finding() -> None:
    assert mining.disagreement(boxes((A, 0.8, 0)), boxes((A, 0.8, 0)), CLASSES, "other") == Finding(0.0)


@pytest.mark.parametrize("axis", [0, 1])
def test_boxes_come_back_from_the_mirror(axis: int, tmp_path: Path) -> None:
    data = read_dataset(tiny_dataset(tmp_path, size=(96, 64)))
    sample = data.samples[1]
    image = read_image(sample.image)
    looker = Looker(SeeingPredictor(data.spec), None, Purpose(data.classes, data.spec, ""), recipe())
    found = looker._first.detect(image)
    back = mining.mirror_back(looker._first.detect(mining.mirrored(image, axis)), axis, 96, 64)
    assert len(found) == len(back) == 2
    order = [int(np.abs(back.xyxy - box).sum(axis=1).argmin()) for box in found.xyxy]
    np.testing.assert_allclose(back.xyxy[order], found.xyxy, atol=1.1)


def recipe() -> Any:
    return choose_recipe(None, None, CLASSES).detect


def test_of_look_alikes_the_most_worthwhile_stays() -> None:
    keep = mining.keep_one_of_each([(0, 1), (1, 2), (3, 4)], np.array([0.2, 0.9, 0.3, 0.5, 0.5]))
    assert keep.tolist() == [False, True, False, True, False]


@pytest.mark.parametrize("count", [1, 4, 10, 33])
def test_quotas_add_up(count: int) -> None:
    given = mining.quotas(count, [NEAR, DISAGREE, UNUSUAL, DIVERSE])
    assert sum(given.values()) == count and max(given.values()) - min(given.values()) <= count // 5 + 1


def test_each_reason_gets_its_best_and_nothing_twice() -> None:
    rng = np.random.default_rng(0)
    features, none = rng.normal(size=(40, 3)), np.empty((0, 3))
    near, disagree = np.zeros(40), np.zeros(40)
    near[[3, 4, 5, 6]], disagree[[5, 7, 8]] = [0.9, 0.8, 0.7, 0.1], [0.9, 0.6, 0.1]
    chosen = mining.choose({NEAR: near, DISAGREE: disagree}, features, none, np.ones(40, bool), 10)
    by = {reason: {row for row, r in chosen if r == reason} for _, reason in chosen}
    assert by[NEAR] == {3, 4, 5} and by[DISAGREE] == {7}  # 6 and 8 are under what counts, 5 is taken
    assert len({row for row, _ in chosen}) == 10 and len(by[DIVERSE]) == 6


def test_what_may_not_be_used_is_not_chosen() -> None:
    usable = np.array([False, True, True, False])
    chosen = mining.choose({NEAR: np.ones(4)}, np.eye(4), np.empty((0, 4)), usable, 9)
    assert sorted(row for row, _ in chosen) == [1, 2]


def test_diverse_ones_are_far_from_the_training_set_and_from_each_other() -> None:
    features = np.array([[0.0], [0.1], [5.0], [5.1], [-9.0]])
    chosen = mining.choose({}, features, np.array([[0.0]]), np.ones(5, bool), 2)
    assert [row for row, _ in chosen] == [4, 3]


def looked(anomaly: float | None = None) -> Looked:
    return Looked(Path("x.png"), 9, 9, boxes(), np.zeros(2), {}, anomaly)


def test_unusual_goes_by_the_devices_score_where_there_is_one() -> None:
    found = unusual([looked(0.1), looked(3.0), looked(None)], np.zeros((3, 2)), np.zeros((0, 2)))
    assert [f.score for f in found[:2]] == [0.0, 0.5] and np.isnan(found[2].score)
    assert found[1].text == "anomaly 3, over 50% of them"


def test_unusual_is_else_what_is_far_from_the_training_set() -> None:
    reference = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    found = unusual([looked()] * 3, np.array([[0.5, 0.5], [9, 9], [0, 0.5]]), reference)
    assert found[1].score == pytest.approx(2 / 3) and found[1].text.endswith("x the usual distance")
    assert all(np.isnan(f.score) for f in unusual([looked()], np.zeros((1, 2)), np.zeros((0, 2))))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"schema": "edge.result.v1", "anomaly": 2.5, "verdict": "NG"}', 2.5),
        ('{"scores": {"anomaly": 4}}', 4.0),
        ('{"anomaly": null}', None),
        ('{"shapes": []}', None),
        ("[1, 2]", None),
    ],
)
def test_the_anomaly_beside_an_image(tmp_path: Path, text: str, value: float | None) -> None:
    (tmp_path / "a.json").write_text(text)
    assert read_anomaly(tmp_path / "a.png") == value
    assert read_anomaly(tmp_path / "b.png") is None


@pytest.mark.parametrize(("text", "said"), [("{", "cannot be read as JSON"), ('{"anomaly": "high"}', "expected a num")])
def test_a_bad_sidecar_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=f"a.json: .*{said}"):
        read_anomaly(tmp_path / "a.png")


def test_names_differ_without_their_suffix() -> None:
    files = [Path("r/x/1.png"), Path("r/x_1.jpg"), Path("r/X/1.bmp"), Path("r/2.png")]
    names = unique_names(files, Path("r"))
    assert names[0] == "x_1.png" and len({Path(n).stem.lower() for n in names}) == 4


@pytest.mark.parametrize("name", WRITERS)
def test_labels_read_back_as_they_were_written(name: str, tmp_path: Path) -> None:
    images = []
    for k, found in enumerate((boxes((A, 0.8, 1), ([0, 0, 80, 60], 0.4, 0)), boxes())):
        file = tmp_path / "evidence" / f"{k}.png"
        file.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(file), np.full((60, 80), 100, np.uint8))
        images.append(Prelabelled(file, f"board_{k}.png", 80, 60, found))
    classes = ("pin-hole", 'bar: "wide"')
    WRITERS[name](images, classes, tmp_path / "out")
    problems = Problems()
    data = importlib.import_module(f"tools.formats.{name}").read(tmp_path / "out", problems)
    assert problems.found == [] and [Path(image.name).name for image in data.images] == ["board_0.png", "board_1.png"]
    size = np.array([80, 60, 80, 60]) if name == "yolo" else 1
    read = [(np.array(box.xyxy) * size, box.label) for box in data.images[0].boxes or ()]
    assert [label for _, label in read] == ['bar: "wide"', "pin-hole"]
    np.testing.assert_allclose([xyxy for xyxy, _ in read], [A, [0, 0, 80, 60]], atol=1e-3)
    assert data.images[1].boxes == ()  # looked at, and nothing found
    assert data.classes == (() if name == "labelme" else classes)
    assert images[0].file.read_bytes() == data.images[0].path.read_bytes()


def test_only_boxes_that_matter_to_a_verdict_become_labels() -> None:
    item = Looked(Path("x.png"), 80, 60, boxes((A, 0.6, 0), (B, 0.35, 1), (B, 0.1, 0)), np.zeros(2), {}, None)
    labels = prelabels([Pick(item, "x.png", NEAR, ("",))], recipe(), CLASSES)
    assert labels[0].found.confidence.tolist() == pytest.approx([0.6, 0.35])


SMALL = NetworkConfig(classes=2, stem=8, width8=8, width16=8, width32=8, depth8=1, depth16=1, depth32=1, neck=8)


@pytest.fixture
def tiny(tmp_path: Path) -> Dataset:
    return read_dataset(tiny_dataset(tmp_path / "data", images=6))


@pytest.fixture
def checkpoint(tiny: Dataset, tmp_path: Path) -> Path:
    paddle.seed(5)
    network = Detector(SMALL)
    network.cls.bias.set_value(paddle.full([2], -0.5))  # sure enough for boxes
    write_checkpoint(tmp_path / "last.pdckpt", network, copy_state(network), tiny)
    return tmp_path / "last.pdckpt"


def test_a_checkpoint_describes_what_it_sees(checkpoint: Path) -> None:
    watched = Watched(checkpoint)
    outputs = watched.run(np.zeros((1, 1, 96, 96), np.float32))
    first = watched.pooled
    watched.run(np.ones((1, 1, 96, 96), np.float32))
    assert [out.shape for out in outputs] == [(1, 2, 12, 12), (1, 4, 12, 12)]
    assert first.shape == (16,) and not np.allclose(first, watched.pooled)


@pytest.fixture
def evidence(tiny: Dataset, tmp_path: Path) -> Path:
    """The validation images, one of them twice, one training image, an unreadable file and two sidecars."""
    folder = tmp_path / "evidence"
    (folder / "night").mkdir(parents=True)
    for k, sample in enumerate(tiny.part("validation")):
        shutil.copy(sample.image, folder / f"{k}.png")
    shutil.copy(folder / "0.png", folder / "night" / "again.png")
    shutil.copy(tiny.part("train")[0].image, folder / "known.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "1.json").write_text('{"anomaly": 9.5}')
    (folder / "2.json").write_text('{"anomaly": 0.5}')
    return folder


def test_the_step_picks_labels_and_says_why(tiny: Dataset, checkpoint: Path, evidence: Path, tmp_path: Path) -> None:
    out = tmp_path / "picked"
    arguments = ["--images", str(evidence), "--model", str(checkpoint), "--like", str(tiny.root), "--out", str(out)]
    main([*arguments, "--count", "5", "--format", "coco,yolo"])
    results = json.loads((out / "mine.json").read_text())["results"]
    files = [pick["file"] for pick in results["picks"]]
    assert len(files) == len(set(files)) == 5 and "known.png" not in files
    assert len({"0.png", "night/again.png"} & set(files)) <= 1
    assert results["look_alikes"] == 2 and any("broken.jpg" in text for text in results["problems"])
    assert all(pick["why"] for pick in results["picks"])
    assert (out / "sheet_1.png").is_file() and (out / "mine.png").is_file() and not (out / "labelme").exists()
    coco = importlib.import_module("tools.formats.coco").read(out / "coco", Problems())
    assert len(coco.images) == 5 and coco.classes == tiny.classes


def test_new_evidence_does_not_undo_what_was_looked_at(tiny: Dataset, evidence: Path, tmp_path: Path) -> None:
    (evidence / "broken.jpg").unlink()
    purpose, journal = Purpose(tiny.classes, tiny.spec, ""), tmp_path / "mine.journal"

    def look(files: list[str]) -> int:
        predictor = SeeingPredictor(tiny.spec)
        looker = Looker(predictor, None, purpose, recipe())
        look_at_all([evidence / name for name in files], evidence, looker, Journal(journal, {}))
        return predictor.calls

    assert look(["0.png", "1.png"]) == 2 * 3  # itself and both mirror images
    assert look(["1.png", "2.png", "night/again.png"]) == 3  # a copy has the content of 0.png


def test_two_models_that_disagree(tiny: Dataset, tmp_path: Path) -> None:
    purpose = Purpose(tiny.classes, tiny.spec, "")
    looker = Looker(SeeingPredictor(tiny.spec), SeeingPredictor(tiny.spec, logits=[-2.0]), purpose, recipe())
    stored = looker.look(tiny.samples[0].image)
    expected = {"score": pytest.approx(0.833, abs=1e-3), "text": "hole 0.95, second model 0.12"}
    assert stored["findings"][DISAGREE] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--format": "coco,vco"}, "expected some of coco, labelme, yolo"),
        ({"--count": "0"}, "at least one image"),
        ({"--out": "evidence/out"}, "lies in --images"),
        ({"--images": "nowhere"}, "is not a folder"),
        ({"--model": "gone.nb"}, "missing"),
    ],
)
def test_bad_arguments(tmp_path: Path, evidence: Path, change: dict[str, str], message: str) -> None:
    given = {"--images": "evidence", "--model": "last.pdckpt", "--out": "out", **change}
    paths = ("--images", "--model", "--out")
    flat = [part for k, v in given.items() for part in (k, str(tmp_path / v) if k in paths else v)]
    with pytest.raises((ToolError, DataError), match=message):
        main(flat)


def test_a_model_alone_has_to_say_what_it_finds(tmp_path: Path) -> None:
    (tmp_path / "detector.nb").write_bytes(b"x")
    with pytest.raises(ToolError, match="give --like DATASET, a checkpoint, or a model in its bundle"):
        purpose_of(tmp_path / "detector.nb")


def test_only_unreadable_evidence(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of 1 images can be read"):
        main(["--images", str(tmp_path / "bad"), "--model", str(checkpoint), "--out", str(tmp_path / "out")])
