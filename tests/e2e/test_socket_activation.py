"""Sockets that somebody else listens with: systemd's own tool for that, and the protocol by hand (sd_listen_fds(3))."""

import os
import re
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Protocol

import pytest

from mirror.simulator.client import Simulator
from tests.support.admin import ask_admin
from tests.support.downloads import at_once, fetch
from tests.support.fixtures import Sections
from tests.support.needs import needs
from tests.support.processes import MirrorProcess, eventually


class Stopped(Protocol):
    """Makes a mirror that has not been started; it ends with the test."""

    def __call__(self, sections: Sections | None = None, **environ: str) -> MirrorProcess:
        """Make one more."""


def listening() -> socket.socket:
    """What a service manager would pass on."""
    return socket.create_server(("127.0.0.1", 0))


def pass_on(mirror: MirrorProcess, sockets: Sequence[socket.socket | IO[bytes]], names: str, count: str = "") -> None:
    """Have it start as a service manager's child: with these sockets from descriptor 3 on, told by its environment."""
    mirror.passed = [each.fileno() for each in sockets]
    # From high numbers down, so that no descriptor is overwritten before it has been copied.
    lifted = "".join(f"exec {number + 100}<&{each};" for number, each in enumerate(mirror.passed, 3))
    lowered = "".join(f"exec {number}<&{number + 100} {number + 100}<&-;" for number in range(3, 3 + len(sockets)))
    told = f"export LISTEN_PID=$$ LISTEN_FDS={count or len(sockets)} LISTEN_FDNAMES={names};"
    mirror.through = ["bash", "-c", f'{lifted} {lowered} {told} exec "$@"', "bash"]


@pytest.fixture
def stopped(tmp_path: Path, simulator: Simulator) -> Iterator[Stopped]:
    """Mirrors to be started."""
    made: list[MirrorProcess] = []

    def make(sections: Sections | None = None, **environ: str) -> MirrorProcess:
        made.append(MirrorProcess(tmp_path / f"mirror-{len(made)}", simulator.api_url, sections, environ))
        return made[-1]

    yield make
    for mirror in made:
        if mirror.process is not None and mirror.process.poll() is None:
            mirror.stop()


def refused(mirror: MirrorProcess) -> str:
    """Why it does not start: one line, and the status of a configuration error."""
    mirror.start(wait=False)
    assert mirror.wait_dead(30) == 2
    (line,) = mirror.log().splitlines()
    return line


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_client_starts_the_mirror_and_is_served(stopped: Stopped, simulator: Simulator, workers: int) -> None:
    activate = needs("systemd-socket-activate", "apt-get install systemd")
    mirror = stopped({"server": {"workers": workers}})
    mirror.through = [activate, f"--listen=127.0.0.1:{mirror.port}", "--fdname=clients"]
    mirror.start(wait=False)
    eventually(lambda: "Listening on" in mirror.log(), what="systemd's tool")
    time.sleep(0.3)
    assert "serving" not in mirror.settled.log()  # nobody has asked yet
    download = fetch(mirror.image_url)
    assert (download.ended, download.sha256) == ("complete", simulator.image_sha256("first"))
    outcomes = at_once(12, lambda: fetch(mirror.image_url))
    assert {each.sha256 for each in outcomes} == {simulator.image_sha256("first")}
    mirror.wait_ready()
    assert mirror.stop() == 0


def test_it_listens_with_both_sockets_wherever_they_are_and_nowhere_else(stopped: Stopped) -> None:
    mirror = stopped()
    with listening() as clients, listening() as admin:
        bound = mirror.port, mirror.admin_port
        pass_on(mirror, [clients, admin], "clients:admin")
        mirror.port, mirror.admin_port = clients.getsockname()[1], admin.getsockname()[1]
        mirror.start()
        assert fetch(mirror.metadata_url).status == 200
        assert ask_admin(mirror, "GET", "/healthz").status == 200
        for port in bound:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))


@pytest.mark.parametrize("workers", [1, 2])
def test_who_comes_while_it_is_restarted_waits_and_is_served(stopped: Stopped, workers: int) -> None:
    mirror = stopped({"server": {"workers": workers}})
    with listening() as clients, ThreadPoolExecutor(4) as pool:
        pass_on(mirror, [clients], "clients")
        mirror.port = clients.getsockname()[1]
        mirror.start()
        assert fetch(mirror.metadata_url).status == 200
        assert mirror.stop() == 0
        waiting = [pool.submit(fetch, mirror.metadata_url) for _ in range(4)]
        time.sleep(0.3)
        assert not any(each.done() for each in waiting)
        mirror.start()
        assert {each.result().status for each in waiting} == {200}


def test_a_worker_that_dies_is_replaced_by_one_that_serves_the_same_socket(stopped: Stopped) -> None:
    mirror = stopped({"server": {"workers": 2}})
    with listening() as clients:
        pass_on(mirror, [clients], "clients")
        mirror.port = clients.getsockname()[1]
        mirror.start()
        for pid in re.findall(r"worker \d+ serves, process (\d+)", mirror.settled.log()):
            os.kill(int(pid), signal.SIGKILL)
        assert fetch(mirror.metadata_url).status == 200
        eventually(lambda: mirror.actions().count("worker.started") == 4, what="two others")


@pytest.mark.parametrize("pid", ["1", ""])
def test_what_is_meant_for_another_process_is_left_alone(stopped: Stopped, pid: str) -> None:
    mirror = stopped(LISTEN_PID=pid, LISTEN_FDS="1", LISTEN_FDNAMES="clients")
    mirror.start()
    assert fetch(mirror.metadata_url).status == 200


def test_an_admin_socket_that_others_reach_needs_the_admin_token(stopped: Stopped) -> None:
    mirror = stopped()
    with socket.create_server(("0.0.0.0", 0)) as admin:
        pass_on(mirror, [admin], "admin")
        assert "admin.token_file is required" in refused(mirror)


@pytest.mark.parametrize(
    ("names", "count", "said"),
    [
        ("pps-mirror.socket", "", "expected clients or admin"),
        ("clients:clients", "2", "two sockets"),
        ("clients:admin", "1", "names 2 sockets, but LISTEN_FDS = 1"),
        ("clients", "many", "LISTEN_FDS = 'many'"),
        ("admin:clients", "2", "the clients socket that was passed"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_status_2(stopped: Stopped, names: str, count: str, said: str) -> None:
    mirror = stopped()
    with listening() as one, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        pass_on(mirror, [one, one] if names == "clients:clients" else [one, datagrams], names, count or "1")
        assert said in refused(mirror)


def test_a_file_or_another_kind_of_socket_is_one_line_and_status_2(stopped: Stopped, tmp_path: Path) -> None:
    mirror = stopped()
    with (tmp_path / "file").open("w+b") as file:
        pass_on(mirror, [file], "clients")
        assert "the clients socket that was passed cannot be used: " in refused(mirror)
    mirror = stopped()
    with socket.socket(socket.AF_UNIX) as local:
        local.bind(str(tmp_path / "socket"))
        local.listen()
        pass_on(mirror, [local], "clients")
        assert "does not listen for TCP" in refused(mirror)


def test_no_child_of_the_mirror_inherits_the_socket_unasked(stopped: Stopped) -> None:
    mirror = stopped()
    with listening() as clients:
        pass_on(mirror, [clients], "clients")
        mirror.port = clients.getsockname()[1]
        mirror.start()
        assert mirror.process is not None
        flags = Path(f"/proc/{mirror.process.pid}/fdinfo/3").read_text()
        assert int(flags.split("flags:")[1].split()[0], 8) & 0o2000000  # O_CLOEXEC
