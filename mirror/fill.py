"""One fill: a source, a journal, any number of readers, one verdict.

A fill belongs to the library, never to a request: readers come and go, and nothing they do moves it. Readers take bytes
from the journal only, up to `size - holdback` until the image is verified, durable and named; then to the end. When the
source breaks the fill goes on from where it stopped; when the bytes are wrong every reader learns it, once.
"""

import asyncio
import hashlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from enum import StrEnum

from mirror.errors import BadUpstream, MirrorError, Unavailable
from mirror.metadata import ImageMetadata
from mirror.store.appender import Appender
from mirror.store.base import Corrupt, Partial, StoreUnavailable
from mirror.store.shared_file import SharedFile
from mirror.upstream.source import Broken, Changed, Ended, Source

log = logging.getLogger(__name__)

BACKOFF = (0.25, 20.0)
"""Seconds before the first retry and at most; clients give up after 60 s without a byte."""


class State(StrEnum):
    """Where a fill is. It ends as PUBLISHED or FAILED, once."""

    RECEIVING = "receiving"
    RETRYING = "retrying"
    VERIFYING = "verifying"
    PUBLISHED = "published"
    FAILED = "failed"


class Reason(StrEnum):
    """Why a fill failed."""

    WRONG_BYTES = "wrong bytes"
    CHANGED = "changed"
    REFUSED = "refused"
    GAVE_UP = "gave up"
    STORE = "store"
    MISTAKE = "a mistake of the mirror"
    STOPPED = "stopped"


class FillFailed(Exception):
    """The verdict against a fill. `error` is what a client that has no byte yet is told."""

    def __init__(self, reason: Reason, error: MirrorError) -> None:
        super().__init__(f"{reason}: {error}")
        self.reason = reason
        self.error = error


