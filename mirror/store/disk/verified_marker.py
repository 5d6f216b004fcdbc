"""Notes which file was verified: beside an image, `verified` says which file that was, and when.

A file that is not that one any more (another inode, size or time of change), or that nobody verified here, is no image
yet, but bytes that may turn out to be one.
"""

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mirror.common.files import write_durably

MARKER = "verified"


@dataclass(frozen=True, slots=True)
class Identity:
    """Tells one state of a file from another: `size` in bytes, `mtime` in nanoseconds, the inode's number."""

    size: int
    mtime: int
    inode: int

    @classmethod
    def of(cls, stat: os.stat_result) -> "Identity":
        """Take it from what the system says of a file."""
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ino)


def trust(directory: Path, identity: Identity) -> None:
    """Note durably that this file, which is or will be the image in `directory`, was verified now. Blocks."""
    write_durably(directory / MARKER, json.dumps(described(identity)).encode())


def verified_at(directory: Path, identity: Identity) -> datetime | None:
    """When this file, the image in `directory`, was last verified; None when it never was. Blocks."""
    try:
        note = json.loads((directory / MARKER).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return time_in(note, identity)


def described(identity: Identity) -> dict[str, object]:
    """What is noted of a file that was verified now."""
    return {
        "size": identity.size,
        "mtimeNs": identity.mtime,
        "inode": identity.inode,
        "verifiedAt": datetime.now(UTC).isoformat(),
    }


def time_in(note: Any, identity: Identity) -> datetime | None:
    """When this file was verified, as `note` says; None when it does not say so of this file."""
    try:
        then = datetime.fromisoformat(note["verifiedAt"])
        known = Identity(note["size"], note["mtimeNs"], note["inode"])
    except (ValueError, KeyError, TypeError):
        return None
    return (then if then.tzinfo else then.replace(tzinfo=UTC)) if known == identity else None
