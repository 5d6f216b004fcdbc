"""Finds a stored image by the first digits of its hash, and pins or removes it wherever it is stored.

An image is named by 6 or more digits, or `current`. The command line and the admin listener use this.
"""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mirror.config import Config
from mirror.model.caller import Caller
from mirror.model.errors import MirrorError, NotFound, UsageError
from mirror.model.metadata import ImageMetadata
from mirror.model.notification import Notify, tell_nobody
from mirror.store.base import Body, StoredInfo
from mirror.store.disk.store import DiskStore
from mirror.wiring.metadata_cache import loaded_metadata_cache
from mirror.wiring.notices import telling_of_evictions
from mirror.wiring.stores import Stores, open_stores

if TYPE_CHECKING:
    from mirror.store.s3.store import S3Store

_PREFIX = re.compile(r"[0-9a-f]{6,64}")


@dataclass(frozen=True, slots=True)
class StoredLine:
    """A stored image, and whether it is the current one."""

    info: StoredInfo
    current: bool


@dataclass(frozen=True, slots=True)
class Selection:
    """The images in open stores: the `sizes` of all, by place and hash, and the `lines` of those that are whole."""

    stores: Stores
    sizes: Mapping[str, Mapping[str, int]]
    lines: Mapping[str, StoredLine]

    @classmethod
    async def of(cls, config: Config, stores: Stores, lines: Sequence[StoredLine]) -> "Selection":
        """Look up the sizes of all images, also of those that are not in `lines`. Raises StoreUnavailable."""
        sizes: dict[str, Mapping[str, int]] = {"disk": {}}
        for name, place in stores.places.items():
            if name != "disk" or (config.store.path / "images").exists():
                sizes[name] = await place.sizes()
        return cls(stores, sizes, {line.info.metadata.hash: line for line in lines})

    @property
    def hashes(self) -> Sequence[str]:
        """The hashes of all images."""
        return list(dict.fromkeys([*(each for sizes in self.sizes.values() for each in sizes), *self.lines]))

    def places(self, image_hash: str) -> Sequence[tuple[str, "DiskStore | S3Store"]]:
        """Return the places that have an image; the disk also while it verifies the image again."""
        return [
            (name, place)
            for name, place in self.stores.places.items()
            if image_hash in self.sizes[name] or name in self.lines[image_hash].info.places
        ]

    def find(self, name: str) -> str:
        """Return the hash that `name` stands for. Raises UsageError, or NotFound for no image or several."""
        if name == "current":
            named = [image_hash for image_hash, line in self.lines.items() if line.current]
            if not named:
                raise NotFound("the current image is not stored, as far as is known here; see `pps-mirror ls`")
            return named[0]
        if not _PREFIX.fullmatch(prefix := name.lower()):
            raise UsageError(f"{name!r} names no image; expected 6 or more digits of its hash, or current")
        alike = [image_hash for image_hash in self.hashes if image_hash.startswith(prefix)]
        if not alike:
            raise NotFound(f"no stored image has a hash that begins with {prefix}; see `pps-mirror ls`")
        if len(alike) > 1:
            raise NotFound(f"{len(alike)} stored images have a hash that begins with {prefix}: give more of it")
        return alike[0]

    async def open(self, image_hash: str) -> Body:
        """Open an image that is verified, where it is. Raises NotFound, StoreUnavailable."""
        for _, place in self.places(image_hash):
            if image := await place.open(image_hash):
                return image
        short = image_hash[:12]
        raise NotFound(f"{short} is stored, but not as an image that was verified: run `pps-mirror verify {short}`")

    async def pin(self, name: str, *, pinned: bool) -> str:
        """Pin or unpin an image. Returns its hash. Raises UsageError, NotFound, StoreUnavailable."""
        image_hash = self.find(name)
        for _, place in self.places(image_hash):
            await place.pin(image_hash, pinned=pinned)
        return image_hash

    async def remove(self, name: str, *, force: bool, insist: str = "give --force") -> str:
        """Remove an image. Returns its hash.

        Raises UsageError, or NotRemoved when the image is pinned or current and not `force`.
        `force` also cuts running downloads of it. `insist` tells the person how to use force.
        """
        image_hash = self.find(name)
        line = self.lines.get(image_hash)
        if line is not None and not force:
            reasons = [word for word, holds in (("pinned", line.info.pinned), ("current", line.current)) if holds]
            if reasons:
                raise NotRemoved(f"{image_hash[:12]} is {' and '.join(reasons)}: {insist} to remove it all the same")
        for _, place in self.places(image_hash):
            if not await place.remove(image_hash, cut=force):
                raise NotRemoved(f"{image_hash[:12]} is being verified by a running mirror just now: try again later")
        return image_hash


class NotRemoved(MirrorError):
    """An image was not removed, for a reason that a person may change."""

    status = 409


@asynccontextmanager
async def open_selection(config: Config, notify: Notify = tell_nobody) -> AsyncIterator[Selection]:
    """Open the stores of a configuration and look up their images. Raises StoreUnavailable."""
    with ThreadPoolExecutor(2) as pool:
        async with open_stores(config, pool, telling_of_evictions(notify)) as stores:
            yield await Selection.of(config, stores, await lines(config, stores, pool))


async def lines(config: Config, stores: Stores, pool: ThreadPoolExecutor) -> Sequence[StoredLine]:
    """List the images without a running mirror, newest first; none when there is no store. Raises StoreUnavailable."""
    if not (config.store.path / "images").exists():
        if stores.bucket is None:
            return []
        stores = replace(stores, front=stores.bucket)
    metadata_cache = await loaded_metadata_cache(config, _unasked if config.upstream.url else None, stores, pool)
    return lines_of(await stores.front.list(), await metadata_cache.known_hash())


async def _unasked(caller: Caller) -> ImageMetadata:
    raise AssertionError("nothing here asks upstream")


def lines_of(images: Sequence[StoredInfo], current: str | None) -> Sequence[StoredLine]:
    """Make the lines of these images; `current` is the hash of the current one."""
    return [StoredLine(info, current=info.metadata.hash == current) for info in images]
