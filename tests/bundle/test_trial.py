"""A bundle on trial: shadow, in charge, and then it stays or is returned; who brought it, and what is too old."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edge.bundle import outcome as outcomes
from edge.bundle import slots
from edge.bundle import trial as trials
from edge.bundle.trial import Trial
from edge.errors import BundleError
from edge.event import UpdateOutcome
from tests.bundle.tiny_bundle import make_bundle


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


@pytest.fixture
def bring(state: Path, tmp_path: Path) -> Callable[..., Path]:
    """Put and stage a bundle of a version."""

    def bring(version: int, *, signed: bool = True, origin: str = "usb", product: str = "pcb") -> Path:
        source = tmp_path / f"{product}-{version}"
        if not source.exists():
            make_bundle(source, version, 100, product)
        slot = slots.put(source, state)
        slots.stage(state, slot, signed=signed, origin=origin, transaction=f"t{version}")
        return slot

    return bring


Bring = Callable[..., Path]


def stays(state: Path, bring: Bring, version: int, **words: object) -> Path:
    slot = bring(version, **words)
    slots.activate(state)
    slots.commit(state)
    return slot


def mark(state: Path) -> Trial:
    found = slots.read_trial(state)
    assert found is not None
    return found


def held(state: Path) -> set[str]:
    return {path.name for path in (state / "bundles").iterdir() if trials.is_slot(path.name)}


# --- the way of a bundle ---


def test_put_alone_changes_nothing(state: Path, bring: Bring, tmp_path: Path) -> None:
    one = stays(state, bring, 1)
    slot = slots.put(make_bundle(tmp_path / "two", 2), state)
    assert slot.is_dir() and slots.active(state) == one and slots.candidate(state) is None
    assert slots.put(tmp_path / "two", state) == slot, "the very same bundle has its slot already"
    assert mark(state).stage == "committed"


def test_the_first_bundle_goes_on_trial_at_once(state: Path, bring: Bring) -> None:
    slot = bring(1)
    found = mark(state)
    assert (found.stage, found.slot, found.before, found.origin) == ("trial", slot.name, None, "usb")
    assert slots.active(state) == slot and slots.previous(state) is None
    with pytest.raises(BundleError, match=r"no whole bundle before pcb-1-.* to go back to"):
        slots.go_back(state, "slow", "it is slow")
    slots.commit(state)
    assert mark(state).stage == "committed"


def test_shadow_then_trial_then_it_stays(state: Path, bring: Bring) -> None:
    one = stays(state, bring, 1)
    two = bring(2)
    assert slots.active(state) == one and slots.candidate(state) == two and mark(state).stage == "shadow"
    assert slots.activate(state) == two
    assert slots.active(state) == two and slots.previous(state) == one and slots.candidate(state) is None
    assert (mark(state).stage, mark(state).before, mark(state).transaction) == ("trial", one.name, "t2")
    slots.commit(state)
    three = stays(state, bring, 3)
    assert held(state) == {two.name, three.name}, "one to go back to, no more"


def test_returned_everything_is_as_it_was_before(state: Path, bring: Bring) -> None:
    one, two = stays(state, bring, 1), stays(state, bring, 2)
    three = bring(3)
    slots.activate(state)
    assert held(state) == {one.name, two.name, three.name}, "what was held stays until the trial is over"
    assert slots.go_back(state, "slow", "90 ms, not 30") == two
    assert slots.active(state) == two and slots.previous(state) == one
    assert (mark(state).stage, mark(state).code, mark(state).text) == (
        "returned",
        "slow",
        "90 ms, not 30",
    )
    with pytest.raises(BundleError, match="nothing to return from"):
        slots.go_back(state, "slow", "again")


def test_refused_in_shadow(state: Path, bring: Bring) -> None:
    one, two = stays(state, bring, 1), bring(2)
    slots.refuse(state, "differs", "they differ at 40 of 50 parts")
    assert slots.active(state) == one and slots.candidate(state) is None
    assert (mark(state).stage, mark(state).slot) == ("refused", two.name)
    with pytest.raises(BundleError, match=r"no candidate in .*; they differ at 40 of 50 parts: install a bundle first"):
        slots.activate(state)


def test_a_newer_candidate_takes_the_place_of_the_one_in_shadow(state: Path, bring: Bring) -> None:
    one, two, three = stays(state, bring, 1), bring(2), bring(3)
    assert slots.candidate(state) == three and mark(state).before == one.name
    assert held(state) == {one.name, three.name}, f"{two.name} is gone"


def test_one_trial_at_a_time(state: Path, bring: Bring) -> None:
    stays(state, bring, 1)
    two = bring(2)
    slots.activate(state)
    with pytest.raises(BundleError, match=r"pcb-2-.* is on trial: wait until it stays or is returned"):
        bring(3)
    assert slots.active(state) == two and mark(state).stage == "trial"
    bring(2)
    assert mark(state).stage == "trial" and slots.active(state) == two, "the same one again changes nothing"


def test_a_first_bundle_that_cannot_be_returned_may_be_followed(state: Path, bring: Bring) -> None:
    one, two = bring(1), bring(2)
    assert slots.active(state) == one and slots.candidate(state) == two


def test_what_is_active_already_stays_as_it_is(state: Path, bring: Bring) -> None:
    stays(state, bring, 1)
    two = stays(state, bring, 2)
    stamp = slots.trial_stamp(state)
    bring(2)
    assert slots.trial_stamp(state) == stamp and slots.active(state) == two and mark(state).stage == "committed"
    one = slots.rollback(state)
    bring(1)
    assert slots.active(state) == one and slots.candidate(state) is None and mark(state).stage == "rolled_back"


def test_the_stamp_changes_with_every_mark(state: Path, bring: Bring) -> None:
    assert slots.trial_stamp(state) is None
    stamps = [slots.trial_stamp(state) for _ in range(2) if bring(1)]
    assert stamps[0] == stamps[1] is not None
    slots.note_start(state)
    assert slots.trial_stamp(state) not in stamps


# --- starts ---


def test_three_starts_and_no_more(state: Path, bring: Bring) -> None:
    one, two = stays(state, bring, 1), bring(2)
    slots.activate(state)
    for number in (1, 2, 3):
        start = slots.note_start(state)
        assert (start.slot, start.returned, start.problem) == (two, False, "")
        assert start.trial is not None and start.trial.starts == number
    start = slots.note_start(state)
    assert start.slot == one and start.returned and start.trial is not None
    assert (start.trial.stage, start.trial.code) == ("returned", "crashed")
    assert start.trial.text == f"{two.name} was started 3 times and did not stay; {one.name} is in charge again"
    again = slots.note_start(state)
    assert again.slot == one and not again.returned, "told once"


def test_a_candidate_that_ends_the_service_three_times_is_given_up(state: Path, bring: Bring) -> None:
    """A model may take the whole process with it when it is opened beside the active one."""
    one, two = stays(state, bring, 1), bring(2)
    for number in (1, 2, 3):
        assert slots.note_start(state).slot == one
        assert (mark(state).stage, mark(state).starts) == ("shadow", number)
    start = slots.note_start(state)
    assert start.slot == one and not start.returned and slots.candidate(state) is None
    assert (mark(state).stage, mark(state).code) == ("refused", "crashed")
    assert mark(state).text == f"the service ended 3 times while {two.name} was opened or in shadow"
    last = outcomes.read(state)
    assert last is not None and (last.outcome, last.code) == ("refused", "crashed")


def test_starts_in_shadow_are_not_those_on_trial(state: Path, bring: Bring) -> None:
    stays(state, bring, 1)
    two = bring(2)
    for _ in range(3):
        slots.note_start(state)
    slots.activate(state)
    assert mark(state).starts == 0
    assert slots.note_start(state).slot == two and mark(state).starts == 1


Change = Callable[[Path, str], object]
CHANGES: dict[str, tuple[Change, str]] = {  # and the stage that it needs
    "activate": (lambda state, slot: slots.activate(state, slot), "shadow"),
    "refuse": (lambda state, slot: slots.refuse(state, "differs", "it differs", slot), "shadow"),
    "commit": (lambda state, slot: slots.commit(state, slot), "trial"),
    "go back": (lambda state, slot: slots.go_back(state, "slow", "it is slow", slot), "trial"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_another_bundle_than_the_one_that_is_meant(name: str, state: Path, bring: Bring) -> None:
    change, stage = CHANGES[name]
    stays(state, bring, 1)
    two, three = bring(2), bring(3)  # three took its place while somebody still looks at two
    if stage == "trial":
        slots.activate(state)
    stamp, now = slots.trial_stamp(state), slots.active(state)
    with pytest.raises(slots.ReplacedError, match=f"{two.name} is not what is wanted any more: {three.name} is"):
        change(state, two.name)
    assert slots.trial_stamp(state) == stamp and slots.active(state) == now
    change(state, three.name)
    assert slots.trial_stamp(state) != stamp


def test_a_stop_in_order_does_not_count(state: Path, bring: Bring) -> None:
    stays(state, bring, 1)
    two = bring(2)
    slots.activate(state)
    for _ in range(10):
        assert slots.note_start(state).slot == two
        slots.note_stop(state)
    assert mark(state).starts == 0
    slots.commit(state)
    slots.note_stop(state)
    assert mark(state).stage == "committed"


def test_a_start_is_on_the_disk_before_it_is_told(state: Path, bring: Bring, monkeypatch: pytest.MonkeyPatch) -> None:
    bring(1)
    synced: list[str] = []
    fsync = os.fsync

    def note(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    slots.note_start(state)
    assert synced == ["trial.json.new", "bundles"]


def test_without_a_bundle_before_it_starts_as_often_as_it_must(state: Path, bring: Bring) -> None:
    one = bring(1)
    for _ in range(6):
        start = slots.note_start(state)
        assert start.slot == one and not start.returned
    assert mark(state).stage == "trial" and mark(state).starts == 6


def test_what_stays_is_not_counted(state: Path, bring: Bring) -> None:
    one = stays(state, bring, 1)
    stamp = slots.trial_stamp(state)
    for _ in range(5):
        assert slots.note_start(state).slot == one
    assert slots.trial_stamp(state) == stamp, "and the disk is not written"


@pytest.mark.parametrize("gone", [False, True])
def test_a_start_with_a_damaged_slot_goes_back(gone: bool, state: Path, bring: Bring) -> None:
    one, two = stays(state, bring, 1), stays(state, bring, 2)
    if gone:
        two.rename(state / "elsewhere")
    else:
        (two / "x86/int8.nb").write_bytes(b"rot")
    start = slots.note_start(state)
    assert start.slot == one and start.returned and start.trial is not None
    assert (start.trial.code, start.trial.stage) == ("damaged", "returned")
    assert start.trial.text.startswith(f"{one.name} is in charge again instead of {two.name}: ")
    assert ("it is not a folder" if gone else "x86/int8.nb: altered: its SHA-256 is") in start.trial.text


def test_with_both_damaged_there_is_nothing_to_go_back_to(state: Path, bring: Bring) -> None:
    one, two = stays(state, bring, 1), stays(state, bring, 2)
    for slot in (one, two):
        (slot / "CARD.md").write_text("rot")
    start = slots.note_start(state)
    assert start.slot == two and not start.returned, "loading it tells what is wrong"
    bring(3)
    assert slots.note_start(state).slot.name.startswith("pcb-3-"), "and the next install repairs it"


def test_a_start_without_any_bundle(state: Path) -> None:
    with pytest.raises(BundleError, match="no bundle is installed"):
        slots.note_start(state)


def test_a_disk_that_cannot_be_written_keeps_nothing_from_starting(
    state: Path, bring: Bring, monkeypatch: pytest.MonkeyPatch
) -> None:
    stays(state, bring, 1)
    two = bring(2)
    slots.activate(state)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "trial.json.new")

    monkeypatch.setattr(trials, "write_whole", full)
    start = slots.note_start(state)
    assert start.slot == two and not start.returned
    assert start.problem.startswith("the start cannot be counted in")
    assert "No space left on device" in start.problem


def test_a_start_waits_only_so_long_for_the_lock(state: Path, bring: Bring, monkeypatch: pytest.MonkeyPatch) -> None:
    one, lock = stays(state, bring, 1), trials.lock
    handle = os.open(state / "bundles", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(trials, "lock", lambda folder: lock(folder, 0.1))
            start = slots.note_start(state)
    finally:
        os.close(handle)
    assert start.slot == one and "another process is changing" in start.problem
    assert slots.note_start(state).problem == ""


def test_a_start_does_not_wait_for_a_copy(state: Path, bring: Bring) -> None:
    one = stays(state, bring, 1)
    with (state / "bundles/.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert slots.note_start(state) == slots.Start(one, mark(state))
        with pytest.raises(BundleError, match="another install is at work"):
            bring(2)


# --- rollback ---


def test_rollback_and_forward_again(state: Path, bring: Bring) -> None:
    one, two = stays(state, bring, 1), stays(state, bring, 2)
    assert slots.rollback(state, "too many rejects") == one
    assert slots.active(state) == one and slots.previous(state) == two
    assert (mark(state).stage, mark(state).slot, mark(state).text) == ("rolled_back", two.name, "too many rejects")
    assert slots.rollback(state) == two
    assert mark(state).text == f"{one.name} was rolled back to {two.name} by hand"


def test_rollback_from_a_trial_does_not_keep_what_never_stayed(state: Path, bring: Bring) -> None:
    one, two = stays(state, bring, 1), stays(state, bring, 2)
    bring(3)
    slots.activate(state)
    assert slots.rollback(state) == two
    assert slots.previous(state) == one, "not the one that was on trial"


def test_rollback_gives_up_the_candidate(state: Path, bring: Bring) -> None:
    one = stays(state, bring, 1)
    stays(state, bring, 2)
    bring(3)
    assert slots.rollback(state) == one
    assert slots.candidate(state) is None
    with pytest.raises(BundleError, match="no candidate"):
        slots.activate(state)


# --- marks and links that do not agree ---


def test_a_mark_without_its_links_is_settled(state: Path, bring: Bring) -> None:
    one, two = stays(state, bring, 1), bring(2)
    bundles = state / "bundles"
    on_trial = msgspec.structs.replace(mark(state), stage="trial")
    trials.write(bundles, trials.TRIAL, on_trial)  # the power went here
    assert slots.active(state) == one
    assert slots.note_start(state).slot == two
    assert slots.previous(state) == one and not (bundles / "candidate").is_symlink()


def test_a_candidate_without_a_mark_is_removed(state: Path, bring: Bring) -> None:
    one = stays(state, bring, 1)
    (state / "bundles/candidate").symlink_to(one.name)
    assert slots.candidate(state) is None, "a link alone is nobody's word"
    slots.note_start(state)
    assert not (state / "bundles/candidate").is_symlink()


def test_a_candidate_that_is_damaged_is_given_up_not_activated(state: Path, bring: Bring) -> None:
    one, two = stays(state, bring, 1), bring(2)
    (two / "CARD.md").write_text("rot")
    with pytest.raises(BundleError, match=r"no candidate in .*; pcb-2-\w+ was damaged before it was in charge"):
        slots.activate(state)
    assert slots.active(state) == one and mark(state).code == "damaged"


@pytest.mark.parametrize(
    "text", [b"", b"{", b"null", b'{"slot": "../../etc", "stage": "trial"}', b'{"slot": "pcb-1-00000000"}', b"\xff"]
)
def test_a_mark_that_cannot_be_understood_moves_nothing(text: bytes, state: Path, bring: Bring) -> None:
    stays(state, bring, 1)
    two = stays(state, bring, 2)
    (state / "bundles/trial.json").write_bytes(text)
    start = slots.note_start(state)
    assert (start.slot, start.trial, start.returned) == (two, None, False)
    three = bring(3)
    assert slots.candidate(state) == three


def test_links_from_before_there_were_marks(state: Path, tmp_path: Path, bring: Bring) -> None:
    """A state folder of an older release: slots and links, nothing else."""
    stays(state, bring, 1)
    two = stays(state, bring, 2)
    for path in (state / "bundles").glob("*.json"):
        path.unlink()
    assert slots.note_start(state) == slots.Start(two, None)
    assert (slots.told(state).signed, slots.told(state).origin) == (False, "local")
    assert slots.floor(state, "pcb") == 0
    assert slots.rollback(state).name.startswith("pcb-1-")


# --- who brought it, and what is too old ---


def test_who_brought_a_slot_is_known_until_it_is_removed(state: Path, bring: Bring) -> None:
    one, two = stays(state, bring, 1, origin="network"), stays(state, bring, 2, signed=False, origin="local")
    assert (slots.told(state, one).signed, slots.told(state, one).origin) == (True, "network")
    assert (slots.told(state).signed, slots.told(state).origin) == (False, "local")
    assert slots.told(state).at > 0
    three = stays(state, bring, 3)
    assert set(trials.origins(state / "bundles")) == {two.name, three.name}


def test_who_is_vouched_for_later_is_vouched_for(state: Path, bring: Bring) -> None:
    stays(state, bring, 1, signed=False)
    bring(1, signed=True, origin="network")
    assert slots.told(state).signed
    bring(1, signed=False, origin="local")
    assert slots.told(state).signed, "and stays so"


def test_the_floor_is_raised_when_a_bundle_stays(state: Path, bring: Bring) -> None:
    stays(state, bring, 4)
    bring(7)
    slots.activate(state)
    assert slots.floor(state, "pcb") == 4, "on trial is not accepted yet"
    slots.go_back(state, "slow", "slow")
    assert slots.floor(state, "pcb") == 4, "the next one may be any that is newer than the last good one"
    stays(state, bring, 5)
    assert slots.floor(state, "pcb") == 5 and slots.floor(state, "ballscrew") == 0
    slots.rollback(state)
    assert slots.floor(state, "pcb") == 5, "a held slot may serve, the floor does not sink"


def test_what_nobody_vouches_for_raises_no_floor(state: Path, bring: Bring) -> None:
    """Or one that is installed by hand with a high number would keep every true one out."""
    stays(state, bring, 4)
    stays(state, bring, 900, signed=False, origin="local")
    assert slots.floor(state, "pcb") == 4


def test_a_floor_that_cannot_be_read_is_told(state: Path, bring: Bring) -> None:
    stays(state, bring, 4)
    (state / "bundles/floor.json").write_text("{")
    with pytest.raises(BundleError, match=r"floor.json cannot be read.*remove it to accept any version"):
        slots.floor(state, "pcb")
    stays(state, bring, 5)
    assert slots.floor(state, "pcb") == 5


# --- what became of it ---


def test_every_end_leaves_word(state: Path, bring: Bring) -> None:
    def last() -> tuple[str, str, str, str, str]:
        found = outcomes.read(state)
        assert found is not None and found.ts > 0
        return found.outcome, found.code, found.bundle, found.source, found.transaction

    stays(state, bring, 1)
    assert last() == ("committed", "", "pcb 1", "usb", "t1")
    bring(2)
    slots.refuse(state, "differs", "they differ")
    assert last() == ("refused", "differs", "pcb 2", "usb", "t2")
    bring(3)
    slots.activate(state)
    slots.go_back(state, "slow", "slow")
    assert last() == ("returned", "slow", "pcb 3", "usb", "t3")
    stays(state, bring, 4)
    slots.rollback(state)
    assert last() == ("rolled_back", "rolled_back", "pcb 4", "usb", "")


def test_word_that_cannot_be_left_undoes_nothing(state: Path, bring: Bring) -> None:
    one = stays(state, bring, 1)
    bring(2)
    slots.activate(state)
    for path in (state / "update").iterdir():
        path.unlink()
    (state / "update").rmdir()
    (state / "update").write_text("in the way")
    assert slots.go_back(state, "slow", "slow") == one
    assert outcomes.read(state) is None
    with pytest.raises(BundleError, match="the outcome cannot be kept in"):
        outcomes.write(state, UpdateOutcome(outcome="failed", code="x", text="x"))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"outcome": 1}'])
def test_word_that_cannot_be_understood_is_none(text: bytes, state: Path) -> None:
    assert outcomes.read(state) is None and outcomes.stamp(state) is None
    outcomes.write(state, UpdateOutcome(outcome="failed", code="x", text="y", ts=1.0))
    assert outcomes.read(state) == UpdateOutcome(outcome="failed", code="x", text="y", ts=1.0)
    before = outcomes.stamp(state)
    (state / "update/outcome.json").write_bytes(text)
    assert outcomes.read(state) is None and outcomes.stamp(state) != before


# --- two users ---

AS_NOBODY = """
import os, sys
from pathlib import Path
from edge.bundle import slots
os.setgid(65534); os.setuid(65534)
state = Path(sys.argv[1])
print(slots.note_start(state).problem)
slots.activate(state)
slots.note_start(state)
slots.go_back(state, "slow", "slow")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_installs_and_the_daemon_s_user_goes_on(state: Path, bring: Bring) -> None:
    os.chown(state, 65534, 65534)
    for folder in state.parents:
        if "pytest" in str(folder):
            folder.chmod(folder.stat().st_mode | 0o011)
    one = stays(state, bring, 1)
    bring(2)
    (state / "bundles/trial.json.new").write_text("root was killed here")
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(state)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr
    assert slots.active(state) == one and mark(state).stage == "returned"
    assert {path.lstat().st_uid for path in state.rglob("*")} == {65534}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is worth a trap")
def test_root_writes_through_no_link_that_lies_in_its_way(state: Path, bring: Bring, tmp_path: Path) -> None:
    stays(state, bring, 1)
    victim = tmp_path / "victim"
    victim.write_text("kept")
    for name in ("trial.json.new", "origins.json.new", "floor.json.new", "candidate.partial"):
        (state / "bundles" / name).symlink_to(victim)
    (state / "update/outcome.json.new").symlink_to(victim)
    stays(state, bring, 2)
    assert victim.read_text() == "kept"
