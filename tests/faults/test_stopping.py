"""SIGTERM: nothing new is taken, what runs may end, what was fetched is kept; who insists is obeyed at once."""

import contextlib
import json
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.simulator.client import TOKEN, Fault, ImageSpec, Simulator
from tests.support.certificates import certificate
from tests.support.downloads import AUTHORIZED, Download
from tests.support.fixtures import SIZE, Ask, FreshMirror
from tests.support.processes import IMAGE, METADATA, MirrorProcess, Process, eventually

pytestmark = pytest.mark.real_command

HALF = SIZE // 2
REQUEST = f"GET {{}} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"


def stop(mirror: MirrorProcess, number: signal.Signals = signal.SIGTERM) -> Process:
    """Ask it to stop and return when it has begun to."""
    assert mirror.process is not None
    mirror.send_signal(number)
    eventually(lambda: "mirror.stopping" in mirror.actions(), what="the beginning of the stop")
    return mirror.process


def stops_halfway(simulator: Simulator) -> None:
    """Let the line fall silent at half of the image, and end when it is released."""
    simulator.fault(Fault("store", hang_after=HALF, cut_after=HALF))


@pytest.fixture
def patient(fresh_mirror: FreshMirror) -> MirrorProcess:
    """A mirror that would wait for downloads longer than any test lasts."""
    return fresh_mirror({"server": {"drain": "10m", "header_timeout": "10m"}})


@pytest.fixture
def patient_over_tls(tmp_path: Path, fresh_mirror: FreshMirror) -> MirrorProcess:
    """The same over TLS."""
    cert, key = certificate(tmp_path / "tls")
    server = {"drain": "10m", "header_timeout": "10m", "tls_cert": str(cert), "tls_key": str(key)}
    return fresh_mirror({"server": server})


def connect(mirror: MirrorProcess, receive_buffer: int | None = None) -> socket.socket:
    connection = socket.socket()
    connection.settimeout(30)
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect(("127.0.0.1", mirror.port))
    return connection


def greet(connection: socket.socket) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(connection, suppress_ragged_eofs=False)


def ask_on(connection: socket.socket, path: str) -> bytes:
    """Send a request on it; the beginning of the body."""
    connection.sendall(REQUEST.format(path).encode())
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(65536)
    assert head.startswith(b"HTTP/1.1 200 ")
    return head.partition(b"\r\n\r\n")[2]


# What a fill has received


@pytest.mark.parametrize("left", ["before", "while it stops"])
def test_a_fill_that_no_client_waits_for_holds_nothing_up_and_a_restart_fetches_only_the_rest(
    patient: MirrorProcess, simulator: Simulator, ask: Ask, left: str
) -> None:
    stops_halfway(simulator)
    with Download(patient.image_url) as download:
        download.read(HALF)
        if left == "while it stops":
            stop(patient)
        download.abandon()
    if left == "before":
        stop(patient)
    assert patient.wait_dead(30) == 0
    assert (patient.store / "partial" / simulator.image_sha256("first")).stat().st_size == HALF
    simulator.release()
    patient.start()
    assert ask(patient.image_url).body == simulator.read("first")
    assert [asked.range for asked in simulator.log("store")] == [None, f"bytes={HALF}-"]
    assert simulator.bytes_sent() == SIZE


def test_when_the_drain_is_over_clients_are_reset_and_a_restart_fetches_only_the_rest(
    fresh_mirror: FreshMirror, simulator: Simulator, ask: Ask
) -> None:
    mirror = fresh_mirror({"server": {"drain": "1s"}})
    stops_halfway(simulator)
    with Download(mirror.image_url) as download:
        download.read(HALF)
        process = stop(mirror)
        assert download.read_all().ended == "reset"  # a plain close would look like an end to some
        assert process.wait(30) == 0
    simulator.release()
    mirror.start()
    assert ask(mirror.image_url).body == simulator.read("first")
    assert simulator.bytes_sent() == SIZE


def test_over_tls_clients_are_reset_without_close_notify(
    tmp_path: Path, fresh_mirror: FreshMirror, simulator: Simulator
) -> None:
    cert, key = certificate(tmp_path / "tls")
    mirror = fresh_mirror({"server": {"drain": "1s", "tls_cert": str(cert), "tls_key": str(key)}})
    stops_halfway(simulator)
    with greet(connect(mirror)) as connection:
        received = len(ask_on(connection, IMAGE))
        while received < HALF:
            received += len(connection.recv(65536))
        process = stop(mirror)
        with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
            while connection.recv(65536):
                pass
        assert process.wait(30) == 0


@pytest.mark.alone
def test_downloads_have_the_time_of_the_drain_and_no_longer(fresh_mirror: FreshMirror, simulator: Simulator) -> None:
    mirror = fresh_mirror({"server": {"drain": "5s"}})
    stops_halfway(simulator)
    with Download(mirror.image_url) as download:
        download.read(HALF)
        began = time.monotonic()
        stop(mirror)
        assert download.read_all().ended == "reset"
        assert 5 <= time.monotonic() - began < 10


# What clients see


