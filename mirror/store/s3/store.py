"""Images in a bucket, as any S3 tool can read them.

    images/<hash>, images/<hash>.json    the bytes, and upstream's metadata body
    pinned/<hash>                        there when the image is pinned
    served/<hash>                        its time is when a replica last served it (see `mirror.store.s3.space`)
    parts/, leases/                      while images arrive (see `mirror.store.s3.upload`)

`images/<hash>` is there only when it was verified by whoever wrote it. That is no reason to trust it: bytes are hashed
again until this process has verified that version of the object. Nothing is evicted from a bucket that has no bounds
(see `mirror.store.s3.space`).
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from weakref import WeakSet

from cachetools import LRUCache, TTLCache

from mirror.common.log import event
from mirror.model.errors import BadUpstream
from mirror.model.metadata import ImageMetadata, is_hash
from mirror.model.source import Source
from mirror.store.base import Body, StoredInfo, Transfer, newest_first
from mirror.store.disk.removal import Kind, Removal
from mirror.store.disk.space import Collected, Use
from mirror.store.disk.verification import Verdict, Verified
from mirror.store.s3.bucket import ANSWER, Bucket, ObjectGone, Version
from mirror.store.s3.capabilities import Capabilities, find_out
from mirror.store.s3.coordinator import Coordinator, Readable
from mirror.store.s3.errors import BucketFailed, failed
from mirror.store.s3.image import BucketImage
from mirror.store.s3.journal import PartsJournal
from mirror.store.s3.lease_holders import Processes
from mirror.store.s3.source import BucketSource
from mirror.store.s3.space import MARK, Bounds, BucketSpace
from mirror.store.s3.verified_versions import Versions

log = logging.getLogger(__name__)

REMEMBERED = 2.0
"""Seconds for which the version of an object need not be asked for again."""

TRIED = 3600.0
"""Seconds for which what the server can do need not be tried again: servers are upgraded, and moved."""

PROBE = 0.8
"""Seconds for which whoever wants to know how the bucket is waits: orchestrators often wait no longer than one."""

STALE = timedelta(days=1)
"""Age from which parts, unfinished uploads and leases are nobody's any more."""


