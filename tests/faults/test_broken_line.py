"""Guarantee 4: whatever breaks between upstream and the mirror, the fill goes on and clients see a pause."""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mirror.simulator.client import Fault, ImageSpec, Simulator
from tests.support.downloads import AUTHORIZED, Download, Outcome, fetch
from tests.support.forked import ForkedMirror
from tests.support.processes import eventually, free_ports

SIZE = 8 << 20
SMALLER = 5 << 20
CUT = 3_000_001
"""Where the line breaks first, in bytes: past a block, on no boundary."""

PIECE = 4 << 20
BACKOFF = 0.125
"""Seconds before the first retry, at least; each further one in a row waits at least twice as long."""

BLOCKS_AND_EDGES = [1, 2 << 20, (2 << 20) + 1, SIZE - (64 << 10), SIZE - 1, SIZE]


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[Simulator]:
    images = [
        ImageSpec("first", size=SIZE),
        ImageSpec("second", size=SIZE),
        ImageSpec("smaller", size=SMALLER),
    ]
    with Simulator.start(images) as simulator:
        yield simulator


Started = Callable[..., ForkedMirror]


@pytest.fixture
def started(tmp_path: Path, simulator: Simulator) -> Iterator[Started]:
    """Starts the test's mirror, with these keys in the section `upstream`."""
    mirrors: list[ForkedMirror] = []

    def start(**upstream: Any) -> ForkedMirror:
        mirrors.append(ForkedMirror(tmp_path / f"mirror-{len(mirrors)}", simulator.api_url, {"upstream": upstream}))
        return mirrors[-1].start()

    yield start
    for mirror in mirrors:
        if mirror.alive():
            mirror.stop()


@contextmanager
def clients(mirror: ForkedMirror, count: int = 3) -> Iterator[list[Future[Outcome]]]:
    """So many downloads under way."""
    with ThreadPoolExecutor(count) as pool:
        yield [pool.submit(fetch, mirror.image_url) for _ in range(count)]


def assert_all_right(outcomes: list[Future[Outcome]], simulator: Simulator) -> None:
    """Every client has every byte, and the mirror asked for what it lacked only."""
    right = (200, "complete", simulator.image_sha256("first"))
    assert [(each.result().status, each.result().ended, each.result().sha256) for each in outcomes] == [right] * len(
        outcomes
    )


def assert_nothing_fetched_twice(simulator: Simulator) -> None:
    """Each transfer went on where the one before stopped, by range and validator, with a pre-signed URL of its own."""
    gets = [get for get in simulator.log("store") if get.sent]
    position = 0
    for get in gets:
        if position:
            assert get.range is not None
            begin = int(get.range.removeprefix("bytes=").removesuffix("-"))
            assert position - PIECE <= begin <= position
            assert get.if_range
            position = begin
        else:
            assert get.range is None
        position += get.sent
    queries = [get.query for get in gets if get.query]
    assert len(set(queries)) == len(queries)
    assert simulator.bytes_sent() <= SIZE + PIECE * (len(gets) - 1)


def waits(simulator: Simulator) -> list[float]:
    """Seconds between one try and the next, as upstream saw them come."""
    asked = [request.started for request in simulator.log("image")]
    return [later - earlier for earlier, later in itertools.pairwise(asked)]


@pytest.mark.parametrize("position", BLOCKS_AND_EDGES)
@pytest.mark.parametrize("how", [{}, {"reset": True}, {"chunked": True}], ids=["closed", "reset", "chunked"])
def test_wherever_the_line_is_cut_clients_see_a_pause_only(
    started: Started, simulator: Simulator, position: int, how: dict[str, bool]
) -> None:
    simulator.fault(Fault("store", cut_after=position, times=1, **how))  # type: ignore[arg-type]  # a Fault's flags
    with clients(started()) as outcomes:
        assert_all_right(outcomes, simulator)
    assert_nothing_fetched_twice(simulator)
    # A chunked body whose last chunk did not come may be whole all the same: the mirror counts. But of such a body
    # aiohttp drops what it has not handed on when the line is cut, and that is fetched anew.
    gets = simulator.counters().store_gets
    assert gets == (1 if position == SIZE else 2) or (gets == 2 and "chunked" in how)


