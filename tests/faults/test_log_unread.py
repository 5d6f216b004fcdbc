"""A log that nobody reads, or that cannot be written: clients, operators and SIGTERM do not notice."""

import http.client
import os
import shlex
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.simulator.client import Simulator
from tests.support.admin import metric
from tests.support.downloads import Download, fetch
from tests.support.processes import MirrorProcess, eventually

LOST = "log_lines_lost_total"


class Fifo:
    """A pipe with a name, held open by the test."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self.end = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def fill(self) -> None:
        """Leave no room in it."""
        try:
            while True:
                os.write(self.end, b"." * 4096)
        except BlockingIOError:
            pass

    def read(self) -> bytes:
        """What is in it now."""
        data = b""
        try:
            while piece := os.read(self.end, 1 << 16):
                data += piece
        except BlockingIOError:
            pass
        return data

    def close(self) -> None:
        if self.end >= 0:
            os.close(self.end)
            self.end = -1


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Fifo]:
    fifo = Fifo(tmp_path / "log")
    yield fifo
    fifo.close()


def logging_to(path: Path | str, directory: Path, simulator: Simulator, workers: int = 1) -> MirrorProcess:
    """A mirror, not started yet, whose standard error is that file."""
    sections: dict[str, dict[str, object]] = {
        "server": {"workers": workers},
        "log": {"level": "debug", "format": "json"},
    }
    mirror = MirrorProcess(directory / "mirror", simulator.api_url, sections)
    mirror.through = ["sh", "-c", f'exec "$@" 2>{shlex.quote(str(path))}', "sh"]
    return mirror


def assert_serves_and_stops(mirror: MirrorProcess, simulator: Simulator) -> None:
    for _ in range(3):
        with Download(mirror.image_url) as download:
            assert download.read_all().body == simulator.read("first")
    with urllib.request.urlopen(f"{mirror.admin_url}/healthz", timeout=10) as answer:
        assert answer.status == 200
    assert mirror.stop() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_log_pipe_that_nobody_reads_keeps_nobody_waiting(
    tmp_path: Path, simulator: Simulator, fifo: Fifo, workers: int
) -> None:
    fifo.fill()
    with logging_to(fifo.path, tmp_path, simulator, workers) as mirror:
        assert_serves_and_stops(mirror, simulator)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_log_on_a_full_disk_loses_lines_and_counts_them(tmp_path: Path, simulator: Simulator, workers: int) -> None:
    with logging_to("/dev/full", tmp_path, simulator, workers) as mirror:
        fetch(mirror.metadata_url)
        eventually(lambda: metric(mirror, LOST) > 0, what="a count")
        assert_serves_and_stops(mirror, simulator)


def test_a_log_pipe_whose_reader_leaves_ends_nothing(tmp_path: Path, simulator: Simulator, fifo: Fifo) -> None:
    with logging_to(fifo.path, tmp_path, simulator) as mirror:
        fifo.close()
        assert_serves_and_stops(mirror, simulator)


def test_lines_beyond_the_room_are_counted_and_said_when_somebody_reads_again(
    tmp_path: Path, simulator: Simulator, fifo: Fifo
) -> None:
    fifo.fill()
    with logging_to(fifo.path, tmp_path, simulator) as mirror:
        connection = http.client.HTTPConnection("127.0.0.1", mirror.port, timeout=30)
        asked = 0
        while metric(mirror, LOST) < 10:
            for _ in range(100):
                connection.request("GET", "/" + "x" * 250)
                connection.getresponse().read()
            asked += 100
        connection.close()
        assert asked < 10_000
        read = b""

        def said() -> bool:
            nonlocal read
            read += fifo.read()
            return b'"log.lost"' in read

        eventually(said, what="a word about what was lost")
        assert b'"mirror.started"' in read  # what came first was kept
        lost = int(metric(mirror, LOST))
        assert f'"{lost} lines were not written: ' in read.decode()
