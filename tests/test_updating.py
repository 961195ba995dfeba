"""One way for network and stick: what a repository signed for this device is brought, all else leaves word."""

from __future__ import annotations

import fcntl
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edge import cli, installing, loading, updating
from edge.bundle import manifest as manifests
from edge.bundle import outcome as outcomes
from edge.bundle import overview, slots, stick
from edge.bundle.trust import Offer
from edge.config import Config, Paths, SimulatedCamera, Update
from edge.errors import BundleError, TrustError
from edge.event import UpdateOutcome
from edge.installing import Site
from edge.updating import Attempt, choose, import_stick, update
from tests.flow.rig import REPOSITORY
from tests.small_bundles import small_bundle
from tests.test_proving import quick_proofs
from tools.publish import main as publish

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_proofs(monkeypatch)
    monkeypatch.delenv("EDGE_PUBLISH_PASSPHRASE", raising=False)


class Publisher:
    """Keys and a repository, made by the toolchain's own publisher."""

    def __init__(self, folder: Path, products: tuple[str, ...] = ("small",)) -> None:
        self.folder, self.repository = folder, folder / "repository"
        self.root = self.repository / "metadata/1.root.json"
        publish(["keys", str(folder / "keys"), "--products", *products, "--plain"])
        roots = [self.key(f"root-{k}") for k in (1, 2, 3)]
        rest = ["--targets", self.key("targets"), "--online", self.key("online")]
        known = [f"{product}={self.key(f'product-{product}')}" for product in products]
        publish(["init", str(self.repository), "--roots", *roots, *rest, "--products", *known])

    def key(self, name: str) -> str:
        return str(self.folder / "keys" / name / f"{name}.key")

    def add(self, bundle: Path) -> None:
        publish(["add", str(self.repository), str(bundle), "--keys", self.key("product-small"), self.key("online")])


@pytest.fixture(scope="module")
def publishers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Three states of one publisher: with the first bundle, with a second, and with one for other hardware."""
    root = tmp_path_factory.mktemp("publisher")
    made = Publisher(root / "work")
    states = []
    for version, hardware in ((1, ["x86_64", "aarch64"]), (2, []), (3, ["Machine of Tomorrow"])):
        made.add(small_bundle(root / f"small-{version}", version, hardware=hardware))
        states.append(shutil.copytree(made.repository, root / f"repository-{version}"))
    return states[0], states[1], states[2]


@pytest.fixture
def first(publishers: tuple[Path, Path, Path]) -> Path:
    return publishers[0]


@pytest.fixture
def config(tmp_path: Path, first: Path) -> Config:
    (tmp_path / "state").mkdir()
    root = shutil.copyfile(first / "metadata/1.root.json", tmp_path / "root.json")
    return Config(
        camera=[SimulatedCamera(id="cam1")],
        paths=Paths(state=str(tmp_path / "state")),
        update=Update(root=str(root)),
    )


def state_of(config: Config) -> Path:
    return Path(config.paths.state)


def changed(config: Config, **changes: object) -> Config:
    return msgspec.structs.replace(config, update=msgspec.structs.replace(config.update, **changes))


@pytest.fixture
def web(first: Path) -> Iterator[str]:
    """The repository on a real server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(first)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_over_the_network(web: str, config: Config) -> None:
    said: list[str] = []
    outcome = update(changed(config, url=web), transaction="t-7", say=said.append)
    assert (outcome.outcome, outcome.source, outcome.bundle) == ("installed", "network", "small 1"), outcome
    assert outcome.transaction == "t-7" and outcomes.read(state_of(config)) == outcome
    assert slots.active(state_of(config)).name.startswith("small-1-")
    assert slots.told(state_of(config)).signed and slots.told(state_of(config)).origin == "network"
    assert any("looking at http://" in text for text in said) and any("golden samples" in text for text in said)
    left = {path.name for path in (state_of(config) / "update").iterdir()}
    assert left == {"outcome.json", ".busy", "downloads"} and not list(
        (state_of(config) / "update/downloads").iterdir()
    )
    again = update(changed(config, url=web))
    assert (again.outcome, again.code) == ("nothing_new", "under_way"), again
    assert outcomes.read(state_of(config)) == outcome, "a timer that finds nothing new does not hide what came"
    slots.commit(state_of(config))
    asked = update(changed(config, url=web), transaction="t-8")
    assert (asked.code, asked.text) == ("active", "small 1 is active already")
    assert outcomes.read(state_of(config)) == asked, "who asked gets an answer"


