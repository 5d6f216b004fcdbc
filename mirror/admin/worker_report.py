"""The report that each worker process sends to the first one, every second (see `mirror.process.workers`)."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import TypeAdapter

from mirror.admin.recent_events import Events
from mirror.common.metrics import Metrics
from mirror.images.catalog import Catalog
from mirror.images.fill import Fill
from mirror.images.library import Library
from mirror.model.status import Event, RunningFill, StoreState, UpstreamState
from mirror.wiring.stores import Stores

INTERVAL = 1.0
"""Seconds between two reports of a worker, and between two looks at how fast fills are."""

PACE_SECONDS = 10.0
"""How far back the rate of a fill looks."""

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
