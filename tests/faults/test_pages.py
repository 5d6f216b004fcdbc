"""Guarantees 1 and 4: a page in the image's place (a portal, a filter) is a line that broke and no part of it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mirror.simulator.client import Fault, ImageSpec, Simulator
from mirror.simulator.objects import PAGE
from tests.support.admin import metric
from tests.support.downloads import Download, Outcome, fetch
from tests.support.forked import ForkedMirror

SIZE = 6 << 20
CUT = 3_000_001
PIECE = 4 << 20

ARCHIVE = "application/octet-stream"

Started = Callable[..., ForkedMirror]


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[Simulator]:
    with Simulator.start([ImageSpec("first", size=SIZE)]) as simulator:
        yield simulator


@pytest.fixture
def started(tmp_path: Path, simulator: Simulator) -> Iterator[Started]:
    """Starts the test's mirror, with these keys in the section `upstream`."""
    mirrors: list[ForkedMirror] = []

    def start(**upstream: Any) -> ForkedMirror:
        mirrors.append(ForkedMirror(tmp_path, simulator.api_url, {"upstream": upstream}))
        return mirrors[-1].start()

    yield start
    for mirror in mirrors:
        mirror.stop()


def assert_right(outcome: Outcome, simulator: Simulator) -> None:
    assert (outcome.status, outcome.ended) == (200, "complete")
    assert outcome.sha256 == simulator.image_sha256("first")


def assert_no_wrong_bytes(mirror: ForkedMirror) -> None:
    """Nothing counts as wrong, nothing was set aside."""
    assert metric(mirror, "verification_failures_total", where="fill") == 0
    assert metric(mirror, "fills_total", outcome="wrong_bytes") == 0
    assert not list((mirror.store / "quarantine").iterdir())


RECOGNISABLE = {
    "HTML, chunked": {"page": "text/html; charset=utf-8", "chunked": True},
    "HTML with its length": {"page": "text/html"},
    "plain text, chunked": {"page": "text/plain", "chunked": True},
    "JSON, chunked": {"page": "application/json", "chunked": True, "body": "{}"},
    "problem JSON with its length": {"page": "application/problem+json", "body": "{}"},
    "XML, chunked": {"page": "application/xml", "chunked": True},
    "HTML with an ETag": {"page": "Text/HTML", "chunked": True, "headers": {"ETag": '"a-page"'}},
}
recognisable = pytest.mark.parametrize("page", RECOGNISABLE.values(), ids=list(RECOGNISABLE))


@recognisable
def test_a_page_at_the_first_request_is_tried_again_and_no_byte_of_it_is_kept(
    started: Started, simulator: Simulator, page: dict[str, Any]
) -> None:
    simulator.fault(Fault("store", times=2, **page))
    mirror = started()
    assert_right(fetch(mirror.image_url), simulator)
    assert_no_wrong_bytes(mirror)
    assert [get.range for get in simulator.log("store")] == [None] * 3


@recognisable
def test_pages_at_a_resume_are_a_pause(started: Started, simulator: Simulator, page: dict[str, Any]) -> None:
    simulator.fault(Fault("store", cut_after=CUT), Fault("store", times=2, resumed=True, **page))
    mirror = started()
    assert_right(fetch(mirror.image_url), simulator)
    assert_no_wrong_bytes(mirror)
    assert [get.range for get in simulator.log("store")] == [None] + [f"bytes={CUT}-"] * 3
    assert simulator.bytes_sent() <= SIZE + PIECE


@pytest.mark.parametrize("redirect", ["store", "direct"])
def test_a_page_that_stays_is_said_to_be_one(started: Started, simulator: Simulator, redirect: str) -> None:
    simulator.fault(Fault("image", redirect=redirect, times=None))
    simulator.fault(Fault("store", page="text/html", chunked=True, times=None))
    mirror = started()
    with Download(mirror.image_url) as download:
        assert download.status == 502
        assert b"(text/html) in the image's place" in download.read_all().body
    assert_no_wrong_bytes(mirror)
    simulator.clear_faults()
    assert_right(fetch(mirror.image_url), simulator)


UNRECOGNISABLE = {
    "of no known type": {},
    "with an ETag": {"headers": {"ETag": '"a-page"'}},
    "longer than what is held back": {"body": PAGE * 300},
}


@pytest.mark.parametrize("page", UNRECOGNISABLE.values(), ids=list(UNRECOGNISABLE))
def test_what_cannot_be_told_from_the_image_is_not_built_on(
    started: Started, simulator: Simulator, page: dict[str, Any]
) -> None:
    simulator.fault(Fault("store", page=ARCHIVE, chunked=True, **page))
    simulator.set_rate(2 << 20)  # or all of the image would be in the kernel's buffers before it is compared
    mirror = started()
    first = fetch(mirror.image_url)
    assert first.status == 502 or first.ended == "reset"
    simulator.set_rate(None)
    assert_right(fetch(mirror.image_url), simulator)
    assert_no_wrong_bytes(mirror)
    assert simulator.bytes_sent() <= SIZE + PIECE, "more of the image was fetched than was needed to see it"


def test_what_cannot_be_told_from_the_image_at_a_resume_is_a_pause(started: Started, simulator: Simulator) -> None:
    simulator.fault(Fault("store", cut_after=CUT), Fault("store", page=ARCHIVE, chunked=True, resumed=True, times=2))
    mirror = started()
    assert_right(fetch(mirror.image_url), simulator)
    assert_no_wrong_bytes(mirror)
    assert simulator.bytes_sent() <= SIZE + PIECE


@pytest.mark.parametrize("media_type", ["application/gzip", "application/x-tar", ARCHIVE, "x-anything/at-all"])
@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "chunked"])
@pytest.mark.parametrize("etag", [False, True], ids=["no ETag", "an ETag"])
def test_an_image_may_come_as_any_archive_and_is_resumed(
    started: Started, simulator: Simulator, media_type: str, chunked: bool, etag: bool
) -> None:
    headers = {"Content-Type": media_type} | ({} if etag else {"Last-Modified": None, "ETag": None})
    simulator.fault(Fault("store", headers=headers, chunked=chunked, times=None), Fault("store", cut_after=CUT))
    mirror = started()
    assert_right(fetch(mirror.image_url), simulator)
    vouched = etag or not chunked
    assert [get.range for get in simulator.log("store")] == [None, f"bytes={CUT}-" if vouched else None]


@pytest.mark.parametrize("media_type", ["text/plain", "text/html"])
def test_what_has_the_images_length_is_taken_whatever_its_type(
    started: Started, simulator: Simulator, media_type: str
) -> None:
    simulator.fault(Fault("store", headers={"Content-Type": media_type}, times=None))
    assert_right(fetch(started().image_url), simulator)
