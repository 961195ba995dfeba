"""What the steps have shown: a line each as it is seen, and all of it as JSON."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class StepError(Exception):
    """A step has not shown what it should; the message says what instead."""


class Report:
    """Evidence by step. Written after each step, so that what was seen is kept when a later one fails.

    Args:
        path: the JSON file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._steps: list[dict[str, Any]] = []
        self._began = time.time()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step; what it raises is noted and raised on."""
        print(f"== {name}", flush=True)
        step = {"name": name, "passed": False, "seconds": 0.0, "evidence": [], "figures": {}}
        self._steps.append(step)
        began = time.monotonic()
        try:
            yield
            step["passed"] = True
        except BaseException as error:
            self.show(f"FAILED: {type(error).__name__}: {error}")
            raise
        finally:
            step["seconds"] = round(time.monotonic() - began, 1)
            print(f"   {'passed' if step['passed'] else 'FAILED'} in {step['seconds']:.1f} s", flush=True)
            self.write()

    def show(self, line: str, **figures: Any) -> None:
        """One line of evidence for people, and its figures for machines."""
        print(f"   {line}", flush=True)
        if self._steps:
            self._steps[-1]["evidence"].append(line)
            self._steps[-1]["figures"].update(figures)

    @property
    def passed(self) -> bool:
        """Whether there were steps, and each has passed."""
        return bool(self._steps) and all(step["passed"] for step in self._steps)

    def write(self) -> None:
        """Put down what is known so far."""
        what = {
            "passed": self.passed,
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._began)),
            "host": f"{platform.machine()}, Python {platform.python_version()}",
            "steps": self._steps,
        }
        self._path.write_text(json.dumps(what, indent=1) + "\n")


def expect(condition: object, otherwise: str) -> None:
    """Fail the step with a sentence when a condition does not hold."""
    if not condition:
        raise StepError(otherwise)
