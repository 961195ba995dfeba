"""The command line: it lists its steps, and an error is one line."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import tools
from tools.__main__ import STEPS, main

MODULES = sorted(path.stem for path in Path(tools.__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def test_help_lists_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(step in said for step in STEPS)


@pytest.mark.parametrize("step", STEPS)
def test_every_step_has_help(step: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([step, "--help"])
    assert caught.value.code == 0 and f"python -m tools {step}" in capsys.readouterr().out


def test_unknown_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tain"]) == 2
    assert "unknown step 'tain'" in capsys.readouterr().err


def test_error_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["evaluate", "--data", str(tmp_path), "--model", str(tmp_path / "m.nb")]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "dataset.json: missing" in err


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"tools.{name}")).failed == 0
