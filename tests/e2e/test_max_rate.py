"""upstream.max_rate: all fills of all processes together, exact, by time of day, changed while they run."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.simulator.client import ImageSpec, Simulator
from tests.support.admin import status_of
from tests.support.downloads import HELD, Download, fetch
from tests.support.fixtures import FreshMirror
from tests.support.forked import ForkedMirror
from tests.support.processes import MirrorProcess, eventually

pytestmark = pytest.mark.alone

MB = 1_000_000
SIZE = 12 * MB


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[Simulator]:
    images = [
        ImageSpec(name, size=SIZE, created=f"2026-01-0{day}T00:00:00Z")
        for day, name in enumerate(("first", "second"), 1)
    ]
    with Simulator.start(images) as simulator:
        yield simulator


def read_as_it_comes(download: Download, count: int) -> None:
    """Read so many bytes, a few at a time: a copy of all of them at the end takes memory, and time that is measured."""
    while count and (piece := download.read(min(count, MB // 10))):
        count -= len(piece)


def took(seconds: float, asked: float, answered: float, tolerance: float) -> None:
    """Check what has just ended: no quicker, counted from the question, and no slower, counted from the answer.

    What lies between the two, the start of a fill, is not the rate's.
    """
    ended = time.monotonic()
    assert ended - asked > seconds - tolerance
    assert ended - answered < seconds + tolerance


@pytest.mark.parametrize("workers", [1, 2])
def test_an_image_takes_as_long_as_the_rate_says(fresh_mirror: FreshMirror, workers: int) -> None:
    mirror = fresh_mirror({"upstream": {"max_rate": "4MB/s"}, "server": {"workers": workers}})
    asked = time.monotonic()
    with Download(mirror.image_url) as download:
        answered = time.monotonic()
        read_as_it_comes(download, SIZE - HELD)  # when the rest goes out is the disk's time, not the rate's
        took((SIZE - HELD) / (4 * MB), asked, answered, tolerance=0.14)
        assert download.read_all().ended == "complete"
    began = time.monotonic()
    fetch(mirror.image_url)
    assert time.monotonic() - began < 1, "what is stored goes out at full speed"


def test_two_fills_share_it(simulator: Simulator, fresh_mirror: FreshMirror) -> None:
    mirror = fresh_mirror({"upstream": {"max_rate": "8MB/s", "metadata_ttl": "0s"}, "server": {"workers": 2}})
    asked = time.monotonic()
    with Download(mirror.image_url) as one:
        answered = time.monotonic()
        simulator.roll_over("second")
        with Download(mirror.image_url) as other:
            assert one.header("ETag") != other.header("ETag")
            read_as_it_comes(one, SIZE - HELD)
            read_as_it_comes(other, SIZE - HELD)
            took(2 * (SIZE - HELD) / (8 * MB), asked, answered, tolerance=0.2)
            assert (one.read_all().ended, other.read_all().ended) == ("complete", "complete")


def received(mirror: MirrorProcess, seconds: float) -> float:
    """Bytes per second of the fill that runs, measured by upstream's own clock: how far it is then and later."""

    def position() -> int:
        return (mirror.store / "partial" / next(iter(mirror.store.glob("partial/*[0-9a-f]"))).name).stat().st_size

    began, first = time.monotonic(), position()
    time.sleep(seconds)
    return (position() - first) / (time.monotonic() - began)


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_changes_it_while_a_fill_runs(fresh_mirror: FreshMirror, workers: int) -> None:
    mirror = fresh_mirror({"upstream": {"max_rate": "200kB/s"}, "server": {"workers": workers}})
    with Download(mirror.image_url) as download:
        download.read(100_000)
        assert received(mirror, 3.0) == pytest.approx(200_000, rel=0.1)
        mirror.config_file.write_text(mirror.config_file.read_text().replace("200kB/s", "3MB/s"))
        mirror.send_signal(signal.SIGHUP)
        eventually(lambda: "mirror.reloaded" in mirror.actions(), what="the reload")
        time.sleep(0.5)
        assert received(mirror, 2.0) == pytest.approx(3 * MB, rel=0.1)
        mirror.config_file.write_text(mirror.config_file.read_text().replace("3MB/s", "nonsense"))
        mirror.send_signal(signal.SIGHUP)
        eventually(lambda: "reload.failed" in mirror.actions(), what="the complaint")
        mirror.config_file.write_text(mirror.config_file.read_text().replace("nonsense", ""))
        mirror.send_signal(signal.SIGHUP)
        assert download.read_all().ended == "complete"


def test_it_goes_by_the_time_of_the_day(tmp_path: Path, simulator: Simulator) -> None:
    mirror = ForkedMirror(tmp_path / "mirror", simulator.api_url, {"upstream": {"max_rate": "4MB/s"}})
    with mirror.config_file.open("a") as config:
        config.write('[[upstream.rates]]\nwindow = "08:00-18:00"\nrate = "1MB/s"\n')
    mirror.set_clock("2026-11-23T17:59:58")
    with mirror, Download(mirror.image_url) as download:
        download.read(100_000)
        assert received(mirror, 2.0) == pytest.approx(MB, rel=0.15)
        mirror.set_clock("2026-11-23T18:00:00")
        time.sleep(1.2)  # it looks every second; the rest of the image has to last for what is measured then
        assert received(mirror, 1.0) == pytest.approx(4 * MB, rel=0.15)
        assert download.read_all().ended == "complete"
        assert [event["message"] for event in status_of(mirror)["events"] if event["action"] == "rate.changed"] == [
            "images are fetched 3.8 MiB/s at most from now on",
            "images are fetched 976.6 KiB/s at most from now on",
        ]


def test_clients_get_bytes_in_small_steps_on_a_thin_line(fresh_mirror: FreshMirror) -> None:
    mirror = fresh_mirror({"upstream": {"max_rate": "100kB/s", "read_timeout": "2s"}})
    with Download(mirror.image_url, timeout=5) as download:
        for _ in range(6):
            assert len(download.read(100_000)) == 100_000
    assert "the line broke" not in mirror.settled.log()
