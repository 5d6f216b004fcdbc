"""A request's line in JSON: made by hand or by way of a record, it is the same, and no secret gets into it."""

import io
import json
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from mirror.common.log import JsonFormatter, Output, access
from mirror.common.log_writer import LogWriter
from mirror.http.access_log import AccessLog
from mirror.http.connection import HttpConnection
from mirror.http.exchange import Exchange
from mirror.model.cache_status import CacheStatus

IDS = st.text("abcXYZ019._:@/+=-", min_size=1, max_size=20) | st.sampled_from(
    ["https://me:secret@there", "a", "Bearer"]
)
PATHS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x17F), max_size=20) | st.sampled_from(
    [
        "api/v2/modelDeployments/portablePredictionServerImage/",
        "https://me:secret@there/x",
        'a"b\\c',
        "%20Token%20x",
        "TOKEN",
        "a/basic",
        "x" * 300,
    ]
)


class Lines:
    """Takes what the writer of the log would write."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    def write(self, line: str, *, important: bool = False, waits: bool = False) -> None:
        self.taken.append(line)


@pytest.fixture
def quiet_root() -> Iterator[None]:
    """No log but ours."""
    level, propagate = access.level, access.propagate
    access.setLevel(logging.INFO)
    access.propagate = False
    yield
    access.setLevel(level)
    access.propagate = propagate


def written(exchange: Exchange, seconds: float, *, by_hand: bool) -> dict[str, Any]:
    """The line that one request gets."""
    lines, stream = Lines(), io.StringIO()
    output = Output(stream, writer=cast("LogWriter", lines) if by_hand else None)
    output.setFormatter(JsonFormatter())
    access.handlers[:] = [output]
    try:
        AccessLog(output)(exchange, seconds)
    finally:
        access.handlers.clear()
    [line] = lines.taken or stream.getvalue().splitlines()
    fields: dict[str, Any] = json.loads(line)
    return fields


def an_exchange(method: str, path: str, remote: str, request_id: str) -> Exchange:
    request = SimpleNamespace(method=method, rel_url=URL.build(path=f"/{path}", encoded=True), remote=remote)
    return Exchange(cast("web.BaseRequest", request), cast("HttpConnection", None), request_id)


@pytest.mark.usefixtures("quiet_root")
def test_a_line_made_by_hand_is_the_one_that_a_record_becomes() -> None:
    @given(
        st.sampled_from(["GET", "HEAD", "QUERY", "x'y"]),
        PATHS,
        st.sampled_from(["127.0.0.1", "::ffff:10.0.0.1", "fe80::1%eth0"]),
        IDS,
        st.sampled_from([None, *CacheStatus]),
        st.none() | st.integers(0, 1 << 40),
        st.floats(0, 1e6),
    )
    def check(
        method: str,
        path: str,
        remote: str,
        request_id: str,
        cache: CacheStatus | None,
        size: int | None,
        seconds: float,
    ) -> None:
        exchange = an_exchange(method, path, remote, request_id)
        exchange.route, exchange.cache_status, exchange.size, exchange.sent = "image", cache, size, size or 0
        if size is not None:
            exchange.response = web.Response(status=206)
        by_hand, by_record = (written(exchange, seconds, by_hand=each) for each in (True, False))
        assert list(by_hand) == list(by_record)
        assert {**by_hand, "@timestamp": ""} == {**by_record, "@timestamp": ""}
        assert by_hand["@timestamp"][:11] == by_record["@timestamp"][:11]
        assert len(by_hand["@timestamp"]) == len(by_record["@timestamp"])
        assert "secret" not in json.dumps(by_hand)

    check()


@pytest.mark.usefixtures("quiet_root")
def test_what_may_have_a_secret_or_needs_escaping_goes_by_way_of_a_record() -> None:
    lines = Lines()
    output = Output(io.StringIO(), writer=cast("LogWriter", lines))
    output.setFormatter(JsonFormatter())
    access.handlers[:] = [output]
    try:
        for path in ("plain", "https://me:secret@there/", 'a"b', "tab\there"):
            AccessLog(output)(an_exchange("GET", path, "127.0.0.1", "id"), 0.1)
    finally:
        access.handlers.clear()
    paths = [json.loads(line)["url.path"] for line in lines.taken]
    assert paths[:3] == ["/plain", "/https://[redacted]@there/", '/a"b']
    assert "\t" not in paths[3]
