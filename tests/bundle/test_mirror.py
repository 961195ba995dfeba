"""Mirrors: a download goes on where it was stopped, takes its share of the network, and never waits without end."""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tuf.api.exceptions import DownloadHTTPError

from edge.bundle.mirror import FolderMirror, Mirror, MirrorError, mirror
from edge.bundle.pace import Limits, Pace, TooSlow
from edge.bundle.trust import Trust
from edge.bundle.web_mirror import WebMirror
from edge.errors import TrustError
from tests.bundle.lab import NOW, Behaviour, Handler, Lab, Web, endless, serving, trickle

LIMITS = Limits(connect_s=5.0, silence_s=5.0, least_kb_s=1.0, window_s=5.0, idle_tries=3)
CONTENT = os.urandom(700_000)
NAME = "targets/pcb/bundle.tar.gz"


class FakeClock:
    """Time that only sleep moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "repository" / NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    return tmp_path / "repository"


@pytest.fixture
def web(repository: Path) -> Iterator[Web]:
    with serving(repository) as web:
        yield web


def at(web: Web) -> WebMirror:
    return WebMirror(web.address, limits=LIMITS, sleep=lambda _: None)


class Dying:
    """A server that ends the connection after so many bytes, each time."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, handler: Handler) -> None:
        data = (handler.server.folder / handler.path.lstrip("/")).read_bytes()
        start = handler.begin(len(data))
        handler.wfile.write(data[start : start + self.count])
        handler.close_connection = True


@pytest.mark.parametrize("kind", ["web", "folder", "web without ranges"])
@pytest.mark.parametrize("held", [0, 1, 300_000, len(CONTENT) - 1, len(CONTENT)])
def test_a_download_begins_where_the_last_one_ended(
    web: Web, repository: Path, tmp_path: Path, kind: str, held: int
) -> None:
    web.ranges = kind == "web"
    source: Mirror = FolderMirror(str(repository)) if kind == "folder" else at(web)
    part = tmp_path / "part"
    part.write_bytes(CONTENT[:held])
    source.download(NAME, part, len(CONTENT))
    assert part.read_bytes() == CONTENT
    asked = [] if kind == "folder" or held == len(CONTENT) else [("/" + NAME, f"bytes={held}-" if held else "")]
    assert web.asked == asked


def test_a_server_that_dies_in_the_middle_again_and_again(web: Web, tmp_path: Path) -> None:
    web.behaviours = {".tar.gz": Dying(100_000)}
    said: list[str] = []
    at(web).download(NAME, tmp_path / "part", len(CONTENT), said.append)
    assert (tmp_path / "part").read_bytes() == CONTENT
    assert [range for _, range in web.asked] == ["", *(f"bytes={k}00000-" for k in range(1, 7))]
    assert len(said) == 6 and "trying again" in said[0]


def test_a_server_that_gives_nothing_more_is_given_up_and_what_came_is_kept(web: Web, tmp_path: Path) -> None:
    web.behaviours = {".tar.gz": _first_then_nothing}
    with pytest.raises(MirrorError) as caught:
        at(web).download(NAME, tmp_path / "part", len(CONTENT))
    assert caught.value.code == "unreachable" and len(web.asked) == 4
    assert (tmp_path / "part").read_bytes() == CONTENT[:50_000]


def _first_then_nothing(handler: Handler) -> None:
    start = handler.begin(len(CONTENT))
    handler.wfile.write(CONTENT[:50_000] if not start else b"")
    handler.close_connection = True


def test_a_part_that_is_too_long_or_no_file_is_begun_anew(web: Web, tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.write_bytes(CONTENT + b"more")
    at(web).download(NAME, part, len(CONTENT))
    assert part.read_bytes() == CONTENT
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"precious")
    part.unlink()
    part.symlink_to(elsewhere)
    at(web).download(NAME, part, len(CONTENT))
    assert part.read_bytes() == CONTENT and not part.is_symlink() and elsewhere.read_bytes() == b"precious"


