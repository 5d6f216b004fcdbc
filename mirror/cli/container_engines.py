"""Loads an image into the container engine of this machine: docker, podman or containerd's ctr.

The image is decompressed on the way, because not every version of them reads a gzip archive (podman 4.3 does not).
"""

import gzip
import os
import shutil
import signal
import subprocess
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mirror.common.progress import Meter
from mirror.common.temporary_files import need_temporary_files
from mirror.model.errors import MirrorError, UsageError

AUTO = "auto"

_COMMANDS: Mapping[str, Sequence[str]] = {
    "docker": ("load",),
    "podman": ("load",),
    "ctr": ("--namespace", "k8s.io", "images", "import", "-"),
}
"""The command of each engine, in the order of preference."""

_STEP = 1 << 20
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Loader:
    """A program that reads an image as a tar archive from its standard input."""

    name: str
    command: Sequence[str]

    @classmethod
    def find(cls, name: str, search: str | None) -> "Loader":
        """Find the program of that name, or the first that is installed, in the directories of `search`.

        Raises UsageError, also when there is no place for temporary files.
        """
        need_temporary_files()
        names = list(_COMMANDS) if name == AUTO else [name]
        for each in names:
            if path := shutil.which(each, path=search):
                return cls(each, (path, *_COMMANDS[each]))
        raise UsageError(f"--load needs {' or '.join(names)}, and PATH has none")

    def load(self, archive: Path, meter: Meter) -> str:
        """Load the archive and return the output of the program. Blocks. Raises MirrorError when it fails."""
        with archive.open("rb") as packed, tempfile.TemporaryFile() as said:
            meter.start(archive.stat().st_size, 0, "loading")
            process = subprocess.Popen(  # noqa: S603 - nothing of it comes from outside
                self.command, stdin=subprocess.PIPE, stdout=said, stderr=subprocess.STDOUT, process_group=0
            )
            try:
                self._feed(process, packed, meter)
            except BaseException:
                # The program and all its children are killed before its input ends, because `docker` may be a script
                # that feeds the real one: at the end of its input an engine would take a part for the whole.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
            finally:
                meter.stop()
                with suppress(BrokenPipeError):
                    process.communicate()
            said.seek(0)
            output = said.read().decode(errors="replace").strip()
        if process.returncode:
            raise MirrorError(f"{self.name} did not load {archive} (exit status {process.returncode}): {output}")
        return output

    def _feed(self, process: subprocess.Popen[bytes], packed: IO[bytes], meter: Meter) -> None:
        compressed = packed.read(len(_GZIP)) == _GZIP
        packed.seek(0)
        archive = gzip.GzipFile(fileobj=packed) if compressed else packed
        assert process.stdin is not None  # noqa: S101 - it was asked for
        try:
            while piece := archive.read(_STEP):
                process.stdin.write(piece)
                meter.show(packed.tell(), "loading")
        except BrokenPipeError:
            return  # its exit status says why it reads no more
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise MirrorError(f"the image has the right hash and is no good archive: {error}") from None
