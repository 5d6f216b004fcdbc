"""Keeps images in a bucket, where any S3 tool can read them.

    images/<hash>, images/<hash>.json    the bytes, and upstream's metadata body
    pinned/<hash>                        there when the image is pinned
    served/<hash>                        its time is when a replica last served it (see `mirror.store.s3.space`)
    parts/, leases/                      while images arrive (see `mirror.store.s3.upload`)

A mirror writes `images/<hash>` only after it has verified the bytes. That alone is no reason to trust it: bytes are
hashed again until this process has verified that version of the object. Nothing is evicted from a bucket that has no
bounds (see `mirror.store.s3.space`).
"""

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from weakref import WeakSet

from cachetools import TTLCache

from mirror.common.tasks import BackgroundTasks
from mirror.model.metadata import ImageMetadata, is_hash
from mirror.model.source import Source
from mirror.store.base import Body, StoredInfo, Transfer
from mirror.store.disk.removal import Removal
from mirror.store.disk.space import Collected, Use
from mirror.store.disk.verification import Verified
from mirror.store.pinning import BucketPins
from mirror.store.s3.bucket import Bucket
from mirror.store.s3.capabilities import KnownCapabilities
from mirror.store.s3.coordinator import Coordinator, Readable, SharedBucket
from mirror.store.s3.errors import BucketFailed, failed
from mirror.store.s3.image import BucketImage
from mirror.store.s3.journal import PartsJournal
from mirror.store.s3.last_served import LastServed
from mirror.store.s3.leftovers import Leftovers
from mirror.store.s3.listing import Listing
from mirror.store.s3.live_processes import Processes
from mirror.store.s3.objects import ObjectGone, Version
from mirror.store.s3.source import BucketSource
from mirror.store.s3.space import Bounds, BucketSpace
from mirror.store.s3.verification import BucketVerification
from mirror.store.s3.verified_versions import Versions

log = logging.getLogger(__name__)


PROBE = 0.8
"""Seconds that a health check waits for the bucket: orchestrators often wait no longer than one."""


