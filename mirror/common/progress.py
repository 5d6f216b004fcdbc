"""Shows how far a transfer is: a bar on a terminal, a line now and then in a pipe or a log."""

import logging
import sys
import time
from collections.abc import Callable
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

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


def meter(stream: TextIO) -> Meter:
    """Return the meter that suits `stream`."""
    console = Console(file=stream, highlight=False)
    return Bar(console) if stream.isatty() and not console.is_dumb_terminal else Lines(stream)


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


class Bar:
    """A `Meter` for terminals. Log lines appear above the bar."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None

    def say(self, text: str) -> None:
        """See `Meter.say`."""
        self._console.print(Text(text), soft_wrap=True)

    def start(self, size: int, position: int, doing: str) -> None:
        """See `Meter.start`."""
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            DownloadColumn(binary_units=True),
            _Rate(),
            TimeRemainingColumn(),
            console=self._console,
            expand=True,
            redirect_stderr=sys.stderr.isatty(),
            speed_estimate_period=10.0,
        )
        self._progress.add_task(doing, total=size, completed=position)
        terminal = sys.stderr
        self._progress.start()
        _redirect_log(terminal, sys.stderr)  # which rich has taken over, to draw the bar anew below each line

    def show(self, position: int, doing: str) -> None:
        """See `Meter.show`."""
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=position, description=doing)

    def stop(self) -> None:
        """See `Meter.stop`."""
        if self._progress is not None:
            taken = sys.stderr
            self._progress.stop()
            self._progress = None
            _redirect_log(taken, sys.stderr)


class _Rate(ProgressColumn):
    """Bytes per second, in the same binary units as the rest."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{format_size(int(speed))}/s" if speed else "", style="progress.data.speed")


def _redirect_log(old: TextIO, new: TextIO) -> None:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is old:
            handler.setStream(new)
