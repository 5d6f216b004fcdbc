"""The state of the mirror as values: what the status page shows, `/api/status` answers and `/api/events` pushes.

Times are aware datetimes, sizes bytes, rates bytes per second. Nothing here is a secret, but file names and reasons
come from outside: code that shows them must treat them as text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Health:
    """In words: why the mirror cannot serve (`reasons`), and what it has to do without (`degraded`)."""

    reasons: Sequence[str] = ()
    degraded: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class CurrentImage:
    """The image that clients get if they name none. `fetched_at` is when upstream last said so; None: never.

    `announced` is the hash of the newer image that is on its way while clients get this one (rollover `when_stored`).
    """

    hash: str
    filename: str
    size: int
    created: datetime
    fetched_at: datetime | None
    stored: bool
    announced: str | None = None


@dataclass(frozen=True, slots=True)
class UpstreamState:
    """What is known of upstream. `reachable` is None until the first request, or when there is no upstream (`url`).

    `since` is when it became so; `reason` says in words why it is unreachable, or reachable but useless; `heard_at` is
    its last usable answer.
    """

    url: str | None
    reachable: bool | None = None
    since: datetime | None = None
    reason: str | None = None
    heard_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class StoreState:
    """Whether the store took the last image that it was asked to take, `asked_at`: `trouble` says in words why not."""

    trouble: str | None = None
    asked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class RunningFill:
    """A transfer that runs.

    `state` is one of `mirror.images.fill_outcome.State`; `seconds_left` is None while it is unknown. `clients` are the
    downloads that read along now; `resumes` counts how often it was cut and went on.
    """

    hash: str
    filename: str
    size: int
    position: int
    state: str
    rate: float
    seconds_left: float | None
    clients: int
    resumes: int
    began_at: datetime


class Indexing(StrEnum):
    """Whether a stored image can be pulled as a container image: what its archive holds is known, not yet, or never."""

    WAITING = "waiting"
    RUNNING = "indexing"
    READY = "ready"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class ArchiveState:
    """Whether a stored image can be pulled, and if not, why (`reason`) and how much of its archive is read (`done`)."""

    state: Indexing
    reason: str | None = None
    done: float | None = None
    seconds_left: float | None = None
    warnings: Sequence[str] = ()

    @property
    def is_open(self) -> bool:
        """Whether it may still become one that can be pulled."""
        return self.state in {Indexing.WAITING, Indexing.RUNNING}

    def __str__(self) -> str:
        if self.state is Indexing.RUNNING and self.done is not None:
            return f"indexing {self.done:.0%}"
        return f"{self.state}: {self.reason}" if self.reason else self.state


@dataclass(frozen=True, slots=True)
class ImageLine:
    """A stored image. `places` are where it is: disk, bucket.

    `tags` are those of the registry, and `archive` says whether it can be pulled; None where there is no registry.
    """

    hash: str
    filename: str
    size: int
    created: datetime
    stored_at: datetime
    last_served_at: datetime | None
    verified_at: datetime | None
    pinned: bool
    current: bool
    places: Sequence[str]
    tags: Sequence[str] = ()
    archive: ArchiveState | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """How full a place is: `used` by the mirror, up to `limit`; `free` is left on the file system.

    `largest` is how large a new image may be when everything is evicted that may be. Of a bucket only its bounds are
    known, if it has any; else None. `trouble` says in words what is wrong with the place.
    """

    place: str
    where: str
    used: int
    images: int
    limit: int | None = None
    free: int | None = None
    largest: int | None = None
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class Traffic:
    """What moved in some time: bytes to clients, bytes from upstream, image downloads and how many were hits."""

    served: int = 0
    fetched: int = 0
    downloads: int = 0
    hits: int = 0

    @property
    def saved(self) -> int:
        """Bytes that upstream's line did not have to carry; negative before a fill pays off."""
        return self.served - self.fetched

    @property
    def hit_rate(self) -> float | None:
        """Share of the downloads that were hits, 0 to 1; None without downloads."""
        return self.hits / self.downloads if self.downloads else None


@dataclass(frozen=True, slots=True)
class Interval:
    """A stretch of the last 24 hours, from `at` on, and what moved in it."""

    at: datetime
    seconds: int
    traffic: Traffic


@dataclass(frozen=True, slots=True)
class Event:
    """Something notable that happened, in words. `action` is its name for machines, `level` that of the log.

    `image` is the hash of the image that it is about, if it is about one.
    """

    at: datetime
    level: str
    action: str
    message: str
    image: str | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """The outcome of an operator's request, in words, and the hash of its `image`."""

    message: str
    image: str


@dataclass(frozen=True, slots=True)
class PrefetchState:
    """What prefetching does: `doing` in words; `next_at` is when it looks for a new image next."""

    enabled: bool
    doing: str
    next_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class AuditLine:
    """Something that an operator did. `who` is a user of this machine, or an address; `what` is an image, or words."""

    at: datetime
    who: str
    action: str
    what: str
    outcome: str


@dataclass(frozen=True, slots=True)
class HookLine:
    """A hook: `where` its events go, and how many are `queued`. `trouble` says why the first of them was not taken.

    `next_at` is when it is tried again. `given_up` counts what this process has given up.
    """

    name: str
    where: str
    queued: int = 0
    delivered_at: datetime | None = None
    trouble: str | None = None
    next_at: datetime | None = None
    given_up: int = 0


@dataclass(frozen=True, slots=True)
class Status:
    """All of it, at `now`. `needs_token` when changing anything takes the admin token."""

    version: str
    now: datetime
    started_at: datetime
    health: Health
    current: CurrentImage | None
    upstream: UpstreamState
    fills: Sequence[RunningFill]
    images: Sequence[ImageLine]
    rooms: Sequence[Room]
    today: Traffic
    events: Sequence[Event]
    history: Sequence[Interval]
    prefetch: PrefetchState
    workers: int
    workers_missing: int
    needs_token: bool
    hooks: Sequence[HookLine] = ()
    audit: Sequence[AuditLine] = ()


def as_json(value: object) -> object:
    """Turn any of these into what `json.dumps` takes: names in camel case, times in ISO 8601."""
    if is_dataclass(value):
        found = {_camel(each.name): as_json(getattr(value, each.name)) for each in fields(value)}
        if isinstance(value, Traffic):
            found |= {"saved": value.saved, "hitRate": value.hit_rate}
        return found
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [as_json(each) for each in value]
    return value


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)
