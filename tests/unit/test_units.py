"""Sizes, durations, rates and windows as people write them."""

from datetime import time

import pytest

from mirror.common.units import (
    Window,
    format_duration,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
    parse_window,
)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("64MiB", 64 * 2**20),
        ("14GB", 14 * 10**9),
        ("1024", 1024),
        (1024, 1024),
        ("1.5 GiB", 3 * 2**29),
        ("0.0001kB", 0),
        ("1kB", 1000),
        (" 1KB ", 1000),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_a_size_is_read_exactly(written: object, size: int) -> None:
    assert parse_size(written) == size


@pytest.mark.parametrize(
    "written", ["", "MiB", "-1", -1, "64Mb", "64mb", "64M", "1e3", "1.MiB", "1_000", "٣MiB", 1.5, True, None, 2**63]
)
def test_what_is_no_size_is_refused_with_the_units_that_are(written: object) -> None:
    with pytest.raises(ValueError, match=r"such as 64MiB, 14GB or 1024"):
        parse_size(written)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("5m", 300), ("1.5h", 5400), ("7d", 604800), ("90", 90), (90, 90), (0.25, 0.25)],
)
def test_a_duration_is_read_in_seconds(written: object, seconds: float) -> None:
    parsed = parse_duration(written)
    assert parsed == seconds
    assert isinstance(parsed, float)


@pytest.mark.parametrize(
    "written", ["", "s", "-1s", -1, "5min", "1h30m", "1w", "36501d", float("nan"), float("inf"), 10**400, True, None]
)
def test_what_is_no_duration_is_refused_with_the_units_that_are(written: object) -> None:
    with pytest.raises(ValueError, match=r"such as 30s, 5m or 7d"):
        parse_duration(written)


def test_a_rate_is_bytes_per_second() -> None:
    assert parse_rate("50MB/s") == 50_000_000
    assert parse_rate("512 KiB/s") == 524_288


@pytest.mark.parametrize("written", ["", "50MB", "0MB/s", "0.1B/s", "50Mb/s", "/s", "50MB/h", 50, None])
def test_what_is_no_rate_is_refused_with_an_example_of_one(written: object) -> None:
    with pytest.raises(ValueError, match=r"such as 50MB/s"):
        parse_rate(written)


def test_a_window_may_go_past_midnight() -> None:
    assert parse_window("22:00-06:30") == Window(time(22, 0), time(6, 30))


@pytest.mark.parametrize("written", ["", "22:00", "22-06", "24:00-06:00", "22:60-06:00", "06:00-06:00", 22, None])
def test_what_is_no_window_is_refused_with_an_example_of_one(written: object) -> None:
    with pytest.raises(ValueError, match=r"22:00-06:00"):
        parse_window(written)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (14_173_392_077, "13.2 GiB"),
        (2**20 - 1, "1.0 MiB"),
        (2**60, "1048576.0 TiB"),
    ],
)
def test_a_size_is_shown_in_the_largest_unit_that_fits(size: int, shown: str) -> None:
    assert format_size(size) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0s"),
        (0.35, "350ms"),
        (0.9999, "1s"),
        (12.34, "12.3s"),
        (59.99, "1m"),
        (312, "5m 12s"),
        (3600, "1h"),
        (3601, "1h"),
        (604800, "7d"),
        (100 * 3600, "4d 4h"),
    ],
)
def test_a_duration_is_shown_in_its_two_largest_units(seconds: float, shown: str) -> None:
    assert format_duration(seconds) == shown