class S3Store:
    """A `BlobStore` in `bucket`; the last `holdback` bytes of what is not verified yet are held back.

    Through `directory` the processes of one host know one another. With `bounds`, images are evicted to make room.
    """

    def __init__(self, bucket: Bucket, *, holdback: int, directory: Path, bounds: Bounds | None = None) -> None:
        self.bucket = bucket
        self.versions = Versions()
        self.holdback = holdback
        self._directory = directory
        self._processes = Processes(directory)
        self._open: WeakSet[BucketImage] = WeakSet()
        self.capabilities = KnownCapabilities(bucket)
        self.background = BackgroundTasks()
        self._pins = BucketPins(bucket)
        self._marks = LastServed(bucket)
        self._listing = Listing(bucket)
        self._verification = BucketVerification(bucket, self._listing, self.versions, self.background)
        self._space: BucketSpace | None = None
        self.take_up(holdback=holdback, bounds=bounds)
        self._found: TTLCache[str, Version] = TTLCache(1024, bucket.timings.remembered)
        self._coordinators: WeakSet[Coordinator] = WeakSet()
        self._probing: asyncio.Task[None] | None = None
        self._trouble: BucketFailed | None = None

    def take_up(self, *, holdback: int, bounds: Bounds | None) -> None:
        """Use these bounds from now on."""
        self.holdback = holdback
        self._space = None
        self._marks.shared = bounds is not None
        if bounds is not None:
            self._space = BucketSpace(
                *(self.bucket, bounds, self._processes, self._directory),
                images=self.list,
                versions=self._listing.versions,
                read=self._read,
            )

    async def close(self) -> None:
        """End the background work; another mirror can continue it."""
        await self.background.stop()
        self._processes.close()

    @property
    def full(self) -> str | None:
        """Return why there was no room for an image, if there still is none."""
        return self._space.full if self._space is not None else None

    async def use(self) -> Use | None:
        """Return how full it is; None when it has no bounds. Raises BucketFailed."""
        return await self._space.use() if self._space is not None else None

    async def find_anew(self) -> bool:
        """Look for credentials, region and CA again; return whether they have changed.

        Raises BucketFailed, changing nothing.
        """
        return await self.bucket.find_anew()

    def forget(self) -> None:
        """Forget what was found before, and what the server can do: the next request finds it again."""
        self.bucket.forget()
        self.capabilities.doubt()

    # What a BlobStore does

    async def probe(self) -> None:
        """See `BlobStore.probe`: the bucket must answer and take a write, and no upload may be stuck.

        The caller does not wait long: when the bucket is slow, the last result stands.
        """
        if self._probing is None:
            self._probing = self.background.start(self._probe(), "probe the bucket")
        await asyncio.wait([self._probing], timeout=PROBE)
        if self._trouble is not None:
            raise BucketFailed(self._trouble.message)
        if self._probing is not None:
            raise BucketFailed(f"the bucket {self.bucket.name} cannot be used: the server is slow to answer")
        if (stuck := self.stuck) is not None:
            raise BucketFailed(stuck)

    @property
    def stuck(self) -> str | None:
        """Return, in words, what keeps an upload from here from going on."""
        troubles = (coordinator.trouble for coordinator in self._coordinators)
        return next((trouble.message for trouble in troubles if trouble is not None), None)

    async def has(self, image_hash: str) -> bool:
        """See `BlobStore.has`."""
        return await self.open(image_hash) is not None

    async def open(self, image_hash: str) -> BucketImage | None:
        """See `BlobStore.open`."""
        return await self.ahead(image_hash, None)

    async def ahead(self, image_hash: str, published: Callable[[], Awaitable[None]] | None) -> BucketImage | None:
        """See `BlobStore.ahead`."""
        if not is_hash(image_hash):
            return None
        version = self._found.get(image_hash)
        if version is None and (version := await self.bucket.head(f"images/{image_hash}")):
            # only then: otherwise a client that asks often would get the same answer for ever
            self._found[image_hash] = version
        if version is None or (metadata := await self._listing.metadata(image_hash)) is None:
            return None
        if version.size != metadata.size or self.versions.distrusted(image_hash, version):
            return None

        def verify() -> asyncio.Task[bool]:
            return self._verification.start(metadata, version, published)

        image = BucketImage(self.bucket, metadata, version, self.versions, holdback=self.holdback, verify=verify)
        self._open.add(image)
        return image

    async def begin(self, metadata: ImageMetadata, upstream: Source) -> Transfer | Body:
        """See `BlobStore.begin`."""
        await self.capabilities.get()
        self._found.pop(metadata.hash, None)
        try:
            async with asyncio.timeout(self.bucket.timings.answer):
                if image := await self.open(metadata.hash):
                    return image
                await self.bucket.now()  # that there is no image may also mean that the bucket is gone
        except TimeoutError as error:
            raise failed(error, self.bucket.name, "GetObject") from error
        if self._space is not None:
            await self._space.expect(metadata)

        async def sure() -> None:
            version = await self.versions.usable(self.bucket, metadata)
            if version is None or not await self._verification.is_right(metadata, version):
                raise ObjectGone("what the bucket has is not what was received")

        journal = PartsJournal(self.bucket, metadata, functools.partial(self.coordinator, needed=True), sure)
        return Transfer(journal, BucketSource(journal.coordinator, upstream))

    def nearest(self, metadata: ImageMetadata, upstream: Source) -> Source:
        """See `BlobStore.nearest`: the image in the bucket, or what another mirror is uploading there."""
        return BucketSource(self.coordinator(metadata, None), upstream)

    def coordinator(self, metadata: ImageMetadata, journal: Readable | None, *, needed: bool = False) -> Coordinator:
        """Coordinate a fill into that journal with the bucket; without a journal the fill only reads there."""
        shared = SharedBucket(
            self.bucket, self.versions, self.capabilities, self._processes, self.background, self._reserve
        )
        coordinator = Coordinator(shared, metadata, journal, needed=needed)
        self._coordinators.add(coordinator)
        return coordinator

    async def make_room(self, wanted: int) -> bool:
        """See `BlobStore.make_room`: either a bucket has room, or we cannot make any."""
        return False

    async def list(self) -> Sequence[StoredInfo]:
        """See `BlobStore.list`."""
        return await self._listing.images(pinned=await self._pins.all(), served=await self._marks.times())

    async def served(self, image_hash: str) -> None:
        """See `BlobStore.served`: this process remembers it, or, when images are evicted, all replicas do."""
        await self._marks.served(image_hash)

    # Maintenance

    async def sizes(self) -> Mapping[str, int]:
        """Return the size of every object that is where an image would be, by hash, whole or not."""
        return {image_hash: version.size for image_hash, version in (await self._listing.versions()).items()}

    async def verify(
        self, image_hash: str, *, rate: float | None = None, progress: Callable[[int], None] = lambda _: None
    ) -> Verified:
        """Hash an image again, reading `rate` bytes per second at most. This process does not use a bad one."""
        return await self._verification.verify(image_hash, rate=rate, progress=progress)

    async def pin(self, image_hash: str, *, pinned: bool) -> None:
        """Pin an image for all replicas, or unpin it."""
        await self._pins.pin(image_hash, pinned=pinned)

    async def remove(self, image_hash: str, *, cut: bool = True) -> bool:
        """Remove an image for all replicas; running downloads are cut off."""
        for name in (
            f"images/{image_hash}",
            f"images/{image_hash}.json",
            f"pinned/{image_hash}",
            f"served/{image_hash}",
        ):
            await self.bucket.delete(name)
        self._found.pop(image_hash, None)
        return True

    async def collect(self, *, dry_run: bool) -> Collected:
        """Clear away what can go without loss, and evict down to the bounds. Raises BucketFailed."""
        removals = await self.clear_away(dry_run=dry_run)
        evicted, beyond = await self.evict(dry_run=dry_run, without=removals if dry_run else ())
        return Collected((*removals, *evicted), beyond)

    async def clear_away(self, *, dry_run: bool) -> Sequence[Removal]:
        """Remove what failed fills have left, a day after they last wrote something."""
        return await Leftovers(self.bucket, self._listing).remove(dry_run=dry_run, marks=self._space is not None)

    async def evict(self, *, dry_run: bool, without: Sequence[Removal] = ()) -> tuple[Sequence[Removal], int]:
        """Evict down to the bounds, if there are any; return what went, and the bytes that are still over them."""
        if self._space is None:
            return (), 0
        conditions = (await self.capabilities.get()).conditions
        evicted = await self._space.collect(dry_run=dry_run, conditions=conditions, without=without)
        self._found.clear()
        return evicted

    async def location(self, image_hash: str, seconds: float, disposition: str) -> str | None:
        """Return a URL with which anybody may read the image for that long, a secret; None when the bucket lacks it."""
        try:
            if await self.open(image_hash) is not None:
                return await self.bucket.presign(f"images/{image_hash}", seconds, disposition)
        except BucketFailed as error:
            log.debug("nobody is redirected to the bucket: %s", error)
        return None

    async def keep_marking(self) -> None:
        """Keep telling other mirrors what is being read here, so that they do not evict it."""
        await self._marks.keep_marking(self._read)

    # Internals

    async def _probe(self) -> None:
        try:
            await self.bucket.now()
            await self.capabilities.get()
        except BucketFailed as error:
            self._trouble = error
        else:
            self._trouble = None
        finally:
            self._probing = None

    async def _reserve(self, metadata: ImageMetadata) -> None:
        """Make room for an image that we fetch for all replicas. Raises NoRoom, BucketFailed."""
        if self._space is not None:
            await self._space.reserve(metadata, conditions=(await self.capabilities.get()).conditions)
            self._found.clear()

    def _read(self) -> set[str]:
        """Return the images that are read here now."""
        brought = {coordinator.metadata.hash for coordinator in self._coordinators if coordinator.reading}
        return brought | {image.metadata.hash for image in self._open}


@asynccontextmanager
async def opened(
    bucket: Bucket, *, holdback: int, directory: Path, bounds: Bounds | None = None
) -> AsyncIterator[S3Store]:
    """Open a bucket as a store; its background work ends with the context."""
    async with bucket:
        store = S3Store(bucket, holdback=holdback, directory=directory, bounds=bounds)
        marking = asyncio.create_task(store.keep_marking(), name="mark what is read")
        try:
            yield store
        finally:
            marking.cancel()
            await asyncio.gather(marking, return_exceptions=True)
            await store.close()
