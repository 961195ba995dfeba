"""The record each step leaves: what was run, on what, with which versions, and what came out."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "paddlepaddle",
    "paddleslim",
    "paddlelite",
    "paddle2onnx",
    "onnxruntime",
    "opencv-python-headless",
    "numpy",
)


def versions() -> dict[str, str]:
    """Version of Python and of every package that can change a figure; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_revision(folder: Path) -> str:
    """Commit of the working tree, with `+changes` if it differs from it; `unknown` outside git."""
    try:
        head = _git(folder, "rev-parse", "HEAD")
        return head + ("+changes" if _git(folder, "status", "--porcelain", "--", "tools", "edge") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def write_record(path: Path, step: str, settings: dict[str, Any], results: dict[str, Any]) -> None:
    """Write the record as JSON, whole or not at all.

    Args:
        settings: the arguments of the step, seed and data hash among them.
        results: the figures that came out.
    """
    record = {
        "step": step,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "settings": settings,
        "git": git_revision(Path(__file__).parent),
        "versions": versions(),
        "machine": platform.machine(),
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
    partial.replace(path)
