"""What this machine's processor needs to be told."""

from __future__ import annotations

import os
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


def cpu_fields() -> dict[str, str]:
    """The first processor's entries of `/proc/cpuinfo` by name; empty where there is no such file."""
    try:
        first = CPU_INFO.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def faster_training() -> None:
    """Let Paddle's MKL use its AVX kernels on AMD processors too, for this process and its children.

    The MKL of 2019 that Paddle brings takes a slow path on processors of another maker; this variable, which MKL reads
    at its first product, halves the time of a training step there. It is not for measuring: Paddle Lite brings the
    same MKL, and a device runs it without.
    """
    fields = cpu_fields()
    if fields.get("vendor_id") == "AuthenticAMD" and "avx2" in fields.get("flags", ""):
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "7" if "avx512f" in fields.get("flags", "") else "5")
