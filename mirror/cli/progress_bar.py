"""Shows how far a transfer is: a bar on a terminal, a line now and then in a pipe or a log."""

import logging
import sys
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from mirror.common.progress import Lines, Meter
from mirror.common.units import format_size


def meter(stream: TextIO) -> Meter:
    """Return the meter that suits `stream`."""
    console = Console(file=stream, highlight=False)
    return Bar(console) if stream.isatty() and not console.is_dumb_terminal else Lines(stream)


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
