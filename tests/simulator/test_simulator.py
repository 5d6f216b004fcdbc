"""The simulator itself: a real process, asked over real connections by a client that follows nothing on its own."""

import http.client
import itertools
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import pytest

from mirror.simulator.api import IMAGE, METADATA, VERSION
from mirror.simulator.client import TOKEN, Fault, ImageSpec, Simulator, SimulatorFailed, fingerprint, launch
from tests.support.needs import needs

SIZE = 3_000_001  # not a multiple of any block or piece
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


@dataclass(frozen=True)
class Answer:
    """What came back; `broken` is how the body ended, if not well."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    broken: type[Exception] | None = None

    def json(self) -> Any:
        return json.loads(self.body)


def get(
    url: str, headers: Mapping[str, str] | None = None, method: str = "GET", tls: ssl.SSLContext | None = None
) -> Answer:
    """One request on a connection of its own; a broken body is returned as far as it came."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    if tls is None:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    else:
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=10, context=tls)
    try:
        connection.request(method, f"{parts.path}?{parts.query}" if parts.query else parts.path, headers=headers or {})
        with connection.getresponse() as response:
            body, broken = bytearray(), None
            try:
                while piece := response.read1(1 << 16):
                    body += piece
            except (http.client.IncompleteRead, ConnectionError) as error:
                body += getattr(error, "partial", b"")
                broken = type(error)
            if method == "GET" and response.length:
                broken = broken or http.client.IncompleteRead
            return Answer(response.status, dict(response.getheaders()), bytes(body), broken)
    finally:
        connection.close()


def presigned(simulator: Simulator) -> str:
    """A fresh URL of the bytes."""
    answer = get(simulator.api_url + IMAGE, AUTHORIZED)
    assert 300 <= answer.status < 400
    return urljoin(simulator.api_url + IMAGE, answer.headers["Location"])


def download(simulator: Simulator, headers: Mapping[str, str] | None = None) -> Answer:
    """The bytes, through a fresh redirect."""
    return get(presigned(simulator), headers)


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[Simulator]:
    images = [ImageSpec("old", SIZE), ImageSpec("new", SIZE + 17)]
    with Simulator.start(images, tokens=[TOKEN, "second"], forbidden=["forbidden"]) as simulator:
        yield simulator
    assert simulator.errors() == ""


class TestApi:
    def test_metadata_is_true_and_byte_for_byte_what_the_client_says(self, simulator: Simulator) -> None:
        answer = get(simulator.api_url + METADATA, AUTHORIZED)
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.body == simulator.metadata_body("old")
        assert answer.json() == simulator.metadata("old")
        assert answer.json()["hash"] == simulator.image_sha256("old")
        assert answer.json()["imageSize"] == simulator.image_size("old") == SIZE
        assert len(answer.json()["shortDockerImageId"]) == 12

    @pytest.mark.parametrize("path", [METADATA, VERSION])
    def test_head_answers_as_get_without_a_body(self, simulator: Simulator, path: str) -> None:
        got, head = (get(simulator.api_url + path, AUTHORIZED, method) for method in ("GET", "HEAD"))
        assert (head.status, head.body) == (200, b"")
        assert head.headers["Content-Length"] == got.headers["Content-Length"] == str(len(got.body))

    def test_head_of_the_image_redirects_too(self, simulator: Simulator) -> None:
        assert get(simulator.api_url + IMAGE, AUTHORIZED, "HEAD").status == 302
        assert simulator.counters().image_requests == 0

    def test_version_says_what_the_official_client_reads(self, simulator: Simulator) -> None:
        assert get(simulator.api_url + VERSION, AUTHORIZED).json()["versionString"] == "2.36.0"

    @pytest.mark.parametrize(
        ("authorization", "status"),
        [
            (None, 401),
            ("Bearer wrong", 401),
            (TOKEN, 401),
            ("Basic second", 401),
            ("Bearer forbidden", 403),
            ("Token second", 200),
            ("Bearer second", 200),
        ],
    )
    def test_credentials(self, simulator: Simulator, authorization: str | None, status: int) -> None:
        headers = {} if authorization is None else {"Authorization": authorization}
        for path, good in ((METADATA, 200), (IMAGE, 302), (VERSION, 200)):
            answer = get(simulator.api_url + path, headers)
            assert answer.status == (good if status == 200 else status)
            if status != 200:
                assert answer.headers["Content-Type"] == "application/json"
                assert answer.json()["message"]

    def test_tokens_can_be_revoked(self, simulator: Simulator) -> None:
        simulator.set_tokens(["second"], forbidden=[TOKEN])
        assert get(simulator.api_url + METADATA, AUTHORIZED).status == 403

    def test_no_image_is_404(self, simulator: Simulator) -> None:
        simulator.roll_over("none")
        for path in (METADATA, IMAGE, "/api/v2/nothing/", METADATA.rstrip("/")):
            answer = get(simulator.api_url + path, AUTHORIZED)
            assert (answer.status, answer.headers["Content-Type"]) == (404, "application/json")
            assert answer.json()["message"]


