"""Replicas that share a bucket and nothing else: one fetch for all of them, whoever dies meanwhile."""

import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from mirror.simulator.client import Fault, ImageSpec, Simulator
from tests.support.downloads import Download, Outcome, fetch
from tests.support.forked import ForkedMirror
from tests.support.processes import eventually
from tests.support.s3.fixtures import TestBucket, make_bucket, make_server
from tests.support.s3.server import S3Server

PART = 5 << 20
SIZE = 24 << 20
RATE = 12e6
"""Bytes a second of upstream's line."""

CRAWL = 5e4
"""Bytes a second of a line that all but stands still."""

LEASE = 3.0
"""Seconds that a lease lives here; servers tell times in whole seconds."""

CONSTANTS = {
    "mirror.store.s3.lease:LEASE": LEASE,
    "mirror.store.s3.lease_keeper:RENEW": 1.0,
    "mirror.store.s3.upload:FLUSH": 1.0,
    "mirror.store.s3.parts:PART": PART,
    "mirror.store.s3.coordinator:LOOK_AGAIN": 1.0,
}
SEEDS = range(int(os.environ.get("FLEET_SEEDS", "4")))

KINDS = pytest.mark.parametrize("local_copy", [True, False], ids=["tiered", "bucket only"])


@pytest.fixture(scope="module")
def upstream() -> Iterator[Simulator]:
    images = [ImageSpec("first", size=SIZE), ImageSpec("second", size=SIZE, created="2026-01-02T03:04:05Z")]
    with Simulator.start(images) as simulator:
        yield simulator


@pytest.fixture
def simulator(upstream: Simulator) -> Iterator[Simulator]:
    upstream.reset_log()
    upstream.set_rate(RATE)
    yield upstream
    upstream.clear_faults()
    upstream.roll_over("first")


