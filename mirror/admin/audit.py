"""Records what operators do: who, what, when and the outcome, in `audit.jsonl` in the store's directory and in the log.

The file is for the admin listener and for commands alike, and is kept bounded: a full one becomes `audit.1.jsonl`, in
place of the one before. A record that cannot be written keeps nobody from acting.
"""

import fcntl
import logging
import os
import pwd
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from mirror.common.files import sync_directory
from mirror.common.log import event, harmless
from mirror.model.errors import ConfigError, MirrorError, UsageError
from mirror.model.status import AuditLine

MOST_BYTES = 1 << 20
"""How large the file may become before another is begun: room for some 5000 records."""

LONGEST = 500
"""Characters of a field, at most."""

log = logging.getLogger(__name__)

_LINE = TypeAdapter(AuditLine)


@dataclass(slots=True)
class Recorded:
    """An action that runs: `what` it is about, and its `outcome`, in words."""

    what: str
    outcome: str = "done"
    failed: bool = False


class Audit:
    """The records in the store's `directory`. Its methods block."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "audit.jsonl"
        self._former = directory / "audit.1.jsonl"

    def note(self, who: str, action: str, what: str, outcome: str, *, failed: bool = False) -> None:
        """Record that `who` did `action` with `what`. When that failed, and this fails too, only the first is said."""
        fields = (harmless(text)[:LONGEST] for text in (who, action, what, outcome))
        line = AuditLine(datetime.now(UTC), *fields)
        told = event("operator.acted", who=line.who, did=line.action, what=line.what, outcome=line.outcome)
        log.info("%s: %s %s: %s", line.who, line.action, line.what, line.outcome, extra={**told, **_CATEGORY})
        try:
            self._append(_LINE.dump_json(line) + b"\n")
        except OSError as error:
            there_is_a_store = not isinstance(error, FileNotFoundError)
            level = logging.WARNING if there_is_a_store and not failed else logging.DEBUG
            log.log(level, "%s cannot be written: %s", self._file, error.strerror, extra=event("note.unwritten"))

    @contextmanager
    def recording(self, who: str, action: str, what: str) -> Iterator[Recorded]:
        """Record the action that is done within the context, and how it ends."""
        recorded = Recorded(what)
        try:
            yield recorded
        except (MirrorError, UsageError, ConfigError, OSError) as error:
            recorded.outcome, recorded.failed = f"failed: {error}", True
            raise
        except BaseException as error:
            recorded.outcome, recorded.failed = f"did not end: {type(error).__name__}", True
            raise
        finally:
            self.note(who, action, recorded.what, recorded.outcome, failed=recorded.failed)

    def last(self, most: int) -> Sequence[AuditLine]:
        """Return the last records, newest first."""
        lines: list[AuditLine] = []
        for file in (self._file, self._former):
            with suppress(OSError):
                for line in reversed(file.read_bytes().splitlines()):
                    if len(lines) < most:
                        with suppress(ValidationError):  # a power cut has cut it
                            lines.append(_LINE.validate_json(line))
        return lines

    def _append(self, line: bytes) -> None:
        """Append durably. Raises OSError."""
        fd = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.write(fd, line)
            os.fdatasync(fd)
            size = os.fstat(fd).st_size
            if size == len(line):
                sync_directory(self._file.parent)
            if size > MOST_BYTES and os.path.samestat(os.fstat(fd), self._file.stat()):  # else another was quicker
                self._file.replace(self._former)
        finally:
            os.close(fd)


_CATEGORY: Mapping[str, object] = {"category": "configuration"}
"""What the Elastic Common Schema calls changes of a system by its administrators."""


def user(environ: Mapping[str, str]) -> str:
    """Return who runs this command, and as whom they began if that was by sudo."""
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = f"uid {uid}"
    behind = environ.get("SUDO_USER", "")
    return f"{behind} as {name}" if behind and behind != name else name