class S3Store:
    """A `BlobStore` in `bucket`; the last `holdback` bytes of what is not verified yet are held back.

    In `directory` the processes of one host know one another. With `bounds` images are evicted for others.
    """

    def __init__(self, bucket: Bucket, *, holdback: int, directory: Path, bounds: Bounds | None = None) -> None:
        self.bucket = bucket
        self.versions = Versions()
        self.holdback = holdback
        self._directory = directory
        self._processes = Processes(directory)
        self._open: WeakSet[BucketImage] = WeakSet()
        self._marked: TTLCache[str, None] = TTLCache(1024, MARK)
        self._space: BucketSpace | None = None
        self.take_up(holdback=holdback, bounds=bounds)
        self._abilities: TTLCache[str, Capabilities] = TTLCache(1, TRIED)
        self._limits: tuple[str, ...] = ()
        self._finding_out = asyncio.Lock()
        self._found: TTLCache[str, Version] = TTLCache(1024, REMEMBERED)
        self._metadata: LRUCache[str, ImageMetadata] = LRUCache(1024)
        self._served: dict[str, datetime] = {}
        self._verifying: dict[str, asyncio.Task[bool]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._coordinators: WeakSet[Coordinator] = WeakSet()
        self._probing: asyncio.Task[None] | None = None
        self._trouble: BucketFailed | None = None

    def take_up(self, *, holdback: int, bounds: Bounds | None) -> None:
        """From now on these are the bounds."""
        self.holdback = holdback
        self._space = None
        if bounds is not None:
            self._space = BucketSpace(
                *(self.bucket, bounds, self._processes, self._directory),
                images=self.list,
                versions=self._versions,
                read=self._read,
            )

    async def close(self) -> None:
        """End what goes on in the background; another replica can go on with it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._processes.close()

    @property
    def full(self) -> str | None:
        """Why there was no room for an image, if that is so still."""
        return self._space.full if self._space is not None else None

    async def use(self) -> Use | None:
        """How full it is; None when it has no bounds. Raises BucketFailed."""
        return await self._space.use() if self._space is not None else None

    @property
    def busy(self) -> bool:
        """Whether something goes on in the background: an upload, mostly."""
        return bool(self._tasks)

    async def settled(self) -> None:
        """Wait until nothing does."""
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    async def abilities(self) -> Capabilities:
        """What the server can do, as it was tried lately. Raises BucketFailed."""
        async with self._finding_out:
            if (found := self._abilities.get(self.bucket.name)) is None:
                found = self._abilities[self.bucket.name] = await find_out(self.bucket)
                for missing in found.missing if found.missing != self._limits else ():
                    log.warning("the bucket %s: %s", self.bucket.name, missing, extra=event("bucket.limited"))
                self._limits = found.missing
            return found

    async def find_anew(self) -> bool:
        """Look for credentials, region and CA anew; whether others are found. Raises BucketFailed, changing nothing."""
        return await self.bucket.find_anew()

    def forget(self) -> None:
        """Forget what was found before, and what the server can do: whoever asks next finds it anew."""
        self.bucket.forget()
        self._abilities.clear()

    def _doubt(self) -> None:
        """Find out anew what the server can do, for it has refused something."""
        self._abilities.clear()

    # What a BlobStore does

    async def probe(self) -> None:
        """See `BlobStore.probe`: whether the bucket answers, takes what is written, and no upload is kept from it.

        Whoever asks is not patient: when that takes its time, it is as it was found last.
        """
        if self._probing is None:
            self._probing = asyncio.create_task(self._probe(), name="probe the bucket")
            self.keep(self._probing)
        await asyncio.wait([self._probing], timeout=PROBE)
        if self._trouble is not None:
            raise BucketFailed(self._trouble.message)
        if self._probing is not None:
            raise BucketFailed(f"the bucket {self.bucket.name} cannot be used: the server is slow to answer")
        if (stuck := self.stuck) is not None:
            raise BucketFailed(stuck)

    @property
    def stuck(self) -> str | None:
        """What keeps an upload from here from going on, in words."""
        uploads = (coordinator.upload for coordinator in self._coordinators)
        return next((upload.trouble.message for upload in uploads if upload and upload.trouble), None)

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
            self._found[image_hash] = version  # only then: or who asks often would be told the same for ever
        if version is None or (metadata := await self._described(image_hash)) is None:
            return None
        if version.size != metadata.size or self.versions.distrusted(image_hash, version):
            return None

        def verify() -> asyncio.Task[bool]:
            task = asyncio.create_task(self._verified(metadata, version, published), name=f"verify {image_hash}")
            self.keep(task)
            task.add_done_callback(_seen)
            return task

        image = BucketImage(self.bucket, metadata, version, self.versions, holdback=self.holdback, verify=verify)
        self._open.add(image)
        return image

    async def begin(self, metadata: ImageMetadata, upstream: Source) -> Transfer | Body:
        """See `BlobStore.begin`."""
        await self.abilities()
        self._found.pop(metadata.hash, None)
        try:
            async with asyncio.timeout(ANSWER):
                if image := await self.open(metadata.hash):
                    return image
                await self.bucket.now()  # that there is no image may also mean that there is no bucket any more
        except TimeoutError as error:
            raise failed(error, self.bucket.name, "GetObject") from error
        if self._space is not None:
            await self._space.expect(metadata)

        async def sure() -> None:
            version = await self.versions.usable(self.bucket, metadata)
            if version is None or not await self._verified(metadata, version):
                raise ObjectGone("what the bucket has is not what was received")

        journal = PartsJournal(self.bucket, metadata, self.coordinator, sure)
        return Transfer(journal, BucketSource(journal.coordinator, upstream))

    def nearest(self, metadata: ImageMetadata, upstream: Source) -> Source:
        """See `BlobStore.nearest`: what lies in the bucket, or what another mirror brings there."""
        return BucketSource(self.coordinator(metadata, None), upstream)

    def coordinator(self, metadata: ImageMetadata, journal: Readable | None) -> Coordinator:
        """What a fill into that journal has to do with the bucket; nothing but reading from it without one."""
        coordinator = Coordinator(
            self.bucket,
            metadata,
            self.versions,
            self.abilities,
            journal,
            self.keep,
            self._doubt,
            self._processes,
            self._reserve,
        )
        self._coordinators.add(coordinator)
        return coordinator

    async def make_room(self, wanted: int) -> bool:
        """See `BlobStore.make_room`: a bucket has room, or none that we could make."""
        return False

    async def list(self) -> Sequence[StoredInfo]:
        """See `BlobStore.list`."""
        versions = await self._versions()
        pinned = {listed.name.removeprefix("pinned/") async for listed in self.bucket.list("pinned/")}
        served = {}
        if self._space is not None:
            served = {
                each.name.removeprefix("served/"): each.version.modified async for each in self.bucket.list("served/")
            }
        found = []
        for image_hash, version in versions.items():
            metadata = await self._described(image_hash)
            if metadata is not None and metadata.size == version.size:
                found.append(self._info(metadata, version, pinned=image_hash in pinned, served=served.get(image_hash)))
        return newest_first(found)

    async def served(self, image_hash: str) -> None:
        """See `BlobStore.served`: remembered while this process lives, or by all replicas when images are evicted."""
        self._served[image_hash] = datetime.now(UTC)
        await self._mark(image_hash)

    # What keeps it

    async def sizes(self) -> Mapping[str, int]:
        """The bytes of all objects that lie where an image does, by hash: also what is not whole."""
        return {image_hash: version.size for image_hash, version in (await self._versions()).items()}

    async def verify(
        self, image_hash: str, *, rate: float | None = None, progress: Callable[[int], None] = lambda _: None
    ) -> Verified:
        """Hash an image again, reading `rate` bytes per second at most. A bad one is not used by this process."""
        clock = asyncio.get_running_loop().time
        version = await self.bucket.head(f"images/{image_hash}")
        if version is None:
            return Verified(image_hash, Verdict.GONE, "it is not in the bucket any more", "bucket")
        metadata = await self._described(image_hash)
        if metadata is not None and version.size < metadata.size:
            detail = f"it has {version.size} bytes in the bucket and should have {metadata.size}"
            return Verified(image_hash, Verdict.SHORT, detail, "bucket")
        digest, position, began = hashlib.sha256(), 0, clock()
        try:
            async for piece in self.bucket.read(f"images/{image_hash}", 0, version.size, version.etag):
                await asyncio.get_running_loop().run_in_executor(None, digest.update, piece)
                position += len(piece)
                progress(position)
                if rate is not None:
                    await asyncio.sleep(began + position / rate - clock())
        except ObjectGone:
            return Verified(image_hash, Verdict.CHANGED, "it changed while it was read", "bucket")
        if digest.hexdigest() != image_hash:
            self.versions.distrust(image_hash, version)
            detail = f"its sha256 in the bucket is {digest.hexdigest()}; it is overwritten when it is fetched again"
            return Verified(image_hash, Verdict.WRONG, detail, "bucket")
        self.versions.trust(image_hash, version)
        return Verified(image_hash, Verdict.GOOD, "its bytes are right", "bucket")

    async def pin(self, image_hash: str, *, pinned: bool) -> None:
        """Pin an image, for all replicas, or take that back."""
        if pinned:
            await self.bucket.put(f"pinned/{image_hash}", b"")
        else:
            await self.bucket.delete(f"pinned/{image_hash}")

    async def remove(self, image_hash: str, *, cut: bool = True) -> bool:
        """Remove an image, for all replicas; downloads that run are cut."""
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
        """Clear away what nobody will miss, and evict down to the bounds. Raises BucketFailed."""
        removals = await self.clear_away(dry_run=dry_run)
        evicted, beyond = await self.evict(dry_run=dry_run, without=removals if dry_run else ())
        return Collected((*removals, *evicted), beyond)

    async def clear_away(self, *, dry_run: bool) -> Sequence[Removal]:
        """Remove what fills have left that did not end well, a day after they last wrote something."""
        removals = []
        async for removal, remove in self._leftovers(await self.bucket.now() - STALE):
            removals.append(removal)
            if not dry_run:
                await remove
            else:
                remove.close()
        return removals

    async def evict(self, *, dry_run: bool, without: Sequence[Removal] = ()) -> tuple[Sequence[Removal], int]:
        """Evict down to the bounds, if there are any; what went, and bytes that are still beyond them."""
        if self._space is None:
            return (), 0
        conditions = (await self.abilities()).conditions
        evicted = await self._space.collect(dry_run=dry_run, conditions=conditions, without=without)
        self._found.clear()
        return evicted

    async def location(self, image_hash: str, seconds: float, disposition: str) -> str | None:
        """A URL with which anybody may read the image for that long, a secret; None when it is not in the bucket."""
        try:
            if await self.open(image_hash) is not None:
                return await self.bucket.presign(f"images/{image_hash}", seconds, disposition)
        except BucketFailed as error:
            log.debug("nobody is redirected to the bucket: %s", error)
        return None

    # How

    async def _probe(self) -> None:
        try:
            await self.bucket.now()
            await self.abilities()
        except BucketFailed as error:
            self._trouble = error
        else:
            self._trouble = None
        finally:
            self._probing = None

    async def _leftovers(self, before: datetime) -> AsyncIterator[tuple[Removal, Coroutine[Any, Any, None]]]:
        fills: dict[str, list[tuple[str, Version]]] = {}
        async for listed in self.bucket.list("parts/"):
            fills.setdefault(listed.name.rpartition("/")[0], []).append((listed.name, listed.version))
        for fill, found in fills.items():
            if max(version.modified for _, version in found) < before:
                size = sum(version.size for _, version in found)
                reason = "parts of a fill that nobody went on with for a day"
                yield Removal(Kind.PARTIAL, Path(fill), size, reason), self._delete([name for name, _ in found])
        for upload in await self.bucket.uploads("images/"):
            if upload.began < before:
                removal = Removal(Kind.LEFTOVER, Path(upload.name), 0, "an upload that nobody completed for a day")
                yield removal, self.bucket.abort_upload(upload.name, upload.upload)
        async for listed in self.bucket.list("leases/"):
            if listed.version.modified < before:
                removal = Removal(
                    Kind.LEFTOVER, Path(listed.name), listed.version.size, "a lease of more than a day ago"
                )
                yield removal, self._delete([listed.name])
        async for removal in self._old_marks(before):
            yield removal, self._delete([str(removal.path)])

    async def _old_marks(self, before: datetime) -> AsyncIterator[Removal]:
        if self._space is None:
            return
        there = await self._versions()
        async for listed in self.bucket.list("served/"):
            if listed.version.modified < before and listed.name.removeprefix("served/") not in there:
                yield Removal(Kind.LEFTOVER, Path(listed.name), listed.version.size, "of an image that has gone")

    async def _reserve(self, metadata: ImageMetadata) -> None:
        """Make room for an image that we fetch for all replicas. Raises NoRoom, BucketFailed."""
        if self._space is not None:
            await self._space.reserve(metadata, conditions=(await self.abilities()).conditions)
            self._found.clear()

    def _read(self) -> set[str]:
        """The images that are read here now."""
        brought = {coordinator.metadata.hash for coordinator in self._coordinators if coordinator.reading}
        return brought | {image.metadata.hash for image in self._open}

    async def mark(self) -> None:
        """Tell other replicas again and again what is read here, so that they do not evict it."""
        while True:
            await asyncio.sleep(MARK)
            for image_hash in self._read() if self._space is not None else ():
                await self._mark(image_hash)

    async def _mark(self, image_hash: str) -> None:
        if self._space is not None and image_hash not in self._marked:
            self._marked[image_hash] = None
            try:
                await self.bucket.put(f"served/{image_hash}", b"")
            except BucketFailed as error:
                del self._marked[image_hash]
                log.debug("that %s is served cannot be noted: %s", image_hash, error)

    async def _delete(self, names: Sequence[str]) -> None:
        for name in names:
            await self.bucket.delete(name)

    async def _versions(self) -> Mapping[str, Version]:
        return {
            name: listed.version
            async for listed in self.bucket.list("images/")
            if is_hash(name := listed.name.removeprefix("images/"))
        }

    async def _described(self, image_hash: str) -> ImageMetadata | None:
        """What lies beside the image; None when there is nothing that can be used."""
        if known := self._metadata.get(image_hash):
            return known
        if (answer := await self.bucket.get(f"images/{image_hash}.json")) is None:
            return None
        try:
            metadata = ImageMetadata.parse(answer.data)
        except BadUpstream as error:
            log.warning(
                "images/%s.json in the bucket is left alone: %s",
                image_hash,
                error,
                extra=event("image.ignored", image=image_hash),
            )
            return None
        if metadata.hash != image_hash:
            log.warning(
                "images/%s.json in the bucket is left alone: it names %s",
                image_hash,
                metadata.hash,
                extra=event("image.ignored", image=image_hash),
            )
            return None
        self._metadata[image_hash] = metadata
        return metadata

    def _info(self, metadata: ImageMetadata, version: Version, *, pinned: bool, served: datetime | None) -> StoredInfo:
        times = [time for time in (self._served.get(metadata.hash), served) if time is not None]
        return StoredInfo(
            metadata,
            stored_at=version.modified,
            last_served_at=max(times, default=None),
            pinned=pinned,
            places=("bucket",),
        )

    async def _verified(
        self, metadata: ImageMetadata, version: Version, published: Callable[[], Awaitable[None]] | None = None
    ) -> bool:
        """Read the object once for all who wait; whether it is right. Raises BucketFailed.

        Not before it is `published`, for it is being read until then. Raises FillFailed when it will not be.
        """
        if published is not None:
            await published()
        if self.versions.trusted(metadata.hash, version):
            return True
        if (task := self._verifying.get(metadata.hash)) is None:
            task = self._verifying[metadata.hash] = asyncio.create_task(
                self._verify(metadata.hash), name=f"verify {metadata.hash}"
            )
            self.keep(task)
            task.add_done_callback(lambda _: self._verifying.pop(metadata.hash, None))
            task.add_done_callback(_seen)
        await asyncio.shield(task)
        return self.versions.trusted(metadata.hash, version)

    async def _verify(self, image_hash: str) -> bool:
        verified = await self.verify(image_hash)
        if verified.bad:
            log.error(
                "%s in the bucket is bad: %s", image_hash, verified.detail, extra=event("bucket.bad", image=image_hash)
            )
        return verified.verdict is Verdict.GOOD

    def keep(self, task: "asyncio.Task[Any]") -> None:
        """Own a task that goes on in the background."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _seen(task: "asyncio.Task[bool]") -> None:
    """What it raises is of interest to who waits for it, if there is anybody."""
    if not task.cancelled():
        task.exception()


@asynccontextmanager
async def opened(
    bucket: Bucket, *, holdback: int, directory: Path, bounds: Bounds | None = None
) -> AsyncIterator[S3Store]:
    """Open a bucket as a store; what goes on in the background ends with the context."""
    async with bucket:
        store = S3Store(bucket, holdback=holdback, directory=directory, bounds=bounds)
        marking = asyncio.create_task(store.mark(), name="mark what is read")
        try:
            yield store
        finally:
            marking.cancel()
            await asyncio.gather(marking, return_exceptions=True)
            await store.close()
