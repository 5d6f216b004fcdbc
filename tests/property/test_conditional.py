"""Preconditions and ranges by RFC 9110 sections 13 and 14: pure logic, any input."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.http.conditional import NotModified, Part, PreconditionFailed, Selection, Unsatisfiable, Whole, select

ETAG = "ab" * 32
MODIFIED = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
SIZE = 1000


def ask(method: str = "GET", size: int = SIZE, **headers: str) -> Selection:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return select(method, named, etag=ETAG, modified=MODIFIED, size=size)


def date(seconds: int) -> str:
    return format_datetime(MODIFIED.replace(microsecond=0) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-", Part(0, 1000)),
        ("bytes=0-0", Part(0, 1)),
        ("bytes=999-", Part(999, 1000)),
        ("bytes=10-19", Part(10, 20)),
        ("Bytes=10-19", Part(10, 20)),
        ("bytes=10-5000", Part(10, 1000)),
        ("bytes=10-" + "9" * 400, Part(10, 1000)),
        ("bytes=-1", Part(999, 1000)),
        ("bytes=-5000", Part(0, 1000)),
        ("bytes=-0", Unsatisfiable()),
        ("bytes=1000-", Unsatisfiable()),
        ("bytes=" + "9" * 5000 + "-", Unsatisfiable()),
        ("bytes=0-1,5-6", Whole()),
        ("bytes=5-1", Whole()),
        ("bytes=-", Whole()),
        ("bytes=a-b", Whole()),
        ("bytes=\u0661-\u0662", Whole()),
        ("bytes", Whole()),
        ("lines=0-1", Whole()),
        ("", Whole()),
    ],
)
def test_a_single_range_is_taken_and_anything_else_gives_the_whole(header: str, expected: Selection) -> None:
    assert ask(Range=header) == expected


@given(first=st.integers(0, 2000), last=st.integers(0, 2000), size=st.integers(1, 1500))
def test_a_range_selects_exactly_the_bytes_it_names(first: int, last: int, size: int) -> None:
    selection = ask(size=size, Range=f"bytes={first}-{last}")
    named = [offset for offset in range(size) if first <= offset <= last]
    if last < first:
        assert selection == Whole()
    elif not named:
        assert selection == Unsatisfiable()
    else:
        assert selection == Part(named[0], named[-1] + 1)


@given(count=st.integers(0, 2000), size=st.integers(1, 1500))
def test_a_suffix_range_selects_that_many_last_bytes(count: int, size: int) -> None:
    expected = Part(size - min(count, size), size) if count else Unsatisfiable()
    assert ask(size=size, Range=f"bytes=-{count}") == expected


NAMES = ("Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since")


@given(st.dictionaries(st.sampled_from(NAMES), st.text(max_size=80)), st.sampled_from(["GET", "HEAD"]))
def test_no_header_value_raises_or_selects_outside_the_image(headers: dict[str, str], method: str) -> None:
    selection = select(method, headers, etag=ETAG, modified=MODIFIED, size=SIZE)
    if isinstance(selection, Part):
        assert 0 <= selection.start < selection.stop <= SIZE


def test_head_has_no_ranges() -> None:
    assert ask("HEAD", Range="bytes=0-9") == Whole()


@pytest.mark.parametrize("known", [f'"{ETAG}"', f'W/"{ETAG}"', f'"x", "{ETAG}"', "*", f' "{ETAG}" , "y"'])
def test_a_client_that_has_the_image_gets_304(known: str) -> None:
    assert ask(If_None_Match=known) == NotModified()
    assert ask("HEAD", If_None_Match=known) == NotModified()


def test_another_tag_gets_the_image_whatever_the_date_says() -> None:
    assert ask(If_None_Match='"other"', If_Modified_Since=date(0)) == Whole()


def test_if_match_asks_for_this_version_and_compares_strongly() -> None:
    assert ask(If_Match=f'"{ETAG}"') == Whole()
    assert ask(If_Match="*") == Whole()
    assert ask(If_Match='"other"') == PreconditionFailed()
    assert ask(If_Match=f'W/"{ETAG}"') == PreconditionFailed()
    assert ask(If_Match='"other"', If_None_Match=f'"{ETAG}"') == PreconditionFailed()


def forms(seconds: int) -> list[str]:
    """The three ways of RFC 9110 section 5.6.7 to write a date."""
    moment = MODIFIED + timedelta(seconds=seconds)
    return [date(seconds), f"{moment:%A, %d-%b-%y %H:%M:%S} GMT", f"{moment:%a %b} {moment.day:2} {moment:%H:%M:%S %Y}"]


@pytest.mark.parametrize("form", range(3), ids=["IMF-fixdate", "RFC 850", "asctime"])
def test_a_date_is_understood_in_each_of_its_three_forms(form: int) -> None:
    assert ask(If_Modified_Since=forms(0)[form]) == NotModified()
    assert ask(If_Modified_Since=forms(-1)[form]) == Whole()
    assert ask(If_Unmodified_Since=forms(0)[form]) == Whole()
    assert ask(If_Unmodified_Since=forms(-1)[form]) == PreconditionFailed()
    assert ask(Range="bytes=5-9", If_Range=forms(0)[form]) == Part(5, 10)
    assert ask(Range="bytes=5-9", If_Range=forms(1)[form]) == Whole()


@pytest.mark.parametrize("other", ["2024-05-06T07:08:09Z", "Mon, 06 May 2024 09:08:09 +0200", "1714979289", "today"])
def test_what_is_no_http_date_is_as_if_it_had_not_been_sent(other: str) -> None:
    assert ask(If_Modified_Since=other) == ask(If_Unmodified_Since=other) == Whole()
    assert ask(Range="bytes=5-9", If_Range=other) == Whole()


def test_dates_are_compared_in_whole_seconds() -> None:
    assert ask(If_Modified_Since=date(0)) == NotModified()
    assert ask(If_Modified_Since=date(-1)) == Whole()
    assert ask(If_Unmodified_Since=date(0)) == Whole()
    assert ask(If_Unmodified_Since=date(-1)) == PreconditionFailed()
    assert ask(If_Match=f'"{ETAG}"', If_Unmodified_Since=date(-1)) == Whole()


def test_if_range_decides_between_part_and_whole() -> None:
    part = Part(5, 10)
    assert ask(Range="bytes=5-9", If_Range=f'"{ETAG}"') == part
    assert ask(Range="bytes=5-9", If_Range=date(0)) == part
    assert ask(Range="bytes=5-9", If_Range=f'W/"{ETAG}"') == Whole()
    assert ask(Range="bytes=5-9", If_Range='"other"') == Whole()
    assert ask(Range="bytes=5-9", If_Range=date(1)) == Whole()
    assert ask(Range="bytes=5-9", If_Range="nonsense") == Whole()
    assert ask(Range="bytes=2000-", If_Range='"other"') == Whole()
