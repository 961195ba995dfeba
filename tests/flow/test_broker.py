"""Outbox and publisher against a real mosquitto that is killed, restarted, and guarded by passwords and TLS.

What can be proved. A message leaves the outbox on PUBACK and not before, so nothing is lost before the broker has
it. What a broker does with a message after its PUBACK is its own affair: a mosquitto that is killed with -9 forgets
what it has not yet passed on. It does pass a QoS 1 message on to a connected reader *before* it answers PUBACK (with
`max_inflight_messages 0`, so that it does not hold any back), so the reader's kernel has it even if the broker dies in
that instant. Hence, with SIGKILL: a reader with a persistent session, which was connected at each kill, must miss no
number. With SIGTERM mosquitto also saves what it holds for readers that are away; they must miss none either.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edge.config import Mqtt
from tests.brokers import Broker, needs_mosquitto, wait_until
from tests.flow.lines import Line

pytestmark = needs_mosquitto


def test_backlog_is_delivered_in_order_and_once(tmp_path: Path) -> None:
    with Broker(tmp_path / "broker") as broker, Line(tmp_path, broker.port) as line:
        for _ in range(200):
            line.part()
        line.read(clean=True)
        line.publisher.start()
        line.wait_delivered(200, 20)
        assert line.seqs() == list(range(1, 201))
        wait_until(lambda: line.outbox.counts().depth == 0, 5, "an empty outbox")
        counts = line.outbox.counts()
        assert (counts.depth, counts.added, counts.delivered) == (0, 200, 200)


@pytest.mark.parametrize("number", ["kill", "stop"])
def test_broker_killed_under_load_loses_nothing(tmp_path: Path, number: str) -> None:
    figures = kill_under_load(tmp_path, number, kills=1, up_s=0.4, down_s=0.2, gap_s=0.01)
    assert figures.missing == [] and figures.other_ids == 0
    assert figures.connects == 2 and figures.left == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", ["kill", "stop"])
def test_broker_killed_twenty_times_under_load_loses_nothing(tmp_path: Path, number: str) -> None:
    figures = kill_under_load(tmp_path, number, kills=20, up_s=1.5, down_s=0.5, gap_s=0.02)
    assert figures.missing == [] and figures.other_ids == 0 and figures.left == 0


@dataclass(frozen=True)
class Figures:
    """What came of a run."""

    added: int
    missing: list[int]
    duplicates: int
    other_ids: int
    connects: int
    left: int
    reconnect_s: list[float]


def kill_under_load(folder: Path, how: str, *, kills: int, up_s: float, down_s: float, gap_s: float) -> Figures:
    """Publish steadily while the broker is ended (`kill` or `stop`) and started again.

    A broker is ended only while the reader is connected and has caught up, see the head of this file.
    """
    lines = ["persistence true", "max_inflight_messages 0", "max_queued_messages 0"]
    reconnect_s = []
    with Broker(folder / "broker", lines) as broker, Line(folder, broker.port) as line:
        line.read(clean=False)
        broker.save()  # the reader's session outlives a kill from here on
        line.publisher.start()
        line.begin_load(gap_s)
        for _ in range(kills):
            time.sleep(up_s)
            line.wait_reader_current(10)
            getattr(broker, how)()
            time.sleep(down_s)
            broker.start()
            begun = time.monotonic()
            wait_until(line.publisher.connected, 15, "a new connection")
            reconnect_s.append(time.monotonic() - begun)
        added = line.end_load()
        wait_until(lambda: line.outbox.counts().depth == 0, 30, "an empty outbox")
        line.wait_delivered(added, 15, complete=False)
        ids = line.ids()
        return Figures(
            added=added,
            missing=sorted(set(range(1, added + 1)) - set(ids)),
            duplicates=len(line.seqs()) - len(ids),
            other_ids=sum(len(names) > 1 for names in ids.values()),
            connects=line.publisher.status().connects,
            left=line.outbox.counts().depth,
            reconnect_s=reconnect_s,
        )


def test_frozen_broker_is_given_up_and_found_again(tmp_path: Path) -> None:
    """It holds the connection but answers nothing, as behind a dead link."""
    with Broker(tmp_path / "broker") as broker, Line(tmp_path, broker.port, ack_s=1.0) as line:
        line.read(clean=True)
        line.publisher.start()
        line.part()
        line.wait_delivered(1, 5)
        broker.freeze()
        line.part()
        wait_until(lambda: "no acknowledgement for 1 s" in line.publisher.status().detail, 10, "it to be given up")
        broker.thaw()
        line.wait_delivered(2, 10)
        wait_until(lambda: line.outbox.counts().depth == 0, 5, "an empty outbox")


def test_what_was_sent_but_not_acknowledged_is_sent_again(tmp_path: Path) -> None:
    """The broker is killed with a full window of messages in its socket, none of them read."""
    with Broker(tmp_path / "broker", ["persistence true"]) as broker, Line(tmp_path, broker.port) as line:
        line.read(clean=False)
        broker.save()
        line.publisher.start()
        line.part()
        line.wait_delivered(1, 5)
        broker.freeze()
        for _ in range(50):
            line.part()
        wait_until(lambda: line.publisher.status().in_flight == 20, 5, "a full window")
        broker.kill()
        wait_until(lambda: not line.publisher.connected(), 5, "the loss to be noticed")
        assert line.outbox.counts().depth >= 50
        broker.start()
        line.wait_delivered(51, 10)
        assert line.seqs() == list(range(1, 52))
        wait_until(lambda: line.outbox.counts().depth == 0, 5, "an empty outbox")


def test_two_boxes_of_one_name_are_told_apart_by_the_hint(tmp_path: Path) -> None:
    with (
        Broker(tmp_path / "broker") as broker,
        Line(tmp_path / "one", broker.port) as one,
        Line(tmp_path / "two", broker.port) as two,
    ):
        one.publisher.start()
        two.publisher.start()
        words = "is another client called edge-n, too?"
        wait_until(lambda: words in one.publisher.status().detail + two.publisher.status().detail, 15, words)


# Who may come in.


def _passwords(broker: Broker, **users: str) -> None:
    file = broker.folder / "passwords"
    file.write_text("")
    for user, password in users.items():
        subprocess.run(["mosquitto_passwd", "-b", file, user, password], check=True, capture_output=True)


def test_refused_password_is_said_and_a_rotated_one_is_taken(tmp_path: Path) -> None:
    broker = Broker(tmp_path / "broker", ["allow_anonymous false", f"password_file {tmp_path}/broker/passwords"])
    _passwords(broker, box="right")
    secret = tmp_path / "secret"
    secret.write_text("wrong\n")
    settings = Mqtt(port=broker.port, username="box", password_file=str(secret))
    with broker, Line(tmp_path, broker.port, settings) as line:
        line.part()
        line.publisher.start()
        wait_until(lambda: "refused the password of user 'box'" in line.publisher.status().detail, 5, "the refusal")
        assert "wrong" not in line.publisher.status().detail, "a password is never shown"
        secret.write_text("right\n")
        wait_until(lambda: line.outbox.counts().depth == 0, 10, "delivery with the new password")


def test_no_password_where_one_is_wanted(tmp_path: Path) -> None:
    broker = Broker(tmp_path / "broker", ["allow_anonymous false", f"password_file {tmp_path}/broker/passwords"])
    _passwords(broker, box="right")
    with broker, Line(tmp_path, broker.port) as line:
        line.publisher.start()
        wait_until(lambda: "wants a user name and a password" in line.publisher.status().detail, 5, "the refusal")


class Authority:
    """A certificate authority of our own, and what it signs."""

    def __init__(self, folder: Path, name: str = "test authority") -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._builder(
            self._name, self._key.public_key(), x509.BasicConstraints(ca=True, path_length=None)
        )
        self.file = folder / "ca.pem"
        self.file.write_bytes(certificate.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def sign(self, name: str, address: str = "127.0.0.1", days: int = 1) -> tuple[Path, Path]:
        """Certificate and key files of somebody."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(subject, key.public_key(), x509.BasicConstraints(ca=False, path_length=None), days)
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        certificate = builder.add_extension(names, critical=False).sign(self._key, hashes.SHA256())
        cert_file, key_file = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return cert_file, key_file

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, constraints: x509.BasicConstraints, days: int = 1
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=10))
            .not_valid_after(now + dt.timedelta(days=days))
            .add_extension(constraints, critical=True)
        )


