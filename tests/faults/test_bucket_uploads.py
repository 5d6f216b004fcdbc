"""Guarantee 8 with a bucket: what its server lacks or refuses when an image is uploaded is done without, and said."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from mirror.simulator.client import Fault
from tests.support.downloads import Download, fetch
from tests.support.fixtures import simulator_of, two_images
from tests.support.processes import eventually
from tests.support.s3.front import Front, Trouble
from tests.support.s3.replicas import HIT, KINDS, MIB, SIZE, STORED, TIMINGS, WELL, Replicas, health

shared_simulator = simulator_of(two_images(SIZE))


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
            assert mirror.settled.log().count("it has no conditional writes") == 1
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
        assert mirror.settled.log().count("cannot copy within itself") == 1
        eventually(lambda: health(mirror) == WELL, what="that it is well")
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
    mirror.timings = replace(TIMINGS, publishing=0.5)
    with mirror:
        replicas.assert_right(fetch(mirror.image_url), STORED)
        eventually(lambda: words in health(mirror).degraded, what="word of it")
        assert mirror.settled.actions().count("upload.paused") == 1
        (upload,) = unfinished()
        asked = len(front.asked("POST", "uploadId="))
        eventually(lambda: len(front.asked("POST", "uploadId=")) > asked + 3, what="another attempt")  # each is three
        assert unfinished() == [upload]
        eventually(lambda: words in health(mirror).degraded, what="word of it, still")

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
    replicas.simulator.fault(Fault("store", hang_after=SIZE * 3 // 4))
    with replicas.make(local_copy=True) as mirror:
        with Download(mirror.image_url) as download:
            eventually(lambda: front.asked("POST", "/images/[0-9a-f]{64}[?]uploads"), what="the upload's beginning")
            front.trouble(Trouble("HEAD", "/images/[0-9a-f]{64}$", status=500, code="InternalError"))
            replicas.simulator.wait_held()
            replicas.simulator.release()
            download.read_all()
        eventually(replicas.arrived)
        eventually(lambda: "upload.paused" in mirror.actions(), what="word of it")
        front.clear()
        eventually(lambda: replicas.bucket.names("parts/") == replicas.bucket.names("leases/") == [], what="an end")
        assert "bucket.unpublished" not in mirror.settled.actions()
        eventually(lambda: health(mirror) == WELL, what="recovery")


def test_what_keeps_an_upload_of_a_worker_from_going_on_is_in_degraded(replicas: Replicas, front: Front) -> None:
    front.trouble(Trouble("POST", "uploadId=", status=500, code="InternalError"))
    environ = {**replicas.bucket.server.environ, "PPS_MIRROR__SERVER__WORKERS": "2"}
    with replicas.make(local_copy=True, environ=environ) as mirror, Download(mirror.image_url) as download:
        download.read(1)
        eventually(lambda: "an error of its own" in health(mirror).degraded, 60, what="word of it")
