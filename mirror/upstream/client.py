"""Asks upstream for metadata, for the image from an offset, and for the few requests that are passed through.

A client's `Authorization` goes to the upstream origin and never to the target of a redirect. URLs with a query are
secrets, so messages and logs name hosts only.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from mirror.common.log import event
from mirror.common.metrics import Metrics
from mirror.common.units import format_duration
from mirror.config import Upstream as UpstreamConfig
from mirror.config.reloadable import Ready
from mirror.model.caller import Caller
from mirror.model.errors import BadUpstream, LoopDetected, MirrorError, Unavailable, UpstreamRefused, UpstreamTimeout
from mirror.model.metadata import MAX_BODY, ImageMetadata
from mirror.upstream import loop_detection as loop
from mirror.upstream.connection import Connections, NoAnswer, Way, reason
from mirror.upstream.encoding import decoded
from mirror.upstream.proxies import Proxies, ProxyFailed
from mirror.upstream.rate_limit import Throttle
from mirror.upstream.redirects import FOLLOWED, ForbiddenAddress, RedirectPolicy, forbidden, not_a_url
from mirror.upstream.statuses import passes, retry_after

log = logging.getLogger(__name__)

API = "/api/v2/"
IMAGE = API + "mlops/portablePredictionServerImage/"
METADATA = IMAGE + "metadata/"

MAX_FORWARDED = 16 << 20
"""The most bytes of a passed-through answer."""

PASSED_THROUGH = frozenset({401, 403, 404, 429})

_KEPT = ("Content-Type", "Retry-After", "WWW-Authenticate")
_NOT_FORWARDED = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "te", "trailer", "transfer-encoding", "upgrade"}  # hop by hop
    # the mirror sets these itself, or they concern only upstream
    | {"content-length", "date", "server", "set-cookie", "x-request-id"}
)


@dataclass(frozen=True, slots=True)
class Forwarded:
    """An answer that is passed through as it came: status, end-to-end headers, undecoded body."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    retry_after: int | None


