"""What takes long to make and never changes is kept between runs, outside the tree."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """Return the file or directory `name`; `make` creates it at the path it is given, once until /tmp is emptied.

    Half-made things are never seen: what `make` left behind gets its name when it returns.
    """
    root = Path(tempfile.gettempdir()) / f"pps-mirror-tests-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    status = root.lstat()
    assert (status.st_uid, status.st_mode) == (os.getuid(), 0o040700), f"{root} was made by somebody else; remove it"
    path = root / name
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=root, prefix=".") as directory:
            made = Path(directory) / name
            make(made)
            made.rename(path)
    return path
