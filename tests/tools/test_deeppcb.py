"""Reading the data set: good input comes out whole, bad input is refused with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.deeppcb import CLASSES, data_hash, read_index, split
from tools.errors import DataError


def test_reads_every_listed_sample(pcb_root: Path) -> None:
    samples = read_index(pcb_root)
    assert [s.name for s in samples][:2] == ["groupA/a/0", "groupA/a/1"]
    assert {s.group for s in samples} == {"groupA", "groupB"}
    assert all(s.xyxy.shape == (1, 4) and CLASSES[s.class_id[0]] == "pin-hole" for s in samples)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("1 2 3 4", "found 4 fields"),
        ("1 2 3 x 5", "whole numbers"),
        ("30 2 20 40 1", "empty, turned round or outside"),
        ("-3 2 20 40 1", "outside the image"),
        ("1 2 30 40 7", "type 7 is unknown"),
        ("1 2 30 40 0", "type 0 is unknown"),
    ],
)
def test_bad_label_names_file_and_line(pcb_root: Path, label: str, words: str) -> None:
    (pcb_root / "groupA/a_not/2.txt").write_text(f"1 2 30 40 1\n{label}\n")
    with pytest.raises(DataError, match=words) as caught:
        read_index(pcb_root)
    assert "2.txt:2:" in str(caught.value)


def test_missing_image_names_it_and_the_list_line(pcb_root: Path) -> None:
    (pcb_root / "groupB/a/1_temp.jpg").unlink()
    with pytest.raises(DataError, match=r"trainval\.txt:6: image .*1_temp\.jpg is missing"):
        read_index(pcb_root)


def test_wrong_folder_is_told_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data must name the unpacked DeepPCB folder"):
        read_index(tmp_path)


def test_split_keeps_groups_whole(pcb_root: Path) -> None:
    train, held = split(read_index(pcb_root), ["groupB"])
    assert {s.group for s in train} == {"groupA"}
    assert {s.group for s in held} == {"groupB"}


@pytest.mark.parametrize("groups", [["groupX"], ["groupA", "groupB"], []])
def test_split_refuses_nonsense(pcb_root: Path, groups: list[str]) -> None:
    with pytest.raises(DataError):
        split(read_index(pcb_root), groups)


def test_hash_follows_labels(pcb_root: Path) -> None:
    before = data_hash(read_index(pcb_root))
    assert before == data_hash(read_index(pcb_root))
    (pcb_root / "groupA/a_not/2.txt").write_text("1 2 30 40 1\n")
    assert data_hash(read_index(pcb_root)) != before
