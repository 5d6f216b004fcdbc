"""Guarantee 8 with a bucket: whatever is wrong with it, clients get the right bytes or a reset, and it is said why."""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mirror.simulator.client import ImageSpec, Simulator
from tests.support.downloads import Download, Outcome, fetch
from tests.support.forked import ForkedMirror
from tests.support.processes import eventually
from tests.support.s3.fixtures import make_bucket, make_server
from tests.support.s3.front import Front, Trouble
from tests.support.s3.replicas import BYPASS, CONSTANTS, HIT, MIB, SIZE, STORED, WELL, Replicas, health, mend
from tests.support.s3.server import S3Server, credentials
from tests.support.s3.weed import Weed

KINDS = pytest.mark.parametrize("local_copy", [True, False], ids=["tiered", "bucket only"])


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[Simulator]:
    images = [ImageSpec("first", size=SIZE), ImageSpec("second", size=SIZE, created="2026-01-02T03:04:05Z")]
    with Simulator.start(images) as simulator:
        yield simulator


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
    return [line for line in mirror.log().splitlines() if " WARNING " in line or " ERROR " in line]


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
        assert words in health(mirror).degraded
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
        mirror.constants = {}
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
        assert words in health(mirror).degraded
        replicas.assert_right(fetch(mirror.image_url), STORED if local_copy else BYPASS)
        assert words in "".join(loud(mirror))


@KINDS
def test_who_may_only_read_serves_what_is_there_and_brings_nothing(
    replicas: Replicas, s3_server: S3Server, local_copy: bool
) -> None:
    if not isinstance(s3_server, Weed):
        pytest.skip("only this server has somebody who may only read")
    with replicas.make("reader", local_copy=local_copy, environ=s3_server.reader_environ) as reader:
        assert "do not allow PutObject" in health(reader).degraded
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
    mirror.constants = {**CONSTANTS, "mirror.store.s3.store:REMEMBERED": 0.01}
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


def assert_right_or_reset(replicas: Replicas, outcome: Outcome) -> None:
    """The client got the image, or it saw that it did not."""
    assert outcome.ended == "reset" or outcome.sha256 == replicas.simulator.image_sha256("first")


DEEDS: Mapping[str, Callable[[Replicas], None]] = {
    "deleted": lambda replicas: replicas.bucket.delete(replicas.image),
    "overwritten, same size": lambda replicas: replicas.bucket.write(replicas.image, b"x" * SIZE),
    "overwritten, last byte": lambda replicas: replicas.bucket.write(
        replicas.image, replicas.simulator.read("first")[:-1] + b"x"
    ),
    "cut short": lambda replicas: replicas.bucket.write(replicas.image, replicas.simulator.read("first")[:MIB]),
}
by_hand = pytest.mark.parametrize("deed", DEEDS.values(), ids=DEEDS)


@KINDS
@by_hand
def test_what_was_done_to_the_object_by_hand_reaches_no_client_and_is_mended(
    replicas: Replicas, local_copy: bool, deed: Callable[[Replicas], None]
) -> None:
    with replicas.make(local_copy=local_copy) as mirror, replicas.make("late", local_copy=local_copy) as late:
        replicas.assert_right(fetch(mirror.image_url), STORED)
        eventually(replicas.arrived)
        deed(replicas)
        for each in (mirror, late):
            assert_right_or_reset(replicas, fetch(each.image_url))
        if local_copy:
            replicas.assert_right(fetch(mirror.image_url), HIT)
        eventually(lambda: fetch(late.image_url).ended == "complete", what="an end to resets")
        replicas.assert_right(fetch(late.image_url))
        eventually(replicas.arrived, what="a right image in the bucket")


@by_hand
def test_what_is_done_to_the_object_during_a_download_ends_it_with_the_right_bytes_or_a_reset(
    replicas: Replicas, front: Front, deed: Callable[[Replicas], None]
) -> None:
    with replicas.make(local_copy=False) as mirror:
        replicas.assert_right(fetch(mirror.image_url), STORED)
        eventually(replicas.arrived)
        front.rate = 4 * MIB
        image = "/images/[0-9a-f]{64}$"
        front.trouble(Trouble("GET", image, times=1, cut_after=3 * MIB), Trouble("GET", image, close=True))
        with Download(mirror.image_url) as download:
            assert download.header("Cache-Status") == HIT
            download.read(MIB)
            deed(replicas)
            front.clear()
            download.read_all()
            assert download.ended == "reset"
            assert replicas.simulator.read("first").startswith(download.body)
        eventually(lambda: fetch(mirror.image_url).ended == "complete", what="an end to resets")
        replicas.assert_right(fetch(mirror.image_url))


