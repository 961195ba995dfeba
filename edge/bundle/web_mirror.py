"""A repository on an http(s) server: any server of static files, with or without byte ranges."""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import quote, urljoin

import urllib3
from tuf.api.exceptions import DownloadError, DownloadHTTPError
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationParseError,
    MaxRetryError,
    NameResolutionError,
    SSLError,
    TimeoutError,
)
from urllib3.util import Timeout, make_headers, parse_url

from edge import __version__
from edge.bundle.mirror import Mirror, MirrorError, Source
from edge.bundle.pace import Limits
from edge.errors import TrustError

_REDIRECTS: Final = 3
_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_LEAST_BUFFER_BYTES: Final = 1 << 14
_BLOCKED: Final = 3600.0


class Watch:
    """Cuts a connection that keeps us waiting beyond a deadline.

    A timeout of the socket is not enough: who sends a byte now and then never meets it, in the handshake, in a line of
    the header or in a piece of the body.
    """

    def __init__(self) -> None:
        self.cut = False
        self._sockets: list[socket.socket] = []
        self._changed = threading.Condition()
        self._deadline = time.monotonic() + _BLOCKED
        self._over = False
        self._thread = threading.Thread(target=self._run, name="edge-mirror-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._over = True
            self._changed.notify()
        self._thread.join()
        for held in self._sockets:
            held.close()

    def allow(self, seconds: float) -> None:
        """From now on it has so long."""
        with self._changed:
            self._deadline = time.monotonic() + seconds
            self._changed.notify()

    def hold(self, connection: socket.socket) -> None:
        """Watch a socket, by a handle of its own: TLS takes the first one over."""
        with self._changed:
            self._sockets.append(connection.dup())

    def _run(self) -> None:
        with self._changed:
            while not self._over and time.monotonic() < self._deadline:
                self._changed.wait(self._deadline - time.monotonic())
            if self._over:
                return
            self.cut = True
            for held in self._sockets:
                try:
                    held.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # it has ended by itself


class WebMirror(Mirror):
    """A repository on an http(s) server. Proxies are taken from the environment, as other programs do."""

    tries_again = True

    def __init__(
        self,
        address: str,
        *,
        ca_file: str | None = None,
        kb_s: float = 0.0,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        try:
            url = parse_url(address)
        except LocationParseError as error:
            raise TrustError("unreachable", f"{address} is not an address: {error}") from error
        if not url.host:
            raise TrustError("unreachable", f"{address} is not an address: it names no server")
        shown = url._replace(auth=None).url
        super().__init__(shown, kb_s=kb_s, limits=limits, clock=clock, sleep=sleep)
        self._base = shown.rstrip("/") + "/"
        self._headers = {"Accept-Encoding": "identity", "Connection": "close", "User-Agent": f"edge/{__version__}"}
        if url.auth:
            self._headers.update(make_headers(basic_auth=url.auth))
        self._watch = Watch()
        self._pools = self._make_pools(str(url.scheme), url.host, ca_file)

    def _make_pools(self, scheme: str, host: str, ca_file: str | None) -> urllib3.PoolManager:
        options: dict[str, Any] = {"retries": False}
        options["timeout"] = Timeout(connect=self._limits.connect_s, read=self._limits.silence_s)
        if self._kb_s:  # a large buffer of the kernel would take a burst from the network whatever we read
            size = max(_LEAST_BUFFER_BYTES, int(self._kb_s * 1000))
            small = (socket.SOL_SOCKET, socket.SO_RCVBUF, size)
            options["socket_options"] = [*HTTPConnection.default_socket_options, small]
        if scheme == "https":
            options["ssl_context"] = _tls(ca_file)
        proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(scheme)
        pools = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
        pools.pool_classes_by_scheme = self._watched_pools()
        return pools

    def _watched_pools(self) -> dict[str, type[HTTPConnectionPool]]:
        """Pools whose connections are under the watch of the file that is being read."""
        mirror = self

        class Plain(HTTPConnection):
            def _new_conn(self) -> socket.socket:
                return mirror._held(super()._new_conn())

        class Secured(HTTPSConnection):
            def _new_conn(self) -> socket.socket:
                return mirror._held(super()._new_conn())

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain

        class SecuredPool(HTTPSConnectionPool):
            ConnectionCls = Secured

        return {"http": PlainPool, "https": SecuredPool}

    def _held(self, connection: socket.socket) -> socket.socket:
        self._watch.hold(connection)
        return connection

    @contextmanager
    def _open(self, name: str, start: int) -> Iterator[Source]:
        with Watch() as watch:
            self._watch = watch
            response = self._request(name, start, watch)
            try:
                yield self._source(response, name, start, watch)
            finally:
                response.close()
                self._pools.clear()  # a connection that was used again would not be under the next one's watch

    def _request(self, name: str, start: int, watch: Watch) -> urllib3.BaseHTTPResponse:
        """The answer; from the beginning where the server has less than is held already."""
        url = self._base + quote(name, safe="/%")
        for _ in range(_REDIRECTS + 1):
            response = self._get(url, name, start, watch)
            location = response.get_redirect_location()
            if response.status in (200, 206):
                return response
            response.close()
            if response.status == 416 and start:
                return self._request(name, 0, watch)
            if not location:
                raise self._refused(name, response.status)
            url = self._onwards(url, location)
        raise MirrorError("unreachable", f"{self.address} leads from one address to the next; name the final one")

    def _get(self, url: str, name: str, start: int, watch: Watch) -> urllib3.BaseHTTPResponse:
        headers = self._headers | ({"Range": f"bytes={start}-"} if start else {})
        if parse_url(url).netloc != parse_url(self._base).netloc:
            headers.pop("authorization", None)  # the password is for this server only
        watch.allow(self._limits.connect_s + self._limits.silence_s)
        try:
            return self._pools.request("GET", url, headers=headers, preload_content=False, redirect=False)
        except (HTTPError, OSError, ValueError) as error:
            raise self._failed(name, error, watch) from error
        finally:
            watch.allow(_BLOCKED)

    def _onwards(self, url: str, location: str) -> str:
        """Where a redirect leads; not from https to http: who listens would see what this box takes."""
        target = urljoin(url, location)
        if url.startswith("https:") and not target.startswith("https:"):
            raise MirrorError("unreachable", f"{self.address} leads from https to http; name the final address")
        return target

    def _source(self, response: urllib3.BaseHTTPResponse, name: str, start: int, watch: Watch) -> Source:
        def read(most: int) -> bytes:
            watch.allow(self._limits.silence_s)
            try:
                data = response.read1(most, decode_content=False)
            except (HTTPError, OSError, ValueError) as error:
                raise self._failed(name, error, watch) from error
            finally:
                watch.allow(_BLOCKED)
            if watch.cut:  # to the library it may look like the end of the file
                raise self._failed(name, TimeoutError(), watch)
            return data

        if response.status == 200:
            length = response.headers.get("Content-Length", "")
            return Source(0, int(length) if length.isdecimal() else None, read)
        found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if not found or int(found[1]) != start:
            raise MirrorError("unreachable", f"{self.address} answers with another part of {name} than was asked for")
        return Source(start, int(found[2]) if found[2] != "*" else None, read)

    def _refused(self, name: str, status: int) -> DownloadError:
        if status in (403, 404, 410):
            return DownloadHTTPError(f"{self._base}{name}: HTTP status {status}", 404)
        remedy = "check address and password" if status in (401, 407) else "ask who runs the server, and try later"
        return MirrorError("unreachable", f"{self.address} answers {name} with HTTP status {status}; {remedy}")

    def _failed(self, name: str, error: Exception, watch: Watch) -> MirrorError:
        reason = error.reason if isinstance(error, MaxRetryError) and error.reason else error
        if watch.cut or (isinstance(reason, TimeoutError) and not isinstance(reason, ConnectTimeoutError)):
            return self._too_slow(name, f"nothing whole within {self._limits.silence_s:g} s")
        if isinstance(reason, (SSLError, ssl.SSLError)):
            text = f"{self.address} is not who it says it is, by TLS: {reason}; check update.ca_file"
            return MirrorError("unreachable", f"{text}, the server's certificate, and this box's clock")
        if isinstance(reason, NameResolutionError):
            return MirrorError("unreachable", f"{self.address}: the name is not known; check the address and the DNS")
        remedy = "check network, address and firewall"
        return MirrorError("unreachable", f"{self.address} cannot be reached for {name}: {_plain(reason)}; {remedy}")


def _plain(error: Exception) -> str:
    """What the library says, without the names of its objects."""
    return re.sub(r"<[^>]*>[:,]? ?|\w+\(host=[^)]*\): ?", "", str(error)) or type(error).__name__


def _tls(ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        text = f"update.ca_file {ca_file} cannot be used: {error}; it must be a PEM file of certificate authorities"
        raise TrustError("unreachable", text) from error
