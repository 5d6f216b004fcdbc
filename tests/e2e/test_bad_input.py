"""Bad input gets a clear error or a close; the next client is served, and the log has no traceback."""

import json
import random
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from mirror.simulator.client import Fault, ImageSpec, Simulator
from tests.support.downloads import AUTHORIZED, Download, fetch
from tests.support.forked import ForkedMirror
from tests.support.processes import METADATA, MirrorProcess

HOSTILE_NAME = '../../etc/cron.d/x"; drop=1\r\nSet-Cookie: a=b'


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    images = [ImageSpec("first", size=300_000), ImageSpec("hostile", size=1000, filename=HOSTILE_NAME)]
    with Simulator.start(images) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory, simulator: Simulator) -> Iterator[MirrorProcess]:
    sections = {"upstream": {"metadata_ttl": "0s", "stale_if_error": "0s"}, "auth": {"ttl": "0s"}}
    with ForkedMirror(tmp_path_factory.mktemp("mirror"), simulator.api_url, sections) as process:
        yield process


@pytest.fixture(autouse=True)
def _the_next_client_is_served(mirror: MirrorProcess, simulator: Simulator) -> Iterator[None]:
    yield
    simulator.clear_faults()
    assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")
    assert "Traceback" not in mirror.settled.log()


BAD_METADATA = [
    (Fault("metadata", body="<html>welcome</html>"), "JSON"),
    (Fault("metadata", body="[1, 2]"), "JSON object"),
    (Fault("metadata", body=""), "JSON"),
    (Fault("metadata", omit=("hash",)), "'hash' is missing"),
    (Fault("metadata", omit=("imageSize",)), "'imageSize' is missing"),
    (Fault("metadata", values={"hash": "../../../etc/passwd"}), "'hash'"),
    (Fault("metadata", values={"hash": "a" * 63 + "/"}), "'hash'"),
    (Fault("metadata", values={"hashAlgorithm": "MD5"}), "'hashAlgorithm'"),
    (Fault("metadata", values={"imageSize": -1}), "'imageSize'"),
    (Fault("metadata", values={"imageSize": 10**25}), "'imageSize'"),
    (Fault("metadata", values={"imageSize": "5"}), "'imageSize'"),
    (Fault("metadata", values={"created": "soon"}), "'created'"),
    (Fault("metadata", values={"filename": 7}), "'filename'"),
    (Fault("metadata", body='{"x": "' + "y" * (300 << 10) + '"}'), "longer than"),
    (Fault("metadata", body='{"x": "' + "y" * (900 << 10) + '"}', encoding="gzip"), "longer than 262144 bytes once"),
    (Fault("metadata", encoding="br"), "encoded as br, although none was asked for"),
    (Fault("metadata", encoding="gzip", headers={"Content-Encoding": "deflate"}, body=""), "JSON"),
    (Fault("metadata", headers={"Content-Encoding": "gzip"}), "called gzip, and is not"),
]


@pytest.mark.parametrize(("fault", "said"), BAD_METADATA, ids=[said for _, said in BAD_METADATA])
def test_metadata_that_makes_no_sense_is_a_502_that_names_the_field(
    mirror: MirrorProcess, simulator: Simulator, fault: Fault, said: str
) -> None:
    simulator.fault(fault, fault)
    for url in (mirror.metadata_url, mirror.image_url):
        with Download(url) as answer:
            assert answer.status == 502
            assert answer.header("Content-Type") == "application/json"
            message = json.loads(answer.read_all().body)["message"]
            assert said in message
            assert "passwd" not in message


@pytest.mark.parametrize(
    ("status", "expected"), [(500, 502), (502, 502), (503, 503), (504, 504), (418, 502), (204, 502)]
)
def test_an_upstream_that_fails_gives_the_status_that_says_so(
    mirror: MirrorProcess, simulator: Simulator, status: int, expected: int
) -> None:
    simulator.fault(Fault("metadata", status=status))
    with Download(mirror.metadata_url) as answer:
        assert answer.status == expected
        assert bool(answer.header("Retry-After")) == (expected in {503, 504})


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_metadata_that_comes_compressed_unasked_is_what_its_json_is(
    mirror: MirrorProcess, simulator: Simulator, encoding: str
) -> None:
    for headers in ({}, {"Content-Encoding": None} if encoding == "gzip" else {}):
        simulator.fault(Fault("metadata", encoding=encoding, headers=headers))
        with Download(mirror.metadata_url) as answer:
            assert (answer.status, answer.header("Content-Encoding")) == (200, "")
            assert answer.read_all().body == simulator.metadata_body("first")
    assert {asked.accept_encoding for asked in simulator.log() if asked.place == "metadata"} == {"identity"}


