"""Run records read back: what a step was told, what came out, and the command that repeats it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.errors import ToolError


@dataclass(frozen=True)
class Record:
    """One run record, as `tools.run_record.write_record` writes it."""

    path: Path
    step: str
    finished: str
    command: tuple[str, ...]
    settings: Mapping[str, Any]
    results: Mapping[str, Any]
    versions: Mapping[str, str]


def read_record(path: Path) -> Record:
    """Read a run record.

    Raises:
        ToolError: not a run record.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        words = tuple(str(word) for word in data["command"])
        parts = (data["settings"], dict(data["results"]), data["versions"])
        return Record(path, str(data["step"]), str(data["finished"]), words, *parts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ToolError(f"{path}: cannot be read as a run record: {error!r}") from error


def command_of(record: Record) -> list[str]:
    """The command line that made a record.

    >>> command_of(Record(Path("x"), "export", "", ("__main__.py", "export", "--out", "o"), {}, {}, {}))
    ['python', '-m', 'tools', 'export', '--out', 'o']
    """
    words = list(record.command[1:])
    if words and words[0].replace("-", "_") == record.step.replace("-", "_"):
        words = words[1:]
    return ["python", "-m", "tools", record.step, *words]


def shorten(commands: Sequence[Sequence[str]], data: Path) -> list[list[str]]:
    """Commands without the paths of one machine: the dataset is `DATA`, what lies outside the project begins at `runs`.

    >>> shorten([["export", "--data", "/home/a/d", "--out", "/home/a/runs/p/x", "m=/home/a/runs/y"]], Path("/home/a/d"))
    [['export', '--data', 'DATA', '--out', 'runs/p/x', 'm=runs/y']]
    """
    return [[_short(word, _known(data)) for word in command] for command in commands]


def shorten_text(text: str, data: Path) -> str:
    """A sentence without the paths of one machine.

    >>> shorten_text("/home/a/runs/p/recipe.toml: written", Path("/home/a/d"))
    'runs/p/recipe.toml: written'
    """
    return re.sub(r"(?<![\w.])/[\w./+-]*\w", lambda found: _short(found[0], _known(data)), text)


def _known(data: Path) -> tuple[tuple[Path, Path], ...]:
    root = Path(__file__).resolve().parents[1]
    return ((data.resolve(), Path("DATA")), (data, Path("DATA")), (root, Path(".")))


def _short(word: str, known: Sequence[tuple[Path, Path]]) -> str:
    name, equals, text = word.rpartition("=")
    path = Path(text)
    if not path.is_absolute():
        return word
    for folder, stands_for in known:
        if path == folder or folder in path.parents:
            return name + equals + str(stands_for / path.relative_to(folder))
    parts = path.parts
    tail = parts[parts.index("runs") :] if "runs" in parts else ("runs", *parts[1:][-2:])
    return name + equals + str(Path(*tail))
