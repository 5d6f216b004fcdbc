"""Hostile clients and a hostile upstream: each is stopped, and honest clients are served meanwhile."""

import contextlib
import json
import os
import re
import resource
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from mirror.access.policies import STRANGERS
from mirror.http.client_api import PASSED_AT_ONCE
from mirror.simulator.client import TOKEN, Fault, ImageSpec, Simulator, fingerprint
from tests.support.downloads import Download, at_once, fetch
from tests.support.fixtures import Ask
from tests.support.forked import ForkedMirror
from tests.support.processes import IMAGE, METADATA, MirrorProcess, eventually
from tests.support.raw import connect, hear, raw_upstream, say

SIZE = 1 << 20
VERSION = "/api/v2/version/"
MIB = 1 << 20
CUT_OFF = 60.0
"""Seconds after which an attacker must have been cut off on the slowest machine."""


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[Simulator]:
    with Simulator.start([ImageSpec("first", size=SIZE)]) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory, shared_simulator: Simulator) -> Iterator[MirrorProcess]:
    with ForkedMirror(tmp_path_factory.mktemp("mirror"), shared_simulator.api_url) as mirror:
        assert fetch(mirror.image_url).sha256 == shared_simulator.image_sha256("first")
        yield mirror


def descriptors(mirror: MirrorProcess) -> int:
    assert mirror.process is not None
    return len(os.listdir(f"/proc/{mirror.process.pid}/fd"))  # noqa: PTH208


def request(path: str = METADATA, more: bytes = b"", *, token: str = TOKEN, line: bytes = b"") -> bytes:
    line = line or f"GET {path} HTTP/1.1".encode()
    return line + b"\r\nHost: x\r\nAuthorization: Bearer " + token.encode() + b"\r\n" + more + b"\r\n"


# Who holds connections


