"""Adds up what all processes of a mirror report: this one and its workers.

What a worker counted is kept after its death.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from prometheus_client.metrics_core import Metric

from mirror.admin.worker_report import Report, Sample, Telemetry
from mirror.images.fill_outcome import State
from mirror.model.cache_status import CacheStatus
from mirror.model.status import Event, RunningFill, StoreState, Traffic, UpstreamState

_SUMMED = frozenset({"counter", "histogram"})
_NEVER = datetime.min.replace(tzinfo=UTC)

SampleKey = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(slots=True)
class Family:
    """A metric: its samples by their name and labels."""

    text: str
    type: str
    samples: dict[SampleKey, float] = field(default_factory=dict)


class AllProcesses:
    """All processes of a mirror: this one, which has `telemetry`, and the workers that send reports.

    `keep` takes the events for hooks that workers could not queue.
    """

    def __init__(
        self, telemetry: Telemetry, keep: Callable[[Mapping[str, Sequence[bytes]]], None] = lambda _: None
    ) -> None:
        self._telemetry = telemetry
        self._keep = keep
        self._reports: dict[int, Report] = {}
        self._gone: dict[str, Family] = {}

    def tick(self) -> None:
        """Note how far the fills of this process are; to be called every `INTERVAL` seconds."""
        self._telemetry.tick()

    @property
    def events(self) -> Sequence[Event]:
        """The last notable events of all, newest first."""
        return self._telemetry.events.last

    def hear(self, worker: int, line: bytes | None) -> None:
        """Take in a worker's report, or None when the worker has ended; what it had counted is kept."""
        if line is not None:
            report = Report.parse(line)
            self._telemetry.events.take(report.events)
            self._keep(report.unqueued)
            self._reports[worker] = replace(report, events=(), unqueued={})
        elif last := self._reports.pop(worker, None):
            _add(self._gone, (sample for sample in last.samples if sample.type in _SUMMED))

    def families(self) -> Mapping[str, Family]:
        """Return the metrics of all processes, added up."""
        families: dict[str, Family] = {}
        for name, gone in self._gone.items():
            families[name] = Family(gone.text, gone.type, dict(gone.samples))
        _add(families, self._telemetry.samples)
        for report in self._reports.values():
            _add(families, report.samples)
        return families

    def traffic(self) -> Traffic:
        """Return the traffic since the mirror started. A pull from the registry counts as a download."""
        families = self.families()
        downloads = _by_label(families, "pps_mirror_downloads", "cache")
        pulls = int(sum(families["pps_mirror_registry_pulls"].samples.values()))
        pulled = sum(_by_label(families, "pps_mirror_registry_bytes", "kind").values())
        return Traffic(
            served=int(sum(_by_label(families, "pps_mirror_served_bytes", "cache").values()) + pulled),
            fetched=int(_by_label(families, "pps_mirror_fetched_bytes", "origin").get("upstream", 0)),
            downloads=int(sum(downloads.values())) + pulls,
            hits=int(sum(downloads.get(status.label, 0) for status in CacheStatus if status.is_hit)) + pulls,
        )

    @property
    def stuck(self) -> str | None:
        """Return why an upload of a worker is stuck, or None."""
        return next((report.stuck for report in self._reports.values() if report.stuck is not None), None)

    @property
    def fills(self) -> Sequence[RunningFill]:
        """The running fills, one for each image: that of the receiving process, with the clients of all processes."""
        found: dict[str, RunningFill] = {}
        for fill in (*self._telemetry.fills, *(fill for report in self._reports.values() for fill in report.fills)):
            known = found.get(fill.hash)
            if known is None:
                found[fill.hash] = fill
                continue
            best, other = (known, fill) if fill.state == State.FOLLOWING else (fill, known)
            found[fill.hash] = replace(best, clients=best.clients + other.clients)
        return list(found.values())

    @property
    def upstream(self) -> UpstreamState:
        """The state of upstream, from the process that asked it last."""
        states = [self._telemetry.upstream, *(report.upstream for report in self._reports.values())]
        return max(states, key=lambda state: max(_past(state.since), _past(state.heard_at)))

    @property
    def store(self) -> StoreState:
        """The state of the store, from the process that used it last."""
        states = [self._telemetry.store, *(report.store for report in self._reports.values())]
        return max(states, key=lambda state: _past(state.asked_at))


def _past(moment: datetime | None) -> datetime:
    """Return a moment unless it lies in the future, as after the clock was set back: newer ones must win over it."""
    return moment if moment is not None and moment <= datetime.now(UTC) else _NEVER


class AllMetrics:
    """Collects for prometheus-client: the metrics of all processes, and those that `more` looks up."""

    def __init__(self, processes: AllProcesses, more: Callable[[], Iterable[Metric]]) -> None:
        self._processes = processes
        self._more = more

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        for name, family in self._processes.families().items():
            metric = Metric(name, family.text, family.type)
            for (sample, labels), value in family.samples.items():
                metric.add_sample(sample, dict(labels), value)
            yield metric
        yield from self._more()


def _add(families: dict[str, Family], samples: Iterable[Sample]) -> None:
    for sample in samples:
        family = families.setdefault(sample.family, Family(sample.text, sample.type))
        key = sample.name, tuple(sorted(sample.labels.items()))
        family.samples[key] = family.samples.get(key, 0.0) + sample.value


def _by_label(families: Mapping[str, Family], name: str, label: str) -> Mapping[str, float]:
    family = families.get(name)
    if family is None:
        return {}
    return {dict(labels)[label]: value for (_, labels), value in family.samples.items()}
