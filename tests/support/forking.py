"""Commands in a tenth of the time: forked from a process that has imported them, else as real as any.

Only a real command shows what depends on how the interpreter starts and ends, on its arguments as the machine's
others see them, and on variables that the interpreter or the loader reads.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import reduction
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import IO, Any

from mirror.simulator import __main__ as simulator

# All that commands import when they are run.
_PRELOADED = (
    *("mirror.cli.main", "mirror.serve.main", "mirror.cli.check.main", "mirror.cli.doctor.main", "mirror.cli.pull"),
    *("mirror.cli.ls", "mirror.cli.manage", "mirror.cli.get", "mirror.bundle.exporter", "mirror.bundle.importer"),
    *("mirror.store.s3.store", "mirror.store.tiered", "mirror.simulator.__main__", "tests.support.forked"),
    "tests.support.preloaded",
)
multiprocessing.get_context("forkserver").set_forkserver_preload(list(_PRELOADED))

_READ_AT_START = ("PYTHON", "LD_", "LC_", "LANG", "MALLOC_")
"""How variables begin that are read before any of our code runs."""


def fork(
    arguments: Sequence[str],
    environ: Mapping[str, str],
    *,
    output: Path,
    errors: Path,
    cwd: Path | None = None,
    prepare: Callable[[], None] | None = None,
) -> "Forked":
    """Run `pps-mirror` with these arguments in a process of its own, once it has called `prepare`.

    What it says is appended to the files `output` and `errors`.
    """
    changed = {name for name, value in environ.items() if os.environ.get(name) != value}
    assert not [name for name in changed if name.startswith(_READ_AT_START)], "only a command obeys these"
    process = Forked(target=_run, args=(arguments, dict(environ), output, errors, cwd, prepare))
    process.start()
    return process


def fork_simulator(errors: IO[bytes]) -> "ForkedSimulator":
    """Start a simulator as `mirror.simulator.client.launch` does."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    process = ForkedSimulator(target=_simulate, args=(_Descriptors([theirs_in, theirs_out, errors.fileno()]),))
    try:
        process.start()
    finally:
        os.close(theirs_in)
        os.close(theirs_out)
    process.stdin, process.stdout = os.fdopen(ours_out, "wb"), os.fdopen(ours_in, "rb")
    return process


class Forked(ForkServerProcess):
    """A process that was forked, with the methods of one that was started by a command: see `processes.Process`."""

    pid: int

    def poll(self) -> int | None:
        """See `Process`."""
        return self.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """See `Process`."""
        self.join(timeout)
        if self.exitcode is None:
            raise subprocess.TimeoutExpired("pps-mirror, forked", timeout or 0.0)
        return self.exitcode

    def send_signal(self, sig: int) -> None:
        """See `Process`."""
        if self.poll() is None:
            os.kill(self.pid, sig)


class ForkedSimulator(Forked):
    """A simulator that was forked; see `mirror.simulator.client.Process`."""

    stdin: IO[bytes] | None = None
    stdout: IO[bytes] | None = None


class _Descriptors:
    """Descriptors that a process inherits which is being started."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        self._descriptors = descriptors

    def __reduce__(self) -> Any:
        return _detached, tuple(map(reduction.DupFd, self._descriptors))


def _detached(*descriptors: Any) -> Sequence[int]:
    return [each.detach() for each in descriptors]


def _simulate(descriptors: Sequence[int]) -> None:
    """Become the simulator."""
    for standard, descriptor in enumerate(descriptors):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    sys.exit(simulator.main(["--state", "-"]))


def _run(
    arguments: Sequence[str],
    environ: Mapping[str, str],
    output: Path,
    errors: Path,
    cwd: Path | None,
    prepare: Callable[[], None] | None,
) -> None:
    """Become the command."""
    for descriptor, path in ((1, output), (2, errors)):
        with path.open("ab") as file:
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environ)
    time.tzset()
    tempfile.tempdir = None
    if cwd is not None:
        os.chdir(cwd)
    if prepare is not None:
        prepare()
    from mirror.cli import main as cli

    sys.exit(cli.main(arguments))