class TestStore:
    def test_the_image_is_a_redirect_to_the_other_port_and_its_bytes_are_right(self, simulator: Simulator) -> None:
        url = presigned(simulator)
        assert url.startswith(simulator.store_url)
        assert {"X-Amz-Signature", "X-Amz-Expires"} <= parse_qs(urlsplit(url).query).keys()
        answer = get(url)
        assert (answer.status, answer.broken) == (200, None)
        assert answer.body == simulator.read("old")
        assert answer.headers["Content-Length"] == str(SIZE)
        assert answer.headers["Accept-Ranges"] == "bytes"
        assert simulator.image_sha256("old") not in answer.headers["ETag"]

    def test_another_credential_is_one_too_many(self, simulator: Simulator) -> None:
        answer = get(presigned(simulator), AUTHORIZED)
        assert answer.status == 400
        assert b"Only one auth mechanism allowed" in answer.body
        assert answer.headers["Content-Type"] == "application/xml"

    def test_head_was_not_signed_for(self, simulator: Simulator) -> None:
        assert get(presigned(simulator), method="HEAD").status == 403

    def test_a_wrong_or_missing_signature_is_refused(self, simulator: Simulator) -> None:
        url = presigned(simulator)
        for wrong in (
            url[:-1] + ("0" if url[-1] != "0" else "1"),
            url.partition("?")[0],
            url.replace("/old/", "/new/"),
        ):
            answer = get(wrong)
            assert (answer.status, answer.body[:5]) == (403, b"<?xml")

    def test_an_expired_url_is_refused(self, simulator: Simulator) -> None:
        simulator.fault(Fault("image", expires_in=-1))
        answer = download(simulator)
        assert answer.status == 403
        assert b"Request has expired" in answer.body
        assert download(simulator).status == 200

    def test_a_once_only_url_works_once(self, simulator: Simulator) -> None:
        simulator.fault(Fault("image", uses=1))
        url = presigned(simulator)
        assert [get(url).status for _ in range(2)] == [200, 403]

    @pytest.mark.parametrize(
        ("header", "start", "stop"),
        [
            ("bytes=0-0", 0, 1),
            ("bytes=1048570-1048590", 1048570, 1048591),
            ("bytes=2999999-", 2999999, SIZE),
            ("bytes=-5", SIZE - 5, SIZE),
            ("bytes=2999999-99999999", 2999999, SIZE),
        ],
    )
    def test_a_range_is_206(self, simulator: Simulator, header: str, start: int, stop: int) -> None:
        answer = download(simulator, {"Range": header})
        assert answer.status == 206
        assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"
        assert answer.body == simulator.read("old", start, stop)

    @pytest.mark.parametrize("header", ["bytes=5-1", "bytes=0-1,3-4", "lines=1-2", "bytes=x-"])
    def test_a_range_that_means_nothing_is_ignored(self, simulator: Simulator, header: str) -> None:
        assert download(simulator, {"Range": header}).status == 200

    def test_a_range_beyond_the_end_is_416(self, simulator: Simulator) -> None:
        answer = download(simulator, {"Range": f"bytes={SIZE}-"})
        assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{SIZE}")

    def test_if_range_decides_between_the_rest_and_the_whole(self, simulator: Simulator) -> None:
        whole = download(simulator).headers
        for validator, status in ((whole["ETag"], 206), (whole["Last-Modified"], 206), ('"other"', 200)):
            assert download(simulator, {"Range": "bytes=9-", "If-Range": validator}).status == status

    def test_a_connection_serves_several_requests(self, simulator: Simulator) -> None:
        parts = urlsplit(presigned(simulator))
        connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=10)
        for _ in range(2):
            connection.request("GET", f"{parts.path}?{parts.query}")
            port = connection.sock.getsockname()[1]
            assert connection.getresponse().read() == simulator.read("old")
        assert connection.sock.getsockname()[1] == port
        connection.close()


