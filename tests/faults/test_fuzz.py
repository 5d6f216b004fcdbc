"""Ten thousand inputs of raw bytes: the mirror stays as it was, and honest clients get the right bytes throughout.

FUZZ_SEED repeats a run.
"""

import contextlib
import os
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.simulator.client import TOKEN, ImageSpec, Simulator
from tests.support.downloads import fetch
from tests.support.processes import IMAGE, METADATA, MirrorProcess, eventually
from tests.support.raw import connect

INPUTS = 10_000
AT_ONCE = 50
SEED = int(os.environ.get("FUZZ_SEED", "20260731"))
MIB = 1 << 20
FUZZ_TOKEN = "fuzz-token"
"""Too short for the canary: some inputs have it in their path, which is logged."""

PATHS = [IMAGE, METADATA, "/api/v2/version/", "/mirror/v1/images/", "/mirror/v1/images/{hash}/", "/", "*", "http://x/"]
METHODS = ["GET", "GET", "GET", "HEAD", "POST", "OPTIONS", "CONNECT", "PRI", "get", "G\0T", "", "GET" * 50]
VERSIONS = ["HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.1 x", "http/1.1", "HTTP/99", ""]
SANE = [
    "Host: y.example", f"Authorization: Bearer {FUZZ_TOKEN}", "Authorization: Bearer bad", "Content-Length: 5",
    "Transfer-Encoding: chunked", "Connection: close", "Connection: keep-alive", "Expect: 100-continue",
    "Range: bytes=0-9", "Range: bytes=-", "Range: bytes=9-1", "Range: bytes=-7", "Range: bytes=999999999-",
    "Range: bytes=999999999999999999999999-", "Range: bytes=0-1,2-3", 'If-Range: "{hash}"', "If-None-Match: *",
    "If-None-Match: " + '"a",' * 500, 'If-Match: W/"{hash}"', "If-Modified-Since: soon", "Accept-Encoding: br",
    "If-Modified-Since: Fri, 31 Dec 9999 23:59:59 -2359", "If-Unmodified-Since: Thu, 01 Jan 0001 00:00:00 +2359",
    "Content-Encoding: gzip", "Cookie: " + "x" * 5000, "X-Request-ID: an-id", "Upgrade: websocket",
]  # fmt: skip
ODD = [
    "Host: \x01", "Authorization:", "Content-Length: 99999999999999999999", "Content-Length: -1", ": no name",
    "Transfer-Encoding: gzip, chunked", "Connection: upgrade", "Range: bytes=\u0663-\u0664", "X-Request-ID: \x1b[2J",
    "X-DataRobot-Api-Consumer-Trace: \x7f", "no colon", " folded", "X\x00: y", "Host : y", "Content-Length: 0x10",
]  # fmt: skip
ENDS = ["\r\n", "\r\n", "\r\n", "\n", "\r", "\r\n ", "\0", ""]


def one_input(chance: random.Random, image_hash: str) -> bytes:
    """A request that is nearly right, or rather not."""
    if chance.random() < 0.1:
        return chance.randbytes(chance.randrange(1, 3000))
    end = chance.choice(ENDS) if chance.random() < 0.1 else "\r\n"
    path = chance.choice(PATHS).replace("{hash}", image_hash)
    if chance.random() < 0.2:
        path += chance.choice(["?a=b", "?%00", "%2e%2e%2f", "/../" * 20, "#x", "\x80", "%", "/" * 5000])
    method, version = (
        chance.choice(METHODS[: chance.choice((4, 4, 4, 12))]),
        chance.choice(VERSIONS[:2] * 20 + VERSIONS),
    )
    line = f"{method} {path} {version}"
    headers = [f"Authorization: Bearer {FUZZ_TOKEN}", "Host: x"] if chance.random() < 0.9 else []
    headers += [chance.choice(SANE).replace("{hash}", image_hash) for _ in range(chance.randrange(4))]
    headers += [chance.choice(ODD)] if chance.random() < 0.1 else []
    data = bytearray(end.join([line, *headers, "", ""]).encode())
    if chance.random() < 0.1:
        data += chance.choice(
            [b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"ffffffffff\r\n", b"0\r\n\r\n", chance.randbytes(300)]
        )
    if chance.random() < 0.3:
        for _ in range(chance.randrange(1, 6)):
            place = chance.randrange(len(data))
            data[place : place + chance.choice((0, 1, 1, 1, 40))] = chance.randbytes(chance.choice((0, 1, 1, 2)))
            data = data or bytearray(b"\0")
    if chance.random() < 0.15:
        del data[chance.randrange(len(data)) :]
    return bytes(data)


