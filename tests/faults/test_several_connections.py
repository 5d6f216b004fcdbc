"""An image that comes over four connections: whatever becomes of each, its bytes are right, and few come twice."""

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mirror.simulator.client import Fault, ImageSpec, LoggedRequest, Simulator
from tests.support.admin import metric
from tests.support.downloads import Download, fetch
from tests.support.forked import ForkedMirror
from tests.support.processes import eventually
from tests.support.several_connections import MODULE, eager

SIZE = 24 << 20
WINDOW = 3 << 20
RANGE = WINDOW // 6
IN_FLIGHT = 10 << 20
"""Bytes that may be on their way over a connection that is left, while the mirror keeps pace with it."""

RATE = 40e6
"""Bytes per second of each connection: without a limit the kernel takes tens of MiB, whatever the mirror reads."""

Started = Callable[..., ForkedMirror]


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[Simulator]:
    with Simulator.start([ImageSpec("first", size=SIZE), ImageSpec("second", size=SIZE)]) as simulator:
        yield simulator


@pytest.fixture
def started(tmp_path: Path, simulator: Simulator) -> Iterator[Started]:
    """Starts the test's mirror, which uses several connections at once, with these keys in the section `upstream`."""
    mirrors: list[ForkedMirror] = []
    simulator.set_rate(None, connection_rate=RATE)

    def start(**upstream: Any) -> ForkedMirror:
        sections = {"upstream": {"connections": 4, **upstream}}
        mirrors.append(ForkedMirror(tmp_path / f"mirror-{len(mirrors)}", simulator.api_url, sections))
        mirrors[-1].constants = {f"{MODULE}:{name}": value for name, value in eager(WINDOW).items()}
        return mirrors[-1].start()

    yield start
    for mirror in mirrors:
        if mirror.alive():
            mirror.stop()


def assert_all_right(mirror: ForkedMirror, simulator: Simulator, *, asked: int | None = 1) -> None:
    """Three clients at once get every byte; upstream is asked so many times, and few bytes come twice."""
    with ThreadPoolExecutor(3) as pool:
        outcomes = [pool.submit(fetch, mirror.image_url) for _ in range(3)]
    right = ("complete", simulator.image_sha256("first"))
    assert [(each.result().ended, each.result().sha256) for each in outcomes] == [right] * 3
    times = len(simulator.log("image"))
    assert asked in {None, times}
    assert simulator.bytes_sent() <= SIZE + times * (WINDOW + IN_FLIGHT)


def ranges(simulator: Simulator) -> list[LoggedRequest]:
    """The requests for ranges, in the order of their beginnings."""
    found = [get for get in simulator.log("store") if get.range is not None and not get.range.endswith("-")]
    return sorted(found, key=beginning)


def beginning(get: LoggedRequest) -> int:
    assert get.range is not None
    return int(get.range.removeprefix("bytes=").partition("-")[0])


def test_one_transfer_begins_and_ranges_of_where_it_led_follow_each_byte_once(
    started: Started, simulator: Simulator
) -> None:
    mirror = started()
    assert_all_right(mirror, simulator)
    whole, *_ = simulator.log("store")
    assert whole.range is None
    assert whole.sent < SIZE
    got = ranges(simulator)
    assert len(got) > 8
    assert {get.status for get in got} == {206}
    assert {get.query for get in got} == {whole.query}  # one pre-signed URL
    assert {get.authorization for get in got} == {None}
    assert len({get.if_range for get in got}) == 1
    ends = [beginning(get) + get.sent for get in got]
    assert ends == [*map(beginning, got[1:]), SIZE]
    assert "fill.connections" in mirror.settled.actions()
    assert metric(mirror, "upstream_requests_total", request="range", outcome="ok") == len(got)
    assert metric(mirror, "image_connections") == 0


def test_with_one_connection_there_is_one_request(started: Started, simulator: Simulator) -> None:
    assert_all_right(started(connections=1), simulator)
    assert simulator.counters().store_gets == 1


def test_an_upstream_that_answers_itself_gets_one_request(started: Started, simulator: Simulator) -> None:
    simulator.fault(Fault("image", redirect="direct", times=None))
    assert_all_right(started(), simulator)
    assert [get.status for get in simulator.log("image")] == [200]


