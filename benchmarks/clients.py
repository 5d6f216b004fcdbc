"""Clients that load a server: curl for bytes, wrk for requests, and two that watch the clock themselves."""

import http.client
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.process import find_program

AUTHORIZATION = {"Authorization": "Bearer benchmark"}
_CURL = ["curl", "-sS", "--fail", "-H", f"Authorization: {AUTHORIZATION['Authorization']}"]
_SECONDS_TO_FINISH = 300.0
_LATENCY_PAUSE = 0.002


class ClientError(Exception):
    """A client did not get what it asked for, so the measurement is void."""


@dataclass(frozen=True, slots=True)
class Download:
    """What curl reports of one transfer: bytes, and seconds to the first one."""

    size: int
    first_byte: float


@contextmanager
def _killed_at_the_end(processes: Sequence[subprocess.Popen[str]]) -> Iterator[None]:
    """Let no client outlive the block, whatever happens in it."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def download(
    url: str, *, clients: int = 1, times: int = 1, to: Path = Path("/dev/null"), ca: Path | None = None
) -> list[Download]:
    """Let `clients` curl processes fetch `url` at once, each `times` in a row; raise ClientError if one fails."""
    command = [*_CURL, *(["--cacert", str(ca)] if ca else [])]
    command += ["-w", "%{size_download} %{time_starttransfer}\\n", *["-o", str(to), url] * times]
    processes = [_popen(command) for _ in range(clients)]
    with _killed_at_the_end(processes):
        return [done for process in processes for done in _curl_result(process)]


def _popen(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _curl_result(process: subprocess.Popen[str]) -> list[Download]:
    output, errors = process.communicate(timeout=_SECONDS_TO_FINISH)
    if process.returncode:
        raise ClientError(f"curl ended with status {process.returncode}: {errors.strip()}")
    return [Download(int(size), float(first)) for size, first in map(str.split, output.splitlines())]


def digest(path: Path) -> str:
    """Return the SHA-256 of a file as `openssl dgst` finds it, which is what a careful user of curl runs next."""
    done = subprocess.run(["openssl", "dgst", "-sha256", "-r", str(path)], check=True, capture_output=True, text=True)
    return done.stdout.split()[0]


def requests_per_second(url: str, *, seconds: int) -> float:
    """Return how many requests wrk gets answered a second over 16 connections; every answer must be a 200."""
    program = find_program("wrk") or "wrk"
    header = f"Authorization: {AUTHORIZATION['Authorization']}"
    command = [program, "-t1", "-c16", f"-d{seconds}s", "-H", header, url]
    report = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + 30).stdout
    found = re.search(r"Requests/sec:\s*([\d.]+)", report)
    if not found or "Non-2xx" in report or "Socket errors" in report:
        raise ClientError(f"wrk: {report}")
    return float(found[1])


def latencies_during_downloads(metadata_url: str, image_url: str, image_size: int, clients: int) -> list[float]:
    """Ask for metadata, one request after the other, while `clients` read the image; return the seconds of each.

    The downloads begin at places spread over the image, so that each meets pages nobody has read yet.
    """
    starts = [image_size * number // clients for number in range(clients)]
    processes = [_popen([*_CURL, "-o", "/dev/null", "-r", f"{start}-", image_url]) for start in starts]
    seconds: list[float] = []
    with _killed_at_the_end(processes):
        connection = http.client.HTTPConnection(urlsplit(metadata_url).netloc, timeout=_SECONDS_TO_FINISH)
        try:
            while any(process.poll() is None for process in processes):
                begin = time.perf_counter()
                _get(connection, metadata_url).read()
                seconds.append(time.perf_counter() - begin)
                time.sleep(_LATENCY_PAUSE)
        finally:
            connection.close()
        for process in processes:
            _curl_result(process)
    return seconds


def _get(connection: http.client.HTTPConnection, url: str) -> http.client.HTTPResponse:
    connection.request("GET", urlsplit(url).path, headers=AUTHORIZATION)
    response = connection.getresponse()
    if response.status != http.client.OK:
        raise ClientError(f"{url}: status {response.status}")
    return response


def slowest_first_byte(url: str, *, clients: int) -> float:
    """Return the seconds until the last of `clients`, who ask at once, has the first byte of the *body*.

    Headers alone do not count, which is why this is not curl's `time_starttransfer`. The early ones go on
    reading meanwhile, as downloads do.
    """
    seconds: list[float] = []
    everybody_has_begun = threading.Event()
    at_once = threading.Barrier(clients)

    def client() -> None:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_SECONDS_TO_FINISH)
        buffer = memoryview(bytearray(1 << 20))
        try:
            at_once.wait()
            begin = time.perf_counter()
            response = _get(connection, url)
            if response.read(1):
                seconds.append(time.perf_counter() - begin)
            if len(seconds) == clients:
                everybody_has_begun.set()
            while not everybody_has_begun.is_set() and response.readinto(buffer):
                pass
        finally:
            connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(seconds) != clients:
        raise ClientError(f"{url}: only {len(seconds)} of {clients} clients got a byte")
    return max(seconds)


def measure_command(arguments: str, directory: Path, upstream: str) -> float:
    """Return the seconds that a command of the mirror takes, with a store that does not exist yet."""
    settings = {"PPS_MIRROR__STORE__PATH": str(directory / "no-store"), "PPS_MIRROR__UPSTREAM__URL": upstream}
    command = [sys.executable, "-m", "mirror.cli.main", *arguments.split()]
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **settings})
    return time.perf_counter() - began


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the value that `percent` of `values` do not exceed."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