@pytest.mark.parametrize("place", ["metadata", "image"])
def test_a_refusal_that_comes_compressed_unasked_can_be_read(
    mirror: MirrorProcess, simulator: Simulator, place: Any
) -> None:
    simulator.roll_over("hostile")
    simulator.fault(Fault(place, status=404, encoding="gzip", body='{"message": "none here"}'))
    with Download(mirror.metadata_url if place == "metadata" else mirror.image_url) as answer:
        assert (answer.status, answer.read_all().body) == (404, b'{"message": "none here"}')
    simulator.roll_over("first")


def test_429_passes_through_with_its_retry_after(mirror: MirrorProcess, simulator: Simulator) -> None:
    simulator.fault(Fault("metadata", status=429, headers={"Retry-After": "7"}))
    with Download(mirror.metadata_url) as answer:
        assert (answer.status, answer.header("Retry-After")) == (429, "7")


def test_a_hostile_file_name_is_a_safe_header_and_no_path(mirror: MirrorProcess, simulator: Simulator) -> None:
    simulator.roll_over("hostile")
    with Download(mirror.image_url) as answer:
        assert answer.header("Content-Disposition").startswith('attachment; filename="x_; drop=1Set-Cookie: a=b"')
        assert not answer.header("Set-Cookie")
        assert answer.read_all().body == simulator.read("hostile")
    simulator.roll_over("first")
    assert {path.name for path in mirror.store.iterdir()} <= {
        "images",
        "partial",
        "quarantine",
        "current.json",
        "access.json",
        "history.json",
    }


def say(mirror: MirrorProcess, data: bytes, *, and_leave: bool = False) -> bytes:
    """Send raw bytes; what comes back until the mirror closes, or falls silent."""
    with socket.create_connection(("127.0.0.1", mirror.port), timeout=5) as connection:
        connection.sendall(data)
        if and_leave:
            connection.shutdown(socket.SHUT_WR)
        said = b""
        try:
            while piece := connection.recv(65536):
                said += piece
                if len(said) > 1 << 20:
                    break
        except (TimeoutError, ConnectionResetError):
            pass
        return said


RAW = {
    "junk": (b"\x16\x03\x01\x02\x00\x01\x00" * 20 + b"\r\n\r\n", b"400"),
    "no version": (b"GET /\r\n\r\n", b"400"),
    "a header without a name": (b"GET / HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n", b"400"),
    "a huge header": (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", b"431"),
    "ten thousand headers": (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 10_000 + b"\r\n", b"431"),
    "a huge request line": (b"GET /" + b"y" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"414"),
    "a NUL in the path": (b"GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
    "an escaped NUL": (b"GET /mirror/v1/images/%00/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"404"),
    "dots": (b"GET /mirror/v1/images/../../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"404"),
    "escaped dots": (
        b"GET /mirror/v1/images/%2e%2e%2f%2e%2e/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"404",
    ),
    "CONNECT": (b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\nConnection: close\r\n\r\n", b"40"),
    "an absolute form of another host": (
        b"GET http://169.254.169.254/latest HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"404",
    ),
    "a token that is not ASCII": (
        b"GET "
        + METADATA.encode()
        + b" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\nConnection: close\r\n\r\n",
        b"400",
    ),
    "a query that is not ASCII": (
        b"GET /api/v2/version/?\xff=%ff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"40",
    ),
    "two lengths": (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", b"400"),
    "length and chunked": (
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"400",
    ),
}


@pytest.mark.parametrize(("data", "status"), RAW.values(), ids=list(RAW))
def test_what_is_not_a_sane_request_gets_an_error_and_a_close(
    mirror: MirrorProcess, data: bytes, status: bytes
) -> None:
    answer = say(mirror, data)
    assert re.match(rb"HTTP/[01]\.[019] " + status, answer), answer[:200]
    assert b'{"message": ' in answer
    assert b"X-Request-ID: " in answer
    assert b"aiohttp" not in answer.lower()


def test_an_absolute_form_of_our_own_routes_is_served(mirror: MirrorProcess) -> None:
    token = AUTHORIZED["Authorization"].encode()
    target = b"http://mirror.example" + METADATA.encode()
    answer = say(
        mirror, b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nAuthorization: " + token + b"\r\nConnection: close\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 200")


def test_random_bytes_leave_the_mirror_standing(mirror: MirrorProcess) -> None:
    chance = random.Random(7)
    head = b"GET " + METADATA.encode() + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    for _ in range(300):
        data = bytearray(head)
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        say(mirror, bytes(data[: chance.randrange(1, len(data) + 1)]), and_leave=True)
