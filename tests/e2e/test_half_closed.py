"""A client that ends its side after the request (`printf ... | nc -N`) is answered; one that has left is noticed."""

import hashlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.simulator.client import Fault, ImageSpec, Simulator
from tests.support.downloads import AUTHORIZED, Download
from tests.support.forked import ForkedMirror
from tests.support.needs import needs
from tests.support.processes import IMAGE, METADATA, MirrorProcess, eventually
from tests.support.raw import connect, hear

MIB = 1 << 20
SIZE = 32 * MIB
FIELDS = f"Host: x\r\nAuthorization: {AUTHORIZED['Authorization']}\r\n"


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[Simulator]:
    with Simulator.start([ImageSpec("first", size=SIZE)]) as simulator:
        yield simulator


@pytest.fixture
def mirror(tmp_path: Path, simulator: Simulator) -> Iterator[MirrorProcess]:
    # Longer than any test waits: no end comes of a connection's being idle.
    with ForkedMirror(tmp_path, simulator.api_url, {"server": {"header_timeout": "10m"}}) as mirror:
        yield mirror


def asking(*paths: str, fields: str = "") -> bytes:
    return b"".join(f"GET {path} HTTP/1.1\r\n{FIELDS}{fields}\r\n".encode() for path in paths)


def half_close(mirror: MirrorProcess, *paths: str) -> bytes:
    """Ask for one thing after another at once, say no more, and hear everything that comes."""
    with connect(mirror) as connection:
        connection.sendall(asking(*paths))
        connection.shutdown(socket.SHUT_WR)
        return hear(connection)


def parted(answer: bytes) -> tuple[bytes, bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0], body


def test_metadata_and_the_image_cold_and_hot(mirror: MirrorProcess, simulator: Simulator) -> None:
    image = simulator.read("first")
    assert parted(half_close(mirror, METADATA))[0] == b"HTTP/1.1 200 OK"
    for _ in range(2):
        assert parted(half_close(mirror, IMAGE)) == (b"HTTP/1.1 200 OK", image)


def test_several_requests_at_once_get_all_their_answers_and_then_the_end(mirror: MirrorProcess) -> None:
    answer = half_close(mirror, METADATA, "/nothing", METADATA)
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert answer.count(b"HTTP/1.1 404 ") == 1
    assert answer.count(b"Connection: close") == 1


def test_it_is_served_when_it_ends_its_side_in_the_middle_of_a_stalled_fill(
    mirror: MirrorProcess, simulator: Simulator
) -> None:
    simulator.fault(Fault("store", hang_after=SIZE // 2))
    with connect(mirror) as connection:
        connection.sendall(asking(IMAGE))
        said = connection.recv(MIB)
        simulator.wait_held()
        connection.shutdown(socket.SHUT_WR)
        simulator.release()
        said += hear(connection)
    assert parted(said)[1] == simulator.read("first")


def test_netcat_gets_the_image(mirror: MirrorProcess, simulator: Simulator) -> None:
    nc = needs("nc", "apt-get install netcat-openbsd")
    done = subprocess.run(
        [nc, "-N", "127.0.0.1", str(mirror.port)], input=asking(IMAGE), capture_output=True, timeout=60, check=True
    )
    assert hashlib.sha256(parted(done.stdout)[1]).hexdigest() == simulator.image_sha256("first")


def test_a_connection_that_ends_without_a_request_or_in_the_middle_of_one_is_closed(mirror: MirrorProcess) -> None:
    assert half_close(mirror) == b""
    for partial in (b"GET / HTTP/1.1\r\nHos", b"GET"):
        with connect(mirror) as connection:
            connection.sendall(partial)
            connection.shutdown(socket.SHUT_WR)
            assert hear(connection) == b""


def test_one_that_has_left_for_good_is_noticed_though_nothing_is_sent(
    mirror: MirrorProcess, simulator: Simulator
) -> None:
    simulator.fault(Fault("store", hang_after=SIZE // 2))
    with Download(mirror.image_url) as first:
        first.read(SIZE // 2 - 65536)
        simulator.wait_held()
        connection = connect(mirror)
        connection.sendall(asking(IMAGE))
        left = len(connection.recv(1000))
        while left < SIZE // 2 - 65536:
            left += len(connection.recv(MIB))
        connection.shutdown(socket.SHUT_WR)
        eventually(lambda: state(mirror, connection) == "08", what="the end of its side")  # CLOSE_WAIT
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, (1).to_bytes(4, "little") + bytes(4))
        connection.close()  # with a reset, as its kernel answers a probe when the program is gone
        eventually(lambda: " 499 " in mirror.log(), what="its end")
        simulator.release()
        assert first.read_all().body == simulator.read("first")


def state(mirror: MirrorProcess, connection: socket.socket) -> str | None:
    """The state of the mirror's side of a connection, as the kernel has it."""
    ours = connection.getsockname()[1]
    for fields in map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:]):
        ends = [int(each.rpartition(":")[2], 16) for each in fields[1:3]]
        if ends == [mirror.port, ours]:
            return fields[3]
    return None