class Attacker:
    """A connection that says some inputs and listens for a moment, or does not."""

    def __init__(self, mirror: MirrorProcess, chance: random.Random, said: bytes) -> None:
        self._connection = connect(mirror)
        self._chance = chance
        self._heard = b""
        self.patient = chance.random() < 0.7
        """Whether it waits for an answer before it leaves."""
        self._connection.setblocking(False)
        with contextlib.suppress(BlockingIOError, ConnectionError):
            self._connection.send(said)
        with contextlib.suppress(OSError):
            if chance.random() < 0.4:
                self._connection.shutdown(socket.SHUT_WR)

    def fileno(self) -> int:
        return self._connection.fileno()

    def listen(self) -> None:
        """Take what has come."""
        self.patient = False
        with contextlib.suppress(OSError):
            self._heard += self._connection.recv(65536)[:4096]

    def leave(self) -> bytes:
        """Close, or reset; what was heard."""
        if self._chance.random() < 0.4:
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._connection.close()
        return self._heard


def attack(mirror: MirrorProcess, seed: int, inputs: int, image_hash: str) -> Counter[bytes]:
    """Send so many inputs, one to five on each connection, `AT_ONCE` connections at a time; the first answers."""
    chance = random.Random(seed)
    answers: Counter[bytes] = Counter()
    attackers: list[Attacker] = []
    while inputs > 0:
        count = chance.choice((1, 1, 1, 1, 2, 5))
        inputs -= count
        attackers.append(Attacker(mirror, chance, b"".join(one_input(chance, image_hash) for _ in range(count))))
        if len(attackers) < AT_ONCE and inputs > 0:
            continue
        for _ in range(
            3
        ):  # came later than all of them: by its answers they have been read, however slow the machine is
            assert fetch(mirror.image_url).sha256 == image_hash, f"seed {seed}"
        for attacker in attackers:  # many said half a request and will get no answer: nobody waits for one
            if attacker.patient:
                attacker.listen()
        for attacker in attackers:
            heard = attacker.leave()
            answers[heard[9:12]] += 1
            assert b" 500 Internal" not in heard[:200], f"seed {seed}: {heard[:500]!r}"
        attackers.clear()
    return answers


@pytest.fixture(scope="module")
def upstream() -> Iterator[Simulator]:
    with Simulator.start([ImageSpec("first", size=300_000)], tokens=[TOKEN, FUZZ_TOKEN]) as simulator:
        yield simulator


def test_ten_thousand_inputs_leave_nothing_behind_and_harm_nobody(tmp_path: Path, upstream: Simulator) -> None:
    image_hash = upstream.image_sha256("first")
    with MirrorProcess(tmp_path, upstream.api_url, {"server": {"header_timeout": "5s"}}) as mirror:

        def serves() -> None:
            assert fetch(mirror.image_url).sha256 == image_hash, f"seed {SEED}"

        serves()
        attack(mirror, SEED + 1, 500, image_hash)  # what a first attack takes, it takes once
        eventually(lambda: connections(mirror) == 0, 60.0, "the end of all connections")
        serves()
        before = descriptors(mirror), threads(mirror), mirror.resident()
        stop = threading.Event()
        mistakes: list[BaseException] = []

        def serve_meanwhile() -> None:
            try:
                while not stop.wait(0.2):
                    serves()
            except BaseException as mistake:
                mistakes.append(mistake)

        honest = threading.Thread(target=serve_meanwhile)
        honest.start()
        began = time.monotonic()
        try:
            answers = attack(mirror, SEED, INPUTS, image_hash)
        finally:
            stop.set()
            honest.join()
        print(f"{INPUTS} inputs in {time.monotonic() - began:.1f} s: {answers}")
        assert mistakes == []
        assert {b"200", b"400", b"404"} <= set(answers)  # they came as far as that
        assert answers.total() - answers[b""] > INPUTS // 20
        serves()
        eventually(lambda: connections(mirror) == 0, 60.0, f"the end of all connections, seed {SEED}")
        log = mirror.log()
        for sign in ("Traceback", "ERROR", "Exception", "never awaited", "never retrieved", " 500 "):
            assert sign not in log, f"seed {SEED}: {[line for line in log.splitlines() if sign in line][:5]}"
        eventually(lambda: descriptors(mirror) <= before[0] + 1, 60.0, f"descriptors going back, seed {SEED}")
        assert threads(mirror) <= before[1] + 16, f"seed {SEED}"  # the pool for what waits for the disk may have grown
        print(f"memory before and after: {before[2]} {mirror.resident()}")
        assert mirror.resident() - before[2] < 16 * MIB, f"seed {SEED}"


def connections(mirror: MirrorProcess) -> int:
    """How many connections of clients it has, in any state that costs it a descriptor."""
    port = f":{mirror.port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(port) and row[3] in {"01", "08"} for row in rows)


def descriptors(mirror: MirrorProcess) -> int:
    assert mirror.process is not None
    return len(os.listdir(f"/proc/{mirror.process.pid}/fd"))  # noqa: PTH208


def threads(mirror: MirrorProcess) -> int:
    assert mirror.process is not None
    return len(os.listdir(f"/proc/{mirror.process.pid}/task"))  # noqa: PTH208
