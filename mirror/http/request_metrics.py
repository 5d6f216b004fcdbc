"""Counts requests, downloads and bytes sent, including those of downloads that are still running."""

from collections.abc import Iterator

from aiohttp import web
from prometheus_client import Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from mirror.common.metrics import NAMESPACE, Metrics
from mirror.http.exchange import Exchange
from mirror.http.listener import Ended, Handler


class RequestMetrics:
    """Wraps a handler and the callback for ended requests. It is a collector of prometheus-client.

    `_counted` has the running requests, and how many bytes of an image are counted for each; None until one is sent.
    """

    def __init__(self, handler: Handler, ended: Ended, metrics: Metrics) -> None:
        self._handler = handler
        self._ended = ended
        self._metrics = metrics
        self._counted: dict[Exchange, int | None] = {}
        self._of_kind: dict[tuple[str, int, str], tuple[Counter, Histogram]] = {}
        metrics.registry.register(self)

    async def __call__(self, exchange: Exchange) -> web.StreamResponse:
        """Answer one request."""
        self._counted[exchange] = None
        try:
            return await self._handler(exchange)
        finally:
            self._settle(exchange)
            del self._counted[exchange]

    def ended(self, exchange: Exchange, seconds: float) -> None:
        """Count a request that has ended."""
        self._ended(exchange, seconds)
        kind = (exchange.route, exchange.status, _label(exchange))
        if (metrics := self._of_kind.get(kind)) is None:  # looking them up each time takes longer than counting
            metrics = self._of_kind[kind] = (
                self._metrics.requests.labels(*map(str, kind)),
                self._metrics.request_seconds.labels(exchange.route),
            )
        requests, duration = metrics
        requests.inc()
        duration.observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """Count what running downloads have sent so far, and yield how many there are."""
        for each in tuple(self._counted):
            self._settle(each)
        running = GaugeMetricFamily(f"{NAMESPACE}_active_downloads", "Downloads of images that run.")
        running.add_metric([], sum(counted is not None for counted in self._counted.values()))
        yield running

    def _settle(self, exchange: Exchange) -> None:
        """Count the bytes of an image that were sent since the last call."""
        if exchange.size is None:
            return
        counted, sent = self._counted[exchange], exchange.sent
        if exchange.kind is not None:
            if counted is None:
                self._metrics.blobs.labels(exchange.kind).inc()
            self._metrics.registry_bytes.labels(exchange.kind).inc(sent - (counted or 0))
        else:
            if counted is None:
                self._metrics.downloads.labels(_label(exchange)).inc()
            self._metrics.served.labels(_label(exchange)).inc(sent - (counted or 0))
        self._counted[exchange] = sent


def _label(exchange: Exchange) -> str:
    """Return the cache status in one word; "none" when the answer has no such status."""
    return exchange.cache_status.label if exchange.cache_status else "none"
