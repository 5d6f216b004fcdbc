"""`pps-mirror verify`, `pin`, `unpin`, `rm`, `gc`: manage stored images, beside a running mirror or without one.

An image is named by the first 6 or more digits of its hash, or `current`.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from mirror.admin.hooks.publisher import Publisher
from mirror.common.metrics import Metrics
from mirror.common.progress import Meter
from mirror.common.units import format_size
from mirror.config import Config
from mirror.images.scrub import quarantined
from mirror.model.errors import MirrorError
from mirror.model.notification import Notify
from mirror.store.disk.removal import Removal
from mirror.store.disk.space import Collected
from mirror.store.disk.verification import Verdict, Verified
from mirror.wiring.selection import Selection, open_selection

_WHERE = {"disk": "on the disk", "bucket": "in the bucket"}


def verify(config: Config, name: str | None, meter: Meter) -> Sequence[Verified]:
    """Verify one image or all, and show it on `meter`. Raises UsageError, NotFound, StoreUnavailable."""
    return asyncio.run(_verify(config, name, meter))


def pin(config: Config, name: str, *, pinned: bool) -> str:
    """Pin or unpin an image. Returns its hash. Raises UsageError, NotFound, StoreUnavailable."""
    return asyncio.run(_pin(config, name, pinned))


def remove(config: Config, name: str, *, force: bool) -> str:
    """Remove an image. Returns its hash. Raises UsageError, or MirrorError if it is pinned or current."""
    return asyncio.run(_remove(config, name, force))


def collect(config: Config, *, dry_run: bool) -> Collected:
    """Remove leftovers, and evict images until the store is within its bounds. Raises StoreUnavailable."""
    return asyncio.run(_collect(config, dry_run))


def complain_of_excess(collected: Collected) -> None:
    """Raise MirrorError when the store is still beyond its bounds."""
    if collected.beyond:
        raise MirrorError(
            f"the store is still {format_size(collected.beyond)} beyond store.max_size or store.min_free (bucket: "
            "store.s3.max_size): what is left is pinned, current, being served, or among the newest that are kept"
        )


@asynccontextmanager
async def _opened(config: Config) -> AsyncIterator[tuple[Selection, Notify]]:
    """Open the stores, and what queues events for hooks: a running mirror delivers them, or the next one."""
    async with Publisher(config, Metrics()).running() as publisher, open_selection(config, publisher) as selection:
        yield selection, publisher


async def _verify(config: Config, name: str | None, meter: Meter) -> Sequence[Verified]:
    done = []
    async with _opened(config) as (selection, notify):
        for image_hash in [selection.find(name)] if name is not None else selection.hashes:
            for where, place in selection.places(image_hash):
                size = selection.sizes[where].get(image_hash, 0)
                said = f"{image_hash[:12]} ({format_size(size)})" + (
                    f" {_WHERE[where]}:" if selection.stores.bucket else ""
                )
                meter.start(size, 0, "verifying")
                try:
                    verified = await place.verify(image_hash, progress=lambda at: meter.show(at, "verifying"))
                finally:
                    meter.stop()
                outcome = "good" if verified.verdict is Verdict.GOOD else f"{verified.verdict}: {verified.detail}"
                meter.say(f"{said} {outcome}")
                if verified.bad:
                    notify(quarantined(verified))
                done.append(verified)
    if not done:
        meter.say(f"no images are stored in {config.store.path}")
    return done


async def _pin(config: Config, name: str, pinned: bool) -> str:
    async with open_selection(config) as selection:
        return await selection.pin(name, pinned=pinned)


async def _remove(config: Config, name: str, force: bool) -> str:
    async with open_selection(config) as selection:
        return await selection.remove(name, force=force)


async def _collect(config: Config, dry_run: bool) -> Collected:
    removals: list[Removal] = []
    beyond = 0
    async with _opened(config) as (selection, _):
        for name, place in selection.stores.places.items():
            if name != "disk" or (config.store.path / "images").exists():
                collected = await place.collect(dry_run=dry_run)
                removals += collected.removals
                beyond += collected.beyond
    return Collected(tuple(removals), beyond)
