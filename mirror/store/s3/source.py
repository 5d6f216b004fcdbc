"""Where a fill's bytes are to be had when replicas share a bucket: the image there, another replica's parts, upstream.

Upstream is asked only by the one that has the lease. When the bucket fails, or its server knows no conditional writes,
each replica asks for itself.
"""

import asyncio
import contextlib
import errno
import hashlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from mirror.common.log import event
from mirror.model.source import Broken, Changed, Elsewhere, Origin, Source, Stream
from mirror.store.s3 import parts
from mirror.store.s3.bucket import ObjectGone, Version
from mirror.store.s3.coordinator import Coordinator
from mirror.store.s3.errors import BucketFailed, NoRoom
from mirror.store.s3.lease import LeaseNote

log = logging.getLogger(__name__)

FOLLOW = 0.5
"""Seconds between two looks at how far another replica is."""

LOOK_AGAIN = 10.0
"""Seconds after which who fetches alone, because the bucket failed, looks whether it still does."""

FOLLOW_SECONDS = 15.0
"""Seconds without a byte from the bucket after which upstream is asked."""


@dataclass(frozen=True, slots=True)
class _Place:
    """What is to be read in the bucket, and the validator to go on with at upstream."""

    pieces: AsyncGenerator[bytes, None]
    origin: Origin
    validator: str | None


class BucketSource:
    """The `Source` of one image, before `upstream`."""

    def __init__(self, coordinator: Coordinator, upstream: Source) -> None:
        self._coordinator = coordinator
        self._upstream = upstream
        self._lease = coordinator.lease
        self._vanished: LeaseNote | None = None

    @asynccontextmanager
    async def open(self, offset: int, validator: str | None) -> AsyncIterator[Stream]:
        """See `Source.open`. Waits while another replica that fetches has not got beyond `offset`."""
        alone, first = False, b""
        try:
            place = await self._choose(offset, validator)
            if place is not None:  # what cannot be read is as good as not there
                first = await anext(place.pieces)
        except ObjectGone:
            raise Elsewhere from None
        except NoRoom as error:  # which has been said
            log.debug("%s is not brought into the bucket: %s", self._coordinator.metadata.hash, error)
            place = None
        except BucketFailed as error:
            if error.code is not None:
                self._coordinator.doubt()
            if self._coordinator.needed and self._coordinator.carries and offset == 0:  # nothing would be stored
                raise OSError(errno.EIO, str(error)) from error
            level = (
                logging.WARNING if self._coordinator.carries else logging.DEBUG
            )  # that the store failed was said then
            log.log(
                level,
                "%s is fetched without regard to other replicas: %s",
                self._coordinator.metadata.hash,
                error,
                extra=event("lease.skipped", image=self._coordinator.metadata.hash),
            )
            place, alone = None, True
        if place is not None:
            async with aclosing(place.pieces):
                yield Stream(offset, place.validator, _translated(first, place.pieces), place.origin)
            return
        self._coordinator.reads_elsewhere()
        async with self._upstream.open(offset, validator) as stream:
            pieces = self._while_alone(stream.pieces) if alone else self._while_ours(stream.pieces)
            yield Stream(stream.offset, stream.validator, pieces)

    async def _choose(self, offset: int, validator: str | None) -> _Place | None:
        """Give what is to be read in the bucket; None when upstream is to be asked. Raises BucketFailed, Changed."""
        coordinator = self._coordinator
        while not coordinator.fetches:
            await coordinator.give_way()
            if version := await coordinator.versions.usable(coordinator.bucket, coordinator.metadata):
                return _Place(self._object(offset, version), Origin.STORE, validator)
            if not (await coordinator.abilities()).conditions:
                if coordinator.carries:
                    await coordinator.take(None)
                return None
            held = await self._lease.look()
            note = held.note if held is not None else None
            if note is not None and note.failed is not None and coordinator.has_read(note.fill):
                raise Changed(f"another replica found that {note.failed}", ours_is_wrong=True)
            if note is not None and note.failed is None and note.position > offset and note != self._vanished:
                # Also when its holder will not come back: what is there is read first, then somebody takes over.
                return _Place(self._follow(offset, note), Origin.REPLICA, note.validator or validator)
            if held is not None and not held.free:
                await asyncio.sleep(FOLLOW)
            elif not coordinator.carries:
                return None
            elif await coordinator.take(held):
                log.info(
                    "%s is fetched here for all replicas, from byte %d",
                    coordinator.metadata.hash,
                    offset,
                    extra=event("lease.taken", image=coordinator.metadata.hash),
                )
        return None

    async def _while_ours(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in pieces:
            yield piece
            if self._coordinator.superseded:
                raise Elsewhere

    async def _while_alone(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Until the bucket is well again: then it is chosen anew, lest every replica fetches the rest by itself."""
        clock = asyncio.get_running_loop().time
        again = clock() + LOOK_AGAIN
        async for piece in pieces:
            yield piece
            if clock() >= again:
                with contextlib.suppress(BucketFailed):
                    await self._lease.look()
                    raise Elsewhere
                again = clock() + LOOK_AGAIN

    async def _object(self, offset: int, version: Version) -> AsyncGenerator[bytes, None]:
        coordinator = self._coordinator
        coordinator.reads_object(offset, version)
        name = f"images/{coordinator.metadata.hash}"
        async for piece in coordinator.bucket.read(
            name, offset, version.size, version.etag, patience=FOLLOW_SECONDS, eager=True
        ):
            yield piece

    async def _follow(self, offset: int, note: LeaseNote | None) -> AsyncGenerator[bytes, None]:
        """Read the parts as they land, until whoever writes them is done or gone."""
        coordinator = self._coordinator
        coordinator.reads_elsewhere()
        steps = _Steps()
        while note is not None:
            try:
                while offset < min(note.position, coordinator.metadata.size):  # whatever a lease may say
                    async for piece in self._part(offset, note, steps):
                        offset += len(piece)
                        yield piece
            except ObjectGone:
                self._vanished = note
                raise
            if offset >= coordinator.metadata.size:
                return
            await asyncio.sleep(FOLLOW)
            held = await self._lease.look()
            note = held.note if held is not None and not held.free else None
        raise Elsewhere

    async def _part(self, offset: int, note: LeaseNote, steps: "_Steps") -> AsyncGenerator[bytes, None]:
        """Read on in the part at `offset`, as far as it is there."""
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
        if first > 0:  # read in steps, as it grew: is what it is now what we have read?
            now = hashlib.sha256()
            etags.clear()
            async for piece in coordinator.bucket.read(name, 0, last, seen=etags.append, patience=FOLLOW_SECONDS):
                now.update(piece)
            if now.digest() != steps.digest.digest():
                raise Changed(f"part {number} in the bucket changed while it was read", ours_is_wrong=True)
        coordinator.has_read_whole(number, fill, etags[0])


class _Steps:
    """The digest of what was read of one part so far."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.from_beginning = False
        self._number = -1

    def go_on(self, number: int, first: int) -> None:
        """Begin part `number`, or go on with it from its byte `first`."""
        if number != self._number:
            self.digest, self.from_beginning = hashlib.sha256(), first == 0
        self._number = number


async def _translated(first: bytes, pieces: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    """What goes wrong in the bucket, as a fill understands it."""
    try:
        yield first
        async for piece in pieces:
            yield piece
    except ObjectGone:
        raise Elsewhere from None
    except BucketFailed as error:
        raise Broken(str(error)) from error
