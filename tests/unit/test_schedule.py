"""Windows of the day, by the clock on the wall, through midnight and daylight saving."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.common.schedule import is_open, next_change
from mirror.common.units import parse_window
from mirror.config import RateWindow
from mirror.upstream.rate_schedule import Rates

BERLIN, NEW_YORK, KOLKATA = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York"), ZoneInfo("Asia/Kolkata")

minutes = st.integers(0, 24 * 60 - 1)
moments = st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)).map(lambda moment: moment.replace(tzinfo=UTC))
zones = st.sampled_from([BERLIN, NEW_YORK, KOLKATA, UTC])


def local(zone: ZoneInfo, text: str, *, again: bool = False) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=int(again))


@pytest.mark.parametrize(
    ("at", "expected"),
    [("21:59", False), ("22:00", True), ("23:59", True), ("00:00", True), ("05:59", True), ("06:00", False)],
)
def test_a_window_may_go_past_midnight_and_ends_before_its_end(at: str, expected: bool) -> None:
    assert is_open(parse_window("22:00-06:00"), local(BERLIN, f"2026-11-23T{at}"), BERLIN) is expected


def test_a_window_in_the_hour_that_spring_leaves_out_is_missing_that_day() -> None:
    window = parse_window("02:15-02:45")
    before = local(BERLIN, "2026-03-29T01:59")
    assert not is_open(window, before + timedelta(minutes=1), BERLIN)
    assert next_change(window, before, BERLIN) == local(BERLIN, "2026-03-30T02:15")


def test_a_window_that_begins_in_the_missing_hour_opens_when_the_clock_has_jumped() -> None:
    assert next_change(parse_window("02:30-05:00"), local(BERLIN, "2026-03-29T01:00"), BERLIN) == local(
        BERLIN, "2026-03-29T03:00"
    )


def test_a_night_is_an_hour_shorter_in_spring_and_longer_in_autumn() -> None:
    window = parse_window("22:00-06:00")

    def length(evening: str) -> timedelta:
        opens = next_change(window, local(NEW_YORK, f"{evening}T12:00"), NEW_YORK)
        return next_change(window, opens, NEW_YORK) - opens

    assert length("2026-03-07") == timedelta(hours=7)
    assert length("2026-10-31") == timedelta(hours=9)
    assert length("2026-11-23") == timedelta(hours=8)


def test_a_window_in_the_hour_that_autumn_repeats_is_open_twice() -> None:
    window = parse_window("02:15-02:45")
    for again in (False, True):
        assert is_open(window, local(BERLIN, "2026-10-25T02:30", again=again), BERLIN)
        assert not is_open(window, local(BERLIN, "2026-10-25T02:50", again=again), BERLIN)


@given(start=minutes, end=minutes, moment=moments, zone=zones)
def test_the_next_change_is_the_first_moment_at_which_it_is_otherwise(
    start: int, end: int, moment: datetime, zone: ZoneInfo
) -> None:
    if start == end:
        return
    window = parse_window("-".join(f"{each // 60:02}:{each % 60:02}" for each in (start, end)))
    change = next_change(window, moment, zone)
    before = is_open(window, moment, zone)
    assert change > moment
    assert is_open(window, change, zone) is not before
    assert is_open(window, change - timedelta(microseconds=1), zone) is before


@given(moment=moments)
def test_the_first_window_that_is_open_gives_the_rate(moment: datetime) -> None:
    day = RateWindow.model_validate({"window": "08:00-18:00", "rate": "5MB/s"})
    noon = RateWindow.model_validate({"window": "11:00-13:00", "rate": "1MB/s"})
    hour = moment.astimezone(BERLIN).hour
    assert Rates([day], 10).at(moment, BERLIN) == (5_000_000 if 8 <= hour < 18 else 10)
    assert Rates([noon, day], None).at(moment, BERLIN) == (
        1_000_000 if 11 <= hour < 13 else 5_000_000 if 8 <= hour < 18 else None
    )
