"""Knows which processes of this store have died, so that a restart does not wait for its own old lease to expire.

    processes/<id>    locked by the process of that id while it lives

A lease names the process that holds it. That process is dead when its file is here and not locked. A copy of the
directory, on this machine or another, must not make a living process look dead: so each file says which inode it is and
in which boot, and a copy is another inode. Where this cannot be known, the lease expires like any other.
"""

import asyncio
import contextlib
import fcntl
import os
import secrets
import time
from pathlib import Path

from mirror.common.files import SUFFIX

LONGEST = 60.0
"""Seconds after which every lease of a process that died has expired."""

_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Processes:
    """The processes of the store whose directory is `root`, which need not exist."""

    def __init__(self, root: Path) -> None:
        self._place = root / "processes"
        self._name: str | None = None
        self._fd: int | None = None
        self._began = time.monotonic()

    async def ours(self) -> str | None:
        """The id of this process; None when its file cannot be written to the directory."""
        if self._name is None:
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().run_in_executor(None, self._make)
        return self._name

    async def has_died(self, name: str) -> bool:
        """Return whether the process of that id worked here and has died."""
        return await asyncio.get_running_loop().run_in_executor(None, self._is_dead, name)

    def close(self) -> None:
        """Remove our file, and those of processes that died before us."""
        if self._fd is None or self._name is None:
            return
        with contextlib.suppress(OSError):
            (self._place / self._name).unlink(missing_ok=True)
            if time.monotonic() - self._began > LONGEST:
                for path in self._place.iterdir():
                    if self._is_dead(path.name):
                        path.unlink(missing_ok=True)
            self._place.rmdir()  # fails while there are other files
        os.close(self._fd)
        self._fd = self._name = None

    def _make(self) -> None:
        if self._name is not None:
            return
        self._place.mkdir(parents=True, exist_ok=True)
        name = secrets.token_hex(16)
        path = self._place / f"{name}{SUFFIX}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(fd, _identity(fd))
            path.rename(self._place / name)
        except OSError:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        self._fd, self._name = fd, name

    def _is_dead(self, name: str) -> bool:
        try:
            fd = os.open(self._place / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            if os.read(fd, 200) != _identity(fd):
                return False
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True


def _identity(fd: int) -> bytes:
    """Return which inode that is, in which boot of this machine."""
    stat = os.fstat(fd)
    return f"{_BOOT.read_text().strip()} {stat.st_dev} {stat.st_ino}\n".encode()
