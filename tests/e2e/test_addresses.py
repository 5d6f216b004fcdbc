"""Where the mirror listens: on the same address in the same way, however many processes it has, and as `check` says."""

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mirror.simulator.client import ImageSpec, Simulator
from tests.support.commands import run
from tests.support.downloads import AUTHORIZED, fetch
from tests.support.forked import ForkedMirror
from tests.support.processes import METADATA, MirrorProcess, eventually, free_port

TIME_WAIT = "06"


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[Simulator]:
    with Simulator.start([ImageSpec("first", size=1 << 20)]) as simulator:
        yield simulator


def mirror_on(tmp_path: Path, simulator: Simulator, port: int | None, **server: object) -> MirrorProcess:
    sections = {"server": ({} if port is None else {"port": port}) | server}
    mirror = ForkedMirror(tmp_path, simulator.api_url, sections)
    mirror.port = port or mirror.port
    return mirror


def remembered(port: int) -> int:
    """Connections of that port that are over, and that the kernel remembers for a minute."""
    tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table]
    return sum(line[3] == TIME_WAIT and int(line[1].rpartition(":")[2], 16) == port for line in lines)


def leave_one_behind(mirror: MirrorProcess) -> None:
    """Have the mirror be the one that closes: then its side of the connection is remembered."""
    with socket.create_connection(("127.0.0.1", mirror.port), timeout=20) as client:
        client.sendall(f"GET {METADATA} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        while client.recv(65536):
            pass


def answered(host: str, port: int) -> bytes:
    """The first line of what is answered there."""
    with socket.create_connection((host, port), timeout=20) as client:
        client.sendall(
            f"GET {METADATA} HTTP/1.1\r\nHost: x\r\nAuthorization: {AUTHORIZED['Authorization']}\r\n\r\n".encode()
        )
        return client.recv(65536).partition(b"\r\n")[0]


def checked(mirror: MirrorProcess) -> str:
    said = run("check", "-c", mirror.config_file).stdout
    return next(line for line in said.splitlines() if " server " in line)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_the_number_of_workers_can_be_changed_at_any_restart(
    tmp_path: Path, simulator: Simulator, before: int, after: int
) -> None:
    with mirror_on(tmp_path, simulator, None, workers=before) as first:
        leave_one_behind(first)
    assert remembered(first.port)
    second = mirror_on(tmp_path, simulator, first.port, workers=after)
    assert f"port {first.port} is free" in checked(second)
    with second:
        assert fetch(second.metadata_url).status == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_an_address_that_is_taken_is_a_failure_that_a_service_manager_tries_again(
    tmp_path: Path, simulator: Simulator, workers: int
) -> None:
    with closing(socket.create_server(("127.0.0.1", free_port()))) as stranger:
        mirror = mirror_on(tmp_path, simulator, stranger.getsockname()[1], workers=workers)
        mirror.start(wait=False)
        assert mirror.wait_dead(30) == 1
        assert f"cannot listen on 127.0.0.1 port {mirror.port}: Address already in use" in mirror.settled.log()
        assert "Traceback" not in mirror.settled.log()
        assert "Address already in use" in checked(mirror)
    with mirror:
        assert fetch(mirror.metadata_url).status == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_two_mirrors_never_share_a_port(tmp_path: Path, simulator: Simulator, workers: int) -> None:
    with mirror_on(tmp_path / "one", simulator, None, workers=2) as first:
        second = mirror_on(tmp_path / "two", simulator, first.port, workers=workers)
        second.start(wait=False)
        assert second.wait_dead(30) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_the_unspecified_address_of_ipv6_takes_ipv4_as_well(tmp_path: Path, simulator: Simulator, workers: int) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    mirror = mirror_on(tmp_path, simulator, None, workers=workers, host="::")
    with mirror:
        for host in ("127.0.0.1", "::1"):
            assert answered(host, mirror.port) == b"HTTP/1.1 200 OK"
        eventually(lambda: "from 127.0.0.1, request" in mirror.log(), what="the line of the request")
        log = mirror.log()
    assert f"on http://[::]:{mirror.port}" in log
    with closing(socket.create_server(("127.0.0.1", mirror.port))):
        assert "Address already in use" in checked(mirror)


def test_a_name_is_listened_to_at_each_of_its_addresses(tmp_path: Path, simulator: Simulator) -> None:
    addresses = {str(found[4][0]) for found in socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)}
    for workers in (1, 2):
        with mirror_on(tmp_path / str(workers), simulator, None, workers=workers, host="localhost") as mirror:
            for address in addresses:
                assert answered(address, mirror.port) == b"HTTP/1.1 200 OK"