@contextmanager
def slow_attackers(mirror: MirrorProcess, count: int) -> Iterator[list[socket.socket]]:
    """As many connections: idle ones, ones that drip a header, ones that drip a body, ones that stopped halfway."""
    resource_limit(2 * count + 500)
    began = [b"", b"GET / HTTP/1.1\r\nX: ", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n", b"GET"]
    stop = threading.Event()
    with ExitStack() as stack:
        attackers = [stack.enter_context(connect(mirror)) for _ in range(count)]

        def drip() -> None:
            while not stop.wait(0.2):
                for kind, attacker in enumerate(attackers):
                    if kind % 4 in {1, 2}:
                        with contextlib.suppress(OSError):
                            attacker.send(b"y")

        for kind, attacker in enumerate(attackers):
            with contextlib.suppress(ConnectionError):  # the mirror may have said no already
                attacker.sendall(began[kind % 4])
        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            yield attackers
        finally:
            stop.set()
            dripping.join()


def resource_limit(wanted: int) -> None:
    """Allow this process as many descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


def test_500_slow_and_idle_connections_are_cut_off_and_honest_clients_are_served_meanwhile(
    tmp_path: Path, simulator: Simulator
) -> None:
    with MirrorProcess(tmp_path, simulator.api_url, {"server": {"header_timeout": "2s"}}) as mirror:
        before = descriptors(mirror)
        with slow_attackers(mirror, 500) as attackers:
            served = at_once(8, lambda: fetch(mirror.image_url))
            assert {(each.status, each.sha256) for each in served} == {(200, simulator.image_sha256("first"))}
            deadline = time.monotonic() + CUT_OFF
            for attacker in attackers:
                attacker.settimeout(max(0.1, deadline - time.monotonic()))
                assert not re.match(rb"HTTP/1.1 2", hear(attacker))  # it ends: neither dripping nor waiting helps
            assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")
        eventually(lambda: descriptors(mirror) <= before + 2, what="the end of all connections")  # a file, upstream


def test_when_attackers_hold_all_connections_honest_clients_get_503_and_are_served_soon_after(
    tmp_path: Path, simulator: Simulator
) -> None:
    server = {"header_timeout": "3s", "max_connections": 200}
    with ForkedMirror(tmp_path, simulator.api_url, {"server": server}) as mirror, ExitStack() as stack:
        for _ in range(300):  # silent: 200 within the limit, 100 beyond it
            stack.enter_context(connect(mirror))
        answer = say(mirror, request(more=b"Connection: close\r\n"))
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"\r\nRetry-After: " in answer
        eventually(lambda: served(mirror), CUT_OFF)


def served(mirror: MirrorProcess) -> bool:
    with contextlib.suppress(OSError), Download(mirror.metadata_url) as answer:
        return answer.status == 200
    return False


def test_who_asks_and_never_reads_the_answers_is_cut_off(tmp_path: Path, simulator: Simulator) -> None:
    with MirrorProcess(tmp_path, simulator.api_url, {"server": {"header_timeout": "2s"}}) as mirror:
        assert fetch(mirror.metadata_url).status == 200
        before, memory = descriptors(mirror), mirror.resident()
        with ExitStack() as stack:
            deaf = []
            for _ in range(10):
                attacker = stack.enter_context(socket.socket())
                attacker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                attacker.connect(("127.0.0.1", mirror.port))
                attacker.setblocking(False)
                deaf.append(attacker)
            until = time.monotonic() + 1.0
            while time.monotonic() < until:  # as many requests as it takes
                for attacker in deaf:
                    with contextlib.suppress(OSError):
                        attacker.send(request() * 100)
                time.sleep(0.01)
            assert descriptors(mirror) > before
            assert mirror.resident() - memory < 32 * MIB
            eventually(lambda: descriptors(mirror) <= before, CUT_OFF, "the end of their connections")
        assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")


# Request smuggling: a request in what another server may take for a body

INNER = request(VERSION + "?smuggled")
LENGTH = b"Content-Length: %d\r\n" % len(INNER)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
IN_CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(INNER), INNER)


def outer(more: bytes, line: bytes = f"GET {VERSION} HTTP/1.1".encode()) -> bytes:
    return request(more=more, line=line)


SMUGGLING = {
    "length and chunked": outer(LENGTH + CHUNKED) + b"0\r\n\r\n" + INNER,
    "chunked and length": outer(CHUNKED + b"Content-Length: 5\r\n") + b"0\r\n\r\n" + INNER,
    "two lengths": outer(LENGTH + b"Content-Length: 0\r\n") + INNER,
    "a list of lengths": outer(LENGTH.replace(b"\r\n", b", 0\r\n")) + INNER,
    "a length with a sign": outer(LENGTH.replace(b": ", b": +")) + INNER,
    "a negative length": outer(b"Content-Length: -1\r\n") + INNER,
    "a length in hex": outer(b"Content-Length: 0x%x\r\n" % len(INNER)) + INNER,
    "a length of two words": outer(LENGTH.replace(b"\r\n", b" 0\r\n")) + INNER,
    "a length beyond 64 bits": outer(b"Content-Length: %d\r\n" % (2**64 + len(INNER))) + INNER,
    "an empty length": outer(b"Content-Length: \r\n") + INNER,
    "a length, then a space": outer(LENGTH.replace(b":", b" :")) + INNER,
    "xchunked": outer(b"Transfer-Encoding: xchunked\r\n") + IN_CHUNKS,
    "identity": outer(b"Transfer-Encoding: identity\r\n") + INNER,
    "chunked, identity": outer(b"Transfer-Encoding: chunked, identity\r\n") + IN_CHUNKS,
    "chunked and identity": outer(CHUNKED + b"Transfer-Encoding: identity\r\n") + IN_CHUNKS,
    "chunked after a vertical tab": outer(b"Transfer-Encoding: \x0bchunked\r\n") + IN_CHUNKS,
    "chunked after a tab": outer(b"Transfer-Encoding:\tchunked\r\n") + IN_CHUNKS,
    "chunked with a NUL": outer(b"Transfer-Encoding: chun\0ked\r\n") + IN_CHUNKS,
    "chunked, then a space": outer(b"Transfer-Encoding : chunked\r\n") + IN_CHUNKS,
    "chunked in HTTP/1.0": outer(CHUNKED, f"GET {VERSION} HTTP/1.0".encode()) + IN_CHUNKS,
    "chunked in HTTP/1.0, kept alive": outer(b"Connection: keep-alive\r\n" + CHUNKED, b"GET / HTTP/1.0") + IN_CHUNKS,
    "a folded header": outer(b"X: y\r\n " + LENGTH) + INNER,
    "a folded Transfer-Encoding": outer(b"Transfer-Encoding:\r\n chunked\r\n") + IN_CHUNKS,
    "a folded first header": request(line=f"GET {VERSION} HTTP/1.1\r\n X: y".encode()) + INNER,
    "a bare LF": outer(b"X: y\n" + LENGTH) + INNER,
    "LF only": (outer(LENGTH) + INNER).replace(b"\r\n", b"\n"),
    "a bare CR": outer(b"X: y\r" + LENGTH) + INNER,
    "a bare CR at the end": outer(b"X: y\r\n")[:-1] + INNER,
    "a NUL in a value": outer(b"X: \0\r\n" + LENGTH) + INNER,
    "a NUL in a name": outer(b"X\0: y\r\n" + LENGTH) + INNER,
    "a chunk beyond 64 bits": outer(CHUNKED) + b"f" * 20 + b"\r\n" + INNER,
    "a chunk of a negative size": outer(CHUNKED) + b"-1\r\n" + INNER,
    "a chunk of 0x0": outer(CHUNKED) + b"0x0\r\n\r\n" + INNER,
    "chunks that end in LF": outer(CHUNKED) + b"0\n\n" + INNER,
    "a chunk longer than it says": outer(CHUNKED) + b"1\r\nab\r\n0\r\n\r\n" + INNER,
    "a length in the trailer": outer(CHUNKED) + b"0\r\n" + LENGTH + b"\r\n" + INNER,
    "GET with a body": outer(LENGTH) + INNER,
    "GET with a chunked body": outer(CHUNKED) + IN_CHUNKS,
    "GET with a body and another request behind it": outer(LENGTH) + INNER + INNER,
    "GET with less of a body than it says": outer(b"Content-Length: %d\r\n" % (len(INNER) + 9)) + INNER,
    "a gzipped body that is none": outer(b"Content-Encoding: gzip\r\n" + LENGTH) + INNER,
    "HEAD with a body": outer(LENGTH, f"HEAD {VERSION} HTTP/1.1".encode()) + INNER,
    "POST": outer(LENGTH, f"POST {VERSION} HTTP/1.1".encode()) + INNER,
    "POST to nowhere": outer(LENGTH, b"POST /nowhere HTTP/1.1") + INNER,
    "100-continue": outer(b"Expect: 100-continue\r\n" + LENGTH) + INNER,
    "a websocket": outer(b"Connection: Upgrade\r\nUpgrade: websocket\r\n") + INNER,
    "a websocket with a length": outer(b"Connection: Upgrade\r\nUpgrade: websocket\r\n" + LENGTH) + INNER,
    "HTTP/2 by upgrade": outer(b"Connection: Upgrade\r\nUpgrade: h2c\r\n") + INNER,
    "HTTP/2 at once": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + INNER,
    "HTTP/2.0 as text": outer(LENGTH, f"GET {VERSION} HTTP/2.0".encode()) + INNER,
    "HTTP/0.9": f"GET {VERSION}\r\n".encode() + INNER,
    "CONNECT": outer(b"", b"CONNECT upstream:443 HTTP/1.1") + INNER,
    "CONNECT with a length": outer(LENGTH, b"CONNECT upstream:443 HTTP/1.1") + INNER,
    "the absolute form of another host": outer(LENGTH, f"GET http://other{VERSION} HTTP/1.1".encode()) + INNER,
    "two hosts": outer(b"Host: y\r\n" + LENGTH) + INNER,
    "a thousand headers": outer(b"X: y\r\n" * 1000 + LENGTH) + INNER,
}


def test_a_second_request_on_a_connection_reaches_upstream_when_it_is_one(
    mirror: MirrorProcess, simulator: Simulator
) -> None:
    """Without this the next test would show nothing."""
    last = INNER.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
    assert say(mirror, outer(b"Content-Length: 0\r\n") + last).count(b"HTTP/1.1 200") == 2
    assert [asked.query for asked in simulator.log("version")] == ["", "smuggled"]


@pytest.mark.parametrize("data", SMUGGLING.values(), ids=list(SMUGGLING))
def test_no_byte_of_a_body_is_ever_read_as_a_request(mirror: MirrorProcess, simulator: Simulator, data: bytes) -> None:
    answer = say(mirror, data)  # returns when the connection was closed
    answers = re.findall(rb"HTTP/\d\.\d (\d+)", answer)
    assert len(answers) == 1
    assert answers[0] in {b"200", b"400", b"404", b"405", b"431"}
    reached = simulator.log()
    assert [asked.query for asked in reached] == [""] * len(reached)
    assert len(reached) == (answers[0] == b"200")


# Who guesses tokens


def guess(mirror: MirrorProcess, first: int, count: int) -> int:
    """Send that many tokens that upstream never made, over one connection; how many were refused."""
    refused = 0
    with connect(mirror, 120) as connection, connection.makefile("rb") as answers:
        for start in range(first, first + count, 20):
            numbers = range(start, min(start + 20, first + count))
            connection.sendall(b"".join(request(token=f"guessed-token-{number:012}") for number in numbers))
            for _ in numbers:
                refused += read_answer(answers) == 401
    return refused


def read_answer(answers: Any) -> int:
    """Read one answer; its status."""
    status = int(answers.readline().split()[1])
    length = 0
    while (line := answers.readline()) not in {b"\r\n", b""}:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    answers.read(length)
    return status


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(12_000, id="12 thousand"),
        pytest.param(100_000, id="100 thousand", marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
    ],
)
def test_a_flood_of_distinct_bad_tokens_takes_no_memory_and_nothing_from_honest_clients(
    tmp_path: Path, simulator: Simulator, count: int
) -> None:
    sections = {"log": {"level": "warning"}, "auth": {"ttl": "0s"}}
    with MirrorProcess(tmp_path, simulator.api_url, sections) as mirror:
        assert guess(mirror, 0, 2000) == 2000  # what a first flood takes, it takes once
        assert fetch(mirror.image_url).status == 200
        memory = mirror.resident()
        share = count // 4
        with ThreadPoolExecutor(4) as pool:
            guessing = [pool.submit(guess, mirror, 2000 + part * share, share) for part in range(4)]
            meanwhile = []
            while not all(each.done() for each in guessing):
                began = time.monotonic()
                assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")
                meanwhile.append(time.monotonic() - began)
                time.sleep(0.1)
            assert sum(each.result() for each in guessing) == 4 * share
        assert len(meanwhile) > 1
        assert max(meanwhile) < 10.0
        assert mirror.resident() - memory < 16 * MIB  # 8 MiB of refusals are remembered at most
        assert len((mirror.store / "access.json").read_bytes()) < 1000  # of the one that was let in


def test_the_same_bad_token_again_and_again_costs_upstream_one_question_in_a_few_seconds(
    mirror: MirrorProcess, simulator: Simulator
) -> None:
    began = time.monotonic()

    def hammer() -> int:
        with connect(mirror) as connection, connection.makefile("rb") as answers:
            for _ in range(10):
                connection.sendall(request(token="one-bad-token-for-all") * 50)
                assert {read_answer(answers) for _ in range(50)} == {401}
        return 500

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lambda _: hammer(), range(4))) == 2000
    assert simulator.counters().metadata_requests <= 1 + (time.monotonic() - began) / 3.0


def test_a_flood_of_unknown_credentials_waits_its_turn_and_a_known_caller_does_not(
    tmp_path: Path, simulator: Simulator
) -> None:
    crowd = STRANGERS + 20
    mirror = ForkedMirror(tmp_path, simulator.api_url, {"auth": {"ttl": "0s"}})
    # So that the upstream, which holds all answers here, does not count as hanging: then it is asked once at a time.
    mirror.constants = {"mirror.images.upstream_health:HANGING": 600.0}
    with mirror, ExitStack() as stack:
        assert fetch(mirror.metadata_url).status == 200
        simulator.reset_log()
        simulator.fault(Fault("metadata", hold=True, times=None))
        strangers = []
        for number in range(crowd):
            stranger = stack.enter_context(connect(mirror))
            stranger.sendall(request(token=f"guessed-token-{number:012}", more=b"Connection: close\r\n"))
            strangers.append(stranger)
        simulator.wait_held(STRANGERS)
        known = stack.enter_context(connect(mirror))
        known.sendall(request(more=b"Connection: close\r\n"))
        simulator.wait_held(STRANGERS + 1)
        asked = {each.authorization for each in simulator.log("metadata")}
        assert fingerprint(f"Bearer {TOKEN}") in asked
        assert len(asked) == STRANGERS + 1
        simulator.clear_faults()
        assert hear(known).startswith(b"HTTP/1.1 200")
        assert {hear(stranger)[:12] for stranger in strangers} == {b"HTTP/1.1 401"}
        assert simulator.counters().metadata_requests == crowd + 1


def test_a_flood_of_requests_that_are_passed_through_waits_its_turn(
    mirror: MirrorProcess, simulator: Simulator
) -> None:
    simulator.fault(Fault("version", hold=True, times=None))
    crowd = PASSED_AT_ONCE + 20
    with ExitStack() as stack:
        flood = [stack.enter_context(connect(mirror)) for _ in range(crowd)]
        for each in flood:
            each.sendall(request(VERSION, b"Connection: close\r\n"))
        simulator.wait_held(PASSED_AT_ONCE)
        assert fetch(mirror.image_url).status == 200
        assert simulator.counters().held == PASSED_AT_ONCE
        simulator.clear_faults()
        assert {hear(each)[:12] for each in flood} == {b"HTTP/1.1 200"}


# What upstream may say

HOSTILE_METADATA: dict[str, dict[str, Any]] = {
    "CR LF in the file name": {"filename": 'x"\r\nSet-Cookie: a=b\r\n\r\n<html>'},
    "LF alone": {"filename": "x\nSet-Cookie: a=b"},
    "a huge file name": {"filename": "x" * 100_000},
    "a file name that turns around": {"filename": "\u202egz.rat\u0000\u0085\u2028"},
    "a file name of emoji": {"filename": "🐳" * 1000},
    "only dots": {"filename": "../.."},
    "no file name": {"filename": ""},
    "quotes and backslashes": {"filename": "\";\\\"; filename*=UTF-8''evil"},
    "unknown fields": {"Set-Cookie": "a=b\r\n", "x\r\nSet-Cookie": ["a"] * 100},
    "ids with line breaks": {"dockerImageId": "\r\nSet-Cookie: a=b", "shortDockerImageId": "\x1b[2J"},
    "a date of long ago": {"created": "1971-01-02T00:00:00+23:59"},
    "CR LF in the hash": {"hash": "a" * 62 + "\r\n"},
    "CR LF in the date": {"created": "2024-01-02T03:04:05Z\r\nSet-Cookie: a=b"},
    "digits that are not ASCII": {"hash": "\u0660" * 64},
}


@pytest.mark.parametrize("values", HOSTILE_METADATA.values(), ids=list(HOSTILE_METADATA))
def test_hostile_metadata_injects_no_header_and_no_log_line(
    tmp_path: Path, simulator: Simulator, values: dict[str, Any]
) -> None:
    simulator.fault(Fault("metadata", values=values, times=None))
    with ForkedMirror(tmp_path, simulator.api_url) as mirror:
        for path in (METADATA, IMAGE):
            head, _, body = say(mirror, request(path, b"Connection: close\r\n")).partition(b"\r\n\r\n")
            assert re.match(rb"HTTP/1.1 (200|502) ", head)
            assert b"set-cookie:" not in head.lower().replace(b"\r\n", b"\n").split(b"content-disposition")[0]
            for line in head.split(b"\r\n"):
                assert re.fullmatch(rb"[\x20-\x7e]{1,4000}", line)
                assert not line.lower().startswith(b"set-cookie")
            if path == IMAGE and b" 200 " in head[:16]:
                assert sha256(body).hexdigest() == simulator.image_sha256("first")
        assert_plain(mirror.log())


HOSTILE_HEADERS = {
    "folded": b"X-Evil: a\r\n Set-Cookie: a=b\r\n",
    "a bare LF": b"X-Evil: a\nSet-Cookie: a=b\r\n",
    "a bare CR": b"X-Evil: a\rSet-Cookie: a=b\r\n",
    "a NUL": b"X-Evil: a\0b\r\n",
    "not UTF-8": b"X-Evil: \xff\xfe\r\nWWW-Authenticate: \xff\r\n",
    "UTF-8": "X-Evil: é\r\nWWW-Authenticate: é\r\n".encode(),
    "an escape sequence": b"X-Evil: \x1b[2J\r\nWWW-Authenticate: \x1b[2J\r\nRetry-After: \x1b[2J\r\n",
    "a name with a space": b"X Evil: a\r\n",
    "a huge value": b"X-Evil: " + b"a" * 60_000 + b"\r\n",
    "too huge a value": b"X-Evil: " + b"a" * 200_000 + b"\r\n",
    "a hundred": b"X-Evil: a\r\n" * 100,
    "five thousand": b"X-Evil: a\r\n" * 5000,
    "our own": b"Server: evil\r\nX-Request-ID: evil\r\nSet-Cookie: a=b\r\nKeep-Alive: timeout=9\r\nUpgrade: h2c\r\n",
}


@pytest.mark.parametrize("status", [200, 401, 304, 299])
@pytest.mark.parametrize("headers", HOSTILE_HEADERS.values(), ids=list(HOSTILE_HEADERS))
def test_hostile_headers_of_upstream_go_no_further(hostile: "Hostile", headers: bytes, status: int) -> None:
    hostile.answer = b"HTTP/1.1 %d OK\r\nContent-Type: text/x\r\nContent-Length: 2\r\n%s\r\n{}" % (status, headers)
    for path in (VERSION, METADATA, IMAGE):
        asked = request(path, b"Connection: close\r\n", token=secrets.token_hex())  # a refused one is remembered
        head = say(hostile.mirror, asked).partition(b"\r\n\r\n")[0]
        assert re.match(rb"HTTP/1.1 (%d|502|503) " % status, head), head
        lines = head.split(b"\r\n")
        for line in lines:
            assert re.fullmatch(rb"[\x20-\x7e]{1,70000}", line)
            assert not re.match(rb"(?i)(set-cookie|keep-alive|upgrade|server: evil|x-request-id: evil)", line)
        assert sum(line.startswith(b"X-Request-ID: ") for line in lines) == 1


class Hostile:
    """A mirror in front of an upstream that says `answer` to everything."""

    answer = b""
    mirror: MirrorProcess


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    hostile = Hostile()
    with raw_upstream(lambda: hostile.answer) as url:
        sections = {"auth": {"ttl": "0s"}, "upstream": {"metadata_ttl": "0s"}}
        with ForkedMirror(tmp_path_factory.mktemp("hostile"), url, sections) as hostile.mirror:
            yield hostile
            assert "Traceback" not in hostile.mirror.settled.log()
            assert_plain(hostile.mirror.log())


@pytest.mark.parametrize("place", ["image", "store"])
def test_hostile_headers_on_the_way_to_the_bytes_change_nothing(
    tmp_path: Path, simulator: Simulator, ask: Ask, place: Any
) -> None:
    headers = {
        "ETag": '"a b', "Content-Disposition": "attachment; filename=evil", "Set-Cookie": "a=b",
        "Last-Modified": "soon", "Cache-Status": "evil", "Digest": "evil", "Content-Type": "text/html",
        "Content-Language": "é",
    }  # fmt: skip
    simulator.fault(Fault(place, headers=headers, times=None))
    with ForkedMirror(tmp_path, simulator.api_url) as mirror:
        for _ in ("cold", "hot"):
            answer = ask(mirror.image_url)
            assert answer.body == simulator.read("first")
            assert "evil" not in str(answer.answer.headers)
            assert answer.header("Content-Type") == "application/octet-stream"
            assert answer.header("Set-Cookie") == ""
        assert_plain(mirror.log())


# Paths and ids

PATHS = [
    "/mirror/v1/images/..%2f..%2fcurrent.json",
    "/mirror/v1/images/../../current.json",
    "/mirror/v1/images/%2e%2e/%2e%2e/access.json",
    "/mirror/v1/images/..%5c..%5caccess.json",
    "/mirror/v1/images/%252e%252e%252f/",
    "/mirror/v1/images//{hash}/",
    "/mirror/v1/images/{hash}%00/",
    "/mirror/v1/images/{hash}%0a/",
    "/mirror/v1/images/{hash}/image",
    "/mirror/v1/images/{hash}/metadata/x/",
    "/mirror/v1/images/{hash}/metadata.json",
    "/mirror/v1/images/{hash};x/",
    "/mirror/v1/images/" + "a" * 8000,
    "/mirror/v1/images" + "/x" * 3000,
    "/mirror/v1/images/%ff%fe/",
    "/mirror/v1/images/%",
    "/mirror/v1/images/\u0660\u0660\u0660/",
    "/images/{hash}/image",
    "/api/v2/version/../projects/",
    "/api/v2/version/%2e%2e/projects/",
    "/api/v2/version//",
    "/api/v2/projects/",
    "/api/v2/version%2f..%2fprojects/",
    "//evil.example/api/v2/version/",
    "/_sim/log",
]


@pytest.mark.parametrize("path", PATHS, ids=[path[:50] for path in PATHS])
def test_no_trick_with_a_path_leads_anywhere(mirror: MirrorProcess, simulator: Simulator, path: str) -> None:
    path = path.format(hash=simulator.image_sha256("first"))
    answer = say(mirror, request(more=b"Connection: close\r\n", line=b"GET " + path.encode() + b" HTTP/1.1"))
    assert re.match(rb"HTTP/1.[01] 40[04] ", answer)
    assert answer.endswith(b'"}')
    assert simulator.log() == []


@pytest.mark.parametrize(
    "given",
    ["a b", "x" * 129, "", "x\ty", "é", "\x1b[31m", "{}", "a,b", '"', "<script>", "%0d%0aSet-Cookie:a=b"],
)
def test_a_request_id_that_is_not_sane_is_replaced_everywhere(
    mirror: MirrorProcess, simulator: Simulator, given: str
) -> None:
    header = b"X-Request-ID: " + given.encode() + b"\r\nConnection: close\r\n"
    answer = say(mirror, request(VERSION, header))
    if re.match(rb"HTTP/1.[01] 400 ", answer):  # not a header at all
        return
    used = re.search(rb"\r\nX-Request-ID: ([^\r]*)\r\n", answer)
    assert used is not None
    assert re.fullmatch(rb"[0-9a-f]{32}", used[1])
    assert [asked.request_id for asked in simulator.log("version")] == [used[1].decode()]
    eventually(lambda: f"request {used[1].decode()}" in mirror.log())


FORGED = b"00:00:00 INFO    forged by an attacker"

LOG_ATTACKS = [
    request(line=b"GET /\n" + FORGED + b" HTTP/1.1"),
    request(line=b"GET /%0a" + FORGED.replace(b" ", b"%20") + b" HTTP/1.1"),
    request(line=b"GET /\x1b[2J HTTP/1.1"),
    request(line=b"GET /%1b[2J%c2%85%e2%80%ae HTTP/1.1"),
    request(line="GET /\u202e\u2028 HTTP/1.1".encode()),
    request(line=b"GET /\x9b2J HTTP/1.1"),
    request(line=b"\x1b[2J / HTTP/1.1"),
    request(line=b"GET / HTTP/1.1\x1b[2J"),
    request(more=b"X-Request-ID: \x1b[2J\r\n"),
    request(more=b"X-Request-ID: a\n" + FORGED + b"\r\n"),
    request(more=b"X-DataRobot-Api-Consumer-Trace: \x1b[2J\xff\r\n"),
    request(more=b"Authorization:\x0bBearer " + TOKEN.encode() + b"\r\n"),
    request(more=b"Range: \x1b[2J\r\nIf-None-Match: \x1b\r\n"),
    request(more=b"X\x1b: y\r\n"),
    b"Authorization: Bearer " + TOKEN.encode() + b"\r\n\r\n",
    b"GET /" + TOKEN.encode() * 5000 + b" HTTP/1.1\r\n\r\n",
    b"Host\x00: " + TOKEN.encode() + b"\r\n\r\n",
]


@pytest.mark.parametrize("kind", ["console", "json"])
def test_nothing_a_client_or_upstream_says_forges_a_log_line_or_reaches_a_terminal(
    tmp_path: Path, simulator: Simulator, kind: str
) -> None:
    name = 'x\r\n00:00:00 INFO    forged by upstream\x1b[2J\u202e"}\n{"message": "forged"}'
    simulator.fault(Fault("metadata", values={"filename": name}, times=None))
    simulator.fault(Fault("image", redirect="http://a%0aforged%1b[2J.example/x?X-Amz-Signature=1", times=1))
    with ForkedMirror(tmp_path, simulator.api_url, {"log": {"level": "debug", "format": kind}}) as mirror:
        for path in (METADATA, IMAGE, IMAGE):
            say(mirror, request(path, b"Connection: close\r\n"))
        for attack in LOG_ATTACKS:
            say(mirror, attack.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        say(mirror, request("/the-last-one", b"Connection: close\r\n"))
        eventually(lambda: "/the-last-one" in mirror.log())
    assert_plain(mirror.log())


def assert_plain(log: str) -> None:
    """Every line is the mirror's own and plain to read, for people or for machines as the first one is."""
    for line in log.split("\n")[:-1]:
        assert line.isprintable(), repr(line)
        if log.startswith("{"):
            assert json.loads(line)["log.level"] in {"debug", "info", "warning", "error"}
            assert line.isascii()
        else:
            assert re.match(r"\d\d:\d\d:\d\d (DEBUG|INFO|WARNING|ERROR) ", line), line
            assert not line.startswith("00:00:00 INFO    forged"), line


def test_what_a_crash_leaves_behind_has_no_memory_of_the_mirror_in_it(mirror: MirrorProcess) -> None:
    assert mirror.process is not None
    limits = Path(f"/proc/{mirror.process.pid}/limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)
