"""Guarantees 1 and 4: nothing unverified is ever served whole; what breaks goes on from where it stopped."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.simulator.client import Fault, ImageSpec, Simulator
from tests.support.downloads import AUTHORIZED, Download, at_once, fetch
from tests.support.forked import ForkedMirror
from tests.support.processes import MirrorProcess, eventually

SIZE = 5 << 20
HOLDBACK = 64 << 10


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[Simulator]:
    with Simulator.start([ImageSpec("first", size=SIZE), ImageSpec("second", size=SIZE)]) as simulator:
        yield simulator


@pytest.fixture
def mirror(tmp_path: Path, simulator: Simulator) -> Iterator[MirrorProcess]:
    sections = {"upstream": {"fill_retry": "20s"}}
    with ForkedMirror(tmp_path, simulator.api_url, sections) as process:
        yield process


WRONG = {
    "a wrong byte in the middle": Fault("store", corrupt_at=SIZE // 2, times=None),
    "a wrong last byte": Fault("store", corrupt_at=SIZE - 1, times=None),
    "too few bytes, chunked, with a clean end": Fault("store", chunked=True, send_extra=-1000, times=None),
    "too few bytes, chunked, without ranges": Fault("store", chunked=True, send_extra=-1000, ranges=False, times=None),
    "too many bytes, chunked": Fault("store", chunked=True, send_extra=1000, times=None),
}


@pytest.mark.parametrize("fault", WRONG.values(), ids=list(WRONG))
def test_wrong_bytes_reset_every_client_store_nothing_and_the_next_request_tries_anew(
    mirror: MirrorProcess, simulator: Simulator, fault: Fault
) -> None:
    simulator.fault(fault)
    outcomes = at_once(5, lambda: fetch(mirror.image_url))
    assert {outcome.ended for outcome in outcomes} == {"reset"}
    assert max(outcome.length for outcome in outcomes) <= SIZE - HOLDBACK
    assert not list((mirror.store / "images").iterdir())
    with Download(
        mirror.metadata_url.replace("/api/v2/mlops/portablePredictionServerImage/metadata/", "/mirror/v1/images/")
    ) as listing:
        assert listing.read_all().body == b"[]"
    simulator.clear_faults()
    outcome = fetch(mirror.image_url)
    assert (outcome.sha256, outcome.ended) == (simulator.image_sha256("first"), "complete")


@pytest.mark.parametrize("extra", [1000, -1000])
def test_a_content_length_that_is_not_the_images_is_a_502_before_any_byte(
    mirror: MirrorProcess, simulator: Simulator, extra: int
) -> None:
    simulator.fault(Fault("store", declare_extra=extra, times=None))
    with Download(mirror.image_url) as download:
        assert download.status == 502
        assert b"bytes" in download.read_all().body
    assert not list((mirror.store / "images").iterdir())


def test_the_holdback_waits_for_the_verdict(mirror: MirrorProcess, simulator: Simulator) -> None:
    simulator.fault(Fault("store", hang_after=SIZE - 1))
    with Download(mirror.image_url) as download:
        assert len(download.read(SIZE - HOLDBACK)) == SIZE - HOLDBACK
        partial = mirror.store / "partial" / simulator.image_sha256("first")
        eventually(lambda: partial.stat().st_size == SIZE - 1)
        with Download(mirror.image_url, headers=AUTHORIZED | {"Range": f"bytes={SIZE - HOLDBACK}-"}, timeout=1) as last:
            with pytest.raises(TimeoutError):
                last.read(1)
        with pytest.raises(TimeoutError), Download(mirror.image_url, timeout=1) as other:
            other.read(SIZE - HOLDBACK + 1)
        simulator.release()
        assert download.read_all().body == simulator.read("first")


def test_an_image_smaller_than_the_holdback_is_held_back_whole(tmp_path: Path) -> None:
    with (
        Simulator.start([ImageSpec("small", size=1000)]) as simulator,
        ForkedMirror(tmp_path, simulator.api_url) as mirror,
    ):
        simulator.fault(Fault("store", corrupt_at=0))
        assert (fetch(mirror.image_url).ended, fetch(mirror.image_url).length) == ("reset", 1000)


def test_after_repeated_wrong_bytes_clients_get_a_clear_502_until_metadata_changes(
    mirror: MirrorProcess, simulator: Simulator
) -> None:
    simulator.fault(Fault("store", corrupt_at=10, times=None))
    for _ in range(5):
        assert fetch(mirror.image_url).ended == "reset"
    asked = simulator.counters().store_gets
    for _ in range(3):
        with Download(mirror.image_url) as refused:
            assert refused.status == 502
            assert 0 < int(refused.header("Retry-After")) <= 60
            assert b"wrong bytes" in refused.read_all().body
    assert simulator.counters().store_gets == asked
    simulator.clear_faults()
    simulator.roll_over("second")
    eventually(lambda: fetch(mirror.image_url).sha256 == simulator.image_sha256("second"))


@pytest.mark.parametrize("reset", [False, True], ids=["by a plain close", "by a reset"])
def test_a_transfer_that_is_cut_goes_on_where_it_stopped_through_a_fresh_redirect(
    mirror: MirrorProcess, simulator: Simulator, reset: bool
) -> None:
    simulator.fault(Fault("store", cut_after=1_000_000, reset=reset, times=3))
    outcomes = at_once(3, lambda: fetch(mirror.image_url))
    assert {(outcome.sha256, outcome.ended) for outcome in outcomes} == {(simulator.image_sha256("first"), "complete")}
    gets = simulator.log("store")
    assert len(gets) == 4
    assert gets[0].range is None
    for get in gets[1:]:
        assert get.range is not None
        assert get.if_range is not None
        assert get.status == 206
    assert len({get.query for get in gets}) == 4  # each with a pre-signed URL of its own
    assert simulator.bytes_sent() <= SIZE + 3 * (4 << 20)


def test_without_ranges_it_starts_over_and_clients_keep_their_place(
    mirror: MirrorProcess, simulator: Simulator
) -> None:
    simulator.fault(Fault("store", cut_after=1_000_000, ranges=False), Fault("store", ranges=False, times=None))
    outcome = fetch(mirror.image_url)
    assert (outcome.sha256, outcome.ended) == (simulator.image_sha256("first"), "complete")


def test_a_line_that_stays_broken_is_given_up_after_fill_retry(tmp_path: Path, simulator: Simulator) -> None:
    simulator.fault(Fault("store", cut_after=1_000_000), Fault("store", drop=True, resumed=True, times=None))
    with ForkedMirror(tmp_path, simulator.api_url, {"upstream": {"fill_retry": "1s"}}) as mirror:
        assert fetch(mirror.image_url).ended == "reset"
        simulator.clear_faults()
        assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")  # goes on from the partial
    assert simulator.log("store")[-1].range == "bytes=1000000-"


def test_an_image_that_rolls_over_before_the_download_is_found_out_and_served(
    mirror: MirrorProcess, simulator: Simulator
) -> None:
    simulator.fault(Fault("image", redirect="latest", times=None))
    with Download(mirror.metadata_url) as metadata:
        assert simulator.image_sha256("first").encode() in metadata.read_all().body
    simulator.roll_over("second")
    ended = fetch(mirror.image_url).ended  # the same size: found out only by the hash
    assert ended == "reset"
    assert fetch(mirror.image_url).sha256 == simulator.image_sha256("second")
