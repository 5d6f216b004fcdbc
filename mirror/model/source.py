"""The sources that a fill reads from: a stream of bytes from an offset, or the reason why there is none."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from mirror.model.caller import Caller
from mirror.model.errors import NotFound

if TYPE_CHECKING:
    from prometheus_client import Counter

UNVOUCHED = '"-"'
"""The validator of bytes that came with neither an ETag nor the right length. No object has it.

Nothing is appended to such bytes before the source was seen to begin with the same ones."""


class Broken(Exception):
    """The source failed in a way that may pass: try again.

    `retry_after` is what it asked for, in seconds. `definitive_after` limits how often in a row this may happen
    before it is taken for final; None means as long as `fill_retry` allows.
    """

    def __init__(self, reason: str, *, retry_after: float | None = None, definitive_after: int | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.definitive_after = definitive_after


class Ended(Broken):
    """The source ended before the image did; it is asked once more, since a proxy may have cut it off cleanly."""

    def __init__(self, reason: str, *, definitive_after: int) -> None:
        super().__init__(reason, definitive_after=definitive_after)


class Changed(Exception):
    """The source now has another object than the one whose first bytes we hold.

    `ours_is_wrong` when it was seen that they are not the first bytes of the object that the source has.
    """

    def __init__(self, reason: str, *, ours_is_wrong: bool = False) -> None:
        super().__init__(reason)
        self.ours_is_wrong = ours_is_wrong


class Elsewhere(Exception):
    """The next bytes come from another place: open the source again, at once. Nothing went wrong."""


class Origin(Enum):
    """Where bytes come from, as clients are told."""

    UPSTREAM = "upstream"
    REPLICA = "another replica's fill"
    STORE = "the store"


@dataclass(frozen=True, slots=True)
class Stream:
    """Bytes of the image from `offset` on: the one asked for, or 0 when the source cannot begin there.

    `validator` is the object's strong ETag, for resuming; None when it has none; UNVOUCHED when no length told either
    that it may be the image. `pieces` ends at the end of the transfer as the protocol declares it, and raises Broken
    when the transfer is cut, or Elsewhere. A piece may be kept and sliced for as long as it is needed.
    """

    offset: int
    validator: str | None
    pieces: AsyncIterator[bytes | memoryview]
    origin: Origin = Origin.UPSTREAM


class Source(Protocol):
    """Where the bytes of one image come from."""

    def open(self, offset: int, validator: str | None) -> AbstractAsyncContextManager[Stream]:
        """Ask for the bytes from `offset` on, of the object that `validator` names.

        Raises Broken (try again), Changed (another object), or a MirrorError (final: what clients are told).
        """


class CountingSource:
    """A `Source` whose bytes are counted by where they came from."""

    def __init__(self, source: Source, counter: "Counter") -> None:
        self._source = source
        self._counter = counter

    @asynccontextmanager
    async def open(self, offset: int, validator: str | None) -> AsyncIterator[Stream]:
        """See `Source.open`."""
        async with self._source.open(offset, validator) as stream:
            yield replace(stream, pieces=self._counting(stream))

    async def _counting(self, stream: Stream) -> AsyncIterator[bytes | memoryview]:
        counter = self._counter.labels(stream.origin.name.lower())
        async for piece in stream.pieces:
            counter.inc(len(piece))
            yield piece


class NoSource:
    """The `Source` of a mirror without upstream: it has no bytes beyond those that are stored."""

    def open(self, offset: int, validator: str | None) -> AbstractAsyncContextManager[Stream]:
        """See `Source.open`."""
        raise NotFound("what the mirror has of this image is not whole, and there is no upstream to ask for the rest")

    def offer(self, caller: Caller) -> None:
        """Do nothing: there is no upstream to offer a credential to."""
