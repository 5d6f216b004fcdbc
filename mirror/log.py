"""Logging: set up once, for people on a terminal or as JSON for machines; secrets are blotted out on the way."""

import json
import logging
import re
import sys
import textwrap
from datetime import UTC, datetime
from typing import TextIO

from aiohttp import web

from mirror.config import Log
from mirror.units import format_size

access = logging.getLogger("mirror.access")

_SECRETS = re.compile(
    r"(?P<scheme>\b(?:Bearer|Token|Basic) )[^\s'\"]+|(?P<query>https?://[^\s'\"?]*\?)[^\s'\"]+", re.IGNORECASE
)


def set_up(config: Log, stream: TextIO | None = None) -> None:
    """Send the log to `stream` (standard error); format "auto" is for people on a terminal and JSON elsewhere."""
    stream = stream or sys.stderr
    as_json = config.format == "json" or (config.format == "auto" and not stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if as_json else ConsoleFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.level.upper())
    logging.getLogger("asyncio").setLevel(logging.WARNING)  # its debug lines are about selectors
    for library in ("botocore", "aiobotocore"):  # theirs show signatures and credentials
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)


def plain(text: str) -> str:
    """Escape what is not printable, so that no text makes a line of its own or speaks to a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def redact(text: str) -> str:
    """Blot out credentials and the queries of URLs (pre-signed ones are secrets)."""
    return _SECRETS.sub(lambda match: (match["scheme"] or match["query"]) + "[redacted]", text)


class ConsoleFormatter(logging.Formatter):
    """One line for a person: time, level, what happened."""

    def format(self, record: logging.LogRecord) -> str:
        """Render the record."""
        when = datetime.fromtimestamp(record.created).astimezone()
        text = f"{when:%H:%M:%S} {record.levelname:<7} {plain(record.getMessage())}"
        if record.exc_info:
            lines = (plain(line) for line in self.formatException(record.exc_info).split("\n"))
            text += "\n" + textwrap.indent("\n".join(lines), "  ")
        return redact(text)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, field names of the Elastic Common Schema."""

    def format(self, record: logging.LogRecord) -> str:
        """Render the record."""
        fields: dict[str, object] = {
            "@timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "log.level": record.levelname.lower(),
            "log.logger": record.name,
            "message": redact(record.getMessage()),
        }
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
            "fields": {
                "http.request.method": request.method,
                "url.path": path,
                "http.response.status_code": status,
                "http.response.body.bytes": sent,
                "event.duration": int(seconds * 1e9),
                "client.address": request.remote,
                "http.request.id": request["id"],
                "cache.status": cache_status,
            }
        },
    )
