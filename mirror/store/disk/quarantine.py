"""Moves wrong bytes to `quarantine/<hash>-<time>`, where nothing serves them, for a person to look at."""

import shutil
import time
from pathlib import Path

from mirror.store.recall import recall

KEPT_SECONDS = 86_400


def set_aside(path: Path, quarantine: Path, image_hash: str) -> Path:
    """Move `path` into quarantine in one step and return its new name; only the newest of an image is kept. Blocks.

    Every download of it is cut off, in every process, even when it cannot be moved.
    """
    recall(path)
    quarantine.mkdir(exist_ok=True)
    for older in quarantine.glob(f"{image_hash}-*"):
        remove(older)
    return path.rename(quarantine / f"{image_hash}-{int(time.time())}")


def quarantined_at(path: Path) -> float:
    """Return when it was set aside, in seconds since the epoch, taken from its name; 0 if the name has no time."""
    time_part = path.name.rpartition("-")[2]
    return float(time_part) if time_part.isdigit() else 0.0


def remove(path: Path) -> None:
    """Remove a file, or a directory with everything in it. Blocks; it is no error when it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
