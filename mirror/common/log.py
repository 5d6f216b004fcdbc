"""Sets up logging, for people on a terminal or as JSON for machines, and redacts secrets on the way.

A line about something notable carries a name for machines, `extra=event("fill.cut", ...)`: JSON lines have it as
`event.action`, and `mirror.admin.recent_events` keeps the last of them for the status page. A line that comes again and
again is held back for a while. docs/logs.md lists the names, and the fields of a JSON line.
"""

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TextIO

from mirror.common.log_writer import LogWriter

access = logging.getLogger("mirror.access")

REPEATS = 20
REPEATS_SECONDS = 60.0
"""How often the same message may come within that time; any more are counted, and the count is logged with the next
one."""

KINDS = 1000
"""Messages that are watched for repeats at a time, at most."""

ECS_VERSION = "8.11.0"
"""The version of the Elastic Common Schema that JSON lines are written in."""

_SECRETS = (
    re.compile(r"((?:Bearer|Token|Basic)\s+)\S+", re.IGNORECASE),
    re.compile(r"(https?://)[^\s/?#]*(?=@)", re.IGNORECASE),
    re.compile(r"(https?://[^\s?]*\?)\S+", re.IGNORECASE),
)
_COLOURS = {logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m", logging.CRITICAL: "\x1b[31m"}
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


def event(action: str, **fields: object) -> Mapping[str, object]:
    """Return the `extra` of a log call about something notable; `fields` are for machines, beside the message."""
    return {"action": action, "fields": {f"pps_mirror.{name}": value for name, value in fields.items()}}


def set_up(level: str, format_: str, stream: TextIO | None = None, writer: LogWriter | None = None) -> "Verbosity":
    """Send the log to `stream` (standard error), from `level` on: "debug", "info", "warning" or "error".

    The format is "console" for people, "json" for machines, or "auto": for people on a terminal and JSON elsewhere.
    With a `writer`, that one writes the lines.
    """
    handler = Output(stream or sys.stderr, writer=writer)
    logging.getLogger().handlers[:] = [handler]
    logging.getLogger("asyncio").setLevel(logging.WARNING)  # its debug lines are about selectors
    for library in ("botocore", "aiobotocore"):  # theirs show signatures and credentials
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    return Verbosity(handler, level, format_)


@contextmanager
def written_aside(level: str, format_: str) -> Iterator[tuple["Verbosity", LogWriter]]:
    """Set up a log that never keeps the event loop waiting; all lines from inside are written before it ends."""
    with LogWriter(sys.stderr, _say_lost) as writer:
        verbosity = set_up(level, format_, writer=writer)
        try:
            yield verbosity, writer
        finally:
            verbosity.say_the_rest()


def _say_lost(lines: int) -> None:
    said = f"{lines} line{' was' if lines == 1 else 's were'} not written: nobody read the log, or its disk was full"
    logging.getLogger(__name__).warning("%s", said, extra=event("log.lost", lines=lines))


class Verbosity:
    """How much is logged to `output`: what the configuration says, or everything."""

    def __init__(self, output: "Output", level: str, format_: str) -> None:
        self.output = output
        self._debugging = False
        self.take_up(level, format_)

    def take_up(self, level: str, format_: str) -> None:
        """Apply what the configuration says now."""
        terminal = self.output.stream.isatty()
        as_json = format_ == "json" or (format_ == "auto" and not terminal)
        coloured = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self.output.setFormatter(JsonFormatter() if as_json else ConsoleFormatter(coloured=coloured))
        self._level = logging.getLevelNamesMapping()[level.upper()]
        self._write(logging.DEBUG if self._debugging else self._level)

    def toggle(self) -> None:
        """Log everything from now on, or again only what the configuration says."""
        was_debugging = self.output.level == logging.DEBUG
        self._debugging = not was_debugging
        self._write(logging.DEBUG if self._debugging else self._level)
        said = "is as the configuration says again" if was_debugging else "has everything now"
        logging.getLogger(__name__).warning("SIGUSR1: the log %s", said, extra=event("log.toggled"))

    def say_the_rest(self) -> None:
        """Write what is still held back."""
        self.output.close()

    def _write(self, level: int) -> None:
        self.output.setLevel(level)
        logging.getLogger().setLevel(min(level, logging.INFO))  # what is notable is for the status page too
        access.setLevel(level)


def plain(text: str) -> str:
    """Escape characters that are not printable, so that no text makes a line of its own or controls a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def redact(text: str) -> str:
    """Replace credentials, and in URLs user names and queries (pre-signed ones are secrets), by `[redacted]`."""
    for secret in _SECRETS:
        text = secret.sub(r"\1[redacted]", text)
    return text


def harmless(text: str) -> str:
    """Return the text fit for the log: on one line, without secrets."""
    return plain(redact(text))


@dataclass(slots=True)
class _Lately:
    """How often a message came, when that count ends, and its last record that was held back."""

    until: float
    count: int = 0
    held: logging.LogRecord | None = None


class Output(logging.StreamHandler[TextIO]):
    """Writes records. A message that comes more than `REPEATS` times in `REPEATS_SECONDS` is held back.

    The last one of it is written with the next line after that time, or in the end, with the number of the others.
    Requests and debugging are never held back. With a `writer`, that one writes the lines.
    """

    def __init__(
        self, stream: TextIO, timer: Callable[[], float] = time.monotonic, writer: LogWriter | None = None
    ) -> None:
        super().__init__(stream)
        self._timer = timer
        self._writer = writer
        self._lately: dict[tuple[str, str], _Lately] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or hold it back."""
        now = self._timer()
        self._forget(now)
        if record.levelno <= logging.DEBUG or record.name == access.name:
            self._put(record)
            return
        kind = record.name, str(record.msg)
        if kind not in self._lately:
            if len(self._lately) >= KINDS:
                self._put(record)
                return
            self._lately[kind] = _Lately(now + REPEATS_SECONDS)
        lately = self._lately[kind]
        lately.count += 1
        if lately.count > REPEATS:
            lately.held = record
        else:
            self._put(record)

    def close(self) -> None:
        """Write what is still held back."""
        with self.lock or nullcontext():
            self._forget(float("inf"))
        super().close()

    @property
    def lines(self) -> LogWriter | None:
        """What takes finished lines of JSON from code that makes no record; None when a record is needed."""
        return self._writer if isinstance(self.formatter, JsonFormatter) else None

    def _put(self, record: logging.LogRecord) -> None:
        if self._writer is None:
            super().emit(record)
            return
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
        else:
            important = record.levelno >= logging.WARNING
            self._writer.write(line, important=important, waits=record.name == access.name)

    def _forget(self, now: float) -> None:
        for kind, lately in [(kind, lately) for kind, lately in self._lately.items() if lately.until <= now]:
            del self._lately[kind]
            if lately.held is not None:
                lately.held.held = lately.count - REPEATS - 1
                self._put(lately.held)


def _message(record: logging.LogRecord) -> str:
    held = getattr(record, "held", 0)
    return record.getMessage() + (f" (and {held} more like this, not shown)" if held else "")


def _trace(record: logging.LogRecord, formatter: logging.Formatter) -> list[str]:
    """Return the lines of a record's traceback."""
    if not record.exc_info:
        return []
    return [plain(line) for line in redact(formatter.formatException(record.exc_info)).split("\n")]


class ConsoleFormatter(logging.Formatter):
    """One line for a person: time, level, what happened."""

    def __init__(self, *, coloured: bool = False) -> None:
        super().__init__()
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        """Render the record."""
        when = f"{datetime.fromtimestamp(record.created).astimezone():%H:%M:%S}"
        level = f"{record.levelname:<7}"
        if self._coloured:
            when = f"{_DIM}{when}{_PLAIN}"
            level = f"{_COLOURS.get(record.levelno, _DIM)}{level}{_PLAIN}"
        return "\n  ".join([f"{when} {level} {harmless(_message(record))}", *_trace(record, self)])


class JsonFormatter(logging.Formatter):
    """One JSON object a line, field names of the Elastic Common Schema."""

    def format(self, record: logging.LogRecord) -> str:
        """Render the record."""
        fields: dict[str, object] = {
            "@timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "ecs.version": ECS_VERSION,
            "log.level": record.levelname.lower(),
            "log.logger": record.name,
            "message": harmless(_message(record)),
            "process.pid": record.process,
        }
        if action := getattr(record, "action", None):
            fields["event.action"] = action
        if category := getattr(record, "category", None):
            fields["event.category"] = [category]
        if record.exc_info and record.exc_info[1] is not None:
            fields["error.type"] = type(record.exc_info[1]).__name__
            fields["error.message"] = harmless(str(record.exc_info[1]))
            fields["error.stack_trace"] = "\n".join(_trace(record, self))
        if held := getattr(record, "held", 0):
            fields["pps_mirror.held"] = held
        for name, value in getattr(record, "fields", {}).items():
            fields[name] = value if value is None or isinstance(value, int | float) else harmless(str(value))
        return json.dumps(fields)
