"""Examines the way to upstream step by step: its name, a connection, TLS, an answer, and our clock by that answer."""

import ipaddress
import socket
import ssl
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from email.utils import parsedate_to_datetime

from yarl import URL

from mirror.cli import raw_request as wire
from mirror.cli.doctor import certificates
from mirror.cli.doctor.case import Case
from mirror.cli.findings import Finding
from mirror.cli.raw_request import RawAnswer
from mirror.common.units import format_duration
from mirror.model.errors import ConfigError
from mirror.upstream.client import API
from mirror.upstream.connection import trusting

ADDRESSES = 4
"""How many addresses of a name are tried."""

SKEWED = 60.0
"""A difference of so many seconds between our clock and upstream's is worth a note."""

WRONG = 300.0
"""From so many seconds on our clock is wrong."""


def examine(case: Case) -> Iterator[Finding]:
    """Go the same way as the mirror. Upstream's answer is kept in the case."""
    url = case.url
    if url is None:
        return
    proxy = case.proxy(url)
    usable = yield from _name(case, url, proxied=proxy is not None)
    if proxy is None:
        address = yield from _connection(url, usable)
        if address is None:
            return
        yield from _answer(case, url, address)
    elif url.scheme == "https" and proxy.url.scheme == "http":  # otherwise the proxy's answers look like upstream's
        yield from _answer(case, url, None)
    yield from clock(case.heard)


def _name(case: Case, url: URL, *, proxied: bool) -> Generator[Finding, None, Sequence[str]]:
    host = str(url.raw_host)
    try:
        found = wire.resolve(host, int(url.port or 0))
    except OSError as error:
        said = f"{host} does not resolve here: {error.strerror or type(error).__name__}"
        if proxied:
            yield Finding("name", True, f"{said}; the proxy has to know it", note=True)
        else:
            advice = f"is it spelt right? `getent hosts {host}` asks as the mirror does; /etc/resolv.conf says whom"
            yield Finding("name", False, said, advice=advice)
        return ()
    case.addresses = frozenset(found)
    usable = [each for each in found if not ipaddress.ip_address(each.partition("%")[0]).is_unspecified]
    if not usable:
        advice = "a name server that blocks the name answers so: ask whoever runs it"
        yield Finding("name", False, f"{host} resolves to {', '.join(found)}, which is nowhere", advice=advice)
    elif usable != [host.strip("[]")]:
        more = f" and {len(found) - ADDRESSES} more" if len(found) > ADDRESSES else ""
        yield Finding("name", True, f"{host} is {', '.join(found[:ADDRESSES])}{more}")
    return usable


def _connection(url: URL, addresses: Sequence[str]) -> Generator[Finding, None, str | None]:
    """Try the addresses. Returns the first one that accepts a connection."""
    failed: dict[str, OSError] = {}
    good: str | None = None
    for address in addresses[:ADDRESSES]:
        try:
            wire.connect(address, int(url.port or 0)).close()
            good = good or address
        except OSError as error:
            failed[address] = error
    said = "; ".join(_failed(address, error) for address, error in failed.items())
    if good is None and failed:
        advice = (
            f"does upstream listen on port {url.port}? a firewall may refuse in its place; or a proxy is the way out"
        )
        if any(isinstance(error, TimeoutError) for error in failed.values()):
            advice = "a firewall drops it: have it opened, or set upstream.proxy if a proxy is the way out"
        yield Finding("connection", False, f"port {url.port} cannot be reached: {said}", advice=advice)
    elif failed:
        advice = "every new connection may have to wait for it: repair that way, or take the address out of the name"
        yield Finding("connection", True, f"some addresses fail: {said}", note=True, advice=advice)
    return good


