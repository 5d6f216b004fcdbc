"""Several processes, one port, one store: one fetch among them all, whoever of them dies."""

import contextlib
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from mirror.simulator.client import Fault, ImageSpec, Simulator
from tests.support.downloads import Download, at_once, fetch
from tests.support.forked import ForkedMirror
from tests.support.processes import MirrorProcess, eventually

MIB = 1 << 20
SIZE = 16 * MIB
WORKERS = 3


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator.start([ImageSpec("first", size=SIZE)]) as simulator:
        yield simulator


def mirror_with(tmp_path: Path, simulator: Simulator, workers: int = WORKERS, **server: object) -> MirrorProcess:
    return MirrorProcess(tmp_path / "mirror", simulator.api_url, {"server": {"workers": workers} | server})


def workers_of(mirror: MirrorProcess) -> dict[int, int]:
    """The process of each worker that runs now."""
    started = mirror.events("worker.started")
    return {each["pps_mirror.worker"]: int(each["message"].rpartition(" ")[2]) for each in started}


def filler(mirror: MirrorProcess) -> int:
    """The process that has begun the fill: the one that locks the partial (proc_locks(5))."""
    partial = next(path for path in (mirror.store / "partial").iterdir() if not path.suffix)
    inode = partial.stat().st_ino
    holders = [
        int(fields[4])
        for fields in map(str.split, Path("/proc/locks").read_text().splitlines())
        if fields[1] == "FLOCK" and fields[3] == "WRITE" and fields[5].endswith(f":{inode}")
    ]
    (holder,) = holders
    return holder


def replaced(mirror: MirrorProcess, before: int) -> bool:
    """Whether worker 1 is another process by now."""
    return workers_of(mirror)[1] != before


def test_clients_of_all_workers_stream_from_one_fetch(tmp_path: Path, simulator: Simulator) -> None:
    simulator.fault(Fault("store", hang_after=8 * MIB))
    with mirror_with(tmp_path, simulator) as mirror, ExitStack() as clients:
        downloads = [clients.enter_context(Download(mirror.image_url)) for _ in range(24)]
        for download in downloads:
            assert download.read(8 * MIB - 65536) == simulator.read("first", 0, 8 * MIB - 65536)
        simulator.wait_held()
        simulator.release()
        for download in downloads:
            assert download.read_all().body == simulator.read("first")
        statuses = [download.header("Cache-Status") for download in downloads]
        assert statuses.count("pps-mirror; fwd=miss; stored") == 1
        assert set(statuses) == {"pps-mirror; fwd=miss; stored", "pps-mirror; fwd=miss; collapsed"}
        assert simulator.counters().store_gets == 1
        assert mirror.settled.actions().count("fill.began") == 1
        assert {fetch(mirror.image_url).cache_status for _ in range(12)} == {"pps-mirror; hit"}
        assert len(workers_of(mirror)) == WORKERS


def test_a_fill_whose_process_is_killed_is_taken_over_by_another_and_its_clients_notice_a_pause(
    tmp_path: Path, simulator: Simulator
) -> None:
    simulator.fault(Fault("store", hang_after=8 * MIB, times=1))
    with mirror_with(tmp_path, simulator) as mirror, ExitStack() as clients:
        downloads = [clients.enter_context(Download(mirror.image_url)) for _ in range(24)]
        for download in downloads:
            download.read(MIB)
        simulator.wait_held()
        os.kill(filler(mirror), signal.SIGKILL)
        outcomes = [download.read_all() for download in downloads]
        survivors = [outcome for outcome in outcomes if outcome.ended == "complete"]
        assert survivors
        assert {outcome.body for outcome in survivors} == {simulator.read("first")}
        assert {outcome.ended for outcome in outcomes} <= {"complete", "reset", "cut"}
        first, second = simulator.log("store")
        assert first.range is None
        assert int((second.range or "bytes=0-").removeprefix("bytes=").rstrip("-")) >= 8 * MIB - 4 * MIB
        eventually(lambda: mirror.actions().count("worker.started") == WORKERS + 1, what="another worker")
        assert {fetch(mirror.image_url).sha256 for _ in range(8)} == {simulator.image_sha256("first")}


