"""What happened lately, in words: the log's notable records, kept for the status page."""

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from mirror.common.log import harmless
from mirror.model.status import Event

KEPT = 50
"""Events that are shown."""

SAME = timedelta(seconds=3)
"""Within this time workers say the same of one thing: that there is a new image, or that upstream is away."""


class Events(logging.Handler):
    """Hears the log, in whatever thread, and keeps what is notable. A context manager: it listens inside."""

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
        """The last of them, newest first."""
        return sorted(self._last, key=lambda event: event.at, reverse=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record when it is notable."""
        action = getattr(record, "action", None)
        if action is None or action.startswith("http."):  # of one request: there are too many of them
            return
        at = datetime.fromtimestamp(record.created, UTC)
        image = getattr(record, "fields", {}).get("pps_mirror.image")
        event = Event(at, record.levelname.lower(), action, harmless(record.getMessage()), image)
        self._last.append(event)
        self._untold.append(event)

    def untold(self) -> Sequence[Event]:
        """Those heard here since this was asked last."""
        return [self._untold.popleft() for _ in range(len(self._untold))]

    def take(self, events: Iterable[Event]) -> None:
        """Take up what another process heard, unless it is known from a third."""
        for event in events:
            if not any(known.message == event.message and abs(known.at - event.at) < SAME for known in self._last):
                self._last.append(event)
