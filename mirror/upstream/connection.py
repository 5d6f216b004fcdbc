"""Opens connections to upstream and to where it redirects, directly or through a proxy.

Through a proxy, https uses a tunnel (CONNECT). Plain http can be read by the proxy, as by anything else on the way, and
the proxy's own answers look like upstream's, except a 407. A proxy's credential goes to the proxy only. Nothing is
taken from the environment here; in particular ~/.netrc is not read.
"""

import asyncio
import math
import os
import socket
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import aiohttp
from aiohttp.connector import AddrInfoType
from yarl import URL

from mirror import __version__
from mirror.common.trust import trust
from mirror.config import Upstream as UpstreamConfig
from mirror.upstream.proxies import Proxies, Proxy, ProxyFailed
from mirror.upstream.redirects import ForbiddenAddress, RedirectPolicy, forbidden, is_loopback


class NoAnswer(aiohttp.ClientConnectionError):
    """The connection ended before the header of an answer came: whether the request was seen is unknown."""


@dataclass(slots=True)
class Way:
    """How a request went: whether it was `connected`, and over a connection that was `kept` from an earlier one."""

    connected: bool = False
    kept: bool = False


_MAX_FIELD = 64 << 10  # pre-signed URLs with session tokens are long


class Connections:
    """Opens and closes connections and sends requests.

    Upstream is at `base`; `policy` judges addresses of redirect targets.
    """

    def __init__(self, config: UpstreamConfig, base: URL, proxies: Proxies, policy: RedirectPolicy) -> None:
        self._config = config
        self._base = base
        self._proxies = proxies
        self._policy = policy

    async def open(self) -> None:
        """Open the sessions. Raises ConfigError when `upstream.ca_file` cannot be used."""
        tls = trusting(self._config)
        self.trusted = frozenset(tls.get_ca_certs(binary_form=True))

        def session(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
            return aiohttp.ClientSession(
                connector=connector,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": f"pps-mirror/{__version__}", "Accept-Encoding": "identity"},
                max_line_size=_MAX_FIELD,
                max_field_size=_MAX_FIELD,
                middlewares=(_once,),
                trace_configs=[_watched()],
            )

        self._api = session(aiohttp.TCPConnector(limit=0, ssl=tls, socket_factory=self._policy.upstream_socket))
        self._elsewhere = session(aiohttp.TCPConnector(limit=0, ssl=tls, socket_factory=self._policy.redirect_socket))
        self._proxied = session(aiohttp.TCPConnector(limit=0, ssl=tls))  # a proxy may be anywhere, even on loopback

    async def close(self) -> None:
        """Close all connections."""
        for session in (self._api, self._elsewhere, self._proxied):
            await session.close()

    async def send(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        *,
        elsewhere: bool = False,
        total: float | None = None,
        way: Way | None = None,
    ) -> aiohttp.ClientResponse:
        """Send one request, to upstream or `elsewhere`, directly or through a proxy.

        `total` is the seconds for all of it.

        It is sent at most once, whatever happens; `way` records how it went.

        Raises NoAnswer, ProxyFailed, BadUpstream for a target that no proxy may be asked for, UnicodeError for a host
        that is neither a name nor an address, and aiohttp's ClientError, TimeoutError or OSError for a broken line.
        """
        proxy = self._proxies.for_url(url)
        way = way or Way()
        timeout = aiohttp.ClientTimeout(
            total=total,
            # this includes the time that the proxy takes to connect
            connect=None if proxy is None else self._config.connect_timeout,
            sock_connect=self._config.connect_timeout,
            sock_read=self._config.read_timeout if total is None else None,
            ceil_threshold=math.inf,
        )
        if proxy is None:
            session = self._elsewhere if elsewhere else self._api
            async with _connecting(way):
                return await session.request(
                    method, url, headers=headers, allow_redirects=False, timeout=timeout, trace_request_ctx=way
                )
        if elsewhere:
            await self._judge_from_here(url)
        own = {} if proxy.authorization is None else {"Proxy-Authorization": proxy.authorization}
        tunnel = url.scheme == "https"
        try:
            async with _connecting(way):
                response = await self._proxied.request(
                    method,
                    url,
                    headers=headers if tunnel else {**headers, **own},
                    allow_redirects=False,
                    timeout=timeout,
                    proxy=proxy.url,
                    proxy_headers=own if tunnel else None,
                    trace_request_ctx=way,
                )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _blame(proxy, url, error) or error from None
        if response.status == 407 and not tunnel:
            response.close()
            raise proxy.refused(407, str(url.raw_host))
        return response

    async def _judge_from_here(self, target: URL) -> None:
        """Refuse a redirect target that no proxy may be asked for, as far as can be known from here.

        The proxy connects, so we cannot check to which address. We resolve the name ourselves and judge the addresses
        that it has here; a name that has none here is left to the proxy, since at many sites only the proxy can resolve
        it. A name that means one thing here and another to the proxy is not caught: `upstream.redirect_hosts` protects
        against that.

        Raises BadUpstream, and UnicodeError for a host that is neither a name nor an address.
        """
        addresses = await self._lookup(target)
        if any(map(is_loopback, addresses)):
            for own in await self._lookup(self._base):
                self._policy.learn(own)
        try:
            for address in addresses:
                self._policy.judge(address)
        except ForbiddenAddress as error:
            raise forbidden(str(target.host), error) from None

    async def _lookup(self, url: URL) -> Sequence[AddrInfoType]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._config.connect_timeout):
                return await loop.getaddrinfo(url.raw_host, url.port, type=socket.SOCK_STREAM)
        except OSError:  # TimeoutError is one too
            return []


