"""What a certificate says of itself: for whom, by whom, from when to when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Final

from cryptography import x509

from edge.doctor.finding import Finding, Reporter

SOON_DAYS: Final = 30.0
DAY_S: Final = 86_400.0


@dataclass(frozen=True)
class Certificate:
    """The parts that matter here; times in seconds since 1970 UTC."""

    subject: str
    issuer: str
    begins: float
    ends: float
    names: tuple[str, ...]  # host names and addresses it is for

    @property
    def is_self_signed(self) -> bool:
        """Whether it vouches for itself, as every root does."""
        return self.subject == self.issuer


def from_der(data: bytes) -> Certificate:
    """One certificate.

    Raises:
        ValueError: it is none.
    """
    return _read(x509.load_der_x509_certificate(data))


def from_pem(data: bytes) -> list[Certificate]:
    """All certificates of a PEM file, in its order.

    Raises:
        ValueError: there is none in it, or one is damaged.
    """
    return [_read(each) for each in x509.load_pem_x509_certificates(data)]


def _read(found: x509.Certificate) -> Certificate:
    return Certificate(
        _short(found.subject),
        _short(found.issuer),
        found.not_valid_before_utc.timestamp(),
        found.not_valid_after_utc.timestamp(),
        _names(found),
    )


def _short(name: x509.Name) -> str:
    common = name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(common[0].value) if common else name.rfc4514_string() or "(no name)"


def _names(found: x509.Certificate) -> tuple[str, ...]:
    try:
        value = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    addresses = [str(address) for address in value.get_values_for_type(x509.IPAddress)]
    return (*value.get_values_for_type(x509.DNSName), *addresses)


def dates_finding(note: Reporter, role: str, what: str, found: Certificate, now: float, fix: str) -> Finding:
    """Whether it holds now and for some time to come.

    Args:
        role: in the code, such as `server`: gives `server_expired`, `server_expires`, `server_not_yet`, `server_dates`.
        what: in the text, such as `the broker's certificate`.
        fix: how to get a new one.
    """
    left_days = (found.ends - now) / DAY_S
    told = {"subject": found.subject, "issuer": found.issuer, "ends_ts": found.ends, "days_left": round(left_days, 1)}
    name = f"{what} ({found.subject})"
    if now > found.ends:
        text = f"{name} expired on {day(found.ends)}, {-left_days:.0f} days ago"
        return note.error(f"{role}_expired", text, fix, **told)
    if now < found.begins:
        text = f"{name} holds from {day(found.begins)} on, and this box believes that it is {day(now)}"
        return note.error(f"{role}_not_yet", text, "set the clock of this box right: `timedatectl`", **told)
    text = f"{name} holds until {day(found.ends)}, {left_days:.0f} days more"
    if left_days < SOON_DAYS:
        return note.warning(f"{role}_expires", text, fix, **told)
    return note.ok(f"{role}_dates", text, **told)


def first_to_end(found: Sequence[Certificate]) -> Certificate:
    """Of several: the one that ends first."""
    return min(found, key=lambda certificate: certificate.ends)


def day(ts: float) -> str:
    """
    >>> day(0.0)
    '1970-01-01'
    """
    return datetime.fromtimestamp(ts, timezone.utc).strftime("%Y-%m-%d")
