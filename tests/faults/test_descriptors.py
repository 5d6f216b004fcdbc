"""Few descriptors: what runs keeps what it needs, who comes then is told so, and operators are answered."""

import asyncio
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from mirror.http import accept
from mirror.http.bind import listening
from mirror.process.descriptors import EACH, LEAST, RESERVE, DescriptorBudget
from mirror.simulator.client import Fault, ImageSpec, Simulator
from tests.support.admin import ask_admin
from tests.support.downloads import Download, fetch
from tests.support.processes import MirrorProcess, eventually

MIB = 1 << 20
SIZE = 16 * MIB
LIMIT = 96
FITTING = 18
"""Connections that are served at once with that limit."""


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[Simulator]:
    with Simulator.start([ImageSpec("first", size=SIZE)]) as simulator:
        yield simulator


def limited(tmp_path: Path, simulator: Simulator, limit: int, workers: int = 1) -> MirrorProcess:
    mirror = MirrorProcess(tmp_path, simulator.api_url, {"server": {"workers": workers}})
    mirror.through = ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh"]
    return mirror


def crowd(mirror: MirrorProcess, stack: ExitStack, count: int) -> None:
    """Have so many come and say nothing."""
    for _ in range(count):
        stack.enter_context(socket.create_connection(("127.0.0.1", mirror.port), timeout=20))


def test_a_crowd_beyond_the_descriptors_is_told_so_and_what_runs_goes_on(tmp_path: Path, simulator: Simulator) -> None:
    simulator.fault(Fault("store", hang_after=SIZE // 2))
    with limited(tmp_path, simulator, LIMIT) as mirror, ExitStack() as stack:
        assert f"{LIMIT} files may be open at once: that is enough for {FITTING} connections" in mirror.settled.log()
        downloads = [stack.enter_context(Download(mirror.image_url)) for _ in range(4)]
        for download in downloads:
            download.read(MIB)
        simulator.wait_held()
        crowd(mirror, stack, FITTING - len(downloads))
        with Download(mirror.metadata_url) as refused:
            assert (refused.status, refused.header("Content-Type")) == (503, "application/json")
            assert refused.header("Retry-After")
            assert f"{FITTING} connections open already ({LIMIT} files may be open at once)" in str(
                refused.read_all().body
            )
        crowd(mirror, stack, 300)
        assert ask_admin(mirror, "GET", "/healthz").status == 200
        simulator.release()
        for download in downloads:
            assert download.read_all().body == simulator.read("first")
        log = mirror.log()
    assert "Traceback" not in log
    assert "[Errno" not in log


def served(mirror: MirrorProcess) -> bool:
    """Whether newcomers are answered, and not told that there are too many already."""
    try:
        return fetch(mirror.metadata_url).status == 200
    except ConnectionError:  # so many came before that nobody even says no
        return False


def test_each_worker_has_its_own_descriptors(tmp_path: Path, simulator: Simulator) -> None:
    with limited(tmp_path, simulator, LIMIT, workers=2) as mirror, ExitStack() as stack:
        crowd(mirror, stack, 4 * LIMIT)
        eventually(lambda: not any(served(mirror) for _ in range(6)), what="a crowd at each of them")
        assert ask_admin(mirror, "GET", "/healthz").status == 200
        stack.close()
        eventually(lambda: served(mirror), what="room again, when the crowd has left")
        assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")
        assert "Traceback" not in mirror.settled.log()


def test_too_few_to_run_at_all_is_one_line_and_status_2(tmp_path: Path, simulator: Simulator) -> None:
    mirror = limited(tmp_path, simulator, LEAST - 1).start(wait=False)
    assert mirror.wait_dead(30) == 2
    assert mirror.settled.log().count("\n") == 1
    assert f"only {LEAST - 1} files may be open at once" in mirror.settled.log()


def test_check_says_how_many_connections_the_limit_is_enough_for(tmp_path: Path, simulator: Simulator) -> None:
    mirror = limited(tmp_path, simulator, LIMIT)
    command = [*mirror.through, sys.executable, "-m", "mirror.cli.main", "check", "-c", str(mirror.config_file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    said = f"{LIMIT} files may be open at once: that is enough for {FITTING} connections"
    assert f"server.max_connections = 4096, but {said}" in done.stdout


def test_a_usual_limit_is_enough_for_what_the_configuration_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, clients in ((65536, 4096), (9152, 4096), (1024, 312)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        room = DescriptorBudget.of(4096)
        assert room.clients == clients
        assert (room.lacking is None) == (clients == 4096)
        assert room.clients * EACH + room.beyond + room.operators + RESERVE <= limit


class Counting(socket.socket):
    """Counts how often somebody is to be accepted."""

    tries = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.tries += 1
        return super().accept()


def test_when_nothing_can_be_accepted_it_is_said_once_and_goes_on_as_soon_as_it_can(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept, "PAUSE", 0.01)

    async def accepting() -> None:
        arrived = asyncio.Event()

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                transport.close()
                arrived.set()

        (bound,) = listening("127.0.0.1", 0)
        port = Counting(fileno=bound.detach())
        acceptor = accept.Acceptor([port], Protocol, None, 1.0)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with closing(socket.create_connection(port.getsockname())), ExitStack() as taken:
            highest = max(int(each.name) for each in Path("/proc/self/fd").iterdir()) + 1
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
            try:
                with pytest.raises(OSError, match="Too many"):
                    while True:
                        taken.callback(os.close, os.dup(0))
                while port.tries < 3:
                    await asyncio.sleep(0.01)
                assert not arrived.is_set()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await asyncio.wait_for(arrived.wait(), 20)
        await acceptor.close()

    asyncio.run(accepting())
    assert said(caplog) == ["no connection can be accepted: Too many open files"]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelname != "DEBUG"]