def test_a_worker_that_dies_again_and_again_is_replaced_ever_more_slowly_while_the_others_serve(
    tmp_path: Path, simulator: Simulator
) -> None:
    mirror = ForkedMirror(tmp_path / "mirror", simulator.api_url, {"server": {"workers": 2}})
    mirror.constants = {"mirror.process.workers:SETTLED": 600.0}  # so soon it counts as one that dies again and again
    with mirror:
        assert fetch(mirror.image_url).ended == "complete"
        for _ in range(3):
            before = workers_of(mirror)[1]
            os.kill(before, signal.SIGKILL)
            eventually(partial(replaced, mirror, before), what="another worker")
        deaths = mirror.events("worker.died")
        assert [(each["pps_mirror.worker"], each["pps_mirror.status"]) for each in deaths] == [(1, -9)] * 3
        assert [each["message"].split()[-2:] for each in deaths] == [["0.2", "s"], ["0.4", "s"], ["0.8", "s"]]
        assert fetch(mirror.image_url).cache_status == "pps-mirror; hit"


def test_wrong_bytes_reset_the_clients_of_every_worker(tmp_path: Path, simulator: Simulator) -> None:
    simulator.fault(Fault("store", corrupt_at=SIZE // 2, times=1))
    with mirror_with(tmp_path, simulator) as mirror:
        outcomes = at_once(24, lambda: fetch(mirror.image_url))
        right = simulator.image_sha256("first")
        assert all(
            outcome.sha256 == right for outcome in outcomes if outcome.ended == "complete" and outcome.status == 200
        )
        assert "reset" in {outcome.ended for outcome in outcomes}
        eventually(lambda: fetch(mirror.image_url).sha256 == right)


def test_a_stop_lets_downloads_of_all_workers_end_and_leaves_no_process(tmp_path: Path, simulator: Simulator) -> None:
    simulator.fault(Fault("store", hang_after=8 * MIB))
    with mirror_with(tmp_path, simulator, drain="30s") as mirror, ExitStack() as clients:
        downloads = [clients.enter_context(Download(mirror.image_url)) for _ in range(12)]
        for download in downloads:
            download.read(MIB)
        simulator.wait_held()
        processes = workers_of(mirror).values()
        mirror.send_signal(signal.SIGTERM)
        eventually(lambda: "mirror.stopping" in mirror.actions())
        simulator.release()
        assert {download.read_all().body for download in downloads} == {simulator.read("first")}
        assert mirror.wait_dead(20) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in processes)


def runs(pid: int) -> bool:
    """Whether a process runs. One that has ended may stay listed where nobody takes note of the end of orphans."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_end_when_the_process_that_keeps_them_is_killed(tmp_path: Path, simulator: Simulator) -> None:
    with mirror_with(tmp_path, simulator, 2) as mirror:
        processes = workers_of(mirror).values()
        mirror.kill()
        eventually(lambda: not any(map(runs, processes)), what="the workers' end")


def test_a_port_that_is_taken_is_one_line_and_status_1(tmp_path: Path, simulator: Simulator) -> None:
    with mirror_with(tmp_path / "one", simulator, 2) as mirror:
        other = MirrorProcess(tmp_path / "two", simulator.api_url, {"server": {"workers": 2, "port": mirror.port}})
        with pytest.raises(AssertionError, match="cannot listen on"):
            other.start()
        assert other.wait_dead() == 1


def test_the_admin_listener_speaks_for_all_workers(tmp_path: Path, simulator: Simulator) -> None:
    with mirror_with(tmp_path, simulator, 2) as mirror:
        for pid in workers_of(mirror).values():
            os.kill(pid, signal.SIGSTOP)
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: b"workers do not serve" in ready(mirror), what="a word of what is missing")
        eventually(lambda: b"workers do not serve" not in ready(mirror), what="all workers")


def ready(mirror: MirrorProcess) -> bytes:
    try:
        with urllib.request.urlopen(f"{mirror.admin_url}/readyz", timeout=10) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.read()


@contextlib.contextmanager
def only(mirror: MirrorProcess, number: int) -> Iterator[None]:
    """Let that worker alone serve meanwhile; the others stand still."""
    others = [pid for other, pid in workers_of(mirror).items() if other != number]
    for pid in others:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in others:
            os.kill(pid, signal.SIGCONT)


def test_a_worker_that_is_frozen_is_noticed_and_replaced_and_the_others_serve_who_comes(
    tmp_path: Path, simulator: Simulator
) -> None:
    with mirror_with(tmp_path, simulator, 2) as mirror:
        frozen = workers_of(mirror)[1]
        os.kill(frozen, signal.SIGSTOP)
        for _ in range(12):
            assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")
        eventually(lambda: b"1 of 2 workers do not serve" in ready(mirror), 60, what="a word of it")
        assert [each["pps_mirror.worker"] for each in mirror.settled.events("worker.silent")] == [1]
        eventually(partial(replaced, mirror, frozen), 90, what="another worker")
        assert [each["pps_mirror.worker"] for each in mirror.settled.events("worker.frozen")] == [1]
        eventually(lambda: b"workers do not serve" not in ready(mirror), what="all workers")


def test_a_worker_that_comes_back_is_left_alone(tmp_path: Path, simulator: Simulator) -> None:
    with mirror_with(tmp_path, simulator, 2) as mirror:
        before = workers_of(mirror)
        with only(mirror, 1):
            eventually(lambda: b"1 of 2 workers do not serve" in ready(mirror), 60, what="a word of it")
        eventually(lambda: b"workers do not serve" not in ready(mirror), what="all workers")
        assert workers_of(mirror) == before


def test_what_stops_all_processes_for_long_is_no_frozen_worker(tmp_path: Path, simulator: Simulator) -> None:
    with mirror_with(tmp_path, simulator, 2) as mirror:
        assert mirror.process is not None
        before = workers_of(mirror)
        family = [mirror.process.pid, *before.values()]
        for pid in family:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(12)  # longer than a worker may be silent
        for pid in family:
            os.kill(pid, signal.SIGCONT)
        assert fetch(mirror.image_url).status == 200
        assert "worker.silent" not in mirror.settled.actions()
        assert workers_of(mirror) == before


def test_wrong_bytes_are_counted_for_all_workers(tmp_path: Path, simulator: Simulator) -> None:
    simulator.fault(Fault("store", corrupt_at=10, times=None))
    with mirror_with(tmp_path, simulator, 2) as mirror:
        for turn in range(5):
            with only(mirror, 1 + turn % 2):
                assert fetch(mirror.image_url).ended == "reset"
        for number in (1, 2):
            with only(mirror, number), Download(mirror.image_url) as refused:
                assert refused.status == 502
                assert b"wrong bytes for this image 5 times" in refused.read_all().body
        assert simulator.counters().store_gets == 5


@pytest.mark.alone
def test_what_upstream_refused_to_one_worker_no_other_asks_again(tmp_path: Path, simulator: Simulator) -> None:
    with mirror_with(tmp_path, simulator, 2) as mirror:
        for attempt in range(20):
            bad = {"Authorization": f"Bearer bad-{attempt}"}
            asked = len(simulator.log("metadata"))
            began = time.monotonic()
            for number in (1, 2):
                with only(mirror, number), Download(mirror.metadata_url, headers=bad) as refused:
                    assert refused.status == 401
            if time.monotonic() - began < 2.5:  # else it was forgotten meanwhile
                assert len(simulator.log("metadata")) == asked + 1
                return
        pytest.skip("this machine is too slow today to ask twice in three seconds")
