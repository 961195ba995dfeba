"""How a client reaches the broker of the site config: who it is, how it logs in, and why it did not get in.

Every sentence here is for a technician: it names the broker, the trouble and what to do.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from edge.config import Mqtt
from edge.errors import PublishError
from edge.event import Topics


def client_id(settings: Mqtt, topics: Topics) -> str:
    """What this box is called at the broker, where two clients of one name throw each other out.

    >>> client_id(Mqtt(), Topics("edge", "plant", "smt1", "aoi"))
    'edge-aoi'
    """
    return settings.client_id or f"edge-{topics.node}"


def make_client(settings: Mqtt, name: str, *, reconnect: bool) -> mqtt.Client:
    """A paho client that logs in as configured, not yet connected.

    Args:
        name: what it is called at the broker.
        reconnect: whether paho is to connect again by itself.

    Raises:
        PublishError: the password file, or a file of the TLS set-up, cannot be used.
    """
    client = mqtt.Client(
        CallbackAPIVersion.VERSION2,
        client_id=name,
        clean_session=True,
        protocol=mqtt.MQTTv311,
        reconnect_on_failure=reconnect,
    )
    if settings.username is not None:
        client.username_pw_set(settings.username, read_password(settings))
    if settings.tls:
        client.tls_set_context(tls_context(settings))
    return client


def read_password(settings: Mqtt) -> str | None:
    """The password, read anew at each connect, so that a rotated file works without a restart.

    Raises:
        PublishError: the file cannot be read.
    """
    if settings.password_file is None:
        return settings.password
    try:
        return Path(settings.password_file).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise PublishError(
            f"mqtt.password_file {settings.password_file} cannot be read: {reason}; "
            "check the path and that this program's user may read it"
        ) from error


def tls_context(settings: Mqtt) -> ssl.SSLContext:
    """The TLS set-up of the config, with its files read anew.

    Raises:
        PublishError: one of the files is missing or is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks certificate and host name, TLS 1.2 or later
    if settings.ca_file is None:
        context.load_default_certs()
    else:
        with _naming("mqtt.ca_file", settings.ca_file, "the PEM file of the authority that signed the broker"):
            context.load_verify_locations(settings.ca_file)
    if settings.cert_file is not None:
        for field, file in (("mqtt.cert_file", settings.cert_file), ("mqtt.key_file", settings.key_file)):
            if file is not None:
                with _naming(field, file, "a readable PEM file"), open(file, "rb"):
                    pass
        with _naming("mqtt.cert_file", settings.cert_file, "a PEM certificate, and mqtt.key_file its unencrypted key"):
            # An empty password: asking for one on the terminal would hang a service.
            context.load_cert_chain(settings.cert_file, settings.key_file, password="")
    return context


def await_address(settings: Mqtt, limit_s: float) -> None:
    """Wait until the system has found the broker's address, but not for ever: its own look-up has no time limit.

    Raises:
        PublishError: it did not within `limit_s`.
        OSError, UnicodeError: there is no such name; see `explain`.
    """
    outcome: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
            outcome.put(None)
        except Exception as error:  # raised where it is waited for
            outcome.put(error)

    threading.Thread(target=look_up, name="address-look-up", daemon=True).start()
    try:
        error = outcome.get(timeout=limit_s)
    except queue.Empty:
        raise PublishError(
            f"no address of the MQTT broker {settings.host!r} was found within {limit_s:g} s; "
            "check mqtt.host, and this box's network and DNS"
        ) from None
    if error is not None:
        raise error


@contextlib.contextmanager
def _naming(field: str, file: str, wanted: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as error:
        raise PublishError(f"{field} {file} cannot be used ({_reason(error)}); it must be {wanted}") from error
    except OSError as error:
        raise PublishError(f"{field} {file} cannot be read: {error.strerror}; it must be {wanted}") from error


def _reason(error: ssl.SSLError) -> str:
    return str(getattr(error, "reason", None) or error)


def explain(error: Exception, settings: Mqtt, connect_s: float) -> str:
    """Why there is no connection, and what to do, in one sentence for a technician."""
    broker = f"the MQTT broker {settings.host}:{settings.port}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"{broker} has a certificate that is not trusted: {error.verify_message}; "
            "check mqtt.ca_file, that mqtt.host is a name in the certificate, and this box's clock"
        )
    if isinstance(error, ssl.SSLError):
        return (
            f"no TLS session with {broker} ({_reason(error)}); check that this port speaks TLS, "
            "and whether it wants a client certificate (mqtt.cert_file)"
        )
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return f"the name {settings.host!r} of the MQTT broker is unknown; check mqtt.host and this box's DNS"
    if isinstance(error, ConnectionRefusedError):
        return f"{broker} refuses the connection; check that the broker runs and that mqtt.port is right"
    if isinstance(error, TimeoutError):
        return f"{broker} did not answer within {connect_s:g} s; check the cable, mqtt.host and the firewall"
    if isinstance(error, ConnectionError):
        return explain_silence(settings, True, connect_s)
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return f"{broker} cannot be reached: {reason}; check the network of this box and mqtt.host"


def brief(error: BaseException | None) -> str:
    """The same in a few words, for one line of a screen that names the broker already.

    >>> brief(ConnectionRefusedError(111, "Connection refused"))
    'connection refused'
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the broker's certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {_reason(error)}"
    if isinstance(error, OSError):
        return (error.strerror or str(error) or "cannot be reached").lower()
    return "cannot be reached"


def explain_silence(settings: Mqtt, closed: bool, connect_s: float) -> str:
    """Why a broker that was reached gave no answer: it `closed` the connection, or just said nothing."""
    broker = f"the MQTT broker {settings.host}:{settings.port}"
    if not closed:
        return f"{broker} accepted the connection but did not answer within {connect_s:g} s; is it an MQTT broker?"
    if settings.tls:
        hint = "check whether it wants a client certificate (mqtt.cert_file)"
        hint = "check that it accepts the client certificate in mqtt.cert_file" if settings.cert_file else hint
    else:
        hint = "check that this port speaks MQTT, and whether it wants TLS (mqtt.tls)"
    return f"{broker} closed the connection without a word; {hint}"


def explain_refusal(reason: ReasonCode, settings: Mqtt, name: str) -> str:
    """Why the broker did not let this client in, and what to do."""
    broker = f"the MQTT broker {settings.host}:{settings.port}"
    text = str(reason)
    if text in ("Bad user name or password", "Not authorized"):
        if settings.username is None:
            return f"{broker} wants a user name and a password; set mqtt.username and mqtt.password_file"
        return (
            f"{broker} refused the password of user {settings.username!r}; "
            "check mqtt.username and mqtt.password or mqtt.password_file, and the broker's user list"
        )
    if text == "Client identifier not valid":
        return f"{broker} refused the client name {name!r}; set mqtt.client_id to one that it accepts"
    return f"{broker} refused the session: {text.lower()}; look into the broker's log"
