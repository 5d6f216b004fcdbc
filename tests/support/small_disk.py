"""A file system of a size that a test chooses, which it can fill, make read-only and enlarge: a tmpfs.

Or a ramfs, which has no size and says so, as some network shares do.
"""

import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.needs import needs
from tests.support.processes import eventually


class SmallDisk:
    """Mounted on `path` from start to end of the context."""

    def __init__(self, path: Path, size: int, kind: str = "tmpfs") -> None:
        self.path = path
        self._mount = needs("mount", "apt-get install mount", root=True)
        path.mkdir(parents=True)
        self._run(self._mount, "-t", kind, "-o", f"size={size}", kind, str(path))

    def remount(self, options: str) -> None:
        """Change it while it is in use: `size=…`, `ro`, `rw`. It becomes read-only when no file is open for writing."""

        def remounted() -> bool:
            command = [self._mount, "-o", f"remount,{options}", str(self.path)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0 or "busy" in done.stderr, done.stderr
            return done.returncode == 0

        eventually(remounted, what=f"mounting with {options}")

    def fill_up(self) -> None:
        """Leave no byte free."""
        with (self.path / "filler").open("wb", buffering=0) as filler:
            try:
                while filler.write(bytes(1 << 16)):
                    pass
            except OSError:
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._run("umount", "--lazy", str(self.path))

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