@pytest.mark.parametrize("place", ["", "edge-bundles"])
def test_from_a_stick(place: str, first: Path, config: Config, tmp_path: Path) -> None:
    mount = tmp_path / "stick"
    shutil.copytree(first, mount / place)
    outcome, text = import_stick(config, mount)
    assert (outcome.outcome, outcome.source) == ("installed", "usb"), outcome
    assert "INSTALLED: small 1 is active on trial" in text and "active bundle: small 1" in text
    assert slots.told(state_of(config)).origin == "usb"
    assert not (state_of(config) / "update/spool").exists()
    _, again = import_stick(config, mount)
    assert "NOTHING NEW: small 1 is being tried already" in again


def test_a_stick_and_the_network_are_two_mirrors_of_one_client(
    publishers: tuple[Path, Path, Path], config: Config
) -> None:
    assert update(config, str(publishers[1])).bundle == "small 2"
    outcome, text = import_stick(config, publishers[0])
    assert (outcome.outcome, outcome.code) == ("refused", "rolled_back"), outcome
    assert str(publishers[0]) in text and "spool" not in text, "the stick is named as people know it"
    assert slots.active(state_of(config)).name.startswith("small-2-")


def refusal(outcome: UpdateOutcome, config: Config) -> str:
    assert outcomes.read(state_of(config)) == outcome, "there is word of it"
    assert not updating.went_well(outcome)
    with pytest.raises(Exception, match="no bundle is installed"):
        slots.active(state_of(config))
    return f"{outcome.outcome} {outcome.code}"


def test_what_is_not_believed_is_refused(first: Path, config: Config, tmp_path: Path) -> None:
    other = Publisher(tmp_path / "other")
    outcome, text = import_stick(config, other.repository)
    assert refusal(outcome, config) == "refused wrong_root" and "REFUSED:" in text and "code: wrong_root" in text
    shutil.copytree(first, tmp_path / "altered")
    archive = next((tmp_path / "altered/targets/small").iterdir())
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")
    assert refusal(import_stick(config, tmp_path / "altered")[0], config) == "refused tampered"
    assert refusal(update(changed(config, root=str(tmp_path / "none")), str(first)), config) == "failed no_root"


def test_what_is_not_there_failed(config: Config, tmp_path: Path) -> None:
    assert refusal(update(config, "http://127.0.0.1:9"), config) == "failed unreachable"
    (tmp_path / "empty").mkdir()
    outcome, text = import_stick(config, tmp_path / "empty")
    assert refusal(outcome, config) == "refused no_repository" and "edge-bundles/metadata/" in text
    off = changed(config, usb=False)
    assert refusal(import_stick(off, tmp_path / "empty")[0], off) == "refused usb_off"
    assert refusal(update(config, "gopher://x"), config) == "failed unreachable"


def test_no_address_is_no_fault(config: Config) -> None:
    outcome = update(config)
    assert (outcome.outcome, outcome.code) == ("nothing_new", "no_url") and updating.went_well(outcome)
    assert "set update.url" in updating.told(outcome)


