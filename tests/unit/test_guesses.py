"""Guesses of the admin token: slowed for each address and in all, without a bound on time that shuts out for ever."""

import pytest

from mirror.common.metrics import Metrics
from mirror.http.token_guesses import ADDRESSES, FROM_ALL, FROM_ONE, Guesses, TooManyGuesses


class Door:
    """Looks at tokens as the admin listener does; the right one is `right`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.guesses = Guesses(Metrics(), lambda: self.now)

    def tries(self, address: str, token: str) -> str:
        try:
            self.guesses.admit(address, token.encode())
        except TooManyGuesses as error:
            return "slowed" if error.retry_after else "for ever"
        if token == "right":
            self.guesses.was_right(address)
            return "in"
        self.guesses.was_wrong(address, token.encode())
        return "wrong"


@pytest.fixture
def door() -> Door:
    return Door()


def test_an_address_may_be_wrong_ten_times_and_then_now_and_then(door: Door) -> None:
    most, every = FROM_ONE
    assert [door.tries("192.0.2.1", str(number)) for number in range(most + 5)] == ["wrong"] * most + ["slowed"] * 5
    assert door.tries("192.0.2.1", "right") == "slowed"  # or who guesses would learn that it is right
    assert door.tries("192.0.2.2", "right") == "in"
    door.now += every
    assert door.tries("192.0.2.1", "right") == "in"
    assert door.tries("192.0.2.1", "another") == "wrong"
    assert door.tries("192.0.2.1", "and another") == "slowed"
    door.now += most * every
    assert [door.tries("192.0.2.1", f"later {number}") for number in range(most + 1)][-2:] == ["wrong", "slowed"]


def test_one_wrong_token_again_and_again_is_one_guess(door: Door) -> None:
    assert {door.tries("192.0.2.1", "yesterday's") for _ in range(100)} == {"wrong"}
    assert door.tries("192.0.2.1", "right") == "in"


def test_many_addresses_share_a_bound_that_those_do_not_feel_who_were_right_before(door: Door) -> None:
    assert door.tries("192.0.2.1", "right") == "in"
    most, every = FROM_ALL
    seen = [door.tries(f"198.51.100.{number}", "a guess") for number in range(most + 5)]
    assert seen == ["wrong"] * most + ["slowed"] * 5
    assert door.tries("192.0.2.1", "right") == "in"
    assert door.tries("192.0.2.2", "right") == "slowed"
    door.now += every
    assert door.tries("192.0.2.2", "right") == "in"


def test_with_ipv6_a_network_is_one_address(door: Door) -> None:
    seen = [door.tries(f"2001:db8::{number:x}", str(number)) for number in range(FROM_ONE[0] + 1)]
    assert seen[-1] == "slowed"
    assert door.tries("2001:db8:0:1::1", "right") == "in"


def test_addresses_without_end_are_not_all_remembered(door: Door) -> None:
    for number in range(3 * ADDRESSES):
        door.now += FROM_ALL[1]
        assert door.tries(f"10.0.{number // 256}.{number % 256}", "a guess") == "wrong"
        assert door.tries(f"10.1.{number // 256}.{number % 256}", "right") == "in"
    assert len(door.guesses._wrong) == len(door.guesses._right) == ADDRESSES


def test_another_token_begins_anew(door: Door) -> None:
    for number in range(FROM_ONE[0] + 1):
        last = door.tries("192.0.2.1", str(number))
    assert last == "slowed"
    door.guesses.forget()
    assert door.tries("192.0.2.1", "right") == "in"
