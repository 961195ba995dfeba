"""Archives: what `pack` makes comes back as it was; nothing else comes in, and nothing is written beside it."""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge.bundle import archive as archives
from edge.bundle import manifest as manifests
from edge.bundle.archive import Limits
from edge.bundle.manifest import MANIFEST
from edge.errors import BundleError, TrustError
from tests.bundle.tiny_bundle import make_bundle
from tests.disks import small_disk

SMALL = Limits(
    archive_bytes=1 << 20,
    members=20,
    file_bytes=200_000,
    all_bytes=500_000,
    ratio=50,
    ratio_from_bytes=100_000,
    spare_bytes=0,
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle", 1)


# --- what is good ---


def test_a_bundle_comes_back_as_it_was(bundle: Path, tmp_path: Path) -> None:
    packed = archives.pack(bundle, tmp_path / "one.tar.gz")
    folder = archives.unpack(packed, tmp_path / "out")
    assert manifests.read(folder) == manifests.read(bundle)
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == {
        MANIFEST,
        *manifests.read(bundle).files,
    }
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700, "nobody else looks in"
    assert {stat.S_IMODE(p.stat().st_mode) for p in folder.rglob("*") if p.is_dir()} == {0o755}
    assert {stat.S_IMODE(p.stat().st_mode) for p in folder.rglob("*") if p.is_file()} == {0o644}


def test_the_same_bundle_gives_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    first = archives.pack(bundle, tmp_path / "one.tar.gz").read_bytes()
    (bundle / "notes").write_text("not listed")
    os.utime(bundle / "CARD.md", (1, 1))
    (bundle / "CARD.md").chmod(0o600)
    assert archives.pack(bundle, tmp_path / "two.tar.gz").read_bytes() == first


def test_plain_tar_archives_with_folders_are_taken(bundle: Path, tmp_path: Path) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        tar.add(bundle / "x86", "x86")
        for name in (MANIFEST, "CARD.md", "recipe.toml"):
            tar.add(bundle / name, name)

    for number, kind in enumerate((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT)):
        packed = tarred(tmp_path / f"{number}.tar.gz", fill, kind)
        assert archives.unpack(packed, tmp_path / str(number)).is_dir()


def test_every_file_and_folder_is_on_the_disk(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[str] = set()
    fsync = os.fsync

    def note(handle: int) -> None:
        synced.add(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    packed = archives.pack(bundle, tmp_path / "one.tar.gz")
    monkeypatch.setattr(os, "fsync", note)
    folder = archives.unpack(packed, tmp_path / "out")
    assert {str(p) for p in (tmp_path, folder, *folder.rglob("*"))} <= synced


# --- what is bad: each is made for real ---


def tarred(out: Path, fill: Callable[[tarfile.TarFile], object], kind: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(out, "w:gz", format=kind) as tar:
        fill(tar)
    return out


def member(name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """Header and content of one member as raw blocks, whatever its name."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)


def with_size(name: str, size: int) -> bytes:
    """A header that says a size, with nothing behind it."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def negative_size() -> bytes:
    block = bytearray(tarfile.TarInfo("x86/big").tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" * 12  # base 256, minus one
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def good(bundle: Path) -> bytes:
    names = (MANIFEST, *sorted(manifests.read(bundle).files))
    return b"".join(member(name, (bundle / name).read_bytes()) for name in names)


def zipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


END = bytes(1024)


def gnu_long(kind: bytes, size: int) -> bytes:
    return member("././@LongLink", b"a" * size, kind)


def pax(kind: bytes, size: int) -> bytes:
    record = b"path=../../outside\n"
    return member("pax", b"%d %s" % (len(record) + 3, record) + b"c" * size, kind)


def gzip_of_gzip(bundle: Path) -> bytes:
    return zipped(zipped(good(bundle) + END))


def long_gzip_header(bundle: Path) -> bytes:
    """A gzip header whose file name never ends, and no data."""
    return b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 900_000


def appended(bundle: Path) -> bytes:
    return zipped(good(bundle) + END) + zipped(member("evil") + END)


def broken_checksum(bundle: Path) -> bytes:
    data = bytearray(good(bundle))
    data[0] ^= 1
    return zipped(bytes(data) + END)


def broken_crc(bundle: Path) -> bytes:
    data = bytearray(zipped(good(bundle) + END))
    data[-8] ^= 1
    return bytes(data)


def utf8_name(bundle: Path) -> bytes:
    return zipped(good(bundle) + member("x86/Stra\u00dfe.nb") + END)


def not_utf8_name(bundle: Path) -> bytes:
    info = tarfile.TarInfo("x86/\udcff.nb").tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")
    return zipped(good(bundle) + info + END)


def more(*blocks: bytes) -> Callable[[Path], bytes]:
    """A good bundle, and then something else."""
    return lambda bundle: zipped(good(bundle) + b"".join(blocks) + END)


def first(*blocks: bytes) -> Callable[[Path], bytes]:
    return lambda bundle: zipped(b"".join(blocks) + good(bundle) + END)


def link_then_file(bundle: Path) -> bytes:
    """The old trick: a link out of the folder, and a file through it."""
    return zipped(member("x86", b"", tarfile.SYMTYPE, "../outside") + good(bundle) + END)


def altered(bundle: Path) -> bytes:
    return zipped(good(bundle).replace(b"# pcb 1\n", b"# pcb 2\n") + END)


# name: (archive, code, part of the reason)
BAD: dict[str, tuple[Callable[[Path], bytes], str, str]] = {
    "symbolic link": (more(member("x86/l", b"", tarfile.SYMTYPE, "/etc/passwd")), "link", "a symbolic link"),
    "symbolic link, then a file through it": (link_then_file, "link", "'x86' is a symbolic link"),
    "hard link": (more(member("x86/h", b"", tarfile.LNKTYPE, MANIFEST)), "link", "a hard link"),
    "hard link outside": (more(member("h", b"", tarfile.LNKTYPE, "../../outside/kept")), "link", "'h' is a hard"),
    "character device": (more(member("dev", b"", tarfile.CHRTYPE)), "special", "a character device"),
    "block device": (more(member("disk", b"", tarfile.BLKTYPE)), "special", "a block device"),
    "pipe": (more(member("pipe", b"", tarfile.FIFOTYPE)), "special", "a pipe"),
    "contiguous file": (more(member("c", b"x", tarfile.CONTTYPE)), "special", "a contiguous file"),
    "unknown kind": (more(member("v", b"", b"V")), "special", "of an unknown kind, b'V'"),
    "sparse file": (more(member("s", b"", tarfile.GNUTYPE_SPARSE)), "extension", "a sparse file"),
    "GNU long name": (first(gnu_long(tarfile.GNUTYPE_LONGNAME, 3000)), "extension", "a GNU long name"),
    "GNU long name of 100 kB": (more(gnu_long(tarfile.GNUTYPE_LONGNAME, 100_000)), "extension", "a GNU long name"),
    "GNU long link": (first(gnu_long(tarfile.GNUTYPE_LONGLINK, 3000)), "extension", "a GNU long link"),
    "pax header that renames": (first(pax(tarfile.XHDTYPE, 0)), "extension", "a pax header"),
    "pax header of 100 kB": (more(pax(tarfile.XHDTYPE, 100_000)), "extension", "a pax header"),
    "pax header for all": (first(pax(tarfile.XGLTYPE, 0)), "extension", "a pax header for all members"),
    "Solaris pax header": (first(pax(tarfile.SOLARIS_XHDTYPE, 0)), "extension", "a Solaris pax header"),
    "absolute path": (more(member("/tmp/evil")), "absolute", "'/tmp/evil' has an absolute path"),
    "two slashes": (more(member("//evil")), "absolute", "'//evil' has an absolute path"),
    "parent": (more(member("../outside/evil")), "parent", "'../outside/evil' leads out"),
    "parent in the middle": (more(member("x86/../../outside/evil")), "parent", "leads out of its folder"),
    "parent at the end": (more(member("x86/..", b"", tarfile.DIRTYPE)), "parent", "'x86/..' leads out"),
    "backslash": (more(member("x86\\..\\evil")), "backslash", "a backslash in its name"),
    "drive": (more(member("C:evil")), "name", "'C:evil' has a name that no file"),
    "control character": (more(member("x86/a\x1b[2Jb")), "control", r"'x86/a\\x1b\[2Jb' has a control character"),
    "new line": (more(member("x86/a\nb")), "control", r"'x86/a\\nb' has a control character"),
    "text direction": (more(member("x86/a\u202ebn.b")), "control", r"\\u202e"),
    "hidden file": (more(member(".bashrc")), "name", "'.bashrc' has a name that no file"),
    "dot": (more(member("./evil")), "name", "'./evil' has a name"),
    "empty name": (more(member("")), "name", "'' has a name"),
    "not ASCII": (utf8_name, "name", "Stra"),
    "not UTF-8": (not_utf8_name, "damaged", "header that cannot be read"),
    "duplicate": (more(member("CARD.md")), "duplicate", "'CARD.md' comes twice"),
    "folder twice": (
        more(member("d", b"", tarfile.DIRTYPE), member("d", b"", tarfile.DIRTYPE)),
        "duplicate",
        "'d' comes twice",
    ),
    "case collision": (more(member("card.md")), "collision", "'card.md' differs from CARD.md by its spelling only"),
    "case collision of folders": (more(member("X86/a.nb")), "collision", "'X86/a.nb' differs from x86 by"),
    "file below a file": (more(member("CARD.md/evil")), "conflict", "'CARD.md/evil' is a file and a folder"),
    "file in place of a folder": (more(member("x86")), "conflict", "'x86' is a file and a folder"),
    "not in the manifest": (more(member("x86/extra.nb")), "not_listed", "says nothing of 'x86/extra.nb'"),
    "no manifest": (lambda _: zipped(member("CARD.md") + END), "no_manifest", "no manifest.json"),
    "nothing": (lambda _: zipped(END), "no_manifest", "no manifest.json"),
    "empty file": (lambda _: b"", "damaged", "ends in the middle"),
    "no gzip": (lambda bundle: good(bundle) + END, "damaged", "is no gzip file"),
    "gzip in gzip": (gzip_of_gzip, "damaged", "header that cannot be read|middle of a member"),
    "gzip header without end": (long_gzip_header, "damaged", "ends in the middle"),
    "cut off": (lambda bundle: zipped(good(bundle) + END)[:-20], "damaged", "ends in the middle"),
    "without an end": (lambda bundle: zipped(good(bundle)), "damaged", "ends in the middle of a member"),
    "size beyond the end": (more(with_size("x86/big", 100_000)), "damaged", "ends in the middle of a member"),
    "header check sum": (broken_checksum, "damaged", "header that cannot be read: bad checksum"),
    "gzip check sum": (broken_crc, "damaged", "incorrect data check"),
    "second gzip stream": (appended, "trailing", "after the end of its gzip stream"),
    "bytes behind it": (lambda bundle: zipped(good(bundle) + END) + b"evil", "trailing", "end of its gzip stream"),
    "members behind the end": (lambda b: zipped(good(b) + END + member("evil")), "trailing", "end of its archive"),
    "zeros without end": (lambda b: zipped(good(b) + bytes(90_000)), "trailing", "end of its archive"),
    "negative size": (lambda b: zipped(good(b) + negative_size() + END), "too_large", "that it has -1 bytes"),
    "huge size": (more(with_size("x86/big", 1 << 40)), "too_large", "that it has 1099511627776 bytes"),
    "folder with content": (more(member("d", b"x" * 600, tarfile.DIRTYPE)), "too_large", "'d' says that it has 600"),
    "large in all": (
        more(*(member(f"x86/{n}", os.urandom(150_000)) for n in range(4))),
        "too_large",
        "unpacks to more than",
    ),
    "many members": (more(*(member(f"x86/{n}") for n in range(30))), "too_many", "more than 20 members"),
    "large archive": (lambda _: os.urandom((1 << 20) + 1), "too_large", "has more than 1 MB"),
    "bomb": (more(member("x86/zeros", bytes(199_000))), "bomb", "more than 50 times its size"),
    "altered file": (altered, "", "CARD.md: altered"),
}


def everything(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        yield str(path), path.read_bytes() if path.is_file() else b""


@pytest.mark.parametrize("name", BAD)
def test_nothing_bad_is_unpacked_and_nothing_is_left_of_it(name: str, bundle: Path, tmp_path: Path) -> None:
    make, code, reason = BAD[name]
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/kept").write_text("kept")
    packed = tmp_path / "bad.tar.gz"
    packed.write_bytes(make(bundle))
    before = list(everything(tmp_path))
    with pytest.raises(BundleError, match=reason) as refused:
        archives.unpack(packed, tmp_path / "out", SMALL)
    assert getattr(refused.value, "code", "") == code
    assert list(everything(tmp_path)) == before, "neither beside the folder nor in it"
    assert not Path("/tmp/evil").exists()


def test_every_bad_archive_is_bad_by_one_thing_only(bundle: Path, tmp_path: Path) -> None:
    """The base of them all is taken: each is refused for what was done to it."""
    packed = tmp_path / "good.tar.gz"
    packed.write_bytes(zipped(good(bundle) + END))
    assert archives.unpack(packed, tmp_path / "out", SMALL).is_dir()
    assert len(BAD) >= 20


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, bundle: Path) -> None:
    """300 MB of zeros in 300 kB, under the device's own limits."""
    packed = tmp_path / "bomb.tar.gz"
    with gzip.open(packed, "wb", compresslevel=1) as file:
        file.write(good(bundle) + with_size("x86/zeros", 300 << 20))
        for _ in range(300):
            file.write(bytes(1 << 20))
    with pytest.raises(TrustError, match="100 times its size") as refused:
        archives.unpack(packed, tmp_path / "out")
    assert refused.value.code == "bomb"
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_before_all_was_looked_at(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    write = archives._write

    def note(path: Path, body: Iterator[bytes]) -> None:
        written.append(path)
        write(path, body)

    monkeypatch.setattr(archives, "_write", note)
    packed = tmp_path / "bad.tar.gz"
    packed.write_bytes(more(member("../evil"))(bundle))
    with pytest.raises(TrustError, match="leads out"):
        archives.unpack(packed, tmp_path / "out", SMALL)
    assert written == []
    packed.write_bytes(zipped(good(bundle) + END))
    archives.unpack(packed, tmp_path / "out", SMALL)
    assert len(written) == 4, "it would have been seen"


def test_an_archive_that_changes_between_the_two_looks(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written was checked when it was written."""
    packed = tmp_path / "bad.tar.gz"
    packed.write_bytes(zipped(good(bundle) + END))
    require_space = archives._require_space

    def change(into: Path, needed_bytes: int, limits: Limits) -> None:
        require_space(into, needed_bytes, limits)
        packed.write_bytes(zipped(member("../evil") + good(bundle) + END))

    monkeypatch.setattr(archives, "_require_space", change)
    with pytest.raises(TrustError, match="leads out"):
        archives.unpack(packed, tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists() and not (tmp_path / "evil").exists()


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(bundle: Path, tmp_path: Path) -> None:
    packed = archives.pack(bundle, tmp_path / "one.tar.gz")
    with small_disk(tmp_path / "disk", 4) as disk:
        with pytest.raises(TrustError, match="MB free: free some space") as refused:
            archives.unpack(packed, disk / "out")
        assert refused.value.code == "no_space"
        assert list(disk.iterdir()) == []


@pytest.mark.parametrize("what", ["folder", "pipe", "link", "missing"])
def test_what_is_no_file_is_no_archive(what: str, bundle: Path, tmp_path: Path) -> None:
    packed = tmp_path / "it"
    if what == "folder":
        packed.mkdir()
    elif what == "pipe":
        os.mkfifo(packed)
    elif what == "link":
        packed.symlink_to(archives.pack(bundle, tmp_path / "one.tar.gz"))
    with pytest.raises(TrustError, match=r"is no file|cannot be unpacked") as refused:
        archives.unpack(packed, tmp_path / "out")
    assert refused.value.code == "unreadable"
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_already_is_left_alone(bundle: Path, tmp_path: Path) -> None:
    packed = archives.pack(bundle, tmp_path / "one.tar.gz")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    with pytest.raises(BundleError, match="File exists; name a new folder"):
        archives.unpack(packed, tmp_path / "out")
    assert (tmp_path / "out/mine").read_text() == "mine"


def test_what_no_device_would_take_is_not_packed(bundle: Path, tmp_path: Path) -> None:
    (bundle / "CARD.md").write_text("changed")
    with pytest.raises(BundleError, match=r"CARD\.md: altered"):
        archives.pack(bundle, tmp_path / "out.tar.gz")
    deep = make_bundle(tmp_path / "deep", 2)
    (deep / ("a" * 90) / ("b" * 90) / ("c" * 90)).mkdir(parents=True)
    (deep / ("a" * 90) / ("b" * 90) / ("c" * 90) / "d").write_text("x")
    again = manifests.read(deep)
    fields = {name: getattr(again, name) for name in ("product", "version", "classes", "strides")}
    artifact = {name: getattr(again.artifacts[0], name) for name in ("file", "runtime", "arch", "precision")}
    size = {"width": 64, "height": 64, "channels": 1}
    manifests.build(deep, {**fields, "input": size, "artifacts": [{**artifact, "made_with": "x 1"}]})  # type: ignore[typeddict-item]
    with pytest.raises(BundleError, match="name is too long"):
        archives.pack(deep, tmp_path / "out.tar.gz")
    assert not list(tmp_path.glob("out.tar.gz*"))


def test_noise_is_refused_with_a_reason(bundle: Path, tmp_path: Path) -> None:
    """Every single byte of the unpacked archive turned around: refused, or a bundle that is whole."""
    data = good(bundle) + END
    packed = tmp_path / "noise.tar.gz"
    refused = 0
    for place in range(0, len(data), 101):
        packed.write_bytes(zipped(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]))
        try:
            folder = archives.unpack(packed, tmp_path / "out", SMALL)
        except BundleError:
            refused += 1
        else:
            manifests.read(folder)
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            folder.rmdir()
        assert not (tmp_path / "out").exists()
    assert refused > 30


def test_the_headers_here_are_what_tar_reads(bundle: Path) -> None:
    """The raw blocks of these tests are archives for others too."""
    with tarfile.open(fileobj=io.BytesIO(good(bundle) + END)) as tar:
        assert MANIFEST in tar.getnames()
    assert struct.unpack_from("100s", member("x"))[0].rstrip(b"\0") == b"x"
