"""Makes room for an image before its first byte: adds up what is there and what running fills still need, and evicts.

`max_size` bounds all bytes below `images/`, `partial/` and `quarantine/`; `min_free` is what must stay free on the file
system for others. Nothing is evicted unless that makes enough room. All of it blocks.
"""

import logging
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mirror.common.files import locked_directory
from mirror.common.log import event
from mirror.common.units import format_size
from mirror.model.metadata import ImageMetadata, is_hash
from mirror.model.note import Note
from mirror.store.base import Retention, StoreUnavailable
from mirror.store.disk.layout import Layout, entries, file_at
from mirror.store.disk.removal import Kind, Removal, carry_out, leftovers, partials, quarantined
from mirror.store.read_locks import is_read

log = logging.getLogger(__name__)


class _Room(NamedTuple):
    """Bytes that are `used` by the store, `free` on its file system, and `promised` to the fills that run."""

    used: int
    free: int
    promised: int


class Use(NamedTuple):
    """How full the store is: bytes `used`, the `limit` up to which it may grow now, and `free` on its file system.

    `largest` is how large a new image may be, counting what is left after running fills have got theirs, and what may
    be evicted. A partial of the current image that no fill works on counts as room, since that image will continue
    there.
    """

    used: int
    limit: int
    free: int
    largest: int


@dataclass(frozen=True, slots=True)
class Collected:
    """What was removed, or would be, and how many bytes the store still is over its bounds."""

    removals: tuple[Removal, ...]
    beyond: int


def chosen(candidates: Iterable[Removal], short: int, without: Collection[Path] = ()) -> list[Removal]:
    """Choose, in this order, enough of what may go to free that many bytes; all of it if that is not enough."""
    plan = []
    for removal in candidates:
        if short > 0 and removal.size and removal.path not in without:
            plan.append(removal)
            short -= removal.size
    return plan


