"""The processes of a run: they find each other, and when one fails none is left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from tools.errors import DataError, ToolError
from tools.processes import launched, together

ROOT = Path(__file__).parents[2]


def write_sum(folder: str, png: str) -> None:
    import paddle
    import paddle.distributed as dist

    dist.init_parallel_env()
    total = paddle.to_tensor([dist.get_rank() + 1.0])
    dist.all_reduce(total)
    readable = cv2.imread(png) is not None  # Paddle is loaded, and PNG must still be
    (Path(folder) / f"{dist.get_rank()}.txt").write_text(f"{float(total[0])} {readable} {launched()}")


def fail_or_wait(folder: str) -> None:
    (Path(folder) / f"{os.getpid()}.pid").touch()
    if os.environ["PADDLE_TRAINER_ID"] == "1":
        raise DataError("labels.txt:7: no such class")
    time.sleep(60)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_they_add_up_and_read_png(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8), np.uint8))
    together(write_sum, (str(tmp_path), str(tmp_path / "a.png")), 2)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["3.0 True True"] * 2


def test_when_one_fails_all_end_and_the_reason_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    with pytest.raises(ToolError, match="a process of the run failed"):
        together(fail_or_wait, (str(tmp_path),), 2)
    assert time.monotonic() - start < 30
    assert "labels.txt:7: no such class" in capfd.readouterr().err
    assert not any(alive(int(path.stem)) for path in tmp_path.glob("*.pid"))


def test_a_killed_run_leaves_nobody_training(tmp_path: Path) -> None:
    script = (
        "from tests.tools.test_processes import wait_both\nfrom tools.processes import together\n"
        f"if __name__ == '__main__':\n    together(wait_both, ({str(tmp_path)!r},), 2)\n"
    )
    (tmp_path / "run.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "run.py")], env=environment)
    try:
        _until(lambda: len(list(tmp_path.glob("*.pid"))) == 2, 60)
        parent.kill()
        parent.wait(10)
        pids = [int(path.stem) for path in tmp_path.glob("*.pid")]
        _until(lambda: not any(alive(pid) for pid in pids), 20)
    finally:
        parent.kill()


def wait_both(folder: str) -> None:
    (Path(folder) / f"{os.getpid()}.pid").touch()
    time.sleep(60)


def _until(condition, seconds: float) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)
