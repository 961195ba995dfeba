"""What a long step has finished so far, on disk after each piece, so that the same command goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tools.errors import ToolError


class Journal:
    """Finished pieces by name, kept as JSON lines beside the step's output.

    The first line is a hash of what the results depend on; a journal of other settings is begun anew.

    Args:
        path: the file, such as `runs/pcb/robustness.journal`.
        depends: everything the results depend on: arguments, hashes of models and data.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "x.journal"
    >>> Journal(path, {"seed": 1}).once("a", lambda: 3)
    3
    >>> Journal(path, {"seed": 1}).once("a", lambda: 4)
    3
    >>> Journal(path, {"seed": 2}).once("a", lambda: 4)
    4
    """

    def __init__(self, path: Path, depends: Mapping[str, Any]):
        text = json.dumps(depends, sort_keys=True, default=str)
        self._path = path
        self._key = hashlib.sha256(text.encode()).hexdigest()
        self._done = self._read()
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self._done:
            path.write_text(json.dumps({"depends": self._key}) + "\n", encoding="utf-8")

    def _read(self) -> dict[str, Any]:
        try:
            first, *lines = self._path.read_text(encoding="utf-8").splitlines()
            if json.loads(first).get("depends") != self._key:
                return {}
        except (OSError, ValueError):
            return {}
        done = {}
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:  # the line that was being written when the step was stopped
                break
            done[entry["name"]] = entry["result"]
        return done

    def __contains__(self, name: str) -> bool:
        return name in self._done

    def once(self, name: str, work: Callable[[], Any]) -> Any:
        """The result of `work`, or what it was when it was last done; the result must fit into JSON."""
        if name not in self._done:
            result = work()
            try:
                line = json.dumps({"name": name, "result": result})
            except TypeError as error:
                raise ToolError(f"the result of {name} cannot be kept: {error}") from error
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            self._done[name] = json.loads(line)["result"]
        return self._done[name]
