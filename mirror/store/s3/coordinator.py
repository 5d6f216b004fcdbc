"""Coordinates one fill with the bucket: who fetches, where bytes are read from, and what is uploaded.

It stands between the fill's source, which decides where bytes come from, and its journal, which holds them.
"""

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from mirror.common.log import event
from mirror.model.metadata import ImageMetadata
from mirror.store.s3.bucket import Bucket, ObjectGone, Version
from mirror.store.s3.capabilities import Capabilities
from mirror.store.s3.errors import BucketFailed, NoRoom
from mirror.store.s3.lease import Held, Lease
from mirror.store.s3.lease_holders import Processes
from mirror.store.s3.upload import Upload
from mirror.store.s3.verified_versions import Versions

SETTLE = 1.0
"""Seconds between two looks whether another replica has finished."""

log = logging.getLogger(__name__)


class Readable(Protocol):
    """A journal, as far as an upload needs it."""

    @property
    def position(self) -> int:
        """See `mirror.store.base.Partial`."""

    @property
    def validator(self) -> str | None:
        """See `mirror.store.base.Partial`."""

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Read bytes that are there; how many. Raises OSError when they are not any more."""


class Coordinator:
    """Coordinates one fill with the bucket that replicas share. `upload` is ours while we fetch it for all replicas.

    `owners` are the fills that wrote the parts we have read, whole or not, by number; the `lease` is to look at only.
    `keep` takes a task that outlives the fill, and ends it when the mirror stops; `doubt` says that the server may be
    able to do less than it was. The bucket is `needed` when the fill's bytes have no other place.
    """

    def __init__(
        self,
        bucket: Bucket,
        metadata: ImageMetadata,
        versions: Versions,
        abilities: Callable[[], Awaitable[Capabilities]],
        journal: Readable | None,
        keep: Callable[[asyncio.Task[bool]], None],
        doubt: Callable[[], None],
        processes: Processes,
        reserve: Callable[[ImageMetadata], Awaitable[None]],
    ) -> None:
        self.bucket = bucket
        self.metadata = metadata
        self.versions = versions
        self.abilities = abilities
        self.upload: Upload | None = None
        self.owners: dict[int, str] = {}
        self.needed = False
        self.doubt = doubt
        self.lease = Lease(bucket, metadata.hash, processes)
        self._journal = journal
        self._keep = keep
        self._processes = processes
        self._reserve = reserve
        self._adopted: dict[int, tuple[str, str]] = {}
        self._object: Version | None = None
        self._settling: asyncio.Task[bool] | None = None

    @property
    def carries(self) -> bool:
        """Whether what this fill receives can be brought into the bucket."""
        return self._journal is not None

    @property
    def reading(self) -> bool:
        """Whether it reads the image's object."""
        return self._object is not None

    @property
    def fetches(self) -> bool:
        """Whether it is this fill that asks upstream, for all replicas."""
        return self.upload is not None and not self.upload.lost

    @property
    def superseded(self) -> bool:
        """Whether it was, and another one does now."""
        return self.upload is not None and self.upload.lost

    async def give_way(self) -> None:
        """Stop the upload. What it wrote may be of use to others, and to our own readers."""
        if self.upload is not None:
            upload, self.upload = self.upload, None
            self._adopted |= upload.landed_parts
            await upload.abandon()

    async def take(self, held: Held | None) -> bool:
        """Become the one who fetches, and brings what arrives into the bucket. Raises NoRoom, BucketFailed."""
        assert self._journal is not None  # noqa: S101 - it `carries`
        upload = Upload(self.bucket, self.metadata, await self.abilities(), self._read_into, self._processes)
        validator = self._journal.validator or (held.note.validator if held and held.note else None)
        if not await upload.take(held, self._adopted, validator):
            return False
        if await self.versions.usable(self.bucket, self.metadata) is not None:  # whoever had the lease has just ended
            await upload.withdraw()
            return False
        try:
            await self._reserve(self.metadata)
        except NoRoom:
            await upload.withdraw()
            raise
        self.upload = upload
        upload.begin()
        self.moved()
        return True

    def moved(self) -> None:
        """Say that the journal has grown."""
        if self.upload is not None and self._journal is not None:
            self.upload.advance(self._journal.position, self._journal.validator)

    def has_read_whole(self, number: int, fill: str, etag: str) -> None:
        """Note that our digest has gone over all of part `number`, in that version."""
        self._adopted[number] = fill, etag

    def reads_part(self, number: int, fill: str) -> None:
        """Note who wrote the part that is read."""
        self.owners[number] = fill

    def has_read(self, fill: str) -> bool:
        """Whether something that this fill wrote is among our bytes."""
        return fill in self.owners.values()

    def reads_object(self, offset: int, version: Version) -> None:
        """Note that bytes come from the image's object, from `offset` on."""
        # Read on where it broke, it is still that version of which all bytes are ours.
        self._object = version if offset == 0 or version == self._object else None

    def reads_elsewhere(self) -> None:
        """Note that they do not."""
        self._object = None

    def writer(self, number: int) -> str | None:
        """The id of the fill that wrote part `number`, as far as that is in the bucket."""
        if self.upload is not None and (fill := self.upload.holds(number)) is not None:
            return fill
        if number in self._adopted:
            return self._adopted[number][0]
        return self.owners.get(number)

    def settle(self) -> asyncio.Task[bool]:
        """All is verified: see to it that the image has its name in the bucket, whatever becomes of the fill.

        Whoever has the lease gives it; when nobody does, we. The result says whether it has.
        """
        self._settling = asyncio.create_task(self._settle(), name=f"settle {self.metadata.hash}")
        self._keep(self._settling)
        return self._settling

    async def _settle(self) -> bool:
        try:
            while not self.fetches:
                await self.give_way()
                if await self.versions.usable(self.bucket, self.metadata) is not None:
                    return True
                held = await self.lease.look() if (await self.abilities()).conditions else None
                if held is not None and not held.free:
                    await asyncio.sleep(SETTLE)
                elif not self.carries:
                    return False
                else:
                    await self.take(held)
            assert self.upload is not None  # noqa: S101 - it `fetches`
            await self.upload.finish()
            self.upload = None
        except (BucketFailed, ObjectGone) as error:
            log.warning(
                "%s is verified, and cannot get its name in the bucket: %s",
                self.metadata.hash,
                error,
                extra=event("bucket.unpublished", image=self.metadata.hash),
            )
            return False
        finally:
            await self._end()
        return True

    def right(self) -> None:
        """All is verified and stored; with it the image's object, if all bytes came from there."""
        if self._object is not None:
            self.versions.trust(self.metadata.hash, self._object)

    async def wrong(self) -> None:
        """The bytes were not the image."""
        if self._object is not None:
            log.error(
                "%s in the bucket is not that image: it is not used",
                self.metadata.hash,
                extra=event("bucket.bad", image=self.metadata.hash),
            )
            self.versions.distrust(self.metadata.hash, self._object)
        if self.upload is not None:
            upload, self.upload = self.upload, None
            await upload.abandon("its bytes were wrong")

    async def close(self) -> None:
        """The fill has ended, or goes on without the bucket."""
        self._object = None
        if self._settling is None:
            await self._end()

    def _read_into(self, offset: int, buffer: memoryview) -> int:
        """What an upload reads with: when all is over it holds no journal, and no file, whatever still holds it."""
        if self._journal is None:
            raise OSError(errno.ESTALE, "the journal is closed")
        return self._journal.read_into(offset, buffer)

    async def _end(self) -> None:
        self._journal = None
        await self.give_way()
