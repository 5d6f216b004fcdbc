"""Tracks when images of a bucket were last served, which decides what is evicted first.

    served/<hash>    its time is when any mirror last served the image

A bucket without bounds never evicts, so nothing is written there: the times are kept only in this process.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime

from cachetools import TTLCache

from mirror.store.s3.bucket import Bucket
from mirror.store.s3.errors import BucketFailed

log = logging.getLogger(__name__)


class LastServed:
    """Remembers when the images of `bucket` were served; `shared` says whether the other mirrors are told."""

    def __init__(self, bucket: Bucket) -> None:
        self.shared = False
        self._bucket = bucket
        self._here: dict[str, datetime] = {}
        self._marked: TTLCache[str, None] = TTLCache(1024, bucket.timings.mark)

    async def served(self, image_hash: str) -> None:
        """Note that the image is being served now. A failure is ignored."""
        self._here[image_hash] = datetime.now(UTC)
        await self._mark(image_hash)

    async def times(self) -> Mapping[str, datetime]:
        """Return when each image was last served, as far as is known. Raises BucketFailed."""
        times = dict(self._here)
        if self.shared:
            async for listed in self._bucket.list("served/"):
                image_hash = listed.name.removeprefix("served/")
                times[image_hash] = max(listed.version.modified, times.get(image_hash, listed.version.modified))
        return times

    async def keep_marking(self, read: Callable[[], Collection[str]]) -> None:
        """Mark again and again what is `read` here, so that other mirrors do not evict it."""
        while True:
            await asyncio.sleep(self._bucket.timings.mark)
            for image_hash in read():
                await self._mark(image_hash)

    async def _mark(self, image_hash: str) -> None:
        if self.shared and image_hash not in self._marked:
            self._marked[image_hash] = None
            try:
                await self._bucket.put(f"served/{image_hash}", b"")
            except BucketFailed as error:
                del self._marked[image_hash]
                log.debug("that %s is served cannot be noted: %s", image_hash, error)
