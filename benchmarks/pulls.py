"""How images are pulled from the mirror, beside its own inflater and docker's registry: `python -m benchmarks.pulls`.

It takes the *crane* archive of `benchmarks.registry`, starts a real mirror with that image, and pulls with curl and
skopeo, in turns. Only the ratios of one run mean something.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.registry import command_line, make_archive, make_layers
from benchmarks.table import markdown_table
from mirror.model.metadata import ImageMetadata
from mirror.registry import saved_index
from mirror.registry.blob_reader import read
from mirror.simulator.client import TOKEN, ImageSpec, Simulator
from tests.support.archive import NAME
from tests.support.docker_registry import DockerRegistry
from tests.support.processes import MirrorProcess
from tests.support.pulls import REPOSITORY, manifest

TAG = "7.0.0"
AT_ONCE, MANY = 8, 50
MIB = 1 << 20


def seconds(work: Callable[[], object]) -> float:
    """Return how long it takes by the clock."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def cpu_seconds(pid: int) -> float:
    """Return the seconds of CPU that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(
    mirror: MirrorProcess, image_hash: str, registry: DockerRegistry, directory: Path, rounds: int
) -> Sequence[Sequence[str]]:
    """Return the rows: the case, the mirror, the other, the ratio, the goal."""
    assert mirror.process is not None
    pid, place = mirror.process.pid, mirror.store / "images" / image_hash
    manifest(mirror, TAG, seconds=600)
    index = saved_index.load(place, ImageMetadata.parse((place / "metadata.json").read_bytes()))
    assert index is not None
    layer = max(index.layers, key=lambda each: each.size)
    url = f"{mirror.url}{REPOSITORY}/blobs/{layer.digest}"

    def curl(_: int = 0) -> None:
        subprocess.run(["curl", "-sSf", "-o", os.devnull, "-u", f"token:{TOKEN}", url], check=True)

    def skopeo(source: str, *options: str) -> None:
        with tempfile.TemporaryDirectory(dir=directory) as target:
            copy = ["skopeo", "copy", "--quiet", "--src-tls-verify=false", *options]
            subprocess.run([*copy, f"docker://{source}", f"dir:{target}"], check=True)

    def many(count: int) -> None:
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(curl, range(count)))

    ours, theirs = f"127.0.0.1:{mirror.port}/{NAME}:{TAG}", f"{registry.host}/pps:{TAG}"
    credentials = f"--src-creds=token:{TOKEN}"
    push = ["skopeo", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false", credentials]
    subprocess.run([*push, f"docker://{ours}", f"docker://{theirs}"], check=True)
    with (place / "image").open("rb") as archive:
        fd = archive.fileno()
        turns: dict[str, Callable[[], object]] = {
            "curl": curl,
            "zlib": lambda: inflate(place / "image"),
            "inflater": lambda: sum(map(len, read(fd, index.seek, layer, 0, layer.size))),
            "skopeo": lambda: skopeo(ours, credentials),
            "peer": lambda: skopeo(theirs),
        }
        taken: dict[str, list[float]] = {name: [] for name in turns}
        for _ in range(rounds):
            for name, turn in turns.items():
                taken[name].append(seconds(turn))
    median = {name: statistics.median(values) for name, values in taken.items()}
    before = cpu_seconds(pid)
    took = seconds(partial(many, AT_ONCE))
    cores = (cpu_seconds(pid) - before) / took
    size = {"curl": layer.size, "inflater": layer.size, "zlib": inflate(place / "image")}
    rate = {name: size[name] / median[name] / 1e6 for name in size}
    return [
        *(
            [
                "a layer with curl",
                f"{rate['curl']:.0f} MB/s",
                f"{who}: {rate[name]:.0f} MB/s",
                f"{rate['curl'] / rate[name]:.2f}",
                ">= 0.9 x the inflater alone",
            ]
            for name, who in (("inflater", "the mirror's inflater"), ("zlib", "Python's zlib"))
        ),
        [
            "skopeo copy",
            f"{median['skopeo']:.1f} s",
            f"{median['peer']:.1f} s",
            f"{median['skopeo'] / median['peer']:.2f}",
            "<= 1.2 x docker-registry",
        ],
        [
            f"{AT_ONCE} at once",
            f"{AT_ONCE * layer.size / took / 1e6:.0f} MB/s",
            f"{cores:.1f} of {os.cpu_count()} cores",
            "",
            "every core",
        ],
        [f"memory with {MANY}", f"{most_memory(mirror, partial(many, MANY)) / MIB:.0f} MiB", "", "", "<= 150 MiB"],
    ]


def inflate(path: Path) -> int:
    """Inflate an archive with Python's zlib, in the steps in which it is quickest; return how many bytes come out."""
    inflater, count = zlib.decompressobj(zlib.MAX_WBITS | 16), 0
    with path.open("rb") as file:
        while data := file.read(64 << 10):
            count += len(inflater.decompress(data))
    return count


def most_memory(mirror: MirrorProcess, work: Callable[[], object]) -> int:
    """Return the most bytes that the mirror had resident meanwhile."""
    most, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.02):
            most = max(most, mirror.resident())

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        work()
    finally:
        ended.set()
        watching.join()
    return most


def main() -> int:
    """Read the command line, measure and print."""
    options = command_line("pulls", __doc__, rounds=5).parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.dir)))
        made = make_archive(directory, "crane", list(make_layers(directory, options.size << 20, options.source)))
        image = ImageSpec("image", path=str(made.path), filename=f"datarobot-portable-prediction-api-{TAG}.tar.gz")
        simulator = stack.enter_context(Simulator.start([image]))
        registry = stack.enter_context(DockerRegistry(directory / "registry"))
        sections: dict[str, dict[str, object]] = {"registry": {"enabled": True}, "log": {"level": "warning"}}
        mirror = stack.enter_context(MirrorProcess(directory / "mirror", simulator.api_url, sections))
        rows = measure(mirror, simulator.image_sha256("image"), registry, directory, options.rounds)
        print(markdown_table(["pulls", "mirror", "beside", "ratio", "goal"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
