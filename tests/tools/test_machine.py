"""Only a processor that needs it is told about MKL's kernels."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tools import machine

AMD = "processor : 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu {}\n\nprocessor : 1\nvendor_id : other\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (AMD.format("sse2 avx2 avx512f"), "7"),
        (AMD.format("sse2 avx2"), "5"),
        (AMD.format("sse2"), None),  # too old for those kernels
        ("vendor_id : GenuineIntel\nflags : avx2 avx512f\n", None),  # takes the fast path by itself
        ("Processor : ARMv8\n", None),
        (None, None),  # no such file
    ],
)
def test_who_is_told(text: str | None, value: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.delenv("MKL_DEBUG_CPU_TYPE", raising=False)
    machine.faster_training()
    assert os.environ.get("MKL_DEBUG_CPU_TYPE") == value
    os.environ.pop("MKL_DEBUG_CPU_TYPE", None)


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(AMD.format("avx2"))
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setenv("MKL_DEBUG_CPU_TYPE", "0")
    machine.faster_training()
    assert os.environ["MKL_DEBUG_CPU_TYPE"] == "0"
