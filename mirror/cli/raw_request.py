"""One bare request without any credential, step by step, so that it can be told which step fails.

The mirror's own requests go through aiohttp, which says less of what it met on the way.
"""

import re
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field

from mirror import __version__
from mirror.config import Upstream
from mirror.upstream.connection import trusting
from mirror.upstream.proxies import Proxy

STEP = 5.0
"""Seconds for one step: a name, a connection, a handshake, an answer."""

MOST = 32 << 10
"""Bytes of an answer that are looked at."""

_STATUS = re.compile(rb"HTTP/\d\.\d (\d{3})[ \r]")


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """What came back: the `status` of an HTTP answer, its headers by names in lower case; or what else it was, `raw`.

    `at` is the middle of asking and hearing, in seconds since the epoch.
    """

    status: int | None
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes = b""
    at: float = 0.0

    @property
    def is_mirror(self) -> bool:
        """Whether a pps-mirror said so."""
        return self.headers.get("server") == "pps-mirror"


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, without repetitions. Blocks. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(place[0]) for *_, place in found))


def connect(address: str, port: int, seconds: float = STEP) -> socket.socket:
    """Connect. Raises OSError."""
    return socket.create_connection((address, port), timeout=seconds)


def to_proxy(proxy: Proxy, config: Upstream) -> socket.socket:
    """Connect to a proxy, by TLS if it wants that. Raises OSError, of which ssl.SSLError is one, and ConfigError."""
    host, port = str(proxy.url.raw_host), int(proxy.url.port or 80)
    connection = connect(host, port)
    if proxy.url.scheme != "https":
        return connection
    return wrapped(connection, trusting(config), host)


def tunnel(connection: socket.socket, proxy: Proxy, host: str, port: int) -> RawAnswer:
    """Ask a proxy for a connection to `host`; what it answers."""
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    own = {} if proxy.authorization is None else {"Proxy-Authorization": proxy.authorization}
    return ask(connection, "CONNECT", place, place, own)


def wrapped(connection: socket.socket, context: ssl.SSLContext, host: str) -> ssl.SSLSocket:
    """Shake hands; the connection is closed when that fails. Raises OSError."""
    try:
        return context.wrap_socket(connection, server_hostname=host)
    except BaseException:
        connection.close()
        raise


def trusting_anybody() -> ssl.SSLContext:
    """For looking at who is there: nothing is told to them."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def health(host: str, port: int, *, tls: bool, seconds: float = STEP) -> RawAnswer | None:
    """What answers on a port of this machine to the question for its health; None when nobody does.

    Each step of that takes so many `seconds` at most.
    """
    target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    if port == 0:
        return None
    try:
        connection = connect(target, port, seconds)
        if tls:
            connection = wrapped(connection, trusting_anybody(), target)
        with closing(connection):
            return ask(connection, "GET", "/healthz", f"localhost:{port}", seconds=seconds)
    except OSError:
        return None


def ask(
    connection: socket.socket,
    method: str,
    target: str,
    host: str,
    headers: Mapping[str, str] | None = None,
    *,
    seconds: float = STEP,
) -> RawAnswer:
    """Send one request and hear the headers of its answer, for so many `seconds` at most. Raises OSError."""
    given = {"Host": host, "User-Agent": f"pps-mirror/{__version__}", "Accept-Encoding": "identity"} | dict(
        headers or {}
    )
    if method != "CONNECT":
        given["Connection"] = "close"
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items()), "", ""]
    began, deadline = time.time(), time.monotonic() + seconds
    connection.settimeout(seconds)
    raw = b""
    with suppress(ConnectionError):  # what came before counts
        connection.sendall("\r\n".join(lines).encode("ascii"))
        while b"\r\n\r\n" not in raw and len(raw) < MOST:
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                piece = connection.recv(4096)
            except TimeoutError:
                if raw:
                    break
                raise
            if not piece:
                break
            raw += piece
    return _parsed(raw, (began + time.time()) / 2)


def _parsed(raw: bytes, at: float) -> RawAnswer:
    head = raw.partition(b"\r\n\r\n")[0]
    if not (match := _STATUS.match(head + b"\r")):
        return RawAnswer(None, raw=raw[:256], at=at)
    headers = {}
    for line in head.decode("latin-1").split("\r\n")[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()[:512]
    return RawAnswer(int(match[1]), headers, raw[:256], at)
