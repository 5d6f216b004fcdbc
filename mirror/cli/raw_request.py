"""Makes one request without any credential, step by step, so that the failing step is known.

The mirror's own requests use aiohttp, which reports less about what went wrong.
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
"""Seconds that one step may take: a connection, a handshake, an answer."""

MOST = 32 << 10
"""The most bytes of an answer that are read."""

_STATUS = re.compile(rb"HTTP/\d\.\d (\d{3})[ \r]")


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """An answer: its `status`, None if it is not HTTP, its headers by names in lower case, its first bytes, `raw`.

    `at` is the middle between request and answer, in seconds since 1970.
    """

    status: int | None
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes = b""
    at: float = 0.0

    @property
    def is_mirror(self) -> bool:
        """Whether a pps-mirror gave the answer."""
        return self.headers.get("server") == "pps-mirror"


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a name, each once. Blocks. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(place[0]) for *_, place in found))


def connect(address: str, port: int, seconds: float = STEP) -> socket.socket:
    """Connect to an address. Raises OSError."""
    return socket.create_connection((address, port), timeout=seconds)


def to_proxy(proxy: Proxy, config: Upstream) -> socket.socket:
    """Connect to a proxy, with TLS if its URL is https. Raises OSError, such as ssl.SSLError, and ConfigError."""
    host, port = str(proxy.url.raw_host), int(proxy.url.port or 80)
    connection = connect(host, port)
    if proxy.url.scheme != "https":
        return connection
    return wrapped(connection, trusting(config), host)


def tunnel(connection: socket.socket, proxy: Proxy, host: str, port: int) -> RawAnswer:
    """Ask a proxy for a tunnel to `host`. Returns its answer."""
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    own = {} if proxy.authorization is None else {"Proxy-Authorization": proxy.authorization}
    return ask(connection, "CONNECT", place, place, own)


def wrapped(connection: socket.socket, context: ssl.SSLContext, host: str) -> ssl.SSLSocket:
    """Make a TLS handshake; closes the connection when that fails. Raises OSError."""
    try:
        return context.wrap_socket(connection, server_hostname=host)
    except BaseException:
        connection.close()
        raise


def trusting_anybody() -> ssl.SSLContext:
    """Make a context that trusts any certificate, to find out who answers, or since a person insists on it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def health(host: str, port: int, *, tls: bool, seconds: float = STEP) -> RawAnswer | None:
    """Request `/healthz` from a port of this machine, with `seconds` for each step. Returns None without an answer."""
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
    """Send one request and read the headers of its answer, in so many `seconds`. Raises OSError."""
    given = {"Host": host, "User-Agent": f"pps-mirror/{__version__}", "Accept-Encoding": "identity"} | dict(
        headers or {}
    )
    if method != "CONNECT":
        given["Connection"] = "close"
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items()), "", ""]
    began, deadline = time.time(), time.monotonic() + seconds
    connection.settimeout(seconds)
    raw = b""
    with suppress(ConnectionError):  # the bytes before it count
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
