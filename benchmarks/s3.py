"""The mirror over a real S3 server (SeaweedFS, on this machine too): `python -m benchmarks.s3`, or `make bench-s3`.

Prints ratios, each of the median of turns that were taken alternately: a fill into disk and bucket beside one into the
disk only, over a line of a gigabit per second and over loopback; downloads of a stored image out of the bucket through
the mirror beside plain ones of the same object; and the memory of a mirror that streams from the bucket.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from mirror.simulator.client import TOKEN, ImageSpec, Simulator
from tests.support.processes import MirrorProcess
from tests.support.s3.weed import Weed

GIGABIT = 117e6
"""Bytes per second that a line of 1 Gbit/s carries."""

THREADS = 10
"""So many threads, and ranges of 8 MiB, are what boto3's `download_fileobj` takes."""

_PLAIN = """
import concurrent.futures, sys, botocore.session
from botocore.config import Config
client = botocore.session.Session().create_client(
    "s3", endpoint_url=sys.argv[1], region_name="us-east-1", config=Config(s3={"addressing_style": "path"}))

def read(first, last):
    wanted = {"Range": f"bytes={first}-{last - 1}"} if last else {}
    body = client.get_object(Bucket="images", Key=sys.argv[2], **wanted)["Body"]
    while body.read(256 << 10):
        pass

if sys.argv[3] == "1":
    read(0, 0)
else:
    size = client.head_object(Bucket="images", Key=sys.argv[2])["ContentLength"]
    with concurrent.futures.ThreadPoolExecutor(int(sys.argv[3])) as pool:
        firsts = range(0, size, 8 << 20)
        list(pool.map(read, firsts, [min(first + (8 << 20), size) for first in firsts]))
"""


class Bench:
    """A server, an upstream, and mirrors over both; `rounds` turns each."""

    def __init__(self, directory: Path, size: int, rounds: int) -> None:
        self._directory = directory
        self._rounds = rounds
        self._stack = ExitStack()
        self._server = self._stack.enter_context(Weed(directory / "weed"))
        self._server.client().make_bucket("images")
        self.simulator = self._stack.enter_context(Simulator.start([ImageSpec("image", size=size)]))
        self.mirrors = 0

    def close(self) -> None:
        """End everything."""
        self._stack.close()

    def mirror(self, section: Mapping[str, object] | None) -> MirrorProcess:
        """A mirror that has nothing yet: with `section` in [store.s3], or without a bucket."""
        self.mirrors += 1
        sections: dict[str, Mapping[str, object]] = {"log": {"level": "warning"}}
        if section is not None:
            own = {"bucket": "images", "endpoint_url": self._server.endpoint_url, "prefix": f"bench-{self.mirrors}/"}
            sections["store.s3"] = {**own, **section}
        directory = self._directory / f"mirror-{self.mirrors}"
        return MirrorProcess(directory, self.simulator.api_url, sections, self._server.environ)

    def interleave(self, turns: Mapping[str, Callable[[], float]]) -> dict[str, float]:
        """Take turns, once for warmth and then `rounds` times; the medians, in seconds."""
        taken: dict[str, list[float]] = {name: [] for name in turns}
        for number in range(self._rounds + 1):
            for name, turn in turns.items():
                seconds = turn()
                if number:
                    taken[name].append(seconds)
        return {name: statistics.median(values) for name, values in taken.items()}

    def cold(self, section: Mapping[str, object] | None) -> float:
        """Seconds of a client's download that a new mirror has to fetch."""
        with self.mirror(section) as mirror:
            return download(mirror.image_url)

    def plain(self, key: str, clients: int, threads: int = 1) -> float:
        """Seconds of downloads of an object by botocore, each in a process of its own with so many threads."""
        arguments = [sys.executable, "-c", _PLAIN, self._server.endpoint_url, key, str(threads)]
        environ = {**os.environ, **self._server.environ}
        began = time.monotonic()
        running = [subprocess.Popen(arguments, env=environ) for _ in range(clients)]
        assert all(process.wait() == 0 for process in running)
        return time.monotonic() - began

    def started(self) -> float:
        """Seconds that such a process takes to start, which are not its download's."""
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "import botocore.session; " + _CLIENT], check=True)
        return time.monotonic() - began


_CLIENT = 'botocore.session.Session().create_client("s3", region_name="us-east-1")'


def download(url: str, clients: int = 1) -> float:
    """Seconds until so many curls have the image."""
    curl = ["curl", "-sf", "-o", os.devnull, "-H", f"Authorization: Bearer {TOKEN}", url]
    began = time.monotonic()
    running = [subprocess.Popen(curl) for _ in range(clients)]
    assert all(process.wait() == 0 for process in running)
    return time.monotonic() - began


def slow_downloads(mirror: MirrorProcess, count: int, seconds: float) -> int:
    """The most resident memory, in MiB, of a mirror that so many clients download from slowly."""
    curl = ["curl", "-s", "-o", os.devnull, "--limit-rate", "2M", "-m", str(int(seconds))]
    running = [
        subprocess.Popen([*curl, "-H", f"Authorization: Bearer {TOKEN}", mirror.image_url]) for _ in range(count)
    ]
    most = 0
    while any(process.poll() is None for process in running):
        most = max(most, mirror.resident())
        time.sleep(0.1)
    return most >> 20


def run(bench: Bench) -> None:
    """Measure and print."""
    rows = []
    for line, rate in (("1 Gbit/s", GIGABIT), ("loopback", None)):
        bench.simulator.set_rate(rate)
        cold = bench.interleave(
            {
                "disk": lambda: bench.cold(None),
                "disk and bucket": lambda: bench.cold({}),
                "bucket only": lambda: bench.cold({"local_copy": False}),
            }
        )
        for name in ("disk and bucket", "bucket only"):
            beside = f"{cold[name] / cold['disk']:.2f} x disk only ({cold['disk']:.2f} s)"
            rows.append((f"cold, {line}, {name}", f"{cold[name]:.2f} s", beside))
    bench.simulator.set_rate(None)
    with bench.mirror({"local_copy": False}) as mirror:
        download(mirror.image_url)
        rows.append(("memory after a fill, bucket only", f"{mirror.resident() >> 20} MiB", ""))
        download(mirror.image_url)  # hashed now: this version is known to be right
        key = f"bench-{bench.mirrors}/images/{bench.simulator.image_sha256('image')}"
        starting = statistics.median(bench.started() for _ in range(3))
        for clients in (1, 8):
            turns = {
                "mirror": partial(download, mirror.image_url, clients),
                "botocore": partial(bench.plain, key, clients),
                f"botocore, {THREADS} threads": partial(bench.plain, key, clients, THREADS),
            }
            hot = bench.interleave(turns)
            mirrors = hot.pop("mirror")
            for name, seconds in hot.items():
                beside = f"{(seconds - starting) / mirrors:.2f} x {name} ({seconds - starting:.2f} s)"
                rows.append((f"stored, {clients} at once", f"{mirrors:.2f} s", beside))
        rows += [
            (f"memory, {count} slow downloads", f"{slow_downloads(mirror, count, 12)} MiB", "") for count in (50, 200)
        ]
    for case, value, ratio in rows:
        print(f"{case:<36}  {value:>9}  {ratio}")


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.s3", description=__doc__)
    parser.add_argument("--size", type=int, default=512, help="MiB of the image (512)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each, beside the first (3)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), options.size << 20, options.rounds)
        try:
            run(bench)
        finally:
            bench.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
