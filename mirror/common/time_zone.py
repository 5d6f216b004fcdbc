"""Checks whether the system knows this machine's time zone.

The system silently takes a zone that it does not know for UTC; windows of the day are then hours off.
"""

import re
from collections.abc import Mapping
from pathlib import Path

_ZONES = "/usr/share/zoneinfo"
_LOCAL = Path("/etc/localtime")

_NAME = r"([A-Za-z]{3,}|<[A-Za-z0-9+-]{3,}>)"
_OFFSET = r"[+-]?\d{1,2}(:\d{1,2}){0,2}"
_RULES = re.compile(rf"{_NAME}{_OFFSET}({_NAME}({_OFFSET})?(,.+)?)?")
"""A zone that is written out, as in POSIX: `CET-1CEST,M3.5.0,M10.5.0/3`."""

_UTC = re.compile(r"(Etc/)?(UTC|GMT|UCT|Universal|Zulu|Greenwich)([+-]?0)?", re.IGNORECASE)
"""Names of UTC, for which the system takes every unknown zone."""


def trouble(environ: Mapping[str, str], local: Path = _LOCAL) -> str | None:
    """Return a message if the zone of `TZ`, or else of the machine, is not known here; None if it is known."""
    zones = Path(environ.get("TZDIR") or _ZONES)
    advice = "so times and windows of the day are UTC; install the package tzdata, or correct the name"
    if "TZ" not in environ:
        if local.is_symlink() and not local.exists():
            return f"{local} leads to {str(local.readlink())!r}, which is not there, {advice}"
        return None
    name = environ["TZ"].removeprefix(":")
    if not name or _UTC.fullmatch(name) or _RULES.fullmatch(name) or (zones / name).is_file():
        return None
    return f"TZ = {environ['TZ']!r} is no time zone that this machine knows, {advice}"
