"""The bench itself: who takes part, whose turn it is, and what was measured along the way.

It knows no case and no goal; `cases` does.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import accounting
from benchmarks.clients import Download
from benchmarks.material import Certificate, Image
from benchmarks.process import Server
from benchmarks.servers import Cache, Line, Mirror, NginxCache, Upstream, Varnish
from benchmarks.table import MIRROR, NGINX, VARNISH, markdown_table, number


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of one contestant; None where a value does not apply."""

    wall: float | None = None  # seconds
    size: int | None = None  # bytes that clients received
    machine_cpu: float | None = None  # CPU-seconds, all processes: sender, receiver, upstream
    server_cpu: float | None = None  # CPU-seconds of the server's processes
    first_byte: float | None = None  # seconds, of the slowest client
    memory: int | None = None  # bytes resident at the peak
    value: float | None = None  # what the case is about, where it is none of the above
    latencies: Sequence[float] = ()  # seconds, of each request there was

    @property
    def rate(self) -> float | None:
        """GB (10^9 bytes) a second."""
        return self.size / self.wall / 1e9 if self.size and self.wall else None

    @property
    def machine_cpu_per_gb(self) -> float | None:
        """CPU-seconds of the whole machine for each GB that clients received."""
        return self.machine_cpu / self.size * 1e9 if self.size and self.machine_cpu is not None else None

    @property
    def server_cpu_per_gb(self) -> float | None:
        """CPU-seconds of the server's processes for each GB that clients received."""
        return self.server_cpu / self.size * 1e9 if self.size and self.server_cpu is not None else None

    @property
    def memory_mib(self) -> float | None:
        """MiB resident at the peak."""
        return self.memory / (1 << 20) if self.memory is not None else None


Field = Callable[[Sample], float | None]
_DETAILS: Mapping[str, Field] = {
    "seconds": lambda sample: sample.wall,
    "GB/s": lambda sample: sample.rate,
    "CPU-s/GB, machine": lambda sample: sample.machine_cpu_per_gb,
    "CPU-s/GB, server": lambda sample: sample.server_cpu_per_gb,
    "first byte, ms": lambda sample: None if sample.first_byte is None else sample.first_byte * 1000,
    "resident, MiB": lambda sample: sample.memory_mib,
    "value": lambda sample: sample.value,
}


def median(samples: Sequence[Sample], field: Field) -> float | None:
    """Return the median of one field over the rounds; None if it was not measured."""
    values = [value for sample in samples if (value := field(sample)) is not None]
    return statistics.median(values) if values else None


def medians(runs: Mapping[str, Sequence[Sample]], field: Field) -> dict[str, float]:
    """Return the median of one field for every contestant that has it."""
    found = {name: median(samples, field) for name, samples in runs.items()}
    return {name: value for name, value in found.items() if value is not None}


def measure(server: Server | None, transfer: Callable[[], Sequence[Download]]) -> Sample:
    """Run `transfer` and return what it cost the machine, and the server if there is one."""
    if server:
        accounting.reset_peak_memory(server.pid)
    server_cpu = accounting.process_cpu(server.pid) if server else None
    machine_cpu, begin = accounting.machine_cpu(), time.perf_counter()
    downloads = transfer()
    wall = time.perf_counter() - begin
    return Sample(
        wall=wall,
        size=sum(download.size for download in downloads),
        machine_cpu=accounting.machine_cpu() - machine_cpu,
        server_cpu=accounting.process_cpu(server.pid) - server_cpu if server and server_cpu is not None else None,
        first_byte=max(download.first_byte for download in downloads),
        memory=accounting.peak_memory(server.pid) if server else None,
    )


def say(text: str) -> None:
    """Tell the person who waits how far it is; the tables alone go to stdout."""
    print(text, file=sys.stderr, flush=True)


class Bench:
    """One run of the benchmarks: its directory, its upstream, its contestants and its notebook."""

    def __init__(
        self,
        directory: Path,
        image: Image,
        certificate: Certificate,
        upstream: Upstream,
        *,
        contestants: Sequence[str],
        rounds: int,
        logs: bool,
    ) -> None:
        """Measure only `contestants`, each `rounds` times after a warm-up; with their access `logs` or without."""
        self.directory = directory
        self.image = image
        self.certificate = certificate
        self.upstream = upstream
        self.contestants = contestants
        self.rounds = rounds
        self.logs = logs
        self._details: list[list[str]] = []

    @contextmanager
    def caches(
        self, *names: str, line: Line = Line.PLAIN, tls: bool = False, workers: int = 1
    ) -> Iterator[dict[str, Cache]]:
        """Start those of `names` that take part, side by side and cold; they end with the block."""
        self.image.warm()  # a case before this one may have dropped the page cache
        with ExitStack() as stack:
            yield {
                name: stack.enter_context(self._cache(name, line, self.certificate if tls else None, workers))
                for name in names
                if name in self.contestants
            }

    def _cache(self, name: str, line: Line, certificate: Certificate | None, workers: int) -> Cache:
        directory, origin = self.directory / name, self.upstream.origins[line]
        if name == NGINX:
            return NginxCache(directory, origin, certificate, workers, logs=self.logs)
        if name == VARNISH:
            return Varnish(directory, origin, self.image.size, logs=self.logs)
        if name == MIRROR:
            return Mirror(directory, origin, self.certificate, certificate, workers, logs=self.logs)
        raise ValueError(name)

    def interleave(
        self, case: str, turns: Mapping[str, Callable[[], Sample]], *, rounds: int | None = None
    ) -> dict[str, list[Sample]]:
        """Give every contestant its turn in every round, after a warm-up that counts for nothing."""
        runs: dict[str, list[Sample]] = {name: [] for name in turns}
        rounds = rounds or self.rounds
        for round_number in range(rounds + 1):
            for name, turn in turns.items():
                os.sync()  # what the one before wrote does not go to disk at the expense of this one
                sample = turn()
                where = f"round {round_number} of {rounds}" if round_number else "warm-up"
                say(f"  {case}: {where}: {name}: {_summary(sample)}")
                if round_number:
                    runs[name].append(sample)
        for name, samples in runs.items():
            self._details.append([case, name, *(number(median(samples, field)) for field in _DETAILS.values())])
        return runs

    def details(self) -> str:
        """Render the medians of everything measured so far."""
        return markdown_table(["case", "who", *_DETAILS], self._details)


def _summary(sample: Sample) -> str:
    values = ((unit, field(sample)) for unit, field in _DETAILS.items())
    return ", ".join(f"{unit} {number(value)}" for unit, value in values if value is not None)
