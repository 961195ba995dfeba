"""Whom a device believes: every known attack is refused by name, and the honest repository is taken after each."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tuf.ngclient import Updater

from edge.bundle import trust_floor
from edge.bundle.mirror import Mirror, mirror
from edge.bundle.trust import Trust, time_floor
from edge.clock import not_before_ts
from edge.errors import TrustError
from tests.bundle import attacks
from tests.bundle.lab import DAY_S, NOW, Lab, serving

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


def test_the_newest_comes_first_and_nothing_is_offered_before_a_refresh(lab: Lab, state: Path) -> None:
    lab.add(PRODUCT, 3)
    lab.add(PRODUCT, 2)
    trust = Trust(lab.root_file, state, mirror(str(lab.folder)), now=lambda: NOW)
    with pytest.raises(TrustError, match="was not looked at"):
        trust.offers(PRODUCT)
    trust.refresh()
    assert trust.products() == ["ballscrew", "pcb"]
    assert [offer.version for offer in trust.offers(PRODUCT)] == [3, 2, 1]
    assert trust.offers("ballscrew") == []


def test_stick_and_network_share_what_is_known(lab: Lab, state: Path, fast_path: Path) -> None:
    stick = fast_path / "stick"
    shutil.copytree(lab.folder, stick)
    lab.add(PRODUCT, 2)
    with serving(lab.folder) as web:
        assert take(lab, state, web.address) == bytes([2]) * 3000
    error = refused(lab, state, stick)
    assert error.code == "rolled_back" and "its version is 2, and 3 was accepted before" in str(error)


# Clocks.


@pytest.mark.parametrize("clock", [0.0, 1e9, NOW - 400 * DAY_S])
def test_a_clock_that_is_behind_does_not_make_old_things_young(lab: Lab, state: Path, clock: float) -> None:
    assert take(lab, state, now=lambda: clock) == bytes([1]) * 3000, "what is good by the floor is taken"
    lab.now = not_before_ts() - 40 * DAY_S
    lab.publish("targets")
    error = refused(lab, state, now=lambda: clock)
    assert error.code == "expired" and "which the box's clock is before" in str(error)


def test_what_was_accepted_last_says_how_late_it_is_at_least(lab: Lab, state: Path) -> None:
    assert time_floor(state) == 0.0
    lab.new_root(days=20)
    take(lab, state, now=lambda: 0.0)
    assert time_floor(state) == NOW
    clock = iter((NOW - 3600, NOW + 5))
    trust = Trust(lab.root_file, state, mirror(str(lab.folder)), now=lambda: next(clock))
    for behind_s in (3600.0, 0.0):
        trust.refresh()
        assert trust.clock_behind_s == behind_s
    lab.now = NOW + 25 * DAY_S
    lab.publish("targets", "product-pcb", "product-ballscrew")
    assert refused(lab, state, now=lambda: NOW + 25 * DAY_S).code == "expired", "the root has expired by the clock"
    assert time_floor(state) == NOW, "what is refused moves nothing"
    lab.new_root(days=20)
    take(lab, state, now=lambda: 0.0)
    assert time_floor(state) == NOW + 25 * DAY_S
    lab.now = NOW
    lab.new_root(days=20)
    lab.now = NOW + 25 * DAY_S
    lab.publish("targets")
    error = refused(lab, state, now=lambda: 0.0)
    assert error.code == "expired" and "by what was accepted last" in str(error), "by the floor, in 1970"


def test_a_thief_of_the_online_key_does_not_lock_the_device_for_ever(lab: Lab, state: Path) -> None:
    """The highest version there is, and a date far ahead: both are void once the key is taken back."""
    take(lab, state)
    lab.signed["timestamp"].version = 2**40
    lab.now = NOW + 20_000 * DAY_S
    lab.publish()
    take(lab, state)
    assert time_floor(state) == lab.now
    lab.now, lab.signed["timestamp"].version = NOW, 10
    lab.publish()
    assert refused(lab, state).code in ("rolled_back", "expired"), "as long as the key is believed"
    lab.change_root_keys("online", "online2", "snapshot", "timestamp")
    lab.add(PRODUCT, 2)
    assert take(lab, state) == bytes([2]) * 3000
    assert time_floor(state) == NOW


# The device's own root.


def test_a_device_without_a_root_trusts_nobody(lab: Lab, state: Path, fast_path: Path) -> None:
    error = refused(lab, state, root=fast_path / "none.json")
    assert error.code == "no_root" and "edge bundle trust" in str(error)
    for content in (b"", b"{}", b"\xff" * 100, lab.data["targets"], lab.data["root"][:-50]):
        (fast_path / "root.json").write_bytes(content)
        assert refused(lab, state, root=fast_path / "root.json").code == "malformed"
    damaged = lab.data["root"].replace(b'"consistent_snapshot":true', b'"consistent_snapshot":false')
    (fast_path / "root.json").write_bytes(damaged)
    assert refused(lab, state, root=fast_path / "root.json").code == "tampered"


def test_another_root_begins_anew_and_a_newer_one_does_not(lab: Lab, state: Path, fast_path: Path) -> None:
    old = fast_path / "old"
    shutil.copytree(lab.folder, old)
    lab.change_root_keys("root3", "root4")
    lab.add(PRODUCT, 2)
    take(lab, state)
    newer = lab.folder / "metadata/2.root.json"
    shutil.rmtree(state / "trust/metadata/root_history")
    assert refused(lab, state, old, root=newer).code == "rolled_back", "an update of the device's root forgets nothing"
    take(lab, state, root=newer)
    other = Lab(fast_path / "other", now=NOW)
    other.add(PRODUCT, 1, b"other" * 100)
    assert refused(lab, state, other.folder).code == "wrong_root"
    assert take(other, state) == b"other" * 100, "a person has put another root there"
    assert refused(other, state, lab.folder).code == "wrong_root"


# Power cuts and bad cards.


@dataclass
class Known:
    """A device that knows the second of three states of a repository."""

    lab: Lab
    old: Path
    state: Path

    def check(self) -> None:
        """It takes the third, and not the first."""
        error = refused(self.lab, self.state, self.old)
        assert error.code == "rolled_back", str(error)
        assert take(self.lab, self.state) == bytes([3]) * 3000
        assert refused(self.lab, self.state, self.old).code == "rolled_back"


@pytest.fixture
def known(lab: Lab, state: Path, fast_path: Path) -> Known:
    old = fast_path / "old"
    shutil.copytree(lab.folder, old)
    lab.change_root_keys("root3", "root4")
    lab.publish("targets")
    lab.add(PRODUCT, 2)
    take(lab, state)
    lab.change_root_keys("root4", "root3")
    lab.list(PRODUCT, 3, bytes([3]) * 3000)
    lab.publish("targets", "product-pcb")
    return Known(lab, old, state)


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_power_cut_at_any_step_neither_locks_the_device_nor_makes_it_forget(
    known: Known, fast_path: Path, stride: int
) -> None:
    whole, steps = fast_path / "whole", 0
    known.state.rename(whole)
    while True:
        shutil.rmtree(known.state, ignore_errors=True)
        shutil.copytree(whole, known.state, symlinks=True)
        child = os.fork()
        if child == 0:
            try:
                _cut_power(known.state, steps)
                take(known.lab, known.state)
            except BaseException:
                os._exit(1)
            os._exit(0)
        _, code = os.waitpid(child, 0)
        assert code == 0 or os.WIFSIGNALED(code), f"step {steps}: the refresh itself must not fail"
        known.check()
        if code == 0:
            break
        steps += stride
    assert steps > 50, f"cut at {steps // stride} steps of {steps}"
    print(f"cut at {steps // stride} steps of {steps}")


def _cut_power(state: Path, steps: int) -> None:
    """After so many steps: what was not made durable is empty, as ext4 leaves it, and the process is gone."""
    before = {path.stat().st_ino for path in state.rglob("*") if path.is_file()}
    durable, done = set(before), 0

    def step() -> None:
        nonlocal done
        if done == steps:
            for path in (state / "trust").rglob("*"):
                if path.is_file() and not path.is_symlink() and path.stat().st_ino not in durable:
                    os.truncate(path, 0)
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1

    def wrap(name: str) -> None:
        call = getattr(os, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            step()
            result = call(*arguments, **named)
            if name == "fsync":
                durable.add(os.fstat(arguments[0]).st_ino)
            return result

        setattr(os, name, counted)

    for name in ("fsync", "replace", "symlink", "remove", "open"):
        wrap(name)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _garbage(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def _deep(path: Path) -> None:
    path.write_bytes(b"[" * 100_000)


def _missing(path: Path) -> None:
    path.unlink()


def _folder(path: Path) -> None:
    path.unlink()
    (path / "inner").mkdir(parents=True)


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


DAMAGES = (_empty, _half, _garbage, _deep, _missing, _folder, _loop)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def test_a_damaged_file_of_the_state_heals_and_nothing_is_forgotten(
    known: Known, fast_path: Path, damage: Callable[[Path], None]
) -> None:
    whole = fast_path / "whole"
    known.state.rename(whole)
    names = sorted(path.relative_to(whole) for path in (whole / "trust").rglob("*") if path.is_file())
    assert len(names) > 8, names
    for name in names:
        shutil.rmtree(known.state, ignore_errors=True)
        shutil.copytree(whole, known.state, symlinks=True)
        damage(known.state / name)
        known.check()


@pytest.mark.parametrize("what", ["metadata", "floors", "history", "everything but one floor"])
def test_more_than_one_damaged_file(known: Known, what: str) -> None:
    trust = known.state / "trust"
    gone = {
        "metadata": [trust / "metadata"],
        "floors": [trust / "floor.json", trust / "floor.copy.json"],
        "history": [trust / "metadata/root_history"],
        "everything but one floor": [trust / "metadata", trust / "floor.json"],
    }[what]
    for path in gone:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.write_bytes(b"\0" * 100)
    known.check()


def test_a_record_is_believed_only_as_it_was_written(fast_path: Path) -> None:
    floor = trust_floor.Floor(serial=3, roots={1: "a" * 64, 2: "b" * 64}, time=NOW)
    trust_floor.write(fast_path, floor)
    assert trust_floor.read(fast_path) == floor and floor.root == 2
    path = fast_path / "floor.json"
    said = json.loads(path.read_bytes())
    said["floor"]["time"] = 0.0
    path.write_text(json.dumps(said))
    assert trust_floor.read(fast_path) == floor, "the copy"
    (fast_path / "floor.copy.json").write_bytes(path.read_bytes())
    assert trust_floor.read(fast_path) == trust_floor.Floor()


# What can go wrong beside attacks.


def test_a_server_that_is_not_there_and_one_that_has_nothing(lab: Lab, state: Path, fast_path: Path) -> None:
    with serving(fast_path) as web:
        gone = web.address
        error = refused(lab, state, web.address)
        assert error.code == "no_repository" and "check the address" in str(error)
    error = refused(lab, state, gone)
    assert error.code == "unreachable" and "Connection refused" in str(error)
    assert "object at" not in str(error) and "host=" not in str(error)
    assert refused(lab, state, fast_path / "none").code == "unreachable"
    assert refused(lab, state, fast_path).code == "no_repository"
    for address in ("ftp://x/y", "http://", "http://[::1"):
        with pytest.raises(TrustError) as caught:
            mirror(address)
        assert caught.value.code == "unreachable"
    (lab.folder / "metadata/1.targets.json").unlink()
    error = refused(lab, state)
    assert error.code == "not_found" and "copy is not complete" in str(error)


@pytest.mark.parametrize("status", [401, 500, 503])
def test_a_server_that_answers_otherwise(lab: Lab, state: Path, status: int) -> None:
    with serving(lab.folder) as web:
        web.behaviours = {"timestamp.json": lambda handler: handler.send_error(status)}
        error = refused(lab, state, web.address)
    assert error.code == "unreachable" and f"status {status}" in str(error)


def test_a_state_folder_that_cannot_be_written(lab: Lab, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (state / "trust").write_text("a file where a folder belongs")
    error = refused(lab, state)
    assert error.code == "storage" and str(state / "trust") in str(error)
    (state / "trust").unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    error = refused(lab, state)
    assert error.code == "storage" and "0.0 MB free" in str(error)


def test_a_product_that_may_not_sign_its_own_path(lab: Lab, state: Path) -> None:
    lab.signed["targets"].delegations.roles["product-pcb"].paths = ["other/*"]
    lab.publish("targets")
    assert refused(lab, state).code == "malformed"


def test_a_date_that_is_none_is_capped_by_the_expiry(lab: Lab, state: Path) -> None:
    lab.now = 10.0**15  # said to be signed in the year 31 million
    lab.lives["timestamp"] = lab.lives["snapshot"] = (NOW - lab.now) / DAY_S + 30
    lab.publish()
    take(lab, state)
    assert time_floor(state) == pytest.approx(NOW + 30 * DAY_S, abs=2)


def test_another_update_is_waited_for_but_not_without_end(
    lab: Lab, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.bundle.trust._LOCK_WAIT_S", 0.1)
    (state / "trust").mkdir()
    other = os.open(state / "trust", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    assert refused(lab, state).code == "storage"
    os.close(other)
    take(lab, state)


def test_the_library_has_still_the_place_where_time_is_put(lab: Lab, state: Path) -> None:
    """Ours to find out at the next release of python-tuf, not a device's."""
    assert "_load_timestamp" in vars(Updater)
    lab.publish("targets", days=1)
    assert refused(lab, state, now=lambda: NOW + 2 * DAY_S).code == "expired"
    assert take(lab, state, now=lambda: NOW)
