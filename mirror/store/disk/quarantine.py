"""Sets wrong bytes aside as `<hash>-<time>`, where nothing serves them, for a person to look at."""

import shutil
import time
from pathlib import Path

from mirror.store.revoke import recall

KEPT_SECONDS = 86_400


def set_aside(path: Path, quarantine: Path, image_hash: str) -> Path:
    """Move `path` there as one step and return its new name; only the newest of an image is kept. Blocks.

    Whoever is being sent it is cut off, in every process, also when it cannot be moved.
    """
    recall(path)
    quarantine.mkdir(exist_ok=True)
    for older in quarantine.glob(f"{image_hash}-*"):
        remove(older)
    return path.rename(quarantine / f"{image_hash}-{int(time.time())}")


def quarantined_at(path: Path) -> float:
    """When it was set aside, in seconds since the epoch, as its name says; 0 for a name that does not."""
    time_part = path.name.rpartition("-")[2]
    return float(time_part) if time_part.isdigit() else 0.0


def remove(path: Path) -> None:
    """Remove a file, or a directory with all that is in it. Blocks; no error when it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
