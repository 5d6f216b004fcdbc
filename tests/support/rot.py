"""Stored images, and what a disk does to them."""

import os
import shutil
from pathlib import Path

from mirror.simulator.client import Simulator
from tests.support.downloads import Outcome
from tests.support.processes import MirrorProcess


def assert_right(outcome: Outcome, simulator: Simulator, name: str = "first") -> None:
    assert (outcome.status, outcome.ended, outcome.sha256) == (200, "complete", simulator.image_sha256(name))


def image_file(mirror: MirrorProcess, simulator: Simulator, name: str = "first") -> Path:
    return mirror.store / "images" / simulator.image_sha256(name) / "image"


def remove(directory: Path) -> None:
    """Remove a directory by hand, as often as it takes: a mirror that runs may be writing an index into it."""
    while directory.exists():
        shutil.rmtree(directory, ignore_errors=True)


def quarantined(mirror: MirrorProcess) -> list[Path]:
    return sorted((mirror.store / "quarantine").iterdir())


def flip(path: Path, offset: int, *, hidden: bool) -> None:
    """Change one bit; `hidden` as a disk does it, without a trace in the file's times."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    after = before.st_mtime_ns + (0 if hidden else 1_000_000)
    os.utime(path, ns=(before.st_atime_ns, after))
