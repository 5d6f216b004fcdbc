"""The thread that writes the log: it keeps nobody waiting, loses nothing without saying so, and ends."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.common.log_writer import PIECE, ROOM, LogWriter

LINE = "x" * 1023
"""With its end, a kibibyte."""


class Pipe:
    """A pipe that takes 4 KiB, and a writer into it which says what it lost."""

    def __init__(self, end_seconds: float = 60.0) -> None:
        self.read_end, write_end = os.pipe()
        self.stream = os.fdopen(write_end, "w", encoding="ascii")
        self.writer = LogWriter(self.stream, lambda lines: self.writer.write(f"lost {lines}"), end_seconds=end_seconds)
        self.counted = 0
        self.writer.count_lost_with(self._count)

    def _count(self, lines: int) -> None:
        self.counted += lines

    def read(self) -> list[str]:
        """All that comes until the writer has ended."""
        with os.fdopen(os.dup(self.read_end)) as reader:
            return reader.read().splitlines()

    def leave(self) -> None:
        """Read no more."""
        if self.read_end >= 0:
            os.close(self.read_end)
            self.read_end = -1


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.stream.close()
    pipe.leave()


def test_what_is_said_is_written_in_order_and_whole_before_the_end(pipe: Pipe) -> None:
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.extend(pipe.read()))
    reader.start()
    with pipe.writer as writer:
        for number in range(700):
            writer.write(f"{number} {LINE}")
    pipe.stream.close()
    reader.join()
    assert read == [f"{number} {LINE}" for number in range(700)]
    assert pipe.counted == 0


def test_a_pipe_that_nobody_reads_keeps_no_speaker_waiting_and_holds_no_more_than_its_room(pipe: Pipe) -> None:
    with pipe.writer as writer:
        for _ in range(3 * ROOM // 1024):
            writer.write(LINE)
        assert writer._waiting <= ROOM * 3 // 4
        assert pipe.counted >= ROOM // 1024
        before = pipe.counted
        writer.write("a warning", important=True)
        assert pipe.counted == before
        reader = threading.Thread(target=lambda: read.extend(pipe.read()))
        read: list[str] = []
        reader.start()
    pipe.stream.close()
    reader.join()
    assert [line for line in read if line not in {LINE, "a warning"}] == [f"lost {pipe.counted}"]
    assert "a warning" in read
    assert read.count(LINE) + pipe.counted == 3 * ROOM // 1024


def test_the_end_does_not_wait_for_ever_for_a_reader() -> None:
    pipe = Pipe(end_seconds=0.1)
    with pipe.writer as writer:
        for _ in range(200):
            writer.write(LINE)
    assert writer._thread.is_alive()
    pipe.leave()  # the thread gets to know that nobody reads
    writer._thread.join()
    pipe.stream.close()
    assert pipe.counted >= 200 - 64


def test_a_closed_pipe_and_a_full_disk_lose_lines_and_nothing_else(pipe: Pipe) -> None:
    pipe.leave()
    with pipe.writer as writer:
        writer.write("to nobody")
    assert pipe.counted == 1
    counted: list[int] = []
    with Path("/dev/full").open("w") as full, LogWriter(full, counted.append) as writer:
        writer.count_lost_with(counted.append)
        writer.write("to nowhere")
    assert counted == [1]


def test_a_descriptor_that_does_not_block_is_waited_for(pipe: Pipe) -> None:
    os.set_blocking(pipe.stream.fileno(), False)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.extend(pipe.read()))
    with pipe.writer as writer:
        for _ in range(500):
            writer.write(LINE)
        reader.start()
    pipe.stream.close()
    reader.join()
    assert read == [LINE] * 500


@pytest.mark.timeout(10)
def test_what_logs_while_a_line_is_being_taken_does_not_wait_for_itself(pipe: Pipe) -> None:
    with pipe.writer as writer, writer._lock:  # as a finalizer does that the garbage collector calls in there
        writer.write("from within")
    pipe.stream.close()
    assert pipe.read() == ["from within"]


def test_a_character_that_the_stream_lacks_is_escaped(pipe: Pipe) -> None:
    with pipe.writer as writer:
        writer.write("caf\xe9 \udce9 \N{CHECK MARK}")
    pipe.stream.close()
    assert pipe.read() == ["caf\\xe9 \\udce9 \\u2713"]


@pytest.fixture
def writes() -> Iterator[tuple[LogWriter, socket.socket]]:
    """A writer that waits for an hour for more lines, and a socket that gets each of its writes as a message."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, its, os.fdopen(os.dup(its.fileno()), "w", encoding="ascii") as stream:
        yield LogWriter(stream, lambda lines: None, gather_seconds=3600.0, end_seconds=60.0), ours


def test_lines_that_may_wait_are_written_together_and_another_takes_them_along(
    writes: tuple[LogWriter, socket.socket],
) -> None:
    writer, ours = writes
    with writer:
        for number in range(5):
            writer.write(f"line {number}", waits=True)
        writer.write("an event")
        assert ours.recv(1 << 16) == b"line 0\nline 1\nline 2\nline 3\nline 4\nan event\n"


def test_all_that_waits_goes_into_a_file_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    write = os.write

    def noted(descriptor: int, data: bytes) -> int:
        sizes.append(len(data))
        return write(descriptor, data)

    with (tmp_path / "log").open("w", encoding="ascii") as file, monkeypatch.context() as patched:
        patched.setattr(os, "write", noted)
        with LogWriter(file, lambda lines: None, gather_seconds=3600.0, end_seconds=60.0) as writer:
            for _ in range(40):
                writer.write(LINE, waits=True)
    assert sizes == [40 << 10]
    assert (tmp_path / "log").read_text() == f"{LINE}\n" * 40


def test_what_waits_is_written_at_the_end_in_pieces_that_a_pipe_keeps_whole(
    writes: tuple[LogWriter, socket.socket],
) -> None:
    writer, ours = writes
    with writer:
        for _ in range(10):
            writer.write(LINE, waits=True)
        writer.write(LINE * 5, waits=True)
        writer.write("short", waits=True)
    received = [ours.recv(1 << 16) for _ in range(5)]
    lines = [f"{LINE}\n".encode()] * 10 + [f"{LINE * 5}\n".encode(), b"short\n"]
    assert received == [b"".join(lines[:4]), b"".join(lines[4:8]), b"".join(lines[8:10]), lines[10], lines[11]]
    assert all(len(each) <= PIECE for each in received if each != lines[10])


def test_many_lines_do_not_wait_for_more(writes: tuple[LogWriter, socket.socket]) -> None:
    writer, ours = writes
    with writer:
        for _ in range(64):
            writer.write(LINE, waits=True)
        assert sum(len(ours.recv(1 << 16)) for _ in range(16)) == 64 << 10


def test_a_line_alone_is_written_after_a_while(pipe: Pipe) -> None:
    with pipe.writer as writer:
        writer.write("alone", waits=True)
        assert os.read(pipe.read_end, 100) == b"alone\n"