def test_a_client_that_has_no_byte_yet_gets_all_of_them(patient: MirrorProcess, simulator: Simulator) -> None:
    simulator.fault(Fault("image", hold=True))
    connection = connect(patient)
    with connection, connection.makefile("rb") as answer:
        connection.sendall(REQUEST.format(IMAGE).encode())
        simulator.wait_held()
        process = stop(patient)
        simulator.release()
        assert answer.readline() == b"HTTP/1.1 200 OK\r\n"
        while answer.readline() != b"\r\n":
            pass
        assert answer.read() == simulator.read("first")  # to the end of the connection
    assert process.wait(30) == 0


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_idle_connections_are_closed_at_once_while_a_download_goes_on(
    request: pytest.FixtureRequest, simulator: Simulator, scheme: str
) -> None:
    mirror = request.getfixturevalue("patient" if scheme == "http" else "patient_over_tls")
    simulator.fault(Fault("store", hang_after=HALF))
    with contextlib.ExitStack() as stack:

        def opened() -> socket.socket:
            plain = stack.enter_context(connect(mirror))
            return plain if scheme == "http" else stack.enter_context(greet(plain))

        download, unused, kept, slow = opened(), opened(), opened(), opened()
        body = ask_on(download, IMAGE)
        while len(body) < HALF:
            body += download.recv(65536)
        metadata = ask_on(kept, METADATA)
        while len(metadata) < len(simulator.metadata_body("first")):
            metadata += kept.recv(65536)
        slow.sendall(b"GET / HTTP/1.1\r\nHo")
        process = stop(mirror)
        for idle in (unused, kept, slow):
            assert idle.recv(65536) == b""
        download.sendall(REQUEST.format(METADATA).encode())  # a second request on it is not taken any more
        simulator.release()
        while piece := download.recv(65536):
            body += piece
        assert body == simulator.read("first")
    assert process.wait(40) == 0


def test_a_slow_client_over_tls_gets_all_that_was_not_sent_yet(tmp_path: Path, fresh_mirror: FreshMirror) -> None:
    size = 24 << 20
    cert, key = certificate(tmp_path / "tls")
    with Simulator.start([ImageSpec("large", size=size)]) as simulator:
        server = {"drain": "10m", "tls_cert": str(cert), "tls_key": str(key)}
        mirror = fresh_mirror({"server": server}, upstream=simulator)
        with greet(connect(mirror, receive_buffer=65536)) as connection:
            body = bytearray(ask_on(connection, IMAGE))
            while len(body) < size - (6 << 20):
                body += connection.recv(65536)
            process = stop(mirror)
            while "http.request" not in mirror.actions():  # until all is written, which is not sent
                body += connection.recv(65536)
                time.sleep(0.002)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            while len(body) < size and (piece := connection.recv(65536)):
                body += piece
            assert bytes(body) == simulator.read("large")
        assert process.wait(30) == 0


@pytest.fixture
def stopping_over_tls(patient_over_tls: MirrorProcess, simulator: Simulator) -> Iterator[list[socket.socket]]:
    """Two connections whose TLS handshake has not begun, to a mirror that stops and has one download to wait for."""
    simulator.fault(Fault("store", hang_after=HALF))
    with contextlib.ExitStack() as stack:
        download = stack.enter_context(greet(connect(patient_over_tls)))
        silent = [stack.enter_context(connect(patient_over_tls)) for _ in range(2)]
        ask_on(download, IMAGE)
        process = stop(patient_over_tls)
        yield silent
        simulator.release()
        while download.recv(65536):
            pass
        download.close()
        assert process.wait(40) == 0  # with the other one still silent


def test_a_handshake_that_is_late_comes_to_nothing_and_one_that_never_comes_is_not_waited_for(
    stopping_over_tls: list[socket.socket],
) -> None:
    with contextlib.suppress(OSError), greet(stopping_over_tls[0]) as late:
        late.sendall(REQUEST.format(METADATA).encode())
        assert late.recv(65536) == b""


def test_while_it_stops_it_is_alive_and_not_ready(patient: MirrorProcess, simulator: Simulator, ask: Ask) -> None:
    simulator.fault(Fault("store", hang_after=HALF))
    with Download(patient.image_url) as download:
        download.read(HALF)
        process = stop(patient)
        assert ask(f"{patient.admin_url}/healthz").status == 200
        answer = ask(f"{patient.admin_url}/readyz")
        said = json.loads(answer.body)
        assert (answer.status, said["ready"], said["reasons"]) == (503, False, ["the mirror is stopping"])
        simulator.release()
        assert download.read_all().ended == "complete"
    assert process.wait(30) == 0


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_either_signal_stops_it_with_status_0(
    patient: MirrorProcess, simulator: Simulator, number: signal.Signals
) -> None:
    simulator.fault(Fault("store", hang_after=HALF))
    with Download(patient.image_url, headers=AUTHORIZED) as download:
        download.read(HALF)
        process = stop(patient, number)
        simulator.release()
        assert download.read_all().body == simulator.read("first")
    assert process.wait(30) == 0


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once_as_killed_by_it_and_the_partial_stays(
    patient: MirrorProcess, simulator: Simulator, first: signal.Signals, second: signal.Signals
) -> None:
    stops_halfway(simulator)
    with Download(patient.image_url) as download:
        download.read(HALF)
        process = stop(patient, first)
        process.send_signal(second)
        assert process.wait(30) == -second
    assert (patient.store / "partial" / simulator.image_sha256("first")).stat().st_size == HALF
