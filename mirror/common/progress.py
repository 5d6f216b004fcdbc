"""Shows how far a transfer is: not at all, or as a line now and then. `mirror.cli.progress_bar` has the bar."""

import time
from collections.abc import Callable
from typing import Protocol, TextIO

from mirror.common.units import format_duration, format_size
from mirror.model.errors import Unheard

LINE_SECONDS = 5.0
"""Seconds between two lines in a pipe, at least."""


class Meter(Protocol):
    """Shows one transfer after another. `position` and `size` are bytes; `doing` is a word such as "receiving"."""

    def say(self, text: str) -> None:
        """Show a line that stays."""

    def start(self, size: int, position: int, doing: str) -> None:
        """Begin to show a transfer of `size` bytes of which `position` are there."""

    def show(self, position: int, doing: str) -> None:
        """Show where it is now; called as often as one likes."""

    def stop(self) -> None:
        """Stop showing the transfer; without effect when none was started."""


class Silence:
    """A `Meter` that shows nothing, for machines that read the outcome only."""

    def say(self, text: str) -> None:
        """See `Meter.say`."""

    def start(self, size: int, position: int, doing: str) -> None:
        """See `Meter.start`."""

    def show(self, position: int, doing: str) -> None:
        """See `Meter.show`."""

    def stop(self) -> None:
        """See `Meter.stop`."""


class Lines:
    """A `Meter` for pipes and logs: the first position, then at most a line every `LINE_SECONDS`."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._size = 0
        self._last = (0.0, 0)  # when the last line was written, and the position then

    def say(self, text: str) -> None:
        """See `Meter.say`. Raises Unheard."""
        try:
            self._stream.write(f"{text}\n")
            self._stream.flush()
        except OSError as error:
            raise Unheard from error

    def start(self, size: int, position: int, doing: str) -> None:
        """See `Meter.start`."""
        self._size = size
        self._last = self._clock(), position
        self.say(f"{doing}: {self._share(position)}")

    def show(self, position: int, doing: str) -> None:
        """See `Meter.show`."""
        now, (then, before) = self._clock(), self._last
        if now - then < LINE_SECONDS:
            return
        rate = max(0, position - before) / (now - then)
        left = f", {format_duration((self._size - position) / rate)} left" if rate else ""
        self._last = now, position
        self.say(f"{doing}: {self._share(position)}, {format_size(int(rate))}/s{left}")

    def stop(self) -> None:
        """See `Meter.stop`."""

    def _share(self, position: int) -> str:
        return f"{format_size(position)} of {format_size(self._size)} ({100 * position // max(1, self._size)} %)"
