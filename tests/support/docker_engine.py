"""The real Docker engine, private to the tests: own socket, own data, no bridge, no firewall rules."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.needs import needs
from tests.support.processes import eventually

INSTALL = "apt-get install --no-install-recommends docker.io containerd runc iptables"

_START_SECONDS = 30.0
_STOP_SECONDS = 30.0


class DockerEngine:
    """A `dockerd` and the client that talks to it. Use as a context manager; skips the test where it cannot run.

    Containers have no network of their own: `--network none` or `--network host`. The engine takes the best storage
    driver that works here; `vfs`, which works everywhere, copies the base for each step of a build: 40 s, not 7 s.
    """

    def __init__(self) -> None:
        self._dockerd = needs("dockerd", INSTALL, root=True)
        self.client = needs("docker", INSTALL)
        # Not below pytest's directory: a socket's path has room for 107 characters.
        self._directory = Path(tempfile.mkdtemp(prefix="pps-docker-"))
        self._log = self._directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self.environ: Mapping[str, str] = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")},
            "DOCKER_HOST": f"unix://{self._directory}/socket",
            "DOCKER_CONFIG": str(self._directory / "client"),
        }
        """Makes any `docker` talk to this engine, without the credentials and proxies of whoever runs the tests."""

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def run(self, *arguments: str, timeout: float = 60.0) -> str:
        """What `docker` with these arguments prints, without white space around it; fails unless its status is 0."""
        done = subprocess.run(
            [self.client, *arguments], env=self.environ, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout.strip()

    def images(self) -> set[str]:
        """The ids of all images it has."""
        return set(self.run("images", "--all", "--quiet", "--no-trunc").split())

    def _start(self) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    self._dockerd,
                    f"--host=unix://{self._directory}/socket",
                    f"--data-root={self._directory}/data",
                    f"--exec-root={self._directory}/exec",
                    f"--pidfile={self._directory}/pid",
                    "--bridge=none",
                    "--iptables=false",
                    "--ip-forward=false",
                    "--ip-masq=false",
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for pytest, which then stops it in order
            )
        eventually(self._answers_or_died, _START_SECONDS, "the start of dockerd")
        assert self._process.poll() is None, f"dockerd died: {self._log.read_text()[-3000:]}"

    def _answers_or_died(self) -> bool:
        assert self._process is not None
        asked = subprocess.run([self.client, "version"], env=self.environ, capture_output=True, check=False)
        return asked.returncode == 0 or self._process.poll() is not None

    def _stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for mount in self._mounts():
            subprocess.run(["umount", mount], check=True)
        shutil.rmtree(self._directory)

    def _mounts(self) -> list[str]:
        """What is still mounted below the directory, innermost first; the network namespace of containers always is."""
        mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        return sorted((path for path in mounted if path.startswith(f"{self._directory}/")), reverse=True)
