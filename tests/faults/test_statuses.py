"""What upstream and its redirect targets answer: what passes is tried again, as late as it asks; the rest is final."""

import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from mirror.config import Upstream as UpstreamConfig
from mirror.model.caller import Caller
from mirror.model.errors import BadUpstream, LoopDetected, MirrorError, Unavailable, UpstreamRefused, UpstreamTimeout
from mirror.model.metadata import ImageMetadata
from mirror.model.source import Broken, Changed
from mirror.simulator.client import TOKEN, Fault, Simulator
from mirror.upstream.client import Upstream
from mirror.upstream.image_source import TRIES, ImageSource
from mirror.upstream.proxies import Proxies
from mirror.upstream.statuses import TABLE, Meaning, meaning, retry_after
from tests.support.downloads import fetch
from tests.support.fixtures import Ask
from tests.support.forked import ForkedMirror

RFC_9110 = {
    *(100, 101, *range(200, 207), *range(300, 309)),
    *(*range(400, 419), 421, 422, 426, *range(500, 506)),
}
RFC_6585 = {428, 429, 431, 511}
PASSING = {408, 421, 425, 429, 500, 502, 503, 504, 511, 599}
OTHERS = {425, 451, 499, 508, 599}

CALLER = Caller(f"Bearer {TOKEN}", "test")

answered = pytest.mark.parametrize("status", sorted((RFC_9110 | RFC_6585 | OTHERS) - {100, 101}))


def test_every_status_of_the_rfcs_has_a_row() -> None:
    assert TABLE.keys() >= RFC_9110 | RFC_6585
    assert {status for status in TABLE if meaning(status) is Meaning.PASSES} == PASSING - {599}


@pytest.fixture
async def upstream(simulator: Simulator) -> AsyncIterator[Upstream]:
    config = UpstreamConfig(url=simulator.api_url)
    async with Upstream(config, simulator.api_url, Proxies()) as upstream:
        yield upstream


async def source_of(upstream: Upstream) -> ImageSource:
    return ImageSource(upstream, await upstream.metadata(CALLER), CALLER)


async def error_of(source: ImageSource, offset: int) -> Exception | None:
    """What comes of asking for the image from there; None for bytes."""
    try:
        async with source.open(offset, None):
            return None
    except (Broken, Changed, MirrorError) as error:
        return error


async def assert_starts_over(source: ImageSource, error: Exception | None) -> None:
    """The range is not asked for again, and that is not tried for ever."""
    assert isinstance(error, Broken)
    assert (error.retry_after, error.definitive_after) == (None, TRIES)
    async with source.open(1000, None) as stream:
        assert stream.offset == 0


@answered
async def test_metadata(upstream: Upstream, simulator: Simulator, status: int) -> None:
    simulator.fault(Fault("metadata", status=status, headers={"Retry-After": "7"}))
    try:
        assert isinstance(await upstream.metadata(CALLER), ImageMetadata)
        error = None
    except MirrorError as raised:
        error = raised
    if status in {200, 401, 403, 404, 429, 508}:
        kinds = {200: BadUpstream, 508: LoopDetected}  # 200 with an error's body
        assert isinstance(error, kinds.get(status, UpstreamRefused))
    elif status in PASSING:
        assert isinstance(error, Unavailable | UpstreamTimeout | BadUpstream)
        assert (error.retry_after, "makes no sense" in error.message) == (7, False)
        assert status >= 500 or error.status == 503
    else:
        assert isinstance(error, BadUpstream)
        assert error.retry_after is None


@answered
@pytest.mark.parametrize("offset", [0, 1000], ids=["first", "resume"])
async def test_the_image(upstream: Upstream, simulator: Simulator, status: int, offset: int) -> None:
    source = await source_of(upstream)
    simulator.fault(Fault("image", status=status, headers={"Retry-After": "7"}))
    error = await error_of(source, offset)
    if status in {401, 403, 404} or (status == 429 and not offset):
        assert isinstance(error, UpstreamRefused)
        assert error.retry_after == 7
    elif status in PASSING:
        assert isinstance(error, Broken)
        assert (error.retry_after, error.definitive_after) == (7, None)
    elif status in {301, 302, 303, 307, 308}:
        assert error is None
    elif status == 200:  # with an error's body, of type application/json
        assert isinstance(error, Broken)
    elif status == 206 and offset:
        assert isinstance(error, Changed)
    elif status == 416 and offset:
        await assert_starts_over(source, error)
    else:
        assert isinstance(error, LoopDetected if status == 508 else BadUpstream)


