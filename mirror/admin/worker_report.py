"""The report that each worker process sends to the first one, and the sum of all reports.

With workers the first process hears from each of the others every second (see `mirror.process.workers`) and adds them
up; what a worker counted stays when it has died.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from prometheus_client.metrics_core import Metric
from pydantic import TypeAdapter

from mirror.admin.recent_events import Events
from mirror.common.metrics import Metrics
from mirror.images.catalog import Catalog
from mirror.images.fill import Fill
from mirror.images.library import Library
from mirror.images.outcome import State
from mirror.model.cache_status import CacheStatus
from mirror.model.status import Event, RunningFill, StoreState, Traffic, UpstreamState
from mirror.wiring.stores import Stores

INTERVAL = 1.0
"""Seconds between two reports of a worker, and between two looks at how fast fills are."""

PACE_SECONDS = 10.0
"""How far back the rate of a fill looks."""

_SUMMED = frozenset({"counter", "histogram"})
_NEVER = datetime.min.replace(tzinfo=UTC)

UNASKED = UpstreamState(None)
UNTRIED = StoreState()

SampleKey = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(slots=True)
class Family:
    """A metric: its samples by their name and labels."""

    text: str
    type: str
    samples: dict[SampleKey, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample:
    """One number of one metric, as it travels between processes."""

    family: str
    text: str
    type: str
    name: str
    labels: dict[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Report:
    """What one process tells; `stuck` keeps an upload from going on, `events` are those since its last report."""

    samples: Sequence[Sample] = ()
    fills: Sequence[RunningFill] = ()
    upstream: UpstreamState = UNASKED
    store: StoreState = UNTRIED
    stuck: str | None = None
    events: Sequence[Event] = ()

    def to_line(self) -> bytes:
        """One line of JSON, with its end."""
        return _REPORT.dump_json(self) + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> "Report":
        """Read such a line. Raises ValueError."""
        return _REPORT.validate_json(line)


_REPORT = TypeAdapter(Report)


class Telemetry:
    """Tells how this process is. `tick` is to be called every `INTERVAL`."""

    def __init__(self, metrics: Metrics, events: Events, library: Library, catalog: Catalog, stores: Stores) -> None:
        self.events = events
        self._metrics = metrics
        self._library = library
        self._catalog = catalog
        self._stores = stores
        self._paces: dict[Fill, _Pace] = {}

    def tick(self) -> None:
        """Look where the fills are."""
        running = {fill for fill, _ in self._library.fills}
        self._paces = {fill: self._paces.get(fill) or _Pace() for fill in running}
        for fill, pace in self._paces.items():
            pace.note(fill.position)

    def report(self) -> Report:
        """How this process is now, and what it heard since the last time."""
        return Report(self.samples, self.fills, self.upstream, self.store, self._stores.stuck, self.events.untold())

    @property
    def upstream(self) -> UpstreamState:
        """What is known of upstream here."""
        return self._catalog.upstream_state

    @property
    def store(self) -> StoreState:
        """Whether the store took the last image that came here."""
        return self._library.store_state

    @property
    def fills(self) -> Sequence[RunningFill]:
        """The fills that run here."""
        return [self._describe(fill, began_at) for fill, began_at in self._library.fills]

    def _describe(self, fill: Fill, began_at: datetime) -> RunningFill:
        metadata = fill.metadata
        rate = self._paces[fill].rate if fill in self._paces else 0.0
        left = (metadata.size - fill.position) / rate if rate else None
        return RunningFill(
            metadata.hash,
            metadata.filename,
            metadata.size,
            fill.position,
            fill.state,
            rate,
            left,
            fill.clients,
            fill.resumes,
            began_at,
        )

    @property
    def samples(self) -> Sequence[Sample]:
        """What was counted here."""
        return [
            Sample(family.name, family.documentation, family.type, sample.name, dict(sample.labels), sample.value)
            for family in self._metrics.registry.collect()
            for sample in family.samples
            if not sample.name.endswith("_created")
        ]


class AllProcesses:
    """All processes of a mirror: this one, whose `telemetry` it has, and the workers that report to it."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._reports: dict[int, Report] = {}
        self._gone: dict[str, Family] = {}

    def tick(self) -> None:
        """Look where the fills of this process are; to be called every `INTERVAL`."""
        self._telemetry.tick()

    @property
    def events(self) -> Sequence[Event]:
        """The last notable events of all, newest first."""
        return self._telemetry.events.last

    def hear(self, worker: int, line: bytes | None) -> None:
        """Take up what a worker says, a report, or that it has ended: None. What it had counted is kept."""
        if line is not None:
            report = Report.parse(line)
            self._telemetry.events.take(report.events)
            self._reports[worker] = replace(report, events=())
        elif last := self._reports.pop(worker, None):
            _add(self._gone, (sample for sample in last.samples if sample.type in _SUMMED))

    def families(self) -> Mapping[str, Family]:
        """The metrics of all, added up."""
        families: dict[str, Family] = {}
        for name, gone in self._gone.items():
            families[name] = Family(gone.text, gone.type, dict(gone.samples))
        _add(families, self._telemetry.samples)
        for report in self._reports.values():
            _add(families, report.samples)
        return families

    def traffic(self) -> Traffic:
        """What has moved since the mirror started."""
        families = self.families()
        downloads = _by_label(families, "pps_mirror_downloads", "cache")
        return Traffic(
            served=int(sum(_by_label(families, "pps_mirror_served_bytes", "cache").values())),
            fetched=int(_by_label(families, "pps_mirror_fetched_bytes", "origin").get("upstream", 0)),
            downloads=int(sum(downloads.values())),
            hits=int(sum(downloads.get(status.label, 0) for status in CacheStatus if status.is_hit)),
        )

    @property
    def stuck(self) -> str | None:
        """What keeps an upload of a worker from going on."""
        return next((report.stuck for report in self._reports.values() if report.stuck is not None), None)

    @property
    def fills(self) -> Sequence[RunningFill]:
        """The fills that run, one for each image: the one that receives, with the clients of all."""
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
        """What the process knows that heard of upstream last."""
        states = [self._telemetry.upstream, *(report.upstream for report in self._reports.values())]
        return max(states, key=lambda state: max(_past(state.since), _past(state.heard_at)))

    @property
    def store(self) -> StoreState:
        """What the process found that asked the store last to take an image."""
        states = [self._telemetry.store, *(report.store for report in self._reports.values())]
        return max(states, key=lambda state: _past(state.asked_at))


def _past(moment: datetime | None) -> datetime:
    """It, unless it is yet to come: somebody has set the clock back, and what is said since is later."""
    return moment if moment is not None and moment <= datetime.now(UTC) else _NEVER


class Gathered:
    """A collector of prometheus-client: the metrics of all processes, and what `more` looks up."""

    def __init__(self, processes: AllProcesses, more: Callable[[], Iterable[Metric]]) -> None:
        self._processes = processes
        self._more = more

    def collect(self) -> Iterator[Metric]:
        """Give every metric there is."""
        for name, family in self._processes.families().items():
            metric = Metric(name, family.text, family.type)
            for (sample, labels), value in family.samples.items():
                metric.add_sample(sample, dict(labels), value)
            yield metric
        yield from self._more()


class _Pace:
    """How fast a fill has been lately."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, position: int) -> None:
        now = time.monotonic()
        self._seen.append((now, position))
        while now - self._seen[0][0] > PACE_SECONDS:
            self._seen.popleft()

    @property
    def rate(self) -> float:
        """Bytes per second; 0 before anything is known."""
        (began, first), (ended, last) = self._seen[0], self._seen[-1]
        return max(0.0, (last - first) / (ended - began)) if ended > began else 0.0


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