def test_a_line_that_is_cut_again_and_again_is_given_up_only_when_it_makes_no_progress(
    started: Started, simulator: Simulator
) -> None:
    simulator.fault(*(Fault("store", cut_after=300_000 + 10_007 * turn, reset=turn % 2 == 0) for turn in range(20)))
    with clients(started(fill_retry="1s")) as outcomes:  # which is less than all its pauses together
        assert_all_right(outcomes, simulator)
    assert_nothing_fetched_twice(simulator)
    assert simulator.counters().store_gets == 21
    assert sum(waits(simulator)) > 20 * BACKOFF > 1


SILENCES = {
    "after some bytes": Fault("store", hang_after=CUT),
    "before the first byte": Fault("store", hang_after=0),
    "of the redirect target": Fault("store", hold=True),
    "of upstream": Fault("image", hold=True),
}


@pytest.mark.parametrize("fault", SILENCES.values(), ids=list(SILENCES))
def test_a_line_that_falls_silent_is_left_after_read_timeout(
    started: Started, simulator: Simulator, fault: Fault
) -> None:
    simulator.fault(fault)
    with clients(started(read_timeout="500ms")) as outcomes:
        assert_all_right(outcomes, simulator)
    assert_nothing_fetched_twice(simulator)
    assert waits(simulator)[0] >= 0.5


@pytest.mark.parametrize("place", ["image", "store"])
@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("retry_after", [None, "1"], ids=["", "with Retry-After"])
def test_an_error_in_the_middle_of_an_image_is_waited_out_as_long_as_it_asks(
    started: Started, simulator: Simulator, place: Any, status: int, retry_after: str | None
) -> None:
    simulator.fault(
        Fault("store", cut_after=CUT),
        Fault(place, status=status, headers={"Retry-After": retry_after}, resumed=True),
    )
    with clients(started()) as outcomes:
        assert_all_right(outcomes, simulator)
    assert_nothing_fetched_twice(simulator)
    assert len(waits(simulator)) == 2
    assert waits(simulator)[1] >= (float(retry_after) if retry_after else 2 * BACKOFF)


@pytest.mark.parametrize(("place", "status"), [("image", 500), ("image", 503), ("store", 429), ("store", 503)])
def test_an_error_before_the_first_byte_is_waited_out_too(
    started: Started, simulator: Simulator, place: Any, status: int
) -> None:
    simulator.fault(Fault(place, status=status, times=2))
    with clients(started()) as outcomes:
        assert_all_right(outcomes, simulator)
    assert_nothing_fetched_twice(simulator)


@pytest.mark.parametrize("place", ["image", "store"])
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_connection_that_ends_without_an_answer_is_tried_again(
    started: Started, simulator: Simulator, place: Any, reset: bool
) -> None:
    simulator.fault(
        Fault(place, drop=True, reset=reset, resumed=False, times=2),
        Fault("store", cut_after=CUT),
        Fault(place, drop=True, reset=reset, resumed=True, times=3),
    )
    with clients(started()) as outcomes:
        assert_all_right(outcomes, simulator)
    assert_nothing_fetched_twice(simulator)


def test_the_longer_it_fails_the_longer_it_is_spared(started: Started, simulator: Simulator) -> None:
    simulator.fault(Fault("store", cut_after=CUT), Fault("image", status=502, resumed=True, times=3))
    with clients(started()) as outcomes:
        assert_all_right(outcomes, simulator)
    assert_nothing_fetched_twice(simulator)
    assert len(waits(simulator)) == 4
    for turn, waited in enumerate(waits(simulator)):
        assert waited >= BACKOFF * 2**turn


def test_an_upstream_that_is_down_for_a_while_is_found_again(tmp_path: Path) -> None:
    images = [ImageSpec("first", size=SIZE)]
    api_port, store_port = free_ports(2)
    with Simulator.start(images, api_port=api_port, store_port=store_port) as before:
        before.fault(Fault("store", hang_after=CUT))
        with ForkedMirror(tmp_path, before.api_url) as mirror, clients(mirror) as outcomes:
            before.wait_held()
            partial = mirror.store / "partial" / before.image_sha256("first")
            eventually(lambda: partial.stat().st_size == CUT)
            before.stop()
            eventually(lambda: mirror.log().count("retry in") >= 2)
            with Simulator.start(images, api_port=api_port, store_port=store_port) as after:
                assert_all_right(outcomes, after)
                assert [get.range for get in after.log("store")] == [f"bytes={CUT}-"]


EXPIRED = {
    "expired, and again": (Fault("image", expires_in=-1, resumed=True, times=2), 2),
    "used up": (Fault("image", uses=0, resumed=True), 1),
}


