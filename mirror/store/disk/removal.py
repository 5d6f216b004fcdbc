"""Removes things from a disk store.

After a crash each of them is either still whole, or a leftover that a later start clears away. The decision which
images may go is made in `mirror.images.retention` and is not checked again here. All of it blocks.
"""

import fcntl
import logging
import os
import secrets
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mirror.common.files import SUFFIX, sync_directory
from mirror.common.log import event
from mirror.model.metadata import is_hash
from mirror.store.disk.layout import Layout, entries, file_at
from mirror.store.disk.quarantine import KEPT_SECONDS, quarantined_at, remove
from mirror.store.read_locks import is_read

log = logging.getLogger(__name__)

LEFTOVER_SECONDS = 3600
"""Age in seconds from which a file that a crash may have left is taken to be written by no process any more."""

STALE_SECONDS = 7 * 86_400
"""Age in seconds from which a partial that nothing resumes is given up."""


class Kind(StrEnum):
    """The kinds of things that are removed."""

    LEFTOVER = "leftover"
    QUARANTINED = "quarantined"
    PARTIAL = "partial"
    IMAGE = "image"


@dataclass(frozen=True, slots=True)
class Removal:
    """One thing that can be removed: where it is, how many bytes that frees, and why it may go."""

    kind: Kind
    path: Path
    size: int
    reason: str


def carry_out(layout: Layout, removal: Removal) -> bool:
    """Remove it; return False when it is now in use, is an image that was pinned since, or cannot be removed."""
    try:
        return _carry_out(layout, removal)
    except OSError as error:  # one thing that belongs to another user must not keep the rest from being removed
        log.warning(
            "%s %s cannot be removed: %s",
            removal.kind,
            removal.path.name,
            error.strerror,
            extra=event(f"{removal.kind}.stuck", path=removal.path.name),
        )
        return False


def _carry_out(layout: Layout, removal: Removal) -> bool:
    match removal.kind:
        case Kind.PARTIAL:
            return remove_partial(removal.path)
        case Kind.IMAGE:
            image_hash = removal.path.name
            if layout.is_pinned(image_hash) or is_read(removal.path / "image"):
                return False
            remove_image(layout, image_hash)
        case Kind.LEFTOVER | Kind.QUARANTINED:
            remove(removal.path)
    return True


def remove_image(layout: Layout, image_hash: str) -> None:
    """Take the image out in one step, then free its space; processes that have it open can go on reading."""
    directory = layout.images / image_hash
    aside = directory.with_name(f"{image_hash}.{secrets.token_hex(8)}{SUFFIX}")
    try:
        directory.rename(aside)
    except FileNotFoundError:  # another process was quicker
        return
    sync_directory(layout.images)
    remove(aside)


def remove_partial(path: Path) -> bool:
    """Remove a partial and its note; return False when a process is working on it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_read(path) or not os.path.samestat(path.stat(), os.fstat(fd)):
            return False
        path.unlink()
        path.with_name(path.name + ".json").unlink(missing_ok=True)
    except (BlockingIOError, FileNotFoundError):
        return False
    finally:
        os.close(fd)
    return True


def leftovers(layout: Layout) -> Iterator[Removal]:
    """Yield what can go without loss: what crashes left, abandoned partials, wrong bytes kept long enough."""
    now = time.time()
    for path, reason in _left_by_crashes(layout):
        if _is_older(path, LEFTOVER_SECONDS, now):
            yield Removal(Kind.LEFTOVER, path, _size(path), reason)
    # if one is being written at this very moment, its fill goes on without it
    for note in layout.partial.glob("*.json"):
        if is_hash(note.stem) and not note.with_suffix("").exists():
            yield Removal(Kind.LEFTOVER, note, 0, "has no partial")
    for removal in partials(layout, spare=()):
        if _is_older(removal.path, STALE_SECONDS, now):
            yield removal
    for removal in quarantined(layout):
        if _is_beyond(quarantined_at(removal.path), KEPT_SECONDS, now):
            yield removal


def _left_by_crashes(layout: Layout) -> Iterator[tuple[Path, str]]:
    directories = [path for path in entries(layout.images) if is_hash(path.name)]
    for place in (layout.root, layout.images, layout.partial, layout.quarantine, *directories):
        for path in place.glob(f"*{SUFFIX}"):
            yield path, "left by a crash"
    for directory in directories:
        if _is_empty(layout, directory):
            yield directory, "has no image"


def quarantined(layout: Layout) -> list[Removal]:
    """Return everything in quarantine, oldest first."""
    found = sorted(entries(layout.quarantine), key=quarantined_at)
    return [Removal(Kind.QUARANTINED, path, _size(path), "wrong bytes") for path in found]


def partials(layout: Layout, *, spare: Collection[str | None]) -> list[Removal]:
    """Return the partials that no process is working on, least recently touched first, except those to `spare`.

    A partial whose time is in the future is among the first. A stored image that is among the partials to be verified
    again is not included.
    """
    found, now = [], time.time()
    for path in entries(layout.partial):
        if not is_hash(path.name) or path.name in spare or (file := file_at(path)) is None or is_read(path):
            continue
        if layout.file(path.name) is None and layout.info(path.name) is not None:
            continue
        found.append(
            (
                file.st_mtime if file.st_mtime <= now else 0.0,
                Removal(Kind.PARTIAL, path, file.st_size, "nobody resumes it"),
            )
        )
    return [removal for _, removal in sorted(found, key=lambda each: (each[0], each[1].path))]


def _is_empty(layout: Layout, directory: Path) -> bool:
    """Return whether this is an image's directory that has lost its image for good."""
    image_hash = directory.name
    try:
        return (
            is_hash(image_hash)
            and not (directory / "image").exists()
            and not (layout.partial / image_hash).exists()
            and not layout.is_pinned(image_hash)
        )
    except PermissionError:  # we cannot tell
        return False


def _is_older(path: Path, seconds: float, now: float) -> bool:
    try:
        return _is_beyond(path.lstat().st_mtime, seconds, now)
    except FileNotFoundError:
        return False


def _is_beyond(told: float, seconds: float, now: float) -> bool:
    """Return whether a time is that far in the past or in the future.

    The future counts, so that a clock that was wrong does not keep a thing forever. A time that is nearer may have been
    written just before somebody set the clock back.
    """
    return abs(now - told) > seconds


def _size(path: Path) -> int:
    """Return the bytes of all files in `path`, or of `path` itself when it is a file."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(found.st_size for file in files if (found := file_at(file)))