def test_two_updates_do_not_meet(first: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updating, "BUSY_WAIT_S", 0.1)
    folder = state_of(config) / "update"
    folder.mkdir()
    handle = os.open(folder / ".busy", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert refusal(update(config, str(first)), config) == "failed busy"
    os.close(handle)


def test_hardware_is_looked_at_before_anything_is_fetched(
    publishers: tuple[Path, Path, Path], config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = update(config, str(publishers[2]))
    assert (outcome.outcome, outcome.bundle) == ("installed", "small 2"), "the newest that is for this device"
    slots.commit(state_of(config))
    later = update(config, str(publishers[2]))
    assert later.code == "active" and "small 3 is for Machine of Tomorrow, and this is" in updating.told(later)
    monkeypatch.setattr(loading, "board", lambda: "Machine of Tomorrow, Rev 2")
    monkeypatch.setattr(loading, "machine", lambda: "x86_64")
    assert update(config, str(publishers[2])).bundle == "small 3", "words of the board's model"


def test_what_did_not_stay_is_not_tried_again_by_itself(publishers: tuple[Path, Path, Path], config: Config) -> None:
    state = state_of(config)
    update(config, str(publishers[0]))
    slots.commit(state)
    assert update(config, str(publishers[1])).bundle == "small 2"
    slots.go_back(state, "latency", "frames took three times as long")
    outcome = update(config, str(publishers[1]))
    assert (outcome.outcome, outcome.code) == ("nothing_new", "given_up")
    assert "frames took three times as long" in outcome.text
    assert slots.active(state).name.startswith("small-1-")
    assert update(config, str(publishers[1]), explicit=True).outcome == "installed", "a person may"


def test_what_came_by_hand_is_vouched_for_later(
    publishers: tuple[Path, Path, Path], config: Config, tmp_path: Path
) -> None:
    state = state_of(config)
    bundle = publishers[0].parent / "small-1"
    installing.install(bundle, Site.of(config), origin="local", signed=False)
    slots.commit(state)
    assert not slots.told(state).signed
    assert update(config, str(publishers[0])).code == "active"
    assert slots.told(state).signed, "it is the very one that the repository signed for"


KILLS = 40


def begin_update(config: Config, repository: Path, folder: Path) -> subprocess.Popen[bytes]:
    words = ["bundle", "install", str(repository), "--config", str(written(config, folder))]
    return subprocess.Popen(
        [sys.executable, "-m", "edge", *words], cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_anywhere_on_its_way_the_active_bundle_is_whole(
    publishers: tuple[Path, Path, Path], config: Config, tmp_path: Path
) -> None:
    update(config, str(publishers[0]))
    slots.commit(state_of(config))
    before = shutil.copytree(state_of(config), tmp_path / "before", symlinks=True)
    began = time.monotonic()
    assert begin_update(config, publishers[1], tmp_path).wait(300) == 0
    whole_s = time.monotonic() - began
    stages: Counter[str] = Counter()
    for number in range(KILLS):
        shutil.rmtree(state_of(config))
        shutil.copytree(before, state_of(config), symlinks=True)
        process = begin_update(config, publishers[1], tmp_path)
        time.sleep(whole_s * (number + 0.5) / KILLS)
        process.kill()
        process.wait(30)
        active = slots.active(state_of(config))
        version = manifests.read(active).version
        mark = slots.read_trial(state_of(config))
        stages[f"{version} {mark.stage if mark else ''}"] += 1
        assert version in (1, 2)
        if number % 8 == 0:
            assert updating.went_well(update(config, str(publishers[1]))), "and the next one goes well"
            assert manifests.read(slots.active(state_of(config))).version == 2
    print(f"{KILLS} kills over {whole_s:.1f} s: {dict(stages)}")


def offer(version: int, digest: str = "ab" * 32, **more: object) -> Offer:
    given = {"min_edge": "0.0.1", "hardware": (), "path": f"small/{version}.tar.gz", "length": 10} | more
    return Offer("small", version, digest, **given)  # type: ignore[arg-type]


def test_choice_among_offers(config: Config) -> None:
    attempt = Attempt(config, "a", "a", "network")
    assert choose([], "small", attempt).code == "none"
    assert choose([offer(4, min_edge="99.0.0"), offer(3), offer(2)], "small", attempt).offer == offer(3)
    with pytest.raises(installing.RefusedError, match=r"small 4 needs edge 99\.0\.0 or newer, this is"):
        choose([offer(4, min_edge="99.0.0")], "small", attempt)
    (state_of(config) / "bundles").mkdir()
    (state_of(config) / "bundles/floor.json").write_text('{"small": 7}')
    with pytest.raises(installing.RefusedError, match="small 6 is older than small 7, which was trusted") as caught:
        choose([offer(6)], "small", attempt)
    assert caught.value.code == "older"


def test_an_archive_that_holds_another_bundle_is_refused(tmp_path: Path) -> None:
    manifest = manifests.read(small_bundle(tmp_path / "b", 3))
    updating.check_offer(manifest, offer(3, manifests.digest(manifest)))
    for wrong in (offer(3), offer(4, manifests.digest(manifest))):
        with pytest.raises(TrustError, match=r"holds small 3, .* and signed for is small") as caught:
            updating.check_offer(manifest, wrong)
        assert caught.value.code == "mixed"


def test_nothing_is_copied_from_behind_a_link(first: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("nobody's business")
    mount = shutil.copytree(first, tmp_path / "stick")
    (mount / "metadata/extra.json").symlink_to(tmp_path / "secret")
    os.mkfifo(mount / "metadata/pipe.json")
    spool = stick.Spool(mount, tmp_path / "spool")
    spool.copy_metadata()
    copied = {path.name for path in (tmp_path / "spool/metadata").iterdir()}
    assert "timestamp.json" in copied and not {"extra.json", "pipe.json"} & copied
    shutil.move(mount / "targets/small", tmp_path / "elsewhere")
    (mount / "targets/small").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TrustError, match="a link or a file where a folder of a repository should be") as caught:
        spool.copy_bundles("small")
    assert caught.value.code == "unreadable" and not list((tmp_path / "spool/targets/small").iterdir())


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (stick.Limits(files=3), "too_large"),
        (stick.Limits(metadata_bytes=2000), "too_large"),
        (stick.Limits(seconds=-1.0), "too_slow"),
        (stick.Limits(spare_bytes=1 << 60), "storage"),
    ],
)
def test_a_stick_is_copied_within_limits(limits: stick.Limits, code: str, first: Path, tmp_path: Path) -> None:
    with pytest.raises(TrustError) as caught:
        stick.Spool(first, tmp_path / "spool", limits).copy_metadata()
    assert caught.value.code == code


def test_verify_says_what_would_be_accepted_and_changes_nothing(
    publishers: tuple[Path, Path, Path], config: Config
) -> None:
    said: list[str] = []
    updating.verify(config, str(publishers[2]), said.append)
    assert any("small 3" in text and "is for Machine of Tomorrow" in text for text in said)
    assert said[-1].startswith("small 2 would be accepted, digest ")
    assert not list(state_of(config).iterdir())
    updating.verify(config, str(publishers[0].parent / "small-1"), said.append)
    assert said[-1] == "nobody vouches for it: it is installed with --unsigned only"
    assert not list(state_of(config).iterdir())
    with pytest.raises(TrustError):
        updating.verify(config, "http://127.0.0.1:9", said.append)


def edge(*words: object) -> int:
    return cli.main(["bundle", *map(str, words)])


def written(config: Config, tmp_path: Path) -> Path:
    path = tmp_path / "edge.toml"
    path.write_text(
        f'[paths]\nstate = "{config.paths.state}"\n[update]\nroot = "{config.update.root}"\n'
        '[[camera]]\nid = "cam1"\nsource = "simulated"\n'
    )
    return path


def test_the_commands(
    publishers: tuple[Path, Path, Path], config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--config", written(config, tmp_path))
    assert edge("status", *given) == 2 and "edge: no bundle is installed" in capsys.readouterr().err
    assert edge("install", publishers[0], *given) == 0
    assert "installed: small 1 is active on trial" in capsys.readouterr().out
    assert edge("status", "--json", *given) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["active"]["signed"] and status["active"]["picked"] == "detector.onnx"
    assert status["trial"]["stage"] == "trial" and status["last"]["outcome"] == "installed"
    slots.commit(state_of(config))
    assert edge("install", publishers[1], *given) == 0
    assert edge("status", *given) == 0
    text = capsys.readouterr().out
    assert "active: small 2" in text and "signed, from a folder; on trial, 0 starts" in text
    assert "previous: small 1" in text and "* detector.onnx" in text
    assert edge("rollback", "--reason", "looks odd", *given) == 0
    assert "active: small-1-" in capsys.readouterr().out
    assert edge("update", *given) == 0 and "set update.url" in capsys.readouterr().out
    assert edge("import", publishers[1], *given) == 0, "given up: nothing new"
    assert "did not stay on this device" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("install", "{bundle}"), "is a bundle that nobody vouches for: publish it to a repository (`tools publish`)"),
        (("install", "{empty}"), "there is no bundle repository at"),
        (("install", "{repository}", "--unsigned"), "is a repository, which is signed: leave --unsigned out"),
        (("install", "http://127.0.0.1:9"), "failed: "),
        (("verify", "{empty}"), "is not a bundle: it has no file manifest.json"),
        (("rollback",), "no bundle is installed"),
        (("trust", "{bundle}/manifest.json"), "is no root of trust"),
        (("trust", "{empty}/none.json"), "cannot be read"),
    ],
)
def test_what_cannot_be_done_is_one_message(
    words: tuple[str, ...], expected: str, publishers: tuple[Path, Path, Path], config: Config, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "empty").mkdir()
    places = {"bundle": publishers[0].parent / "small-1", "empty": tmp_path / "empty", "repository": publishers[0]}
    assert edge(*(word.format(**places) for word in words), "--config", written(config, tmp_path)) == 2
    said = capsys.readouterr().err
    assert expected in said and said.count("edge: ") == 1 and "Traceback" not in said


