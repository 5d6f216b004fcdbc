"""Decides which redirect may be followed: it judges the URL before the request, and the address when connecting.

The address matters because a name can resolve to anything, and to something else a moment later (DNS rebinding). With
no `redirect_hosts` set, a redirect may lead anywhere but to link-local addresses (cloud metadata services) and, unless
upstream itself is there, to loopback. What `redirect_hosts` names is trusted, unless it leads to a link-local address.

Where a proxy connects for us, `client.py` can only judge the addresses that a name has here.
"""

import errno
import ipaddress
import re
import socket
from collections.abc import Sequence
from fnmatch import fnmatchcase

from aiohttp.connector import AddrInfoType
from yarl import URL

from mirror.model.errors import BadUpstream

MAX_HOPS = 5

FOLLOWED = frozenset({301, 302, 303, 307, 308})


_AUTHORITY = re.compile(r"(?:((?:[A-Za-z][A-Za-z0-9+.-]*:)?//)([^/?#]*))?(.*)", re.DOTALL)


class ForbiddenAddress(OSError):
    """A redirect target's name leads to an address that must not be connected to."""


class HostNotAllowed(BadUpstream):
    """Upstream redirects to where nothing is fetched from, unless `upstream.redirect_hosts` names it."""


class RedirectPolicy:
    """Judges hops for one upstream `origin`; `hosts` are the patterns of `upstream.redirect_hosts`."""

    def __init__(self, origin: URL, hosts: Sequence[str]) -> None:
        self._origin = origin.origin()
        self._hosts = [host.lower() for host in hosts]
        self._upstream_on_loopback = False

    def next_hop(self, current: URL, location: str, hop: int) -> URL:
        """Resolve `location` against `current` and judge it; `hop` counts from 1.

        The URL's encoding is kept to the letter, because a pre-signed one is signed as it stands.

        Raises BadUpstream, naming the host and the key to set, never the query.
        """
        if hop > MAX_HOPS:
            raise BadUpstream(f"upstream redirects more than {MAX_HOPS} times")
        try:
            target = current.join(URL(_encoded(location), encoded=True)).with_fragment(None)
            host = target.host
        except ValueError:
            raise not_a_url() from None
        if target.scheme not in {"http", "https"}:
            raise BadUpstream(f"upstream redirects to a {_ascii(target.scheme)} URL, which is never followed")
        if not host:
            raise not_a_url()
        if target.scheme == "http" and current.scheme == "https":
            raise BadUpstream(f"upstream redirects from https to plain http at {_ascii(host)}, which is refused")
        if target.user is not None or target.password is not None:
            raise BadUpstream(f"upstream redirects to a URL with user info at {_ascii(host)}, which is refused")
        if not self.same_origin(target):
            self._judge_host(host.lower())
        return target

    def same_origin(self, url: URL) -> bool:
        """Whether `url` is on upstream's own origin, which is always allowed."""
        return url.origin() == self._origin

    def upstream_socket(self, addr_info: AddrInfoType) -> socket.socket:
        """Make a socket toward upstream itself, and learn whether upstream is on loopback."""
        self.learn(addr_info)
        return _socket(addr_info)

    def redirect_socket(self, addr_info: AddrInfoType) -> socket.socket:
        """Make a socket toward a redirect target. Raises ForbiddenAddress."""
        self.judge(addr_info)
        return _socket(addr_info)

    def learn(self, addr_info: AddrInfoType) -> None:
        """Raise ForbiddenAddress unless a redirect may lead to this address."""
        self._upstream_on_loopback = is_loopback(addr_info)

    def judge(self, addr_info: AddrInfoType) -> None:
        """Judge an address of a redirect target. Raises ForbiddenAddress."""
        address = _address(addr_info)
        if address.is_link_local and str(address) not in self._hosts:
            raise ForbiddenAddress(errno.EACCES, "a link-local address")
        if is_loopback(addr_info) and not self._hosts and not self._upstream_on_loopback:
            raise ForbiddenAddress(errno.EACCES, "a loopback address")

    def _judge_host(self, host: str) -> None:
        if self._hosts and not any(fnmatchcase(host, pattern) for pattern in self._hosts):
            raise HostNotAllowed(
                f"upstream redirects to {_ascii(host)}, which upstream.redirect_hosts does not allow; add it there "
                "if it is right"
            )


def not_a_url() -> BadUpstream:
    """Say that a redirect leads nowhere."""
    return BadUpstream("upstream redirects to something that is not a URL")


def forbidden(host: str, error: ForbiddenAddress) -> HostNotAllowed:
    """Say which host was refused at connecting, and what to do."""
    return HostNotAllowed(
        f"upstream redirects to {_ascii(host)}, which leads to {error.strerror}: refused, because services of this "
        "machine and its cloud are there; if it is right, add the host (or address) to upstream.redirect_hosts"
    )


def is_loopback(addr_info: AddrInfoType) -> bool:
    """Whether that is this machine."""
    address = _address(addr_info)
    return address.is_loopback or address.is_unspecified  # 0.0.0.0 and :: connect to this machine


def _address(addr_info: AddrInfoType) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(str(addr_info[4][0]).partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def _socket(addr_info: AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = addr_info
    return socket.socket(family=family, type=kind, proto=protocol)


def _encoded(location: str) -> str:
    """Percent-encode what no URL can have (blanks, controls, what is not ASCII), and leave all else as it came.

    aiohttp has read the header's bytes as UTF-8, those that are none as surrogates: each is encoded by itself. A host
    becomes its IDNA form. Raises ValueError when it has none.
    """
    start, authority, rest = _AUTHORITY.fullmatch(location).groups("")  # type: ignore[union-attr]  # anything matches
    if not authority.isascii():
        authority = URL(f"http://{authority}").raw_authority
    octets = rest.encode("utf-8", "surrogateescape")
    return start + authority + "".join(chr(octet) if 0x20 < octet < 0x7F else f"%{octet:02X}" for octet in octets)


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()[:255]
