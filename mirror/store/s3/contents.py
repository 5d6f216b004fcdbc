"""Lists what is in a bucket at one moment, and how many bytes that is: images, parts, and images being fetched."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from mirror.model.metadata import is_hash
from mirror.store.base import StoredInfo
from mirror.store.s3.bucket import Bucket
from mirror.store.s3.lease import Lease
from mirror.store.s3.live_processes import Processes
from mirror.store.s3.objects import Listed, Version


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a bucket `now`, each by the hash of its image.

    `versions` are the objects under an image's name, and `images` those that are whole. `coming` has the sizes, in
    bytes, of images that any replica is fetching.
    """

    now: datetime
    versions: Mapping[str, Version]
    images: Sequence[StoredInfo]
    parts: Mapping[str, Sequence[Listed]]
    coming: Mapping[str, int]

    @property
    def used(self) -> int:
        """Return the bytes of everything."""
        return sum(map(self.of, {*self.versions, *self.parts}))

    def of(self, image_hash: str) -> int:
        """Return the bytes of an image, or else of its parts: parts beside a stored image are about to be removed."""
        parts = sum(listed.version.size for listed in self.parts.get(image_hash, ()))
        return max(parts, self.stored(image_hash))

    def stored(self, image_hash: str) -> int:
        """Return the bytes that are stored under its name."""
        return self.versions[image_hash].size if image_hash in self.versions else 0

    def promised(self, spare: str | None) -> int:
        """Return the bytes still to come of images that are being fetched, except the one to `spare`."""
        return sum(max(0, size - self.of(each)) for each, size in self.coming.items() if each != spare)


async def contents_of(
    bucket: Bucket,
    processes: Processes,
    versions: Callable[[], Awaitable[Mapping[str, Version]]],
    images: Callable[[], Awaitable[Sequence[StoredInfo]]],
) -> Contents:
    """List what is in the bucket; `versions` and `images` list what has a name. Raises BucketFailed.

    Names are listed last, so that an image which gets its name meanwhile is counted twice rather than not at all.
    """
    now = await bucket.now()
    parts: dict[str, list[Listed]] = {}
    async for listed in bucket.list("parts/"):
        parts.setdefault(listed.name.split("/")[1], []).append(listed)
    coming = {}
    async for listed in bucket.list("leases/"):
        image_hash = listed.name.removeprefix("leases/")
        held = await Lease(bucket, image_hash, processes).look() if is_hash(image_hash) else None
        if held is not None and held.note is not None and not held.free:
            coming[image_hash] = held.note.size
    return Contents(now, await versions(), await images(), parts, coming)
