"""The routes of the registry: stored images as a read-only container registry (OCI Distribution Specification).

Who may read is decided as for images, for each request. An engine sends the token as the password of a login.
"""

import asyncio
import base64
import binascii
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from urllib.parse import urlencode

from aiohttp import web

from mirror.access.policies import Access
from mirror.common.metrics import Metrics
from mirror.http.conditional import select
from mirror.http.errors import JSON
from mirror.http.exchange import Exchange
from mirror.http.registry_errors import registry_error
from mirror.http.registry_response import bodied, bodiless, content_headers
from mirror.http.send import Sender
from mirror.images.library import Library
from mirror.images.metadata_cache import Current
from mirror.model.caller import Caller
from mirror.model.errors import MirrorError, Unauthorized, Unavailable, UpstreamRefused
from mirror.registry.blob_body import BlobBody, blob_threads
from mirror.registry.index import CONFIG_TYPE, MANIFEST_TYPE
from mirror.registry.pull import Asker
from mirror.registry.refusals import BlobUnknown, ManifestUnknown, NameUnknown, Unsupported
from mirror.registry.tags import LATEST
from mirror.wiring.registry import NO_DISK, Offer, Registry

ROOT = "/v2/"

BLOB = "registry_blob"

EMPTY_INDEX = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}

ANSWER = 19.0
"""Seconds after which a client is told to come back: some engines give up after thirty without an answer."""

NOBODY_REFUSED = 300.0
"""Seconds for which it is remembered that upstream lets nobody in without a credential: engines ask so first."""

