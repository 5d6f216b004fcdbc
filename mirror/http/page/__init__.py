"""Renders the status page: HTML that is complete without its script, one stylesheet, nothing from other servers.

File names and reasons come from outside: the template escapes them, and isolates text that may run from right to left.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from importlib.resources import files
from typing import TYPE_CHECKING

from mirror.common.units import format_duration, format_size
from mirror.model.status import Status

if TYPE_CHECKING:
    from jinja2 import Template

WIDTH, HEIGHT = 576, 80
"""The size of a picture, in units of its own."""

BAR = 4
"""The width of one interval in it, in the same units."""

_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")


class Page:
    """Renders the page. `style` and `script` are the files that it loads.

    `prefix` precedes all paths when people reach the page through a proxy, such as `/mirror`; else it is empty.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        room = files(__package__ or __name__)
        self.style = room.joinpath("style.css").read_bytes()
        self.script = room.joinpath("script.js").read_bytes()
        self._source = room.joinpath("page.html").read_text("utf-8")

    @cached_property
    def _template(self) -> "Template":
        """The template. It is compiled when it is first needed, by what only it needs: a start is quicker without."""
        from jinja2 import Environment, StrictUndefined

        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        environment.filters |= {"size": _size, "took": format_duration, "bars": bars, "short": _short}
        environment.filters |= {"time": _time, "local": _local}
        return environment.from_string(self._source)

    def render(self, status: Status) -> str:
        """Return the page as HTML."""
        return self._template.render(
            status=status,
            prefix=self.prefix,
            sentence=sentence(status),
            mood=_mood(status),
            ago=lambda moment: _ago(moment, status.now),
            clock=lambda moment: _clock(moment, status.now),
            pictures=_pictures(status),
            axis=_axis(status),
            width=WIDTH,
            height=HEIGHT,
        )


def sentence(status: Status) -> str:
    """Say in one sentence how the mirror is."""
    if status.health.reasons:
        return f"Cannot serve: {'; '.join(status.health.reasons)}."
    if status.health.degraded:
        return f"Serving, but {'; '.join(status.health.degraded)}."
    if status.upstream.reachable is False and status.current is None:
        return "Nothing to serve yet: DataRobot cannot be reached."
    if status.upstream.reachable is False:
        return "Serving what is known: DataRobot cannot be reached."
    if status.fills:
        return f"Serving, and fetching {'an image' if len(status.fills) == 1 else f'{len(status.fills)} images'}."
    return "Serving."


def bars(values: Sequence[int], peak: int) -> str:
    """Return the path of an SVG bar chart of `values`; a value of `peak` takes the full height."""
    shapes = []
    for number, value in enumerate(values):
        if value > 0 and peak:
            tall = max(1.0, HEIGHT * value / peak)
            shapes.append(f"M{number * BAR} {HEIGHT}v-{tall:.1f}h{BAR - 1}v{tall:.1f}z")
    return "".join(shapes)


def _pictures(status: Status) -> Sequence[tuple[str, str, Sequence[int], int, str]]:
    """Return each picture's name for machines, title, values, their peak, and their sum in words."""
    traffic = [interval.traffic for interval in status.history]
    served, fetched = [each.served for each in traffic], [each.fetched for each in traffic]
    downloads = [each.downloads for each in traffic]
    lines = max([0, *served]), max([0, *fetched])
    return (
        ("served", "To clients", served, lines[0], f"{_size(sum(served))}, {_rate(status, lines[0])}"),
        ("fetched", "From DataRobot", fetched, lines[1], f"{_size(sum(fetched))}, {_rate(status, lines[1])}"),
        ("downloads", "Downloads", downloads, max([0, *downloads]), f"{sum(downloads)} in all"),
    )


def _rate(status: Status, peak: int) -> str:
    seconds = status.history[0].seconds if status.history else 1
    return f"at most {format_size(peak // seconds)}/s over {format_duration(seconds)}"


def _axis(status: Status) -> Sequence[str]:
    """Return the labels below the pictures: the local time at each quarter."""
    quarters = status.history[:: max(1, len(status.history) // 4)][:4]
    return [*(f"{interval.at.astimezone():%H:%M}" for interval in quarters), "now"]


def _mood(status: Status) -> str:
    if status.health.reasons:
        return "bad"
    return "weak" if status.health.degraded or status.upstream.reachable is False else "good"


def _short(text: str) -> str:
    """Cut the hashes in a text to 12 digits, as in the rest of the page."""
    return _HASH.sub(r"\1", text)


def _size(size: int) -> str:
    return format_size(size) if size >= 0 else f"\N{MINUS SIGN}{format_size(-size)}"


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")


def _local(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S %Z}"


def _clock(moment: datetime, now: datetime) -> str:
    """Return a moment in local time, as the log on a console has it; with the day unless that is today."""
    at, today = moment.astimezone(), now.astimezone().date()
    return f"{at:%H:%M:%S}" if at.date() == today else f"{at:%b} {at.day}, {at:%H:%M}"


def _ago(moment: datetime, now: datetime) -> str:
    """Say to the minute how long before `now` a moment was, or how long after `now` it will be."""
    seconds = (now - moment).total_seconds()
    if abs(seconds) < 60:
        return "just now" if seconds >= 0 else "in a moment"
    words = format_duration(abs(seconds) // 60 * 60)
    return f"{words} ago" if seconds > 0 else f"in {words}"
