"""Which stored images may go when room is needed, and which of them first. Policy only: it removes nothing."""

from collections.abc import Collection, Sequence

from mirror.store.base import StoredInfo


def evictable(
    images: Sequence[StoredInfo], current: str | None, read: Collection[str], *, keep: int
) -> Sequence[StoredInfo]:
    """The images that may be evicted, least recently served first; one never served counts from when it was stored.

    Of those served at the same time the one stored first goes first, then the one whose hash is less. Never a pinned
    one, the `current` one, one that is being `read`, or one of the `keep` that were stored last.
    """
    newest = sorted(images, key=lambda info: (info.stored_at, info.metadata.hash), reverse=True)[:keep]
    kept = {info.metadata.hash for info in newest} | {current, *read}
    free = [info for info in images if not info.pinned and info.metadata.hash not in kept]
    return sorted(free, key=lambda info: (info.last_served_at or info.stored_at, info.stored_at, info.metadata.hash))
