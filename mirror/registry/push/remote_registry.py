"""Talks to another registry by the distribution specification's push API.

https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#push. A blob is sent in one request where that
works. When the line breaks, the registry is asked how much it has, and the rest is sent in another request. Some, such
as distribution and so Harbor, forget an upload that was cut: then that blob is sent anew, and no other.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Self

import aiohttp
from yarl import URL

from mirror import __version__
from mirror.model.errors import MirrorError
from mirror.model.push_target import Target
from mirror.registry.push.authorization import Authorization
from mirror.registry.push.docker_credentials import Credential

Read = Callable[[int, int], AsyncGenerator[bytes | memoryview, None]]
"""Yields the bytes [start, stop) of a blob."""

log = logging.getLogger(__name__)

TRIES = 6
"""How often in a row a request may fail without a byte of progress."""

PAUSE = 1.0
MOST_PAUSE = 20.0
"""Seconds before the second try, twice as many before each further one, and the most."""

STALLED = 120.0
"""Seconds without progress after which a request counts as failed: a registry may take long to digest a layer."""

CHUNK = 32 << 20
"""Bytes of a request at most, once a registry, or a proxy before it, has refused a larger one (413)."""

_MAX_ANSWER = 1 << 20
_BROKEN = (aiohttp.ClientError, TimeoutError, OSError)


class _Again(Exception):
    """A request failed in a way that may pass. `after` is what the registry asked for, in seconds."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class _NoTls(Exception):
    """There is a server, and it does not speak TLS as we do."""


class _TooLarge(Exception):
    """A request was refused for its size."""