@answered
@pytest.mark.parametrize("offset", [0, 1000], ids=["first", "resume"])
async def test_a_redirect_target(upstream: Upstream, simulator: Simulator, status: int, offset: int) -> None:
    source = await source_of(upstream)
    simulator.fault(Fault("store", status=status, headers={"Retry-After": "7"}))
    error = await error_of(source, offset)
    if status == 206 and offset:
        assert isinstance(error, Changed)
    elif status == 416 and offset:
        await assert_starts_over(source, error)
    else:
        assert isinstance(error, Broken)
        if status != 200:
            assert (error.retry_after, error.definitive_after) == (7, None if status in PASSING else TRIES)


@pytest.mark.parametrize("status", [408, 421, 425])
def test_a_fill_outlives_what_passes(tmp_path: Path, simulator: Simulator, status: int) -> None:
    places: tuple[Any, Any] = ("image", "store")
    simulator.fault(*(Fault(place, status=status) for place in places), Fault("store", cut_after=1_000_000))
    simulator.fault(*(Fault(place, status=status, resumed=True) for place in places))
    with ForkedMirror(tmp_path, simulator.api_url) as mirror:
        outcome = fetch(mirror.image_url)
    assert (outcome.status, outcome.sha256) == (200, simulator.image_sha256("first"))


NOW = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)


def test_retry_after_as_a_date_in_any_form_counts_from_the_answers_own_date() -> None:
    for late in ("Mon, 06 May 2024 07:08:39 GMT", "Monday, 06-May-24 07:08:39 GMT", "Mon May  6 07:08:39 2024"):
        assert retry_after({"Retry-After": late}, NOW) == 30
        assert retry_after({"Retry-After": late, "Date": "Mon, 06 May 2024 07:08:29 GMT"}, NOW) == 10
        assert retry_after({"Retry-After": late, "Date": "Mon, 06 May 2024 09:00:00 GMT"}, NOW) == 0
    assert retry_after({"Retry-After": "Mon, 06 May 2030 07:08:39 GMT"}, NOW) == 3600
    assert retry_after({"Retry-After": "120"}, NOW) == 120
    assert retry_after({"Retry-After": "9" * 400}, NOW) == 3600
    for nothing in ("", "soon", "-1", "1.5", "\u0661"):
        assert retry_after({"Retry-After": nothing}, NOW) is None


def in_seconds(seconds: int) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


def test_a_date_is_waited_for_and_told_to_clients(tmp_path: Path, simulator: Simulator, ask: Ask) -> None:
    simulator.fault(Fault("metadata", status=503, headers={"Retry-After": in_seconds(600), "Date": in_seconds(0)}))
    with ForkedMirror(tmp_path, simulator.api_url) as mirror:
        answer = ask(mirror.metadata_url)
        assert (answer.status, answer.header("Retry-After")) == (503, "600")
        simulator.fault(Fault("store", status=503, headers={"Retry-After": in_seconds(3), "Date": in_seconds(0)}))
        began = time.monotonic()
        assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")
        assert time.monotonic() - began >= 3


@pytest.mark.parametrize("status", [401, 403])
def test_a_redirect_within_upstream_that_wants_the_token_is_told_from_a_bad_token(
    tmp_path: Path, simulator: Simulator, ask: Ask, status: int
) -> None:
    simulator.fault(
        Fault("image", redirect="relative", times=None), Fault("store", status=status, times=None), Fault("image")
    )
    with ForkedMirror(tmp_path, simulator.api_url) as mirror:
        answer = ask(mirror.image_url)
    assert answer.status == 502
    message = json.loads(answer.body)["message"]
    assert "the credential was withheld" in message
    assert "upstream.url" in message
    assert {asked.authorization for asked in simulator.log("store")} == {None}