async def _once(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Keep aiohttp from silently sending a GET again: a pre-signed URL may be good for one request only.

    It does so on these two errors, and on no other (a test checks that).
    """
    try:
        return await send(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise NoAnswer(reason(error)) from error


@asynccontextmanager
async def _connecting(way: Way) -> AsyncIterator[None]:
    """Report when time runs out before there is a connection, whichever of the timeouts it was."""
    try:
        yield
    except TimeoutError as error:
        raise error if way.connected else aiohttp.ConnectionTimeoutError from None


def _watched() -> aiohttp.TraceConfig:
    """Record in `Way` how a request goes."""
    watched = aiohttp.TraceConfig()

    async def connected(_session: object, context: SimpleNamespace, _parameters: object) -> None:
        if context.trace_request_ctx is not None:
            context.trace_request_ctx.connected = True

    async def reused(_session: object, context: SimpleNamespace, _parameters: object) -> None:
        if context.trace_request_ctx is not None:
            context.trace_request_ctx.connected = context.trace_request_ctx.kept = True

    watched.on_connection_create_end.append(connected)
    watched.on_connection_reuseconn.append(reused)
    return watched


def reason(error: BaseException) -> str:
    """Return, in a few ASCII words, what went wrong on the line, without URL, path or credential."""
    if isinstance(error, NoAnswer):
        return str(error)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name does not resolve"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "its certificate is not trusted; see upstream.ca_file"
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return "it does not speak TLS as we do"
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError):
        return "the connection ended too early"
    if isinstance(error, TimeoutError):
        return "no byte came in time"
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, OSError) and cause.errno:
        return os.strerror(cause.errno).lower()  # asyncio's own text has the address in it
    return type(error).__name__


def _blame(proxy: Proxy, url: URL, error: Exception) -> ProxyFailed | None:
    """Return what the proxy did wrong; None when it was not the proxy."""
    match error:
        case aiohttp.ClientHttpProxyError():
            return proxy.refused(error.status, str(url.raw_host))
        case aiohttp.ConnectionTimeoutError():
            return proxy.failed(f"has no connection to {url.raw_host} in time")
        case aiohttp.ClientConnectorError() if (error.host, error.port) == (proxy.url.raw_host, proxy.url.port):
            return proxy.failed(f"cannot be reached: {reason(error)}")
        case _:
            return None


def trusting(config: UpstreamConfig) -> ssl.SSLContext:
    """Trust the system's authorities and those of `upstream.ca_file`. Raises ConfigError when that file is unusable."""
    return trust(config.ca_file, f"upstream.ca_file = {str(config.ca_file)!r}")
