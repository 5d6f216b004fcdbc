"""Each request to upstream and to redirect targets is one on the line; whoever asks decides on another."""

from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mirror.simulator.client import Fault, Simulator
from mirror.upstream import connection as line
from mirror.upstream.connection import NoAnswer
from tests.support.admin import metric
from tests.support.downloads import AUTHORIZED, fetch
from tests.support.fixtures import Ask
from tests.support.forked import ForkedMirror
from tests.support.processes import METADATA

dropped = pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])


@dropped
async def test_aiohttp_by_itself_asks_again_and_with_us_it_does_not(simulator: Simulator, reset: bool) -> None:
    for middlewares, expected, times in (((), aiohttp.ClientConnectionError, 2), ((line._once,), NoAnswer, 1)):
        simulator.reset_log()
        simulator.fault(Fault("metadata", drop=True, reset=reset, times=2))
        async with aiohttp.ClientSession(middlewares=middlewares) as session:
            with pytest.raises(expected):
                await session.get(simulator.api_url + METADATA, headers=AUTHORIZED)
        assert simulator.counters().metadata_requests == times
        simulator.clear_faults()


@dropped
@pytest.mark.parametrize("place", ["image", "store"])
def test_a_url_that_is_good_for_one_request_is_asked_for_once(
    tmp_path: Path, simulator: Simulator, place: Any, reset: bool
) -> None:
    simulator.fault(Fault("image", uses=1, times=None), Fault(place, drop=True, reset=reset, times=2))
    with ForkedMirror(tmp_path, simulator.api_url) as mirror:
        assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")
    queries = [asked.query for asked in simulator.log("store")]
    assert len(set(queries)) == len(queries) == (3 if place == "store" else 1)
    assert simulator.counters().image_requests == 3


@dropped
def test_a_kept_connection_that_has_ended_is_no_503_and_is_counted(
    tmp_path: Path, simulator: Simulator, ask: Ask, reset: bool
) -> None:
    with ForkedMirror(tmp_path, simulator.api_url, {"upstream": {"metadata_ttl": "0s"}}) as mirror:
        assert ask(mirror.metadata_url).status == 200
        simulator.fault(Fault("metadata", drop=True, reset=reset))
        assert ask(mirror.metadata_url).status == 200
        assert simulator.counters().metadata_requests == 3
        assert metric(mirror, "upstream_requests_total", request="metadata", outcome="repeated") == 1
        assert "upstream.repeated" in mirror.settled.actions()


@dropped
def test_a_new_connection_that_ends_without_an_answer_is_not_asked_on_again(
    tmp_path: Path, simulator: Simulator, ask: Ask, reset: bool
) -> None:
    simulator.fault(Fault("metadata", drop=True, reset=reset))
    with ForkedMirror(tmp_path, simulator.api_url) as mirror:
        assert ask(mirror.metadata_url).status == 503
        assert simulator.counters().metadata_requests == 1
