"""Makes room in a bucket that `store.s3.max_size` bounds: counts what is there and what is coming, and evicts.

All replicas share the bucket, and any of them may evict, but only one at a time (`leases/room`). Just before an image
goes, it checks once more whether a replica pinned it, serves it, fetches it, or says that it is current. This only
saves a fetch: a client that reads an image while it is removed is reset, or gets it again from upstream.

    served/<hash>    its time is when any replica last served the image
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from mirror.common.log import event
from mirror.common.units import format_size
from mirror.model.metadata import ImageMetadata
from mirror.model.note import Note
from mirror.store.base import Retention, StoredInfo
from mirror.store.disk.layout import Layout
from mirror.store.disk.removal import Kind, Removal
from mirror.store.disk.space import Use, chosen
from mirror.store.pinning import BucketPins
from mirror.store.s3.bucket import Bucket
from mirror.store.s3.contents import Contents, contents_of
from mirror.store.s3.errors import BucketFailed, NoRoom
from mirror.store.s3.lease import Lease, LeaseNote
from mirror.store.s3.live_processes import Processes
from mirror.store.s3.objects import ConditionFailed, Version

log = logging.getLogger(__name__)


ROOM = "room"
"""The lease of the replica that evicts."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of at most `max_size` bytes, evicting in the order of `retention`.

    What was served less than `lately` seconds ago stays. `evicted` is called with the hash of each evicted image.
    """

    max_size: int
    retention: Retention
    lately: float = 0.0
    evicted: Callable[[str], None] = lambda _: None


class BucketSpace:
    """The room of `bucket`. `images` and `versions` list what is there; `read` are hashes being read here now.

    `directory` has our own notes of what is current. `full` says why there was no room for an image, if so.
    """

    def __init__(
        self,
        bucket: Bucket,
        bounds: Bounds,
        processes: Processes,
        directory: Path,
        *,
        images: Callable[[], Awaitable[Sequence[StoredInfo]]],
        versions: Callable[[], Awaitable[Mapping[str, Version]]],
        read: Callable[[], Collection[str]],
    ) -> None:
        self.full: str | None = None
        self._wanted: ImageMetadata | None = None
        self._bucket = bucket
        self._bounds = bounds
        self._processes = processes
        self._pins = BucketPins(bucket)
        self._layout = Layout(directory)
        self._images = images
        self._versions = versions
        self._read = read
        self._lately = timedelta(seconds=max(bucket.timings.lately, bounds.lately))

    async def use(self) -> Use:
        """Return how full it is. Raises BucketFailed."""
        contents = await self._look()
        current = await self._current()
        evictable = sum(removal.size for removal in await self._candidates(contents, current, spare=None))
        limit = self._bounds.max_size
        largest = max(0, self._left(contents, None) + evictable)
        return Use(contents.used, limit, max(0, limit - contents.used), largest)

    async def expect(self, metadata: ImageMetadata) -> None:
        """Check that there is or could be room for an image that is not being fetched yet.

        Raises NoRoom, BucketFailed.
        """
        contents = await self._look()
        if metadata.hash not in contents.coming:
            await self._plan(contents, metadata, ())

    async def reserve(self, metadata: ImageMetadata, *, conditions: bool) -> None:
        """Make room for an image whose lease we hold. Raises NoRoom when that is impossible, BucketFailed.

        `conditions` says whether the server supports them: without them there are no leases, and several replicas may
        evict at once.
        """
        if await self._plan(await self._look(), metadata, ()):
            gone: set[Path] = set()
            async with self._turn(conditions):
                contents = await self._look()
                while plan := await self._plan(contents, metadata, gone):
                    for removal in plan:
                        await self._evict(removal, contents, conditions)
                        gone.add(removal.path)
                    contents = await self._look()
        self._is_full(None)

    async def collect(
        self, *, dry_run: bool, conditions: bool, without: Sequence[Removal] = ()
    ) -> tuple[list[Removal], int]:
        """Evict down to the bound as far as allowed; return what went, and the bytes that are still over it.

        `without` is what would have been removed before this, in a dry run.
        """
        done: list[Removal] = []
        async with self._turn(conditions and not dry_run):
            contents = await self._look()
            beyond = -self._left(contents, None) - sum(removal.size for removal in without)
            candidates = await self._candidates(contents, await self._current(), spare=None)
            spared = {Path(*removal.path.parts[:2]) for removal in without}
            for removal in candidates:
                if beyond <= 0:
                    break
                if removal.path not in spared and (dry_run or await self._evict(removal, contents, conditions)):
                    done.append(removal)
                    beyond -= removal.size
        if self._wanted is not None and not dry_run:
            with contextlib.suppress(NoRoom):
                await self.expect(self._wanted)
                self._is_full(None)
        return done, max(0, beyond)

    # Internals

    async def _look(self) -> Contents:
        return await contents_of(self._bucket, self._processes, self._versions, self._images)

    def _left(self, contents: Contents, spare: str | None) -> int:
        """Return the bytes that may still come, if the image to `spare` were not there."""
        used = contents.used - (contents.of(spare) if spare is not None else 0)
        return self._bounds.max_size - used - contents.promised(spare)

    async def _plan(self, contents: Contents, metadata: ImageMetadata, without: Collection[Path]) -> list[Removal]:
        """Plan what to remove so that an image fits; nothing when it already does. Raises NoRoom."""
        short = metadata.size - self._left(contents, metadata.hash)
        if short <= 0:
            return []
        candidates = await self._candidates(contents, await self._current(), spare=metadata.hash)
        plan = chosen(candidates, short, without)
        if sum(removal.size for removal in plan) < short:
            self._wanted = metadata
            raise NoRoom(self._is_full(self._explain(contents, metadata, short)))
        return plan

    async def _candidates(self, contents: Contents, current: Collection[str], *, spare: str | None) -> list[Removal]:
        """Return what may go, in order: first parts that no fill continues, then images."""
        kept = {*current, *contents.coming, *self._read(), *([spare] if spare else ())}
        candidates = []
        for image_hash, parts in contents.parts.items():
            last = max(listed.version.modified for listed in parts)
            if image_hash not in kept and last < contents.now - self._lately:
                size = contents.of(image_hash) - contents.stored(image_hash)
                candidates.append(Removal(Kind.PARTIAL, Path("parts", image_hash), size, "nobody goes on with it"))
        lately = {info.metadata.hash for info in contents.images if self._is_recent(info, contents.now)}
        for info in self._bounds.retention(contents.images, None, kept | lately):
            place = Path("images", info.metadata.hash)
            candidates.append(Removal(Kind.IMAGE, place, info.metadata.size, "served least recently"))
        return candidates

    def _is_recent(self, info: StoredInfo, now: datetime) -> bool:
        """Return whether it was stored or served recently."""
        return max(info.stored_at, info.last_served_at or info.stored_at) > now - self._lately

    async def _evict(self, removal: Removal, contents: Contents, conditions: bool) -> bool:
        """Evict it, unless a replica has begun to use it since."""
        image_hash = removal.path.name
        if await self._is_wanted(image_hash):
            return False
        if removal.kind is Kind.PARTIAL:
            for listed in contents.parts[image_hash]:
                await self._bucket.delete(listed.name)
        elif not await self._remove(image_hash, contents, conditions):
            return False
        log.info(
            "evicted %s %s of the bucket (%s)",
            removal.kind,
            image_hash,
            format_size(removal.size),
            extra=event(f"{removal.kind}.evicted", path=image_hash, size=removal.size),
        )
        if removal.kind is Kind.IMAGE:
            self._bounds.evicted(image_hash)
        return True

    async def _remove(self, image_hash: str, contents: Contents, conditions: bool) -> bool:
        (info,) = [info for info in contents.images if info.metadata.hash == image_hash]
        image = f"images/{image_hash}"
        try:
            await self._bucket.delete(image, if_etag=contents.versions[image_hash].etag if conditions else None)
        except ConditionFailed:  # it has been stored again
            return False
        for name in (f"{image}.json", f"served/{image_hash}"):
            await self._bucket.delete(name)
        if await self._bucket.head(image) is not None:  # it is being stored again right now
            await self._bucket.put(f"{image}.json", info.metadata.raw)
        return True

    async def _is_wanted(self, image_hash: str) -> bool:
        """Return whether it is pinned, served, fetched or current, as far as can be seen at this moment."""
        if image_hash in self._read() or image_hash in await self._current():
            return True
        if await self._pins.is_pinned(image_hash):
            return True
        held = await self._lease(image_hash).look()
        if held is not None and not held.free:
            return True
        served = await self._bucket.head(f"served/{image_hash}")
        return served is not None and served.modified > await self._bucket.now() - self._lately

    async def _current(self) -> set[str]:
        """Return the images that clients get without naming one, here and, by the shared note, at other replicas."""
        loop = asyncio.get_running_loop()
        named = {await loop.run_in_executor(None, note) for note in (self._layout.named, self._layout.shown)}
        if (answer := await self._bucket.get("current.json")) is not None:
            with contextlib.suppress(ValueError):
                named.add(Note.parse(answer.data).metadata.hash)
        if not (found := {each for each in named if each is not None}):
            newest = max(await self._images(), key=lambda info: info.metadata.created, default=None)
            found = {newest.metadata.hash} if newest is not None else set()
        return found

    def _lease(self, name: str) -> Lease:
        return Lease(self._bucket, name, self._processes)

    @asynccontextmanager
    async def _turn(self, conditions: bool) -> AsyncIterator[None]:
        """Wait to be the only replica that evicts, if the server supports `conditions`; but not for long."""
        lease, note = self._lease(ROOM), LeaseNote(secrets.token_hex(8), 1)
        clock = asyncio.get_running_loop().time
        until = clock() + self._bucket.timings.turn
        while conditions:
            held = await lease.look()
            if (held is None or held.free) and await lease.take(note, held):
                break
            if clock() > until:
                break
            await asyncio.sleep(self._bucket.timings.turn_pause)
        try:
            yield
        finally:
            with contextlib.suppress(BucketFailed):
                await lease.remove()

    def _is_full(self, why: str | None) -> str:
        if why is not None and self.full is None:
            log.error("%s", why, extra=event("bucket.full"))
        if why is None and self.full is not None:
            log.info("the bucket %s has room again", self._bucket.name, extra=event("bucket.roomy"))
            self._wanted = None
        self.full = why
        return why or ""

    def _explain(self, contents: Contents, metadata: ImageMetadata, short: int) -> str:
        bound = self._bounds.max_size
        where = f"the bucket {self._bucket.name}"
        if metadata.size > bound:
            return (
                f"this image is larger than all images in {where} may be ({format_size(metadata.size)}, "
                f"store.s3.max_size = {format_size(bound)})"
            )
        needs = f"this image needs {format_size(metadata.size)}"
        if promised := contents.promised(metadata.hash):
            needs += f", those that are on their way {format_size(promised)}"
        return (
            f"{where} holds {format_size(contents.used)} of store.s3.max_size = {format_size(bound)}; {needs}: raise "
            f"store.s3.max_size, or lower store.s3.keep or unpin images, so that {format_size(short)} can be evicted"
        )
