"""How blobs are read from an archive, beside gzip and zlib alone: `make bench-registry`.

Makes archives of the two layouts that differ most, of files of this machine: *crane*, whose layers are gzip already,
and *classic*, whose layers are plain. Each row is the median of turns that were taken alternately, by the clock and in
seconds of CPU, because only the latter mean something on a machine that others use as well.
"""

import argparse
import hashlib
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.clients import percentile
from benchmarks.table import markdown_table, number
from mirror.model.metadata import ImageMetadata
from mirror.registry.blob_reader import read
from mirror.registry.gzip_file import PIECE, GzipFile
from mirror.registry.index import ArchiveIndex, Blob
from mirror.registry.indexer import build

_PIECE = 1 << 20
_RANGES = 300


@dataclass(frozen=True, slots=True)
class Taken:
    """What a turn took: seconds by the clock, and of CPU, children included."""

    wall: float
    cpu: float

    @classmethod
    def by(cls, work: Callable[[], object]) -> "Taken":
        """Do the work and measure it."""
        began, before = time.monotonic(), _cpu()
        work()
        return cls(time.monotonic() - began, _cpu() - before)


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive at `path`; `layers` are those of its layers that are gzip."""

    layout: str
    path: Path
    layers: Sequence[Path]


def _cpu() -> float:
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def make_layers(directory: Path, size: int, source: Path) -> Iterator[Path]:
    """Write two tars of files below `source`, each of half the size."""
    command = ["tar", "--sort=name", "--mtime=@0", "-cf", "-", str(source)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as tar:
        assert tar.stdout
        for number in range(2):
            path = directory / f"layer-{number}.tar"
            with path.open("wb") as file:
                while file.tell() < size // 2 and (data := tar.stdout.read(_PIECE)):
                    file.write(data)
            yield path
        tar.kill()


def make_archive(directory: Path, layout: str, layers: Sequence[Path]) -> Archive:
    """Write an archive of these layers, which are plain."""
    diff_ids = [f"sha256:{_sha256(layer)}" for layer in layers]
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode()
    gzipped = [_gzip(layer) for layer in layers] if layout == "crane" else []
    named = {f"{_sha256(path)}.tar{'.gz' if gzipped else ''}": path for path in gzipped or layers}
    manifest = json.dumps([{"Config": "config", "RepoTags": None, "Layers": list(named)}]).encode()
    path = directory / f"{layout}.tar"
    with tarfile.open(path, "w") as tar:
        _add(tar, "config", len(config), io.BytesIO(config))
        for name, layer in named.items():
            with layer.open("rb") as file:
                _add(tar, name, layer.stat().st_size, file)
        _add(tar, "manifest.json", len(manifest), io.BytesIO(manifest))
    archive = _gzip(path)
    path.unlink()
    return Archive(layout, archive, gzipped)


def measure(archive: Archive, directory: Path, rounds: int) -> Iterator[Sequence[str]]:
    """Yield the rows of an archive: what it is, the mirror, the other, the ratios and the goal."""
    with archive.path.open("rb") as file:
        fd, metadata = file.fileno(), _metadata(archive.path)
        index = build(fd, directory, metadata)
        assert index.seek
        seek, layer = index.seek, max(index.layers, key=lambda each: each.size)
        taken = _interleave(
            {
                "index": lambda: build(fd, directory, metadata),
                "gzip -t": lambda: subprocess.run(["gzip", "-t", archive.path, *archive.layers], check=True),
                "layer": lambda: sum(map(len, read(fd, seek, layer, 0, layer.size))),
                "inflater": lambda: _inflate_only(seek.open(fd, layer.offset), layer.offset + layer.length),
            },
            rounds,
        )
        yield _row(f"{archive.layout}: index, s", taken["index"], taken["gzip -t"], "≤ 0.7 x gzip -t")
        ours, theirs = (_rate(layer, taken[name]) for name in ("layer", "inflater"))
        yield _row(f"{archive.layout}: a layer, MB/s", ours, theirs, "≥ 0.9 x the inflater alone")
        size = (directory / "seek-index").stat().st_size / metadata.size
        yield [f"{archive.layout}: size of the seek index", f"{size:.2%}", "", "", "", "≤ 0.5 %"]
        firsts = [_first_byte(fd, index, layer) for _ in range(_RANGES)]
        for name, values in (("by the clock", [each.wall for each in firsts]), ("CPU", [each.cpu for each in firsts])):
            p99 = percentile(values, 99) * 1e3
            yield [f"{archive.layout}: first byte of a range, p99, {name}", f"{p99:.0f} ms", "", "", "", "≤ 50 ms"]


def _interleave(turns: Mapping[str, Callable[[], object]], rounds: int) -> Mapping[str, Taken]:
    taken: dict[str, list[Taken]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            taken[name].append(Taken.by(turn))
    return {
        name: Taken(statistics.median(each.wall for each in every), statistics.median(each.cpu for each in every))
        for name, every in taken.items()
    }


def _row(case: str, ours: Taken, theirs: Taken, goal: str) -> Sequence[str]:
    values = [f"{number(each.wall)} / {number(each.cpu)}" for each in (ours, theirs)]
    return [case, *values, f"{ours.wall / theirs.wall:.2f}", f"{ours.cpu / theirs.cpu:.2f}", goal]


def _rate(layer: Blob, taken: Taken) -> Taken:
    return Taken(layer.size / taken.wall / 1e6, layer.size / taken.cpu / 1e6)


def _inflate_only(file: GzipFile, stop: int) -> None:
    buffer = memoryview(bytearray(PIECE))
    while file.position < stop:
        file.read(buffer[: stop - file.position])


def _first_byte(fd: int, index: ArchiveIndex, layer: Blob) -> Taken:
    start = random.randrange(layer.size)
    began, before = time.monotonic(), time.thread_time()
    next(read(fd, index.seek, layer, start, start + 1))
    return Taken(time.monotonic() - began, time.thread_time() - before)


def _metadata(path: Path) -> ImageMetadata:
    document = {"hash": _sha256(path), "hashAlgorithm": "SHA256", "imageSize": path.stat().st_size}
    return ImageMetadata.parse(
        json.dumps(document | {"filename": path.name, "created": "2025-01-02T03:04:05Z"}).encode()
    )


def _gzip(path: Path) -> Path:
    gzipped = path.with_name(f"{path.name}.gz")
    with gzipped.open("wb") as file:
        subprocess.run(["gzip", "-6", "-n", "-c", path], stdout=file, check=True)
    return gzipped


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _add(tar: tarfile.TarFile, name: str, size: int, file: io.BufferedIOBase) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    tar.addfile(member, file)


def command_line(name: str, description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """Make the options of a benchmark over archives that it makes."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--size", type=int, default=1024, help="MiB of the layers, uncompressed (1024)")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"turns of each ({rounds})")
    parser.add_argument("--source", type=Path, default=Path("/usr/lib"), help="of which files they are (/usr/lib)")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where, on a real disk (/var/tmp)")
    return parser


def main() -> int:
    """Read the command line, measure and print."""
    options = command_line("registry", __doc__, rounds=3).parse_args()
    rows: list[Sequence[str]] = []
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        directory = Path(name)
        layers = list(make_layers(directory, options.size << 20, options.source))
        for layout in ("crane", "classic"):
            rows += measure(make_archive(directory, layout, layers), directory, options.rounds)
    print(markdown_table(["by the clock / CPU", "mirror", "beside", "ratio", "ratio, CPU", "goal"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
