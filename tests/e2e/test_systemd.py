"""What the mirror tells a service manager: a real socket, a real process."""

import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from mirror.simulator.client import Fault, Simulator
from tests.support.downloads import Download, fetch
from tests.support.fixtures import SIZE, FreshMirror
from tests.support.processes import MirrorProcess, eventually

pytestmark = pytest.mark.real_command


@contextmanager
def listening(address: str | bytes) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(30)
        manager.bind(address)
        yield manager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The service manager's socket."""
    with listening(str(tmp_path / "notify")) as manager:
        yield manager


def environ(manager: socket.socket, **more: str) -> Mapping[str, str]:
    return {"NOTIFY_SOCKET": manager.getsockname(), **more}


def hear(manager: socket.socket) -> list[str]:
    """The next message that is no sign of life."""
    while (said := manager.recv(4096).decode().splitlines()) == ["WATCHDOG=1"]:
        pass
    return said


def heard(manager: socket.socket) -> list[str]:
    """Everything that is waiting to be heard."""
    manager.setblocking(False)
    said: list[str] = []
    try:
        while True:
            said += manager.recv(4096).decode().splitlines()
    except BlockingIOError:
        return said
    finally:
        manager.settimeout(30)


def send(mirror: MirrorProcess, number: signal.Signals) -> None:
    mirror.send_signal(number)


@pytest.mark.parametrize("kind", ["a path", "an abstract name"])
def test_it_says_when_it_is_ready_and_when_it_stops(fresh_mirror: FreshMirror, tmp_path: Path, kind: str) -> None:
    name = str(tmp_path / "notify") if kind == "a path" else f"@pps-mirror-test-{os.getpid()}-{time.monotonic_ns()}"
    with listening("\0" + name[1:] if name.startswith("@") else name) as manager:
        mirror = fresh_mirror(environ={"NOTIFY_SOCKET": name})
        assert hear(manager) == ["READY=1"]
        assert mirror.stop() == 0
        assert hear(manager) == ["STOPPING=1"]
        assert heard(manager) == []


def test_when_it_says_that_it_is_ready_it_serves(tmp_path: Path, simulator: Simulator, manager: socket.socket) -> None:
    mirror = MirrorProcess(tmp_path / "mirror", simulator.api_url, environ=environ(manager))
    mirror.start(wait=False)
    try:
        assert hear(manager) == ["READY=1"]
        assert fetch(mirror.metadata_url).status == 200
    finally:
        mirror.stop()


def test_it_says_that_it_stops_before_downloads_have_ended(
    fresh_mirror: FreshMirror, simulator: Simulator, manager: socket.socket
) -> None:
    simulator.fault(Fault("store", hang_after=SIZE // 2))
    mirror = fresh_mirror(environ=environ(manager))
    assert hear(manager) == ["READY=1"]
    with Download(mirror.image_url) as download:
        download.read(SIZE // 2)
        send(mirror, signal.SIGTERM)
        assert hear(manager) == ["STOPPING=1"]
        simulator.release()
        assert download.read_all().ended == "complete"


def test_at_sighup_it_says_that_it_reloads_since_when_and_that_it_has(
    fresh_mirror: FreshMirror, manager: socket.socket
) -> None:
    mirror = fresh_mirror(environ=environ(manager))
    assert hear(manager) == ["READY=1"]
    for _ in range(3):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        send(mirror, signal.SIGHUP)
        first, second = hear(manager)
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        assert first == "RELOADING=1"
        assert second.startswith("MONOTONIC_USEC=")
        assert before <= int(second.partition("=")[2]) <= after
        assert hear(manager) == ["READY=1"]
    assert heard(manager) == []


@pytest.mark.parametrize("asked", [{}, {"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}], ids=["no", "another", "bad"])
def test_without_being_asked_it_sends_no_sign_of_life(
    fresh_mirror: FreshMirror, manager: socket.socket, asked: dict[str, str]
) -> None:
    usec = {} if not asked else {"WATCHDOG_USEC": "20000"}
    mirror = fresh_mirror(environ=environ(manager, **(usec | asked)))
    eventually(lambda: fetch(mirror.metadata_url).status == 200)
    assert mirror.stop() == 0
    assert heard(manager) == ["READY=1", "STOPPING=1"]


def test_it_sends_signs_of_life_at_half_of_the_time_it_has_until_it_has_ended(
    tmp_path: Path, simulator: Simulator, manager: socket.socket
) -> None:
    mirror = MirrorProcess(
        tmp_path / "mirror", simulator.api_url, {"server": {"drain": "10m"}}, environ(manager, WATCHDOG_USEC="200000")
    )
    simulator.fault(Fault("store", hang_after=SIZE // 2))
    with mirror:
        assert hear(manager) == ["READY=1"]
        began = time.monotonic()
        heard(manager)
        for _ in range(6):
            assert manager.recv(4096) == b"WATCHDOG=1"
        assert time.monotonic() - began >= 0.5
        with Download(mirror.image_url) as download:
            download.read(SIZE // 2)
            send(mirror, signal.SIGTERM)
            assert hear(manager) == ["STOPPING=1"]
            for _ in range(3):
                assert manager.recv(4096) == b"WATCHDOG=1"
            simulator.release()
            assert download.read_all().ended == "complete"


def test_a_process_that_stands_still_sends_none(fresh_mirror: FreshMirror, manager: socket.socket) -> None:
    mirror = fresh_mirror(environ=environ(manager, WATCHDOG_USEC="20000"))
    assert hear(manager) == ["READY=1"]
    send(mirror, signal.SIGSTOP)
    try:
        assert mirror.process is not None
        stat = Path(f"/proc/{mirror.process.pid}/stat")
        eventually(lambda: stat.read_text().rpartition(") ")[2].startswith("T"))
        heard(manager)
        time.sleep(0.2)  # ten times what it was given
        assert heard(manager) == []
    finally:
        send(mirror, signal.SIGCONT)
    assert manager.recv(4096) == b"WATCHDOG=1"


@pytest.mark.parametrize("address", ["/nowhere/notify", "vsock:2:1234", ""])
def test_a_service_manager_that_cannot_be_told_hinders_nothing(fresh_mirror: FreshMirror, address: str) -> None:
    mirror = fresh_mirror(environ={"NOTIFY_SOCKET": address})
    assert fetch(mirror.metadata_url).status == 200
    assert mirror.stop() == 0
    assert ("systemd.unheard" in mirror.settled.actions()) == bool(address)


def test_with_the_watchdog_pid_of_the_mirror_it_is_asked(
    tmp_path: Path, simulator: Simulator, manager: socket.socket
) -> None:
    """A shell that knows its own process id and then becomes the mirror, as systemd's child does."""
    mirror = MirrorProcess(tmp_path / "mirror", simulator.api_url, environ=environ(manager, WATCHDOG_USEC="20000"))
    mirror.through = ["sh", "-c", 'WATCHDOG_PID=$$ exec "$@"', "sh"]
    mirror.start(wait=False)
    try:
        assert hear(manager) == ["READY=1"]
        assert manager.recv(4096) == b"WATCHDOG=1"
    finally:
        mirror.stop()
