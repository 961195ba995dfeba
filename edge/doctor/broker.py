"""The way to the broker, step by step: name, TCP, TLS with its certificates and their dates, log-in, rights."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Final

from edge import broker
from edge.config import Config, Mqtt
from edge.doctor import certificates
from edge.doctor.certificates import Certificate, dates_finding
from edge.doctor.context import Context
from edge.doctor.finding import Finding, Reporter
from edge.errors import PublishError
from edge.event import Topics

SUBJECT: Final = "broker"
STEP_S: Final = 5.0  # for the name, the TCP connection, the handshake, the broker's answer, each
ALERT_S: Final = 0.5  # a broker that wants another client certificate says so right after the handshake
ECHO_S: Final = 2.0  # for a message to come back
PROBE: Final = b'{"schema":"edge.doctor_probe.v1"}'
USUAL_PORTS: Final = (1883, 8883)
HOSTNAME_MISMATCH, IP_MISMATCH, EXPIRED, NOT_YET = 62, 64, 10, 9  # X509_V_ERR_... of OpenSSL
SERVER_FIX: Final = "have a new certificate made for the broker, put it in its place there and start the broker again"
CA_FIX: Final = "have the authority renewed, copy its new certificate to mqtt.ca_file of every box"
CLIENT_FIX: Final = "have a new certificate made for this box, put it and its key where mqtt.cert_file and key_file say"

_note = Reporter(SUBJECT)


def check(context: Context) -> Iterator[Finding]:
    """Each step as far as the one before it allows."""
    if context.config is None:
        return
    settings, now = context.config.mqtt, context.system.now()
    if settings.tls:
        yield from _own_files(settings, now)
    try:
        broker.read_password(settings)
        tls = broker.tls_context(settings) if settings.tls else None
        broker.await_address(settings, STEP_S)
    except PublishError as error:
        yield _split("set_up", str(error))
        return
    except (OSError, UnicodeError) as error:
        yield _split("unknown_name", broker.explain(error, settings, STEP_S))
        return
    yield from _plain_password(settings)
    try:
        with socket.create_connection((settings.host, settings.port), STEP_S) as plain:
            yield _note.ok("reached", f"{settings.host}:{settings.port} answers", address=plain.getpeername()[0])
            good = True
            if tls is not None:
                good = yield from _handshake(settings, tls, plain, now)
    except OSError as error:
        yield _unreachable(settings, error)
        return
    if good:
        yield from _log_in(context.config)


def _split(code: str, text: str) -> Finding:
    """Texts of `edge.broker` have their remedy after a semicolon."""
    what, _, fix = text.partition("; ")
    return _note.error(code, what, fix or "see the broker's log")


def _unreachable(settings: Mqtt, error: OSError) -> Finding:
    found = _split("unreachable", broker.explain(error, settings, STEP_S))
    if not isinstance(error, ConnectionRefusedError):
        return found
    others = [port for port in USUAL_PORTS if port != settings.port and _listens(settings.host, port)]
    hint = (
        f"; port {others[0]} of it does answer: is it that one?" if others else "; `systemctl status mosquitto` there"
    )
    return _note.error("refused", found.text, found.fix + hint, port=settings.port, answering=others)


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), 1.0):
            return True
    except OSError:
        return False


def _plain_password(settings: Mqtt) -> Iterator[Finding]:
    if settings.tls or settings.username is None or _is_local(settings.host):
        return
    yield _note.info(
        "password_in_clear",
        f"the password of {settings.username} goes to {settings.host} unencrypted",
        "set tls = true and the broker's TLS port (usually 8883), with mqtt.ca_file",
    )


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# --- certificates ---


def _own_files(settings: Mqtt, now: float) -> Iterator[Finding]:
    """The dates of what this box brings itself; what cannot be read `tls_context` tells."""
    if settings.ca_file is not None:
        found = _certificates_of(settings.ca_file)
        if found:
            yield dates_finding(
                _note, "ca", "the authority in mqtt.ca_file", certificates.first_to_end(found), now, CA_FIX
            )
    if settings.cert_file is not None:
        found = _certificates_of(settings.cert_file)
        if found:  # the first is the box's own, those after it lead to the authority
            yield dates_finding(_note, "client", "this box's certificate", found[0], now, CLIENT_FIX)


def _certificates_of(file: str) -> list[Certificate]:
    try:
        return certificates.from_pem(Path(file).read_bytes())
    except (OSError, ValueError):
        return []


def _handshake(settings: Mqtt, tls: ssl.SSLContext, plain: socket.socket, now: float) -> Generator[Finding, None, bool]:
    """Yields what is found; returns whether the log-in is worth a try."""
    try:
        with tls.wrap_socket(plain, server_hostname=settings.host) as secure:
            yield from _server_dates(secure.getpeercert(binary_form=True), now)
            yield _note.ok("tls", f"{secure.version()} with a certificate that is trusted", version=secure.version())
            alert = _alert(secure)
    except ssl.SSLCertVerificationError as error:
        yield from _distrusted(settings, error, now)
        return False
    except (ssl.SSLError, OSError) as error:
        text = broker.explain(error, settings, STEP_S)
        yield _split("tls_failed", text)
        return False
    if alert is not None:
        yield _client_refused(settings, alert)
        return False
    return True


def _alert(secure: ssl.SSLSocket) -> ssl.SSLError | None:
    """With TLS 1.3 a broker judges the client's certificate after the handshake."""
    secure.settimeout(ALERT_S)
    try:
        secure.recv(1)
    except ssl.SSLError as error:
        return error
    except OSError:  # it waits for us, as it should; or it hung up, which the log-in explains
        pass
    return None


