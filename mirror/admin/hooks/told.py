"""Remembers what hooks were told, in `told.json` beside the queues, so that a thing is told once for a store.

Several processes notice that another image is current, that upstream is away, or that the store fails. And a process
that was killed may have noticed something that it could not queue any more: the next start compares what is with what
was told.
"""

import fcntl
import logging
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from mirror.common.files import write_durably
from mirror.common.log import event
from mirror.model.notification import Kind, Notification

AGAIN = 60.0
"""Seconds within which it is the same failing of the store, whoever notices it."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Told:
    """What was told last: the `current` image, whether upstream is `away`, when the store was said to fail (Unix time).

    `stored` are the hashes of the images that are on the disk, as far as hooks know; None before any hook was told.
    `name` is that of this store, and `counts` has how often each kind was told: what a crash makes us tell again gets
    the same id from them.
    """

    name: str = field(default_factory=lambda: str(uuid.uuid4()))
    counts: dict[str, int] = field(default_factory=dict)
    current: str | None = None
    away: bool = False
    failing: float = 0.0
    stored: list[str] | None = field(default=None)

    def news(self, notification: Notification) -> Notification | None:
        """Return what to tell, and take it in as told; None when it was told already."""
        if not self._is_news(notification):
            return None
        kind = notification.kind
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if kind not in {Kind.IMAGE_STORED, Kind.IMAGE_CURRENT}:
            return notification
        same = f"{kind} {notification.image} {self.counts[kind]}"
        return replace(notification, id=str(uuid.uuid5(uuid.UUID(self.name), same)))

    def _is_news(self, notification: Notification) -> bool:
        image, when = notification.image, notification.at.timestamp()
        match notification.kind:
            case Kind.IMAGE_CURRENT if "bucket" not in notification.details:  # else the fleet has settled who tells
                news, self.current = image != self.current, image
            case Kind.UPSTREAM_AWAY | Kind.UPSTREAM_BACK:
                away = notification.kind is Kind.UPSTREAM_AWAY
                news, self.away = away != self.away, away
            case Kind.STORE_FAILING:
                news = abs(when - self.failing) >= AGAIN
                self.failing = when if news else self.failing
            case Kind.IMAGE_STORED if image is not None:
                news, self.stored = True, [*self._without(image), image]
            case Kind.IMAGE_EVICTED | Kind.IMAGE_QUARANTINED if image is not None:
                news = True
                if notification.details.get("place") == "disk":
                    self.stored = self._without(image)
            case _:
                news = True
        return news

    def missed(self, stored: Sequence[str]) -> Sequence[str]:
        """Return which of the `stored` images hooks were not told of, and forget those that are stored no more."""
        known = stored if self.stored is None else self.stored
        self.stored = [each for each in known if each in stored]
        return [each for each in stored if each not in known]

    def _without(self, image: str) -> list[str]:
        return [each for each in self.stored or () if each != image]


_TOLD = TypeAdapter(Told)


@contextmanager
def told_in(directory: Path) -> Iterator[Told]:
    """Lend what was told, under the lock that all processes take, and keep what becomes of it. Blocks.

    When the file cannot be read or written, a thing may be told twice.
    """
    with _locked(directory):
        file = directory / "told.json"
        try:
            told = _TOLD.validate_json(file.read_bytes())
        except (OSError, ValidationError):
            told = Told()
        before = asdict(told)
        yield told
        if asdict(told) != before:
            try:
                write_durably(file, _TOLD.dump_json(told))
            except OSError as error:
                log.warning("%s cannot be written: %s", file, error.strerror, extra=event("note.unwritten"))


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock, which is not that of the queues, if there can be one: the disk may be full or read-only."""
    fd = None
    try:
        directory.mkdir(exist_ok=True)
        fd = os.open(directory / "told.lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
        fcntl.flock(fd, fcntl.LOCK_EX)
    except OSError as error:
        log.debug("%s cannot be locked: %s", directory, error)
    try:
        yield
    finally:
        if fd is not None:
            os.close(fd)