_OF_NAME = re.compile(r"(?P<name>.+)/(?P<kind>manifests|blobs|referrers|tags)/(?P<reference>[^/]+)/?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

Route = Callable[[Exchange, Caller, Current | None], Awaitable[web.StreamResponse]]


class RegistryApi:
    """Answers the requests below ROOT. `caller_of` makes the caller of a request; `registry` is what is offered."""

    def __init__(
        self,
        registry: Registry,
        access: Access,
        library: Library,
        sender: Sender,
        metrics: Metrics,
        caller_of: Callable[[Exchange], Caller],
    ) -> None:
        self._registry = registry
        self._access = access
        self._library = library
        self._sender = sender
        self._metrics = metrics
        self._caller_of = caller_of
        self._threads = blob_threads()
        self._nobody: tuple[float, UpstreamRefused] | None = None

    def close(self) -> None:
        """End the threads that read blobs. Nothing may be being sent any more."""
        self._threads.shutdown()

    async def __call__(self, exchange: Exchange) -> web.StreamResponse:
        """Answer one request, also with an error."""
        try:
            response = await self._answer(exchange)
        except MirrorError as error:
            response = registry_error(error)
            if isinstance(error, Unsupported):
                response.headers["Allow"] = "GET, HEAD"
        if not response.prepared:
            _say_version(response)
        return response

    async def _answer(self, exchange: Exchange) -> web.StreamResponse:
        request = exchange.request
        exchange.route, route = self._route(request.path)
        if request.method not in {"GET", "HEAD"}:
            raise Unsupported("this registry is read-only: what it has is what the mirror has stored")
        caller = self._caller_of(exchange)
        caller = replace(caller, authorization=_as_bearer(caller.authorization))
        try:
            async with asyncio.timeout(ANSWER) as limit:
                admitted = await self._admit(caller)
                if exchange.route == BLOB:  # whose answer takes as long as its client needs
                    limit.reschedule(None)
                return await route(exchange, caller, admitted)
        except TimeoutError:
            raise Unavailable("upstream or the store is slow to answer; come back soon") from None

    def _route(self, path: str) -> tuple[str, Route]:
        rest = path.removeprefix(ROOT.rstrip("/")).removeprefix("/")
        if not rest:
            return "registry_base", self._base
        if rest.rstrip("/") == "_catalog":
            return "registry_catalog", self._catalog
        if not (found := _OF_NAME.fullmatch(rest)) or (found["kind"] == "tags" and found["reference"] != "list"):
            return "registry", self._nothing
        name, reference = found["name"], found["reference"]
        routes: dict[str, tuple[str, Callable[..., Awaitable[web.StreamResponse]]]] = {
            "manifests": ("registry_manifest", self._manifest),
            "blobs": (BLOB, self._blob),
            "referrers": ("registry_referrers", self._referrers),
            "tags": ("registry_tags", self._tags),
        }
        label, answer = routes[found["kind"]]

        async def route(exchange: Exchange, caller: Caller, admitted: Current | None) -> web.StreamResponse:
            if name not in await self._names():
                raise NameUnknown(f"this registry has one repository, {self._registry.repository}")
            return await answer(exchange, caller, admitted, reference)

        return label, route

    async def _admit(self, caller: Caller) -> Current | None:
        """Admit the caller or raise. Upstream is not asked again and again whether it lets anybody in."""
        now = asyncio.get_running_loop().time()
        if caller.authorization is None and self._nobody is not None and now < self._nobody[0]:
            raise self._nobody[1].with_traceback(None)
        try:
            return await self._access.admit(caller)
        except UpstreamRefused as refusal:
            if caller.authorization is None and refusal.status == Unauthorized.status:
                self._nobody = now + NOBODY_REFUSED, UpstreamRefused(refusal.status, refusal.body, refusal.headers)
            raise

    @property
    def _offer(self) -> Offer:
        if self._registry.offer is None:
            raise NameUnknown(NO_DISK)
        return self._registry.offer

    async def _names(self) -> Sequence[str]:
        found = await self._offer.catalog.entries()
        return sorted({self._registry.repository, *found.aliases})

    # The routes

    async def _nothing(self, exchange: Exchange, caller: Caller, admitted: Current | None) -> web.StreamResponse:
        raise NameUnknown("there is nothing here; see the OCI Distribution Specification for what a registry answers")

    async def _base(self, exchange: Exchange, caller: Caller, admitted: Current | None) -> web.StreamResponse:
        return _json({})

    async def _catalog(self, exchange: Exchange, caller: Caller, admitted: Current | None) -> web.StreamResponse:
        return _page(exchange, "repositories", await self._names() if self._registry.offer else [])

    async def _tags(
        self, exchange: Exchange, caller: Caller, admitted: Current | None, reference: str
    ) -> web.StreamResponse:
        entries = await self._offer.catalog.entries()
        tags = [*entries.tags, LATEST] if await self._offer.pull.latest() else entries.tags
        name = exchange.request.path.removeprefix(ROOT).partition("/tags/list")[0]
        return _page(exchange, "tags", sorted(tags), name=name)

    async def _referrers(
        self, exchange: Exchange, caller: Caller, admitted: Current | None, reference: str
    ) -> web.StreamResponse:
        return _json(EMPTY_INDEX, EMPTY_INDEX["mediaType"])

    async def _manifest(
        self, exchange: Exchange, caller: Caller, admitted: Current | None, reference: str
    ) -> web.StreamResponse:
        pull = self._offer.pull
        if ":" in reference:
            if not _DIGEST.fullmatch(reference):
                raise ManifestUnknown("a digest is sha256: and 64 hexadecimal digits")
            entry = await pull.by_digest(reference)
        else:
            access = self._access
            asker = Asker(access.credential_for_metadata(caller), access.credential_for_image(caller), admitted)
            entry = await pull.by_tag(reference, asker)
        assert entry.index is not None  # noqa: S101 - both say so
        body, digest = entry.index.manifest, entry.index.manifest_digest
        exchange.digest = digest
        request, modified = exchange.request, entry.info.metadata.created
        headers = content_headers(digest, MANIFEST_TYPE, modified)
        selection = select(request.method, request.headers, etag=digest, modified=modified, size=len(body))
        if answer := bodiless(selection, headers, len(body)):
            return answer
        response = web.Response(headers=headers)
        start, stop = bodied(response, selection, len(body))
        response.body = body[start:stop]
        self._library.serving(entry.info.metadata.hash)
        if request.method == "GET":
            self._metrics.pulls.inc()
            self._metrics.registry_bytes.labels("manifest").inc(stop - start)
        return response

    async def _blob(
        self, exchange: Exchange, caller: Caller, admitted: Current | None, digest: str
    ) -> web.StreamResponse:
        exchange.digest = digest if _DIGEST.fullmatch(digest) else None
        catalog = self._offer.catalog
        for entry, blob in (await catalog.entries()).with_blob(digest):
            if (image := await catalog.disk.open(entry.info.metadata.hash)) is None or entry.index is None:
                catalog.expire()  # it has just been removed or replaced; another image may have the same layer
                continue
            request, modified = exchange.request, entry.info.metadata.created
            headers = content_headers(digest, "application/octet-stream", modified)
            selection = select(request.method, request.headers, etag=digest, modified=modified, size=blob.size)
            if answer := bodiless(selection, headers, blob.size):
                return answer
            response = web.StreamResponse(headers=headers)
            _say_version(response)
            start, stop = bodied(response, selection, blob.size)
            response.content_length = stop - start
            if request.method == "HEAD":
                return response
            self._library.serving(entry.info.metadata.hash)
            exchange.kind = "config" if blob.media_type == CONFIG_TYPE else "layer"
            loop, image_hash = asyncio.get_running_loop(), entry.info.metadata.hash
            damaged = partial(loop.call_soon_threadsafe, catalog.doubt, image_hash)
            body = BlobBody(image, entry.index, blob, self._threads, damaged)
            await self._sender.send(exchange, response, body, start, stop)
            return response
        raise BlobUnknown("no image here has a config or layer of that digest")


def _as_bearer(authorization: str | None) -> str | None:
    """Return the header with which upstream and the policies know the caller; raises Unauthorized.

    The password of a login is the token, whatever the user's name.
    """
    scheme, _, value = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return authorization
    try:
        token = base64.b64decode(value.strip(), validate=True).decode("ascii").partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        token = ""
    if not token or not token.isprintable():
        raise Unauthorized("log in with the token as the password: docker login -u token MIRROR")
    return f"Bearer {token}"


def _page(exchange: Exchange, key: str, values: Sequence[str], **more: str) -> web.Response:
    """Return a sorted list from after `last`, at most `n` of it, with a link to the rest."""
    request = exchange.request
    wanted = request.query.get("n", "")
    last = request.query.get("last", "")
    left = [value for value in values if value > last]
    count = int(wanted[:9]) if wanted.isascii() and wanted.isdigit() else len(left)
    response = _json({**more, key: left[:count]})
    if 0 < count < len(left):
        query = urlencode({"n": count, "last": left[count - 1]})
        response.headers["Link"] = f'<{request.rel_url.raw_path}?{query}>; rel="next"'
    return response


def _json(value: object, media_type: object = JSON) -> web.Response:
    headers = {"Content-Type": str(media_type), "Cache-Control": "private, no-cache", "Vary": "Authorization"}
    return web.Response(body=json.dumps(value).encode(), headers=headers)


def _say_version(response: web.StreamResponse) -> None:
    response.headers["Docker-Distribution-API-Version"] = "registry/2.0"
