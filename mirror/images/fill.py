"""A fill reads a source, writes a journal, serves any number of readers, and ends with one verdict.

A fill belongs to the library, never to a request: readers come and go without affecting it. Readers take bytes from the
journal only, up to `size - holdback` until the image is verified, durable and named; then to the end. When the source
breaks, the fill resumes where it stopped. When the journal breaks, it continues in another one that stores nothing.
When all is verified but the image cannot get its name, readers still get the verified bytes. When the bytes are wrong,
every reader is told, once.
"""

import asyncio
import errno
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable

from mirror.common.log import event
from mirror.common.units import format_size
from mirror.images.fill_outcome import FillFailed, Reason, State, verdict_on
from mirror.images.journal_writer import write
from mirror.images.retry import RetryBudget
from mirror.model.errors import BadUpstream, Unavailable
from mirror.model.metadata import ImageMetadata
from mirror.model.source import UNVOUCHED, Broken, Changed, Elsewhere, Ended, Origin, Source
from mirror.store.base import Corrupt, Partial, StoreUnavailable, Unnamed
from mirror.store.memory import MemoryWindow
from mirror.store.shared_file import SharedFile

log = logging.getLogger(__name__)

OUT_OF_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors of a journal that leave its bytes as good as they were; after any other error they are not read any more."""

Rescue = Callable[["Fill", OSError], Awaitable[Partial]]
"""Returns the journal to continue with when a fill's journal fails, maybe the same one.

