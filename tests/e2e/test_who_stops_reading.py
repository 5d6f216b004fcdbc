"""`pps-mirror ... | head`: whoever reads a command's output and leaves is told nothing of it, by any command."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.cli.commands import COMMANDS
from mirror.simulator.client import ImageSpec, Simulator

COMMAND = [sys.executable, "-m", "mirror.cli.main"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of a mirror that has one image in its store."""
    directory = tmp_path_factory.mktemp("mirror")
    token, file = directory / "token", directory / "config.toml"
    with Simulator.start([ImageSpec("first", size=1 << 20)]) as simulator:
        token.write_text(simulator.token)
        token.chmod(0o600)
        file.write_text(
            f'[upstream]\nurl = "{simulator.api_url}"\ntoken_file = "{token}"\n'
            f'[store]\npath = "{directory}/store"\nmin_free = "1MiB"\n'
        )
        subprocess.run([*COMMAND, "pull", "-c", file], check=True, capture_output=True)
        yield file


def read_by_nobody(*arguments: str | Path, errors_too: bool = False) -> subprocess.CompletedProcess[bytes]:
    """Run a command whose output goes into a pipe that the reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(
            [*COMMAND, *arguments],
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},  # as people have it
            stdout=writer,
            stderr=writer if errors_too else subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writer)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_says_nothing_of_it(command: str) -> None:
    done = read_by_nobody(*command.split(), "--help")
    assert (done.returncode, done.stderr) == (1, b"")


def test_the_version_says_nothing_of_it() -> None:
    done = read_by_nobody("--version")
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(
    "command",
    [
        *("check", "check --json", "ls", "ls --json", "verify --all", "verify --all --json", "gc", "gc --json"),
        *("pin current", "unpin current", "pull", "doctor", "doctor --json", "completion bash"),
        "demo --once --size 1MiB",
    ],
)
def test_a_command_says_nothing_of_it(config: Path, command: str) -> None:
    name, *more = command.split()
    done = read_by_nobody(name, *more, *(("-c", config) if name not in {"completion", "demo"} else ()))
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(
    ("command", "status"),
    [("ls --nonsense", 2), ("ls -c /nowhere/config.toml", 2), ("verify abcdef", 1), ("--help", 1), ("ls", 1)],
)
def test_what_goes_wrong_has_its_status_whoever_reads_of_it(config: Path, command: str, status: int) -> None:
    more = () if "-" in command else ("-c", config)
    assert read_by_nobody(*command.split(), *more, errors_too=True).returncode == status
