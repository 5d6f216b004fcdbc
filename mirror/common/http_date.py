"""Parses dates as HTTP writes them: the three forms of RFC 9110 section 5.6.7, whatever the locale. Pure logic.

Letters are compared without case, as RFC 9111 section 4.2 asks of a cache. The name of the day is not checked against
the date.
"""

import re
from datetime import UTC, datetime, timedelta

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_TIME = "(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_FORMS = [
    re.compile(form, re.IGNORECASE | re.ASCII)
    for form in (
        rf"(?:mon|tue|wed|thu|fri|sat|sun), (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} gmt",
        r"(?:mon|tues|wednes|thurs|fri|satur|sun)day, "  # RFC 850
        rf"(?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} gmt",
        rf"(?:mon|tue|wed|thu|fri|sat|sun) {_MONTH} (?P<day>[0-9]{{2}}| [0-9]) {_TIME} (?P<year>[0-9]{{4}})",  # asctime
    )
]


def parse(text: str, now: datetime) -> datetime | None:
    """Return an HTTP date, in UTC; None if the text is no such date.

    A year of two digits is the latest that is not more than 50 years after `now`, which is aware.
    """
    match = next(filter(None, (form.fullmatch(text.strip(" \t")) for form in _FORMS)), None)
    if match is None:
        return None
    month = _MONTHS.index(match["month"].lower()) + 1
    day, hour, minute, second = (int(match[name]) for name in ("day", "hour", "minute", "second"))
    if len(match["year"]) == 4:
        return _moment(int(match["year"]), month, day, hour, minute, second)
    now = now.astimezone(UTC)
    latest = now.year + 50
    year = latest - (latest - int(match["year"])) % 100
    if year == latest and (month, day, hour, minute, second) > now.timetuple()[1:6]:
        year -= 100
    return _moment(year, month, day, hour, minute, second)


def _moment(year: int, month: int, day: int, hour: int, minute: int, second: int) -> datetime | None:
    """Return the moment of these fields; None if there is none. A leap second counts as the second after it."""
    leap = second == 60
    try:
        return datetime(year, month, day, hour, minute, second - leap, tzinfo=UTC) + timedelta(seconds=leap)
    except (ValueError, OverflowError):
        return None