class Fleet:
    """So many replicas over `bucket`, started; `holder` is the one that fetches."""

    def __init__(
        self,
        directory: Path,
        bucket: TestBucket,
        simulator: Simulator,
        count: int,
        *,
        local_copy: bool = True,
        sections: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        section = {**bucket.section, "local_copy": local_copy}
        self.bucket = bucket
        self.simulator = simulator
        self.mirrors = [
            ForkedMirror(
                directory / f"replica-{number}",
                simulator.api_url,
                {"store.s3": section, **(sections or {})},
                bucket.server.environ,
            )
            for number in range(count)
        ]
        for mirror in self.mirrors:
            mirror.constants = CONSTANTS
        self._running = ExitStack()
        self._clients = ThreadPoolExecutor(64)

    def __enter__(self) -> "Fleet":
        for mirror in self.mirrors:
            self._running.enter_context(mirror)
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()
        self._clients.shutdown()

    def holder(self) -> ForkedMirror:
        """The one that fetches, once it does."""
        holders: list[ForkedMirror] = []

        def found() -> bool:
            holders[:] = [mirror for mirror in self.mirrors if "lease.taken" in mirror.actions()]
            return bool(holders)

        eventually(found, what="a fetch by one of them")
        return holders[0]

    def fetch(self, mirror: ForkedMirror, times: int = 1) -> list[Future[Outcome]]:
        """Let clients download from a replica."""
        return [self._clients.submit(fetch, mirror.image_url) for _ in range(times)]

    def next_holder(self, dead: Sequence[ForkedMirror]) -> ForkedMirror | None:
        """The next one that fetches, now that these are dead; None when the image is there without it."""
        found: list[ForkedMirror] = []

        def is_there() -> bool:
            alive = [mirror for mirror in self.mirrors if mirror not in dead]
            found[:] = [mirror for mirror in alive if "lease.taken" in mirror.actions()]
            return bool(found) or f"images/{self.simulator.image_sha256('first')}" in self.bucket.names("images/")

        eventually(is_there, what="a fetch by one of those that are left")
        return found[0] if found else None

    def position(self) -> int:
        """How far the one that fetches says it is; 0 when there is no lease."""
        note = self.bucket.read(f"leases/{self.simulator.image_sha256('first')}")
        return int(json.loads(note)["position"]) if note else 0

    def fetches(self) -> int:
        """How often bytes of an image were asked of upstream."""
        return len(self.simulator.log("store"))

    def assert_settled(self, name: str = "first") -> None:
        """The bucket has the image, whole and right, and nothing else of its fill, now or soon."""
        image_hash = self.simulator.image_sha256(name)
        expected = {f"images/{image_hash}", f"images/{image_hash}.json", "current.json"}
        eventually(lambda: set(self.bucket.names()) == expected, what=f"{expected}, there is {self.bucket.names()}")
        assert not self.bucket.client.uploads(self.bucket.name)
        image = self.bucket.read(f"images/{image_hash}")
        assert image is not None
        assert hashlib.sha256(image).hexdigest() == image_hash


def assert_right(simulator: Simulator, outcomes: Sequence[Future[Outcome]]) -> None:
    """Every client got the image."""
    for outcome in [each.result() for each in outcomes]:
        assert (outcome.status, outcome.ended, outcome.sha256) == (200, "complete", simulator.image_sha256("first"))


def arrived(fleet: Fleet, share: float) -> Callable[[], bool]:
    """Whether the holder has brought so much into the bucket."""
    return lambda: fleet.position() >= share * SIZE


@pytest.mark.leases
@KINDS
def test_forty_clients_of_four_replicas_cost_one_fetch_and_all_go_along_with_it(
    tmp_path: Path, bucket: TestBucket, simulator: Simulator, local_copy: bool
) -> None:
    with Fleet(tmp_path, bucket, simulator, 4, local_copy=local_copy) as fleet:
        downloads = [Progress(mirror.image_url) for mirror in fleet.mirrors for _ in range(10)]
        for share in (0.2, 0.4, 0.6):
            simulator.set_rate(RATE / 3)
            eventually(arrived(fleet, share), 60, "a part of the image")
            simulator.set_rate(CRAWL)  # or how far behind they are would depend on how fast this machine is
            eventually(all_have(downloads, fleet.position()), 60, "that part, at all of them")
            assert not any(each.done for each in downloads)
        simulator.set_rate(RATE)
        eventually(lambda: all(each.done for each in downloads), 60, "the end of all downloads")
        assert {download.sha256 for download in downloads} == {simulator.image_sha256("first")}
        assert fleet.fetches() == 1
        fleet.assert_settled()


def all_have(downloads: "Sequence[Progress]", position: int) -> Callable[[], bool]:
    """Whether all have come so far."""
    return lambda: all(download.received >= position for download in downloads)


class Progress:
    """A download in a thread, and how far it is."""

    def __init__(self, url: str) -> None:
        self.received = 0
        self.sha256 = ""
        self.done = False
        self._url = url
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        digest = hashlib.sha256()
        try:
            with Download(self._url) as download:
                while piece := download.read(1 << 16):
                    digest.update(piece)
                    self.received += len(piece)
                if download.ended == "complete":
                    self.sha256 = digest.hexdigest()
        finally:
            self.done = True


@pytest.mark.leases
@pytest.mark.parametrize("seed", SEEDS)
def test_a_holder_that_is_killed_costs_one_more_fetch_and_no_client_of_the_others_notices(
    tmp_path: Path, bucket: TestBucket, simulator: Simulator, seed: int
) -> None:
    when = random.Random(seed).uniform(0.0, 1.0)
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
def test_who_comes_late_to_a_follower_gets_the_image_though_the_parts_have_gone_meanwhile(
    tmp_path: Path, bucket: TestBucket, simulator: Simulator
) -> None:
    simulator.set_rate(None)
    simulator.fault(Fault("store", hang_after=SIZE - PART // 4))
    fleet = Fleet(tmp_path, bucket, simulator, 2, local_copy=False)
    holder, follower = fleet.mirrors
    follower.constants = {**CONSTANTS, "mirror.store.s3.coordinator:FOLLOW": 5.0}
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


@pytest.mark.leases
@KINDS
def test_wrong_bytes_are_nobodys_and_the_next_fetch_is_right(
    tmp_path: Path, bucket: TestBucket, simulator: Simulator, local_copy: bool
) -> None:
    with Fleet(tmp_path, bucket, simulator, 2, local_copy=local_copy) as fleet:
        simulator.fault(Fault("store", corrupt_at=SIZE // 2, times=1))
        outcomes = [outcome for mirror in fleet.mirrors for outcome in fleet.fetch(mirror)]
        assert {outcome.result().ended for outcome in outcomes} == {"reset"}
        assert not [key for key in bucket.names("images/") if not key.endswith(".json")]
        assert_right(simulator, [outcome for mirror in fleet.mirrors for outcome in fleet.fetch(mirror)])
        fleet.assert_settled()


@pytest.mark.leases
@KINDS
def test_workers_of_two_replicas_cost_one_fetch(
    tmp_path: Path, bucket: TestBucket, simulator: Simulator, local_copy: bool
) -> None:
    with Fleet(tmp_path, bucket, simulator, 2, local_copy=local_copy, sections={"server": {"workers": 2}}) as fleet:
        assert_right(simulator, [outcome for mirror in fleet.mirrors for outcome in fleet.fetch(mirror, 6)])
        assert fleet.fetches() == 1
        fleet.assert_settled()


def test_a_replica_without_the_image_takes_it_from_the_bucket(
    tmp_path: Path, bucket: TestBucket, simulator: Simulator
) -> None:
    with Fleet(tmp_path, bucket, simulator, 2) as fleet:
        first, second = fleet.mirrors
        assert_right(simulator, fleet.fetch(first))
        fleet.assert_settled()
        (late,) = fleet.fetch(second)
        assert_right(simulator, [late])
        assert late.result().cache_status == "pps-mirror; hit"
        assert fleet.fetches() == 1


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


@pytest.mark.leases
@KINDS
def test_an_image_that_rolls_over_while_replicas_fetch_it_comes_to_its_end_or_to_a_reset(
    tmp_path: Path, bucket: TestBucket, simulator: Simulator, local_copy: bool
) -> None:
    with Fleet(tmp_path, bucket, simulator, 2, local_copy=local_copy) as fleet:
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
    with Fleet(tmp_path, bucket, simulator, 3, local_copy=local_copy) as fleet:
        assert_right(simulator, [outcome for mirror in fleet.mirrors for outcome in fleet.fetch(mirror, 4)])
        assert fleet.fetches() == 3
        assert all("no conditional writes" in mirror.log() for mirror in fleet.mirrors)
        fleet.assert_settled()
