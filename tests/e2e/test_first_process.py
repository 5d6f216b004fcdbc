"""As process 1 of a container, which no signal ends by itself: it ends by its own hand, at the second one at once."""

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mirror.simulator.client import TOKEN, Fault, Simulator
from tests.support.commands import COMMAND, environment
from tests.support.downloads import Download
from tests.support.fixtures import SIZE
from tests.support.needs import needs
from tests.support.processes import MirrorProcess, Process, eventually

HALF = SIZE // 2


@pytest.fixture(scope="module")
def contained() -> Sequence[str]:
    """What is put before a command to make it process 1 of a container of its own."""
    return [needs("unshare", "apt-get install util-linux", root=True), "--pid", "--fork", "--mount-proc"]


def first_process(unshare: Process) -> int:
    """Its number as we see it, when there is one."""
    found: list[int] = []

    def look() -> bool:
        found[:] = map(int, Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text().split())
        return bool(found)

    eventually(look, what="the first process")
    (pid,) = found
    status = Path(f"/proc/{pid}/status").read_text()
    assert next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1] == "1"
    return pid


@pytest.fixture
def running(contained: Sequence[str], tmp_path: Path) -> Iterator["Running"]:
    running = Running(contained, tmp_path)
    yield running
    running.kill()


class Running:
    """A command as process 1, with its output in a file."""

    def __init__(self, contained: Sequence[str], directory: Path) -> None:
        self._contained = contained
        self._file = directory / "said"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str | Path, **environ: str) -> "Running":
        given = {name: value for name, value in environment().items() if not name.lower().endswith("_proxy")}
        with self._file.open("wb") as said:
            self._process = subprocess.Popen(
                [*self._contained, "env", "--default-signal=INT", *COMMAND, *arguments],
                env=given | {"DATAROBOT_API_TOKEN": TOKEN} | environ,
                stdout=said,
                stderr=said,
            )
        return self

    def said(self) -> str:
        return self._file.read_text()

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(first_process(self._process), number)

    def ended(self) -> int:
        assert self._process is not None
        return self._process.wait(60)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(first_process(self._process), signal.SIGKILL)
            self._process.wait()


def serving(contained: Sequence[str], directory: Path, simulator: Simulator, workers: int) -> MirrorProcess:
    """A mirror that would wait long for downloads, to be started as process 1."""
    sections = {"server": {"drain": "10m", "header_timeout": "10m", "workers": workers}}
    mirror = MirrorProcess(directory / "mirror", simulator.api_url, sections)
    mirror.through = contained
    return mirror


@pytest.mark.parametrize("workers", [1, 2])
def test_a_mirror_stops_at_the_first_signal_and_ends_at_the_second(
    contained: Sequence[str], tmp_path: Path, simulator: Simulator, workers: int
) -> None:
    simulator.fault(Fault("store", hang_after=HALF))
    mirror = serving(contained, tmp_path, simulator, workers).start()
    assert mirror.process is not None
    pid = first_process(mirror.process)
    try:
        with Download(mirror.image_url) as download:
            download.read(HALF // 2)
            os.kill(pid, signal.SIGTERM)
            eventually(lambda: "mirror.stopping" in mirror.actions(), what="the beginning of the stop")
            assert mirror.process.poll() is None
            os.kill(pid, signal.SIGTERM)
            assert mirror.wait_dead(60) == 128 + signal.SIGTERM
    finally:
        simulator.release()
        if mirror.process.poll() is None:
            os.kill(pid, signal.SIGKILL)
            mirror.wait_dead()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_mirror_that_nobody_uses_ends_with_0(
    contained: Sequence[str], tmp_path: Path, simulator: Simulator, workers: int
) -> None:
    mirror = serving(contained, tmp_path, simulator, workers).start()
    assert mirror.process is not None
    os.kill(first_process(mirror.process), signal.SIGTERM)
    assert mirror.wait_dead(60) == 0


@pytest.mark.parametrize("command", ["serve", "check", "ls", "pull", "gc", "verify", "export", "import"])
def test_every_command_ends_whatever_it_waits_for(running: Running, tmp_path: Path, command: str) -> None:
    """Here for its configuration; `serve` is told to stop before it serves."""
    fifo = tmp_path / "config"
    os.mkfifo(fifo)
    arguments = {"export": ["current", str(tmp_path)], "import": [str(tmp_path)]}
    running.start(command, *arguments.get(command, []), "-c", fifo)
    with fifo.open("wb"):  # the command reads
        running.send(signal.SIGTERM)
        assert running.ended() == 128 + signal.SIGTERM
    assert running.said() == ""


def test_get_keeps_what_came_and_ends(running: Running, tmp_path: Path, simulator: Simulator) -> None:
    simulator.fault(Fault("store", hang_after=HALF))
    image, part = tmp_path / "image", tmp_path / "image.part"
    running.start("get", "-o", image, simulator.api_url)
    eventually(lambda: part.exists() and part.stat().st_size == HALF, what="the first half")
    running.send(signal.SIGTERM)
    assert running.ended() == 128 + signal.SIGTERM
    simulator.release()
    assert "the same command goes on from there" in running.said()
    assert part.stat().st_size == HALF


def test_pull_keeps_what_came_and_ends(running: Running, tmp_path: Path, simulator: Simulator) -> None:
    simulator.fault(Fault("store", hang_after=HALF))
    mirror = MirrorProcess(tmp_path / "mirror", simulator.api_url)
    partial = mirror.store / "partial" / simulator.image_sha256("first")
    running.start("pull", "-c", mirror.config_file)
    eventually(lambda: partial.exists() and partial.stat().st_size == HALF, what="the first half")
    running.send(signal.SIGTERM)
    assert running.ended() == 128 + signal.SIGTERM
    simulator.release()
    assert "will be resumed by the next pull" in running.said()
    assert partial.stat().st_size == HALF


def test_the_demo_ends_and_leaves_nothing(running: Running, tmp_path: Path) -> None:
    directory = tmp_path / "temporary"
    directory.mkdir()
    running.start("demo", "--size", "4MiB", "--rate", "40MB/s", TMPDIR=str(directory))
    eventually(lambda: "stays up until Ctrl-C" in running.said(), 60, what="the end of the story")
    running.send(signal.SIGTERM)
    assert running.ended() == 0
    assert list(directory.iterdir()) == []


def test_what_was_left_behind_in_the_container_is_cleared_away(
    contained: Sequence[str], tmp_path: Path, simulator: Simulator
) -> None:
    mirror = serving(contained, tmp_path, simulator, 2).start()
    assert mirror.process is not None
    pid = first_process(mirror.process)

    def children() -> set[str]:
        return set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())

    workers = children()
    try:
        enter = [needs("nsenter", "apt-get install util-linux", root=True), f"--target={pid}", "--pid"]
        subprocess.run([*enter, "sh", "-c", "sleep 0 & exit"], check=True)
        os.kill(int(min(workers)), signal.SIGKILL)
        eventually(lambda: mirror.actions().count("worker.started") == 3, what="another worker")
        eventually(lambda: len(children()) == 2, 60, what="the end of the orphan")
        assert [each["pps_mirror.status"] for each in mirror.settled.events("worker.died")] == [-9]
    finally:
        os.kill(pid, signal.SIGTERM)
        assert mirror.wait_dead(60) == 0
