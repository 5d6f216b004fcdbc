"""The routes of the client listener: a drop-in for DataRobot's URLs, and the stored images by their hash."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web
from multidict import CIMultiDict

from mirror.access.policies import Access
from mirror.common.concurrency_limit import Limiter
from mirror.http.callers import caller_of
from mirror.http.conditional import Part, select
from mirror.http.errors import JSON, message_response, sendable
from mirror.http.exchange import Exchange, marked
from mirror.http.image_response import bodied, bodiless, redirection
from mirror.http.registry_api import ROOT, RegistryApi
from mirror.http.send import Sender
from mirror.images.describe import describe
from mirror.images.fill_outcome import FillFailed, Reason
from mirror.images.library import Library
from mirror.images.metadata_cache import Current, MetadataCache
from mirror.images.open_image import OpenImage
from mirror.model.cache_status import CacheStatus
from mirror.model.caller import Caller
from mirror.model.errors import MirrorError, NotFound, Unavailable
from mirror.model.metadata import ImageMetadata, is_hash
from mirror.model.source import Origin
from mirror.upstream.client import API, IMAGE, METADATA, Upstream

IMAGES = "/mirror/v1/images/"

FIRST_BYTE = 30.0
"""Seconds that a client waits for an answer before it is told to come back; the fill goes on."""

LEAST_WAIT = 5.0
"""The least seconds that a client waits for upstream, even when the store has used up most of FIRST_BYTE."""

PASSED_AT_ONCE = 16
"""How many requests are passed through at once: anyone who can reach the mirror may send them."""

PASSED_SECONDS = 10.0
"""Seconds that the others wait for their turn."""

_OF_JSON = CIMultiDict(
    {
        "Content-Type": JSON,
        "Cache-Control": "private, no-cache",
        "Vary": "Authorization",
        "X-Content-Type-Options": "nosniff",
    }
)

Route = Callable[[Exchange, Caller], Awaitable[web.StreamResponse]]

Location = Callable[[ImageMetadata], Awaitable[str | None]]
"""Returns a URL from which anybody can fetch a stored image; None when the mirror sends it itself."""


class ClientApi:
    """Answers the requests of the client listener. `passthrough` are paths below /api/v2/, with a slash at the end.

    `location` says where clients are redirected to for a stored image; loops of mirrors are found by `name`. What is
    below /v2/ is answered by `registry`.
    """

    def __init__(
        self,
        access: Access,
        metadata_cache: MetadataCache,
        library: Library,
        upstream: Upstream | None,
        sender: Sender,
        *,
        passthrough: Sequence[str],
        name: str,
        location: Location | None = None,
        registry: RegistryApi | None = None,
    ) -> None:
        self._name = name
        self._access = access
        self._metadata_cache = metadata_cache
        self._library = library
        self._upstream = upstream
        self._sender = sender
        self._location = location
        self._registry = registry
        self._passing = Limiter(
            PASSED_AT_ONCE,
            queue=1000,
            patience=PASSED_SECONDS,
            message="the mirror is busy passing many requests on to upstream; come back soon",
        )
        self._routes: dict[str, tuple[str, Route]] = {}
        self.pass_through(passthrough)

    def pass_through(self, paths: Sequence[str]) -> None:
        """Pass these paths through from now on, and no others."""
        self._routes = {
            METADATA: ("metadata", self._metadata),
            IMAGE: ("image", self._current_image),
            IMAGES: ("list", self._list),
        }
        self._routes |= {API + path: ("passthrough", self._pass_through) for path in paths}

    async def __call__(self, exchange: Exchange) -> web.StreamResponse:
        """Answer one request."""
        request = exchange.request
        path = request.path if request.path.endswith("/") else request.path + "/"
        if self._registry is not None and path.startswith(ROOT):
            return await self._registry(exchange)
        found = self._routes.get(path)
        if found is None and path.startswith(IMAGES):
            found = self._by_hash(*path.removeprefix(IMAGES).split("/"))
        if found is None:
            raise NotFound("there is nothing here; the mirror serves " + ", ".join((IMAGE, METADATA, IMAGES)))
        exchange.route, route = found
        if request.method not in {"GET", "HEAD"}:
            response = message_response(405, "only GET and HEAD are understood here")
            response.headers["Allow"] = "GET, HEAD"
            return response
        return await route(exchange, caller_of(exchange, self._name))

    def _by_hash(self, image_hash: str, *rest: str) -> tuple[str, Route] | None:
        if not is_hash(image_hash):
            return None
        if rest == ("",):
            return "stored_image", lambda exchange, caller: self._image_by_hash(exchange, caller, image_hash)
        if rest == ("metadata", ""):
            return "stored_metadata", lambda exchange, caller: self._metadata_by_hash(caller, image_hash)
        return None

    # Metadata and lists

    async def _metadata(self, exchange: Exchange, caller: Caller) -> web.StreamResponse:
        current = await self._current(exchange, caller)
        return _json(current.metadata.raw, current.status)

    async def _metadata_by_hash(self, caller: Caller, image_hash: str) -> web.StreamResponse:
        await self._access.admit(caller)
        return _json((await self._known(caller, image_hash)).raw, CacheStatus.HIT)

    async def _list(self, exchange: Exchange, caller: Caller) -> web.StreamResponse:
        await self._access.admit(caller)
        current = await self._metadata_cache.known_hash()
        images = [describe(info, current=info.metadata.hash == current) for info in await self._library.list()]
        return _json(json.dumps(images).encode(), CacheStatus.HIT)

    async def _pass_through(self, exchange: Exchange, caller: Caller) -> web.StreamResponse:
        request = exchange.request
        if self._upstream is None:
            raise NotFound("the mirror has no upstream to pass this on to")
        path = request.path if request.path.endswith("/") else request.path + "/"
        query = request.rel_url.raw_query_string
        speaker = self._access.credential_for_metadata(caller)
        if speaker is not caller:  # with a substituted credential upstream cannot judge the caller, so we do
            await self._access.admit(caller)
        async with self._passing.turn():
            answer = await self._upstream.forward(request.method, path, query, speaker)
        return web.Response(status=answer.status, headers=sendable(answer.headers), body=answer.body)

    # Images

    async def _current_image(self, exchange: Exchange, caller: Caller) -> web.StreamResponse:
        current = await self._current(exchange, caller)
        try:
            return await self._image(exchange, caller, current.metadata, stale=current.status is CacheStatus.STALE)
        except FillFailed as failure:
            if failure.reason is not Reason.CHANGED:
                raise failure.error from failure
        # Upstream has rolled over since it was asked for metadata, and nothing has been sent yet: take the new image.
        current = await self._current(exchange, caller)
        try:
            return await self._image(exchange, caller, current.metadata, stale=False)
        except FillFailed as failure:
            raise failure.error from failure

    async def _image_by_hash(self, exchange: Exchange, caller: Caller, image_hash: str) -> web.StreamResponse:
        await self._access.admit(caller)
        try:
            return await self._image(exchange, caller, await self._known(caller, image_hash), stale=False)
        except FillFailed as failure:
            raise failure.error from failure

    async def _image(
        self, exchange: Exchange, caller: Caller, metadata: ImageMetadata, *, stale: bool
    ) -> web.StreamResponse:
        request = exchange.request
        selection = select(
            request.method, request.headers, etag=metadata.hash, modified=metadata.created, size=metadata.size
        )
        if request.method == "HEAD":  # HEAD begins no fill
            status = CacheStatus.HIT if await self._library.has(metadata.hash) else CacheStatus.MISS
            return bodiless(metadata, selection, status) or bodied(metadata, selection, status)[0]
        if answer := bodiless(metadata, selection, CacheStatus.HIT):
            return answer
        if self._location is not None and (url := await self._location(metadata)):
            self._library.serving(metadata.hash)
            return redirection(metadata, url)
        outside = self._access.credential_for_image(caller)
        start, stop = (selection.start, selection.stop) if isinstance(selection, Part) else (0, metadata.size)
        clock = asyncio.get_running_loop().time
        deadline = clock() + FIRST_BYTE
        opened = await self._library.open(metadata, outside, start, stop)
        async with opened.attached():
            await self._answered(opened, max(deadline, clock() + LEAST_WAIT))
            self._library.serving(metadata.hash)
            status = _status(opened)
            if stale and status is CacheStatus.HIT:
                status = CacheStatus.STALE
            response, start, stop = bodied(metadata, selection, status)
            await self._sender.send(exchange, response, opened.body, start, stop)
        return response

    async def _answered(self, opened: OpenImage, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await opened.answered()
        except TimeoutError:
            raise Unavailable("upstream is slow to answer; the mirror goes on asking, come back soon") from None

    # The caller and the image

    async def _current(self, exchange: Exchange, caller: Caller) -> Current:
        """Admit the caller and find out what is current. Asks upstream once where one answer tells both."""
        speaker = self._access.credential_for_metadata(caller)
        current = await self._access.admit(caller) or await self._metadata_cache.current(speaker)
        return await self._metadata_cache.shown(current, None if exchange.request.method == "HEAD" else speaker)

    async def _known(self, caller: Caller, image_hash: str) -> ImageMetadata:
        if stored := await self._library.stored(image_hash):
            return stored.metadata
        for info in await self._library.list():  # this includes those that must be verified before they are served
            if info.metadata.hash == image_hash:
                return info.metadata
        try:
            current = await self._metadata_cache.current(self._access.credential_for_metadata(caller))
        except MirrorError:
            current = None
        if current is None or current.metadata.hash != image_hash:
            raise NotFound("no image of that hash is stored here, nor is it the current one; see " + IMAGES)
        return current.metadata


def _status(opened: OpenImage) -> CacheStatus:
    """Return the cache status of an opened image: the fill knows by now where its bytes come from."""
    fill = opened.fill
    if fill is not None and opened.body is fill:
        if fill.passes_through:
            return CacheStatus.BYPASS
        if fill.origin is Origin.STORE:
            return CacheStatus.HIT
        if fill.origin is Origin.REPLICA:
            return CacheStatus.COLLAPSED
    return opened.status


def _json(body: bytes, status: CacheStatus) -> web.Response:
    return marked(web.Response(body=body, headers=_OF_JSON.copy()), status)
