"""Reads one image from upstream, and judges the answers of upstream and its redirect targets."""

import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import aiohttp

from mirror.common.log import event
from mirror.common.ranges_in_order import OpenRange, Refused
from mirror.common.several_ranges import NoRange, SeveralRanges, Transfer
from mirror.model.caller import Caller
from mirror.model.errors import BadUpstream
from mirror.model.metadata import MAX_BODY, ImageMetadata
from mirror.model.source import UNVOUCHED, Broken, Changed, Stream
from mirror.upstream.aiohttp_internals import body
from mirror.upstream.client import ImageResponse, Upstream, failure, refused
from mirror.upstream.connection import reason
from mirror.upstream.proxies import ProxyFailed
from mirror.upstream.statuses import passes, retry_after

TRIES = 4
"""How often in a row a redirect target may answer 4xx before that is final; each attempt gets a fresh URL. The same for
a proxy that refuses, and for a certificate that is not trusted."""

log = logging.getLogger(__name__)

_LINE_BROKE = (aiohttp.ClientError, TimeoutError, OSError)
_PAGES = re.compile(
    r"(text|image|audio|video|font|multipart|message)/[!-~]+|application/([!-~]+\+)?(json|xml|(x-)?javascript)"
)
"""Media types of what a filter or a portal sends in place of the image. An archive may have any other type, or none."""

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


