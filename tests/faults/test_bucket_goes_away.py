"""A bucket that hangs or goes, when images are nowhere else: clients bear no more than finding that out, once."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mirror.simulator.client import TOKEN, ImageSpec, Simulator
from mirror.store.s3.timings import Timings
from tests.support.downloads import Download, fetch
from tests.support.fixtures import simulator_of, two_images
from tests.support.forked import ForkedMirror
from tests.support.processes import eventually
from tests.support.s3.fixtures import TestBucket
from tests.support.s3.front import Front, Trouble
from tests.support.s3.replicas import BYPASS, CONSTANTS, HIT, MIB, SIZE, STORED, TIMINGS, WELL, Replicas, health, mend

OBJECT = "/images/[0-9a-f]{64}$"

QUICK = replace(TIMINGS, answer=8.0, spared=0.01, first_round=600.0)
"""Nothing but what a test asks for finds out that the bucket is away: what did is what is tried again."""
REMEMBERING = replace(QUICK, remembered=1000.0)
"""What the bucket said of an object once is believed: it goes within that time."""

AWAY: Mapping[str, Callable[[Front], None]] = {
    "hangs": lambda front: front.trouble(Trouble(stall=True)),
    "hangs at bytes": lambda front: front.trouble(Trouble("GET", OBJECT, stall=True)),
    "unreachable": Front.refuse,
    "overloaded": lambda front: front.trouble(Trouble(status=503, code="SlowDown")),
    "refuses bytes": lambda front: front.trouble(Trouble("GET", OBJECT, status=403, code="AccessDenied")),
}
goes = pytest.mark.parametrize("go", AWAY.values(), ids=AWAY)


shared_simulator = simulator_of(two_images(SIZE))


@contextmanager
def warm(replicas: Replicas, timings: Timings, *, upstream: bool = True) -> Iterator[ForkedMirror]:
    """A mirror that runs, and has just served the image from the bucket."""
    with replicas.make("filler", local_copy=False) as filler:
        replicas.assert_right(fetch(filler.image_url), STORED)
        eventually(replicas.arrived)
        eventually(lambda: "current.json" in replicas.bucket.names())
    mirror = replicas.make(local_copy=False, upstream=upstream)
    mirror.timings = timings
    mirror.constants = CONSTANTS | {"mirror.images.pass_through:WINDOWS": 16}  # no client of a test is one too many
    with mirror:
        replicas.assert_right(fetch(mirror.image_url), HIT)
        eventually(lambda: health(mirror) == WELL)
        yield mirror


@goes
def test_a_hit_whose_bucket_gives_no_byte_is_passed_through(
    replicas: Replicas, front: Front, go: Callable[[Front], None]
) -> None:
    with warm(replicas, REMEMBERING) as mirror:
        go(front)
        replicas.assert_right(fetch(mirror.image_url), BYPASS)
        with Download(mirror.image_url, headers={"Authorization": "Bearer " + TOKEN, "Range": "bytes=-100"}) as part:
            part.read_all()
            assert (part.status, part.ended, part.header("Cache-Status")) == (206, "complete", BYPASS)
            assert part.body == replicas.simulator.read("first")[-100:]
        # It is spared, unless it answers, and does not come back of an answer to something else.
        assert mirror.settled.log().count("nobody waits for it") == (go is not AWAY["refuses bytes"])


@goes
def test_without_upstream_it_is_503_that_says_when_to_come_back(
    replicas: Replicas, front: Front, go: Callable[[Front], None]
) -> None:
    with warm(replicas, REMEMBERING, upstream=False) as mirror:
        go(front)
        for _ in range(2):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(mirror.image_url, timeout=30)
            assert refused.value.code == 503
            assert int(refused.value.headers["Retry-After"]) > 0
            assert "bucket" in json.load(refused.value)["message"]


def test_while_a_bucket_hangs_no_request_asks_it_and_when_it_is_back_that_is_found_out_without_one(
    replicas: Replicas, front: Front
) -> None:
    with warm(replicas, QUICK) as mirror:
        eventually(lambda: fetch(mirror.image_url).cache_status == HIT)
        front.trouble(Trouble(stall=True))
        replicas.assert_right(fetch(mirror.image_url), BYPASS)  # found it out
        asked = front.came("HEAD")
        tried = front.came("GET", OBJECT)
        with ThreadPoolExecutor(8) as pool:
            for outcome in pool.map(lambda _: fetch(mirror.image_url), range(16)):
                replicas.assert_right(outcome, BYPASS)
        assert front.came("HEAD") == asked
        eventually(lambda: front.came("GET", OBJECT) > tried + 1, 60, "attempts in the background")  # of 8 s each
        assert "does not answer" in health(mirror).degraded
        assert mirror.settled.actions().count("bucket.away") == 1

        mend(front)
        eventually(lambda: health(mirror) == WELL, what="word of the recovery, without a request")
        replicas.assert_right(fetch(mirror.image_url), HIT)
        assert mirror.settled.actions().count("bucket.back") == 1


def test_what_hangs_while_the_rest_is_quick_makes_nobody_believe_that_the_bucket_is_away(
    replicas: Replicas, front: Front
) -> None:
    with warm(replicas, QUICK) as mirror:
        front.trouble(Trouble("PUT", stall=True))
        replicas.simulator.roll_over("second")
        assert fetch(mirror.image_url).ended == "complete"
        replicas.simulator.roll_over("first")
        for _ in range(3):
            replicas.assert_right(fetch(mirror.image_url), HIT)
        assert "bucket.away" not in mirror.settled.actions()


def test_a_bucket_that_is_deleted_under_a_mirror_stores_nothing_and_that_is_said(
    replicas: Replicas, bucket: TestBucket
) -> None:
    with warm(replicas, QUICK) as mirror:
        bucket.client.remove_bucket(bucket.name)
        eventually(lambda: fetch(mirror.image_url).cache_status != HIT, what="an end to what is remembered")
        for _ in range(2):
            replicas.assert_right(fetch(mirror.image_url), BYPASS)
        eventually(lambda: "there is no such bucket" in health(mirror).degraded, what="word of it")
        bucket.client.make_bucket(bucket.name)
        eventually(lambda: health(mirror) == WELL, what="word of the recovery, without a request")
        replicas.assert_right(fetch(mirror.image_url), STORED)
        eventually(replicas.arrived)


def test_a_bucket_that_takes_nothing_any_more_stores_nothing_and_that_is_said(replicas: Replicas, front: Front) -> None:
    mirror = replicas.make(local_copy=False)
    mirror.timings = QUICK
    with mirror:
        eventually(lambda: health(mirror) == WELL)
        front.trouble(Trouble("PUT", status=403, code="AccessDenied"))
        for _ in range(2):
            replicas.assert_right(fetch(mirror.image_url), BYPASS)
        eventually(lambda: "do not allow PutObject" in health(mirror).degraded, what="word of it")
        front.clear()
        eventually(lambda: health(mirror) == WELL, what="word of the recovery, without a request")
        replicas.assert_right(fetch(mirror.image_url), STORED)
        eventually(replicas.arrived)


def test_verified_bytes_reach_a_slow_client_though_the_bucket_never_makes_one_object_of_them(
    tmp_path: Path, bucket: TestBucket, front: Front
) -> None:
    size = 48 * MIB  # of which memory has the last 15: it reads what is before from the bucket
    with Simulator.start([ImageSpec("large", size=size)]) as simulator:
        replicas = Replicas(tmp_path, front, bucket, simulator)
        mirror = replicas.make(local_copy=False)
        mirror.timings = replace(QUICK, answer=15.0, publishing=0.5)
        with mirror:
            front.trouble(Trouble("POST", "uploadId=", status=403, code="AccessDenied"))
            with Download(mirror.image_url) as slow:
                slow.read(MIB)
                eventually(lambda: "upload.paused" in mirror.actions(), 120, "the refusal")
                slow.read_all()
                assert slow.ended == "complete"
                assert slow.body == simulator.read("large")
            assert front.asked("GET", "/parts/")
            assert not bucket.names("images/") or simulator.image_sha256("large") not in "".join(
                name for name in bucket.names("images/") if not name.endswith(".json")
            )
