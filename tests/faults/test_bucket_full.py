"""A bucket with bounds (`store.s3.max_size`): a fleet that rolls over stays below them, and says when it cannot."""

import json
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mirror.simulator.client import ImageSpec, Simulator
from mirror.store.s3.timings import Timings
from tests.support.admin import metric
from tests.support.commands import run_forked
from tests.support.downloads import Outcome, fetch
from tests.support.forked import ForkedMirror
from tests.support.processes import eventually
from tests.support.s3.fixtures import TestBucket
from tests.support.s3.replicas import KINDS

MIB = 1 << 20
SIZE = 6 * MIB
ROOM = 20 * MIB
NAMES = [f"image{number}" for number in range(6)]
TIMINGS = Timings(spared=1.0, first_round=0.5, round=0.5, lately=0.0)
CONSTANTS = {
    "mirror.store.memory:GATHER": 0.1,
    "mirror.store.s3.parts:PART": 5 * MIB,
    "mirror.admin.overview:BUCKET_FRESH": 0.2,
}


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[Simulator]:
    images = [ImageSpec(name, size=SIZE, created=f"2026-01-0{day}T03:04:05Z") for day, name in enumerate(NAMES, 1)]
    with Simulator.start(images) as simulator:
        yield simulator


def make(directory: Path, bucket: TestBucket, simulator: Simulator, *, local_copy: bool, keep: int = 1) -> ForkedMirror:
    """A mirror over a bucket in which three images have room, not started."""
    sections: dict[str, dict[str, object]] = {
        "upstream": {"metadata_ttl": "0s"},
        "store.s3": {**bucket.section, "local_copy": local_copy, "max_size": str(ROOM), "keep": keep},
    }
    mirror = ForkedMirror(directory, simulator.api_url, sections, bucket.server.environ)
    mirror.timings = TIMINGS
    mirror.constants = CONSTANTS
    return mirror


def run(mirror: ForkedMirror, *words: str) -> str:
    """What a command says on that mirror's configuration; it must succeed."""
    done = run_forked(*words, "-c", mirror.config_file, environ=mirror.environ)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def status(mirror: ForkedMirror) -> Any:
    """What the page shows."""
    with urllib.request.urlopen(f"{mirror.admin_url}/api/status", timeout=10) as answer:
        return json.load(answer)


def room_of(mirror: ForkedMirror) -> Any:
    """What it says of the room in the bucket."""
    (room,) = [room for room in status(mirror)["rooms"] if room["place"] == "bucket"]
    return room


def degraded(mirror: ForkedMirror) -> str:
    """What `/readyz` says that it does without."""
    with urllib.request.urlopen(f"{mirror.admin_url}/readyz", timeout=5) as answer:
        return "; ".join(json.load(answer)["degraded"])


def stored(bucket: TestBucket, simulator: Simulator) -> list[str]:
    """Which images are in the bucket."""
    hashes = {simulator.image_sha256(name): name for name in NAMES}
    found = [name.removeprefix("images/") for name in bucket.names("images/")]
    return sorted(hashes[each] for each in found if each in hashes)


def is_stored(bucket: TestBucket, simulator: Simulator, name: str) -> Callable[[], bool]:
    """Whether that image is in the bucket."""
    return lambda: name in stored(bucket, simulator)


def assert_right_or_reset(simulator: Simulator, outcome: Outcome) -> None:
    """The client got one of the images, or it saw that it did not."""
    assert outcome.ended == "reset" or outcome.sha256 in map(simulator.image_sha256, NAMES)


@pytest.mark.leases
@KINDS
def test_two_mirrors_that_roll_over_and_over_stay_within_the_bounds_and_every_client_gets_right_bytes(
    tmp_path: Path, bucket: TestBucket, simulator: Simulator, local_copy: bool
) -> None:
    with (
        make(tmp_path / "one", bucket, simulator, local_copy=local_copy) as one,
        make(tmp_path / "two", bucket, simulator, local_copy=local_copy) as two,
        ThreadPoolExecutor() as pool,
    ):
        for number, name in enumerate(NAMES):
            simulator.roll_over(name)
            before = [
                f"{each.url}/mirror/v1/images/{simulator.image_sha256(NAMES[number - 1])}/" for each in (one, two)
            ]
            urls = [one.image_url, two.image_url, *(before if number else []), one.image_url, two.image_url]
            outcomes = list(pool.map(fetch, urls))
            for outcome in outcomes:
                assert_right_or_reset(simulator, outcome)
            for outcome in (outcomes[0], outcomes[1], *outcomes[-2:]):
                assert outcome.sha256 == simulator.image_sha256(name)
            eventually(is_stored(bucket, simulator, name), 60, "its arrival in the bucket")
            eventually(lambda: not bucket.names("parts/") and not bucket.names("leases/"), 60, "the end of the upload")
            assert len(stored(bucket, simulator)) <= 3
        assert simulator.counters().store_gets == len(NAMES)
        assert len(stored(bucket, simulator)) == 3
        assert NAMES[-1] in stored(bucket, simulator)
        evicted = [event for each in (one, two) for event in each.settled.events("image.evicted")]
        assert len([each for each in evicted if each["log.logger"].startswith("mirror.store.s3.")]) == len(NAMES) - 3
        eventually(lambda: (room := room_of(one))["used"] == 3 * SIZE and room["trouble"] is None)
        assert (room_of(one)["limit"], room_of(one)["images"]) == (ROOM, 3)
        assert room_of(one)["largest"] >= SIZE
        assert metric(one, "store_limit_bytes", place="bucket") == ROOM
        assert metric(one, "store_room_bytes", place="bucket") >= SIZE
        eventually(lambda: not degraded(one) and not degraded(two), what="health")


@KINDS
def test_when_nothing_may_be_evicted_the_mirror_says_so_and_serves_and_stores_again_when_something_may(
    tmp_path: Path, bucket: TestBucket, simulator: Simulator, local_copy: bool
) -> None:
    with make(tmp_path / "mirror", bucket, simulator, local_copy=local_copy) as mirror:
        for name in NAMES[:3]:
            simulator.roll_over(name)
            assert fetch(mirror.image_url).sha256 == simulator.image_sha256(name)
            eventually(is_stored(bucket, simulator, name), 60, "its arrival in the bucket")
            run(mirror, "pin", simulator.image_sha256(name))
        eventually(lambda: not bucket.names("parts/"), 60, "the end of the upload")
        simulator.roll_over(NAMES[3])
        outcome = fetch(mirror.image_url)
        assert outcome.sha256 == simulator.image_sha256(NAMES[3])
        assert outcome.cache_status == ("pps-mirror; fwd=miss; stored" if local_copy else "pps-mirror; fwd=bypass")
        eventually(lambda: "store.s3.max_size" in degraded(mirror), what="word of it")
        assert stored(bucket, simulator) == NAMES[:3]
        assert mirror.settled.actions().count("bucket.full") <= 3  # for each fill, not for each look
        run(mirror, "unpin", simulator.image_sha256(NAMES[0]))
        if local_copy:  # its keeper brings what is current
            eventually(lambda: NAMES[3] in stored(bucket, simulator), 60, "its arrival in the bucket")
        else:
            eventually(lambda: fetch(mirror.image_url).cache_status == "pps-mirror; hit", 60, "a hit")
        eventually(lambda: stored(bucket, simulator) == NAMES[1:4], 60, "an eviction")
        eventually(lambda: not degraded(mirror), what="health")
