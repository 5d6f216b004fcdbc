"""The queue of a hook, held against a list: whatever order events are put in, taken out, and crashes come in."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mirror.admin.hooks.queue import Queue
from tests.support.in_memory import directory_in_memory

MOST = 2000


class QueueMachine(RuleBasedStateMachine):
    """Some processes put events in, one takes them out; `model` is what must be waiting, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = directory_in_memory()
        self.file = Path(self.directory.name) / "hooks" / "it.jsonl"
        self.model: list[bytes] = []
        self.number = 0
        self.cut = 0

    def teardown(self) -> None:
        self.directory.cleanup()

    @initialize()
    def begin(self) -> None:
        self.processes = [Queue(self.file, MOST), Queue(self.file, MOST)]

    @rule(who=st.integers(0, 1), texts=st.lists(st.text(max_size=40), min_size=1, max_size=5))
    def put(self, who: int, texts: list[str]) -> None:
        events = []
        for text in texts:
            self.number += 1
            events.append(json.dumps({"id": self.number, "text": text}).encode())
        given_up = self.processes[who].put(events)
        self.model = [*self.model, *events][given_up:]

    @rule()
    def deliver(self) -> None:
        body, waiting = self.processes[0].look()
        assert (body, waiting) == (self.model[0] if self.model else None, len(self.model))
        if body is not None:
            self.processes[0].remove(body)
            del self.model[0]

    @rule(who=st.integers(0, 1))
    def crash(self, who: int) -> None:
        self.processes[who] = Queue(self.file, MOST)

    @precondition(lambda self: self.file.exists())
    @rule(left=st.binary(max_size=30))
    def power_cut(self, left: bytes) -> None:
        """A write that did not get to its end leaves part of a line, or zeros."""
        with self.file.open("ab") as file:
            self.cut += file.write(b'{"id": "cut' + left.replace(b"\n", b""))

    @invariant()
    def it_is_bounded_and_in_order(self) -> None:
        if self.file.exists():
            assert self.file.stat().st_size <= MOST + self.cut
        assert self.processes[1].look() == (self.model[0] if self.model else None, len(self.model))


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_events_that_find_no_room_on_the_disk_wait_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(tmp_path / "hooks" / "it.jsonl")
    queue.put([b'{"id":"1"}'])

    def full(fd: int, data: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        queue.put([b'{"id":"2"}'])
        assert queue.look() == (b'{"id":"1"}', 2)
        queue.remove(b'{"id":"1"}')  # which cannot be noted, and is not delivered again all the same
        assert queue.look() == (b'{"id":"2"}', 1)
    queue.remove(b'{"id":"2"}')
    assert queue.look() == (None, 0)
    queue.put([b'{"id":"3"}'])
    assert queue.look() == (b'{"id":"3"}', 1)


def test_a_line_that_was_written_in_part_leaves_nothing_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Queue(tmp_path / "hooks" / "it.jsonl")
    queue.put([b'{"id":"1"}'])
    before = queue.file.read_bytes()
    really = os.pwrite

    def nearly_full(fd: int, data: bytes, offset: int) -> int:
        if offset > len(before):
            raise OSError(28, "No space left on device")
        return really(fd, data[:3], offset)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", nearly_full)
        queue.put([b'{"id":"2"}'])
    assert queue.file.read_bytes() == before


def test_an_event_that_was_cut_behind_a_brace_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "hooks" / "it.jsonl")
    queue.put([b'{"id":"1"}'])
    with queue.file.open("ab") as file:
        file.write(b'{"id":"2","data":{"hash":"x"}')
    queue.put([b'{"id":"3"}'])
    assert queue.look() == (b'{"id":"1"}', 2)
    queue.remove(b'{"id":"1"}')
    assert queue.look() == (b'{"id":"3"}', 1)
