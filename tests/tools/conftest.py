"""A tiny data set in DeepPCB's layout, drawn on the spot."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

SIDE = 96


def draw_board(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int, int]]:
    """Template and inspected image (96, 96) with one pin-hole in a wide trace, and the hole's box."""
    rng = np.random.default_rng(seed)
    template = np.full((SIDE, SIDE), 255, np.uint8)
    left = int(rng.integers(8, 24))
    template[:, left : left + 48] = 0
    x, y = left + int(rng.integers(4, 20)), int(rng.integers(8, 64))
    test = template.copy()
    test[y + 6 : y + 14, x + 6 : x + 14] = 255
    return template, test, (x, y, x + 20, y + 20)


@pytest.fixture
def pcb_root(tmp_path: Path) -> Path:
    """Two groups of four boards, type 6 each."""
    root = tmp_path / "deeppcb"
    lines = []
    for group in ("groupA", "groupB"):
        (root / group / "a").mkdir(parents=True)
        (root / group / "a_not").mkdir()
        for i in range(4):
            template, test, box = draw_board(10 * (group == "groupB") + i)
            cv2.imwrite(str(root / group / "a" / f"{i}_test.jpg"), test)
            cv2.imwrite(str(root / group / "a" / f"{i}_temp.jpg"), template)
            (root / group / "a_not" / f"{i}.txt").write_text(" ".join(map(str, box)) + " 6\n")
            lines.append(f"{group}/a/{i}.jpg {group}/a_not/{i}.txt")
    (root / "trainval.txt").write_text("\n".join(lines) + "\n")
    return root
