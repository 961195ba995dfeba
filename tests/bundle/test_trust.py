"""Whom a device believes: every known attack is refused by name, and the honest repository is taken after each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.bundle.mirror import Mirror, mirror
from edge.bundle.trust import Trust
from edge.errors import TrustError
from tests.bundle import attacks
from tests.bundle.lab import NOW, Lab

PRODUCT = "pcb"


@pytest.fixture
def fast_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: thousands of small files that are made durable."""
    if attacks.FAST is None:
        yield tmp_path
        return
    folder = Path(attacks.FAST, f"edge-test-{os.getpid()}-{tmp_path.name}")
    folder.mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def lab(fast_path: Path) -> Lab:
    """A publisher with pcb 1, today."""
    made = Lab(fast_path / "honest", now=NOW)
    made.add(PRODUCT, 1)
    return made


@pytest.fixture
def state(fast_path: Path) -> Path:
    (fast_path / "state").mkdir()
    return fast_path / "state"


def take(lab: Lab, state: Path, source: Mirror | str | Path | None = None, **how: Any) -> bytes:
    """What a device gets as the newest bundle."""
    place = source if isinstance(source, Mirror) else mirror(str(source or lab.folder))
    trust = Trust(how.pop("root", lab.root_file), state, place, **{"now": lambda: NOW, **how})
    trust.refresh()
    return trust.fetch(trust.offers(PRODUCT)[0], state / "downloads").read_bytes()


def refused(lab: Lab, state: Path, source: Mirror | str | Path | None = None, **how: Any) -> TrustError:
    with pytest.raises(TrustError) as caught:
        take(lab, state, source, **how)
    return caught.value


@pytest.mark.parametrize(("kind", "client"), attacks.COLUMNS)
def test_no_attack_is_accepted_and_none_lasts(kind: str, client: str, fast_path: Path) -> None:
    outcomes = attacks.run(kind, client, fast_path)
    wrong = [
        f"{done.attack.name}: {done.code}, expected {done.attack.expected(kind, client)}: {done.text}"
        for done in outcomes
        if done.code != done.attack.expected(kind, client)
    ]
    assert not wrong, "\n".join(wrong)
    denied = [f"{done.attack.name}: {done.honest}" for done in outcomes if done.honest != "accepted"]
    assert not denied, "the honest repository is taken by the same device:\n" + "\n".join(denied)
    said = [done.text for done in outcomes]
    twice = {text for text in said if said.count(text) > 1}
    assert not twice, f"each refusal has its own reason: {twice}"
    short = [text for text in said if len(text) < 60 or ";" not in text]
    assert not short, f"each says what to do: {short}"
