"""Replicas that share a bucket and nothing else: one fetch for all of them."""

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from mirror.simulator.client import Fault, Simulator
from tests.support.fixtures import simulator_of, two_images
from tests.support.processes import eventually
from tests.support.s3.fixtures import TestBucket
from tests.support.s3.fleet import (
    PART,
    RATE,
    SIZE,
    TIMINGS,
    Fleet,
    Progress,
    all_have,
    arrived,
    assert_right,
)
from tests.support.s3.replicas import KINDS

PATIENT = replace(TIMINGS, lease=30.0)
"""Nobody dies here, so that a lease which a slow machine renews late must not pass to another."""

fleet_of = partial(Fleet, timings=PATIENT)
shared_simulator = simulator_of(two_images(SIZE))


@pytest.fixture
def simulator(simulator: Simulator) -> Simulator:
    simulator.set_rate(RATE)
    return simulator


@pytest.mark.leases
@KINDS
def test_forty_clients_of_four_replicas_cost_one_fetch_and_all_go_along_with_it(
    tmp_path: Path, bucket: TestBucket, simulator: Simulator, local_copy: bool
) -> None:
    simulator.fault(Fault("store", hang_after=SIZE * 7 // 10))  # or the end could come first, on a slow machine
    with fleet_of(tmp_path, bucket, simulator, 4, local_copy=local_copy) as fleet:
        downloads = [Progress(mirror.image_url) for mirror in fleet.mirrors for _ in range(10)]
        for share in (0.2, 0.4, 0.6):
            eventually(arrived(fleet, share), 60, "a part of the image")
            eventually(all_have(downloads, int(share * SIZE)), 60, "that part, at all of them")
            assert not any(each.done for each in downloads)
        simulator.release()
        eventually(lambda: all(each.done for each in downloads), 60, "the end of all downloads")
        assert {download.sha256 for download in downloads} == {simulator.image_sha256("first")}
        assert fleet.fetches() == 1
        fleet.assert_settled()


@pytest.mark.leases
def test_who_comes_late_to_a_follower_gets_the_image_though_the_parts_have_gone_meanwhile(
    tmp_path: Path, bucket: TestBucket, simulator: Simulator
) -> None:
    simulator.set_rate(None)
    simulator.fault(Fault("store", hang_after=SIZE - PART // 4))
    fleet = fleet_of(tmp_path, bucket, simulator, 2, local_copy=False)
    holder, follower = fleet.mirrors
    follower.timings = replace(PATIENT, follow=5.0)
    with fleet:
        outcomes = fleet.fetch(holder)
        eventually(arrived(fleet, 0.8))
        early = Progress(follower.image_url)
        eventually(lambda: early.received >= 0.8 * SIZE)
        simulator.release()
        eventually(lambda: not bucket.names("parts/") and bucket.names("images/"))
        late = Progress(follower.image_url)  # what it wants has left memory, and its fill does not know yet
        eventually(lambda: late.received >= 0.8 * SIZE)
        assert_right(simulator, outcomes)
        eventually(lambda: early.done and late.done)
        assert {early.sha256, late.sha256} == {simulator.image_sha256("first")}
        fleet.assert_settled()


@pytest.mark.leases
@KINDS
def test_wrong_bytes_are_nobodys_and_the_next_fetch_is_right(
    tmp_path: Path, bucket: TestBucket, simulator: Simulator, local_copy: bool
) -> None:
    with fleet_of(tmp_path, bucket, simulator, 2, local_copy=local_copy) as fleet:
        simulator.fault(Fault("store", corrupt_at=SIZE // 2, hang_after=SIZE * 7 // 10, times=1))
        downloads = [Progress(mirror.image_url) for mirror in fleet.mirrors]
        eventually(all_have(downloads, PART), 60, "a part, at both of them")  # one that has nothing yet fetches itself
        simulator.wait_held()
        simulator.release()
        eventually(lambda: all(each.done for each in downloads), 60, "the end of both")
        assert [each.ended for each in downloads] == ["reset"] * 2
        assert not [key for key in bucket.names("images/") if not key.endswith(".json")]
        assert_right(simulator, [outcome for mirror in fleet.mirrors for outcome in fleet.fetch(mirror)])
        fleet.assert_settled()


@pytest.mark.leases
@KINDS
def test_workers_of_two_replicas_cost_one_fetch(
    tmp_path: Path, bucket: TestBucket, simulator: Simulator, local_copy: bool
) -> None:
    with fleet_of(tmp_path, bucket, simulator, 2, local_copy=local_copy, sections={"server": {"workers": 2}}) as fleet:
        assert_right(simulator, [outcome for mirror in fleet.mirrors for outcome in fleet.fetch(mirror, 6)])
        assert fleet.fetches() == 1
        fleet.assert_settled()


def test_a_replica_without_the_image_takes_it_from_the_bucket(
    tmp_path: Path, bucket: TestBucket, simulator: Simulator
) -> None:
    with fleet_of(tmp_path, bucket, simulator, 2) as fleet:
        first, second = fleet.mirrors
        assert_right(simulator, fleet.fetch(first))
        fleet.assert_settled()
        (late,) = fleet.fetch(second)
        assert_right(simulator, [late])
        assert late.result().cache_status == "pps-mirror; hit"
        assert fleet.fetches() == 1


@pytest.mark.leases
@KINDS
def test_an_image_that_rolls_over_while_replicas_fetch_it_comes_to_its_end_or_to_a_reset(
    tmp_path: Path, bucket: TestBucket, simulator: Simulator, local_copy: bool
) -> None:
    with fleet_of(tmp_path, bucket, simulator, 2, local_copy=local_copy) as fleet:
        simulator.fault(Fault("store", cut_after=SIZE // 2, reset=True, roll_over="second"))
        outcomes = [outcome.result() for outcome in [each for mirror in fleet.mirrors for each in fleet.fetch(mirror)]]
        for outcome in outcomes:
            assert outcome.ended in {"complete", "reset"}
            assert outcome.ended == "reset" or outcome.sha256 in map(simulator.image_sha256, ("first", "second"))
        after = [each.result() for mirror in fleet.mirrors for each in fleet.fetch(mirror)]
        assert {outcome.sha256 for outcome in after} == {simulator.image_sha256("second")}
        for name in ("first", "second"):
            image = bucket.read(f"images/{simulator.image_sha256(name)}")
            assert image is None or hashlib.sha256(image).hexdigest() == simulator.image_sha256(name)


@pytest.mark.no_leases
@KINDS
def test_without_conditional_writes_each_replica_fetches_once_and_says_so(
    tmp_path: Path, bucket: TestBucket, simulator: Simulator, local_copy: bool
) -> None:
    with fleet_of(tmp_path, bucket, simulator, 3, local_copy=local_copy) as fleet:
        assert_right(simulator, [outcome for mirror in fleet.mirrors for outcome in fleet.fetch(mirror, 4)])
        assert fleet.fetches() == 3
        assert all("no conditional writes" in mirror.settled.log() for mirror in fleet.mirrors)
        fleet.assert_settled()