class ImageSource:
    """The `Source` of one image at upstream. `callers` are those whose credential may be used, the best first."""

    def __init__(self, upstream: Upstream, metadata: ImageMetadata, caller: Caller) -> None:
        self._upstream = upstream
        self._size = metadata.size
        self._callers = [caller]
        self._resumable = True
        self._hash = metadata.hash
        self._ranges = SeveralRanges(metadata.size, lambda: upstream.connections, self._say)

    def offer(self, caller: Caller) -> None:
        """Keep a waiting client's credential, if it has one, for when upstream refuses the one in use."""
        known = {known.authorization for known in self._callers}
        if len(self._callers) < 8 and caller.authorization is not None and caller.authorization not in known:
            self._callers.append(caller)

    @asynccontextmanager
    async def open(self, offset: int, validator: str | None) -> AsyncIterator[Stream]:
        """See `Source.open`."""
        if not self._resumable:
            offset = 0
        headers = {}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if validator is not None:
                headers["If-Range"] = validator
        async with AsyncExitStack() as stack:
            try:
                response = await stack.enter_async_context(self._upstream.image(self._callers[0], headers))
                begin, validator = await self._judge(response, offset, validator)
                pieces = self._ranges.pieces(Transfer(begin, self._pieces(response.answer), self._ranged(response)))
                stack.push_async_callback(pieces.aclose)
            except ProxyFailed as error:
                raise Broken(str(error), definitive_after=TRIES if error.refused else None) from error
            except aiohttp.ClientConnectorCertificateError as error:
                raise Broken(f"{_ascii(error.host)}: {reason(error)}", definitive_after=TRIES) from error
            except _LINE_BROKE as error:
                raise Broken(f"the line broke: {reason(error)}") from error
            yield Stream(begin, validator, self._throttled(pieces))

    async def _judge(self, response: ImageResponse, offset: int, validator: str | None) -> tuple[int, str | None]:
        """Return where the answer's bytes begin, and the validator of a `Stream` of them. Raises as `Source.open`."""
        answer = response.answer
        etag = _strong(answer.headers.get("ETag"))
        if answer.status == 200:
            self._check_whole(response, offset)
            return 0, etag or (UNVOUCHED if answer.content_length is None else None)
        if answer.status == 206 and offset:
            self._check_range(answer.headers.get("Content-Range", ""), offset)
            if validator and etag and validator != etag:
                raise Changed("upstream answered the range with another ETag")
            return offset, etag or validator
        if answer.status == 416 and offset:
            if answer.headers.get("Content-Range", f"bytes */{self._size}") != f"bytes */{self._size}":
                raise Changed("upstream's image ends before what we hold")
            self._resumable = False
            raise Broken("upstream cannot answer the range: starting over", definitive_after=TRIES)
        raise await self._refusal(response, offset)

    async def _pieces(self, answer: aiohttp.ClientResponse) -> AsyncGenerator[bytes | memoryview, None]:
        try:
            async for piece in body(answer):
                yield piece
        except _LINE_BROKE as error:
            raise Broken(f"the line broke: {reason(error)}") from error
        finally:
            answer.close()

    async def _throttled(self, pieces: AsyncIterator[bytes | memoryview]) -> AsyncIterator[bytes | memoryview]:
        async for piece in pieces:
            async for part in self._upstream.throttle.pass_on(piece):
                yield part

    def _say(self, words: str, connections: int, *, refused: bool = False) -> None:
        said = event("fill.connections", image=self._hash, connections=connections)
        if refused:
            said = event("fill.connections_refused", image=self._hash, connections=connections)
        log.log(
            logging.WARNING if refused else logging.INFO, "fill of %s goes on with %s", self._hash, words, extra=said
        )

    def _ranged(self, response: ImageResponse) -> OpenRange | None:
        """Return how to ask where the redirect led for ranges; None if there was none, or the object cannot be told."""
        headers = response.answer.headers
        etag = _strong(headers.get("ETag"))
        if not response.redirected or etag is None or headers.get("Accept-Ranges", "").lower() == "none":
            return None
        return partial(self._open_range, response, etag)

    @asynccontextmanager
    async def _open_range(
        self, response: ImageResponse, etag: str, start: int, stop: int
    ) -> AsyncIterator[AsyncIterator[bytes | memoryview]]:
        """Ask for the bytes [start, stop) of the object that `response` is of. Raises Broken, Refused, NoRange."""
        headers = {"Range": f"bytes={start}-{stop - 1}", "If-Range": etag}
        async with AsyncExitStack() as stack:
            try:
                answer = await stack.enter_async_context(self._upstream.more_of(response, headers))
            except ProxyFailed as error:
                raise Broken(str(error)) from error
            except _LINE_BROKE as error:
                raise Broken(f"the line broke: {reason(error)}") from error
            status, said = answer.status, f"{_ascii(response.host)} answered {answer.status} to a range"
            if passes(status):
                raise Refused(said, retry_after=retry_after(answer.headers))
            if status != 206:
                raise NoRange(said, expired=status >= 400)
            right = (etag, f"bytes {start}-{stop - 1}/{self._size}")
            if (answer.headers.get("ETag"), answer.headers.get("Content-Range")) != right:
                raise NoRange(f"{_ascii(response.host)} answered with another range than the one asked for")
            yield self._pieces(answer)

    def _check_whole(self, response: ImageResponse, offset: int) -> None:
        """Judge, by its length and media type, an answer that claims to be the whole image.

        | length | type | what it is |
        | --- | --- | --- |
        | the image's | any | the image, as far as can be told |
        | none | an archive's, an unknown one, none | maybe the image; see UNVOUCHED |
        | another | an archive's, an unknown one, none | another image: Changed |
        | none, or another | a page's | a page in the image's place: Broken |

        A page in answer to a resume counts as a broken line; a page in answer to the first request is reported soon.
        """
        answer = response.answer
        if answer.content_length == self._size:
            return
        media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if _PAGES.fullmatch(media_type):
            raise Broken(
                f"{_ascii(response.host)} answered with something else ({media_type}) in the image's place: a proxy, a "
                "filter or a portal on the way, if it is no mistake of upstream's",
                definitive_after=None if offset or not self._resumable else TRIES,
            )
        if answer.content_length is not None:
            raise Changed(f"upstream offers {answer.content_length} bytes, metadata says {self._size}")

    def _check_range(self, content_range: str, offset: int) -> None:
        match = _CONTENT_RANGE.fullmatch(content_range)
        if not match or int(match[1]) != offset or match[3] not in {"*", str(self._size)}:
            raise Changed("upstream answered another range than the one asked for")

    async def _refusal(self, response: ImageResponse, offset: int) -> Exception:
        status, headers = response.answer.status, response.answer.headers
        wait = retry_after(headers)
        if response.redirected:
            said = f"the redirect target {_ascii(response.host)} answered {status}"
            if response.same_origin and status in {401, 403}:
                said += (
                    ": the credential was withheld, because no redirect is sent one, not even to upstream's own host; "
                    "let upstream answer there without it (by a pre-signed URL), or set upstream.url to where it "
                    "redirects to"
                )
            return Broken(said, retry_after=wait, definitive_after=None if passes(status) else TRIES)
        if status in {401, 403} and len(self._callers) > 1:
            del self._callers[0]
            return Broken(f"upstream answered {status}: trying another client's credential", retry_after=0)
        if status in {401, 403, 404} or (status == 429 and not offset):
            return refused(status, await response.answer.content.read(MAX_BODY), headers, wait)
        if status == 508:
            return failure(status, wait)
        if passes(status):
            return Broken(f"upstream answered {status}", retry_after=wait)
        return BadUpstream(f"upstream answered the image request with {status}, which makes no sense here")


def _ascii(host: str) -> str:
    return host.encode("ascii", "backslashreplace").decode()


def _strong(etag: str | None) -> str | None:
    return etag if etag and not etag.startswith("W/") and etag.isascii() else None
