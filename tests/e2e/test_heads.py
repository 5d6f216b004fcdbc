"""Heads of requests: what is too long is named, with the status that says so (RFC 9110 15.5.15, RFC 6585 section 5)."""

import json
from collections.abc import Iterator

import pytest

from mirror.http import head_limits as heads
from mirror.simulator.client import ImageSpec, Simulator
from tests.support.downloads import AUTHORIZED
from tests.support.forked import ForkedMirror
from tests.support.processes import METADATA, MirrorProcess
from tests.support.raw import connect, hear, say

AUTHORIZATION = f"Host: x\r\nAuthorization: {AUTHORIZED['Authorization']}\r\nConnection: close\r\n"
TOO_MANY = "".join(f"X-{number}: x\r\n" for number in range(heads.FIELDS + 1))


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[Simulator]:
    with Simulator.start([ImageSpec("first", size=1 << 20)]) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory, shared_simulator: Simulator) -> Iterator[MirrorProcess]:
    with ForkedMirror(tmp_path_factory.mktemp("mirror"), shared_simulator.api_url) as mirror:
        yield mirror


def cookies(count: int, size: int) -> str:
    return "".join(f"Cookie: a{number}={'x' * (size - 12)}\r\n" for number in range(count))


@pytest.mark.parametrize(("count", "size"), [(1, 12_000), (4, 9_000), (3, 16_000)])
def test_large_cookies_are_no_hindrance(mirror: MirrorProcess, count: int, size: int) -> None:
    asked = f"GET {METADATA} HTTP/1.1\r\n{AUTHORIZATION}{cookies(count, size)}\r\n"
    assert say(mirror, asked.encode()).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("target", "fields", "status", "said"),
    [
        (METADATA, cookies(1, 20_000), 431, "a header field of this request is longer than 16384 bytes"),
        (METADATA, f"X-{'x' * 20_000}: y\r\n", 431, "a header field of this request is longer than 16384 bytes"),
        (METADATA, cookies(6, 15_000), 431, "longer than 65536 bytes together"),
        (METADATA, TOO_MANY, 431, "more than 128 header fields"),
        (METADATA + "?" + "x" * 9_000, "", 414, "longer than 8192 bytes"),
    ],
    ids=["field", "name", "together", "many", "target"],
)
def test_what_is_too_long_is_named(mirror: MirrorProcess, target: str, fields: str, status: int, said: str) -> None:
    head, _, body = say(mirror, f"GET {target} HTTP/1.1\r\n{AUTHORIZATION}{fields}\r\n".encode()).partition(b"\r\n\r\n")
    assert head.split()[1] == str(status).encode()
    assert b"\r\nContent-Type: application/json\r\n" in head + b"\r\n"
    assert said in json.loads(body)["message"]
    assert "xxxx" not in mirror.settled.log()


def test_a_head_that_never_ends_is_not_kept_in_memory(mirror: MirrorProcess) -> None:
    line = f"Cookie: {'y' * 4000}=1\r\n"
    with connect(mirror) as connection:
        connection.sendall(f"GET {METADATA} HTTP/1.1\r\n".encode())
        sent = 0
        while sent <= heads.HEAD:  # as far as that it is listened to
            sent += connection.send(line.encode())
        head, _, body = hear(connection).partition(b"\r\n\r\n")
    assert head.split()[1] == b"431"
    assert "65536 bytes together" in json.loads(body)["message"]


def test_what_is_no_request_is_still_called_that(mirror: MirrorProcess) -> None:
    head, _, body = say(mirror, b"\x16\x03\x01 hello\r\n\r\n").partition(b"\r\n\r\n")
    assert head.split()[1] == b"400"
    assert json.loads(body) == {"message": "this is not a request that the mirror can read"}
