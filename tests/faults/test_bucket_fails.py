"""Guarantee 8 with a bucket: whatever is wrong with it, clients get the right bytes or a reset, and it is said why."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.downloads import fetch
from tests.support.fixtures import simulator_of, two_images
from tests.support.forked import ForkedMirror
from tests.support.processes import eventually
from tests.support.s3.fixtures import make_bucket, make_server
from tests.support.s3.front import Front, Trouble
from tests.support.s3.replicas import BYPASS, HIT, KINDS, SIZE, STORED, TIMINGS, WELL, Replicas, health, mend
from tests.support.s3.server import S3Server, credentials
from tests.support.s3.weed import Weed

shared_simulator = simulator_of(two_images(SIZE))


def always(status: int, code: str) -> Callable[[Front], None]:
    """The front answers every request so."""
    return lambda front: front.trouble(Trouble(status=status, code=code))


CAUSES: Mapping[str, tuple[Callable[[Front], None], str]] = {
    "unreachable": (Front.refuse, "cannot be reached"),
    "throttling": (always(503, "SlowDown"), "asks us to slow down"),
    "credentials expired": (always(403, "ExpiredToken"), "credentials have expired"),
    "clock skewed": (always(403, "RequestTimeTooSkewed"), "clock differs"),
    "bucket missing": (always(404, "NoSuchBucket"), "there is no such bucket"),
}


def loud(mirror: ForkedMirror) -> list[str]:
    """What it has warned of."""
    return [event["message"] for event in mirror.settled.events() if event["log.level"] in {"warning", "error"}]


@pytest.mark.parametrize(
    ("cause", "local_copy"),
    [*((cause, True) for cause in CAUSES), ("unreachable", False), ("throttling", False), ("bucket missing", False)],
    ids=lambda value: value if isinstance(value, str) else ["bucket only", "tiered"][value],
)
def test_a_bucket_that_fails_is_done_without_until_it_is_well(
    replicas: Replicas, front: Front, local_copy: bool, cause: str
) -> None:
    begin, words = CAUSES[cause]
    begin(front)
    with replicas.make(local_copy=local_copy) as mirror:
        eventually(lambda: words in health(mirror).degraded, what="word of it")
        replicas.assert_right(fetch(mirror.image_url), STORED if local_copy else BYPASS)
        if local_copy:
            eventually(lambda: "bucket.unpublished" in mirror.actions(), what="the end of the upload")
        said = len(loud(mirror))
        for _ in range(3):
            replicas.assert_right(fetch(mirror.image_url), HIT if local_copy else BYPASS)
        eventually(lambda: words in health(mirror).degraded, what="word of it")
        assert words in "".join(loud(mirror))
        assert len(loud(mirror)) == said

        mend(front)
        eventually(lambda: fetch(mirror.image_url).cache_status in {HIT, STORED}, what="recovery")
        eventually(replicas.arrived, what="the image's arrival in the bucket")
        eventually(lambda: health(mirror) == WELL, what="recovery")

        begin(front)
        for _ in range(2):
            replicas.assert_right(fetch(mirror.image_url))
        eventually(lambda: words in health(mirror).degraded, what="word of it")
        mend(front)
        eventually(lambda: fetch(mirror.image_url).cache_status == HIT, what="recovery")
        eventually(lambda: health(mirror) == WELL, what="recovery")


@pytest.mark.alone
def test_a_bucket_that_hangs_keeps_neither_the_orchestrator_waiting_nor_who_is_served_from_disk(
    replicas: Replicas, front: Front
) -> None:
    with replicas.make(local_copy=True) as mirror:
        replicas.assert_right(fetch(mirror.image_url), STORED)
        eventually(lambda: health(mirror) == WELL)
        front.trouble(Trouble(stall=True))
        began = time.monotonic()
        assert "slow to answer" in health(mirror).degraded
        replicas.assert_right(fetch(mirror.image_url), HIT)
        assert time.monotonic() - began < 3.0
        mend(front)
        eventually(lambda: health(mirror) == WELL, what="recovery")


@pytest.mark.alone
def test_a_bucket_that_hangs_is_found_out_once_and_the_image_passed_through(tmp_path: Path, replicas: Replicas) -> None:
    with make_server(tmp_path) as server:
        hanging = replace(replicas, bucket=make_bucket(server))
        mirror = hanging.make(local_copy=False, endpoint=server.endpoint_url)
        mirror.timings, mirror.constants = None, {}
        with mirror:
            eventually(lambda: health(mirror) == WELL)
            server.freeze()
            outcome = fetch(mirror.image_url)
            hanging.assert_right(outcome, BYPASS)
            assert (outcome.first_byte_after or 0.0) < 30.0
            began = time.monotonic()
            hanging.assert_right(fetch(mirror.image_url), BYPASS)
            assert time.monotonic() - began < 3.0
            assert "does not answer" in health(mirror).degraded
            server.thaw()
            eventually(lambda: fetch(mirror.image_url).cache_status == HIT, what="recovery")
            eventually(lambda: health(mirror) == WELL, what="recovery")


@KINDS
@pytest.mark.parametrize(
    ("access_key", "words"), [("pps-writer", "refuses our secret key"), ("nobody", "does not know our access key")]
)
def test_wrong_credentials_are_said(replicas: Replicas, local_copy: bool, access_key: str, words: str) -> None:
    environ = credentials(access_key, "a-secret-key-that-is-wrong")
    with replicas.make(local_copy=local_copy, environ=environ) as mirror:
        eventually(lambda: words in health(mirror).degraded, what="word of it")
        replicas.assert_right(fetch(mirror.image_url), STORED if local_copy else BYPASS)
        assert words in "".join(loud(mirror))


@KINDS
def test_who_may_only_read_serves_what_is_there_and_brings_nothing(
    replicas: Replicas, s3_server: S3Server, local_copy: bool
) -> None:
    if not isinstance(s3_server, Weed):
        pytest.skip("only this server has somebody who may only read")
    with replicas.make("reader", local_copy=local_copy, environ=s3_server.reader_environ) as reader:
        eventually(lambda: "do not allow PutObject" in health(reader).degraded, what="word of it")
        replicas.assert_right(fetch(reader.image_url), STORED if local_copy else BYPASS)
        assert replicas.bucket.names() == []
    with replicas.make("writer", local_copy=local_copy) as writer:
        replicas.assert_right(fetch(writer.image_url), STORED)
        eventually(replicas.arrived)
    with replicas.make("another", local_copy=local_copy, environ=s3_server.reader_environ) as reader:
        before = replicas.simulator.counters().store_gets
        replicas.assert_right(fetch(reader.image_url), HIT)
        assert replicas.simulator.counters().store_gets == before


@KINDS
def test_without_upstream_and_any_place_that_works_it_is_not_ready(
    replicas: Replicas, front: Front, local_copy: bool
) -> None:
    with replicas.make("filler", local_copy=local_copy) as filler:
        replicas.assert_right(fetch(filler.image_url), STORED)
        eventually(replicas.arrived)
        eventually(lambda: "current.json" in replicas.bucket.names())
    mirror = replicas.make(local_copy=local_copy, upstream=False)
    mirror.timings = replace(TIMINGS, remembered=0.01)
    with mirror:
        replicas.assert_right(fetch(mirror.image_url), HIT)
        front.refuse()
        if local_copy:
            eventually(lambda: "cannot be reached" in health(mirror).degraded)
            assert health(mirror).status == 200
            replicas.assert_right(fetch(mirror.image_url), HIT)
        else:
            eventually(lambda: health(mirror).status == 503 and "cannot be reached" in health(mirror).reasons)
            refused = fetch(mirror.image_url)
            assert refused.status in {404, 503}
        front.listen()
        eventually(lambda: health(mirror).status == 200, what="recovery")
        eventually(lambda: fetch(mirror.image_url).cache_status == HIT, what="recovery")
