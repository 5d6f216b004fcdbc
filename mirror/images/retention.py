"""Decides which stored images may be evicted when room is needed, and in which order. It removes nothing itself."""

from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime

from mirror.store.base import StoredInfo

_LONG_AGO = datetime.min.replace(tzinfo=UTC)


def evictable(
    images: Sequence[StoredInfo],
    current: str | None,
    read: Collection[str],
    *,
    keep: int,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Sequence[StoredInfo]:
    """Return the images that may be evicted, least recently served first.

    For an image that was never served, the time when it was stored counts. Ties go to the image that was stored first,
    then to the smaller hash. Pinned images are never evicted, nor is the `current` one, one that is being `read`, or
    one of the `keep` that were stored last. A time in the future, from a clock that was wrong, counts as long ago, so
    that it does not keep an image forever.
    """
    present = now()

    def past(moment: datetime | None) -> datetime | None:
        return moment if moment is not None and moment <= present else None

    def stored(info: StoredInfo) -> datetime:
        return past(info.stored_at) or _LONG_AGO

    newest = sorted(images, key=lambda info: (stored(info), info.metadata.hash), reverse=True)[:keep]
    kept = {info.metadata.hash for info in newest} | {current, *read}
    free = [info for info in images if not info.pinned and info.metadata.hash not in kept]
    return sorted(free, key=lambda info: (past(info.last_served_at) or stored(info), stored(info), info.metadata.hash))
