"""Logging: set up once, for people on a terminal or as JSON for machines; secrets are blotted out on the way.

Something notable carries a name for machines, `extra=event("fill.cut", ...)`: JSON lines have it as `event.action`, and
`mirror.events` keeps the last of them for the status page. A line that comes again and again is held back for a while.
"""

import json
import logging
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TextIO

from aiohttp import web
from cachetools import TTLCache

from mirror.config import Log
from mirror.units import format_size

access = logging.getLogger("mirror.access")

REPEATS = 20
REPEATS_SECONDS = 60.0
"""How often one and the same message may come within that time; what is beyond is counted and said with the next."""

_SECRETS = re.compile(
    r"(?P<scheme>\b(?:Bearer|Token|Basic) )[^\s'\"]+|(?P<query>https?://[^\s'\"?]*\?)[^\s'\"]+", re.IGNORECASE
)
_COLOURS = {logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m", logging.CRITICAL: "\x1b[31m"}
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


def event(action: str, **fields: object) -> Mapping[str, object]:
    """Make the `extra` of a log call about something notable; `fields` are for machines, beside the words."""
    return {"action": action, "fields": {f"pps_mirror.{name}": value for name, value in fields.items()}}


def set_up(config: Log, stream: TextIO | None = None) -> "Verbosity":
    """Send the log to `stream` (standard error); format "auto" is for people on a terminal and JSON elsewhere."""
    stream = stream or sys.stderr
    terminal = stream.isatty()
    as_json = config.format == "json" or (config.format == "auto" and not terminal)
    handler = logging.StreamHandler(stream)
    coloured = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    handler.setFormatter(JsonFormatter() if as_json else ConsoleFormatter(coloured=coloured))
    handler.addFilter(Repeats())
    logging.getLogger().handlers[:] = [handler]
    logging.getLogger("asyncio").setLevel(logging.WARNING)  # its debug lines are about selectors
    for library in ("botocore", "aiobotocore"):  # theirs show signatures and credentials
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    return Verbosity(handler, config.level)


class Verbosity:
    """How much is written: what the configuration says, or everything."""

    def __init__(self, handler: logging.Handler, level: str) -> None:
        self._handler = handler
        self._level = logging.getLevelNamesMapping()[level.upper()]
        self._write(self._level)

    def toggle(self) -> None:
        """Write everything from now on, or what the configuration says again."""
        debugging = self._handler.level == logging.DEBUG
        self._write(logging.DEBUG if self._level != logging.DEBUG and not debugging else self._level)
        said = "as the configuration says" if debugging else "everything"
        logging.getLogger(__name__).warning("SIGUSR1: the log has %s now", said)

    def _write(self, level: int) -> None:
        self._handler.setLevel(level)
        logging.getLogger().setLevel(min(level, logging.INFO))  # what is notable is for the status page too
        access.setLevel(level)


def plain(text: str) -> str:
    """Escape what is not printable, so that no text makes a line of its own or speaks to a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def redact(text: str) -> str:
    """Blot out credentials and the queries of URLs (pre-signed ones are secrets)."""
    return _SECRETS.sub(lambda match: (match["scheme"] or match["query"]) + "[redacted]", text)


class Repeats(logging.Filter):
    """Holds back what comes more than `REPEATS` times in `REPEATS_SECONDS`; requests and debugging pass."""

    def __init__(self, timer: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._said: TTLCache[tuple[str, str], list[int]] = TTLCache(1024, REPEATS_SECONDS, timer)
        self._held: dict[tuple[str, str], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Let a record pass, or count it."""
        if record.levelno <= logging.DEBUG or record.name == access.name:
            return True
        kind = record.name, str(record.msg)
        count = self._said.setdefault(kind, [0])
        count[0] += 1
        if count[0] > REPEATS:
            self._held[kind] = self._held.get(kind, 0) + 1
            return False
        if held := self._held.pop(kind, 0):
            record.held = held
        return True


def _message(record: logging.LogRecord) -> str:
    held = getattr(record, "held", 0)
    return record.getMessage() + (f" (and {held} more like this, not shown)" if held else "")


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
        text = redact(plain(_message(record)))
        if record.exc_info:
            lines = (plain(line) for line in self.formatException(record.exc_info).split("\n"))
            text += "\n" + redact(textwrap.indent("\n".join(lines), "  "))
        return f"{when} {level} {text}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line, field names of the Elastic Common Schema."""

    def format(self, record: logging.LogRecord) -> str:
        """Render the record."""
        fields: dict[str, object] = {
            "@timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "log.level": record.levelname.lower(),
            "log.logger": record.name,
            "message": redact(_message(record)),
            "process.pid": record.process,
        }
        if action := getattr(record, "action", None):
            fields["event.action"] = action
        if record.exc_info:
            fields["error.stack_trace"] = redact(self.formatException(record.exc_info))
        for name, value in getattr(record, "fields", {}).items():
            fields[name] = redact(value) if isinstance(value, str) else value
        return json.dumps(fields)


def log_access(request: web.BaseRequest, response: web.StreamResponse | None, seconds: float) -> None:
    """Write one line about a request that has been answered, or not: `response` is None for a client that left.

    Never a query, a header or a body.
    """
    if not access.isEnabledFor(logging.INFO):
        return
    path = request.rel_url.raw_path
    path = (path if path.isascii() and path.isprintable() else ascii(path))[:256]
    status = 499 if response is None else response.status
    sent = request.get("sent", (response and response.content_length) or 0)
    cache_status = request.get("cache-status", "-")
    access.info(
        "%s %s %d %s in %.3f s, %s, from %s, request %s",
        request.method,
        path,
        status,
        format_size(sent),
        seconds,
        cache_status,
        request.remote,
        request["id"],
        extra={
            "action": "http.request",
            "fields": {
                "http.request.method": request.method,
                "http.route": request.get("route", "other"),
                "url.path": path,
                "http.response.status_code": status,
                "http.response.body.bytes": sent,
                "event.duration": int(seconds * 1e9),
                "client.address": request.remote,
                "http.request.id": request["id"],
                "cache.status": cache_status,
            },
        },
    )
