"""What one process reports about itself. Workers send it to the first process (see `mirror.process.workers`)."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from pydantic import TypeAdapter

from mirror.admin.recent_events import Events
from mirror.common.metrics import Metrics
from mirror.images.fill import Fill
from mirror.images.library import Library
from mirror.images.metadata_cache import MetadataCache
from mirror.model.status import Event, RunningFill, StoreState, UpstreamState
from mirror.wiring.stores import Stores

INTERVAL = 1.0
"""Seconds between two reports of a worker, and between two measurements of the pace of fills."""

PACE_SECONDS = 10.0
"""Seconds over which the rate of a fill is averaged."""

UNASKED = UpstreamState(None)
UNTRIED = StoreState()


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
    """What one process reports. `stuck` says why an upload is stuck; `events` are those since the last report.

    `unqueued` are events for hooks that the disk does not take, by hook (see `mirror.admin.hooks.queue`).
    """

    samples: Sequence[Sample] = ()
    fills: Sequence[RunningFill] = ()
    upstream: UpstreamState = UNASKED
    store: StoreState = UNTRIED
    stuck: str | None = None
    events: Sequence[Event] = ()
    unqueued: Mapping[str, Sequence[bytes]] = field(default_factory=dict)

    def to_line(self) -> bytes:
        """Return the report as one line of JSON, with its line end."""
        return _REPORT.dump_json(self) + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> "Report":
        """Read a line that `to_line` wrote. Raises ValueError."""
        return _REPORT.validate_json(line)


_REPORT = TypeAdapter(Report)


class Telemetry:
    """Makes the reports of this process. `tick` is to be called every `INTERVAL` seconds.

    `unqueued` lets go of the events for hooks that could not be queued.
    """

    def __init__(
        self,
        metrics: Metrics,
        events: Events,
        library: Library,
        metadata_cache: MetadataCache,
        stores: Stores,
        unqueued: Callable[[], Mapping[str, Sequence[bytes]]] = dict,
    ) -> None:
        self.events = events
        self._metrics = metrics
        self._library = library
        self._metadata_cache = metadata_cache
        self._stores = stores
        self._unqueued = unqueued
        self._paces: dict[Fill, _Pace] = {}

    def tick(self) -> None:
        """Note how far the fills are."""
        running = {fill for fill, _ in self._library.fills}
        self._paces = {fill: self._paces.get(fill) or _Pace() for fill in running}
        for fill, pace in self._paces.items():
            pace.note(fill.position)

    def report(self) -> Report:
        """Return how this process is now, and the events since the last report."""
        untold, unqueued = self.events.untold(), self._unqueued()
        return Report(self.samples, self.fills, self.upstream, self.store, self._stores.stuck, untold, unqueued)

    @property
    def upstream(self) -> UpstreamState:
        """The state of upstream, as this process knows it."""
        return self._metadata_cache.upstream_state

    @property
    def store(self) -> StoreState:
        """The state of the store, as this process knows it."""
        return self._library.store_state

    @property
    def fills(self) -> Sequence[RunningFill]:
        """The fills of this process."""
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
        """The metrics of this process."""
        return [
            Sample(family.name, family.documentation, family.type, sample.name, dict(sample.labels), sample.value)
            for family in self._metrics.registry.collect()
            for sample in family.samples
            if not sample.name.endswith("_created")
        ]


class _Pace:
    """Measures how fast a fill is."""

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
