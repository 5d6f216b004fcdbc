"""Lists the images of a bucket: their objects, and the metadata beside them."""

import logging
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from cachetools import LRUCache

from mirror.common.log import event
from mirror.model.errors import BadUpstream
from mirror.model.metadata import ImageMetadata, is_hash
from mirror.store.base import StoredInfo, newest_first
from mirror.store.s3.bucket import Bucket
from mirror.store.s3.objects import Version

log = logging.getLogger(__name__)


class Listing:
    """The images of `bucket`. Every method raises BucketFailed."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._metadata: LRUCache[str, ImageMetadata] = LRUCache(1024)

    async def versions(self) -> Mapping[str, Version]:
        """Return every object that is where an image would be, by hash, whole or not."""
        return {
            name: listed.version
            async for listed in self._bucket.list("images/")
            if is_hash(name := listed.name.removeprefix("images/"))
        }

    async def images(self, pinned: Collection[str], served: Mapping[str, datetime]) -> Sequence[StoredInfo]:
        """Return every whole image, sorted by `newest_first`; `served` says when each was last served."""
        found = []
        for image_hash, version in (await self.versions()).items():
            metadata = await self.metadata(image_hash)
            if metadata is not None and metadata.size == version.size:
                info = StoredInfo(
                    metadata,
                    stored_at=version.modified,
                    last_served_at=served.get(image_hash),
                    pinned=image_hash in pinned,
                    places=("bucket",),
                )
                found.append(info)
        return newest_first(found)

    async def metadata(self, image_hash: str) -> ImageMetadata | None:
        """Return the metadata beside the image; None when none can be used."""
        if known := self._metadata.get(image_hash):
            return known
        if (answer := await self._bucket.get(f"images/{image_hash}.json")) is None:
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
