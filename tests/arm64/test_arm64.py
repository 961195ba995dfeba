"""All of it as a test, where it can be done: `pytest -m slow tests/arm64`; EDGE_ARM64 names a folder that is kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.arm64 import root
from tests.arm64.__main__ import REPOSITORY, Trial, run


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_an_arm64_box_is_installed_judges_as_x86_and_takes_a_bundle_from_a_stick(tmp_path: Path) -> None:
    if lacking := root.missing():
        pytest.skip(f"the emulated box cannot be made here: {lacking}")
    work = Path(os.environ.get("EDGE_ARM64", tmp_path))
    work.mkdir(parents=True, exist_ok=True)
    trial = Trial(work.resolve(), REPOSITORY)
    assert run(trial, list(trial.steps())), f"see {work}/report.json"
