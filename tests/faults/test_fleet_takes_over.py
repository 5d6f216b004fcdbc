"""Replicas that share a bucket and nothing else: one fetch for all of them, whoever dies meanwhile."""

import hashlib
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.simulator.client import Fault, Simulator
from tests.support.fixtures import simulator_of, two_images
from tests.support.forked import ForkedMirror
from tests.support.processes import eventually
from tests.support.s3.fixtures import TestBucket, make_bucket, make_server
from tests.support.s3.fleet import CRAWL, LEASE, RATE, SIZE, Fleet, arrived, assert_right
from tests.support.s3.replicas import KINDS
from tests.support.s3.server import S3Server

SEEDS = range(int(os.environ.get("FLEET_SEEDS", "4")))


shared_simulator = simulator_of(two_images(SIZE))


@pytest.fixture
def simulator(simulator: Simulator) -> Simulator:
    simulator.set_rate(RATE)
    return simulator


@pytest.mark.leases
@pytest.mark.parametrize("seed", SEEDS)
def test_a_holder_that_is_killed_costs_one_more_fetch_and_no_client_of_the_others_notices(
    tmp_path: Path, bucket: TestBucket, simulator: Simulator, seed: int
) -> None:
    when = random.Random(seed).uniform(0.0, 1.0)
    simulator.fault(Fault("store", hang_after=SIZE - 1))  # or the holder could be through before it is killed
    with Fleet(tmp_path, bucket, simulator, 3, local_copy=seed % 2 == 0) as fleet:
        outcomes = {mirror: fleet.fetch(mirror, 2) for mirror in fleet.mirrors}
        holder = fleet.holder()
        time.sleep(when * SIZE / RATE)
        holder.kill()
        for mirror in fleet.mirrors:
            if mirror is not holder:
                assert_right(simulator, outcomes[mirror])
        assert fleet.fetches() <= 2
        fleet.assert_settled()


@pytest.mark.leases
@pytest.mark.parametrize("seed", SEEDS[::3])
def test_holders_that_are_killed_one_after_another_cost_one_more_fetch_each(
    tmp_path: Path, bucket: TestBucket, simulator: Simulator, seed: int
) -> None:
    chance = random.Random(seed)
    dead: list[ForkedMirror] = []
    with Fleet(tmp_path, bucket, simulator, 4, local_copy=seed % 2 == 0) as fleet:
        outcomes = {mirror: fleet.fetch(mirror) for mirror in fleet.mirrors}
        while len(dead) < 3 and (holder := fleet.next_holder(dead)):
            time.sleep(chance.uniform(0.0, 0.3) * SIZE / RATE)
            holder.kill()
            dead.append(holder)
        for mirror in fleet.mirrors:
            if mirror not in dead:
                assert_right(simulator, outcomes[mirror])
        assert fleet.fetches() <= 1 + len(dead)
        fleet.assert_settled()


@pytest.mark.leases
@KINDS
def test_a_holder_that_froze_does_no_harm_when_it_wakes_up(
    tmp_path: Path, bucket: TestBucket, simulator: Simulator, local_copy: bool
) -> None:
    with Fleet(tmp_path, bucket, simulator, 3, local_copy=local_copy) as fleet:
        outcomes = [outcome for mirror in fleet.mirrors for outcome in fleet.fetch(mirror)]
        holder = fleet.holder()
        eventually(arrived(fleet, 0.2))
        holder.freeze()
        others = [mirror for mirror in fleet.mirrors if mirror is not holder]
        eventually(lambda: any("lease.taken" in mirror.actions() for mirror in others), what="a take-over")
        holder.thaw()
        assert_right(simulator, outcomes)
        assert fleet.fetches() <= 2
        fleet.assert_settled()


@pytest.mark.leases
@KINDS
def test_a_holder_that_stops_hands_over_at_once_and_nothing_is_fetched_twice(
    tmp_path: Path, bucket: TestBucket, simulator: Simulator, local_copy: bool
) -> None:
    simulator.fault(Fault("store", hang_after=SIZE * 7 // 10))  # or the holder could be through before it stops
    with Fleet(tmp_path, bucket, simulator, 2, local_copy=local_copy, sections={"server": {"drain": "0s"}}) as fleet:
        outcomes = {mirror: fleet.fetch(mirror) for mirror in fleet.mirrors}
        holder = fleet.holder()
        eventually(arrived(fleet, 0.45))
        holder.stop()
        (other,) = [mirror for mirror in fleet.mirrors if mirror is not holder]
        assert_right(simulator, outcomes[other])
        _, resumed = simulator.log("store")
        assert resumed.range is not None
        assert int(resumed.range.removeprefix("bytes=").removesuffix("-")) >= 0.4 * SIZE
        fleet.assert_settled()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[S3Server]:
    """A server of the test's own, to be killed."""
    with make_server(tmp_path) as server:
        yield server


@pytest.mark.leases
@KINDS
def test_a_bucket_that_is_away_for_a_while_does_no_harm(
    tmp_path: Path, own_server: S3Server, simulator: Simulator, local_copy: bool
) -> None:
    bucket = make_bucket(own_server)
    with Fleet(tmp_path, bucket, simulator, 2, local_copy=local_copy) as fleet:
        outcomes = [outcome for mirror in fleet.mirrors for outcome in fleet.fetch(mirror, 2)]
        fleet.holder()
        eventually(arrived(fleet, 0.3))
        own_server.kill()
        time.sleep(LEASE)
        own_server.start()
        assert_right(simulator, outcomes)
        assert_right(simulator, [outcome for mirror in fleet.mirrors for outcome in fleet.fetch(mirror)])
        image_hash = simulator.image_sha256("first")
        eventually(lambda: f"images/{image_hash}" in bucket.names(), 60, "the image's arrival in the bucket")
        image = bucket.read(f"images/{image_hash}")
        assert image is not None
        assert hashlib.sha256(image).hexdigest() == image_hash


@pytest.mark.leases
def test_replicas_that_went_alone_come_together_again_when_the_bucket_is_back(
    tmp_path: Path, own_server: S3Server, simulator: Simulator
) -> None:
    simulator.set_rate(RATE / 4)  # shared by all who fetch
    with Fleet(tmp_path, make_bucket(own_server), simulator, 3) as fleet:
        outcomes = [outcome for mirror in fleet.mirrors for outcome in fleet.fetch(mirror)]
        fleet.holder()
        eventually(arrived(fleet, 0.2))
        own_server.kill()
        simulator.set_rate(CRAWL)  # as long as it takes, which is this machine's affair
        eventually(lambda: any("lease.skipped" in mirror.actions() for mirror in fleet.mirrors))
        own_server.start()
        eventually(
            lambda: sum(each.ended is None for each in simulator.log("store")) == 1, 60, "one fetch for all again"
        )
        simulator.set_rate(RATE / 4)
        assert_right(simulator, outcomes)
        fleet.assert_settled()
        assert sum(asked.sent for asked in simulator.log("store")) < 2 * SIZE
