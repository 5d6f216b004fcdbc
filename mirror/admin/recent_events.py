"""Keeps the log's last notable records for the status page."""

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from mirror.common.log import harmless
from mirror.model.status import Event

KEPT = 50
"""How many events are shown."""

SAME = timedelta(seconds=3)
"""Within this time equal messages of several workers are about one thing: a new image, or an upstream that is away."""


class Events(logging.Handler):
    """A log handler that keeps notable records, from any thread. It is installed while its context lasts."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._last: deque[Event] = deque(maxlen=KEPT)
        self._untold: deque[Event] = deque(maxlen=1000)

    def __enter__(self) -> "Events":
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)

    @property
    def last(self) -> Sequence[Event]:
        """The last events, newest first."""
        return sorted(self._last, key=lambda event: event.at, reverse=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record if it is notable: if it has a name for machines."""
        action = getattr(record, "action", None)
        if action is None or action.startswith(("http.", "hook.output")):  # these may be many
            return
        at = datetime.fromtimestamp(record.created, UTC)
        image = getattr(record, "fields", {}).get("pps_mirror.image")
        event = Event(at, record.levelname.lower(), action, harmless(record.getMessage()), image)
        self._last.append(event)
        self._untold.append(event)

    def untold(self) -> Sequence[Event]:
        """Return the events of this process since the last call, for its next report."""
        return [self._untold.popleft() for _ in range(len(self._untold))]

    def take(self, events: Iterable[Event]) -> None:
        """Add events of another process, unless a third one has reported the same."""
        for event in events:
            if not any(known.message == event.message and abs(known.at - event.at) < SAME for known in self._last):
                self._last.append(event)
