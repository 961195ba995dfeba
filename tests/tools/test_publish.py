"""The publisher: what it makes is what a device takes, and it refuses what would lock devices out."""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.bundle import archive
from edge.bundle import manifest as manifests
from edge.bundle.manifest import Fields
from edge.bundle.mirror import mirror
from edge.bundle.trust import Offer, Trust
from edge.errors import EdgeError, TrustError
from tools.errors import ToolError
from tools.publish import main
from tools.publish_repository import open_repository

DAY_S = 86_400.0


@pytest.fixture(autouse=True)
def no_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGE_PUBLISH_PASSPHRASE", raising=False)


def make_bundle(folder: Path, version: int, product: str = "pcb") -> Path:
    folder.mkdir(parents=True)
    (folder / "int8.nb").write_bytes(bytes([version]) * 5000)
    (folder / "recipe.toml").write_text(f'name = "{product}"\n')
    (folder / "CARD.md").write_text(f"# {product} {version}\n")
    artifact = {"file": "int8.nb", "runtime": "paddlelite", "arch": "any", "precision": "int8", "made_with": "x 1"}
    size = {"width": 64, "height": 64, "channels": 1}
    fields = Fields(product=product, version=version, classes=["open"], input=size, strides=[8], artifacts=[artifact])
    manifests.build(folder, fields)
    return folder