@pytest.mark.parametrize(("fault", "times"), EXPIRED.values(), ids=list(EXPIRED))
def test_a_pre_signed_url_that_is_no_good_is_replaced(
    started: Started, simulator: Simulator, fault: Fault, times: int
) -> None:
    simulator.fault(Fault("store", cut_after=CUT), fault)
    with clients(started()) as outcomes:
        assert_all_right(outcomes, simulator)
    assert_nothing_fetched_twice(simulator)
    assert [get.status for get in simulator.log("store")] == [200, *[403] * times, 206]


def test_a_resumed_transfer_may_come_from_elsewhere(started: Started, simulator: Simulator) -> None:
    simulator.fault(Fault("store", cut_after=CUT), Fault("image", redirect="direct", resumed=True))
    with clients(started()) as outcomes:
        assert_all_right(outcomes, simulator)
    assert simulator.bytes_sent() <= SIZE + PIECE
    assert simulator.log("image")[1].status == 206


@pytest.mark.parametrize("etag", [None, 'W/"weak"'], ids=["no", "a weak"])
def test_with_such_an_etag_it_resumes_by_range_alone(started: Started, simulator: Simulator, etag: str | None) -> None:
    simulator.fault(Fault("store", headers={"ETag": etag}, times=None), Fault("store", cut_after=CUT))
    with clients(started()) as outcomes:
        assert_all_right(outcomes, simulator)
    assert [(get.range, get.if_range) for get in simulator.log("store")] == [(None, None), (f"bytes={CUT}-", None)]


def test_during_the_pause_a_late_client_gets_at_once_what_is_there(started: Started, simulator: Simulator) -> None:
    simulator.fault(Fault("store", cut_after=CUT), Fault("image", hold=True, resumed=True))
    mirror = started()
    with clients(mirror) as outcomes:
        simulator.wait_held()
        ahead = {"Range": f"bytes={CUT - 10}-{CUT + 9}"}
        with Download(mirror.image_url) as late, Download(mirror.image_url, headers=AUTHORIZED | ahead) as part:
            assert late.read(CUT) == simulator.read("first", 0, CUT)
            assert part.read(10) == simulator.read("first", CUT - 10, CUT)
            simulator.release()
            assert part.read_all().body == simulator.read("first", CUT - 10, CUT + 10)
            assert late.read_all().body == simulator.read("first")
        assert_all_right(outcomes, simulator)
    assert_nothing_fetched_twice(simulator)


# Answers to a resumed request that do not simply go on


RESTARTS = {
    "no range support": Fault("store", ranges=False, resumed=True),
    "416": Fault("store", status=416, resumed=True),
    "416 naming the size": Fault("store", status=416, headers={"Content-Range": f"bytes */{SIZE}"}, resumed=True),
}


@pytest.mark.parametrize("fault", RESTARTS.values(), ids=list(RESTARTS))
def test_when_it_must_start_over_with_the_same_bytes_clients_keep_their_place(
    started: Started, simulator: Simulator, fault: Fault
) -> None:
    simulator.fault(Fault("store", cut_after=CUT), fault)
    with clients(started()) as outcomes:
        assert_all_right(outcomes, simulator)
    assert simulator.bytes_sent() == CUT + SIZE
    assert simulator.log("store")[-1].status == 200


def test_without_ranges_it_starts_over_at_each_cut_that_comes_later_than_the_one_before(
    started: Started, simulator: Simulator
) -> None:
    cuts = (1, 1_000_000, 2 << 20, 5_000_000)
    simulator.fault(
        *(Fault("store", cut_after=cut, ranges=False) for cut in cuts), Fault("store", ranges=False, times=None)
    )
    with clients(started()) as outcomes:
        assert_all_right(outcomes, simulator)
    assert simulator.bytes_sent() == sum(cuts) + SIZE


def reset_at_the_cut(mirror: ForkedMirror, simulator: Simulator) -> None:
    """Two clients get what comes before the line is cut; when it goes on wrongly both learn it, nothing is stored."""
    with Download(mirror.image_url) as one, Download(mirror.image_url) as other:
        assert one.read(CUT) == other.read(CUT) == simulator.read("first", 0, CUT)
        simulator.release()
        for download in (one, other):
            assert download.read_all().ended == "reset"
            assert len(download.body) <= SIZE - (64 << 10)
    assert not list((mirror.store / "images").iterdir())


