"""The trigger count outlives a killed process."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from edge.errors import OutboxError
from edge.tally import Tally
from tests.disks import small_disk

COUNTER = """
import sys, os
from pathlib import Path
from edge.tally import Tally
tally = Tally(Path(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    tally.add()
print("counted", flush=True)
sys.stdin.read()
"""


def test_counts_over_a_kill(tmp_path):
    path = tmp_path / "triggers"
    for total in (5, 10):
        child = subprocess.Popen(
            [sys.executable, "-c", COUNTER, str(path), "5"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert child.stdout.readline() == b"counted\n"
        os.kill(child.pid, signal.SIGKILL)
        child.wait(10)
        child.stdin.close()
        child.stdout.close()
        tally = Tally(path)
        assert tally.count == total
        tally.close()


def test_begins_at_zero_and_can_be_set(tmp_path):
    tally = Tally(tmp_path / "deep" / "triggers")
    assert tally.count == 0
    tally.set(41)
    tally.add()
    assert tally.count == 42
    tally.close()


def test_a_file_of_another_size_begins_anew_where_it_can(tmp_path):
    path = tmp_path / "triggers"
    path.write_bytes(b"\x07")
    tally = Tally(path)
    assert tally.count == 7
    tally.close()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutboxError, match="file/triggers"):
        Tally(tmp_path / "file" / "triggers")


def test_a_late_count_after_the_close_touches_no_other_file(tmp_path):
    tally = Tally(tmp_path / "triggers")
    tally.close()
    other = (tmp_path / "other").open("w+b")  # takes the number that was freed
    tally.add()
    assert (tmp_path / "other").read_bytes() == b""
    other.close()


def test_no_room_is_said_at_the_start(tmp_path):
    with small_disk(tmp_path / "disk", megabytes=1) as disk:
        with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4096))
        with pytest.raises(OutboxError, match="No space left"):
            Tally(disk / "triggers")
