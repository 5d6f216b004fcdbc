"""What clients got: requests, downloads and bytes, counted; also of those that are still under way."""

from collections.abc import Iterator

from aiohttp import web
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from mirror.common.metrics import NAMESPACE, Metrics
from mirror.http.exchange import Exchange
from mirror.http.listener import Ended, Handler


class RequestMetrics:
    """Wraps a handler, and what is called when a request has ended; a collector of prometheus-client.

    What it counts of a download that is under way it has in `_counted`: None until the answer carries an image.
    """

    def __init__(self, handler: Handler, ended: Ended, metrics: Metrics) -> None:
        self._handler = handler
        self._ended = ended
        self._metrics = metrics
        self._counted: dict[Exchange, int | None] = {}
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
        self._metrics.requests.labels(exchange.route, str(exchange.status), _label(exchange)).inc()
        self._metrics.request_seconds.labels(exchange.route).observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """Settle what has been sent so far, and say how many downloads run."""
        for each in tuple(self._counted):
            self._settle(each)
        running = GaugeMetricFamily(f"{NAMESPACE}_active_downloads", "Downloads of images that run.")
        running.add_metric([], sum(counted is not None for counted in self._counted.values()))
        yield running

    def _settle(self, exchange: Exchange) -> None:
        """Count what was sent of an image since the last time."""
        if exchange.size is None:
            return
        counted, sent = self._counted[exchange], exchange.sent
        if counted is None:
            self._metrics.downloads.labels(_label(exchange)).inc()
        self._metrics.served.labels(_label(exchange)).inc(sent - (counted or 0))
        self._counted[exchange] = sent


def _label(exchange: Exchange) -> str:
    """The cache status in one word; none when the answer has none."""
    return exchange.cache_status.label if exchange.cache_status else "none"
