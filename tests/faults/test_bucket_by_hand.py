"""Guarantee 8 with a bucket: somebody changes or removes an object, and clients get the right bytes or a reset."""

from collections.abc import Callable, Mapping

import pytest

from tests.support.downloads import Download, Outcome, fetch
from tests.support.fixtures import simulator_of, two_images
from tests.support.processes import eventually
from tests.support.s3.front import Front, Trouble
from tests.support.s3.replicas import HIT, KINDS, MIB, SIZE, STORED, Replicas

shared_simulator = simulator_of(two_images(SIZE))


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