class Publisher:
    """Keys, a repository, and the commands on it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.repository, self.state = folder, folder / "repo", folder / "state"
        self.state.mkdir(parents=True)
        (folder / "unpacked").mkdir()
        self.root = self.repository / "metadata" / "1.root.json"
        main(["keys", str(folder / "keys"), "--products", "pcb", "ballscrew", "--plain"])
        roots = [self.key(f"root-{k}") for k in (1, 2, 3)]
        rest = ["--targets", self.key("targets"), "--online", self.key("online")]
        main(["init", str(self.repository), "--roots", *roots, *rest, "--products", f"pcb={self.key('product-pcb')}"])

    def key(self, name: str, of: str = "keys") -> str:
        return str(self.folder / of / name / f"{name}.key")

    def do(self, what: str, *words: str, keys: tuple[str, ...] = (), paths: tuple[str, ...] = ()) -> None:
        signing = ["--keys", *map(self.key, keys), *paths] if keys or paths else []
        main([what, str(self.repository), *words, *signing])

    def add(self, version: int, *words: str, product: str = "pcb") -> None:
        bundle = self.folder / f"{product}-{version}"
        if not bundle.exists():
            make_bundle(bundle, version, product)
        self.do("add", str(bundle), *words, keys=(f"product-{product}", "online"))

    def more_keys(self) -> None:
        main(["keys", str(self.folder / "new"), "--products", "pcb", "--plain"])

    def device(self, days: float = 0.0, repository: Path | None = None, development: bool = False) -> list[Offer]:
        """What a device finds, the newest fetched and unpacked."""
        source = mirror(str(repository or self.repository))
        now = time.time() + days * DAY_S
        trust = Trust(self.root, self.state, source, now=lambda: now, development=development)
        trust.refresh()
        offers = trust.offers("pcb")
        if offers:
            fetched = trust.fetch(offers[0], self.folder / "downloads")
            unpacked = archive.unpack(fetched, self.folder / "unpacked" / str(time.monotonic_ns()))
            assert manifests.digest(manifests.read(unpacked)) == offers[0].digest
        return offers

    def refusal(self, days: float = 0.0, repository: Path | None = None) -> TrustError:
        with pytest.raises(TrustError) as caught:
            self.device(days, repository)
        return caught.value


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path)


def error_of(run: Callable[[], object]) -> str:
    with pytest.raises(EdgeError) as caught:
        run()
    return str(caught.value)


def test_what_is_published_is_what_a_device_takes(publisher: Publisher) -> None:
    assert publisher.device() == [], "a repository without bundles is a repository"
    publisher.add(1)
    publisher.add(3)
    offers = publisher.device()
    assert [(offer.product, offer.version, offer.min_edge) for offer in offers] == [
        ("pcb", 3, manifests.read(publisher.folder / "pcb-3").min_edge),
        ("pcb", 1, manifests.read(publisher.folder / "pcb-1").min_edge),
    ]
    stick = publisher.folder / "stick"
    shutil.copytree(publisher.repository, stick)
    assert publisher.device(repository=stick) == offers, "a copy on a stick is a mirror like any other"


def test_secrets_stay_out_of_the_repository_and_close_to_their_owner(publisher: Publisher) -> None:
    publisher.add(1)
    for path in publisher.repository.rglob("*"):
        assert path.is_dir() or b"PRIVATE KEY" not in path.read_bytes()
    keys = list((publisher.folder / "keys").rglob("*.key"))
    assert len(keys) == 7 and {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
    inside = str(publisher.repository / "keys")
    assert "for everybody to read" in error_of(lambda: main(["keys", inside, "--plain"]))
    assert not (publisher.repository / "keys").exists()
    shutil.copy(publisher.key("online"), publisher.repository / "targets/online.key")
    leaked = str(publisher.repository / "targets/online.key")
    assert "for everybody to read" in error_of(lambda: publisher.do("renew", paths=(leaked,)))


def test_each_act_leaves_a_record_beside_the_repository(publisher: Publisher) -> None:
    publisher.add(1)
    records = sorted((publisher.folder / "repo-records").glob("*.json"))
    steps = [json.loads(path.read_text())["step"] for path in records]
    assert steps == ["publish init", "publish add"]
    assert json.loads(records[1].read_text())["results"]["pcb/pcb-1.tar.gz"]["version"] == 1


@pytest.mark.parametrize("version", [1, 2])
def test_a_version_that_is_not_above_the_highest_is_refused(publisher: Publisher, version: int) -> None:
    publisher.add(2)
    before = (publisher.repository / "metadata/timestamp.json").read_bytes()
    assert "pcb 2 is published already" in error_of(lambda: publisher.add(version))
    assert (publisher.repository / "metadata/timestamp.json").read_bytes() == before


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (("online",), "product-pcb is signed by 1 of"),
        (("product-pcb",), "online is signed by 1 of"),
        (("product-ballscrew", "online"), "product-pcb is signed by 1 of"),
        (("root-1", "root-2"), "online is signed by 1 of"),
    ],
)
def test_the_wrong_keys_are_named(publisher: Publisher, keys: tuple[str, ...], expected: str) -> None:
    bundle = make_bundle(publisher.folder / "pcb-1", 1)
    assert expected in error_of(lambda: publisher.do("add", str(bundle), keys=keys))
    assert not list((publisher.repository / "targets").rglob("*.gz")), "nothing is packed for keys that do not fit"


def test_a_product_without_a_role_is_refused_and_can_be_added(publisher: Publisher) -> None:
    assert "has no product ballscrew; it has pcb" in error_of(lambda: publisher.add(1, product="ballscrew"))
    publisher.do("product", f"ballscrew={publisher.key('product-ballscrew')}", keys=("targets", "online"))
    publisher.add(1, product="ballscrew")
    publisher.add(1)
    assert [offer.path for offer in publisher.device()] == ["pcb/pcb-1.tar.gz"]
    assert "no name of a product" in error_of(
        lambda: publisher.do("product", f"../x={publisher.key('product-ballscrew')}", keys=("targets", "online"))
    )


def test_signatures_expire_and_are_renewed(publisher: Publisher, capsys: pytest.CaptureFixture[str]) -> None:
    publisher.add(1)
    assert publisher.refusal(days=91).code == "expired"
    publisher.do("renew", "--days", "200", keys=("online",))
    assert publisher.device(days=150)
    assert publisher.refusal(days=201).code == "expired"
    publisher.do("renew", "--days", "5", keys=("online", "targets", "product-pcb"))
    capsys.readouterr()
    publisher.do("status")
    said = capsys.readouterr().out
    assert "timestamp" in said and "soon" in said and "pcb/pcb-1.tar.gz" in said and "2 of " in said


def test_status_is_an_error_when_something_has_expired(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time() + 91 * DAY_S
    monkeypatch.setattr(time, "time", lambda: now)
    assert "snapshot, timestamp has expired" in error_of(lambda: publisher.do("status"))


def test_a_products_key_is_exchanged_and_the_former_one_refused_by_name(publisher: Publisher) -> None:
    publisher.add(1)
    publisher.device()
    publisher.more_keys()
    new = publisher.key("product-pcb", "new")
    publisher.do("product", f"pcb={new}", "--reason", "laptop stolen", keys=("targets", "online"))
    assert [offer.version for offer in publisher.device()] == [1], "what it had signed is signed anew"
    bundle = make_bundle(publisher.folder / "pcb-2", 2)
    assert "product-pcb is signed by" in error_of(
        lambda: publisher.do("add", str(bundle), keys=("product-pcb", "online"))
    )
    publisher.do("add", str(bundle), keys=("online",), paths=(new,))
    assert publisher.device()[0].version == 2
    assert "is the key of pcb already" in error_of(
        lambda: publisher.do("product", f"pcb={new}", keys=("targets", "online"))
    )


def test_a_root_key_is_exchanged_by_two_who_do_not_meet(publisher: Publisher) -> None:
    publisher.add(1)
    publisher.device()
    publisher.more_keys()
    gone, come = publisher.key("root-3").replace(".key", ".pub"), publisher.key("root-1", "new").replace(".key", ".pub")
    publisher.do("root", "--remove", gone, "--add", come, "--reason", "left the company", keys=("root-1",))
    pending = publisher.folder / "repo.root-pending.json"
    assert pending.is_file() and not (publisher.repository / "metadata/2.root.json").exists()
    assert publisher.device(), "what waits is not in force"
    publisher.do("sign", keys=("root-3",))
    assert pending.is_file(), "the key that goes counts for the old root, not for the new one"
    publisher.do("sign", keys=("root-2",))
    assert not pending.exists() and (publisher.repository / "metadata/2.root.json").is_file()
    publisher.add(2)
    assert publisher.device()[0].version == 2
    assert "there is no root that waits" in error_of(lambda: publisher.do("sign", keys=("root-1",)))


def test_the_online_key_is_exchanged_with_all_that_it_had_signed(publisher: Publisher) -> None:
    publisher.add(1)
    publisher.device()
    stolen = publisher.folder / "stolen"
    shutil.copytree(publisher.repository, stolen)
    publisher.more_keys()
    new = publisher.key("online", "new")
    words = ("--new-online", new, "--reason", "server broken into")
    publisher.do("root", *words, keys=("root-1", "root-3"))
    assert publisher.device()
    assert "online is signed by" in error_of(lambda: publisher.add(2))
    publisher.do("add", str(publisher.folder / "pcb-2"), keys=("product-pcb",), paths=(new,))
    assert publisher.device()[0].version == 2
    shutil.copy(publisher.repository / "metadata/2.root.json", stolen / "metadata/2.root.json")
    refusal = publisher.refusal(repository=stolen)
    assert refusal.code == "revoked_key" and "server broken into" in str(refusal)


def test_the_key_of_targets_is_exchanged(publisher: Publisher) -> None:
    publisher.add(1)
    publisher.more_keys()
    words = ("--new-targets", publisher.key("targets", "new"))
    publisher.do("root", *words, keys=("root-1", "root-2", "online"))
    assert publisher.device()[0].version == 1
    assert "targets is signed by 1 of" in error_of(
        lambda: publisher.do("product", f"x={publisher.key('product-ballscrew')}", keys=("targets", "online"))
    )


def test_a_root_that_could_not_sign_itself_is_refused(publisher: Publisher) -> None:
    gone = [publisher.key(f"root-{k}").replace(".key", ".pub") for k in (2, 3)]
    text = error_of(lambda: publisher.do("root", "--remove", *gone, keys=("root-1", "root-2")))
    assert "would have 1 keys and need 2" in text
    assert "fits 0 of the root's keys" in error_of(lambda: publisher.do("root", "--remove", "zz", keys=("root-1",)))
    text = error_of(lambda: publisher.do("root", "--remove", publisher.key("online"), keys=("root-1", "root-2")))
    assert "is none of its keys" in text


def test_only_so_many_versions_are_kept_and_the_rest_is_pruned(publisher: Publisher) -> None:
    for version in (1, 2, 3):
        publisher.add(version, "--keep", "2")
    files = list((publisher.repository / "targets").rglob("*.gz"))
    assert len(files) == 3, "a device may be in the middle of the old one"
    publisher.do("prune", "--dry-run")
    assert len(list((publisher.repository / "targets").rglob("*.gz"))) == 3
    publisher.do("prune")
    left = sorted(path.name.partition(".")[2] for path in (publisher.repository / "targets").rglob("*.gz"))
    assert left == ["pcb-2.tar.gz", "pcb-3.tar.gz"]
    assert [offer.version for offer in publisher.device()] == [3, 2]
    publisher.add(4)
    assert publisher.device()[0].version == 4


def test_keys_are_encrypted_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse\n")
    main(["keys", str(tmp_path / "keys"), "--products", "pcb", "--passphrase-file", str(secret)])
    key = tmp_path / "keys/online/online.key"
    assert b"ENCRYPTED" in key.read_bytes()
    record = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert "correct horse" not in record
    names = {name: str(tmp_path / "keys" / name / f"{name}.key") for name in ("root-1", "root-2", "targets", "online")}
    product = f"pcb={tmp_path / 'keys/product-pcb/product-pcb.key'}"
    begin = ["init", str(tmp_path / "repo"), "--roots", names["root-1"], names["root-2"], "--targets", names["targets"]]
    begin += ["--online", names["online"], "--products", product]
    assert "needs a passphrase" in error_of(lambda: main(begin))
    monkeypatch.setenv("EDGE_PUBLISH_PASSPHRASE", "wrong")
    assert "its passphrase is another one" in error_of(lambda: main(begin))
    monkeypatch.setenv("EDGE_PUBLISH_PASSPHRASE", "correct horse")
    main(begin)
    assert "never written over" in error_of(lambda: main(["keys", str(tmp_path / "keys"), "--plain"]))


def test_a_repository_for_development_is_marked_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["keys", str(tmp_path / "bench"), "--development", "--plain"])
    key = str(tmp_path / "bench/development/development.key")
    main(["init", str(tmp_path / "repo"), "--development", key, "--products", "pcb"])
    main(["add", str(tmp_path / "repo"), str(make_bundle(tmp_path / "pcb-1", 1)), "--keys", key])
    capsys.readouterr()
    main(["status", str(tmp_path / "repo")])
    assert "made for development" in capsys.readouterr().out
    (tmp_path / "state").mkdir()
    root = tmp_path / "repo/metadata/1.root.json"
    trust = Trust(root, tmp_path / "state", mirror(str(tmp_path / "repo")))
    with pytest.raises(TrustError) as caught:
        trust.refresh()
    assert caught.value.code == "development_root"
    believing = Trust(root, tmp_path / "state", mirror(str(tmp_path / "repo")), development=True)
    believing.refresh()
    assert [offer.version for offer in believing.offers("pcb")] == [1]


def test_nothing_is_built_on_what_was_altered(publisher: Publisher) -> None:
    publisher.add(1)
    path = publisher.repository / "metadata/timestamp.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"version":', b'"version": 1'))
    assert "altered" in error_of(lambda: publisher.add(2))
    path.write_bytes(whole[:100])
    assert "is no TUF metadata" in error_of(lambda: publisher.add(2))
    path.unlink()
    assert "cannot be read" in error_of(lambda: publisher.add(2))
    assert "is no bundle repository" in error_of(lambda: main(["status", str(publisher.folder)]))
    assert "is not empty" in error_of(
        lambda: main(["init", str(publisher.repository), "--development", publisher.key("online"), "--products", "x"])
    )


def test_a_clock_that_is_behind_signs_nothing(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher.add(1)
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    assert "1970-01-01 00:16 UTC" in error_of(lambda: publisher.do("renew", keys=("online",)))


def test_two_at_once_do_not_meet(publisher: Publisher) -> None:
    from tools.publish_repository import locked

    with locked(publisher.repository):
        assert "another `publish` is at work" in error_of(lambda: publisher.add(1))
    publisher.add(1)


def test_a_publisher_that_is_killed_leaves_the_repository_before_or_after(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended at each rename: devices take the old or the new, and the next command goes on."""
    publisher.add(1)
    publisher.more_keys()
    new, steps, seen = publisher.key("online", "new"), 0, set()
    whole = publisher.folder / "whole"
    shutil.copytree(publisher.repository, whole)
    while True:
        shutil.rmtree(publisher.repository)
        shutil.copytree(whole, publisher.repository)
        child = os.fork()
        if child == 0:
            _die_at_rename(steps)
            publisher.do("root", "--new-online", new, keys=("root-1", "root-2"))
            os._exit(0)
        _, code = os.waitpid(child, 0)
        assert code == 0 or os.WIFSIGNALED(code), "the command itself must not fail"
        seen.add(_what_a_device_says(publisher))
        renewed = (publisher.repository / "metadata/2.root.json").exists()
        publisher.do("renew", keys=() if renewed else ("online",), paths=(new,) if renewed else ())
        assert publisher.device()[0].version == 1
        shutil.rmtree(publisher.state)
        publisher.state.mkdir()
        if code == 0:
            break
        steps += 1
    assert steps >= 4, f"killed at {steps} renames"
    assert seen <= {"accepted", "revoked_key"}, seen


def _die_at_rename(steps: int) -> None:
    import signal

    replace, done = Path.replace, 0

    def counting(path: Path, target: Path) -> Path:
        nonlocal done
        if done == steps:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        return replace(path, target)

    Path.replace = counting  # type: ignore[method-assign,assignment]


def _what_a_device_says(publisher: Publisher) -> str:
    try:
        publisher.device()
    except TrustError as error:
        return error.code
    return "accepted"


def test_a_key_that_is_none_is_refused(publisher: Publisher) -> None:
    nonsense = publisher.folder / "nonsense.key"
    nonsense.write_text("hello")
    assert "no key in PEM" in error_of(lambda: publisher.do("renew", paths=(str(nonsense),)))
    public = publisher.key("online").replace(".key", ".pub")
    assert "public half" in error_of(lambda: publisher.do("renew", paths=(public,)))
    assert "cannot be read" in error_of(lambda: publisher.do("renew", paths=("/nowhere.key",)))
    with pytest.raises(ToolError, match="expected PRODUCT=KEY"):
        publisher.do("product", "pcb", keys=("targets", "online"))
    assert open_repository(publisher.repository).products == ["pcb"]
