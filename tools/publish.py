"""Publish bundles for devices: a TUF repository of static files, for any web server, or copied to a stick.

    publish keys KEYS --products pcb              root 1 to 3 (any two sign), targets, online, one a product
    publish init REPO --roots KEYS/root-*/*.key --targets KEYS/targets/targets.key \\
        --online KEYS/online/online.key --products pcb=KEYS/product-pcb/product-pcb.key
    publish add REPO models/pcb --keys .../product-pcb.key .../online.key
    publish renew REPO --keys .../online.key      before the signatures expire; `publish status REPO` says when
    cp -r REPO /media/stick/                      that is all that a stick needs

The keys of the root belong on separate media, offline: they are needed to exchange keys, and every two years. What is
published for devices is REPO/metadata and REPO/targets; a record of each act is left beside it, in REPO-records.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root

from edge.bundle import manifest as manifests
from edge.bundle.manifest import ProductName
from edge.bundle.roles import DEVELOPMENT, PRODUCT_ROLE
from tools.errors import ToolError
from tools.publish_keys import asker, make_key, read_public, read_signer
from tools.publish_repository import (
    DAYS,
    TOP,
    Repository,
    add_product,
    exchange,
    locked,
    new_repository,
    new_root,
    open_repository,
    read_metadata,
    short,
    write_whole,
)
from tools.run_record import write_record

ROOTS, THRESHOLD = 3, 2
SOON_DAYS = 14
SECRETS = ("passphrase_file", "run")  # of the arguments, what no record needs


def make_keys(args: argparse.Namespace) -> dict[str, Any]:
    """Make the keys of a publisher, each in a folder of its own, to be carried to a medium of its own."""
    names = ["development"] if args.development else [f"root-{k}" for k in range(1, ROOTS + 1)]
    names += [] if args.development else ["targets", "online", *(PRODUCT_ROLE + product for product in args.products)]
    ask = None if args.plain else asker(args.passphrase_file)
    made = {}
    for name in names:
        passphrase = ask(f"{name}.key") if ask else None
        if ask and not passphrase:
            raise ToolError(f"{name}.key: an empty passphrase protects nothing; give one, or say --plain")
        made[name] = make_key(args.folder / name / name, passphrase).keyid
        print(f"{args.folder / name / name}.key  {short(made[name])}")
    if not args.development:
        print("carry each root key to a medium of its own, and lock them away in different places")
    return made


def init(args: argparse.Namespace) -> dict[str, Any]:
    """Begin a repository."""
    if args.development:
        roots, threshold, targets = [args.development], 1, args.development
        products = {product: args.development for product in args.products}
        online = args.development
    else:
        if not (args.roots and args.targets and args.online):
            raise ToolError("init: needs --roots, --targets and --online; or --development KEY for a bench")
        roots, threshold, targets, online = args.roots, args.threshold, args.targets, args.online
        products = dict(_pairs(args.products))
    if not 1 <= threshold <= len(roots):
        raise ToolError(f"--threshold {threshold}: there are {len(roots)} root keys")
    ask = asker(args.passphrase_file)
    for product in products:
        _check_product(product)
    root = new_root(
        [read_public(p) for p in roots], threshold, read_public(targets), read_public(online), bool(args.development)
    )
    repository = new_repository(args.repository, root, {name: read_public(key) for name, key in products.items()})
    signers: dict[str, list[CryptoSigner]] = {
        "root": [read_signer(path, ask) for path in roots if path.suffix != ".pub"],
        "targets": [read_signer(targets, ask)],
        "online": [read_signer(online, ask)],
        **{PRODUCT_ROLE + name: [read_signer(key, ask)] for name, key in products.items()},
    }
    args.repository.mkdir(parents=True, exist_ok=True)
    with locked(args.repository):
        repository.publish(["root", "targets", *(PRODUCT_ROLE + name for name in products)], signers)
    print(f"devices trust it by {args.repository / 'metadata' / '1.root.json'}: `edge bundle trust 1.root.json`")
    return {"root_keys": sorted(root.roles["root"].keyids), "threshold": threshold, "products": sorted(products)}


def _pairs(items: Sequence[str]) -> list[tuple[str, Path]]:
    pairs = [item.partition("=") for item in items]
    for product, sign, _ in pairs:
        if not sign:
            raise ToolError(f"{product}: expected PRODUCT=KEY, such as pcb=KEYS/product-pcb/product-pcb.key")
    return [(product, Path(path)) for product, _, path in pairs]


def _check_product(product: str) -> None:
    try:
        msgspec.convert(product, ProductName)
    except msgspec.ValidationError as error:
        raise ToolError(f"{product}: is no name of a product: 1 to 64 letters, digits, `-` or `_`") from error


class Ring:
    """The keys that were given, by the roles that they may sign."""

    def __init__(self, repository: Repository, paths: Sequence[Path], ask: Callable[[str], bytes]) -> None:
        self._repository = repository
        self._keys = {key.public_key.keyid: key for key in (read_signer(path, ask) for path in paths)}

    def of(self, *roles: str) -> dict[str, list[CryptoSigner]]:
        """Signers of these roles; `online` for snapshot and timestamp.

        Raises:
            ToolError: too few of a role's keys were given.
        """
        return {role: self._of(role) for role in roles}

    def _of(self, role: str) -> list[CryptoSigner]:
        may = self._repository.role("timestamp" if role == "online" else role)
        found = [self._keys[keyid] for keyid in may.keyids if keyid in self._keys]
        if len(found) < may.threshold:
            has = ", ".join(short(keyid) for keyid in may.keyids)
            given = ", ".join(short(keyid) for keyid in self._keys) or "none"
            text = f"--keys: {role} is signed by {may.threshold} of {has}, and {len(found)} of them were given"
            raise ToolError(f"{text} (given: {given})")
        return found

    def may(self, role: str) -> bool:
        """Whether there are enough keys for it."""
        try:
            self._of(role)
        except ToolError:
            return False
        return True

    def all(self) -> list[CryptoSigner]:
        return list(self._keys.values())


def add(args: argparse.Namespace) -> dict[str, Any]:
    """Publish bundles."""
    repository = open_repository(args.repository)
    ring = Ring(repository, args.keys, asker(args.passphrase_file))
    roles = sorted({PRODUCT_ROLE + manifests.read_unverified(bundle).product for bundle in args.bundles})
    signers = ring.of("online", *roles)
    added = [repository.add(bundle, args.keep) for bundle in args.bundles]
    repository.publish(roles, signers)
    for target in added:
        print(f"published {target.custom['product']} {target.custom['version']}, {target.length / 1e6:.1f} MB")
    return {target.path: target.custom for target in added}


def product(args: argparse.Namespace) -> dict[str, Any]:
    """Give a product its key: a new product, or a new key in the place of the one it has."""
    repository = open_repository(args.repository)
    ask = asker(args.passphrase_file)
    ((name, path),) = _pairs([args.product])
    _check_product(name)
    role, key = PRODUCT_ROLE + name, read_public(path)
    removed: list[str] = []
    if name not in repository.products:
        add_product(repository, name, key)
    else:
        removed = [keyid for keyid in repository.role(role).keyids if keyid != key.keyid]
        if not removed:
            raise ToolError(f"{path}: is the key of {name} already")
        exchange(repository.targets, role, removed, [key], args.reason, repository.now)
    signers = Ring(repository, args.keys, ask).of("targets", "online") | {role: [read_signer(path, ask)]}
    repository.publish(["targets", role], signers)
    print(f"{name} is signed with {short(key.keyid)}" + "".join(f", no longer with {short(k)}" for k in removed))
    return {"product": name, "key": key.keyid, "revoked": removed}


def renew(args: argparse.Namespace) -> dict[str, Any]:
    """Sign once more what expires: timestamp and snapshot, and every role whose keys are given."""
    repository = open_repository(args.repository)
    ring = Ring(repository, args.keys, asker(args.passphrase_file))
    roles = [role for role in ("targets", *(PRODUCT_ROLE + p for p in repository.products)) if ring.may(role)]
    days = {role: args.days for role in ("snapshot", "timestamp")} if args.days else {}
    repository.publish(roles, ring.of("online", *roles), days)
    print("\n".join(_lines(repository)))
    return {"renewed": [*roles, "snapshot", "timestamp"]}


def change_root(args: argparse.Namespace) -> dict[str, Any]:
    """A new root: other keys, another threshold, or only a new date; signed by those of before and those of now."""
    repository = open_repository(args.repository)
    root = copy.deepcopy(repository.root)
    for role, new in (("targets", args.new_targets), ("snapshot", args.new_online), ("timestamp", args.new_online)):
        if new:
            exchange(root, role, list(root.roles[role].keyids), [read_public(new)], args.reason, repository.now)
    fresh = [read_public(path) for path in args.add]
    exchange(root, "root", [_keyid(root, word) for word in args.remove], fresh, args.reason, repository.now)
    root.roles["root"].threshold = args.threshold or root.roles["root"].threshold
    if len(root.roles["root"].keyids) < root.roles["root"].threshold:
        count = len(root.roles["root"].keyids)
        raise ToolError(f"the root would have {count} keys and need {root.roles['root'].threshold}: --add one")
    root.version += 1
    root.expires = datetime.fromtimestamp(repository.now, timezone.utc).replace(microsecond=0) + timedelta(DAYS["root"])
    return _sign_root(args, repository, Metadata(root))


def sign_root(args: argparse.Namespace) -> dict[str, Any]:
    """Add signatures to a root that waits for them; the holders of the keys need not meet."""
    repository = open_repository(args.repository)
    path = _pending(args.repository)
    if not path.is_file():
        raise ToolError(f"{path}: there is no root that waits for signatures; `publish root` makes one")
    pending = read_metadata(path, Root)
    if pending.signed.version != repository.root.version + 1:
        raise ToolError(
            f"{path}: is root {pending.signed.version}, and {repository.root.version} is in force; begin anew"
        )
    return _sign_root(args, repository, pending)


def _sign_root(args: argparse.Namespace, repository: Repository, metadata: Metadata[Root]) -> dict[str, Any]:
    """Sign a new root with the keys given; put it in force when there are enough, else have it wait."""
    before, after = repository.root, metadata.signed
    may = {*before.roles["root"].keyids, *after.roles["root"].keyids}
    keys = Ring(repository, args.keys, asker(args.passphrase_file)).all()
    for key in keys:
        if key.public_key.keyid in may:
            metadata.sign(key, append=True)
    result = after.get_root_verification_result(before, metadata.signed_bytes, metadata.signatures)
    pending, data = _pending(args.repository), metadata.to_bytes()
    write_whole(pending, data)  # what is signed is not signed twice, also when a key of another role is missing now
    if not result:
        missing = [f"{result.first.missing} of {_list(before)}", f"{result.second.missing} of {_list(after)}"]
        print(f"{pending} waits for signatures, by {' and by '.join(dict.fromkeys(missing))}: `publish sign`")
        return {"waits": str(pending), "signed_by": sorted(metadata.signatures)}
    changed = {role for role in TOP[1:] if after.roles[role].keyids != before.roles[role].keyids}
    repository.signed["root"] = after
    roles = ["targets"] if "targets" in changed else []
    if changed:
        signers = Ring(repository, [*args.keys, *_new_keys(args)], asker(args.passphrase_file)).of("online", *roles)
        repository.publish(roles, signers, root=data)
    else:
        write_whole(repository.path("root", after.version), data)
    pending.unlink(missing_ok=True)
    print(f"root {after.version} is in force: {after.roles['root'].threshold} of {_list(after)}")
    return {"root": after.version, "keys": after.roles["root"].keyids, "changed": sorted(changed)}


def _new_keys(args: argparse.Namespace) -> list[Path]:
    return [path for path in (getattr(args, "new_targets", None), getattr(args, "new_online", None)) if path]


def _list(root: Root) -> str:
    return ", ".join(short(keyid) for keyid in root.roles["root"].keyids)


def _keyid(root: Root, word: str) -> str:
    """A key of the root by its file or by the beginning of its name."""
    if Path(word).suffix in (".pub", ".key"):
        return read_public(Path(word)).keyid
    found = [keyid for keyid in root.roles["root"].keyids if keyid.startswith(word)]
    if len(found) != 1:
        raise ToolError(f"--remove {word}: fits {len(found)} of the root's keys {_list(root)}")
    return found[0]


def _pending(repository: Path) -> Path:
    """Where a root waits for signatures: beside the repository, it is not for devices yet."""
    return repository.resolve().with_name(f"{repository.resolve().name}.root-pending.json")


def status(args: argparse.Namespace) -> dict[str, Any]:
    """Say what is signed by whom and until when, and which bundles there are.

    Raises:
        ToolError: something has expired.
    """
    repository = open_repository(args.repository)
    print("\n".join(_lines(repository)))
    for name in repository.products:
        for path, target in sorted(repository.signed[PRODUCT_ROLE + name].targets.items()):
            print(f"{path}  {target.length / 1e6:.1f} MB  digest {target.custom['digest'][:8]}")
    late = [role for role in _roles(repository) if repository.signed[role].expires.timestamp() <= repository.now]
    if late:
        raise ToolError(
            f"{', '.join(late)} has expired, no device takes anything: `publish renew`, for root `publish root`"
        )
    return {role: str(repository.signed[role].expires) for role in _roles(repository)}


def _roles(repository: Repository) -> list[str]:
    return [*TOP, *(PRODUCT_ROLE + name for name in repository.products)]


def _lines(repository: Repository) -> list[str]:
    """A line a role."""
    width = max(len(role) for role in _roles(repository))
    lines = [f"{'role':<{width}}  version  expires           days  keys"]
    for role in _roles(repository):
        signed, may = repository.signed[role], repository.role(role)
        days = (signed.expires.timestamp() - repository.now) / 86400
        note = "  EXPIRED" if days <= 0 else "  soon" if days < SOON_DAYS else ""
        keys = f"{may.threshold} of {', '.join(short(keyid) for keyid in may.keyids)}"
        lines.append(
            f"{role:<{width}}  {signed.version:>7}  {signed.expires:%Y-%m-%d %H:%M}  {days:>4.0f}  {keys}{note}"
        )
    if repository.root.unrecognized_fields.get(DEVELOPMENT):
        lines.append("made for development: devices take it only with update.development = true")
    return lines


def prune(args: argparse.Namespace) -> dict[str, Any]:
    """Remove files that nobody needs any more: metadata of before, archives that no product lists."""
    repository = open_repository(args.repository)
    unused = repository.unused()
    for path in unused if not args.dry_run else []:
        path.unlink()
    freed = f"{len(unused)} files {'would go' if args.dry_run else 'are gone'}"
    print("\n".join([*(str(path.relative_to(args.repository)) for path in unused), freed]))
    return {"removed": [] if args.dry_run else [str(path.relative_to(args.repository)) for path in unused]}


def parser() -> argparse.ArgumentParser:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(
        "python -m tools publish", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(title="what", required=True, metavar="WHAT")

    def command(
        name: str, run: Callable[[argparse.Namespace], Mapping[str, Any]], text: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=run.__doc__)
        sub.add_argument(
            "--passphrase-file", type=Path, help="of all keys; else $EDGE_PUBLISH_PASSPHRASE, else asked for"
        )
        sub.set_defaults(run=run, name=name)
        return sub

    def changing(
        name: str, run: Callable[[argparse.Namespace], Mapping[str, Any]], text: str
    ) -> argparse.ArgumentParser:
        sub = command(name, run, text)
        sub.add_argument("repository", type=Path)
        sub.add_argument("--keys", type=Path, nargs="+", required=True, help="secret keys of the roles that are signed")
        return sub

    keys = command("keys", make_keys, "make keys")
    keys.add_argument("folder", type=Path)
    keys.add_argument("--products", nargs="*", default=[], help="a key for each")
    keys.add_argument("--development", action="store_true", help="one key for everything, for a bench only")
    keys.add_argument("--plain", action="store_true", help="do not encrypt them")
    begin = command("init", init, "begin a repository")
    begin.add_argument("repository", type=Path)
    begin.add_argument("--roots", type=Path, nargs="+", help="keys of the root; `.pub` for those that do not sign now")
    begin.add_argument("--threshold", type=int, default=THRESHOLD, help="root keys that have to sign (%(default)s)")
    begin.add_argument("--targets", type=Path, help="the key that says which product has which key")
    begin.add_argument("--online", type=Path, help="the key of snapshot and timestamp, used at every change")
    begin.add_argument("--products", nargs="*", default=[], metavar="PRODUCT=KEY")
    begin.add_argument("--development", type=Path, metavar="KEY", help="one key for everything; marked as such")
    adding = changing("add", add, "publish bundles")
    adding.add_argument("bundles", type=Path, nargs="+", help="folders of bundles")
    adding.add_argument("--keep", type=int, default=0, help="list only so many versions of the product; 0: all")
    one = changing("product", product, "add a product, or exchange its key")
    one.add_argument("product", metavar="PRODUCT=KEY")
    one.add_argument("--reason", default="", help="why the former key is taken back; devices tell it")
    again = changing("renew", renew, "sign once more what expires")
    again.add_argument("--days", type=int, help=f"that timestamp and snapshot are good for ({DAYS['timestamp']})")
    other = changing("root", change_root, "exchange keys of the root, of targets, or the online key")
    other.add_argument("--add", type=Path, nargs="*", default=[], help="new keys of the root")
    other.add_argument("--remove", nargs="*", default=[], help="keys to take back: a file, or how its name begins")
    other.add_argument("--threshold", type=int, help="root keys that have to sign from now on")
    other.add_argument("--new-targets", type=Path, help="a key in the place of that of targets")
    other.add_argument("--new-online", type=Path, help="a key in the place of that of snapshot and timestamp")
    other.add_argument("--reason", default="", help="why keys are taken back; devices tell it")
    changing("sign", sign_root, "add a signature to a root that waits for it")
    command("status", status, "what is signed by whom, until when").add_argument("repository", type=Path)
    cut = command("prune", prune, "remove files that nobody needs any more")
    cut.add_argument("repository", type=Path)
    cut.add_argument("--dry-run", action="store_true", help="only say which")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Run the step."""
    args = parser().parse_args(arguments)
    if args.run in (make_keys, init, status):
        results = args.run(args)
    else:
        if not args.repository.is_dir():
            raise ToolError(f"{args.repository}: there is no such folder; `publish init` begins a repository")
        with locked(args.repository):
            results = args.run(args)
    if args.run is not status:
        settings = {name: value for name, value in vars(args).items() if name not in SECRETS}
        write_record(_record(args), f"publish {args.name}", settings, results)


def _record(args: argparse.Namespace) -> Path:
    """Beside the repository, never in it: it tells paths of this machine."""
    when = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%f")
    if args.run is make_keys:
        return Path(args.folder, f"keys-{when}.json")
    place = Path(args.repository).resolve()
    return place.with_name(f"{place.name}-records") / f"{when}-{args.name}.json"