def cut_when_released(**fault: Any) -> Fault:
    return Fault("store", hang_after=CUT, cut_after=CUT, **fault)


OTHER_RANGES = {
    "a later start": Fault("store", range_shift=1000, resumed=True),
    "an earlier start": Fault("store", range_shift=-1000, resumed=True),
    "another total": Fault("store", headers={"Content-Range": f"bytes {CUT}-{SIZE - 1}/{SIZE + 1}"}, resumed=True),
    "no Content-Range": Fault("store", headers={"Content-Range": None}, resumed=True),
    "nonsense for Content-Range": Fault("store", headers={"Content-Range": f"bytes {CUT}"}, resumed=True),
    "another ETag": Fault("store", headers={"ETag": '"another"'}, resumed=True),
    "416 naming another size": Fault("store", status=416, headers={"Content-Range": "bytes */7"}, resumed=True),
    "another length": Fault("store", ranges=False, declare_extra=1, resumed=True),
}


@pytest.mark.parametrize("fault", OTHER_RANGES.values(), ids=list(OTHER_RANGES))
def test_another_range_than_the_one_asked_for_is_not_taken_and_the_next_request_goes_on_from_what_is_there(
    started: Started, simulator: Simulator, fault: Fault
) -> None:
    simulator.fault(cut_when_released(), fault)
    mirror = started()
    reset_at_the_cut(mirror, simulator)
    again = fetch(mirror.image_url)
    assert (again.ended, again.sha256) == ("complete", simulator.image_sha256("first"))
    last = simulator.log("store")[-1]
    assert (last.range, last.if_range, last.status) == (f"bytes={CUT}-", None, 206)  # the validator may be to blame


@pytest.mark.parametrize("new", ["second", "smaller"])
@pytest.mark.parametrize("etag", [True, False], ids=["told by its ETag", "without any ETag"])
def test_when_the_image_rolls_over_at_the_cut_nothing_mixed_is_given_whole_and_the_next_request_gets_the_new_one(
    started: Started, simulator: Simulator, new: str, etag: bool
) -> None:
    simulator.fault(
        Fault("image", redirect="latest", times=None), cut_when_released(roll_over=new, roll_over_after=CUT)
    )
    if not etag:
        simulator.fault(Fault("store", headers={"ETag": None, "Last-Modified": None}, times=None))
    mirror = started()
    reset_at_the_cut(mirror, simulator)
    again = fetch(mirror.image_url)
    assert (again.ended, again.sha256) == ("complete", simulator.image_sha256(new))
    assert [image.name for image in (mirror.store / "images").iterdir()] == [simulator.image_sha256(new)]


def test_when_upstream_takes_no_credential_any_more_clients_are_reset_and_the_partial_waits_for_a_better_one(
    started: Started, simulator: Simulator
) -> None:
    simulator.set_tokens([*simulator.setup.tokens, "another-good-token"])
    simulator.fault(cut_when_released(), Fault("image", status=401, resumed=True, times=1))
    mirror = started()
    reset_at_the_cut(mirror, simulator)
    again = fetch(mirror.image_url, headers={"Authorization": "Bearer another-good-token"})
    assert again.sha256 == simulator.image_sha256("first")
    assert_nothing_fetched_twice(simulator)


# The end of patience


def test_when_nothing_came_within_fill_retry_clients_are_told_and_the_next_one_tries_anew(
    started: Started, simulator: Simulator
) -> None:
    simulator.fault(Fault("store", drop=True, times=None))
    mirror = started(fill_retry="1s")
    with Download(mirror.image_url) as download:
        assert download.status == 503
        assert download.header("Retry-After")
        assert download.header("Content-Type") == "application/json"
        assert b"upstream keeps failing" in download.read_all().body
        assert download.answered_after < 15
    simulator.clear_faults()
    assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")


def test_when_fill_retry_is_spent_midway_clients_are_reset_and_the_partial_is_resumed_at_the_next_request(
    started: Started, simulator: Simulator
) -> None:
    simulator.fault(cut_when_released(), Fault("image", status=503, resumed=True, times=None))
    mirror = started(fill_retry="1s")
    reset_at_the_cut(mirror, simulator)
    partial = mirror.store / "partial" / simulator.image_sha256("first")
    assert partial.read_bytes() == simulator.read("first", 0, CUT)
    simulator.clear_faults()
    assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")
    assert_nothing_fetched_twice(simulator)
    assert not list(partial.parent.iterdir())