class RemoteRegistry:
    """One repository of another registry. Use as a context manager.

    `tls` says which certificates are trusted. A registry without TLS is asked by plain http if it `may_be_plain`.
    """

    def __init__(
        self, target: Target, credential: Credential | None, tls: ssl.SSLContext, *, may_be_plain: bool
    ) -> None:
        self._target = target
        self._credential = credential
        self._tls = tls
        self._may_be_plain = may_be_plain
        self._base = URL.build(scheme="https", authority=target.host)
        self._chunk: int | None = None
        self._scopes: tuple[str, ...] = (f"repository:{target.repository}:pull,push",)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"pps-mirror/{__version__}"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=15.0),
        )
        self._authorization = Authorization(self._session, self._base, self._credential)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.close()

    async def enter(self) -> None:
        """Find out whether there is a registry, and how it is asked, and get in. Raises MirrorError."""
        try:
            await self._retried("GET", self._base / "v2" / "", {200}, "is no registry")
        except _NoTls as error:
            if not self._may_be_plain:
                raise MirrorError(
                    f"{self._target.registry} does not speak TLS: if it is to be asked by plain http, say "
                    "--tls-verify=false"
                ) from error
            self._base = self._base.with_scheme("http")
            self._authorization = Authorization(self._session, self._base, self._credential)
            await self._retried("GET", self._base / "v2" / "", {200}, "is no registry")

    async def has(self, digest: str) -> bool:
        """Return whether the repository has a blob. Raises MirrorError."""
        status, _ = await self._retried("HEAD", self._repository / "blobs" / digest, {200, 404}, "has no blobs")
        return status == 200

    async def mount(self, digest: str, source: str) -> bool:
        """Return whether the blob could be taken from another repository of this registry. Raises MirrorError."""
        scope = f"repository:{source}:pull"
        if scope not in self._scopes:
            self._scopes += (scope,)
        url = (self._repository / "blobs" / "uploads" / "").with_query(mount=digest, **{"from": source})
        status, headers = await self._retried("POST", url, {201, 202, 401, 403, 404}, "takes no uploads")
        if status == 202:  # it began an upload in place of that
            await self._forget(headers)
        return status == 201

    async def upload(self, digest: str, size: int, read: Read, sent: Callable[[int], None]) -> None:
        """Send a blob. `sent` is called with how much of it is on its way. Raises MirrorError."""
        location = await self._begin()
        position, failures = 0, 0
        while True:
            before = position
            try:
                while position < size:
                    stop = size if self._chunk is None else min(size, position + self._chunk)
                    location = await self._send_part(location, position, stop, read, sent)
                    position = stop
                await self._finish(location, digest)
                return
            except _TooLarge:
                self._chunk = CHUNK
                location, position = await self._begin(), 0
            except _Again as again:
                failures = 0 if position > before else failures + 1
                if failures >= TRIES:
                    raise MirrorError(f"{self._target.registry} does not take {digest[:19]}: {again}") from None
                await asyncio.sleep(_pause(failures, again))
                try:
                    location, position = await self._resumed(location)
                except _Again:
                    location, position = await self._begin(), 0
                failures = 0 if position > before else failures
                sent(position)
                log.debug("%s of %s goes on at byte %d: %s", digest, self._target, position, again)

    async def put_manifest(self, reference: str, manifest: bytes, media_type: str) -> None:
        """Store a manifest under a tag or its digest. Raises MirrorError."""
        url = self._repository / "manifests" / reference
        await self._retried(
            "PUT", url, {200, 201}, "does not take the manifest", data=manifest, headers={"Content-Type": media_type}
        )

    # Internals

    @property
    def _repository(self) -> URL:
        return self._base / "v2" / self._target.repository

    async def _begin(self) -> URL:
        _, headers = await self._retried("POST", self._repository / "blobs" / "uploads" / "", {202}, "takes no uploads")
        return self._location(headers)

    async def _send_part(self, location: URL, start: int, stop: int, read: Read, sent: Callable[[int], None]) -> URL:
        """Send the bytes [start, stop) of a blob; return where the next ones go. Raises _TooLarge, _Again."""
        loop = asyncio.get_running_loop()

        async def pieces() -> AsyncIterator[bytes | memoryview]:
            at = start
            async with aclosing(read(start, stop)) as reading:
                async for piece in reading:
                    yield piece
                    at += len(piece)
                    sent(at)
                    limit.reschedule(loop.time() + STALLED)

        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(stop - start)}
        if start or self._chunk is not None:  # some registries know no ranges, so the usual request has none
            headers["Content-Range"] = f"{start}-{stop - 1}"
        limit = asyncio.timeout(STALLED)
        status, answered = await self._once("PATCH", location, data=pieces(), headers=headers, limit=limit)
        if status == 413 and self._chunk is None:
            raise _TooLarge
        if status not in {202, 204}:
            raise self._refused(status, "does not take a blob")
        return self._location(answered)

    async def _finish(self, location: URL, digest: str) -> None:
        status, _ = await self._once("PUT", location.update_query(digest=digest), headers={"Content-Length": "0"})
        if status not in {201, 204}:
            raise self._refused(status, "does not take a blob")

    async def _resumed(self, location: URL) -> tuple[URL, int]:
        """Ask how much of an upload is there. Raises _Again when it is lost."""
        status, headers = await self._once("GET", location)
        if status != 204:
            raise _Again(f"the upload is lost ({status})")
        _, _, last = headers.get("Range", "").removeprefix("bytes=").partition("-")
        # Of nothing registries say 0-0, as they do of one byte: then that byte is sent again by a new upload.
        if not last.isdecimal() or last == "0":
            raise _Again("nothing of it is there")
        return self._location(headers), int(last) + 1

    async def _forget(self, headers: Mapping[str, str]) -> None:
        try:
            await self._once("DELETE", self._location(headers))
        except (_Again, MirrorError) as error:
            log.debug("an upload to %s is left to expire: %s", self._target, error)

    def _location(self, headers: Mapping[str, str]) -> URL:
        try:
            return self._base.join(URL(headers["Location"], encoded=True))
        except (KeyError, ValueError):
            raise MirrorError(f"{self._target.registry} does not say where to upload to") from None

    async def _retried(
        self,
        method: str,
        url: URL,
        wanted: set[int],
        complaint: str,
        *,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Mapping[str, str]]:
        """Send a request until it is answered with one of the statuses that are `wanted`."""
        failures = 0
        while True:
            try:
                status, answered = await self._once(method, url, data=data, headers=headers)
                if status in wanted:
                    return status, answered
                raise self._refused(status, complaint)
            except _Again as again:
                failures += 1
                if failures >= TRIES:
                    raise MirrorError(f"{self._target.registry} {complaint}: {again}") from None
                await asyncio.sleep(_pause(failures, again))

    async def _once(
        self,
        method: str,
        url: URL,
        *,
        data: bytes | AsyncIterator[bytes | memoryview] | None = None,
        headers: Mapping[str, str] | None = None,
        limit: asyncio.Timeout | None = None,
    ) -> tuple[int, Mapping[str, str]]:
        """Send a request, and once more when the registry wants a credential, or another one. Raises _Again."""
        ours = url.origin() == self._base
        for first in (True, False):
            given = {**(headers or {}), **(self._authorization.headers if ours else {})}
            try:
                async with (
                    limit or asyncio.timeout(STALLED),
                    self._session.request(method, url, data=data, headers=given, allow_redirects=False) as response,
                ):
                    status, answered = response.status, response.headers
                    self._said = (await response.content.read(_MAX_ANSWER))[:300].decode("utf-8", "replace")
                if status == 401 and ours and first and (challenge := answered.get("WWW-Authenticate")):
                    await self._authorization.answer(challenge, self._scopes)
                    if isinstance(data, AsyncIterator):  # it is used up
                        raise _Again("the token has expired", after=0.0)
                    continue
            except aiohttp.ClientConnectorCertificateError as error:
                raise MirrorError(
                    f"the certificate of {error.host} is not trusted: name its authority by --ca-file"
                ) from error
            except aiohttp.ClientConnectorSSLError as error:
                raise _NoTls from error
            except _BROKEN as error:
                raise _Again(f"the line broke ({type(error).__name__})") from error
            break
        if status == 429 or status >= 500:
            after = answered.get("Retry-After", "")
            raise _Again(f"it answered {status}", float(after) if after.isdecimal() else None)
        return status, answered

    def _refused(self, status: int, complaint: str) -> MirrorError:
        if status in {401, 403}:
            return MirrorError(
                f"{self._target.registry} lets this user not push to {self._target.repository} ({status}): "
                "run docker login with one that may"
            )
        said = " ".join(self._said.encode("ascii", "backslashreplace").decode().split())
        return MirrorError(f"{self._target.registry} {complaint} ({status}{': ' + said if said else ''})")


def _pause(failures: int, again: _Again) -> float:
    if again.after is not None:
        return min(again.after, 60.0)
    return min(MOST_PAUSE, PAUSE * 2.0 ** max(0, failures - 1))