@pytest.mark.parametrize("redirect", ["origin", "relative"])
def test_a_redirect_that_stays_at_upstream_is_as_good_and_gets_no_credential(
    started: Started, simulator: Simulator, redirect: str
) -> None:
    simulator.fault(Fault("image", redirect=redirect, times=None))
    assert_all_right(started(), simulator)
    assert len(ranges(simulator)) > 8
    assert {get.authorization for get in ranges(simulator)} == {None}


def test_where_several_redirects_lead_is_asked_directly(started: Started, simulator: Simulator) -> None:
    simulator.fault(Fault("image", hops=2, times=None))
    assert_all_right(started(), simulator)
    assert len(ranges(simulator)) > 8
    assert len(simulator.log("hop")) == 2


# What breaks


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_line_that_loses_connections_again_and_again_is_asked_for_what_is_missing(
    started: Started, simulator: Simulator, reset: bool
) -> None:
    simulator.fault(Fault("store", cut_within=RANGE, reset=reset, resumed=True, times=40))
    assert_all_right(started(), simulator, asked=None)  # a range may be lost three times without a byte
    assert len(ranges(simulator)) > 60
    assert simulator.bytes_sent() <= SIZE + WINDOW + IN_FLIGHT


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_ranges_that_get_no_answer_are_asked_for_again(started: Started, simulator: Simulator, reset: bool) -> None:
    simulator.fault(Fault("store", drop=True, reset=reset, resumed=True, times=2))
    assert_all_right(started(), simulator)


def test_when_nothing_can_be_had_any_more_a_fresh_redirect_is(started: Started, simulator: Simulator) -> None:
    simulator.fault(
        Fault("store", drop=True, resumed=True, skip=8, times=12),
    )
    assert_all_right(started(), simulator, asked=None)
    assert len(simulator.log("image")) > 1


@pytest.mark.parametrize("after", [0, 1000])
def test_a_range_that_falls_silent_is_asked_for_again_long_before_read_timeout(
    started: Started, simulator: Simulator, after: int
) -> None:
    simulator.fault(Fault("store", hang_after=after, resumed=True, skip=6))
    assert_all_right(started(read_timeout="1h"), simulator)
    beginnings = [beginning(get) for get in ranges(simulator)]
    twice = [one for one, other in itertools.pairwise(beginnings) if other - one == after]
    assert len(twice) == 1


def test_all_that_fall_silent_are_left_after_read_timeout(started: Started, simulator: Simulator) -> None:
    simulator.fault(Fault("store", hang_after=0, resumed=True, skip=6, times=8))
    assert_all_right(started(read_timeout="500ms"), simulator, asked=None)


# What is refused


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_takes_two_connections_is_asked_for_no_more(
    started: Started, simulator: Simulator, status: int
) -> None:
    simulator.set_rate(None, connection_rate=20e6)
    simulator.fault(Fault("store", at_most=2, status=status, times=None))
    mirror = started()
    assert_all_right(mirror, simulator, asked=None)
    assert "fill.connections_refused" in mirror.settled.actions()
    refused = [get for get in ranges(simulator) if get.status == status]
    assert 1 <= len(refused) <= 3, "the other three are refused at most once each"


ONE_REQUEST = {
    "knows no ranges": Fault("store", ranges=False, resumed=True, times=None),
    "refuses every range": Fault("store", status=503, resumed=True, times=None),
    "forbids every range": Fault("store", status=403, resumed=True, times=None),
    "has none left": Fault("store", status=416, resumed=True, times=None),
    "gives another start": Fault("store", range_shift=-1000, resumed=True, times=None),
    "gives another total": Fault("store", headers={"Content-Range": f"bytes 0-9/{SIZE + 1}"}, resumed=True, times=None),
    "does not say what it gives": Fault("store", headers={"Content-Range": None}, resumed=True, times=None),
    "has another object": Fault("store", headers={"ETag": '"another"'}, resumed=True, times=None),
    "names no object": Fault("store", headers={"ETag": None}, resumed=True, times=None),
    "gives its URL for one request": Fault("image", uses=1, times=None),
    "says that it knows none": Fault("store", headers={"Accept-Ranges": "none"}, times=None),
    "has no strong ETag": Fault("store", headers={"ETag": 'W/"weak"'}, times=None),
}