def _tls_broker(folder: Path, authority: Authority, name: str, *more: str, **how: object) -> Broker:
    cert_file, key_file = authority.sign(name, **how)  # type: ignore[arg-type]
    lines = [f"cafile {authority.file}", f"certfile {cert_file}", f"keyfile {key_file}", *more]
    return Broker(folder / "broker", lines)


def test_tls_with_client_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    cert_file, key_file = authority.sign("box")
    with _tls_broker(tmp_path, authority, "broker", "require_certificate true") as broker:
        settings = Mqtt(
            port=broker.port, tls=True, ca_file=str(authority.file), cert_file=str(cert_file), key_file=str(key_file)
        )
        with Line(tmp_path, broker.port, settings) as line:
            line.publisher.start()
            for _ in range(300):
                line.part()
            wait_until(lambda: line.outbox.counts().depth == 0, 10, "delivery over TLS")
            big = bytes(2_000_000)
            assert line.publisher.live_bytes(line.topics.camera("cam1", "image"), big)
            line.part()
            wait_until(lambda: line.outbox.counts().depth == 0, 10, "delivery after a big image")
        settings = msgspec.structs.replace(settings, cert_file=None, key_file=None)
        assert "wants a client certificate (mqtt.cert_file)" in _why_not(tmp_path / "without", broker, settings)


def test_tls_broker_signed_by_another_authority(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    with _tls_broker(tmp_path, theirs, "broker") as broker:
        why = _why_not(tmp_path, broker, Mqtt(port=broker.port, tls=True, ca_file=str(ours.file)))
        assert "a certificate that is not trusted" in why and "check mqtt.ca_file" in why


@pytest.mark.parametrize(
    ("how", "words"),
    [({"address": "127.0.0.9"}, "IP address mismatch"), ({"days": -1}, "certificate has expired")],
)
def test_tls_broker_with_a_bad_certificate(tmp_path: Path, how: dict[str, object], words: str) -> None:
    authority = Authority(tmp_path / "ca")
    with _tls_broker(tmp_path, authority, "broker", **how) as broker:
        assert words in _why_not(tmp_path, broker, Mqtt(port=broker.port, tls=True, ca_file=str(authority.file)))


def test_plain_client_at_a_tls_port(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    with _tls_broker(tmp_path, authority, "broker") as broker:
        assert "whether it wants TLS (mqtt.tls)" in _why_not(tmp_path, broker, Mqtt(port=broker.port))


def _why_not(folder: Path, broker: Broker, settings: Mqtt) -> str:
    """What the status says of a connection that does not come about."""
    with Line(folder, broker.port, settings) as line:
        line.publisher.start()
        wait_until(lambda: "the MQTT broker" in line.publisher.status().detail, 8, "a reason")
        assert not line.publisher.connected()
        return line.publisher.status().detail
