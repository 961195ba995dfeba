"""What is not for this device, too old, or wrong on it never serves; what was proved waits beside a daemon."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge import installing, loading
from edge.bundle import manifest as manifests
from edge.bundle import passport as passports
from edge.bundle import slots
from edge.config import Runtime
from edge.errors import BundleError, ConfigError
from edge.installing import Installed, RefusedError, Site, daemon_runs, install
from tests.small_bundles import ONNX, edit_golden, rebuild, small_bundle
from tests.test_proving import quick_proofs

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_proofs(monkeypatch)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "state")


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return small_bundle(tmp_path / "one", 1)


@pytest.fixture
def daemon(site: Site) -> Iterator[None]:
    """Somebody who holds the state folder as a daemon does."""
    site.state.mkdir(parents=True, exist_ok=True)
    handle = os.open(site.state / "lock", os.O_RDWR | os.O_CREAT, 0o640)
    fcntl.flock(handle, fcntl.LOCK_EX)
    yield
    os.close(handle)


def by_hand(source: Path, site: Site, **more: object) -> Installed:
    return install(source, site, origin="local", signed=False, **more)  # type: ignore[arg-type]


def signed(source: Path, site: Site) -> Installed:
    return install(source, site, origin="usb", signed=True, transaction="t-1")


def refused(source: Path, site: Site, *, as_signed: bool = False) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        signed(source, site) if as_signed else by_hand(source, site)
    return caught.value


def test_the_first_bundle_is_on_trial_at_once(one: Path, site: Site) -> None:
    done = by_hand(one, site)
    assert (done.stage, done.running, done.name) == ("trial", False, "small 1")
    assert "start the daemon to serve it" in str(done)
    assert slots.active(site.state) == done.slot and passports.read(done.slot) == done.passport
    assert done.passport.holds(manifests.digest(manifests.read(one)), loading.here(Runtime()))
    assert not slots.told(site.state).signed and not daemon_runs(site.state)


def test_beside_a_daemon_it_waits_in_shadow(one: Path, site: Site, tmp_path: Path, daemon: None) -> None:
    first = by_hand(one, site)
    assert (first.stage, first.running) == ("trial", True), "there is nothing it could be beside"
    two = signed(small_bundle(tmp_path / "two", 2), site)
    assert (two.stage, two.running) == ("shadow", True) and "swaps by itself" in str(two)
    assert slots.active(site.state) == first.slot and slots.candidate(site.state) == two.slot
    mark = slots.read_trial(site.state)
    assert mark is not None and (mark.stage, mark.origin, mark.signed, mark.transaction) == (
        "shadow",
        "usb",
        True,
        "t-1",
    )
    again = by_hand(tmp_path / "two", site, now=True)
    assert again.stage == "trial" and slots.active(site.state) == two.slot and "takes it over now" in str(again)


def test_without_a_daemon_the_next_start_tries_it(one: Path, site: Site, tmp_path: Path) -> None:
    first = by_hand(one, site)
    slots.commit(site.state)
    two = by_hand(small_bundle(tmp_path / "two", 2), site)
    assert two.stage == "trial" and slots.active(site.state) == two.slot and slots.previous(site.state) == first.slot
    with pytest.raises(BundleError, match="is on trial: wait until it stays or is returned"):
        by_hand(small_bundle(tmp_path / "three", 3), site)


def test_what_is_active_stays_and_is_not_proved_again(one: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    first = by_hand(one, site)
    monkeypatch.delattr(installing.proving, "prove")
    again = by_hand(one, site)
    assert (again.stage, again.slot) == ("active", first.slot) and "is active already" in str(again)


@pytest.mark.parametrize(
    ("hardware", "words"),
    [
        (["riscv64"], "is for riscv64, and this is"),
        (["Jetson Orin Nano", "Raspberry Pi 9"], "is for Jetson Orin Nano or Raspberry Pi 9, and this is"),
    ],
)
def test_other_hardware_is_refused(hardware: list[str], words: str, tmp_path: Path, site: Site) -> None:
    error = refused(small_bundle(tmp_path / "b", hardware=hardware), site)
    assert error.code == "hardware" and words in str(error) and "get the one that was made" in str(error)
    assert not (site.state / "bundles").exists(), "nothing was copied"


def test_this_hardware_is_welcome(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "board", lambda: "Raspberry Pi 9 Model B Rev 1.0")
    manifest = manifests.read(small_bundle(tmp_path / "b", hardware=["Raspberry Pi 9"]))
    installing.check(manifest, site, signed=True)


def test_another_product_or_a_fixed_folder_is_refused(one: Path, site: Site, tmp_path: Path) -> None:
    other = Site(site.state, product="pcb")
    assert refused(one, other).code == "wrong_product"
    assert refused(one, Site(site.state, fixed=tmp_path / "x")).code == "not_used"


def test_nothing_older_than_what_was_trusted(one: Path, site: Site, tmp_path: Path) -> None:
    signed(small_bundle(tmp_path / "five", 5), site)
    slots.commit(site.state)
    for as_signed in (True, False):
        error = refused(one, site, as_signed=as_signed)
        assert error.code == "older" and "small 1 is older than small 5" in str(error)
        assert "edge bundle rollback" in str(error)


def test_one_name_for_two_bundles_is_refused(one: Path, site: Site, tmp_path: Path) -> None:
    signed(one, site)
    slots.commit(site.state)
    other = small_bundle(tmp_path / "other", 1, figures={"ap": 0.5})
    error = refused(other, site, as_signed=True)
    assert error.code == "two_of_one" and "two different bundles that are called small 1" in str(error)
    assert by_hand(other, site).stage == "trial", "a person may try one after the other on the bench"


def test_recipes_of_the_site_must_fit(one: Path, site: Site, tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text("[detect.class_threshold]\ndent = 0.4\n")
    with pytest.raises(ConfigError, match="dent"):
        by_hand(one, Site(site.state, recipe=tmp_path / "site.toml"))
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/a.toml").write_text('name = "a"\n[detect.class_threshold]\ndent = 0.4\n')
    with pytest.raises(ConfigError, match="dent"):
        by_hand(one, Site(site.state, recipes=tmp_path / "recipes"))


def test_what_does_not_agree_here_is_not_activated(one: Path, site: Site, tmp_path: Path) -> None:
    first = by_hand(one, site)
    two = small_bundle(tmp_path / "two", 2)
    edit_golden(two, 0, verdict="NG")
    with pytest.raises(BundleError, match=r"judges golden/0\.png OK, the reference NG") as caught:
        by_hand(two, site)
    assert installing.code_of(caught.value) == "proof"
    assert slots.active(site.state) == first.slot and slots.candidate(site.state) is None


def test_a_model_that_is_none_is_refused_with_its_reason(tmp_path: Path, site: Site) -> None:
    folder = small_bundle(tmp_path / "b")
    (folder / ONNX).write_bytes(b"no model")
    rebuild(folder)
    with pytest.raises(BundleError, match=r"detector\.onnx: failed: .*cannot be run by onnxruntime here"):
        by_hand(folder, site)


def test_a_newer_edge_is_asked_for(tmp_path: Path, site: Site) -> None:
    folder = small_bundle(tmp_path / "b")
    said = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(said | {"min_edge": "99.0.0"}))
    with pytest.raises(BundleError, match=r"needs edge 99\.0\.0 or newer"):
        by_hand(folder, site)
    assert installing.needs_newer_edge("99.0.0") and not installing.needs_newer_edge("0.0.9")


def test_a_daemon_is_seen_by_its_lock(site: Site, daemon: None) -> None:
    assert daemon_runs(site.state)


def test_a_state_folder_that_cannot_be_written_is_said(one: Path, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(BundleError, match="state"):
        by_hand(one, Site(tmp_path / "state"))
