"""The listeners: TLS, limits on connections and headers, draining, health."""

import contextlib
import json
import signal
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mirror.simulator.client import Fault, ImageSpec, Simulator
from tests.support.certificates import certificate
from tests.support.downloads import AUTHORIZED, Download, fetch
from tests.support.forked import ForkedMirror
from tests.support.needs import needs
from tests.support.processes import MirrorProcess, eventually

SIZE = 3 << 20


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[Simulator]:
    with Simulator.start([ImageSpec("first", size=SIZE)]) as simulator:
        yield simulator


def read(url: str, context: ssl.SSLContext | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(url, headers=AUTHORIZED)
    try:
        with urllib.request.urlopen(request, context=context, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.fixture
def tls_mirror(tmp_path: Path, simulator: Simulator) -> Iterator[MirrorProcess]:
    cert, key = certificate(tmp_path / "tls")
    with ForkedMirror(tmp_path, simulator.api_url, {"server": {"tls_cert": str(cert), "tls_key": str(key)}}) as mirror:
        yield mirror


def trusting(tmp_path: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tmp_path / "tls" / "cert.pem")
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def test_over_tls_the_image_is_the_same_cold_and_hot(
    tls_mirror: MirrorProcess, simulator: Simulator, tmp_path: Path
) -> None:
    for _ in range(2):
        assert read(tls_mirror.image_url, trusting(tmp_path)) == (200, simulator.read("first"))


def test_over_tls_a_corrupt_fill_ends_in_a_reset_without_close_notify(
    tls_mirror: MirrorProcess, simulator: Simulator, tmp_path: Path
) -> None:
    authorization = AUTHORIZED["Authorization"]
    simulator.fault(Fault("store", corrupt_at=5, times=2))
    curl = needs("curl", "apt-get install curl")
    command = [curl, "-sS", "-k", "-o", "/dev/null", "-H", f"Authorization: {authorization}", tls_mirror.image_url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, "reset by peer" in done.stderr) == (56, True)
    with (
        socket.create_connection(("127.0.0.1", tls_mirror.port), timeout=30) as plain,
        trusting(tmp_path).wrap_socket(plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False) as connection,
    ):
        path = tls_mirror.image_url.removeprefix(tls_mirror.url)
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\n\r\n".encode())
        with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):  # a close_notify would be a clean end
            while connection.recv(65536):
                pass


def test_connections_beyond_the_limit_get_an_honest_503(tmp_path: Path, simulator: Simulator) -> None:
    sections = {"server": {"max_connections": 3}}
    with ForkedMirror(tmp_path, simulator.api_url, sections) as mirror, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", mirror.port))) for _ in range(3)]
        with Download(mirror.metadata_url) as refused:
            assert (refused.status, refused.header("Content-Type")) == (503, "application/json")
            assert refused.header("Retry-After")
            assert b"max_connections" in refused.read_all().body
        idle.pop().close()

        def served() -> bool:
            with Download(mirror.metadata_url) as answer:
                return answer.status == 200

        eventually(served)


def test_connections_may_be_more_than_the_descriptors_a_shell_gives(tmp_path: Path, simulator: Simulator) -> None:
    mirror = MirrorProcess(tmp_path, simulator.api_url)
    mirror.through = ["sh", "-c", 'ulimit -Sn 200; exec "$@"', "sh"]
    with mirror, contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection(("127.0.0.1", mirror.port)))
        assert fetch(mirror.image_url).status == 200


def test_a_connection_without_a_whole_request_is_closed_after_header_timeout(
    tmp_path: Path, simulator: Simulator
) -> None:
    with ForkedMirror(tmp_path, simulator.api_url, {"server": {"header_timeout": "1s"}}) as mirror:
        with socket.create_connection(("127.0.0.1", mirror.port), timeout=20) as slow:
            slow.sendall(b"GET / HTTP/1.1\r\nHo")
            assert slow.recv(1000) == b""
        simulator.fault(Fault("store", hang_after=SIZE - 1))
        with Download(mirror.image_url) as patient:  # a download that waits is not a slow header
            patient.read(SIZE - (64 << 10))
            with socket.create_connection(("127.0.0.1", mirror.port), timeout=20) as other:
                assert other.recv(1000) == b""
            simulator.release()
            assert patient.read_all().body == simulator.read("first")


def test_sigterm_lets_downloads_end_and_accepts_nothing_new(tmp_path: Path, simulator: Simulator) -> None:
    simulator.fault(Fault("store", hang_after=SIZE // 2))
    with MirrorProcess(tmp_path, simulator.api_url, {"server": {"drain": "30s"}}) as mirror:
        with Download(mirror.image_url) as download:
            download.read(SIZE // 2)
            mirror.send_signal(signal.SIGTERM)
            eventually(lambda: "mirror.stopping" in mirror.actions())

            def refused() -> bool:
                try:
                    socket.create_connection(("127.0.0.1", mirror.port)).close()
                except ConnectionRefusedError:
                    return True
                return False

            eventually(refused)
            simulator.release()
            assert download.read_all().body == simulator.read("first")
        assert mirror.wait_dead(20) == 0
    assert (mirror.store / "images" / simulator.image_sha256("first") / "image").exists()


@pytest.mark.parametrize("alone", [False, True], ids=["with an upstream", "without one"])
def test_health_and_readiness(tmp_path: Path, simulator: Simulator, alone: bool) -> None:
    sections = {"upstream": {"url": ""}, "auth": {"mode": "open"}} if alone else {}
    with ForkedMirror(tmp_path, simulator.api_url, sections) as mirror:
        ready = (200, {"ready": True, "reasons": [], "degraded": []})
        assert read(f"{mirror.admin_url}/healthz") == (200, b'{"alive": true}')
        assert readiness(mirror) == ready
        (mirror.store / "images").rename(tmp_path / "gone")
        (mirror.store / "images").touch()  # a store that cannot be used
        status, said = readiness(mirror)
        assert (status, said["ready"]) == ((503, False) if alone else (200, True))
        assert "store" in said["reasons" if alone else "degraded"][0]
        (mirror.store / "images").unlink()
        (tmp_path / "gone").rename(mirror.store / "images")
        assert readiness(mirror) == ready
        assert read(f"{mirror.admin_url}/nothing")[0] == 404


def readiness(mirror: MirrorProcess) -> tuple[int, dict[str, Any]]:
    status, body = read(f"{mirror.admin_url}/readyz")
    return status, json.loads(body)
