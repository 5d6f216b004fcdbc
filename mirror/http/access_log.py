"""Writes one line to the log for each request. It never contains a query, a header or a body."""

import logging

from mirror.common.hosts import unmapped
from mirror.common.log import access
from mirror.common.units import format_size
from mirror.http.exchange import Exchange


def log_access(exchange: Exchange, seconds: float) -> None:
    """Write one line about a request that has ended."""
    if not access.isEnabledFor(logging.INFO):
        return
    request, response = exchange.request, exchange.response
    path = request.rel_url.raw_path
    path = (path if path.isascii() and path.isprintable() else ascii(path))[:256]
    client = unmapped(request.remote)
    sent = exchange.sent if exchange.size is not None else (response and response.content_length) or 0
    cache_status = exchange.cache_status.words if exchange.cache_status else "-"
    access.info(
        "%s %s %d %s in %.3f s, %s, from %s, request %s",
        request.method,
        path,
        exchange.status,
        format_size(sent),
        seconds,
        cache_status,
        client,
        exchange.id,
        extra={
            "action": "http.request",
            "fields": {
                "http.request.method": request.method,
                "pps_mirror.route": exchange.route,
                "url.path": path,
                "http.response.status_code": exchange.status,
                "http.response.body.bytes": sent,
                "event.duration": int(seconds * 1e9),
                "client.address": client,
                "http.request.id": exchange.id,
                "pps_mirror.cache_status": cache_status,
            },
        },
    )
