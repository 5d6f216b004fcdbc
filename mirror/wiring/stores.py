"""Builds the stores of a configuration: a disk, a bucket, or a disk in front of a bucket."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from mirror.config import S3, Config, Store
from mirror.images.last_answer import SharedNote
from mirror.images.retention import evictable
from mirror.store.base import BlobStore, StoreUnavailable
from mirror.store.disk.store import DiskStore

if TYPE_CHECKING:
    from mirror.store.s3.space import Bounds
    from mirror.store.s3.store import S3Store
    from mirror.store.s3.timings import Timings
    from mirror.store.tiered import TieredStore


@dataclass(frozen=True, slots=True)
class Stores:
    """The places where images are stored, `disk` and `bucket`. The rest of the mirror uses `front` as its one store.

    `evicted` is called, from any thread, for each image that was evicted, with the place and the hash.
    """

    front: BlobStore
    disk: DiskStore | None = None
    bucket: "S3Store | None" = None
    tiered: "TieredStore | None" = None
    note: SharedNote | None = None
    evicted: "Evicted" = lambda *_: None

    @property
    def places(self) -> Mapping[str, "DiskStore | S3Store"]:
        """The places by their name."""
        places = {"disk": self.disk, "bucket": self.bucket}
        return {name: place for name, place in places.items() if place is not None}

    @property
    def stuck(self) -> str | None:
        """Why an upload of this process is stuck, in words; None when none is."""
        return None if self.bucket is None else self.bucket.stuck

    async def trouble(self) -> Mapping[str, str]:
        """Return what is wrong with each place that does not work, in words."""
        said = {}
        for name, place in self.places.items():
            try:
                await place.probe()
            except StoreUnavailable as error:
                said[name] = error.message
        return said

    def take_up(self, config: Store) -> None:
        """Apply these bounds from now on."""
        if self.disk is not None:
            keep = partial(evictable, keep=config.keep)
            self.disk.take_up(max_size=config.max_size, min_free=config.min_free, retention=keep)
        if self.bucket is not None:
            self.bucket.take_up(holdback=config.holdback, bounds=_bounds(config.s3, self.evicted))

    @asynccontextmanager
    async def kept(self, current: Callable[[], Awaitable[str | None]]) -> AsyncIterator[None]:
        """Maintain the bucket, if any, while the context lasts. `current` returns the hash of the current image."""
        async with AsyncExitStack() as stack:
            if self.bucket is not None:
                from mirror.store.s3.maintenance import Keeper  # see `open_stores`

                async def replenish() -> None:
                    if self.tiered is not None and (image_hash := await current()):
                        await self.tiered.replenish(image_hash)

                await stack.enter_async_context(Keeper(self.bucket, replenish).running())
            yield


Evicted = Callable[[str, str], None]
"""Takes the place where an image was evicted, and its hash, in any thread."""


@asynccontextmanager
async def open_stores(
    config: Config, pool: Executor, evicted: Evicted = lambda *_: None, timings: "Timings | None" = None
) -> AsyncIterator[Stores]:
    """Open the stores of a configuration; they touch nothing until they are used."""
    disk = disk_store(config, pool, evicted)
    if config.store.s3.bucket is None:
        yield Stores(disk, disk, evicted=evicted)
        return
    from mirror.store.s3.bucket import Bucket  # with AWS's libraries, which take 25 MiB and a second to start
    from mirror.store.s3.shared_note import BucketNote
    from mirror.store.s3.store import opened as opened_bucket
    from mirror.store.tiered import TieredStore

    holdback, directory, bounds = config.store.holdback, config.store.path, _bounds(config.store.s3, evicted)
    connected = Bucket(config.store.s3, timings)
    async with opened_bucket(connected, holdback=holdback, directory=directory, bounds=bounds) as bucket:
        if config.store.s3.local_copy:
            tiered = TieredStore(disk, bucket)
            yield Stores(tiered, disk, bucket, tiered, BucketNote(bucket), evicted)
        else:
            yield Stores(bucket, bucket=bucket, note=BucketNote(bucket), evicted=evicted)


def _bounds(config: S3, evicted: Evicted) -> "Bounds | None":
    from mirror.store.s3.space import Bounds  # see `open_stores`

    if config.max_size is None:
        return None
    keep = partial(evictable, keep=config.keep)
    # A client that was sent to the bucket reads there, unseen, for as long as its URL is valid.
    return Bounds(
        config.max_size, keep, config.presign_ttl if config.serve == "redirect" else 0.0, partial(evicted, "bucket")
    )


def disk_store(config: Config, pool: Executor, evicted: Evicted = lambda *_: None) -> DiskStore:
    """Make the disk store of a configuration; it touches nothing until it is used."""
    return DiskStore(
        config.store.path,
        min_free=config.store.min_free,
        max_size=config.store.max_size,
        retention=partial(evictable, keep=config.store.keep),
        evicted=partial(evicted, "disk"),
        pool=pool,
    )