def test_a_fault_of_the_program_leaves_word_too(first: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(installing, "install", fault)
    with pytest.raises(ZeroDivisionError):
        update(config, str(first))
    last = outcomes.read(state_of(config))
    assert last is not None and (last.outcome, last.code) == ("failed", "internal") and "ZeroDivisionError" in last.text


@pytest.mark.skipif(os.geteuid() != 0, reason="wants to become somebody else")
def test_what_may_not_be_read_is_not_called_empty(config: Config, tmp_path: Path) -> None:
    (state_of(config) / "bundles").mkdir(mode=0o700)
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        try:
            overview.overview(state_of(config), loading.here(config.runtime), config.runtime)
        except BundleError as error:
            os._exit(0 if "run it as root or as the daemon's user" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_root_of_trust_is_looked_at_before_it_is_believed(
    first: Path, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, at = first / "metadata/1.root.json", tmp_path / "etc/trust/root.json"
    given = ("--config", written(changed(config, root=str(at)), tmp_path))
    assert edge("trust", root, *given) == 0 and at.read_bytes() == root.read_bytes()
    assert "root 1, 2 of 3 keys, until 20" in capsys.readouterr().out and oct(at.stat().st_mode)[-3:] == "644"
    assert edge("trust", root, *given) == 0 and "it is this one already" in capsys.readouterr().out
    forged = json.loads(root.read_bytes())
    forged["signed"]["version"] = 2
    (tmp_path / "forged.json").write_text(json.dumps(forged))
    assert edge("trust", tmp_path / "forged.json", *given, "--replace") == 2
    assert "is signed by 0 of its own keys, and says that it wants 2" in capsys.readouterr().err
    other = Publisher(tmp_path / "other").root
    assert edge("trust", other, *given) == 2 and "this device believes another root already" in capsys.readouterr().err
    assert at.read_bytes() == root.read_bytes()
    assert edge("trust", other, *given, "--replace") == 0 and at.read_bytes() == other.read_bytes()
    publish(["keys", str(tmp_path / "desk"), "--development", "--plain"])
    key = str(tmp_path / "desk/development/development.key")
    publish(["init", str(tmp_path / "bench"), "--development", key])
    assert edge("trust", tmp_path / "bench/metadata/1.root.json", *given, "--replace") == 0
    assert "made for development" in (said := capsys.readouterr().out) and "update.development = true" in said