class TestRedirects:
    @pytest.mark.parametrize("status", [301, 303, 307, 308])
    def test_other_statuses(self, simulator: Simulator, status: int) -> None:
        simulator.fault(Fault("image", status=status, times=2))
        assert get(simulator.api_url + IMAGE, AUTHORIZED).status == status
        assert download(simulator).body == simulator.read("old")

    def test_direct_is_200_from_the_api(self, simulator: Simulator) -> None:
        simulator.fault(Fault("image", redirect="direct", times=None))
        answer = get(simulator.api_url + IMAGE, AUTHORIZED)
        assert (answer.status, answer.body) == (200, simulator.read("old"))
        head = get(simulator.api_url + IMAGE, AUTHORIZED, "HEAD")
        assert (head.headers["Content-Length"], head.body) == (str(SIZE), b"")
        ranged = get(simulator.api_url + IMAGE, {**AUTHORIZED, "Range": "bytes=7-8"})
        assert (ranged.status, ranged.body) == (206, simulator.read("old", 7, 9))
        simulator.fault(Fault("store", cut_after=10))
        assert len(get(simulator.api_url + IMAGE, AUTHORIZED).body) == 10

    @pytest.mark.parametrize("redirect", ["origin", "relative"])
    def test_same_origin_refuses_authorization_as_the_store_does(self, simulator: Simulator, redirect: str) -> None:
        simulator.fault(Fault("image", redirect=redirect, times=None))
        location = get(simulator.api_url + IMAGE, AUTHORIZED).headers["Location"]
        assert location.startswith("/" if redirect == "relative" else simulator.api_url)
        url = presigned(simulator)
        assert url.startswith(simulator.api_url)
        assert get(url).body == simulator.read("old")
        assert get(url, AUTHORIZED).status == 400
        assert {each.listener for each in simulator.log("store")} == {"api"}

    def test_hops_are_followed_by_relative_locations(self, simulator: Simulator) -> None:
        simulator.fault(Fault("image", hops=3))
        url, hops = presigned(simulator), 0
        assert get(url, AUTHORIZED).status == 400
        while (answer := get(url)).status == 302:
            assert "://" not in answer.headers["Location"]
            url, hops = urljoin(url, answer.headers["Location"]), hops + 1
        assert (hops, answer.body) == (3, simulator.read("old"))

    def test_a_loop_never_ends(self, simulator: Simulator) -> None:
        simulator.fault(Fault("image", redirect="loop"))
        urls = [presigned(simulator)]
        for _ in range(12):
            answer = get(urls[-1])
            assert answer.status == 302
            urls.append(urljoin(urls[-1], answer.headers["Location"]))
        assert len(set(urls)) == 13

    def test_any_url(self, simulator: Simulator) -> None:
        simulator.fault(Fault("image", redirect="http://169.254.169.254/latest/meta-data"))
        assert presigned(simulator) == "http://169.254.169.254/latest/meta-data"
        with pytest.raises(ValueError, match="redirect is one of"):
            Fault("image", redirect="nowhere")


class TestMetadataFaults:
    def test_false_and_missing_fields(self, simulator: Simulator) -> None:
        simulator.fault(Fault("metadata", values={"imageSize": 5, "news": [1]}, omit=("hash",)))
        expected = {**simulator.metadata("old"), "imageSize": 5, "news": [1]}
        del expected["hash"]
        assert get(simulator.api_url + METADATA, AUTHORIZED).json() == expected
        assert get(simulator.api_url + METADATA, AUTHORIZED).json() == simulator.metadata("old")

    def test_any_body(self, simulator: Simulator) -> None:
        simulator.fault(Fault("metadata", body="<html>", headers={"Content-Type": "text/html"}))
        answer = get(simulator.api_url + METADATA, AUTHORIZED)
        assert (answer.status, answer.body, answer.headers["Content-Type"]) == (200, b"<html>", "text/html")


