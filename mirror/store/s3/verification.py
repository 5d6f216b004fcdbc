"""Hashes the images of a bucket again, each once for all that wait for the result."""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable

from mirror.common.log import event
from mirror.common.tasks import BackgroundTasks
from mirror.model.metadata import ImageMetadata
from mirror.store.disk.verification import Verdict, Verified
from mirror.store.s3.bucket import Bucket
from mirror.store.s3.listing import Listing
from mirror.store.s3.objects import ObjectGone, Version
from mirror.store.s3.verified_versions import Versions

log = logging.getLogger(__name__)


class BucketVerification:
    """Verifies the images of `bucket` and tells `versions` the result."""

    def __init__(self, bucket: Bucket, listing: Listing, versions: Versions, background: BackgroundTasks) -> None:
        self._bucket = bucket
        self._listing = listing
        self._versions = versions
        self._background = background
        self._running: dict[str, asyncio.Task[bool]] = {}

    def start(
        self, metadata: ImageMetadata, version: Version, published: Callable[[], Awaitable[None]] | None
    ) -> asyncio.Task[bool]:
        """Begin `is_right` in the background."""
        task = self._background.start(self.is_right(metadata, version, published), f"verify {metadata.hash}")
        task.add_done_callback(_look_at_the_error)
        return task

    async def is_right(
        self, metadata: ImageMetadata, version: Version, published: Callable[[], Awaitable[None]] | None = None
    ) -> bool:
        """Read the object once for all that wait; return whether it is right. Raises BucketFailed.

        This begins only when the image is `published`, since it is being read until then. Raises FillFailed when it
        will not be.
        """
        if published is not None:
            await published()
        if self._versions.trusted(metadata.hash, version):
            return True
        if (task := self._running.get(metadata.hash)) is None:
            task = self._background.start(self._verify(metadata.hash), f"verify {metadata.hash}")
            self._running[metadata.hash] = task
            task.add_done_callback(lambda _: self._running.pop(metadata.hash, None))
            task.add_done_callback(_look_at_the_error)
        await asyncio.shield(task)
        return self._versions.trusted(metadata.hash, version)

    async def verify(
        self, image_hash: str, *, rate: float | None = None, progress: Callable[[int], None] = lambda _: None
    ) -> Verified:
        """Hash an image again, reading `rate` bytes per second at most. This process does not use a bad one."""
        clock = asyncio.get_running_loop().time
        version = await self._bucket.head(f"images/{image_hash}")
        if version is None:
            return Verified(image_hash, Verdict.GONE, "it is not in the bucket any more", "bucket")
        metadata = await self._listing.metadata(image_hash)
        if metadata is not None and version.size < metadata.size:
            detail = f"it has {version.size} bytes in the bucket and should have {metadata.size}"
            return Verified(image_hash, Verdict.SHORT, detail, "bucket")
        digest, position, began = hashlib.sha256(), 0, clock()
        try:
            async for piece in self._bucket.read(f"images/{image_hash}", 0, version.size, version.etag):
                await asyncio.get_running_loop().run_in_executor(None, digest.update, piece)
                position += len(piece)
                progress(position)
                if rate is not None:
                    await asyncio.sleep(began + position / rate - clock())
        except ObjectGone:
            return Verified(image_hash, Verdict.CHANGED, "it changed while it was read", "bucket")
        if digest.hexdigest() != image_hash:
            self._versions.distrust(image_hash, version)
            detail = f"its sha256 in the bucket is {digest.hexdigest()}; it is overwritten when it is fetched again"
            return Verified(image_hash, Verdict.WRONG, detail, "bucket")
        self._versions.trust(image_hash, version)
        return Verified(image_hash, Verdict.GOOD, "its bytes are right", "bucket")

    async def _verify(self, image_hash: str) -> bool:
        verified = await self.verify(image_hash)
        if verified.bad:
            log.error(
                "%s in the bucket is bad: %s", image_hash, verified.detail, extra=event("bucket.bad", image=image_hash)
            )
        return verified.verdict is Verdict.GOOD


def _look_at_the_error(task: "asyncio.Task[bool]") -> None:
    """Keep asyncio from logging what the task raises: only those that wait for the result, if any, care about it."""
    if not task.cancelled():
        task.exception()
