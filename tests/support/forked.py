"""A mirror that is forked, which takes a tenth of the time.

It also tells, or ends at, each step that it takes to make something durable: see `Steps`.
"""

import importlib
import json
import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from mirror.common import schedule
from mirror.store.s3.timings import Timings
from mirror.wiring import mirror as wiring
from tests.support.forking import fork
from tests.support.processes import MirrorProcess, Process


@dataclass(frozen=True, slots=True, order=True)
class Step:
    """A system call about names or durability, on `path` (and `target`), seen from the store's directory.

    Random parts of names are written as `*`; `turn` counts equal steps of one process from 0.
    """

    call: str
    path: str
    target: str = ""
    turn: int = 0

    def __str__(self) -> str:
        return " ".join(part for part in (self.call, self.path, self.target, str(self.turn or "")) if part)


@dataclass(frozen=True, slots=True)
class Steps:
    """Write every step to the file `log`, one JSON list a line; die as by kill -9 just before `die_at`."""

    log: Path
    die_at: Step | None = None

    def read(self) -> list[Step]:
        """All steps so far, in order, each as the kernel was asked for it."""
        return [Step(*json.loads(line)) for line in self.log.read_text().splitlines()]


class ForkedMirror(MirrorProcess):
    """`pps-mirror serve`, forked; otherwise see `MirrorProcess`. `steps` are told of, or died at, when given.

    `timings` are what its bucket has. `constants` of the mirror's modules have other values in it: by module and name,
    with a colon between. Its schedule sees the time that the file `clock` says, if there is one.
    """

    steps: Steps | None = None
    clock: Path | None = None
    timings: Timings | None = None
    constants: Mapping[str, float] = MappingProxyType({})

    def _launch(self) -> Process:
        assert not self.through, "only a command can be run through another one"
        assert not self.passed, "only a command inherits descriptors"
        change = partial(_change, self.store, self.steps, self.timings, dict(self.constants), self.clock)
        serve = ["serve", "-c", str(self.config_file)]
        return fork(serve, self.environ, output=self.log_file, errors=self.log_file, prepare=change)

    def wait_ready(self) -> Self:
        """See `MirrorProcess`; with `steps` it may also have died."""
        if self.steps is None:
            return super().wait_ready()
        self._wait_ready_or_dead()
        return self

    def set_clock(self, local: str) -> None:
        """Make it this local time for its schedule."""
        self.clock = self.config_file.with_name("clock")
        new = self.clock.with_suffix(".new")
        new.write_text(datetime.fromisoformat(local).astimezone().isoformat())
        new.replace(self.clock)


def _change(
    store: Path, steps: Steps | None, timings: Timings | None, constants: Mapping[str, float], clock: Path | None
) -> None:
    """Make the changes in the process that will be the mirror."""
    if steps is not None:
        _Watched(store, steps).interpose()
    if clock is not None:
        schedule.now = lambda: datetime.fromisoformat(clock.read_text())
    if timings is not None:
        wiring.open_stores = partial(wiring.open_stores, timings=timings)  # type: ignore[attr-defined]
    for constant, value in constants.items():
        module, _, name = constant.partition(":")
        imported = importlib.import_module(module)
        assert hasattr(imported, name), constant
        setattr(imported, name, value)


class _Watched:
    """The `os` layer between the mirror and the kernel: tells each step before it is taken."""

    def __init__(self, store: Path, steps: Steps) -> None:
        self._store = str(store)
        self._steps = steps
        self._log = os.open(steps.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._taken: dict[tuple[str, str, str], int] = {}
        self._turn = threading.Lock()

    def interpose(self) -> None:
        """Put it there."""
        for call in ("rename", "replace", "mkdir", "unlink", "rmdir", "truncate"):
            self._wrap(call)
        for call in ("fsync", "fdatasync", "pwrite", "pwritev", "ftruncate"):
            self._wrap(call)
        really_open = os.open

        def watched_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & os.O_CREAT:
                self._tell("create", self._name(path))
            return really_open(path, flags, *args, **kwargs)

        os.open = watched_open

    def _wrap(self, call: str) -> None:
        real: Callable[..., Any] = getattr(os, call)

        def watched(*args: Any, **kwargs: Any) -> Any:
            targets = 2 if call in {"rename", "replace"} else 1
            self._tell(call, *(self._name(each) for each in args[:targets]))
            return real(*args, **kwargs)

        setattr(os, call, watched)

    def _name(self, what: Any) -> str:
        path = str(Path(f"/proc/self/fd/{what}").readlink() if isinstance(what, int) else what)
        if path.endswith(" (deleted)"):  # a file without a name, by which the mirror tries whether it can write
            return ""
        if path != self._store and not path.startswith(self._store + "/"):
            return ""
        parts = os.path.relpath(path, self._store).split(".")
        return ".".join("*" if len(part) == 16 and part.isalnum() else part for part in parts)

    def _tell(self, call: str, path: str, target: str = "") -> None:
        if not path and not target:
            return
        key = (call, path, target)
        with self._turn:
            turn = self._taken.get(key, 0)
            self._taken[key] = turn + 1
            if Step(*key, turn) == self._steps.die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            os.write(self._log, json.dumps([*key, turn]).encode() + b"\n")