class TestErrors:
    @pytest.mark.parametrize("place", ["version", "metadata", "image", "store"])
    def test_a_status_with_retry_after_anywhere(self, simulator: Simulator, place: Any) -> None:
        paths = {"version": VERSION, "metadata": METADATA, "image": IMAGE}
        url = presigned(simulator) if place == "store" else simulator.api_url + paths[place]
        headers = {} if place == "store" else AUTHORIZED
        simulator.fault(Fault(place, status=503, headers={"Retry-After": "7"}, times=2))
        for _ in range(2):
            answer = get(url, headers)
            assert (answer.status, answer.headers["Retry-After"]) == (503, "7")
        assert get(url, headers).status in (200, 302)

    def test_a_dropped_connection_answers_nothing(self, simulator: Simulator) -> None:
        simulator.fault(Fault("metadata", drop=True), Fault("metadata", drop=True, reset=True))
        with pytest.raises(http.client.RemoteDisconnected):
            get(simulator.api_url + METADATA, AUTHORIZED)
        with pytest.raises(ConnectionResetError):
            get(simulator.api_url + METADATA, AUTHORIZED)
        assert [each.status for each in simulator.log("metadata")] == [None, None]

    def test_a_late_answer(self, simulator: Simulator) -> None:
        simulator.fault(Fault("metadata", delay=0.2))
        began = time.monotonic()
        assert get(simulator.api_url + METADATA, AUTHORIZED).status == 200
        assert time.monotonic() - began >= 0.2


class TestBrokenBodies:
    @pytest.mark.parametrize(
        ("reset", "error"), [(False, http.client.IncompleteRead), (True, ConnectionResetError)], ids=["fin", "reset"]
    )
    def test_a_cut_comes_after_exactly_that_many_bytes(
        self, simulator: Simulator, reset: bool, error: type[Exception]
    ) -> None:
        simulator.fault(Fault("store", cut_after=1_234_567, reset=reset))
        answer = download(simulator, {"Range": "bytes=5-"})
        assert answer.body == simulator.read("old", 5, 5 + 1_234_567)
        assert answer.broken is error
        assert simulator.bytes_sent() == simulator.log("store")[0].sent == 1_234_567

    def test_cuts_in_a_row_take_turns(self, simulator: Simulator) -> None:
        simulator.fault(Fault("store", cut_after=10, times=2), Fault("store", cut_after=20))
        assert [len(download(simulator).body) for _ in range(4)] == [10, 10, 20, SIZE]

    def test_a_corrupt_byte(self, simulator: Simulator) -> None:
        simulator.fault(Fault("store", corrupt_at=SIZE - 1))
        answer, right = download(simulator), simulator.read("old")
        assert answer.body[:-1] == right[:-1]
        assert answer.body[-1] != right[-1]

    @pytest.mark.parametrize("extra", [-100, 100])
    def test_fewer_and_more_bytes_than_declared(self, simulator: Simulator, extra: int) -> None:
        simulator.fault(Fault("store", send_extra=extra))
        answer = raw_body(presigned(simulator))
        assert answer == simulator.read("old")[: SIZE + extra] + bytes(max(0, extra))

    @pytest.mark.parametrize("extra", [-100, 100])
    def test_a_content_length_that_lies(self, simulator: Simulator, extra: int) -> None:
        simulator.fault(Fault("store", declare_extra=extra, times=2))
        assert download(simulator).headers["Content-Length"] == str(SIZE + extra)
        assert raw_body(presigned(simulator)) == simulator.read("old")

    def test_a_consistently_short_answer(self, simulator: Simulator) -> None:
        simulator.fault(Fault("store", declare_extra=-100, send_extra=-100))
        answer = download(simulator)
        assert (answer.body, answer.broken) == (simulator.read("old", 0, SIZE - 100), None)

    def test_chunked_has_no_length(self, simulator: Simulator) -> None:
        simulator.fault(Fault("store", chunked=True))
        answer = download(simulator)
        assert (answer.body, answer.broken) == (simulator.read("old"), None)
        assert "Content-Length" not in answer.headers

    def test_chunked_with_a_clean_early_end(self, simulator: Simulator) -> None:
        simulator.fault(Fault("store", chunked=True, send_extra=-100))
        answer = download(simulator)
        assert (answer.body, answer.broken) == (simulator.read("old", 0, SIZE - 100), None)

    def test_chunked_cut_short(self, simulator: Simulator) -> None:
        simulator.fault(Fault("store", chunked=True, cut_after=1000))
        answer = download(simulator)
        assert (answer.body, answer.broken) == (simulator.read("old", 0, 1000), http.client.IncompleteRead)

    def test_content_encoding_is_a_header_only(self, simulator: Simulator) -> None:
        simulator.fault(Fault("store", headers={"Content-Encoding": "gzip"}))
        answer = download(simulator)
        assert (answer.headers["Content-Encoding"], answer.body) == ("gzip", simulator.read("old"))