@pytest.mark.parametrize("fault", ONE_REQUEST.values(), ids=list(ONE_REQUEST))
def test_a_server_that_gives_no_range_goes_on_with_the_one_transfer(
    started: Started, simulator: Simulator, fault: Fault
) -> None:
    simulator.fault(fault)
    assert_all_right(started(), simulator)
    assert simulator.log("store")[0].sent == SIZE


LATER = {
    "knows no ranges any more": Fault("store", ranges=False, resumed=True, skip=12),
    "refuses the URL": Fault("store", status=403, resumed=True, skip=12),
    "gives another range": Fault("store", range_shift=-1000, resumed=True, skip=12),
    "has another object": Fault("store", headers={"ETag": '"another"'}, resumed=True, skip=12),
}


@pytest.mark.parametrize("fault", LATER.values(), ids=list(LATER))
def test_a_range_that_cannot_be_had_later_costs_one_more_question_and_a_window(
    started: Started, simulator: Simulator, fault: Fault
) -> None:
    simulator.fault(fault)
    assert_all_right(started(), simulator, asked=2)


def test_the_second_url_is_used_up_as_well_and_the_rest_comes_in_one_transfer(
    started: Started, simulator: Simulator
) -> None:
    simulator.fault(Fault("image", uses=8, times=None))
    assert_all_right(started(), simulator, asked=2)
    assert simulator.log("store")[-1].range is not None


def test_a_wrong_byte_in_a_range_ends_in_a_reset_and_is_never_given(started: Started, simulator: Simulator) -> None:
    simulator.fault(Fault("store", corrupt_at=SIZE // 2, times=None))
    mirror = started()
    outcome = fetch(mirror.image_url)
    assert outcome.ended == "reset"
    assert len(list((mirror.store / "quarantine").iterdir())) == 1
    simulator.clear_faults()
    assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")


def test_an_image_that_rolls_over_comes_whole_or_not_at_all(started: Started, simulator: Simulator) -> None:
    simulator.fault(
        Fault("image", redirect="latest", times=None),
        Fault("store", roll_over="second", resumed=True, skip=6),
    )
    mirror = started()
    outcome = fetch(mirror.image_url)
    assert outcome.ended == "reset" or outcome.sha256 == simulator.image_sha256("first")
    again = fetch(mirror.image_url)
    assert (again.ended, again.sha256) == ("complete", simulator.image_sha256("second"))


# What happens to the mirror


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_has_come_in_order_is_gone_on_from_after_a_restart(
    started: Started, simulator: Simulator, number: int
) -> None:
    simulator.fault(Fault("store", hang_after=0, resumed=True, skip=20, times=None))
    mirror = started(read_timeout="1h")
    with Download(mirror.image_url) as download:
        download.read(WINDOW)
        partial = mirror.store / "partial" / simulator.image_sha256("first")
        eventually(lambda: simulator.counters().held >= 4)
        assert mirror.process is not None
        os.kill(mirror.process.pid, number)
    mirror.wait_dead()
    received = partial.read_bytes()
    assert WINDOW <= len(received) < SIZE
    assert received == simulator.read("first", 0, len(received))
    simulator.clear_faults()
    simulator.reset_log()
    mirror.start()
    assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")
    assert simulator.log("store")[0].range == f"bytes={len(received)}-"
    assert simulator.bytes_sent() <= SIZE - len(received) + WINDOW + IN_FLIGHT


def test_sighup_sets_how_many_connections_a_running_fill_uses(started: Started, simulator: Simulator) -> None:
    simulator.fault(Fault("store", hang_after=0, resumed=True, skip=12, times=4))
    mirror = started(read_timeout="1h")
    with Download(mirror.image_url) as download:
        eventually(lambda: simulator.counters().held >= 3)
        mirror.config_file.write_text(mirror.config_file.read_text().replace("connections = 4", "connections = 1"))
        mirror.send_signal(signal.SIGHUP)
        eventually(lambda: "SIGHUP: reloaded upstream.connections" in mirror.log(), what="the reload")
        simulator.release()
        assert download.read_all().ended == "complete"
    assert ranges(simulator)[-1].range == f"bytes={beginning(ranges(simulator)[-1])}-{SIZE - 1}"
    assert ranges(simulator)[-1].sent > RANGE
