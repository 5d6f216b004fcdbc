"""Puts a disk in front of a bucket: images on the disk are served from there, and new ones are written to both.

An image that is only in the bucket is brought to the disk by a fill that reads from the bucket. When the disk takes
nothing, the bucket is used as if there were no disk; when the bucket fails, the disk goes on alone. An image that is
evicted from the disk stays in the bucket, and the other way round.
"""

import hashlib
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from mirror.common.log import event
from mirror.model.metadata import ImageMetadata
from mirror.model.source import Source
from mirror.store.base import (
    Body,
    Reader,
    Remote,
    StoredImage,
    StoredInfo,
    StoreUnavailable,
    Transfer,
    Unnamed,
    newest_first,
)
from mirror.store.disk.partial_file import PartialFile
from mirror.store.disk.store import DiskStore
from mirror.store.s3.coordinator import Coordinator
from mirror.store.s3.source import BucketSource
from mirror.store.s3.store import S3Store

log = logging.getLogger(__name__)


class TieredStore:
    """A `BlobStore` of `disk` and `bucket`."""

    def __init__(self, disk: DiskStore, bucket: S3Store) -> None:
        self._disk = disk
        self._bucket = bucket

    async def probe(self) -> None:
        """See `BlobStore.probe`: it tries the disk."""
        await self._disk.probe()

    async def open(self, image_hash: str) -> Body | None:
        """See `BlobStore.open`: an image on the disk, or, only if there is no disk, one in the bucket."""
        try:
            return await self._disk.open(image_hash)
        except StoreUnavailable:
            if image := await self._in_bucket(image_hash):
                return image
            raise

    async def has(self, image_hash: str) -> bool:
        """See `BlobStore.has`."""
        try:
            if await self._disk.has(image_hash):
                return True
        except StoreUnavailable as error:
            log.debug("%s", error)
        return await self._in_bucket(image_hash) is not None

    async def begin(self, metadata: ImageMetadata, upstream: Source) -> Transfer | Body:
        """See `BlobStore.begin`: the source asks the bucket before upstream."""
        try:
            begun = await self._disk.journal(metadata)
        except StoreUnavailable as error:
            log.warning(
                "%s; %s goes through the bucket alone",
                error,
                metadata.hash,
                extra=event("store.bypassed", image=metadata.hash),
            )
            try:
                return await self._bucket.begin(metadata, upstream)
            except StoreUnavailable:
                raise error from None
        if isinstance(begun, StoredImage):
            return begun
        journal = TieredPartial(begun, metadata, self._bucket)
        return Transfer(journal, BucketSource(journal.coordinator, upstream))

    def nearest(self, metadata: ImageMetadata, upstream: Source) -> Source:
        """See `BlobStore.nearest`: the bucket."""
        return self._bucket.nearest(metadata, upstream)

    async def ahead(self, image_hash: str, published: Callable[[], Awaitable[None]]) -> Remote | None:
        """See `BlobStore.ahead`: the bucket."""
        return await self._bucket.ahead(image_hash, published)

    async def make_room(self, wanted: int) -> bool:
        """See `BlobStore.make_room`."""
        return await self._disk.make_room(wanted)

    async def list(self) -> Sequence[StoredInfo]:
        """See `BlobStore.list`: the images in either place, or in the one that works."""
        listed: list[Sequence[StoredInfo]] = []
        trouble = None
        for place in (self._bucket, self._disk):
            try:
                listed.append(await place.list())
            except StoreUnavailable as error:
                log.warning("the list of images is not whole: %s", error, extra=event("store.unlisted"))
                trouble = trouble or error
        if trouble is not None and not listed:
            raise trouble
        found: dict[str, StoredInfo] = {}
        for info in (info for infos in listed for info in infos):
            other = found.get(info.metadata.hash)
            found[info.metadata.hash] = info if other is None else _both(info, other)
        return newest_first(found.values())

    async def served(self, image_hash: str) -> None:
        """See `BlobStore.served`."""
        await self._disk.served(image_hash)
        await self._bucket.served(image_hash)

    async def replenish(self, image_hash: str) -> None:
        """Upload an image that is on the disk, if the bucket does not have it. Raises StoreUnavailable."""
        image = await self._disk.open(image_hash)
        if image is None or await self._bucket.has(image_hash):
            return
        log.info(
            "%s is on the disk and not in the bucket: it is brought there",
            image_hash,
            extra=event("upload.began", image=image_hash),
        )
        await self._bucket.coordinator(image.metadata, _Readable(image)).settle()

    async def _in_bucket(self, image_hash: str) -> Body | None:
        try:
            return await self._bucket.open(image_hash)
        except StoreUnavailable as error:
            log.debug("%s", error)
            return None


class TieredPartial:
    """A `Partial` on the disk whose bytes also go into the bucket, if they come from upstream."""

    def __init__(self, disk: PartialFile, metadata: ImageMetadata, bucket: S3Store) -> None:
        self.coordinator: Coordinator = bucket.coordinator(metadata, self)
        self._disk = disk
        self.file = disk.file  # uploads go on reading from it when the disk's part is closed

    @property
    def position(self) -> int:
        """See `Partial`."""
        return self._disk.position

    @property
    def validator(self) -> str | None:
        """See `Partial`."""
        return self._disk.validator

    @property
    def ours(self) -> bool:
        """See `Partial.ours`."""
        return self._disk.ours

    @property
    def published(self) -> bool:
        """See `Partial.published`."""
        return self._disk.published

    def reader(self, offset: int) -> AbstractAsyncContextManager[Reader]:
        """See `Partial.reader`."""
        return self._disk.reader(offset)

    async def recover(self) -> bool:
        """See `Partial.recover`."""
        return await self._disk.recover()

    async def append(self, pieces: Sequence[bytes | memoryview]) -> None:
        """See `Partial.append`."""
        await self._disk.append(pieces)
        self.coordinator.moved()

    def digest(self) -> "hashlib._Hash":
        """See `Partial.digest`."""
        return self._disk.digest()

    async def remember(self, validator: str | None) -> None:
        """See `Partial.remember`."""
        await self._disk.remember(validator)

    async def publish(self) -> None:
        """See `Partial.publish`. It does not wait for the bucket, which gets the rest in the background."""
        try:
            await self._disk.publish()
        except Unnamed:
            self.coordinator.right()
            self.coordinator.settle()  # what is right on the disk is right in the bucket
            raise
        self.coordinator.right()
        self.coordinator.settle()

    async def quarantine(self) -> None:
        """See `Partial.quarantine`."""
        try:
            await self._disk.quarantine()
        finally:
            await self.coordinator.wrong()

    async def discard(self) -> None:
        """See `Partial.discard`."""
        try:
            await self._disk.discard()
        finally:
            await self.coordinator.wrong()

    async def close(self) -> None:
        """See `Partial.close`."""
        await self._disk.close()
        await self.coordinator.close()

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """See `mirror.store.s3.coordinator.Readable`: what was written just now, from the page cache."""
        return os.preadv(self.file.fd, [buffer], offset)


class _Readable:
    """Lets an upload read from a stored image."""

    validator = None

    def __init__(self, image: StoredImage) -> None:
        self.position = image.metadata.size
        self._file = image.file

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """See `mirror.store.s3.coordinator.Readable`."""
        return os.preadv(self._file.fd, [buffer], offset)


def _both(disk: StoredInfo, bucket: StoredInfo) -> StoredInfo:
    """Make one line of the list for an image that is in both places."""
    return replace(disk, pinned=disk.pinned or bucket.pinned, places=disk.places + bucket.places)
