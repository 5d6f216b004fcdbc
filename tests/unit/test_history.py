"""What moved today: since the midnight of the clock on the wall, also on a day when the clocks change."""

import os
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from mirror.admin.traffic_history import INTERVAL, History
from mirror.model.status import Traffic

BERLIN = "CET-1CEST,M3.5.0,M10.5.0/3"


@pytest.fixture(autouse=True)
def in_berlin() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = BERLIN
    time.tzset()
    yield
    os.environ.pop("TZ") if before is None else os.environ.update(TZ=before)
    time.tzset()


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-11-23", 24)])
def test_a_day_has_as_many_hours_as_it_has(tmp_path: Path, day: str, hours: int) -> None:
    begin = datetime.fromisoformat(day).astimezone()
    moment = begin - timedelta(hours=3)
    history = History(tmp_path / "history.json", now=lambda: moment)
    total = 0
    while moment < begin + timedelta(hours=hours):
        total += 1
        history.record(Traffic(served=total))
        if moment >= begin:
            passed = int((moment - begin).total_seconds()) // INTERVAL + 1
            assert history.today.served == passed
        moment += timedelta(seconds=INTERVAL)
    assert history.today.served == 0


@pytest.mark.parametrize("back", [timedelta(hours=1), timedelta(days=4000)])
def test_what_a_clock_that_was_ahead_wrote_down_is_of_now(tmp_path: Path, back: timedelta) -> None:
    moment = datetime.fromisoformat("2026-11-23T12:00:00").astimezone() + back
    history = History(tmp_path / "history.json", now=lambda: moment)
    history.record(Traffic(served=1))
    history.save()
    moment -= back
    later = History(tmp_path / "history.json", now=lambda: moment)
    later.load()
    later.record(Traffic(served=10))
    assert later.today.served == 11
    assert later.intervals[-1].traffic.served == 11
