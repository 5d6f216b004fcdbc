"""Guarantee 9: memory depends neither on the image's size nor on clients that read slowly or not at all."""

import re
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mirror.simulator.client import TOKEN, Fault, ImageSpec, Simulator
from tests.support.certificates import certificate
from tests.support.downloads import digest_of, fetch
from tests.support.needs import needs
from tests.support.processes import IMAGE, MirrorProcess

SIZE = 160 << 20
CLIENTS = 200
LIMIT = 100 << 20


def stalled_client(mirror: MirrorProcess, start: int) -> socket.socket:
    """Ask for the image from `start` on and take its first bytes, then nothing."""
    connection = socket.create_connection(("127.0.0.1", mirror.port), timeout=30)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    if mirror.scheme == "https":
        connection = ssl._create_unverified_context().wrap_socket(connection)
    request = f"GET {IMAGE} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nRange: bytes={start}-\r\n\r\n"
    connection.sendall(request.encode())
    return connection


def peak_memory(mirror: MirrorProcess) -> int:
    """The most that was resident so far, in bytes (VmHWM of proc_pid_status(5))."""
    assert mirror.process is not None
    status = Path(f"/proc/{mirror.process.pid}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) << 10


def over_tls(directory: Path) -> dict[str, dict[str, Any]]:
    """The sections of a mirror that speaks TLS."""
    cert, key = certificate(directory)
    return {"server": {"tls_cert": str(cert), "tls_key": str(key)}}


plain_or_tls = pytest.mark.parametrize("tls", [False, True], ids=["plain", "over TLS"])


@plain_or_tls
def test_two_hundred_clients_that_stall_anywhere_in_the_image_cost_less_than_100_mib(tmp_path: Path, tls: bool) -> None:
    sections = over_tls(tmp_path / "tls") if tls else {}
    curl = [needs("curl", "apt-get install curl"), "-ksS", "-H", f"Authorization: Bearer {TOKEN}"]
    with (
        Simulator.start([ImageSpec("first", size=SIZE)]) as simulator,
        MirrorProcess(tmp_path / "mirror", simulator.api_url, sections) as mirror,
    ):
        for cold in (True, False):
            if cold:
                simulator.fault(Fault("store", hang_after=SIZE // 2))
            with ExitStack() as clients:
                stalled = [
                    clients.enter_context(stalled_client(mirror, SIZE // 2 * number // CLIENTS))
                    for number in range(CLIENTS)
                ]
                for client in stalled:
                    assert client.recv(1000).startswith(b"HTTP/1.1 206")
                if cold:
                    simulator.wait_held()
                    simulator.release()
                assert digest_of([*curl, mirror.image_url]) == simulator.image_sha256("first")  # they slow nobody
        assert peak_memory(mirror) < LIMIT


def test_an_image_that_comes_over_several_connections_costs_no_more(tmp_path: Path) -> None:
    with (
        Simulator.start([ImageSpec("first", size=SIZE)], connection_rate=8e6) as simulator,
        MirrorProcess(tmp_path, simulator.api_url) as mirror,
        ExitStack() as clients,
    ):
        for number in range(CLIENTS):
            clients.enter_context(stalled_client(mirror, SIZE // 8 * number // CLIENTS))
        assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")
        assert simulator.counters().store_gets > 20
        assert peak_memory(mirror) < LIMIT


@pytest.mark.alone
@plain_or_tls
def test_two_hundred_clients_of_an_image_that_is_passed_through_cost_little_more(tmp_path: Path, tls: bool) -> None:
    sections: dict[str, dict[str, Any]] = {"store": {"min_free": "900TB"}}
    if tls:
        sections |= over_tls(tmp_path / "tls")
    with (
        Simulator.start([ImageSpec("first", size=SIZE)]) as simulator,
        MirrorProcess(tmp_path / "mirror", simulator.api_url, sections) as mirror,
        ThreadPoolExecutor(CLIENTS) as pool,
    ):
        curl = needs("curl", "apt-get install curl")
        command = [curl, "-ksS", "-H", f"Authorization: Bearer {TOKEN}", mirror.image_url]
        quick = [pool.submit(digest_of, command) for _ in range(20)]
        slow = [pool.submit(digest_of, [*command, "--limit-rate", "100k", "--max-time", "10"]) for _ in range(180)]
        assert {each.result() for each in quick} == {simulator.image_sha256("first")}
        assert simulator.image_sha256("first") not in {each.result() for each in slow}
        assert simulator.counters().store_gets <= 4
        assert peak_memory(mirror) < LIMIT + (20 << 20) * tls
