"""Writes one line to the log for each request. It never contains a query, a header or a body.

A line of JSON is made here, by hand. It is the line that a record of `logging` would become, but making such a record,
redacting each field and `json.dumps` take as long as answering a small request does.
"""

import logging
import os
import re
import time
from datetime import UTC, datetime

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
        request, response, status = exchange.request, exchange.response, exchange.status
        method, path = request.method, request.rel_url.raw_path
        path = (path if path.isascii() and path.isprintable() else ascii(path))[:256]
        client = unmapped(request.remote)
        sent = exchange.sent if exchange.size is not None else (response and response.content_length) or 0
        cache = exchange.cache_status.words if exchange.cache_status else "-"
        message = (
            f"{method} {path} {status} {format_size(sent)} in {seconds:.3f} s, {cache}, from {client}, "
            f"request {exchange.id}"
        )
        if exchange.digest is not None:
            message += f", {exchange.digest}"
        digest = exchange.digest or "-"
        duration = int(seconds * 1e9)
        from_outside = f"{method}{path}{client}{exchange.id}"
        lines = self._output.lines
        plain = _PLAIN.fullmatch(from_outside) and _URL not in from_outside
        if lines is not None and plain and not (path.lower().endswith(_SCHEMES) or method.lower().endswith(_SCHEMES)):
            lines.write(
                f'{{"@timestamp": "{self._now()}", "ecs.version": "{ECS_VERSION}", "log.level": "info", '
                f'"log.logger": "{access.name}", "message": "{message}", "process.pid": {self._pid}, '
                f'"event.action": "http.request", "http.request.method": "{method}", '
                f'"pps_mirror.route": "{exchange.route}", "url.path": "{path}", '
                f'"http.response.status_code": {status}, "http.response.body.bytes": {sent}, '
                f'"event.duration": {duration}, "client.address": "{client}", "http.request.id": "{exchange.id}", '
                f'"pps_mirror.cache_status": "{cache}", "pps_mirror.digest": "{digest}"}}',
                waits=True,
            )
            return
        fields = {
            "http.request.method": method,
            "pps_mirror.route": exchange.route,
            "url.path": path,
            "http.response.status_code": status,
            "http.response.body.bytes": sent,
            "event.duration": duration,
            "client.address": client,
            "http.request.id": exchange.id,
            "pps_mirror.cache_status": cache,
            "pps_mirror.digest": digest,
        }
        access.info("%s", message, extra={"action": "http.request", "fields": fields})

    def _now(self) -> str:
        """The time of day as `JsonFormatter` writes it."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._date = second, f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}"
        return f"{self._date}.{int(now % 1 * 1000):03d}+00:00"
