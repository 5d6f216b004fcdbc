"""Pins images: a person says that an image must stay, and an empty mark beside it tells everything that evicts.

On a disk the mark is `images/<hash>/pinned`; in a bucket it is `pinned/<hash>` and holds for all mirrors of the fleet.
What a mark protects against is decided in `mirror.images.retention`.
"""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from mirror.common.files import sync_directory

if TYPE_CHECKING:
    from mirror.store.s3.bucket import Bucket


class DiskPins:
    """The pinned images below the directory `images`. All of it blocks; raises OSError."""

    def __init__(self, images: Path) -> None:
        self._images = images

    def is_pinned(self, image_hash: str) -> bool:
        """Return whether the image must stay."""
        return self._mark(image_hash).exists()

    def pin(self, image_hash: str, *, pinned: bool) -> None:
        """Pin a stored image durably, or unpin it."""
        mark = self._mark(image_hash)
        if pinned:
            mark.touch()
        else:
            mark.unlink(missing_ok=True)
        sync_directory(mark.parent)

    def _mark(self, image_hash: str) -> Path:
        return self._images / image_hash / "pinned"


class BucketPins:
    """The pinned images of a bucket. Every method raises BucketFailed."""

    def __init__(self, bucket: "Bucket") -> None:
        self._bucket = bucket

    async def is_pinned(self, image_hash: str) -> bool:
        """Return whether the image must stay."""
        return await self._bucket.head(f"pinned/{image_hash}") is not None

    async def all(self) -> Collection[str]:
        """Return the hashes of all pinned images."""
        return {listed.name.removeprefix("pinned/") async for listed in self._bucket.list("pinned/")}

    async def pin(self, image_hash: str, *, pinned: bool) -> None:
        """Pin an image for all mirrors, or unpin it."""
        if pinned:
            await self._bucket.put(f"pinned/{image_hash}", b"")
        else:
            await self._bucket.delete(f"pinned/{image_hash}")
