"""The two clocks, and what a time of day that a file tells is worth."""

import math
import time

import pytest

from mirror.common.clock import Clock, age

STEADY, AHEAD = 1_000_000.123456789, 1_700_000_000.987654321


class Hands:
    """A machine's clocks, which stand still unless somebody moves them."""

    def __init__(self) -> None:
        self.steady, self.ahead = STEADY, AHEAD
        self.clock = Clock(lambda: self.steady + self.ahead, lambda: self.steady, "monday")


def test_the_steady_clock_goes_on_as_if_nothing_was_when_somebody_sets_the_time_of_day() -> None:
    hands = Hands()
    before = hands.clock.steady()
    hands.ahead -= 3600
    hands.steady += 5
    assert hands.clock.steady() - before == pytest.approx(5)
    assert hands.clock.offset() == pytest.approx(AHEAD - 3600)


def test_a_time_of_day_that_was_told_has_its_moment_unless_it_is_yet_to_come() -> None:
    hands = Hands()
    now = hands.clock.wall()
    assert hands.clock.moment(now - 60) == pytest.approx(STEADY - 60)
    assert hands.clock.moment(now) == pytest.approx(STEADY)
    assert hands.clock.moment(now + 1) is None
    assert age(now - 60, now) == 60
    assert age(now, now) == 0
    assert age(now + 1, now) == math.inf


def test_a_moment_that_is_told_as_a_time_of_day_is_read_as_the_same_one() -> None:
    hands = Hands()
    for _ in range(1000):
        hands.steady += 0.123456789
        moment, offset = hands.clock.steady(), hands.clock.offset()
        assert round(round(moment + offset, 4) - offset, 4) == moment


def test_all_processes_of_a_boot_have_one_steady_clock_and_one_name_for_it() -> None:
    one, other = Clock(), Clock()
    assert one.boot == other.boot != ""
    moments = [one.steady(), other.steady(), one.steady()]
    assert moments == sorted(moments)
    assert abs(one.steady() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 60
