"""Reads a fill's bytes from where its coordinator says: the image in the bucket, another fill's parts, or upstream."""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from mirror.model.source import Broken, Changed, Elsewhere, Origin, Source, Stream
from mirror.store.s3 import parts
from mirror.store.s3.coordinator import Coordinator
from mirror.store.s3.errors import BucketFailed
from mirror.store.s3.lease import LeaseNote
from mirror.store.s3.objects import ObjectGone, Version
from mirror.store.s3.provenance import WrittenPart

FOLLOW_SECONDS = 15.0
"""Seconds without a byte from the bucket after which upstream is asked."""


@dataclass(frozen=True, slots=True)
class _Place:
    """What is to be read in the bucket, and the validator with which to continue at upstream."""

    pieces: AsyncGenerator[bytes | memoryview, None]
    origin: Origin
    validator: str | None


class BucketSource:
    """The `Source` of one image that tries the bucket before `upstream`."""

    def __init__(self, coordinator: Coordinator, upstream: Source) -> None:
        self._coordinator = coordinator
        self._upstream = upstream

    @asynccontextmanager
    async def open(self, offset: int, validator: str | None) -> AsyncIterator[Stream]:
        """See `Source.open`. Waits while another mirror that fetches has not got beyond `offset`."""
        first: bytes | memoryview = b""
        try:
            place = await self._in_bucket(offset, validator)
            if place is not None:  # what cannot be read is as good as absent
                first = await anext(place.pieces)
        except ObjectGone:
            raise Elsewhere from None
        except BucketFailed as error:
            self._coordinator.bucket_failed(error, offset)
            place = None
        if place is not None:
            async with aclosing(place.pieces):
                yield Stream(offset, place.validator, _translated(first, place.pieces), place.origin)
            return
        async with self._upstream.open(offset, validator) as stream:
            yield Stream(stream.offset, stream.validator, self._from_upstream(stream.pieces))

    async def _in_bucket(self, offset: int, validator: str | None) -> _Place | None:
        """Return what is to be read in the bucket; None when upstream is to be asked. Raises BucketFailed, Changed."""
        match await self._coordinator.choose(offset):
            case None:
                return None
            case Version() as version:
                return _Place(self._object(offset, version), Origin.STORE, validator)
            case LeaseNote() as note:
                return _Place(self._follow(offset, note), Origin.REPLICA, note.validator or validator)

    async def _from_upstream(
        self, pieces: AsyncIterator[bytes | memoryview]
    ) -> AsyncGenerator[bytes | memoryview, None]:
        async for piece in pieces:
            yield piece
            if await self._coordinator.upstream_is_outdated():
                raise Elsewhere

    async def _object(self, offset: int, version: Version) -> AsyncGenerator[bytes, None]:
        coordinator = self._coordinator
        name = f"images/{coordinator.metadata.hash}"
        async for piece in coordinator.bucket.read(
            name, offset, version.size, version.etag, patience=FOLLOW_SECONDS, eager=True
        ):
            yield piece

    async def _follow(self, offset: int, note: LeaseNote | None) -> AsyncGenerator[bytes, None]:
        """Read the parts as they land, until the fill that writes them is done or gone."""
        coordinator = self._coordinator
        steps = _Steps()
        while note is not None:
            try:
                while offset < min(note.position, coordinator.metadata.size):  # however far the lease claims to be
                    async for piece in self._part(offset, note, steps):
                        offset += len(piece)
                        yield piece
            except ObjectGone:
                coordinator.parts_vanished(note)
                raise
            if offset >= coordinator.metadata.size:
                return
            note = await coordinator.follow()
        raise Elsewhere

    async def _part(self, offset: int, note: LeaseNote, steps: "_Steps") -> AsyncGenerator[bytes, None]:
        """Continue reading the part at `offset`, as far as it is there."""
        coordinator = self._coordinator
        size = note.part_size
        number, first = divmod(offset, size)
        whole = min(size, coordinator.metadata.size - number * size)
        last = min(whole, note.position - number * size)
        fill = note.owners[number]
        name = parts.name(coordinator.metadata.hash, fill, number)
        coordinator.reads_part(number, fill)
        etags: list[str] = []
        steps.go_on(number, first)
        async for piece in coordinator.bucket.read(name, first, last, seen=etags.append, patience=FOLLOW_SECONDS):
            steps.digest.update(piece)
            yield piece
        if last < whole or size != parts.part_size(coordinator.metadata.size) or not steps.from_beginning:
            return
        if first > 0:  # it was read in steps, as it grew: are its bytes now still those that we have read?
            now = hashlib.sha256()
            etags.clear()
            async for piece in coordinator.bucket.read(name, 0, last, seen=etags.append, patience=FOLLOW_SECONDS):
                now.update(piece)
            if now.digest() != steps.digest.digest():
                raise Changed(f"part {number} in the bucket changed while it was read", ours_is_wrong=True)
        coordinator.has_read_whole(number, WrittenPart(fill, etags[0]))


class _Steps:
    """The digest of what was read so far of one part."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.from_beginning = False
        self._number = -1

    def go_on(self, number: int, first: int) -> None:
        """Begin part `number`, or continue it from its byte `first`."""
        if number != self._number:
            self.digest, self.from_beginning = hashlib.sha256(), first == 0
        self._number = number


async def _translated(
    first: bytes | memoryview, pieces: AsyncGenerator[bytes | memoryview, None]
) -> AsyncIterator[bytes | memoryview]:
    """Turn failures of the bucket into errors that a fill understands."""
    try:
        yield first
        async for piece in pieces:
            yield piece
    except ObjectGone:
        raise Elsewhere from None
    except BucketFailed as error:
        raise Broken(str(error)) from error
