"""Reads what is where in the directory of a disk store. It changes nothing, and all of it blocks."""

import logging
import os
import stat
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from mirror.common.log import event
from mirror.model.errors import BadUpstream
from mirror.model.metadata import ImageMetadata, is_hash
from mirror.model.note import Note
from mirror.store.base import StoredInfo, newest_first
from mirror.store.disk.verified_marker import Identity, verified_at
from mirror.store.pinning import DiskPins

log = logging.getLogger(__name__)


class Layout:
    """The directory `root` and what is in it (see `mirror.store.disk.store`)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images = root / "images"
        self.partial = root / "partial"
        self.quarantine = root / "quarantine"
        self.pins = DiskPins(self.images)

    def metadata(self, image_hash: str) -> ImageMetadata | None:
        """Return the metadata beside the image; None when none can be used."""
        directory = self.images / image_hash
        try:
            metadata = ImageMetadata.parse((directory / "metadata.json").read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError as error:  # one directory that belongs to another user must not hide the others
            log.warning("%s is left alone: %s", directory, error.strerror, extra=event("image.ignored"))
            return None
        except BadUpstream as error:
            log.warning("%s is left alone: %s", directory, error, extra=event("image.ignored"))
            return None
        if metadata.hash != directory.name:
            log.warning(
                "%s is left alone: its metadata names %s", directory, metadata.hash, extra=event("image.ignored")
            )
            return None
        return metadata

    def file(self, image_hash: str) -> os.stat_result | None:
        """Return the image's file, whether it can be trusted or not."""
        return file_at(self.images / image_hash / "image")

    def list(self) -> Sequence[StoredInfo]:
        """List every image of the right size, sorted by `newest_first`. Raises OSError when there is no store.

        This includes an image that is among the partials to be verified again. A file that is too short may just be on
        its way here, so it is left out.
        """
        names = (path.name for path in self.images.iterdir())
        return newest_first(info for name in names if is_hash(name) and (info := self.info(name)))

    def info(self, image_hash: str) -> StoredInfo | None:
        """Return the image's line in the list."""
        directory = self.images / image_hash
        file = self.file(image_hash) or file_at(self.partial / image_hash)
        if file is None or (metadata := self.metadata(image_hash)) is None or file.st_size != metadata.size:
            return None
        stored, served = file_at(directory / "metadata.json"), file_at(directory / "served")
        return StoredInfo(
            metadata,
            stored_at=_time((stored or file).st_mtime),
            last_served_at=_time(served.st_mtime) if served else None,
            pinned=self.is_pinned(image_hash),
            verified_at=verified_at(directory, Identity.of(file)),
        )

    def sizes(self) -> dict[str, int]:
        """Return the size of every file that is where an image would be, by hash, whatever it contains."""
        names = sorted(path.name for path in self.images.iterdir() if is_hash(path.name))
        return {name: file.st_size for name in names if (file := self.file(name))}

    def is_pinned(self, image_hash: str) -> bool:
        """Whether a person has said that the image must stay."""
        return self.pins.is_pinned(image_hash)

    def current(self) -> str | None:
        """Return the hash that upstream named last; if it named none, that of the newest image."""
        if named := self.named():
            return named
        images = self.list()
        return images[0].metadata.hash if images else None

    def named(self) -> str | None:
        """Return the hash that upstream named last, as far as it is noted here."""
        return self._named("current.json")

    def shown(self) -> str | None:
        """Return the hash of what clients get until the current image is stored (see `mirror.images.rollover`)."""
        return self._named("shown.json")

    def _named(self, note: str) -> str | None:
        try:
            return Note.parse((self.root / note).read_bytes()).metadata.hash
        except (OSError, ValueError):
            return None


def entries(directory: Path) -> Sequence[Path]:
    """Return what is in a directory; nothing when it does not exist yet."""
    return sorted(directory.iterdir()) if directory.is_dir() else ()


def file_at(path: Path) -> os.stat_result | None:
    """Return the stat of the regular file at `path`; None when there is none, or none that we may see."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
