"""The real containerd, private to the tests: own socket, own data."""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.needs import needs
from tests.support.processes import eventually

INSTALL = "apt-get install --no-install-recommends containerd runc"

_SECONDS = 30.0


class Containerd:
    """A `containerd` and its client `ctr`. Use as a context manager; skips the test where it cannot run."""

    def __init__(self) -> None:
        self._daemon = needs("containerd", INSTALL, root=True)
        self._client = needs("ctr", INSTALL)
        # Not below pytest's directory: a socket's path has room for 107 characters.
        self._directory = Path(tempfile.mkdtemp(prefix="pps-containerd-"))
        self._socket = self._directory / "socket"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        config = self._directory / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{self._directory}/root"\nstate = "{self._directory}/state"\n'
            f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{self._socket}"\n'
        )
        with (self._directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [self._daemon, "--config", config], stdout=log, stderr=log, start_new_session=True
            )
        eventually(self._answers, _SECONDS, "the start of containerd")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(_SECONDS)
        shutil.rmtree(self._directory)

    def run(self, *arguments: str) -> str:
        """What `ctr` with these arguments prints; fails unless its status is 0."""
        done = self._ctr(*arguments)
        assert done.returncode == 0, f"ctr {' '.join(arguments)}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout.strip()

    def _answers(self) -> bool:
        return self._ctr("version").returncode == 0

    def _ctr(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [self._client, "--address", str(self._socket), *arguments],
            env={name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
