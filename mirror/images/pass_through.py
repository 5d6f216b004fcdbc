"""Passes an image through: what a fill continues with when the store takes nothing, or fails halfway."""

import hashlib
import weakref

from mirror.images.fill import OUT_OF_SPACE, Fill
from mirror.images.store_health import StoreHealth
from mirror.model.metadata import ImageMetadata
from mirror.model.source import Source
from mirror.store.base import BlobStore, Partial, StoreUnavailable, Transfer, Unnamed
from mirror.store.memory import MemoryWindow

WINDOWS = 4
"""The most images passed through at a time: each takes memory (see `mirror.store.memory.SIZE`)."""


class PassThrough:
    """Gives windows in memory to fills that `store` has no room for; `health` is told how the store fails."""

    def __init__(self, store: BlobStore, health: StoreHealth) -> None:
        self._store = store
        self._health = health
        self._windows: weakref.WeakSet[MemoryWindow] = weakref.WeakSet()

    def transfer(self, metadata: ImageMetadata, upstream: Source) -> Transfer:
        """Return what a fill that stores nothing works with. Raises StoreUnavailable when there are too many."""
        return Transfer(self._window(metadata), self._store.nearest(metadata, upstream))

    async def rescue(self, fill: Fill, error: OSError) -> Partial:
        """See `mirror.images.fill.Rescue`."""
        journal = fill.journal
        if isinstance(error, Unnamed):
            self._health.name_failed(error)
            return journal
        wanted = fill.metadata.size - journal.position
        if error.errno in OUT_OF_SPACE and await self._store.make_room(wanted):
            return journal
        look = self._store.probe if journal.file is None else None  # it is in a bucket
        trouble = StoreUnavailable(f"the mirror's store fails: {error.strerror or type(error).__name__}")
        self._health.failed(trouble, look)
        return self._window(fill.metadata, journal.position, journal.digest())

    def _window(
        self, metadata: ImageMetadata, position: int = 0, digest: "hashlib._Hash | None" = None
    ) -> MemoryWindow:
        if len(self._windows) >= WINDOWS:
            raise StoreUnavailable(
                f"{self._health.state.trouble}; and {WINDOWS} images are passed through already, as many as can"
            )
        window = MemoryWindow(metadata, position, digest)
        self._windows.add(window)
        return window