def test_a_file_that_has_become_shorter_or_longer(web: Web, repository: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.write_bytes(CONTENT[:300_000])
    (repository / NAME).write_bytes(CONTENT[:200_000])
    for source in (at(web), FolderMirror(str(repository))):
        with pytest.raises(MirrorError) as caught:
            source.download(NAME, part, len(CONTENT))
        assert caught.value.code == "tampered" and "cut short" in str(caught.value)
    (repository / NAME).write_bytes(CONTENT + b"x")
    for source in (at(web), FolderMirror(str(repository))):
        with pytest.raises(MirrorError) as caught:
            source.download(NAME, part, len(CONTENT))
        assert caught.value.code == "too_large"


CHILD = """
import sys
from pathlib import Path
from edge.bundle.mirror import mirror
from edge.bundle.trust import Trust
root, state, address, now = sys.argv[1:]
trust = Trust(Path(root), Path(state), mirror(address), now=lambda: float(now))
trust.refresh()
trust.fetch(trust.offers("pcb")[0], Path(state, "update"))
"""


def _throttled(handler: Handler) -> None:
    data = (handler.server.folder / handler.path.lstrip("/")).read_bytes()
    start, over = handler.begin(len(data)), handler.server.over
    for place in range(start, len(data), 1 << 15):
        handler.wfile.write(data[place : place + (1 << 15)])
        if over.wait(0.05):
            return


def test_a_download_survives_kill_9_and_a_change_of_mirror(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "honest", now=NOW)
    lab.add("pcb", 1, CONTENT)
    state = tmp_path / "state"
    state.mkdir()
    with serving(lab.folder) as web:
        web.behaviours = {".tar.gz": _throttled}
        words = [sys.executable, "-c", CHILD, str(lab.root_file), str(state), web.address, str(NOW)]
        held = [_killed_at(words, state, least) for least in (1, 150_000, 300_000)]
        assert held == sorted(held) and held[0] > 0
        ranges = [range for path, range in web.asked if path.endswith(".tar.gz")]
        assert ranges == ["", f"bytes={held[0]}-", f"bytes={held[1]}-"], "it goes on, it does not begin again"
    trust = Trust(lab.root_file, state, mirror(str(lab.folder)), now=lambda: NOW)
    trust.refresh()
    assert trust.fetch(trust.offers("pcb")[0], state / "update").read_bytes() == CONTENT, "the rest comes from a stick"
    assert not list((state / "update").glob("*.part"))


def _killed_at(words: list[str], state: Path, least: int) -> int:
    """Run the child until so much has come, and kill it; how much there is then."""
    child = subprocess.Popen(words, cwd=Path(__file__).parents[2])
    end = time.monotonic() + 60
    try:
        while time.monotonic() < end and _part_bytes(state) < least:
            assert child.poll() is None, "it must not be done before it is killed"
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait(30)
    return _part_bytes(state)


def _part_bytes(state: Path) -> int:
    return sum(path.stat().st_size for path in (state / "update").glob("*.part"))


@pytest.mark.parametrize("beginning", [b"\0" * 100_000, b"\0" * len(CONTENT)])
def test_a_wrong_beginning_is_thrown_away_and_the_right_thing_brought(tmp_path: Path, beginning: bytes) -> None:
    lab = Lab(tmp_path / "honest", now=NOW)
    lab.add("pcb", 1, CONTENT)
    (tmp_path / "state").mkdir()
    trust = Trust(lab.root_file, tmp_path / "state", mirror(str(lab.folder)), now=lambda: NOW)
    trust.refresh()
    (offer,) = trust.offers("pcb")
    sha256 = next((lab.folder / "targets/pcb").iterdir()).name.partition(".")[0]
    (tmp_path / "into").mkdir()
    (tmp_path / "into" / f"{sha256[:16]}.part").write_bytes(beginning)
    (tmp_path / "into" / "another.part").write_bytes(b"of an older bundle")
    fetched = trust.fetch(offer, tmp_path / "into")
    assert fetched.read_bytes() == CONTENT and os.listdir(tmp_path / "into") == [fetched.name]
    shutil.rmtree(lab.folder / "targets")
    assert trust.fetch(offer, tmp_path / "into") == fetched, "what is there and right is not brought again"
    fetched.write_bytes(b"damaged on the disk")
    with pytest.raises(TrustError) as caught:
        trust.fetch(offer, tmp_path / "into")
    assert caught.value.code == "not_found"


# Pace.


@pytest.mark.parametrize("kb_s", [5.0, 50.0, 1000.0])
def test_a_download_takes_its_share_of_the_network_and_no_more(web: Web, tmp_path: Path, kb_s: float) -> None:
    clock = FakeClock()
    source = WebMirror(web.address, kb_s=kb_s, limits=LIMITS, clock=clock, sleep=clock.sleep)
    source.download(NAME, tmp_path / "part", len(CONTENT))
    assert (tmp_path / "part").read_bytes() == CONTENT
    assert clock.now == pytest.approx(len(CONTENT) / (kb_s * 1000), rel=0.02)


def test_pace_asks_for_small_pieces_under_a_cap() -> None:
    assert Pace(LIMITS).piece_bytes == 1 << 16
    assert Pace(LIMITS, 100.0).piece_bytes == 25_000
    assert Pace(LIMITS, 0.001).piece_bytes == 1
    assert Pace(LIMITS, 1e9).piece_bytes == 1 << 16


def test_only_waiting_for_the_mirror_counts_against_it() -> None:
    clock = FakeClock()
    pace = Pace(Limits(least_kb_s=1.0, window_s=10.0), 0.5, clock, clock.sleep)
    for _ in range(100):  # the cap makes it slower than the least rate: not its fault
        pace.ask()
        pace.got(1000)
    with pytest.raises(TooSlow, match="1 bytes in 10 s, the least is 1 kB/s"):
        for _ in range(2):  # the first window has the hundred pieces in it
            pace.ask()
            clock.now += 10.0
            pace.got(1)


def test_a_byte_a_connection_is_slow_too(repository: Path, tmp_path: Path) -> None:
    clock = FakeClock()

    def one_byte(handler: Handler) -> None:
        clock.now += 2.0  # what a connection takes
        Dying(1)(handler)

    with serving(repository) as web:
        web.behaviours = {".tar.gz": one_byte}
        source = WebMirror(web.address, limits=LIMITS, clock=clock, sleep=lambda _: None)
        with pytest.raises(MirrorError) as caught:
            source.download(NAME, tmp_path / "part", len(CONTENT))
        assert caught.value.code == "too_slow" and len(web.asked) < 10


def test_a_slow_hour_after_a_fast_one_is_seen() -> None:
    clock = FakeClock()
    pace = Pace(Limits(least_kb_s=1.0, window_s=10.0), 0.0, clock, clock.sleep)
    for _ in range(50):
        pace.ask()
        clock.now += 1.0
        pace.got(1_000_000)
    with pytest.raises(TooSlow):
        for _ in range(12):
            pace.ask()
            clock.now += 1.0
            pace.got(900)


def test_what_comes_too_slowly_ends_whatever_the_library_waits_for(web: Web, tmp_path: Path) -> None:
    web.behaviours = {"trickle.json": trickle, "endless.json": endless}
    source = WebMirror(web.address, limits=Limits(silence_s=0.2, window_s=0.2))
    with pytest.raises(MirrorError) as caught:
        source.download_bytes("metadata/trickle.json", 10_000)
    assert caught.value.code == "too_slow"
    assert not [thread for thread in threading.enumerate() if thread.name == "edge-mirror-watch"]


def test_a_hole_that_swallows_connections_ends_too(tmp_path: Path) -> None:
    """A listener whose queue is full: connections are neither accepted nor refused."""
    with socket.socket() as listener, socket.socket() as one, socket.socket() as two:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for caller in (one, two):
            caller.setblocking(False)
            caller.connect_ex(address)
        source = WebMirror(f"http://127.0.0.1:{address[1]}", limits=Limits(connect_s=0.2, silence_s=0.2))
        with pytest.raises(MirrorError) as caught:
            source.download_bytes("metadata/timestamp.json", 1000)
    assert caught.value.code in ("unreachable", "too_slow")


# Addresses, names, TLS.


def test_addresses(repository: Path, web: Web) -> None:
    for address in (str(repository), f"file:{repository}", f"file://{repository}", web.address, web.address + "/"):
        assert mirror(address).download_bytes(NAME, len(CONTENT)) == CONTENT
    with pytest.raises(DownloadHTTPError):
        mirror(str(repository)).download_bytes("metadata/none.json", 10)
    secret = mirror("http://user:secret@127.0.0.1:9/x")
    assert "secret" not in secret.address and secret.address == "http://127.0.0.1:9/x"


def test_a_password_of_the_address_is_sent(web: Web) -> None:
    seen: list[str] = []

    def note(handler: Handler) -> None:
        seen.append(handler.headers.get("Authorization", ""))
        handler.serve()

    web.behaviours = {".tar.gz": note}
    mirror(web.address.replace("//", "//user:secret@")).download_bytes(NAME, len(CONTENT))
    assert seen == ["Basic dXNlcjpzZWNyZXQ="]


@pytest.mark.parametrize("name", ["../secret", "metadata/../../secret", "/etc/passwd", "metadata//x", "metadata/./x"])
def test_no_name_leads_out_of_a_folder(repository: Path, name: str) -> None:
    (repository.parent / "secret").write_text("secret")
    with pytest.raises((MirrorError, DownloadHTTPError)):
        FolderMirror(str(repository)).download_bytes(name, 10_000)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's certificate for 127.0.0.1, its own authority; with its key beside it."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    today = datetime.now(timezone.utc)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=10))
        .add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(built.public_bytes(serialization.Encoding.PEM))
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(secret)
    return folder


def test_a_server_with_a_certificate_of_its_own_authority(web: Web, certificate: Path, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    web.socket = context.wrap_socket(web.socket, server_side=True)
    address = web.address.replace("http:", "https:")
    trusting = mirror(address, ca_file=str(certificate / "cert.pem"), limits=LIMITS)
    trusting.download(NAME, tmp_path / "part", len(CONTENT))
    assert (tmp_path / "part").read_bytes() == CONTENT
    with pytest.raises(MirrorError) as caught:
        mirror(address, limits=LIMITS).download_bytes(NAME, len(CONTENT))
    assert caught.value.code == "unreachable" and "update.ca_file" in str(caught.value)
    web.behaviours = {"moved": _moved_to(web.address + "/" + NAME)}
    with pytest.raises(MirrorError, match="from https to http"):
        trusting.download_bytes("moved", len(CONTENT))
    for wrong in ("/nowhere.pem", str(certificate / "key.pem")):
        with pytest.raises(TrustError, match=r"update\.ca_file"):
            mirror(address, ca_file=wrong)


def test_a_handshake_that_trickles_is_ended(certificate: Path) -> None:
    """Below TLS no timeout of the socket strikes as long as a byte comes now and then."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        over = threading.Event()

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"\x16\x03\x03\x3f\xff\x02")  # a handshake record of 16 kB begins
                while not over.wait(0.02):
                    try:
                        connection.sendall(b"\0")
                    except OSError:
                        return

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        address = f"https://127.0.0.1:{listener.getsockname()[1]}"
        source = mirror(address, ca_file=str(certificate / "cert.pem"), limits=Limits(connect_s=0.3, silence_s=0.3))
        with pytest.raises(MirrorError) as caught:
            source.download_bytes("metadata/timestamp.json", 1000)
        over.set()
        thread.join(10)
    assert caught.value.code == "too_slow"


def _moved_to(address: str) -> Behaviour:
    def redirect(handler: Handler) -> None:
        handler.send_response(302)
        handler.send_header("Location", address)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return redirect


def test_a_redirect_is_followed_and_a_circle_is_not(web: Web, tmp_path: Path) -> None:
    web.behaviours = {"moved.tar.gz": _moved_to("/" + NAME), "round.tar.gz": _moved_to("/round.tar.gz")}
    at(web).download("moved.tar.gz", tmp_path / "part", len(CONTENT))
    assert (tmp_path / "part").read_bytes() == CONTENT
    with pytest.raises(MirrorError) as caught:
        at(web).download("round.tar.gz", tmp_path / "other", len(CONTENT))
    assert caught.value.code == "unreachable" and len(web.asked) < 20


def test_a_password_is_not_given_to_another_server(web: Web, repository: Path) -> None:
    seen: list[str | None] = []

    def note(handler: Handler) -> None:
        seen.append(handler.headers.get("Authorization"))
        handler.serve()

    with serving(repository) as other:
        other.behaviours = {".tar.gz": note}
        web.behaviours = {"moved": _moved_to(f"{other.address}/{NAME}")}
        source = mirror(web.address.replace("//", "//user:secret@"))
        assert source.download_bytes("moved", len(CONTENT)) == CONTENT
    assert seen == [None]
