"""The cases and their goals. Each is one function from a `Bench` to the rows it contributes to the table."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks import accounting
from benchmarks.bench import Bench, Sample, measure, medians
from benchmarks.clients import (
    ClientError,
    Download,
    digest,
    download,
    latencies_during_downloads,
    measure_command,
    percentile,
    requests_per_second,
    slowest_first_byte,
)
from benchmarks.floor import STEPS
from benchmarks.material import Image
from benchmarks.servers import Cache, Line
from benchmarks.slow_readers import read_slowly
from benchmarks.table import BARE, CURL, MIRROR, NGINX, VARNISH, Goal, Row

_BYTES_A_HOT_TURN = 4 << 30  # /proc/stat counts in ticks of 10 ms, so a turn must take some hundreds of them
_SECONDS_OF_REQUESTS = 4
_READERS = 200
_SECONDS_OF_READING = 8.0

Case = Callable[[Bench], list[Row]]

_NO_SLOWER = [Goal("≥", 1.0, NGINX), Goal("≥", 1.0, VARNISH)]


def _cpu(case: str, runs: Mapping[str, Sequence[Sample]], bound: float | None = None) -> list[Row]:
    """Return the rows of a case's CPU; `bound` is the goal, relative to nginx's, of the server and of the machine."""
    goals = [] if bound is None else [Goal("≤", bound, NGINX)]
    return [
        Row(case, "CPU-s/GB, server", medians(runs, lambda s: s.server_cpu_per_gb), goals),
        Row(case, "CPU-s/GB, machine", medians(runs, lambda s: s.machine_cpu_per_gb), goals),
    ]


def hot_1(bench: Bench) -> list[Row]:
    """One client downloads a stored image, again and again."""
    with bench.caches(MIRROR, NGINX, VARNISH) as caches:
        runs = _hot(bench, "hot, 1 client", caches, clients=1)
    return [
        Row("hot, 1 client", "GB/s", medians(runs, lambda s: s.rate), _NO_SLOWER),
        *_cpu("hot, 1 client", runs, 1.2),
    ]


def hot_8(bench: Bench) -> list[Row]:
    """Eight clients at once download a stored image."""
    with bench.caches(MIRROR, NGINX, VARNISH) as caches:
        runs = _hot(bench, "hot, 8 clients", caches, clients=8)
    return [
        Row("hot, 8 clients", "GB/s", medians(runs, lambda s: s.rate), _NO_SLOWER),
        *_cpu("hot, 8 clients", runs, 1.2),
    ]


def hot_8_workers(bench: Bench) -> list[Row]:
    """The same with two workers each: nginx and the mirror, on a machine of two cores or more."""
    with bench.caches(MIRROR, NGINX, workers=2) as caches:
        runs = _hot(bench, "hot, 8 clients, 2 workers", caches, clients=8)
    case = "hot, 8 clients, 2 workers"
    return [
        Row(case, "GB/s", medians(runs, lambda s: s.rate), [Goal("≥", 1.0, NGINX)]),
        Row(case, "CPU-s/GB", medians(runs, lambda s: s.machine_cpu_per_gb), []),
    ]


def tls_8(bench: Bench) -> list[Row]:
    """Eight clients at once download a stored image over TLS."""
    with bench.caches(MIRROR, NGINX, tls=True) as caches:
        runs = _hot(bench, "TLS, 8 clients", caches, clients=8)
    return [
        Row("TLS, 8 clients hot", "GB/s", medians(runs, lambda s: s.rate), [Goal("≥", 0.9, NGINX)]),
        *_cpu("TLS, 8 clients hot", runs, 1.1),
    ]


def cold_1(bench: Bench) -> list[Row]:
    """One client downloads an image nobody has yet, to a file; who does not verify runs openssl on it afterwards."""
    with bench.caches(MIRROR, NGINX, VARNISH) as caches:
        runs = _cold_verified(bench, "cold, 1 client, verified", caches, Line.PLAIN)
    goals = [Goal("≤", 1.0, peer) for peer in (NGINX, VARNISH, CURL)]
    case = "cold, 1 client, verified"
    return [Row(case, "s", medians(runs, lambda s: s.wall), goals), *_cpu(case, runs)]


def cold_https(bench: Bench) -> list[Row]:
    """One client does so from an upstream that is reached over https, against curl alone."""
    with bench.caches(MIRROR, line=Line.TLS) as caches:
        runs = _cold_verified(bench, "cold over https, verified", caches, Line.TLS)
    return [
        Row("cold over https, 1 client, verified", "s", medians(runs, lambda s: s.wall), [Goal("≤", 1.0, CURL)]),
        *_cpu("cold over https, 1 client, verified", runs),
    ]


def floor(bench: Bench) -> list[Row]:
    """Each step of a cold download by itself in a bare thread: what a server that does all of them cannot go below."""
    steps: dict[str, list[Sample]] = {}
    for step in STEPS:
        turn = partial(step, bench.image, bench.directory)
        steps |= {step.__name__: bench.interleave(f"floor: {step.__name__}", {BARE: turn})[BARE]}
    together = sum(medians(steps, lambda s: s.server_cpu_per_gb).values())
    return [Row("floor: receive, digest, write, send alone", "CPU-s/GB", {BARE: together}, [])]


def cold_8(bench: Bench) -> list[Row]:
    """Eight clients at once ask for an image nobody has yet; the time is until the last has all of it."""

    def turn(cache: Cache) -> Sample:
        cache.cool()
        return measure(cache, partial(download, cache.image_url, clients=8))

    with bench.caches(MIRROR, NGINX, VARNISH) as caches:
        runs = bench.interleave("cold, 8 clients", _turns(caches, turn))
    goals = [Goal("≤", 1.0, NGINX), Goal("≤", 1.0, VARNISH)]
    return [Row("cold, 8 clients, until all have it", "s", medians(runs, lambda s: s.wall), goals)]


def first_byte(bench: Bench) -> list[Row]:
    """Eight clients at once ask for an image nobody has yet; how much later than upstream's is the last first byte."""
    object_url = bench.upstream.origins[Line.PLAIN].object_url

    def turn(cache: Cache) -> Sample:
        upstreams = slowest_first_byte(object_url, clients=1)
        cache.cool()
        later = slowest_first_byte(cache.image_url, clients=8) - upstreams
        return Sample(value=later * 1000)

    with bench.caches(MIRROR, NGINX, VARNISH) as caches:
        runs = bench.interleave("slowest first byte of 8, ms", _turns(caches, turn))
    return [
        Row("cold, slowest first byte of 8 after upstream's", "ms", medians(runs, lambda s: s.value), [Goal("≤", 100)])
    ]


