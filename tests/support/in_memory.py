"""Directories in memory, for tests that write durably thousands of times."""

import os
import tempfile
from pathlib import Path

_MEMORY = Path("/dev/shm")


def directory_in_memory() -> tempfile.TemporaryDirectory[str]:
    """Return a new directory, in memory where Linux has it.

    A disk that others write gigabytes to lets an fsync wait for them, for seconds if need be.
    """
    usable = _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK | os.X_OK)
    return tempfile.TemporaryDirectory(prefix="pps-mirror-", dir=_MEMORY if usable else None)