class Space:
    """The room of a disk store. `evicted` is called with the hash of each image that is evicted, in any thread."""

    def __init__(
        self,
        layout: Layout,
        *,
        max_size: int | None,
        min_free: int,
        retention: Retention,
        evicted: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._layout = layout
        self._evicted = evicted
        self.take_up(max_size=max_size, min_free=min_free, retention=retention)

    def take_up(self, *, max_size: int | None, min_free: int, retention: Retention) -> None:
        """Use these bounds from now on; nothing is evicted because of them until room is needed."""
        self._max_size = max_size
        self._min_free = min_free
        self._retention = retention

    @contextmanager
    def reserved(self, metadata: ImageMetadata, wanted: int) -> Iterator[None]:
        """Make room for `wanted` more bytes of an image. Raises StoreUnavailable when that is impossible.

        Only one process at a time runs the body of this context: it creates its partial there, so that the next one
        counts it.
        """
        with locked_directory(self._layout.root):
            if wanted > 0:
                self._make_room(metadata, wanted)
            yield

    def make_room(self, wanted: int) -> bool:
        """Evict for a fill that found the disk full and needs that many bytes; return whether that freed anything."""
        with locked_directory(self._layout.root):
            short = max(1, wanted - self._room(None).free)
            plan = self._plan(short, spare=())
            if sum(removal.size for removal in plan) < short:
                return False
            return sum(self._evict(removal) for removal in plan) > 0

    def use(self) -> "Use":
        """Return how full the store is."""
        room = self._room(None)
        limit = room.used + max(0, room.free - self._min_free)
        if self._max_size is not None:
            limit = min(limit, self._max_size)
        evictable = sum(removal.size for removal in self._plan(sys.maxsize, spare=()))
        return Use(room.used, limit, room.free, max(0, self._left(room) + evictable + self._resting()))

    def lacking(self, metadata: ImageMetadata, wanted: int) -> str | None:
        """Return why `wanted` more bytes would not fit even if everything were evicted that may be; or None."""
        room = self._room(metadata.hash)
        short = wanted - self._left(room)
        evictable = sum(removal.size for removal in self._plan(short, spare=(metadata.hash,)))
        return self._explain(metadata, wanted, room, short) if short > evictable else None

    def collect(self, *, dry_run: bool) -> Collected:
        """Clear away what can go without loss, and evict down to the bounds, as far as that is allowed."""
        with locked_directory(self._layout.root):
            done = [each for each in leftovers(self._layout) if dry_run or carry_out(self._layout, each)]
            beyond = -self._left(self._room(None))
            if dry_run:
                beyond -= sum(removal.size for removal in done)
            for removal in self._plan(beyond, spare=(), without={each.path for each in done}):
                if dry_run or self._evict(removal):
                    done.append(removal)
                    beyond -= removal.size
            return Collected(tuple(done), max(0, beyond))

    def _make_room(self, metadata: ImageMetadata, wanted: int) -> None:
        room = self._room(metadata.hash)
        short = wanted - self._left(room)
        refused: set[Path] = set()
        while short > 0:
            plan = self._plan(short, spare=(metadata.hash,), without=refused)
            if sum(removal.size for removal in plan) < short:
                raise StoreUnavailable(self._explain(metadata, wanted, room, short))
            for removal in plan:
                if self._evict(removal):
                    short -= removal.size
                else:  # a process has begun to use it since
                    refused.add(removal.path)

    def _evict(self, removal: Removal) -> bool:
        done = carry_out(self._layout, removal)
        if done:
            log.info(
                "evicted %s %s (%s)",
                removal.kind,
                removal.path.name,
                format_size(removal.size),
                extra=event(f"{removal.kind}.evicted", path=removal.path.name, size=removal.size),
            )
            if removal.kind is Kind.IMAGE:
                self._evicted(removal.path.name)
        return done

    def _plan(self, short: int, *, spare: Collection[str], without: Collection[Path] = ()) -> list[Removal]:
        """Plan what to remove to free that many bytes: first what serves no one, then images; maybe not enough."""
        current = self._layout.current()
        candidates = [*quarantined(self._layout), *partials(self._layout, spare={*spare, current})]
        images = self._layout.list()
        there = {info.metadata.hash for info in images if self._layout.file(info.metadata.hash)}
        shown = self._layout.shown()
        read = {each for each in there if each == shown or is_read(self._layout.images / each / "image")}
        for info in self._retention([info for info in images if info.metadata.hash in there], current, read):
            directory = self._layout.images / info.metadata.hash
            candidates.append(Removal(Kind.IMAGE, directory, info.metadata.size, "served least recently"))
        return chosen(candidates, short, without)

    def _room(self, spare: str | None) -> _Room:
        layout = self._layout
        begun = [path for path in entries(layout.partial) if is_hash(path.name)]
        files = [*begun, *entries(layout.quarantine)]
        try:
            sizes = layout.sizes()
        except PermissionError:  # then no image can get its name; but received bytes can wait for that, if they fit
            if self._max_size is not None:
                raise
            sizes = {}
        used = sum(sizes.values()) + sum(found.st_size for path in files if (found := file_at(path)))
        stat = os.statvfs(layout.root)
        promised = sum(self._promised(path) for path in begun if path.name != spare)
        return _Room(used, stat.f_bavail * stat.f_frsize, promised)

    def _left(self, room: _Room) -> int:
        left = room.free - self._min_free
        if self._max_size is not None:
            left = min(left, self._max_size - room.used)
        return left - room.promised

    def _resting(self) -> int:
        """Return the bytes received of the current image that no fill, of any process, is working on now."""
        if (current := self._layout.current()) is None:
            return 0
        partial = self._layout.partial / current
        file = file_at(partial)
        return 0 if file is None or is_read(partial) else file.st_size

    def _promised(self, partial: Path) -> int:
        """Return the bytes that fills, of any process, will still append to their partials."""
        if (file := file_at(partial)) is None or not is_read(partial):
            return 0
        try:
            note = Note.parse(partial.with_name(partial.name + ".json").read_bytes())
        except (OSError, ValueError):
            return 0
        return max(0, note.metadata.size - file.st_size)

    def _explain(self, metadata: ImageMetadata, wanted: int, room: _Room, short: int) -> str:
        needs = f"this image needs {format_size(wanted)} more"
        bound = self._max_size
        if bound is not None and metadata.size > bound:
            return (
                f"this image is larger than all of the mirror's store may be ({format_size(metadata.size)}, "
                f"store.max_size = {format_size(bound)})"
            )
        if room.promised:
            needs += f", those that are on their way {format_size(room.promised)}"
        if bound is not None and bound - room.used < room.free - self._min_free:
            text = (
                f"the mirror's store holds {format_size(room.used)} of store.max_size = {format_size(bound)}; {needs}"
            )
            advice = "raise store.max_size"
        else:
            text = f"the mirror's store has {format_size(room.free)} free; {needs}"
            text += f" and store.min_free keeps {format_size(self._min_free)}"
            advice = "free some space"
        return f"{text}: {advice}, or lower store.keep or unpin images, so that {format_size(short)} can be evicted"