Raises StoreUnavailable when there is none. After Unnamed there is nothing more to write: returning the same journal
means that clients are served without a stored image.
"""


async def no_rescue(fill: "Fill", error: OSError) -> Partial:
    """Give up: there is no other journal."""
    raise StoreUnavailable(f"the mirror's store fails: {error.strerror or type(error).__name__}") from error


class Fill:
    """The transfer of one image into its `journal`, and the `Body` of the clients that read along.

    While another process has the journal, the fill follows that process. `holdback` is in bytes; `retry` is how many
    seconds without progress it takes to give up. `resumes` counts how often the source was opened again, and `resumed`
    is called each time. `origin` is where bytes came from last; None until the source has given any. `clients` counts
    the downloads that are reading along. `nameless` says that the image cannot get its name: until the verdict that is
    a guess.
    """

    def __init__(
        self,
        metadata: ImageMetadata,
        source: Source,
        journal: Partial,
        *,
        holdback: int,
        retry: float,
        rescue: Rescue = no_rescue,
        resumed: Callable[[], None] = lambda: None,
        nameless: bool = False,
    ) -> None:
        self.metadata = metadata
        self.state = State.RECEIVING if journal.ours else State.FOLLOWING
        self.failure: FillFailed | None = None
        self.resumes = 0
        self.clients = 0
        self.origin: Origin | None = None
        self.nameless = nameless
        self._source = source
        self._journal = journal
        self._holdback = holdback
        self._retry = retry
        self._rescue = rescue
        self._resumed = resumed
        self._rescued_at = -1
        self._file = journal.file
        self._in_file = metadata.size if journal.file else 0
        self._answered = False
        self._ended_neatly = False
        self._waiting: dict[asyncio.Future[None], int] = {}

    @property
    def position(self) -> int:
        """Bytes received, written and digested."""
        return self._journal.position

    @property
    def journal(self) -> Partial:
        """Where the bytes are now."""
        return self._journal

    @property
    def passes_through(self) -> bool:
        """Whether clients get the image without its being stored, as far as that is known."""
        return self.nameless or isinstance(self._journal, MemoryWindow)

    def reaches(self, offset: int) -> bool:
        """Return whether a reader from `offset` can still read along: all that it wants is there or still to come."""
        return not isinstance(self._journal, MemoryWindow) or max(offset, self._in_file) >= self._journal.start

    async def available(self, offset: int) -> int:
        """See `Body.available`."""
        while self._limit() <= offset < self._in_file:
            await self._wait(offset)
        return min(self._limit(), self._in_file)

    def file_at(self, offset: int) -> SharedFile | None:
        """See `Body.file_at`."""
        return self._file if offset < self._in_file else None

    async def pieces(self, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        """See `Body.pieces`."""
        position = start
        while position < stop:
            journal = self._journal
            async with journal.reader(position) as reader:
                while position < stop and (journal is self._journal or position < journal.position):
                    if (limit := self._limit()) <= position:
                        await self._wait(position)
                        continue
                    own = limit if journal is self._journal else min(limit, journal.position)
                    piece = await reader.take(min(stop, own))
                    position += len(piece)
                    yield piece
                    del piece  # 200 waiting readers would hold 200 of them

    async def answered(self) -> None:
        """Wait until it is clear that bytes will come: upstream answered, or a journal was resumed.

        Raises FillFailed.
        """
        while not self._answered and self.state is not State.PUBLISHED:
            self._limit()
            await self._wait(-1)

    async def ended(self) -> None:
        """Wait for the verdict. Raises FillFailed."""
        while self.state is not State.PUBLISHED:
            self._limit()
            await self._wait(self.metadata.size - 1)

    async def run(self) -> None:
        """Fill until there is a verdict. Raises nothing but CancelledError."""
        verdict: FillFailed | None = FillFailed(Reason.STOPPED, Unavailable("the mirror is stopping"))
        try:
            while not await self._went_well():
                pass
        except Exception as error:
            if isinstance(error, Corrupt):
                await self._put_away(self._journal.quarantine)
            elif self._journal.validator == UNVOUCHED or (isinstance(error, Changed) and error.ours_is_wrong):
                await self._put_away(self._journal.discard)
            elif isinstance(error, Changed):  # the bytes that we have may still be right, and the hash decides
                await self._put_away(self._doubt_validator)
            verdict = verdict_on(error)
        else:
            verdict = None
        finally:
            try:
                await self._journal.close()
            finally:  # last of all, so that a client that hears of it and asks again can begin a new fill
                if verdict is None:
                    self._enter(State.PUBLISHED)
                else:
                    self._fail(verdict)

    async def _went_well(self) -> bool:
        """Bring the image into the journal; return False when that failed and another journal can continue."""
        try:
            await self._recover()
            if not self._journal.published:
                await self._receive_all()
                self._enter(State.VERIFYING)
                await self._publish()
            else:
                self.nameless = False
        except OSError as error:
            await self._go_on(error)
            return False
        return True

    async def _publish(self) -> None:
        """Verify the image and give it its name.

        Raises Corrupt, OSError; StoreUnavailable when only a name is missing.
        """
        try:
            await self._journal.publish()
        except Unnamed as error:
            await self._rescue(self, error)
            self.nameless = True
        else:
            self.nameless = False

    async def _go_on(self, error: OSError) -> None:
        """Continue with the next journal. Raises StoreUnavailable when there is none."""
        # bytes may be lost; or the last rescue did not help
        if self.state is State.VERIFYING or self._rescued_at == self.position:
            await no_rescue(self, error)
        self._rescued_at = self.position
        broken, self._journal = self._journal, await self._rescue(self, error)
        if self._journal is not broken:
            self._in_file = min(self._in_file, self.position) if error.errno in OUT_OF_SPACE else 0
            self._moved(everybody=True)
            await broken.close()

    def _limit(self) -> int:
        """Return how far readers may be sent now. Raises the verdict if the fill failed."""
        if self.failure is not None:
            raise self.failure.anew()
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

    def _moved(self, *, everybody: bool = False) -> None:
        """Wake the readers whose byte is there, or all: after a verdict, or when they have to read elsewhere."""
        limit = self.metadata.size if everybody or self.failure is not None else self._limit()
        for waiter in [waiter for waiter, offset in self._waiting.items() if offset < limit]:
            del self._waiting[waiter]
            if not waiter.done():
                waiter.set_result(None)

    def _enter(self, state: State) -> None:
        if state is not self.state:
            log.debug("fill of %s: %s -> %s at byte %d", self.metadata.hash, self.state, state, self.position)
            self.state = state
        self._moved()

    def _fail(self, verdict: FillFailed) -> None:
        self.failure = verdict.anew()  # its traceback would keep us, and our journal, in memory
        self._file = None
        self._enter(State.FAILED)

    async def _recover(self) -> None:
        sealed = self._journal.ours and self.position == self.metadata.size  # only its name is missing: what clients
        self._answered = self.position > 0 and not sealed  # are told depends on whether it gets that now
        more = True
        while more:
            more = await self._journal.recover()
            self._answered |= self.position > 0 and not sealed
            self._enter(State.RECEIVING if self._journal.ours else State.FOLLOWING)
        if self.position and self._journal.ours and not sealed:
            going_on = event("fill.went_on", image=self.metadata.hash, position=self.position)
            log.info("fill of %s goes on at %s", self.metadata.hash, format_size(self.position), extra=going_on)

    async def _receive_all(self) -> None:
        patience = RetryBudget(self._retry, asyncio.get_running_loop().time)
        while (before := self.position) < self.metadata.size:
            try:
                await self._receive()
                raise Ended("the transfer ends before the image is whole", definitive_after=2)
            except Elsewhere:
                continue
            except Broken as cut:
                if self.position >= self.metadata.size:
                    return
                if self.position > before:
                    patience.renew()
                    self._ended_neatly = isinstance(cut, Ended)
                patience.count(cut)
                if patience.hopeless:
                    if isinstance(cut, Ended) and self._journal.validator == UNVOUCHED:  # most likely a web page
                        raise Changed("upstream gave something short in the image's place", ours_is_wrong=True) from cut
                    reason = Reason.WRONG_BYTES if isinstance(cut, Ended) else Reason.REFUSED
                    raise FillFailed(reason, BadUpstream(f"upstream's image cannot be had: {cut}")) from cut
                if patience.spent:
                    raise FillFailed(Reason.GAVE_UP, Unavailable(f"upstream keeps failing: {cut}")) from cut
                self._enter(State.RETRYING)
                log.warning(
                    "fill of %s was cut at %s of %s: %s; retry in %.1f s",
                    self.metadata.hash,
                    format_size(self.position),
                    format_size(self.metadata.size),
                    cut,
                    patience.delay,
                    extra=event("fill.cut", image=self.metadata.hash, position=self.position),
                )
                await asyncio.sleep(patience.delay)
                self.resumes += 1
                self._resumed()
                self._enter(State.RECEIVING)

    async def _receive(self) -> None:
        """Open the source where the journal ends and append what it gives until it ends. Raises Broken and others."""
        vouched = self._journal.validator != UNVOUCHED
        begin, validator = (self.position, self._journal.validator) if vouched else (0, None)
        async with self._source.open(begin, validator) as stream:
            self._answered = True
            self.origin = stream.origin
            self._moved()
            await write(stream, self._journal, self.metadata.size, self._moved)

    async def _doubt_validator(self) -> None:
        """Make the next fill distrust the validator, and, if the last bytes may be of a short page, restart."""
        if self.position:
            await self._journal.remember(UNVOUCHED if self._ended_neatly else None)

    async def _put_away(self, how: Callable[[], Awaitable[None]]) -> None:
        try:
            await how()
        except OSError as error:
            stuck = event("partial.stuck", image=self.metadata.hash)
            log.warning("what was received of %s cannot be put away: %s", self.metadata.hash, error, extra=stuck)
