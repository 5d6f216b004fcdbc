"""Writes one line to the log for each request. It never contains a query, a header or a body.

A line of JSON is made here, by hand. It is the line that a record of `logging` would become, but making such a record,
redacting each field and `json.dumps` take as long as answering a small request does. Most of a line is the same for
many requests, and is made once for them.
"""

import logging
import os
import re
import time
from datetime import UTC, datetime
from functools import lru_cache

from mirror.common.hosts import unmapped
from mirror.common.log import ECS_VERSION, Output, access
from mirror.common.units import format_size
from mirror.http.exchange import Exchange

_PLAIN = re.compile(r"[!#-\[\]-~]*")
"""What JSON leaves as it is, and has no space, so that nothing in it can be an Authorization header."""

_SCHEMES = ("bearer", "token", "basic")
"""Words that look like the beginning of such a header when a space comes after them."""

_URL = "://"
"""A text that contains this may contain a credential, or a query."""

_Kind = tuple[str, str, int, int, str, str | None, str, str | None]
"""Method, path, status, bytes that were sent, cache status, client, route and digest."""


class AccessLog:
    """Writes a line to `output` for each request that has ended."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._second, self._date = 0, ""
        self._pid = os.getpid()

    def __call__(self, exchange: Exchange, seconds: float) -> None:
        """Write the line of one exchange."""
        if not access.isEnabledFor(logging.INFO):
            return
        request, response = exchange.request, exchange.response
        kind = (
            request.method,
            request.rel_url.raw_path,
            exchange.status,
            exchange.sent if exchange.size is not None else (response and response.content_length) or 0,
            exchange.cache_status.words if exchange.cache_status else "-",
            unmapped(request.remote),
            exchange.route,
            exchange.digest,
        )
        lines, duration, name = self._output.lines, int(seconds * 1e9), exchange.id
        if lines is None or (line := _line(self._pid, *kind)) is None or _URL in name:
            _write_record(kind, seconds, duration, name)
            return
        to_seconds, to_name, to_duration, to_name_again, to_end = line
        lines.write(
            f'{{"@timestamp": "{self._now()}{to_seconds}{seconds:.3f}{to_name}{name}{to_duration}{duration}'
            f"{to_name_again}{name}{to_end}",
            waits=True,
        )

    def _now(self) -> str:
        """The time of day as `JsonFormatter` writes it."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._date = second, f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}"
        return f"{self._date}.{int(now % 1 * 1000):03d}+00:00"


@lru_cache(maxsize=256)
def _line(
    pid: int,
    method: str,
    path: str,
    status: int,
    sent: int,
    cache: str,
    client: str | None,
    route: str,
    digest: str | None,
) -> tuple[str, str, str, str, str] | None:
    """Return what is between the parts of a line that differ from request to request; None if it needs redaction."""
    path = _short(path)
    from_outside = f"{method}{path}{client}"
    if not _PLAIN.fullmatch(from_outside) or _URL in from_outside:
        return None
    if path.lower().endswith(_SCHEMES) or method.lower().endswith(_SCHEMES):
        return None
    return (
        f'", "ecs.version": "{ECS_VERSION}", "log.level": "info", "log.logger": "{access.name}", '
        f'"message": "{method} {path} {status} {format_size(sent)} in ',
        f" s, {cache}, from {client}, request ",
        f'{_behind(digest)}", "process.pid": {pid}, "event.action": "http.request", "http.request.method": "{method}", '
        f'"pps_mirror.route": "{route}", "url.path": "{path}", "http.response.status_code": {status}, '
        f'"http.response.body.bytes": {sent}, "event.duration": ',
        f', "client.address": "{client}", "http.request.id": "',
        f'", "pps_mirror.cache_status": "{cache}", "pps_mirror.digest": "{digest or "-"}"}}',
    )


def _write_record(kind: _Kind, seconds: float, duration: int, name: str) -> None:
    """Write the same as a record of `logging`, which redacts what might be a secret and knows other formats."""
    method, path, status, sent, cache, client, route, digest = kind
    path = _short(path)
    message = (
        f"{method} {path} {status} {format_size(sent)} in {seconds:.3f} s, {cache}, from {client}, request {name}"
        f"{_behind(digest)}"
    )
    fields = {
        "http.request.method": method,
        "pps_mirror.route": route,
        "url.path": path,
        "http.response.status_code": status,
        "http.response.body.bytes": sent,
        "event.duration": duration,
        "client.address": client,
        "http.request.id": name,
        "pps_mirror.cache_status": cache,
        "pps_mirror.digest": digest or "-",
    }
    access.info("%s", message, extra={"action": "http.request", "fields": fields})


def _short(path: str) -> str:
    return (path if path.isascii() and path.isprintable() else ascii(path))[:256]


def _behind(digest: str | None) -> str:
    return "" if digest is None else f", {digest}"
