"""HTTP dates by RFC 9110 section 5.6.7: all three forms are read, nothing else is, and nothing breaks it."""

import locale
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.common.http_date import parse

NOW = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

moments = st.datetimes(timezones=st.just(UTC)).map(lambda moment: moment.replace(microsecond=0))


def fixed(moment: datetime) -> str:
    day, month = DAYS[moment.weekday()][:3], MONTHS[moment.month - 1]
    return f"{day}, {moment.day:02} {month} {moment.year:04} {moment:%H:%M:%S} GMT"


def rfc850(moment: datetime) -> str:
    day, month = DAYS[moment.weekday()], MONTHS[moment.month - 1]
    return f"{day}, {moment.day:02}-{month}-{moment.year % 100:02} {moment:%H:%M:%S} GMT"


def asctime(moment: datetime) -> str:
    day, month = DAYS[moment.weekday()][:3], MONTHS[moment.month - 1]
    return f"{day} {month} {moment.day:2} {moment:%H:%M:%S} {moment.year:04}"


@pytest.mark.parametrize(
    "text", ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
)
def test_the_examples_of_the_rfc(text: str) -> None:
    assert parse(text, NOW) == datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)


@given(moments, moments)
def test_the_forms_with_a_whole_year_mean_what_they_say_at_any_time(moment: datetime, now: datetime) -> None:
    assert parse(fixed(moment), now) == parse(asctime(moment), now) == moment


@given(st.datetimes(datetime(1000, 1, 1), datetime(9900, 1, 1), timezones=st.just(UTC)), st.integers(-49, 49))
def test_a_year_of_two_digits_is_within_50_years(now: datetime, years: int) -> None:
    moment = (now + timedelta(days=365 * years)).replace(microsecond=0)
    assert parse(rfc850(moment), now) == moment


@pytest.mark.parametrize(
    ("text", "year"),
    [
        ("Monday, 06-May-74 07:08:09 GMT", 2074),
        ("Monday, 06-May-74 07:08:10 GMT", 1974),
        ("Monday, 07-May-74 00:00:00 GMT", 1974),
        ("Monday, 06-May-75 07:08:09 GMT", 1975),
        ("Monday, 31-Dec-99 23:59:59 GMT", 1999),
        ("Tuesday, 01-Jan-00 00:00:00 GMT", 2000),
    ],
)
def test_what_would_be_more_than_50_years_ahead_is_the_latest_such_year_in_the_past(text: str, year: int) -> None:
    parsed = parse(text, NOW)
    assert parsed is not None
    assert parsed.year == year


@given(moments)
def test_case_and_blanks_around_it_do_not_matter(moment: datetime) -> None:
    for text in (fixed(moment), asctime(moment)):
        assert parse(f" \t{text.upper()} ", NOW) == parse(text.lower(), NOW) == moment


def test_a_leap_second_is_the_second_after_it() -> None:
    assert parse("Sat, 31 Dec 2016 23:59:60 GMT", NOW) == datetime(2017, 1, 1, tzinfo=UTC)
    assert parse("Fri, 31 Dec 9999 23:59:60 GMT", NOW) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "120",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 06 Nov 1994 08:49:37 +0100",
        "Sun, 06 Nov 1994 08:49:37 CET",
        "Sun, 6 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 94 08:49:37 GMT",
        "Sunday, 06 Nov 1994 08:49:37 GMT",
        "Sun, 06-Nov-94 08:49:37 GMT",
        "Sunday, 06-Nov-1994 08:49:37 GMT",
        "Sun Nov 6 08:49:37 1994",
        "Sun Nov  6 08:49:37 1994 GMT",
        "Sun, 06 Nov 1994 24:00:00 GMT",
        "Sun, 06 Nov 1994 08:60:37 GMT",
        "Sun, 06 Nov 1994 08:49:61 GMT",
        "Sun, 31 Nov 1994 08:49:37 GMT",
        "Tue, 29 Feb 1994 08:49:37 GMT",
        "Sunday, 29-Feb-23 08:49:37 GMT",
        "Sun, 00 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 0000 08:49:37 GMT",
        "Sun, 06 Non 1994 08:49:37 GMT",
        "Die, 06 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:37 GMT, Sun, 06 Nov 1994 08:49:37 GMT",
        "Sun, 0\u0666 Nov 1994 08:49:37 GMT",
        "\u017fun, 06 Nov 1994 08:49:37 GMT",
        "1994-11-06T08:49:37Z",
    ],
)
def test_anything_else_is_no_date(text: str) -> None:
    assert parse(text, NOW) is None


@given(st.one_of(st.text(), st.from_regex(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT")), moments)
def test_whatever_comes_it_is_a_date_in_utc_or_none(text: str, now: datetime) -> None:
    parsed = parse(text, now)
    assert parsed is None or parsed.tzinfo is UTC


def test_the_locale_does_not_matter() -> None:
    before = locale.setlocale(locale.LC_ALL)
    for name in ("de_DE.UTF-8", "fr_FR.UTF-8", "tr_TR.UTF-8", "C.UTF-8", "C"):
        try:
            locale.setlocale(locale.LC_ALL, name)
        except locale.Error:
            continue
        try:
            assert parse("Sun, 06 Nov 1994 08:49:37 GMT", NOW) == datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)
        finally:
            locale.setlocale(locale.LC_ALL, before)
