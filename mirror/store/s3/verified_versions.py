"""Remembers which versions of objects this process has verified, and which turned out to be wrong."""

import logging

from mirror.common.log import event
from mirror.model.metadata import ImageMetadata
from mirror.store.s3.bucket import Bucket
from mirror.store.s3.objects import Version

log = logging.getLogger(__name__)


class Versions:
    """What is known of images' objects. Only what this process read itself counts, and only for that version."""

    def __init__(self) -> None:
        self._good: dict[str, tuple[str, int]] = {}
        self._bad: dict[str, tuple[str, int]] = {}

    async def usable(self, bucket: Bucket, metadata: ImageMetadata) -> Version | None:
        """Return the image's object, unless there is none or it is known to be wrong. Raises BucketFailed."""
        version = await bucket.head(f"images/{metadata.hash}")
        if version is None or self.distrusted(metadata.hash, version):
            return None
        if version.size != metadata.size:
            log.error(
                "%s in the bucket has %d bytes and should have %d: it is not used",
                metadata.hash,
                version.size,
                metadata.size,
                extra=event("bucket.bad", image=metadata.hash),
            )
            self.distrust(metadata.hash, version)
            return None
        return version

    def trust(self, image_hash: str, version: Version) -> None:
        """Note that all its bytes were read and were right."""
        self._good[image_hash] = version.etag, version.size

    def distrust(self, image_hash: str, version: Version) -> None:
        """Note that all its bytes were read and were not that image's."""
        self._bad[image_hash] = version.etag, version.size
        self._good.pop(image_hash, None)

    def trusted(self, image_hash: str, version: Version) -> bool:
        """Return whether this version is known to be right."""
        return self._good.get(image_hash) == (version.etag, version.size)

    def distrusted(self, image_hash: str, version: Version) -> bool:
        """Return whether this version is known to be wrong."""
        return self._bad.get(image_hash) == (version.etag, version.size)