@KINDS
@pytest.mark.parametrize(
    "trouble",
    [
        Trouble("PUT", conditional=True, status=501, code="NotImplemented"),
        Trouble("PUT", conditional=True, unconditional=True),
    ],
    ids=["refuses conditions", "ignores conditions"],
)
def test_a_server_without_conditional_writes_costs_a_fetch_for_each_replica_and_that_is_said(
    replicas: Replicas, front: Front, local_copy: bool, trouble: Trouble
) -> None:
    front.trouble(trouble)
    replicas.simulator.set_rate(8 * MIB)
    with (
        replicas.make("one", local_copy=local_copy) as one,
        replicas.make("two", local_copy=local_copy) as two,
        ThreadPoolExecutor() as pool,
    ):
        for outcome in pool.map(lambda mirror: fetch(mirror.image_url), [one, two, one, two]):
            replicas.assert_right(outcome)
        assert replicas.simulator.counters().store_gets == 2
        for mirror in (one, two):
            assert mirror.log().count("it has no conditional writes") == 1
        eventually(replicas.arrived)
        replicas.assert_right(fetch(two.image_url), HIT)


@KINDS
def test_a_server_that_cannot_copy_within_itself_gets_each_part_twice_and_that_is_said(
    replicas: Replicas, front: Front, local_copy: bool
) -> None:
    front.trouble(Trouble("PUT", header="x-amz-copy-source", status=501, code="NotImplemented"))
    with replicas.make(local_copy=local_copy) as mirror:
        replicas.assert_right(fetch(mirror.image_url), STORED)
        eventually(replicas.arrived)
        assert mirror.log().count("cannot copy within itself") == 1
        assert health(mirror) == WELL
        assert fetch(mirror.image_url).cache_status == HIT


@pytest.mark.parametrize(
    ("local_copy", "trouble", "words"),
    [
        (True, Trouble("POST", "uploadId=", status=500, code="InternalError"), "an error of its own"),
        (False, Trouble("POST", "uploadId=", close=True), "the connection broke"),
    ],
    ids=["tiered, 500", "bucket only, no answer"],
)
def test_an_upload_that_somebody_aborts_while_it_cannot_be_completed_is_begun_anew_and_costs_no_fetch(
    replicas: Replicas, front: Front, local_copy: bool, trouble: Trouble, words: str
) -> None:
    def unfinished() -> list[dict[str, Any]]:
        return replicas.bucket.client.uploads(replicas.bucket.name)

    front.trouble(trouble)
    mirror = replicas.make(local_copy=local_copy)
    mirror.constants = {**CONSTANTS, "mirror.store.s3.journal:PUBLISHING": 0.5}
    with mirror:
        replicas.assert_right(fetch(mirror.image_url), STORED)
        eventually(lambda: words in health(mirror).degraded, what="word of it")
        assert mirror.actions().count("upload.paused") == 1
        (upload,) = unfinished()
        asked = len(front.asked("POST", "uploadId="))
        eventually(lambda: len(front.asked("POST", "uploadId=")) > asked + 3, what="another attempt")  # each is three
        assert unfinished() == [upload]
        assert words in health(mirror).degraded

        replicas.bucket.client.abort_upload(replicas.bucket.name, upload)
        eventually(lambda: "bucket.unpublished" in mirror.actions(), what="an end to attempts")
        front.clear()
        eventually(
            lambda: fetch(mirror.image_url).cache_status == HIT and replicas.arrived(), what="the image's arrival"
        )
        eventually(lambda: health(mirror) == WELL, what="recovery")
        assert unfinished() == []
        assert replicas.simulator.counters().store_gets == 1


def test_a_bucket_that_fails_just_after_an_image_was_completed_is_asked_again(replicas: Replicas, front: Front) -> None:
    replicas.simulator.set_rate(8 * MIB)
    with replicas.make(local_copy=True) as mirror:
        with Download(mirror.image_url) as download:
            eventually(lambda: front.asked("POST", "/images/[0-9a-f]{64}[?]uploads"), what="the upload's beginning")
            front.trouble(Trouble("HEAD", "/images/[0-9a-f]{64}$", status=500, code="InternalError"))
            download.read_all()
        eventually(replicas.arrived)
        eventually(lambda: "upload.paused" in mirror.actions(), what="word of it")
        front.clear()
        eventually(lambda: replicas.bucket.names("parts/") == replicas.bucket.names("leases/") == [], what="an end")
        assert "bucket.unpublished" not in mirror.actions()
        eventually(lambda: health(mirror) == WELL, what="recovery")


def test_what_keeps_an_upload_of_a_worker_from_going_on_is_in_degraded(replicas: Replicas, front: Front) -> None:
    front.trouble(Trouble("POST", "uploadId=", status=500, code="InternalError"))
    environ = {**replicas.bucket.server.environ, "PPS_MIRROR__SERVER__WORKERS": "2"}
    with replicas.make(local_copy=True, environ=environ) as mirror, Download(mirror.image_url) as download:
        download.read(1)
        eventually(lambda: "an error of its own" in health(mirror).degraded, 60, what="word of it")