class Fill:
    """The transfer of one image into its `journal`, and the `Body` of those who read along.

    `holdback` in bytes; `retry` seconds without progress after which it gives up. `resumes` counts how often the source
    was opened anew.
    """

    def __init__(
        self,
        metadata: ImageMetadata,
        source: Source,
        journal: Partial,
        *,
        holdback: int,
        retry: float,
    ) -> None:
        self.metadata = metadata
        self.state = State.RECEIVING
        self.failure: FillFailed | None = None
        self.resumes = 0
        self._source = source
        self._journal = journal
        self._holdback = holdback
        self._retry = retry
        self._answered = False
        self._waiting: dict[asyncio.Future[None], int] = {}

    @property
    def file(self) -> SharedFile:
        """See `Body.file`."""
        return self._journal.file

    @property
    def position(self) -> int:
        """Bytes received, written and digested."""
        return self._journal.position

    async def available(self, offset: int) -> int:
        """See `Body.available`."""
        while (limit := self._limit()) <= offset:
            await self._wait(offset)
        return limit

    async def answered(self) -> None:
        """Wait until bytes are clearly coming: upstream answered, or a journal was taken up. Raises FillFailed."""
        while not self._answered:
            self._limit()
            await self._wait(-1)

    async def run(self) -> None:
        """Fill until the verdict. Returns when it is there; raises nothing but CancelledError."""
        try:
            await self._recover()
            await self._receive_all()
            self._enter(State.VERIFYING)
            await self._journal.publish()
        except asyncio.CancelledError:
            self._fail(Reason.STOPPED, Unavailable("the mirror is stopping"))
            raise
        except FillFailed as failure:
            self._fail(failure.reason, failure.error)
        except MirrorError as error:
            self._fail(Reason.REFUSED, error)
        except Changed as change:
            # What we hold may still be right, and the hash decides; unless upstream has just shown that it is not.
            await self._put_away(self._journal.discard if change.ours_is_wrong else self._forget_validator)
            self._fail(Reason.CHANGED, BadUpstream(f"{change}; ask again", retry_after=1))
        except Corrupt as difference:
            await self._put_away(self._journal.quarantine)
            self._fail(Reason.WRONG_BYTES, BadUpstream(f"upstream sent wrong bytes: {difference}"))
        except OSError as error:
            self._fail(Reason.STORE, StoreUnavailable(f"the mirror's store fails: {error.strerror or type(error)}"))
        except Exception:
            log.exception("fill of %s failed at byte %d", self.metadata.hash, self.position)
            self._fail(
                Reason.MISTAKE, MirrorError("the mirror made a mistake while fetching the image; its log says more")
            )
        else:
            self._enter(State.PUBLISHED)
        finally:
            await self._journal.close()

    def _limit(self) -> int:
        """How far readers may be sent now. Raises the verdict when it went against the fill."""
        if self.failure is not None:
            raise self.failure.with_traceback(None)  # or it would grow with every reader
        if self.state is State.PUBLISHED:
            return self.metadata.size
        return max(0, min(self.position, self.metadata.size - self._holdback))

    async def _wait(self, offset: int) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = offset
        try:
            await waiter
        finally:
            self._waiting.pop(waiter, None)

    def _moved(self) -> None:
        """Wake the readers whose byte is there, and all of them on a verdict."""
        limit = self.metadata.size if self.failure is not None else self._limit()
        for waiter in [waiter for waiter, offset in self._waiting.items() if offset < limit]:
            del self._waiting[waiter]
            if not waiter.done():
                waiter.set_result(None)

    def _enter(self, state: State) -> None:
        if state is not self.state:
            log.debug("fill of %s: %s -> %s at byte %d", self.metadata.hash, self.state, state, self.position)
            self.state = state
        self._moved()

    def _fail(self, reason: Reason, error: MirrorError) -> None:
        self.failure = FillFailed(reason, error)
        self._enter(State.FAILED)

    async def _recover(self) -> None:
        more = True
        while more:
            more = await self._journal.recover()
            self._answered = self.position > 0
            self._moved()
        if self.position:
            log.info("fill of %s goes on from byte %d", self.metadata.hash, self.position)

    async def _receive_all(self) -> None:
        clock = asyncio.get_running_loop().time
        progressed, failures, definitive = clock(), 0, 0
        while (before := self.position) < self.metadata.size:
            try:
                await self._receive()
                raise Ended("the transfer ends before the image is whole", definitive_after=2)
            except Broken as cut:
                if self.position >= self.metadata.size:
                    return
                if self.position > before:
                    progressed, failures, definitive = clock(), 0, 0
                failures += 1
                definitive += cut.definitive_after is not None
                if cut.definitive_after is not None and definitive >= cut.definitive_after:
                    reason = Reason.WRONG_BYTES if isinstance(cut, Ended) else Reason.REFUSED
                    raise FillFailed(reason, BadUpstream(f"upstream's image cannot be had: {cut}")) from cut
                delay = _backoff(failures, cut.retry_after)
                if clock() + delay - progressed > self._retry:
                    raise FillFailed(Reason.GAVE_UP, Unavailable(f"upstream keeps failing: {cut}")) from cut
                self._enter(State.RETRYING)
                log.warning("fill of %s at byte %d: %s; retry in %.1f s", self.metadata.hash, self.position, cut, delay)
                await asyncio.sleep(delay)
                self.resumes += 1
                self._enter(State.RECEIVING)

    async def _receive(self) -> None:
        """Open the source where the journal ends and append what it gives, until it ends. Raises Broken and others."""
        async with self._source.open(self.position, self._journal.validator) as stream:
            self._answered = True
            self._moved()
            restarted = stream.offset < self.position
            pieces = _skip(stream.pieces, self.position, self._journal.digest()) if restarted else stream.pieces
            received = self.position
            appender = Appender(self._journal, stream.validator, self._moved)
            try:
                async for piece in pieces:
                    received += len(piece)
                    if received > self.metadata.size:
                        raise Corrupt(f"{self.metadata.size} bytes", "more")
                    await appender.put(piece)
            except Broken as cut:
                if restarted and received == self.position:  # all that work for no further byte: not for long
                    raise Ended(str(cut), definitive_after=4) from cut
                raise
            finally:
                await appender.finish()

    async def _forget_validator(self) -> None:
        if self.position:
            await self._journal.remember(None)

    async def _put_away(self, how: Callable[[], Awaitable[None]]) -> None:
        try:
            await how()
        except OSError as error:
            log.warning("what was received of %s cannot be put away: %s", self.metadata.hash, error)


async def _skip(pieces: AsyncIterator[bytes], count: int, digest: str) -> AsyncIterator[bytes]:
    """Pass over the first `count` bytes, which must have that SHA-256. Raises Changed when they have another."""
    skipped = hashlib.sha256()
    async for piece in pieces:
        head, tail = piece[:count], piece[count:]
        if head:
            skipped.update(head)
            count -= len(head)
            if not count and skipped.hexdigest() != digest:
                raise Changed("upstream starts over with other bytes than before", ours_is_wrong=True)
        if tail:
            yield tail


def _backoff(failures: int, retry_after: float | None) -> float:
    """Seconds to wait before the next try: exponential with full jitter, at least what the source asked for."""
    first, most = BACKOFF
    delay = min(most, first * 2.0 ** min(failures - 1, 16)) * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret
    return min(most, max(delay, retry_after or 0.0))
