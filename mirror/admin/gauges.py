"""The metrics that are looked up in the mirror's `Status` instead of counted: one table, in the order of the output.

What is counted is in `mirror.common.metrics`.
"""

import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from mirror.common.metrics import NAMESPACE
from mirror.config import Config
from mirror.model.status import Indexing, Room, RunningFill, Status

Samples = Iterable[tuple[tuple[str, ...], float | None]]
"""Values of the labels, and the number for them; None where there is nothing to report."""


@dataclass(frozen=True, slots=True)
class Gauge:
    """One metric: its name without the namespace, its help, the names of its labels, and what finds its samples.

    A metric without labels is left out when there is nothing to report.
    """

    name: str
    text: str
    labels: tuple[str, ...]
    samples: Callable[[Status, Config], Samples]


def gauges(status: Status, config: Config) -> Iterator[Metric]:
    """Yield every gauge that has something to report."""
    for gauge in _GAUGES:
        found = [(labels, value) for labels, value in gauge.samples(status, config) if value is not None]
        if gauge.labels or found:
            family = GaugeMetricFamily(f"{NAMESPACE}_{gauge.name}", gauge.text, labels=gauge.labels)
            for labels, value in found:
                family.add_metric(labels, float(value))
            yield family


def _one(name: str, text: str, value: Callable[[Status, Config], float | None]) -> Gauge:
    return Gauge(name, text, (), lambda status, config: [((), value(status, config))])


def _of_fills(name: str, text: str, value: Callable[[RunningFill], float]) -> Gauge:
    return Gauge(name, text, ("image",), lambda status, _: (((fill.hash[:12],), value(fill)) for fill in status.fills))


def _of_places(name: str, text: str, value: Callable[[Room, Config], float | None]) -> Gauge:
    def samples(status: Status, config: Config) -> Samples:
        return (((room.place,), value(room, config)) for room in status.rooms)

    return Gauge(name, text, ("place",), samples)


def _workers(status: Status, _: Config) -> Samples:
    yield ("serving",), status.workers - status.workers_missing
    yield ("missing",), status.workers_missing


def _archives(status: Status, config: Config) -> Samples:
    archives = [image.archive for image in status.images if image.archive is not None]
    for state in Indexing if config.registry.enabled else ():
        yield (state,), sum(archive.state is state for archive in archives)


def _version(status: Status, _: Config) -> Samples:
    yield (status.version, platform.python_version()), 1


def _has_disk(status: Status) -> bool:
    return any(room.place == "disk" for room in status.rooms)


def _longest_unverified(status: Status, _: Config) -> float | None:
    verified = [image.verified_at for image in status.images if image.verified_at is not None]
    return _age(min(verified), status) if verified else None


def _current_age(status: Status, _: Config) -> float | None:
    return _age(status.current.fetched_at, status) if status.current and status.current.fetched_at else None


def _age(moment: datetime, status: Status) -> float:
    return max(0.0, (status.now - moment).total_seconds())


_GAUGES = (
    Gauge(
        "hook_queue_events",
        "Events that wait for a hook's receiver.",
        ("hook",),
        lambda status, _: (((hook.name,), hook.queued) for hook in status.hooks),
    ),
    Gauge("build_info", "Which version runs, on which Python.", ("version", "python"), _version),
    _one("ready", "1 when the mirror can serve.", lambda status, _: not status.health.reasons),
    _one("degraded", "1 when it has to do without something.", lambda status, _: bool(status.health.degraded)),
    Gauge("workers", "Processes that serve clients.", ("state",), _workers),
    _one("fills_running", "Fills that run.", lambda status, _: len(status.fills)),
    _of_fills("fill_received_bytes", "How far a running fill is.", lambda fill: fill.position),
    _of_fills("fill_size_bytes", "How large its image is.", lambda fill: fill.size),
    _one(
        "upstream_up",
        "1 when upstream gave a usable answer last.",
        lambda status, _: status.upstream.reachable,
    ),
    _one(
        "stale_if_error_seconds",
        "How old what upstream said may become while it is away.",
        lambda status, config: None if status.upstream.reachable is None else config.upstream.stale_if_error,
    ),
    _of_places("store_used_bytes", "Bytes that the mirror's files take.", lambda room, _: room.used),
    _of_places("store_limit_bytes", "Bytes that they may take at most now.", lambda room, _: room.limit),
    _of_places("store_free_bytes", "Bytes that are free there.", lambda room, _: room.free),
    _of_places(
        "store_room_bytes",
        "How large a new image may be to have room, when all goes that may.",
        lambda room, _: room.largest,
    ),
    _of_places(
        "store_min_free_bytes",
        "Bytes there that are left to others.",
        lambda room, config: config.store.min_free if room.place == "disk" else None,
    ),
    _of_places("store_images", "Stored images.", lambda room, _: room.images),
    Gauge("archives", "Stored images, by whether they can be pulled from the registry.", ("state",), _archives),
    _of_places("store_up", "1 when the place can be written.", lambda room, _: room.trouble is None),
    _one("unverified_seconds", "How long ago the image was verified that waits longest.", _longest_unverified),
    _one(
        "scrub_interval_seconds",
        "How often each image is to be verified again.",
        lambda status, config: config.store.scrub_interval if _has_disk(status) else None,
    ),
    _one(
        "current_size_bytes",
        "How large what clients get is.",
        lambda status, _: status.current.size if status.current else None,
    ),
    _one(
        "current_stored",
        "1 when what clients get is stored.",
        lambda status, _: status.current.stored if status.current else None,
    ),
    _one("current_age_seconds", "How long ago upstream said what is current.", _current_age),
)