class Upstream:
    """One DataRobot installation (or another mirror). Open it with `async with`.

    `name` is the name of the mirror that asks, by which loops are found (`mirror.upstream.loop_detection`); a client
    that serves no one has none. `image` is the path of the image, with its metadata below; it differs from DataRobot's
    path only at a mirror.
    """

    def __init__(
        self,
        config: UpstreamConfig,
        url: str,
        proxies: Proxies,
        metrics: Metrics | None = None,
        throttle: Throttle | None = None,
        name: str | None = None,
        image: str = IMAGE,
    ) -> None:
        self._config = config
        self._image = image
        self._proxies = proxies
        self._name = name
        self._metrics = metrics or Metrics()
        self.throttle = throttle or Throttle()
        self._base = URL(url)
        self.policy = RedirectPolicy(self._base, config.redirect_hosts)
        self._line = Connections(config, self._base, proxies, self.policy)
        self._former: list[Connections] = []

    @property
    def connections(self) -> int:
        """The most connections that the transfer of one image may use (`upstream.connections`)."""
        return self._config.connections

    async def __aenter__(self) -> "Upstream":
        await self._line.open()
        return self

    async def prepare(self, config: UpstreamConfig, proxies: Proxies) -> Ready:
        """Prepare to use another configuration and other proxies; requests that have begun go on as they are."""
        policy = RedirectPolicy(self._base, config.redirect_hosts)
        line = Connections(config, self._base, proxies, policy)
        await line.open()
        same_ways = (config, proxies, line.trusted) == (self._config, self._proxies, self._line.trusted)

        def apply() -> None:
            if not same_ways:
                # downloads may use the old connections for hours; idle connections close by themselves
                self._former.append(self._line)
                self._config, self._proxies, self.policy, self._line = config, proxies, policy, line

        if same_ways:
            await line.close()
        return Ready(apply)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for line in (*self._former, self._line):
            await line.close()

    async def metadata(self, caller: Caller) -> ImageMetadata:
        """Ask for the current image's metadata with the caller's credential.

        Raises UpstreamRefused for upstream's own 401, 403, 404 or 429; BadUpstream or Unavailable for nonsense, an
        unreachable upstream, or silence for `connect_timeout`; UpstreamTimeout for upstream's own 504.
        """
        seconds = self._config.connect_timeout
        try:
            answer = await self._ask(
                "metadata", "GET", self._image + "metadata/", "", caller, MAX_BODY, seconds=seconds
            )
        except UpstreamTimeout as error:
            raise Unavailable(f"{error} (upstream.connect_timeout)") from None
        if answer.status == 200:
            return ImageMetadata.parse(decoded(answer.body, answer.headers, MAX_BODY))
        if answer.status in PASSED_THROUGH:
            raise refused(answer.status, answer.body, answer.headers, answer.retry_after)
        raise failure(answer.status, answer.retry_after)

    async def forward(self, method: str, path: str, query: str, caller: Caller) -> Forwarded:
        """Pass a request without a body through to `path` (with its leading slash) and the raw `query` string.

        Raises BadUpstream, Unavailable, UpstreamTimeout; every status is an answer, except a redirect's.
        """
        seconds = 2 * self._config.connect_timeout
        answer = await self._ask("passthrough", method, path, query, caller, MAX_FORWARDED, seconds=seconds)
        if answer.status in FOLLOWED:
            raise failure(answer.status, answer.retry_after)
        return answer

    @asynccontextmanager
    async def image(self, caller: Caller, headers: Mapping[str, str]) -> AsyncIterator["ImageResponse"]:
        """Request the image and follow its redirects; `headers` (Range, If-Range) travel with every hop.

        Raises BadUpstream for a refused hop, ProxyFailed, and aiohttp's ClientError, TimeoutError or OSError for a
        broken line.
        """
        with self._metrics.asking("image") as asked:
            response, url, redirected = await self._follow(caller, headers)
            asked.answered(response.status)
        same_origin = redirected and self.policy.same_origin(url)
        with self._metrics.receiving.track_inprogress(), closing(response):
            # over the same connections and by the same rules, whatever is reloaded meanwhile
            again = partial(self._line.send, "GET", url, elsewhere=not self.policy.same_origin(url))
            yield ImageResponse(response, str(url.host), redirected, same_origin, again)

    @asynccontextmanager
    async def more_of(
        self, response: "ImageResponse", headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Request what the redirects of an earlier response led to, with these headers; upstream is not asked again.

        Raises what `image` raises. A redirect is not followed.
        """
        assert response.again is not None  # noqa: S101 - only tests make responses without
        with self._metrics.asking("range") as asked:
            answer = await response.again(headers)
            asked.answered(answer.status)
        with self._metrics.receiving.track_inprogress(), closing(answer):
            yield answer

    async def _follow(self, caller: Caller, headers: Mapping[str, str]) -> tuple[aiohttp.ClientResponse, URL, bool]:
        """Request the image; return the last answer, the host that gave it, and whether there were redirects."""
        url = self._url(self._image, "")
        response = await self._line.send("GET", url, {**headers, **self._identity(caller)})
        hop = 0
        try:
            while response.status in FOLLOWED and (location := response.headers.get("Location")):
                response.release()
                hop += 1
                url = self.policy.next_hop(url, location, hop)
                try:
                    response = await self._line.send("GET", url, headers, elsewhere=not self.policy.same_origin(url))
                except aiohttp.ClientConnectorError as error:
                    if isinstance(error.os_error, ForbiddenAddress):
                        raise forbidden(str(url.host), error.os_error) from None
                    raise
                except (aiohttp.InvalidURL, UnicodeError):  # a host that is neither a name nor an address
                    raise not_a_url() from None
        except BaseException:
            response.close()
            raise
        return response, url, hop > 0

    async def _ask(
        self, what: str, method: str, path: str, query: str, caller: Caller, limit: int, *, seconds: float
    ) -> Forwarded:
        try:
            async with await self._send(
                what, method, self._url(path, query), self._identity(caller), seconds
            ) as response:
                body = b"".join([piece async for piece in _limited(response.content, limit)])
        except ProxyFailed as error:
            raise error.told() from None
        except aiohttp.ConnectionTimeoutError:
            raise Unavailable("upstream cannot be reached: connecting timed out") from None
        except TimeoutError:
            raise UpstreamTimeout(f"upstream did not answer within {format_duration(seconds)}") from None
        except aiohttp.ClientConnectorCertificateError:
            raise BadUpstream("upstream's certificate is not trusted; see upstream.ca_file") from None
        except aiohttp.ClientConnectionError as error:
            raise Unavailable(f"upstream cannot be reached: {reason(error)}") from None
        except (aiohttp.ClientError, OSError) as error:
            raise BadUpstream(f"upstream's answer is broken: {reason(error)}") from None
        kept = CIMultiDict(
            (name, value) for name, value in response.headers.items() if name.lower() not in _NOT_FORWARDED
        )
        return Forwarded(response.status, kept, body, retry_after(response.headers))

    async def _send(
        self, what: str, method: str, url: URL, headers: Mapping[str, str], seconds: float
    ) -> aiohttp.ClientResponse:
        """Send a request within `seconds`; send it again when a connection that was kept open turns out to be closed.

        This is not for the image, because the URL that it redirects to may be good for one request only.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + seconds
        while True:
            way = Way()
            with self._metrics.asking(what) as asked:
                try:
                    left = max(0.001, until - clock())
                    response = await self._line.send(method, url, headers, total=left, way=way)
                except NoAnswer:
                    if not way.kept:
                        raise
                    asked.outcome = "repeated"
                    said = event("upstream.repeated")
                    log.info("a connection to upstream that was kept open had ended: asking on another", extra=said)
                else:
                    asked.answered(response.status)
                    return response

    def _identity(self, caller: Caller) -> dict[str, str]:
        """Return the headers that only upstream itself gets: the caller's, and the mirrors that were passed."""
        headers = {"X-Request-ID": caller.request_id}
        if way := loop.onward(caller.came_by, self._name):
            headers[loop.HEADER] = way
        if caller.authorization is not None:
            headers["Authorization"] = caller.authorization
        if caller.trace is not None:
            headers["X-DataRobot-Api-Consumer-Trace"] = caller.trace
        return headers

    def _url(self, path: str, query: str) -> URL:
        target = str(self._base).rstrip("/") + path + (f"?{query}" if query else "")
        return URL(target, encoded=True)


@dataclass(frozen=True, slots=True)
class ImageResponse:
    """The answer at the end of the redirects: from `host`, whether redirected, and if so to upstream itself.

    `again` sends a request with other headers to where they led.
    """

    answer: aiohttp.ClientResponse
    host: str
    redirected: bool
    same_origin: bool = False
    again: Callable[[Mapping[str, str]], Awaitable[aiohttp.ClientResponse]] | None = field(default=None, repr=False)


def refused(status: int, body: bytes, headers: Mapping[str, str], retry_after: int | None) -> UpstreamRefused:
    """Make an error of upstream's own refusal, with the headers that a client acts on and the seconds to wait."""
    kept = {name: headers[name] for name in _KEPT if name in headers}
    return UpstreamRefused(status, decoded(body, headers, MAX_BODY), kept, retry_after=retry_after)


def failure(status: int, retry_after: int | None) -> MirrorError:
    """Turn an unusable answer of upstream into an error; `retry_after` is how many seconds it asked to wait."""
    if status == 508:
        return LoopDetected(
            "upstream answered 508: requests go round in a loop; set upstream.url, here and at each mirror on the way, "
            "to what is nearer to DataRobot"
        )
    if status == 504:
        return UpstreamTimeout("upstream answered 504", retry_after=retry_after or 10)
    if status in {503, 511} or (status < 500 and passes(status)):
        return Unavailable(f"upstream answered {status}", retry_after=retry_after or 10)
    if passes(status):
        return BadUpstream(f"upstream answered {status}", retry_after=retry_after)
    if status in FOLLOWED:
        return BadUpstream(f"upstream answered {status} elsewhere; set upstream.url to where it really is")
    return BadUpstream(f"upstream answered {status}, which makes no sense here")


async def _limited(content: aiohttp.StreamReader, limit: int) -> AsyncIterator[bytes]:
    left = limit
    async for piece in content.iter_any():
        left -= len(piece)
        if left < 0:
            raise BadUpstream(f"upstream's answer is longer than {limit} bytes")
        yield piece
