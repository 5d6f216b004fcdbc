"""The steps of a cold download, each by itself in a bare thread: what the machine takes for them at least."""

import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.bench import Sample
from benchmarks.material import Image

_STEP = 1 << 20  # bytes at a time, as in the mirror


def receive(image: Image, _directory: Path) -> Sample:
    """Receive from a socket into a buffer."""
    buffer = memoryview(bytearray(_STEP))

    def feed(sending: socket.socket) -> None:
        for _ in range(image.size // _STEP):
            sending.sendall(buffer)
        sending.close()

    def take(receiving: socket.socket) -> None:
        while receiving.recv_into(buffer):
            pass

    with _connection() as (sending, receiving):
        return _beside(lambda: feed(sending), image.size, lambda: take(receiving))


def digest(image: Image, _directory: Path) -> Sample:
    """Digest what is in the processor's cache."""
    buffer, sha256 = bytes(_STEP), hashlib.sha256()

    def work() -> None:
        for _ in range(image.size // _STEP):
            sha256.update(buffer)

    return _measured(image.size, work)


def write(image: Image, directory: Path) -> Sample:
    """Write into the page cache, and to the disk."""
    buffer, path = os.urandom(_STEP), directory / "floor"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)

    def work() -> None:
        for position in range(0, image.size, _STEP):
            os.pwrite(descriptor, buffer, position)
        os.fsync(descriptor)

    try:
        return _measured(image.size, work)
    finally:
        os.close(descriptor)
        path.unlink()


def send(image: Image, _directory: Path) -> Sample:
    """Send a file from the page cache with `sendfile`."""

    def drain(receiving: socket.socket) -> None:
        buffer = memoryview(bytearray(_STEP))
        while receiving.recv_into(buffer):
            pass

    def give(sending: socket.socket) -> None:
        with image.path.open("rb") as file:
            for position in range(0, image.size, _STEP):
                left = min(_STEP, image.size - position)
                while left:
                    left -= os.sendfile(sending.fileno(), file.fileno(), position + _STEP - left, left)
        sending.close()

    with _connection() as (sending, receiving):
        return _beside(lambda: drain(receiving), image.size, lambda: give(sending))


STEPS: tuple[Callable[[Image, Path], Sample], ...] = (receive, digest, write, send)


def _measured(size: int, work: Callable[[], object]) -> Sample:
    began, before = time.perf_counter(), time.thread_time()
    work()
    return Sample(wall=time.perf_counter() - began, size=size, server_cpu=time.thread_time() - before)


def _beside(other: Callable[[], None], size: int, work: Callable[[], None]) -> Sample:
    """Measure `work` while another thread does the other side's part."""
    thread = threading.Thread(target=other)
    thread.start()
    sample = _measured(size, work)
    thread.join()
    return sample


@contextmanager
def _connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with socket.create_connection(listening.getsockname()) as sending:
            receiving, _ = listening.accept()
            with receiving:
                yield sending, receiving