def metadata_rate(bench: Bench) -> list[Row]:
    """Sixteen connections ask for metadata, the caller's permission being remembered."""

    def turn(cache: Cache) -> Sample:
        return Sample(value=requests_per_second(cache.metadata_url, seconds=_SECONDS_OF_REQUESTS))

    with bench.caches(MIRROR, NGINX, VARNISH) as caches:
        runs = bench.interleave("metadata, requests/s", _turns(caches, turn))
    return [Row("metadata, 16 connections", "requests/s", medians(runs, lambda s: s.value), [Goal("≥", 1 / 4, NGINX)])]


def latency(bench: Bench) -> list[Row]:
    """Metadata is asked for while four clients download an image that is on the disk but not in the page cache.

    Varnish is left out: it keeps its storage mapped, and mapped pages cannot be dropped from outside.
    """

    def turn(cache: Cache) -> Sample:
        accounting.drop_page_cache(cache.directory)
        found = latencies_during_downloads(cache.metadata_url, cache.image_url, bench.image.size, clients=4)
        return Sample(value=percentile(found, 99) * 1000, latencies=found)

    with bench.caches(MIRROR, NGINX) as caches:
        for cache in caches.values():
            download(cache.image_url)
            download(cache.metadata_url)
        runs = bench.interleave("metadata p99 in ms, 4 cold-cache downloads", _turns(caches, turn))
    # All rounds in one: a round lasts as long as the disk takes, and may be too short for a p99 of its own.
    pooled = {name: [latency for sample in samples for latency in sample.latencies] for name, samples in runs.items()}
    p50, p99 = ({name: percentile(pool, percent) * 1000 for name, pool in pooled.items()} for percent in (50, 99))
    case = "metadata during 4 cold-cache downloads"
    return [Row(f"{case}, p50", "ms", p50, []), Row(f"{case}, p99", "ms", p99, [Goal("≤", 50)])]


