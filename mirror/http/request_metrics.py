"""What clients got: requests, downloads and bytes, counted; also of those that are still under way."""

from collections.abc import Iterator
from dataclasses import dataclass

from aiohttp import web
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from mirror.common.metrics import NAMESPACE, Metrics
from mirror.http.listener import Handler, LogAccess

_CACHE = {
    "hit": "hit",
    "fwd=miss; stored": "stored",
    "fwd=miss; collapsed": "collapsed",
    "hit; detail=stale": "stale",
    "fwd=bypass": "bypass",
    "fwd=stale": "refreshed",
    "fwd=miss": "miss",
}


class Accounting:
    """Wraps a handler and what logs its requests; a collector of prometheus-client for what is under way."""

    def __init__(self, handler: Handler, log_access: LogAccess, metrics: Metrics) -> None:
        self._handler = handler
        self._log_access = log_access
        self._metrics = metrics
        self._under_way: set[_UnderWay] = set()
        metrics.registry.register(self)

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        under_way = _UnderWay(request)
        self._under_way.add(under_way)
        try:
            return await self._handler(request)
        finally:
            self._settle(under_way)
            self._under_way.remove(under_way)

    def ended(self, request: web.BaseRequest, response: web.StreamResponse | None, seconds: float) -> None:
        """Log and count a request that has been answered; `response` is None for a client that left."""
        self._log_access(request, response, seconds)
        route = request.get("route", "other")
        status = "499" if response is None else str(response.status)
        self._metrics.requests.labels(route, status, _cache(request)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """Settle what has been sent so far, and say how many downloads run."""
        for each in tuple(self._under_way):
            self._settle(each)
        running = GaugeMetricFamily(f"{NAMESPACE}_active_downloads", "Downloads of images that run.")
        running.add_metric([], sum(each.counted is not None for each in self._under_way))
        yield running

    def _settle(self, under_way: "_UnderWay") -> None:
        """Count what was sent of an image since the last time."""
        if (sent := under_way.request.get("sent")) is None:
            return
        cache = _cache(under_way.request)
        if under_way.counted is None:
            self._metrics.downloads.labels(cache).inc()
        self._metrics.served.labels(cache).inc(sent - (under_way.counted or 0))
        under_way.counted = sent


@dataclass(slots=True, eq=False)
class _UnderWay:
    """A request, and how many bytes of its image are counted; None while it sends none."""

    request: web.BaseRequest
    counted: int | None = None


def _cache(request: web.BaseRequest) -> str:
    """The cache status in one word; none when the answer has none."""
    return _CACHE.get(request.get("cache-status", ""), "none")
