"""Guarantee 2: any number of clients cost one upstream image download, and none of them disturbs it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.http import client_api
from mirror.simulator.client import Fault, ImageSpec, Simulator
from tests.support.downloads import AUTHORIZED, Download, at_once, fetch
from tests.support.forked import ForkedMirror
from tests.support.processes import MirrorProcess, eventually

SIZE = 6 << 20
HALF = SIZE // 2


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[Simulator]:
    with Simulator.start([ImageSpec("first", size=SIZE)]) as simulator:
        yield simulator


@pytest.fixture
def mirror(tmp_path: Path, simulator: Simulator) -> Iterator[MirrorProcess]:
    with ForkedMirror(tmp_path, simulator.api_url) as process:
        yield process


def hang_at(simulator: Simulator, position: int) -> None:
    """Let the next transfer stand still once that many bytes have come, until `release`."""
    simulator.fault(Fault("store", hang_after=position))


def wait_for_partial(mirror: MirrorProcess, simulator: Simulator, position: int) -> None:
    """Wait until the mirror has that many bytes of the image."""
    partial = mirror.store / "partial" / simulator.image_sha256("first")
    eventually(lambda: partial.exists() and partial.stat().st_size >= position)


def test_fifty_clients_at_once_cost_one_upstream_request_and_all_get_the_right_bytes(
    mirror: MirrorProcess, simulator: Simulator
) -> None:
    outcomes = at_once(50, lambda: fetch(mirror.image_url))
    assert {outcome.sha256 for outcome in outcomes} == {simulator.image_sha256("first")}
    assert {outcome.ended for outcome in outcomes} == {"complete"}
    statuses = [outcome.cache_status for outcome in outcomes]
    assert statuses.count("pps-mirror; fwd=miss; stored") == 1
    assert set(statuses) <= {"pps-mirror; fwd=miss; stored", "pps-mirror; fwd=miss; collapsed", "pps-mirror; hit"}
    assert simulator.counters().image_requests == 1
    assert simulator.counters().store_gets == 1
    assert simulator.counters().metadata_requests == 1
    again = fetch(mirror.image_url)
    assert (again.cache_status, again.sha256) == ("pps-mirror; hit", simulator.image_sha256("first"))
    assert simulator.counters().image_requests == 1


def test_all_clients_stream_while_it_fills_and_a_late_one_starts_at_byte_0_at_once(
    mirror: MirrorProcess, simulator: Simulator
) -> None:
    hang_at(simulator, HALF)
    with Download(mirror.image_url) as first, Download(mirror.image_url) as second:
        assert first.read(HALF) == second.read(HALF) == simulator.read("first", 0, HALF)
        with Download(mirror.image_url) as late:
            assert late.header("Cache-Status") == "pps-mirror; fwd=miss; collapsed"
            assert late.read(HALF) == simulator.read("first", 0, HALF)
            simulator.release()
            for download in (first, second, late):
                assert download.read_all().ended == "complete"
                assert download.body == simulator.read("first")
    assert simulator.counters().store_gets == 1


def test_the_first_byte_comes_as_soon_as_upstreams(mirror: MirrorProcess, simulator: Simulator) -> None:
    hang_at(simulator, 1)
    with Download(mirror.image_url) as download:
        assert download.read(1) == simulator.read("first", 0, 1)
        assert simulator.counters().held == 1  # upstream has sent that one byte and not a second one


def test_a_range_inside_what_is_there_is_answered_at_once_and_one_past_it_waits(
    mirror: MirrorProcess, simulator: Simulator
) -> None:
    hang_at(simulator, HALF)
    with Download(mirror.image_url) as whole:
        whole.read(HALF)
        with Download(mirror.image_url, headers=AUTHORIZED | {"Range": "bytes=1000-1999"}) as inside:
            assert inside.status == 206
            assert inside.read_all().body == simulator.read("first", 1000, 2000)
        beyond = f"bytes={HALF + 5}-{HALF + 14}"
        with Download(mirror.image_url, headers=AUTHORIZED | {"Range": beyond}) as past:
            assert past.status == 206
            assert past.header("Content-Range") == f"{beyond.replace('=', ' ')}/{SIZE}"
            assert simulator.counters().held == 1
            simulator.release()
            assert past.read_all().body == simulator.read("first", HALF + 5, HALF + 15)
    assert simulator.counters().store_gets == 1


def test_clients_that_leave_stop_nothing(mirror: MirrorProcess, simulator: Simulator) -> None:
    hang_at(simulator, HALF)
    with Download(mirror.image_url) as one, Download(mirror.image_url) as other:
        one.read(1000)
        other.read(HALF)
        one.abandon()
        other.abandon()
    simulator.release()
    image = mirror.store / "images" / simulator.image_sha256("first") / "image"
    eventually(image.exists)
    assert image.read_bytes() == simulator.read("first")
    # The name comes first, then the directory's fsync, then the verdict.
    eventually(lambda: fetch(mirror.image_url).cache_status == "pps-mirror; hit", what="a hit")
    assert simulator.counters().store_gets == 1


def test_a_client_that_reads_nothing_slows_nobody(mirror: MirrorProcess, simulator: Simulator) -> None:
    with Download(mirror.image_url) as idle:
        outcome = fetch(mirror.image_url)
        assert outcome.sha256 == simulator.image_sha256("first")
        assert idle.read_all().body == simulator.read("first")  # and gets all of it when it wakes up


def test_head_begins_nothing(mirror: MirrorProcess, simulator: Simulator) -> None:
    with Download(mirror.image_url, "HEAD") as head:
        assert head.status == 200
        assert head.header("Content-Length") == str(SIZE)
        assert head.header("Cache-Status") == "pps-mirror; fwd=miss"
    assert simulator.counters().image_requests == 0
    assert not list((mirror.store / "partial").iterdir())


def test_conditionals_that_need_no_bytes_begin_nothing(mirror: MirrorProcess, simulator: Simulator) -> None:
    tag = f'"{simulator.image_sha256("first")}"'
    for headers, status in (
        ({"If-None-Match": tag}, 304),
        ({"If-Match": '"other"'}, 412),
        ({"Range": f"bytes={SIZE}-"}, 416),
    ):
        with Download(mirror.image_url, headers=AUTHORIZED | headers) as download:
            assert download.status == status
    assert simulator.counters().image_requests == 0


@pytest.mark.alone
def test_a_client_without_a_byte_after_30_seconds_is_told_to_come_back_and_the_fill_goes_on(
    tmp_path: Path, simulator: Simulator
) -> None:
    assert client_api.FIRST_BYTE == 30.0
    mirror = ForkedMirror(tmp_path, simulator.api_url)
    mirror.constants = {"mirror.http.client_api:FIRST_BYTE": 6.0}
    simulator.fault(Fault("image", hold=True))
    with mirror:
        with Download(mirror.image_url, timeout=40) as download:
            assert 5 < download.answered_after < 11
            assert download.status == 503
            assert download.header("Retry-After")
            assert download.header("Content-Type") == "application/json"
        simulator.release()
        eventually((mirror.store / "images" / simulator.image_sha256("first") / "image").exists)
        assert simulator.counters().image_requests == 1


def test_sigterm_ends_with_0_and_keeps_the_partial_which_the_next_start_resumes(
    mirror: MirrorProcess, simulator: Simulator
) -> None:
    hang_at(simulator, HALF)
    with Download(mirror.image_url) as download:
        download.read(HALF)
        download.abandon()
    assert mirror.stop() == 0
    partial = mirror.store / "partial" / simulator.image_sha256("first")
    assert partial.read_bytes() == simulator.read("first", 0, HALF)
    simulator.clear_faults()
    mirror.start()
    assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")
    ranges = [request.range for request in simulator.log("store")]
    assert ranges == [None, f"bytes={HALF}-"]


def test_kill_9_leaves_a_partial_that_the_next_start_resumes(mirror: MirrorProcess, simulator: Simulator) -> None:
    hang_at(simulator, HALF)
    with Download(mirror.image_url) as download:
        download.read(HALF)
        wait_for_partial(mirror, simulator, HALF)
        mirror.kill()
        assert download.read_all().ended in {"reset", "cut"}
    assert not list((mirror.store / "images").iterdir())
    simulator.clear_faults()
    mirror.start()
    assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")
    assert [request.range for request in simulator.log("store")] == [None, f"bytes={HALF}-"]
    assert simulator.log("store")[1].if_range


def test_an_image_that_was_served_while_it_arrived_has_been_served(mirror: MirrorProcess, simulator: Simulator) -> None:
    assert fetch(mirror.image_url).cache_status == "pps-mirror; fwd=miss; stored"
    image = mirror.store / "images" / simulator.image_sha256("first")
    eventually((image / "served").exists)
