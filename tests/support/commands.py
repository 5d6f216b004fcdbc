"""`pps-mirror` and its commands, run as people and scripts run them."""

import os
import pty
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.support.forking import fork
from tests.support.processes import NO_AUTHORITIES

COMMAND = [sys.executable, "-m", "mirror.cli.main"]


def environment(**more: str) -> dict[str, str]:
    """Ours, without what sets a mirror up."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PPS_MIRROR", "DATAROBOT"))}
    return kept | NO_AUTHORITIES | {"COLUMNS": "120"} | more


def run(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a process that is forked: for tests of what a command does to others.

    What the command line itself promises is tested with `run_really`.
    """
    return run_forked(*arguments, environ=environment(**environ))


def run_forked(
    *arguments: str | Path,
    environ: dict[str, str],
    cwd: Path | None = None,
    prepare: Callable[[], None] | None = None,
    seconds: float = 60.0,
) -> subprocess.CompletedProcess[str]:
    """See `run`; with the environment and the working directory that the command has, after it called `prepare`."""
    words = [str(each) for each in arguments]
    with tempfile.TemporaryDirectory() as directory:
        output, errors = Path(directory, "output"), Path(directory, "errors")
        process = fork(words, environ, output=output, errors=errors, cwd=cwd, prepare=prepare)
        try:
            status = process.wait(seconds)
        finally:
            process.kill()
        return subprocess.CompletedProcess(words, status, output.read_text(), errors.read_text())


def run_really(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the real command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments], env=environment(**environ), capture_output=True, text=True, timeout=60, check=False
    )


def drawn(command: Sequence[str | Path], environ: Mapping[str, str]) -> tuple[int, bytes]:
    """Run a command on a terminal of its own; its exit status, and all that it draws."""
    terminal, end = pty.openpty()
    process = subprocess.Popen(command, env=environ, stdout=end, stderr=end)
    os.close(end)
    shown = b""
    try:
        while data := os.read(terminal, 1 << 16):
            shown += data
    except OSError:  # how a terminal ends whose last user has gone
        pass
    os.close(terminal)
    return process.wait(60), shown


def on_a_terminal(*arguments: str | Path, **environ: str) -> str:
    """What the command draws on a terminal, without the escape sequences; it must succeed."""
    status, shown = drawn([*COMMAND, *arguments], environment(TERM="xterm", **environ))
    assert status == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


def one_line(text: str) -> str:
    """The complaint of a command that failed, which is one line."""
    assert text.count("\n") == 1, text
    assert text.startswith("pps-mirror: ")
    return text


def clean_environment() -> dict[str, str]:
    """As on a host, wherever the tests run."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PPS_MIRROR", "DATAROBOT", "KUBERNETES")) and not name.lower().endswith("_proxy")
    } | {"container": ""}