def _failed(address: str, error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"{address} does not answer within {wire.STEP:g} s"
    return f"{address}: {(error.strerror or type(error).__name__).lower()}"


# TLS and the answer


def _answer(case: Case, url: URL, address: str | None) -> Iterator[Finding]:
    if url.scheme == "https":
        yield from _secure(case, url, address)
    else:
        yield from _plain(case, url, str(address))


def _way(case: Case, url: URL, address: str | None) -> socket.socket:
    """Connect to upstream: to `address`, or through the proxy. Raises OSError."""
    port = int(url.port or 0)
    if address is not None:
        return wire.connect(address, port)
    proxy = case.proxy(url)
    assert proxy is not None  # noqa: S101 - there is no address because there is a proxy
    connection = wire.to_proxy(proxy, case.config.upstream)
    try:
        if wire.tunnel(connection, proxy, str(url.raw_host), port).status != 200:
            raise ConnectionRefusedError
    except BaseException:
        connection.close()
        raise
    return connection


def _target(url: URL) -> str:
    return f"{url.raw_path.rstrip('/')}{API}version/"


def _secure(case: Case, url: URL, address: str | None) -> Iterator[Finding]:
    host = str(url.raw_host)
    try:
        context = trusting(case.config.upstream)
    except ConfigError as error:
        yield Finding("tls", False, str(error), advice="a file with PEM certificates that the mirror's user may read")
        return
    try:
        with closing(wire.wrapped(_way(case, url, address), context, host)) as connection:
            case.heard = wire.ask(connection, "GET", _target(url), url.authority)
            yield Finding("tls", True, f"{host} shows a certificate that is trusted; {connection.version()}")
    except ssl.SSLCertVerificationError as refused:
        # The time in its answer tells a wrong clock from a wrong certificate; nothing else is asked of that server.
        with closing(wire.wrapped(_way(case, url, address), wire.trusting_anybody(), host)) as connection:
            shown = connection.getpeercert(binary_form=True) or b""
            case.heard = wire.ask(connection, "GET", _target(url), url.authority)
        yield certificates.explained(refused, shown, _way(case, url, address), host, offset(case.heard))
    except ssl.SSLError:
        yield _no_tls(case, url, address)
    except OSError as error:
        if address is not None:  # a tunnel that is refused has its own finding
            said = "no answer in time" if isinstance(error, TimeoutError) else error.strerror or "the connection ended"
            advice = "a firewall or a proxy on the way cuts it; or the port is another service's"
            yield Finding("tls", False, f"{host}: {said.lower()} during the handshake", advice=advice)


def _no_tls(case: Case, url: URL, address: str | None) -> Finding:
    """Say why there was no handshake: the server may speak plain http."""
    try:
        with closing(_way(case, url, address)) as connection:
            plain = wire.ask(connection, "HEAD", "/", url.authority).status is not None
    except OSError:
        plain = False
    if plain:
        advice = f"upstream.url = http://{url.authority}, if that is what it should speak; or the port that speaks TLS"
        return Finding("tls", False, f"port {url.port} speaks plain http, not https", advice=advice)
    advice = "the port may be another service's; an old TLS (before 1.2) is not spoken"
    return Finding("tls", False, f"port {url.port} does not speak TLS as we do", advice=advice)


def _plain(case: Case, url: URL, address: str) -> Iterator[Finding]:
    try:
        with closing(_way(case, url, address)) as connection:
            heard = wire.ask(connection, "GET", _target(url), url.authority)
    except OSError as error:
        said = "no answer in time" if isinstance(error, TimeoutError) else (error.strerror or "the connection ended")
        yield Finding("answer", False, f"port {url.port}: {said.lower()}", advice="something else may listen there")
        return
    if heard.status is not None and not (heard.status == 400 and b"https" in heard.raw.lower()):
        case.heard = heard
        return
    try:
        wire.wrapped(_way(case, url, address), wire.trusting_anybody(), str(url.raw_host)).close()
    except OSError:
        if heard.status is None:
            advice = "is the port right? something else listens there"
            yield Finding("answer", False, f"port {url.port} does not speak http", advice=advice)
    else:
        advice = f"upstream.url = https://{url.authority}"
        yield Finding("answer", False, f"port {url.port} speaks https, not plain http", advice=advice)


# The clock


def offset(heard: RawAnswer | None) -> float | None:
    """Return how many seconds our clock is ahead of upstream's; None when the answer has no time."""
    try:
        return heard.at - parsedate_to_datetime(heard.headers["date"]).timestamp() if heard else None
    except (KeyError, ValueError):
        return None


def clock(heard: RawAnswer | None) -> Iterator[Finding]:
    """Compare our clock with upstream's."""
    ahead = offset(heard)
    if ahead is None:
        return
    differ = abs(ahead)
    if differ <= SKEWED:
        yield Finding("clock", True, "ours and upstream's agree")
        return
    words = f"ours is {format_duration(round(differ))} {'ahead of' if ahead > 0 else 'behind'} upstream's"
    advice = "set it by NTP (timedatectl; chronyc tracking); if it is right, upstream's is wrong"
    if differ > WRONG:
        words += ": certificates and pre-signed URLs are refused by such a clock"
    yield Finding("clock", differ <= WRONG, words, note=True, advice=advice)