def memory_hot(bench: Bench) -> list[Row]:
    """Two hundred slow clients download one stored image, from places spread over it: the peak resident."""
    size = bench.image.size
    starts = [size * number // (2 * _READERS) for number in range(_READERS)]

    def turn(cache: Cache) -> Sample:
        return _memory(cache, starts)

    with bench.caches(MIRROR, NGINX, VARNISH) as caches:
        for cache in caches.values():
            download(cache.image_url)
        runs = bench.interleave("memory, 200 downloads, hot", _turns(caches, turn), rounds=1)
    return [Row("memory, 200 downloads, hot", "MiB", medians(runs, lambda s: s.memory_mib), [Goal("≤", 100)])]


def memory_tls(bench: Bench) -> list[Row]:
    """The same over TLS; Varnish has none."""
    size = bench.image.size
    starts = [size * number // (2 * _READERS) for number in range(_READERS)]
    with bench.caches(MIRROR, NGINX, tls=True) as caches:
        for cache in caches.values():
            download(cache.image_url, ca=bench.certificate.cert)
        runs = bench.interleave(
            "memory, 200 TLS downloads, hot", _turns(caches, lambda cache: _memory(cache, starts)), rounds=1
        )
    return [Row("memory, 200 TLS downloads, hot", "MiB", medians(runs, lambda s: s.memory_mib), [Goal("≤", 100)])]


def command_line(bench: Bench) -> list[Row]:
    """How long commands take that only print something; the store of `ls` is empty, and has an upstream."""
    rows = []
    for arguments, bound in (("--version", 0.225), ("ls", 0.4)):
        turn = partial(_command, arguments, bench)
        runs = bench.interleave(f"pps-mirror {arguments}", {MIRROR: turn})
        rows.append(Row(f"`pps-mirror {arguments}`", "s", medians(runs, lambda s: s.wall), [Goal("≤", bound)]))
    return rows


def memory_fill(bench: Bench) -> list[Row]:
    """Two hundred slow clients download one image while it comes in: the peak resident."""

    def turn(cache: Cache) -> Sample:
        cache.cool()
        return _memory(cache, [0] * _READERS)

    with bench.caches(MIRROR, NGINX, VARNISH, line=Line.SLOW) as caches:
        runs = bench.interleave("memory, 200 downloads, fill", _turns(caches, turn), rounds=1)
    case = "memory, 200 downloads, during a fill"
    return [Row(case, "MiB", medians(runs, lambda s: s.memory_mib), [Goal("≤", 100)])]


def slow_rate(image_size: int) -> int:
    """Bytes a second of the slow line, such that a fill lasts as long as the readers of `memory_fill` stay."""
    return int(image_size / _SECONDS_OF_READING)


CASES: Mapping[str, Case] = {
    "hot-1": hot_1,
    "hot-8": hot_8,
    "hot-8-workers": hot_8_workers,
    "cold-1": cold_1,
    "cold-8": cold_8,
    "cold-https": cold_https,
    "floor": floor,
    "first-byte": first_byte,
    "tls-8": tls_8,
    "metadata": metadata_rate,
    "latency": latency,
    "memory-hot": memory_hot,
    "memory-fill": memory_fill,
    "memory-tls": memory_tls,
    "command-line": command_line,
}


def _turns(caches: Mapping[str, Cache], turn: Callable[[Cache], Sample]) -> dict[str, Callable[[], Sample]]:
    return {name: partial(turn, cache) for name, cache in caches.items()}


def _hot(bench: Bench, case: str, caches: Mapping[str, Cache], *, clients: int) -> dict[str, list[Sample]]:
    """Measure downloads of what the warm-up has stored, each client's over one connection."""
    times = max(1, _BYTES_A_HOT_TURN // (bench.image.size * clients))

    def turn(cache: Cache) -> Sample:
        ca = cache.certificate.cert if cache.certificate else None
        return measure(cache, partial(download, cache.image_url, clients=clients, times=times, ca=ca))

    return bench.interleave(case, _turns(caches, turn))


def _cold_verified(bench: Bench, case: str, caches: Mapping[str, Cache], line: Line) -> dict[str, list[Sample]]:
    """Measure the time until one client has a verified file: through each cache, and with curl alone."""
    target = bench.directory / "download"

    def fetch(url: str, verified_by_server: bool, ca: Path | None = None) -> Sequence[Download]:
        downloads = download(url, to=target, ca=ca)
        if not verified_by_server:
            _verify(target, bench.image)
        return downloads

    def through(cache: Cache) -> Sample:
        target.unlink(missing_ok=True)
        cache.cool()
        sample = measure(cache, partial(fetch, cache.image_url, cache.name == MIRROR))
        _verify(target, bench.image)  # off the clock: what the mirror let through is looked at all the same
        return sample

    def alone() -> Sample:
        target.unlink(missing_ok=True)
        ca = bench.certificate.cert if line is Line.TLS else None
        return measure(None, partial(fetch, bench.upstream.origins[line].object_url, False, ca))

    turns = _turns(caches, through)
    if CURL in bench.contestants:
        turns[CURL] = alone
    return bench.interleave(case, turns)


def _command(arguments: str, bench: Bench) -> Sample:
    return Sample(wall=measure_command(arguments, bench.directory, bench.upstream.origins[Line.PLAIN].api_url))


def _verify(path: Path, image: Image) -> None:
    if digest(path) != image.hash:
        raise ClientError(f"{path} is not the image that was asked for")


def _memory(cache: Cache, starts: Sequence[int]) -> Sample:
    """Measure the peak of a server's memory while slow readers begin at `starts`."""
    accounting.reset_peak_memory(cache.pid)
    ca = cache.certificate.cert if cache.certificate else None
    crowd = read_slowly(cache.image_url, starts=starts, seconds=_SECONDS_OF_READING, ca=ca)
    # nginx keeps all but the first waiting until the fill is over; who is measured against a goal must serve them.
    if cache.name == MIRROR and min(crowd.begun, crowd.present) < len(starts):
        raise ClientError(f"{crowd.begun} of {len(starts)} readers got bytes, {crowd.present} stayed to the end")
    return Sample(memory=accounting.peak_memory(cache.pid))
