"""No clock is trusted blindly: what is known to be past, and where a build knows it from. And beats."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edge.clock import BUILT_FILE, RELEASED_TS, Beat, SystemClock, not_before_ts

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("now", "floor", "expected", "why"),
    [
        (0.0, 0.0, False, "a box without a battery wakes up in 1970"),
        (RELEASED_TS - 1, 0.0, False, "before this release was made"),
        (RELEASED_TS, 0.0, True, "nothing else is known"),
        (RELEASED_TS + 10, RELEASED_TS + 20, False, "before what was signed and accepted"),
        (RELEASED_TS + 20, RELEASED_TS + 20, True, "not behind it"),
        (RELEASED_TS - 1, 1000.0, False, "an old floor takes nothing back"),
    ],
)
def test_a_clock_behind_what_is_past_is_not_ok(
    now: float, floor: float, expected: bool, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: now)
    clock = SystemClock(floor)
    assert clock.ok() is expected, why
    assert clock.ts() == now, "it is told all the same, as it is"
    assert clock.floor() == max(now, floor, RELEASED_TS)


def test_the_floor_only_rises(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SystemClock()
    now = RELEASED_TS + 1000
    monkeypatch.setattr(time, "time", lambda: now)
    assert clock.ok()
    clock.raise_floor(now + 1)
    assert not clock.ok()
    for nonsense in (0.0, float("nan"), 1e300):
        clock.raise_floor(nonsense)
    assert not clock.ok()
    now += 2
    assert clock.ok(), "the time has been set"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (f"{int(RELEASED_TS) + 500}\n", RELEASED_TS + 500),
        ("1577836800\n", RELEASED_TS),
        ("soon", RELEASED_TS),
        ("", RELEASED_TS),
        ("nan", RELEASED_TS),
        ("1e300", RELEASED_TS),
    ],
)
def test_a_build_tells_when_it_was_made(tmp_path: Path, content: str, expected: float) -> None:
    (tmp_path / BUILT_FILE).write_text(content)
    assert not_before_ts(tmp_path) == expected


def build(folder: Path, **env: str) -> str | None:
    """What a build leaves of its time, if it does."""
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(folder)]
    clean = {key: value for key, value in os.environ.items() if key != "SOURCE_DATE_EPOCH"}
    subprocess.run(command, cwd=ROOT, env={**clean, **env}, check=True, timeout=60, capture_output=True)
    file = folder / "edge" / BUILT_FILE
    return file.read_text().strip() if file.exists() else None


def test_the_build_takes_its_time_from_where_it_is_told(tmp_path: Path) -> None:
    assert build(tmp_path, SOURCE_DATE_EPOCH="1800000123") == "1800000123"
    assert not_before_ts(tmp_path / "edge") == 1800000123.0


def test_the_build_of_a_checkout_takes_the_time_of_its_commit(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    before = commit_ts()
    found = build(tmp_path)
    assert found is not None and before <= int(found) <= commit_ts()


def commit_ts() -> int:
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout)


# Beats.


def test_a_thread_that_dies_does_not_beat_whatever_time_it_has() -> None:
    beat = Beat("x", 3600.0)
    thread = threading.Thread(target=lambda: beat.now(for_s=3600.0))
    thread.start()
    thread.join(10)
    assert beat.hangs()


def test_a_thread_that_ends_in_good_order_rests() -> None:
    beat = Beat("x", 0.0)

    def run() -> None:
        beat.now()
        beat.rest()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert not beat.hangs() and beat.silent_s() == 0.0


def test_what_many_do_in_turn_is_watched_only_while_one_does_it() -> None:
    now_ns = 0
    beat = Beat("outbox", 1.0, lambda: now_ns)
    with pytest.raises(ZeroDivisionError), beat.working():
        now_ns += 2_000_000_000
        assert beat.hangs() and beat.thread() is threading.current_thread()
        raise ZeroDivisionError
    now_ns += 2_000_000_000
    assert not beat.hangs()