def _client_refused(settings: Mqtt, alert: ssl.SSLError) -> Finding:
    reason = re.sub(r"^tlsv1\w* alert ", "", (alert.reason or str(alert)).lower().replace("_", " "))
    broker_name = f"the MQTT broker {settings.host}:{settings.port}"
    if settings.cert_file is None:
        return _note.error(
            "client_certificate_wanted",
            f"{broker_name} wants a client certificate ({reason})",
            "have one made for this box and set mqtt.cert_file and mqtt.key_file",
        )
    return _note.error(
        "client_certificate_refused",
        f"{broker_name} refuses the certificate in mqtt.cert_file ({reason})",
        "it must be signed by the authority that the broker knows as its cafile, hold now, and not be revoked; the "
        "broker's log says which",
    )


def _server_dates(der: bytes | None, now: float) -> Iterator[Finding]:
    if der:
        with contextlib.suppress(ValueError):
            yield dates_finding(
                _note, "server", "the broker's certificate", certificates.from_der(der), now, SERVER_FIX
            )


def _distrusted(settings: Mqtt, error: ssl.SSLCertVerificationError, now: float) -> Iterator[Finding]:
    """Look at the certificate that was refused, without sending anything to whoever shows it."""
    found = _shown_certificate(settings)
    if found is None:
        yield _split("server_not_trusted", broker.explain(error, settings, STEP_S))
        return
    if error.verify_code in (HOSTNAME_MISMATCH, IP_MISMATCH):
        yield _mismatch(settings, found)
        return
    dates = dates_finding(_note, "server", "the broker's certificate", found, now, SERVER_FIX)
    if error.verify_code in (EXPIRED, NOT_YET):
        # It may also be the authority's; then the broker's own dates are well, and `_own_files` has told.
        yield dates if dates.severity == "error" else _chain(settings, error, found)
        return
    if dates.severity == "error":
        yield dates
    yield _chain(settings, error, found)


def _shown_certificate(settings: Mqtt) -> Certificate | None:
    look = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    look.check_hostname = False
    look.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((settings.host, settings.port), STEP_S) as plain,
            look.wrap_socket(plain, server_hostname=settings.host) as secure,
        ):
            der = secure.getpeercert(binary_form=True)
            return certificates.from_der(der) if der else None
    except (OSError, ValueError):
        return None


def _mismatch(settings: Mqtt, found: Certificate) -> Finding:
    names = found.names or (found.subject,)
    old = "" if found.names else " (as its common name only, which is not believed any more)"
    return _note.error(
        "name_mismatch",
        f"the broker's certificate is for {', '.join(names)}{old}, and mqtt.host is {settings.host}",
        f'set host = "{names[0]}" if that name leads to the broker from here (DNS or /etc/hosts), or have one '
        f"made with {settings.host} among its subject alternative names",
        host=settings.host,
        names=list(names),
    )


