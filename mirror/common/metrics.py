"""Defines every metric that a process counts. Values that are looked up instead are in `mirror.admin.gauges`.

Base units, and labels of which there are few: never a file's name, a hash, a client. Each process counts on its own;
`mirror.admin.all_processes` adds up what its processes counted.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from mirror.model.cache_status import OF_DOWNLOADS

NAMESPACE = "pps_mirror"

_QUICK = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_REQUEST = (*_QUICK, 100.0, 300.0, 1000.0, 3600.0)
_FILL = (1.0, 3.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 12 * 3600.0, 24 * 3600.0)


ROUTES = ("image", "metadata", "passthrough", "registry_manifest", "registry_blob")
"""The routes whose errors alerts look at."""


class Metrics:
    """What one process counts. Attributes are metrics of prometheus-client, in the registry of that name."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, namespace=NAMESPACE, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, text, labels, namespace=NAMESPACE, buckets=buckets, registry=self.registry)

        self.requests = counter("requests", "Requests of clients, when they ended.", "route", "status", "cache")
        self.request_seconds = histogram(
            "request_duration_seconds", "From a request's header to the end of its answer.", _REQUEST, "route"
        )
        self.downloads = counter("downloads", "Answers that carry an image or a part of it.", "cache")
        self.served = counter("served_bytes", "Bytes of images that went to clients.", "cache")
        self.fetched = counter("fetched_bytes", "Bytes of images that fills received, by where from.", "origin")
        self.fills = counter("fills", "Fills that ended, by what became of them.", "outcome")
        self.fill_seconds = histogram(
            "fill_duration_seconds", "From a fill's beginning to its verdict, when that was good.", _FILL
        )
        self.resumes = counter("fill_resumes", "How often a transfer was cut and went on.")
        self.unverified = counter("verification_failures", "Images whose hash or size was wrong.", "where")
        self.upstream_requests = counter("upstream_requests", "Requests to upstream.", "request", "outcome")
        self.upstream_seconds = histogram(
            "upstream_request_duration_seconds", "From a request to upstream to its answer's header.", _QUICK, "request"
        )
        self.receiving = Gauge(
            "image_connections",
            "Connections over which images are received from upstream.",
            namespace=NAMESPACE,
            registry=self.registry,
        )
        self.decisions = counter("access_decisions", "Whether callers were let in.", "decision")
        self.pulls = counter("registry_pulls", "Manifests that the registry gave, one for each pull.")
        self.blobs = counter("registry_blobs", "Answers of the registry that carry a blob or a part of it.", "kind")
        self.registry_bytes = counter("registry_bytes", "Bytes that the registry sent to clients.", "kind")
        self.indexes = counter("indexes", "Archives that were read for the registry, by what became of it.", "outcome")
        self.index_seconds = histogram(
            "index_duration_seconds",
            "From the beginning of reading an archive to its index, when that was good.",
            _FILL,
        )
        self.evictions = counter("evictions", "Images that had to make room.")
        self.scrubs = counter("scrubs", "Stored images that were hashed again by the scrub.", "verdict")
        self.prefetches = counter("prefetches", "Looks for a new image that no client asked for.", "outcome")
        self.worker_deaths = counter("worker_deaths", "Workers that ended by themselves.")
        self.admin_refusals = counter("admin_refusals", "Admin tokens that were refused.", "reason")
        self.hook_deliveries = counter("hook_deliveries", "Attempts to tell a hook of an event.", "hook", "outcome")
        self.log_lines_lost = counter("log_lines_lost", "Lines of the log that were not written.")

        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """Create what alerts look at with the value zero: otherwise the first of each would not show as an increase.

        Where labels are an enum of another folder, that folder creates them (`mirror.images.library`).
        """
        downloads = [each.label for each in OF_DOWNLOADS]
        expected: tuple[tuple[Counter, Iterable[tuple[str, ...]]], ...] = (
            (self.unverified, product(("fill", "scrub"))),
            (self.decisions, product(("accepted", "refused", "unknown"))),
            (self.fetched, product(("upstream", "replica", "store"))),
            (self.downloads, product(downloads)),
            (self.served, product(downloads)),
            (self.blobs, product(("config", "layer"))),
            (self.registry_bytes, product(("manifest", "config", "layer"))),
            (self.indexes, product(("ready", "refused", "failed"))),
            (self.admin_refusals, product(("wrong", "slowed"))),
            (self.scrubs, product(("good", "bad"))),
            (self.prefetches, product(("began", "nothing", "failed"))),
            (self.requests, product(ROUTES, ("500", "502", "503", "504"), ("none",))),
            (
                self.upstream_requests,
                product(("metadata", "image", "range", "passthrough"), ("ok", "refused", "failed")),
            ),
        )
        for counter, labels in expected:
            for each in labels:
                counter.labels(*each)

    @contextmanager
    def asking(self, request: str) -> Iterator["Asked"]:
        """Count one request to upstream: as failed, unless its outcome is reported within the context."""
        asked = Asked()
        began = time.monotonic()
        try:
            yield asked
        finally:
            self.upstream_requests.labels(request, asked.outcome).inc()
            took = (asked.answered_at or time.monotonic()) - began
            self.upstream_seconds.labels(request).observe(took)


class Asked:
    """One request to upstream and its outcome."""

    def __init__(self) -> None:
        self.outcome = "failed"
        self.answered_at: float | None = None

    def answered(self, status: int) -> None:
        """Note the answer's header."""
        self.answered_at = time.monotonic()
        self.outcome = "ok" if status < 400 else "refused" if status < 500 else "failed"
