"""Finds and removes what failed fills left in a bucket."""

from collections.abc import AsyncIterator, Coroutine, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from mirror.store.disk.removal import Kind, Removal
from mirror.store.s3.bucket import Bucket
from mirror.store.s3.listing import Listing
from mirror.store.s3.objects import Version

STALE = timedelta(days=1)
"""Age from which parts, unfinished uploads and leases count as abandoned."""


class Leftovers:
    """The leftovers in `bucket`. `remove` raises BucketFailed."""

    def __init__(self, bucket: Bucket, listing: Listing) -> None:
        self._bucket = bucket
        self._listing = listing

    async def remove(self, *, dry_run: bool, marks: bool) -> Sequence[Removal]:
        """Remove what was last written over a day ago, and `marks` of images that are gone; return them."""
        removals = []
        async for removal, remove in self._found(await self._bucket.now() - STALE, marks=marks):
            removals.append(removal)
            if not dry_run:
                await remove
            else:
                remove.close()
        return removals

    async def _found(
        self, before: datetime, *, marks: bool
    ) -> AsyncIterator[tuple[Removal, Coroutine[Any, Any, None]]]:
        fills: dict[str, list[tuple[str, Version]]] = {}
        async for listed in self._bucket.list("parts/"):
            fills.setdefault(listed.name.rpartition("/")[0], []).append((listed.name, listed.version))
        for fill, found in fills.items():
            if max(version.modified for _, version in found) < before:
                size = sum(version.size for _, version in found)
                reason = "parts of a fill that nobody went on with for a day"
                yield Removal(Kind.PARTIAL, Path(fill), size, reason), self._delete([name for name, _ in found])
        for upload in await self._bucket.uploads("images/"):
            if upload.began < before:
                removal = Removal(Kind.LEFTOVER, Path(upload.name), 0, "an upload that nobody completed for a day")
                yield removal, self._bucket.abort_upload(upload.name, upload.upload)
        async for listed in self._bucket.list("leases/"):
            if listed.version.modified < before:
                reason = "a lease of more than a day ago"
                removal = Removal(Kind.LEFTOVER, Path(listed.name), listed.version.size, reason)
                yield removal, self._delete([listed.name])
        if marks:
            async for removal in self._old_marks(before):
                yield removal, self._delete([str(removal.path)])

    async def _old_marks(self, before: datetime) -> AsyncIterator[Removal]:
        there = await self._listing.versions()
        async for listed in self._bucket.list("served/"):
            if listed.version.modified < before and listed.name.removeprefix("served/") not in there:
                yield Removal(Kind.LEFTOVER, Path(listed.name), listed.version.size, "of an image that has gone")

    async def _delete(self, names: Sequence[str]) -> None:
        for name in names:
            await self._bucket.delete(name)
