"""curl, wget and aria2c, run as users run them."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from mirror.simulator.client import TOKEN
from tests.support.fixtures import Canary
from tests.support.needs import needs

AUTHORIZATION = "Authorization: Bearer "


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended and what it wrote."""

    status: int
    stdout: str
    stderr: str


class Shell:
    """Runs programs in a directory of their own, without the user's settings or a proxy."""

    def __init__(self, directory: Path, canary: Canary) -> None:
        self.directory = directory
        self._canary = canary
        settings = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        self._environ = settings | {"HOME": str(directory), "LC_ALL": "C.UTF-8"}

    def run(self, *command: str) -> Ended:
        done = subprocess.run(
            command, cwd=self.directory, env=self._environ, capture_output=True, text=True, timeout=60, check=False
        )
        self._canary.hear((done.stdout + done.stderr).encode())
        return Ended(done.returncode, done.stdout, done.stderr)

    def curl(self, *arguments: str, token: str = TOKEN) -> Ended:
        """Run curl, silent but for errors; a status of 400 or more is one (`-f`)."""
        self._canary.hide(token)
        program = needs("curl", "apt-get install --no-install-recommends curl")
        return self.run(program, "-q", "-sSf", "-H", AUTHORIZATION + token, *arguments)

    def wget(self, *arguments: str) -> Ended:
        program = needs("wget", "apt-get install --no-install-recommends wget")
        return self.run(
            program, "--no-config", "--no-verbose", "--tries=1", f"--header={AUTHORIZATION}{TOKEN}", *arguments
        )

    def aria2c(self, *arguments: str) -> Ended:
        """Run aria2c with four connections, for pieces of 1 MiB."""
        program = needs("aria2c", "apt-get install --no-install-recommends aria2")
        options = (
            "--no-conf",
            "-x4",
            "-s4",
            "-k1M",
            "--max-tries=1",
            "--disable-ipv6",
            f"--header={AUTHORIZATION}{TOKEN}",
        )
        return self.run(program, *options, *arguments)

    def read(self, name: str) -> bytes:
        return (self.directory / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        (self.directory / name).write_bytes(content)
