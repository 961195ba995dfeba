"""How a client reaches the broker: passwords, certificates, and what is said when it does not get in."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from edge.broker import (
    await_address,
    brief,
    explain,
    explain_refusal,
    explain_silence,
    make_client,
    read_password,
    tls_context,
)
from edge.config import Mqtt
from edge.errors import PublishError


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(111, "refused"), "aoi:1883 refuses the connection; check that the broker runs"),
        (socket.gaierror(-2, "Name or service not known"), "the name 'aoi' of the MQTT broker is unknown; check"),
        (UnicodeError("label too long"), "the name 'aoi' of the MQTT broker is unknown"),
        (TimeoutError("timed out"), "did not answer within 5 s; check the cable"),
        (OSError(113, "No route to host"), "cannot be reached: No route to host; check the network"),
        (ConnectionResetError(104, "reset"), "closed the connection without a word; check that this port speaks MQTT"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong"), "no TLS session"),
        (ValueError("odd"), "cannot be reached: odd"),
    ],
)
def test_no_connection_is_explained(error: Exception, words: str) -> None:
    text = explain(error, Mqtt(host="aoi"), 5.0)
    assert words in text and "\n" not in text


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "connection refused"),
        (socket.gaierror(-2, "Name or service not known"), "name or service not known"),
        (TimeoutError("timed out"), "timed out"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong"), "TLS failed: "),
        (OSError(), "cannot be reached"),
        (ValueError("odd"), "cannot be reached"),
        (None, "cannot be reached"),
    ],
)
def test_no_connection_in_few_words(error: Exception | None, words: str) -> None:
    assert brief(error).startswith(words)


@pytest.mark.parametrize(
    ("settings", "closed", "words"),
    [
        (Mqtt(), False, "did not answer within 5 s; is it an MQTT broker?"),
        (Mqtt(), True, "whether it wants TLS (mqtt.tls)"),
        (Mqtt(tls=True), True, "whether it wants a client certificate (mqtt.cert_file)"),
        (Mqtt(tls=True, cert_file="c.pem"), True, "that it accepts the client certificate in mqtt.cert_file"),
    ],
)
def test_silence_is_explained(settings: Mqtt, closed: bool, words: str) -> None:
    assert words in explain_silence(settings, closed, 5.0)


@pytest.mark.parametrize(
    ("reason", "settings", "words"),
    [
        ("Not authorized", Mqtt(), "wants a user name and a password; set mqtt.username"),
        ("Bad user name or password", Mqtt(username="u"), "refused the password of user 'u'; check"),
        ("Client identifier not valid", Mqtt(), "refused the client name 'edge-n'; set mqtt.client_id"),
        ("Server busy", Mqtt(), "refused the session: server busy; look into the broker's log"),
    ],
)
def test_refusal_is_explained(reason: str, settings: Mqtt, words: str) -> None:
    assert words in explain_refusal(ReasonCode(PacketTypes.CONNACK, reason), settings, "edge-n")


# Finding the broker.


def test_an_address_is_found() -> None:
    await_address(Mqtt(host="localhost"), 5.0)


def test_an_unknown_name_is_an_error_of_its_own() -> None:
    with pytest.raises(socket.gaierror):
        await_address(Mqtt(host="no-such-broker.invalid"), 10.0)


def test_a_name_service_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_k: release.wait(10))
    begun = time.monotonic()
    with pytest.raises(PublishError, match=r"no address of the MQTT broker 'aoi' was found within 0\.2 s; check"):
        await_address(Mqtt(host="aoi"), 0.2)
    assert time.monotonic() - begun < 5.0
    release.set()


# Who we are.


def test_a_client_that_cannot_log_in_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match=r"mqtt\.password_file"):
        make_client(Mqtt(username="u", password_file=str(tmp_path / "none")), "edge-n", reconnect=False)
    with pytest.raises(PublishError, match=r"mqtt\.ca_file"):
        make_client(Mqtt(tls=True, ca_file=str(tmp_path / "none")), "edge-n", reconnect=False)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\xff"])
def test_password_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(PublishError, match=r"mqtt\.password_file .*password cannot be read: .*; check the path"):
        read_password(Mqtt(username="u", password_file=str(file)))


@pytest.mark.parametrize(("content", "password"), [(b"secret\n", "secret"), (b" s p \r\n", " s p "), (b"x", "x")])
def test_password_file_ends_at_its_line_end(tmp_path: Path, content: bytes, password: str) -> None:
    (tmp_path / "password").write_bytes(content)
    assert read_password(Mqtt(username="u", password_file=str(tmp_path / "password"))) == password


@pytest.mark.parametrize(
    ("field", "content", "words"),
    [
        ("ca_file", None, "mqtt.ca_file .* cannot be read: No such file"),
        ("ca_file", "not a certificate", "mqtt.ca_file .* cannot be used"),
        ("cert_file", None, "mqtt.cert_file .* cannot be read: No such file"),
        ("cert_file", "not a certificate", "mqtt.cert_file .* cannot be used"),
    ],
)
def test_tls_file_that_cannot_be_used_is_named(tmp_path: Path, field: str, content: str | None, words: str) -> None:
    file = tmp_path / "file.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(PublishError, match=words):
        tls_context(Mqtt(tls=True, **{field: str(file)}))


def test_missing_key_file_is_named_and_not_the_certificate(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("")
    with pytest.raises(PublishError, match=r"mqtt\.key_file .* cannot be read: No such file"):
        tls_context(Mqtt(tls=True, cert_file=str(tmp_path / "cert.pem"), key_file=str(tmp_path / "key.pem")))
