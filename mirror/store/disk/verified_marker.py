"""Notes which file was verified: `verified`, beside an image, says which file it was, and when.

If the file is no longer that one (another inode, size or time of change), or was never verified here, it is not an
image yet, but bytes that may turn out to be one.
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
    """Identifies one state of a file: `size` in bytes, `mtime` in nanoseconds, the inode's number."""

    size: int
    mtime: int
    inode: int

    @classmethod
    def of(cls, stat: os.stat_result) -> "Identity":
        """Take it from the result of a stat."""
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ino)


def trust(directory: Path, identity: Identity) -> None:
    """Note durably that this file, which is or will be the image in `directory`, was verified now. Blocks."""
    write_durably(directory / MARKER, json.dumps(described(identity)).encode())


def verified_at(directory: Path, identity: Identity) -> datetime | None:
    """Return when this file, the image in `directory`, was last verified; None if never. Blocks."""
    try:
        note = json.loads((directory / MARKER).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return time_in(note, identity)


def described(identity: Identity) -> dict[str, object]:
    """Return the note about a file that was verified now."""
    return {
        "size": identity.size,
        "mtimeNs": identity.mtime,
        "inode": identity.inode,
        "verifiedAt": datetime.now(UTC).isoformat(),
    }


def time_in(note: Any, identity: Identity) -> datetime | None:
    """Return when this file was verified according to `note`; None when the note is not about this file."""
    try:
        then = datetime.fromisoformat(note["verifiedAt"])
        known = Identity(note["size"], note["mtimeNs"], note["inode"])
    except (ValueError, KeyError, TypeError):
        return None
    return (then if then.tzinfo else then.replace(tzinfo=UTC)) if known == identity else None