class TestResume:
    def test_no_range_support(self, simulator: Simulator) -> None:
        simulator.fault(Fault("store", ranges=False))
        answer = download(simulator, {"Range": "bytes=5-"})
        assert (answer.status, len(answer.body)) == (200, SIZE)
        assert "Accept-Ranges" not in answer.headers

    def test_only_resumed_requests_are_meant(self, simulator: Simulator) -> None:
        simulator.fault(Fault("store", status=416, resumed=True, headers={"Content-Range": "bytes */9"}))
        assert download(simulator).status == 200
        answer = download(simulator, {"Range": "bytes=5-"})
        assert (answer.status, answer.headers["Content-Range"]) == (416, "bytes */9")

    def test_another_etag_and_another_range(self, simulator: Simulator) -> None:
        simulator.fault(Fault("store", headers={"ETag": '"other"', "Content-Range": "bytes 1-2/3"}))
        answer = download(simulator, {"Range": "bytes=5-"})
        assert (answer.headers["ETag"], answer.headers["Content-Range"]) == ('"other"', "bytes 1-2/3")

    def test_an_earlier_start_than_asked_for(self, simulator: Simulator) -> None:
        simulator.fault(Fault("store", range_shift=-10))
        answer = download(simulator, {"Range": "bytes=100-199"})
        assert answer.headers["Content-Range"] == f"bytes 90-199/{SIZE}"
        assert answer.body == simulator.read("old", 90, 200)


