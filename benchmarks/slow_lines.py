"""An image over lines that are slow: `python -m benchmarks.slow_lines`, or `make bench-lines`.

Prints ratios, each of the median of turns that were taken alternately. A line that gives each connection little: the
mirror with one connection and with four, and aria2c with four and sha256sum after it. A line that all connections
share: the mirror with one and with four.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from benchmarks.material import make_image
from benchmarks.process import find_program
from mirror.simulator.api import IMAGE
from mirror.simulator.client import TOKEN, ImageSpec, Simulator
from tests.support.processes import MirrorProcess

AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect."""

    def redirect_request(self, *_: object) -> None:
        """Say that there is nowhere to go."""


class Bench:
    """An upstream with one image, below `directory`."""

    def __init__(self, directory: Path, simulator: Simulator, hash_of_it: str) -> None:
        self._directory = directory
        self._simulator = simulator
        self._hash = hash_of_it
        self._mirrors = 0

    def mirror(self, connections: int) -> float:
        """Seconds until a client has the image through a new mirror."""
        self._mirrors += 1
        sections = {"upstream": {"connections": connections}}
        directory = self._directory / f"mirror-{self._mirrors}"
        target = self._directory / "download"
        with MirrorProcess(directory, self._simulator.api_url, sections) as mirror:
            began = time.monotonic()
            curl = ["curl", "-sf", "-o", str(target), "-H", f"Authorization: Bearer {TOKEN}", mirror.image_url]
            subprocess.run(curl, check=True)
            took = time.monotonic() - began
            stored = mirror.store / "images" / self._hash / "image"
            assert stored.exists()
            stored.unlink()
        target.unlink()
        return took

    def aria2c(self) -> float:
        """Seconds until aria2c has it over four connections, and sha256sum has looked at it."""
        began = time.monotonic()
        target = self._directory / "download"
        command = ["aria2c", "-q", "-x4", "-s4", "--file-allocation=none", "-d", str(target.parent), "-o", target.name]
        subprocess.run([*command, self._where_it_is()], check=True)
        found = subprocess.run(["sha256sum", str(target)], check=True, capture_output=True, text=True).stdout
        took = time.monotonic() - began
        assert found.split()[0] == self._hash
        target.unlink()
        return took

    def _where_it_is(self) -> str:
        """Where upstream redirects to: aria2c would send the credential there as well."""
        request = urllib.request.Request(self._simulator.api_url + IMAGE, headers=AUTHORIZED)
        try:
            urllib.request.build_opener(_Stay).open(request)
        except urllib.error.HTTPError as answer:
            with answer:
                return str(answer.headers["Location"])
        raise AssertionError("it does not redirect")


def medians(turns: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Take turns, and return the median of each one's seconds."""
    taken: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds):
        for name, turn in turns.items():
            taken[name].append(turn())
            print(f"  round {number + 1} of {rounds}: {name}: {taken[name][-1]:.2f} s", file=sys.stderr, flush=True)
    return {name: statistics.median(values) for name, values in taken.items()}


def run(bench: Bench, simulator: Simulator, rate: float, rounds: int) -> None:
    """Measure and print."""
    one, four = partial(bench.mirror, 1), partial(bench.mirror, 4)
    turns: dict[str, Callable[[], float]] = {"4 connections": four, "1 connection": one}
    if find_program("aria2c"):
        turns["aria2c"] = bench.aria2c
    simulator.set_rate(None, connection_rate=rate)
    each = medians(turns, rounds)
    print(f"{rate / 1e6:.0f} MB/s for each connection, 1 connection: {each['1 connection']:.2f} s")
    print(
        f"  4 connections: {each['4 connections']:.2f} s, {each['1 connection'] / each['4 connections']:.2f} x as fast"
    )
    if "aria2c" in each:
        ratio = each["aria2c"] / each["4 connections"]
        print(f"  aria2c -x4 -s4 and sha256sum: {each['aria2c']:.2f} s; the mirror is {ratio:.2f} x as fast")
    simulator.set_rate(rate)
    shared = medians({"1 connection": one, "4 connections": four}, rounds)
    longer = shared["4 connections"] / shared["1 connection"] - 1
    print(f"{rate / 1e6:.0f} MB/s for all connections together, 1 connection: {shared['1 connection']:.2f} s")
    print(f"  up to 4 connections: {shared['4 connections']:.2f} s, {longer:+.1%}")


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slow_lines", description=__doc__)
    parser.add_argument("--size", type=int, default=2048, help="MiB of the image (2048)")
    parser.add_argument("--rate", type=float, default=20.0, help="MB/s of a connection, or of the line (20)")
    parser.add_argument("--rounds", type=int, default=1, help="turns of each (1)")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where, on a real disk (/var/tmp)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pps-lines-", dir=options.dir) as directory:
        image = make_image(Path(directory) / "image", options.size << 20)
        spec = ImageSpec("image", path=str(image.path), sha256=image.hash)
        with Simulator.start([spec]) as simulator:
            bench = Bench(Path(directory), simulator, image.hash)
            run(bench, simulator, options.rate * 1e6, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