def _chain(settings: Mqtt, error: ssl.SSLCertVerificationError, found: Certificate) -> Finding:
    where = f"mqtt.ca_file {settings.ca_file}" if settings.ca_file else "the system's list of authorities"
    fix = (
        f"copy the certificate of the authority {found.issuer!r} to mqtt.ca_file"
        if not found.is_self_signed
        else "it vouches for itself: if that is meant to be, copy it to mqtt.ca_file"
    )
    return _note.error(
        "server_not_trusted",
        f"the broker's certificate ({found.subject}, signed by {found.issuer}) is not trusted by {where}: "
        f"{error.verify_message}",
        f"{fix}; be sure that it really is your broker's",
        subject=found.subject,
        issuer=found.issuer,
    )


# --- MQTT ---


def _log_in(config: Config) -> Iterator[Finding]:
    """Connect as the daemon does, under another name: two clients of one name would throw each other out."""
    settings, station = config.mqtt, config.station
    topics = Topics(settings.prefix, station.site, station.line, station.node)
    name = f"{broker.client_id(settings, topics)[:50]}-doctor"
    visit = _Visit(settings, name)
    try:
        refusal = visit.enter()
        if refusal is not None:
            yield refusal
            return
        yield _note.ok(
            "logged_in", f"the broker lets this box in{f' as {settings.username}' if settings.username else ''}"
        )
        yield visit.hears_itself(f"{topics.state.rpartition('/')[0]}/doctor", settings)
    except (OSError, ValueError, PublishError) as error:
        yield _split("log_in", broker.explain(error, settings, STEP_S))
    finally:
        visit.leave()


class _Visit:
    """One short connection, made with the daemon's own client so that both log in alike. Leaves nothing behind."""

    def __init__(self, settings: Mqtt, name: str) -> None:
        self._settings, self._name = settings, name
        self._answers: list[Any] = []
        self._grants: list[Any] = []
        self._heard: list[bytes] = []
        self._gone = False
        self._client = broker.make_client(settings, name, reconnect=False)
        self._client.connect_timeout = STEP_S
        self._client.on_connect = lambda _c, _d, _f, reason, _p: self._answers.append(reason)
        self._client.on_subscribe = lambda _c, _d, _m, reasons, _p: self._grants.extend(reasons)
        self._client.on_message = lambda _c, _d, message: self._heard.append(bytes(message.payload))
        self._client.on_disconnect = lambda *_: setattr(self, "_gone", True)

    def enter(self) -> Finding | None:
        """Connect; why that did not work, or None."""
        self._client.connect(self._settings.host, self._settings.port, self._settings.keepalive_s)
        self._turn_until(lambda: bool(self._answers) or self._gone, STEP_S)
        if not self._answers:
            return _split("no_answer", broker.explain_silence(self._settings, self._gone, STEP_S))
        if self._answers[0].is_failure:
            return _split("not_let_in", broker.explain_refusal(self._answers[0], self._settings, self._name))
        return None

    def hears_itself(self, topic: str, settings: Mqtt) -> Finding:
        """Whether the broker's access list lets this user speak and listen below its topics.

        A broker that forbids it still acknowledges what it throws away, so only hearing it again proves anything.
        """
        self._client.subscribe(topic, 1)
        self._turn_until(lambda: bool(self._grants) or self._gone, STEP_S)
        if self._grants and not self._grants[0].is_failure:
            self._client.publish(topic, PROBE, qos=1)
            self._turn_until(lambda: PROBE in self._heard or self._gone, ECHO_S)
        if PROBE in self._heard:
            return _note.ok("rights", f"it may speak and listen below {topic.rpartition('/')[0]}", topic=topic)
        base = topic.rpartition("/")[0]
        return _note.error(
            "no_rights",
            f"the broker lets {settings.username or 'this box'} in, but what it says on {topic} does not come back: "
            "results are acknowledged and thrown away",
            f"in the broker's access list (mosquitto: acl_file) give it `topic readwrite {base}/#`; a list that goes "
            f"by client names has to know {self._name} for this test",
            topic=topic,
        )

    def leave(self) -> None:
        """Say goodbye."""
        with contextlib.suppress(OSError, ValueError):
            self._client.disconnect()
            self._client.loop(0.1)

    def _turn_until(self, done: Callable[[], bool], limit_s: float) -> None:
        until = time.monotonic() + limit_s
        while not done() and time.monotonic() < until:
            if self._client.loop(0.1) != 0:
                self._gone = True
