"""`pps-mirror verify`, `pin`, `unpin`, `rm`, `gc`: the store in a person's hands, beside a running mirror or alone.

An image is named by the first 6 or more digits of its hash, or `current`.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mirror import ls
from mirror.config import Config
from mirror.errors import MirrorError, NotFound, UsageError
from mirror.progress import Meter
from mirror.store.disk import DiskStore
from mirror.store.removal import Removal
from mirror.store.space import Collected
from mirror.store.verification import Verdict, Verified
from mirror.stores import Stores, opened
from mirror.units import format_size

if TYPE_CHECKING:
    from mirror.store.s3.store import S3Store

_WHERE = {"disk": "on the disk", "bucket": "in the bucket"}

_PREFIX = re.compile(r"[0-9a-f]{6,64}")


@dataclass(frozen=True, slots=True)
class _Shelf:
    """Open stores: the `sizes` of all that lies there as an image, by place and hash; the lines of what is whole."""

    stores: Stores
    sizes: Mapping[str, Mapping[str, int]]
    lines: Mapping[str, ls.Line]

    @property
    def hashes(self) -> Sequence[str]:
        """Of all that lies there."""
        return list(dict.fromkeys([*(each for sizes in self.sizes.values() for each in sizes), *self.lines]))

    def places(self, image_hash: str) -> Sequence[tuple[str, "DiskStore | S3Store"]]:
        """Where an image is. A part of one that is verified anew just now is on the disk."""
        return [
            (name, place)
            for name, place in self.stores.places.items()
            if image_hash in self.sizes[name] or name in self.lines[image_hash].info.places
        ]

    def find(self, name: str) -> str:
        """The hash that `name` stands for. Raises UsageError, or NotFound when it is none or more than one."""
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


def verify(config: Config, name: str | None, meter: Meter) -> Sequence[Verified]:
    """Hash one image again, or all of them, and show that on `meter`. Raises UsageError, NotFound, StoreUnavailable."""
    return asyncio.run(_verify(config, name, meter))


def pin(config: Config, name: str, *, pinned: bool) -> str:
    """Pin an image or take that back; its hash. Raises UsageError, NotFound, StoreUnavailable."""
    return asyncio.run(_pin(config, name, pinned))


def remove(config: Config, name: str, *, force: bool) -> str:
    """Remove an image; its hash. Raises UsageError, or MirrorError when it is pinned or current and not `force`."""
    return asyncio.run(_remove(config, name, force))


def collect(config: Config, *, dry_run: bool) -> Collected:
    """Clear away what nobody will miss, and evict down to the bounds. Raises StoreUnavailable."""
    return asyncio.run(_collect(config, dry_run))


def complain_of_excess(collected: Collected) -> None:
    """Raise MirrorError when the store is still beyond its bounds."""
    if collected.beyond:
        raise MirrorError(
            f"the store is still {format_size(collected.beyond)} beyond store.max_size or store.min_free: what is left "
            "is pinned, current, being served, or among the newest that store.keep protects"
        )


@asynccontextmanager
async def _open(config: Config) -> AsyncIterator[_Shelf]:
    with ThreadPoolExecutor(2) as pool:
        async with opened(config, pool) as stores:
            sizes: dict[str, Mapping[str, int]] = {"disk": {}}
            for name, place in stores.places.items():
                if name != "disk" or (config.store.path / "images").exists():
                    sizes[name] = await place.sizes()
            lines = {line.info.metadata.hash: line for line in await ls.lines(config, stores, pool)}
            yield _Shelf(stores, sizes, lines)


async def _verify(config: Config, name: str | None, meter: Meter) -> Sequence[Verified]:
    done = []
    async with _open(config) as shelf:
        for image_hash in [shelf.find(name)] if name is not None else shelf.hashes:
            for where, place in shelf.places(image_hash):
                size = shelf.sizes[where].get(image_hash, 0)
                said = f"{image_hash[:12]} ({format_size(size)})" + (
                    f" {_WHERE[where]}:" if shelf.stores.bucket else ""
                )
                meter.start(size, 0, "verifying")
                try:
                    verified = await place.verify(image_hash, progress=lambda at: meter.show(at, "verifying"))
                finally:
                    meter.stop()
                outcome = "good" if verified.verdict is Verdict.GOOD else f"{verified.verdict}: {verified.detail}"
                meter.say(f"{said} {outcome}")
                done.append(verified)
    if not done:
        meter.say(f"no images are stored in {config.store.path}")
    return done


async def _pin(config: Config, name: str, pinned: bool) -> str:
    async with _open(config) as shelf:
        image_hash = shelf.find(name)
        for _, place in shelf.places(image_hash):
            await place.pin(image_hash, pinned=pinned)
        return image_hash


async def _remove(config: Config, name: str, force: bool) -> str:
    async with _open(config) as shelf:
        image_hash = shelf.find(name)
        line = shelf.lines.get(image_hash)
        if line is not None and not force:
            reasons = [word for word, holds in (("pinned", line.info.pinned), ("current", line.current)) if holds]
            if reasons:
                raise MirrorError(
                    f"{image_hash[:12]} is {' and '.join(reasons)}: give --force to remove it all the same"
                )
        for _, place in shelf.places(image_hash):
            if not await place.remove(image_hash):
                raise MirrorError(f"{image_hash[:12]} is being verified by a running mirror just now: try again later")
        return image_hash


async def _collect(config: Config, dry_run: bool) -> Collected:
    removals: list[Removal] = []
    beyond = 0
    async with _open(config) as shelf:
        for name, place in shelf.stores.places.items():
            if name != "disk" or (config.store.path / "images").exists():
                collected = await place.collect(dry_run=dry_run)
                removals += collected.removals
                beyond += collected.beyond
    return Collected(tuple(removals), beyond)