class TestHeldAnswers:
    def test_a_transfer_hangs_until_released(self, simulator: Simulator) -> None:
        simulator.fault(Fault("store", hang_after=1000))
        with Background(simulator) as background:
            simulator.wait_held()
            running = simulator.log("store")[0]
            assert (running.status, running.sent, running.ended) == (200, 1000, None)
            simulator.release()
        assert background.answer is not None
        assert background.answer.body == simulator.read("old")
        assert simulator.log("store")[0].ended is not None

    def test_an_answer_is_held_before_its_headers(self, simulator: Simulator) -> None:
        simulator.fault(Fault("store", hold=True))
        with Background(simulator) as background:
            simulator.wait_held()
            assert simulator.log("store")[0].status is None
            simulator.clear_faults()
        assert background.answer is not None
        assert background.answer.status == 200

    def test_a_client_that_leaves_ends_a_held_answer(self, simulator: Simulator) -> None:
        simulator.fault(Fault("store", hang_after=0))
        parts = urlsplit(presigned(simulator))
        with socket.create_connection((parts.hostname, parts.port), 10) as connection:
            connection.sendall(f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            simulator.wait_held()
        simulator.wait_until(lambda: simulator.log("store")[0].ended is not None)
        assert simulator.counters().held == 0


class TestRollOver:
    def test_on_demand(self, simulator: Simulator) -> None:
        simulator.roll_over("new")
        assert get(simulator.api_url + METADATA, AUTHORIZED).json() == simulator.metadata("new")
        assert download(simulator).body == simulator.read("new")

    def test_right_after_a_metadata_answer(self, simulator: Simulator) -> None:
        simulator.fault(Fault("metadata", roll_over="new"))
        assert get(simulator.api_url + METADATA, AUTHORIZED).json() == simulator.metadata("old")
        assert download(simulator).body == simulator.read("new")

    def test_in_the_middle_of_a_transfer_which_goes_on(self, simulator: Simulator) -> None:
        simulator.fault(Fault("store", roll_over="new", roll_over_after=1000, hang_after=2000))
        with Background(simulator) as background:
            simulator.wait_held()
            assert get(simulator.api_url + METADATA, AUTHORIZED).json() == simulator.metadata("new")
            simulator.release()
        assert background.answer is not None
        assert background.answer.body == simulator.read("old")

    def test_a_signed_url_keeps_its_image_unless_it_names_the_latest(self, simulator: Simulator) -> None:
        simulator.fault(Fault("image", redirect="latest"))
        latest, fixed = presigned(simulator), presigned(simulator)
        before = get(latest)
        simulator.roll_over("new")
        after = get(latest, {"Range": "bytes=5-", "If-Range": before.headers["ETag"]})
        assert (after.status, after.body) == (200, simulator.read("new"))
        assert get(fixed).body == before.body == simulator.read("old")


class TestRates:
    def test_the_whole_line_and_each_connection_have_a_rate_that_can_change(self, simulator: Simulator) -> None:
        for rates in ((15_000_000.0, None), (None, 15_000_000.0)):
            simulator.set_rate(rates[0], connection_rate=rates[1])
            began = time.monotonic()
            download(simulator)
            assert time.monotonic() - began >= SIZE / 15_000_000 * 0.9
        simulator.set_rate(1000)
        with Background(simulator) as background:
            simulator.wait_until(lambda: simulator.log("store")[-1].sent)
            simulator.set_rate(None)
        assert background.answer is not None
        assert background.answer.body == simulator.read("old")


class TestLog:
    def test_every_request_is_written_down_without_its_secrets(self, simulator: Simulator) -> None:
        sent = {
            "X-Request-ID": "abc",
            "X-DataRobot-Api-Consumer-Trace": "trace",
            "Range": "bytes=1-2",
            "If-Range": '"e"',
        }
        get(simulator.api_url + METADATA, {**AUTHORIZED, **sent})
        download(simulator, {"Range": "bytes=10-19"})
        get(simulator.api_url + "/elsewhere")
        metadata, image, store, elsewhere = simulator.log()
        assert (metadata.listener, metadata.place, metadata.method, metadata.path) == (
            "api",
            "metadata",
            "GET",
            METADATA,
        )
        assert (metadata.request_id, metadata.trace, metadata.range, metadata.if_range) == (
            "abc",
            "trace",
            "bytes=1-2",
            '"e"',
        )
        assert metadata.authorization == fingerprint(AUTHORIZED["Authorization"])
        assert (image.status, image.image, image.sent) == (302, "old", 0)
        assert (store.listener, store.status, store.authorization, store.sent) == ("store", 206, None, 10)
        assert store.ended is not None
        assert image.started <= store.started <= store.ended
        assert (elsewhere.place, elsewhere.status) == ("", 404)
        counters = simulator.counters()
        assert (counters.metadata_requests, counters.image_requests, counters.store_gets) == (1, 1, 1)
        assert simulator.bytes_sent() == 10
        simulator.reset_log()
        assert (simulator.log(), simulator.bytes_sent()) == ([], 0)

    def test_faults_for_different_fields_act_together(self, simulator: Simulator) -> None:
        simulator.fault(Fault("store", headers={"X-One": "1"}, times=None), Fault("store", cut_after=5))
        first, second = download(simulator), download(simulator)
        assert [(each.headers["X-One"], len(each.body)) for each in (first, second)] == [("1", 5), ("1", SIZE)]

    def test_a_control_call_that_makes_no_sense_is_refused(self, simulator: Simulator) -> None:
        with pytest.raises(SimulatorFailed, match="no image"):
            simulator.fault(Fault("store", roll_over="unknown"))
        with pytest.raises(SimulatorFailed, match="KeyError"):
            simulator.roll_over("unknown")


class TestProcess:
    @pytest.fixture(autouse=True)
    def a_real_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Simulator, "launch", staticmethod(launch))

    def test_an_image_from_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "image.tar.gz"
        path.write_bytes(os.urandom(1_500_000))
        with Simulator.start([ImageSpec("file", path=str(path))]) as simulator:
            assert download(simulator).body == path.read_bytes() == simulator.read("file")
            simulator.fault(Fault("store", cut_after=1000, reset=True))
            answer = download(simulator, {"Range": "bytes=500000-"})
            assert answer.body == path.read_bytes()[500_000:501_000]
            simulator.fault(Fault("store", send_extra=10))
            assert raw_body(presigned(simulator)) == path.read_bytes() + bytes(10)
            assert simulator.bytes_sent() == 1_500_000 + 1000 + 1_500_010
        assert simulator.errors() == ""

    def test_a_client_that_leaves_a_file_midway_is_counted_right(self, tmp_path: Path) -> None:
        path = tmp_path / "image.tar.gz"
        with path.open("wb") as file:
            file.truncate(64 << 20)
        with Simulator.start([ImageSpec("file", path=str(path))]) as simulator:
            parts = urlsplit(presigned(simulator))
            with socket.create_connection((parts.hostname, parts.port), 10) as connection:
                connection.sendall(f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert connection.recv(1000)
            simulator.wait_until(lambda: simulator.log("store")[0].ended is not None)
            assert 0 < simulator.bytes_sent() < 64 << 20
        assert simulator.errors() == ""

    def test_tls_on_both_listeners(self, tmp_path: Path) -> None:
        needs("openssl", "apt-get install openssl")
        key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
        command = (
            f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {key} -out {cert} -days 2"
        )
        names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        subprocess.run([*command.split(), *names], check=True, capture_output=True)
        context = ssl.create_default_context(cafile=str(cert))
        with Simulator.start([ImageSpec("only", SIZE)], tls_cert=str(cert), tls_key=str(key)) as simulator:
            assert simulator.api_url.startswith("https://")
            url = get(simulator.api_url + IMAGE, AUTHORIZED, tls=context).headers["Location"]
            assert url.startswith("https://")
            assert get(url, tls=context).body == simulator.read("only")
            simulator.fault(Fault("store", cut_after=100_000, reset=True))
            answer = get(url, tls=context)
            assert answer.broken is not None
            assert simulator.read("only").startswith(answer.body)
        assert simulator.errors() == ""

    def test_two_simulators_make_the_same_bytes(self, simulator: Simulator) -> None:
        with Simulator.start([ImageSpec("other", SIZE, seed="old")], store_name="localhost") as second:
            assert second.image_sha256("other") == simulator.image_sha256("old")
            assert second.read("other", 1_048_000, 1_049_000) == simulator.read("old", 1_048_000, 1_049_000)
            assert urlsplit(presigned(second)).hostname == "localhost"

    def test_by_hand_it_prints_one_line_and_ends_on_sigterm(self, tmp_path: Path) -> None:
        path = tmp_path / "image.tar.gz"
        path.write_bytes(b"bytes")
        command = [
            sys.executable,
            "-m",
            "mirror.simulator",
            "--image",
            str(path),
            "--rate",
            "50MB/s",
            "--token",
            "mine",
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            answer = get(ready["api_url"] + METADATA, {"Authorization": "Token mine"})
            assert answer.json()["imageSize"] == 5
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
            assert process.stdout.read() == b""

    def test_it_ends_with_whoever_started_it(self) -> None:
        command = [sys.executable, "-m", "mirror.simulator", "--state", "-"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"{}\n")
            process.stdin.flush()
            assert process.stdout.readline()
            process.stdin.close()
            assert process.wait(10) == 0

    def test_a_held_transfer_does_not_keep_it_alive(self) -> None:
        with Simulator.start() as simulator:
            simulator.fault(Fault("store", hang_after=10))
            with Background(simulator) as background:
                simulator.wait_held()
                assert simulator.stop() == 0
        assert background.answer is not None
        assert len(background.answer.body) == 10

    def test_a_start_that_fails_says_why(self, tmp_path: Path) -> None:
        with pytest.raises(SimulatorFailed, match=r"No such file.*missing"):
            Simulator.start([ImageSpec("file", path=str(tmp_path / "missing"))])
        with pytest.raises(SimulatorFailed, match="name"):
            Simulator.start([ImageSpec("../up")])


class Background:
    """A download in a thread of its own, for as long as the block lasts."""

    def __init__(self, simulator: Simulator) -> None:
        self.answer: Answer | None = None
        url = presigned(simulator)
        self._thread = threading.Thread(target=self._run, args=(url,), daemon=True)

    def _run(self, url: str) -> None:
        self.answer = get(url)

    def __enter__(self) -> "Background":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()


def raw_body(url: str) -> bytes:
    """Everything that comes behind the headers until the connection ends, whatever they declare."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), 10) as connection:
        connection.sendall(f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        pieces = iter(lambda: connection.recv(1 << 16), b"")
        return b"".join(itertools.chain(pieces)).partition(b"\r\n\r\n")[2]
