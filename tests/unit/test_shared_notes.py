"""What the processes of a mirror tell one another at once: notes, refusals, wrong bytes."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.access.refusals import Refusals, shared_refusals
from mirror.common.shared_memory import SharedNotes
from mirror.images.wrong_bytes import PAUSE, TIMES, WITHIN, WrongBytes, shared_wrong_bytes
from mirror.model.errors import UpstreamRefused


class Clock:
    """Time as a test wants it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def other(notes: SharedNotes, slots: int, longest: int, lasting: float, clock: Clock) -> SharedNotes:
    """The same notes as another process has them."""
    return SharedNotes(slots, longest, lasting, os.dup(notes.descriptor), clock)


@given(notes=st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=10)), max_size=30))
def test_what_one_leaves_the_other_finds_or_nothing(notes: list[tuple[str, bytes]]) -> None:
    clock = Clock()
    one = SharedNotes(16, 8, 10.0, clock=clock)
    two = other(one, 16, 8, 10.0, clock)
    last: dict[str, bytes] = {}
    for name, note in notes:
        clock.now += 0.01
        one.put(name, note)
        if len(note) <= 8:
            last[name] = note
            assert two.get(name) == note
    for name, note in last.items():
        assert two.get(name) in {note, None}  # the oldest make room
        two.remove(name)
        assert one.get(name) is None


def test_a_note_holds_for_its_time_and_none_from_the_future_does() -> None:
    clock = Clock()
    notes = SharedNotes(4, 8, 3.0, clock=clock)
    notes.put("a", b"x")
    clock.now += 2.9
    assert notes.get("a") == b"x"
    clock.now += 0.2
    assert notes.get("a") is None
    clock.now -= 10
    assert notes.get("a") is None


def test_nothing_of_a_name_is_in_the_memory_that_is_shared() -> None:
    notes = SharedNotes(4, 8, 3.0)
    notes.put("Bearer secret", b"x")
    assert b"secret" not in os.pread(notes.descriptor, 10_000, 0)


def test_a_process_that_inherits_the_descriptor_shares_the_notes() -> None:
    notes = SharedNotes(4, 8, 60.0)
    notes.put("a", b"ours")
    program = (
        "import sys; from mirror.common.shared_memory import SharedNotes\n"
        "notes = SharedNotes(4, 8, 60.0, int(sys.argv[1]))\n"
        "assert notes.get('a') == b'ours'\n"
        "notes.put('b', b'theirs')"
    )
    command = [sys.executable, "-c", program, str(notes.descriptor)]
    subprocess.run(command, pass_fds=[notes.descriptor], check=True, timeout=60)
    assert notes.get("b") == b"theirs"


@pytest.mark.parametrize("credential", ["Bearer secret", None, "Bearer \udcff"])
def test_a_refusal_is_heard_by_the_others_with_upstreams_own_answer(credential: str | None) -> None:
    shared = shared_refusals()
    one, two = Refusals(shared), Refusals(shared_refusals(os.dup(shared.descriptor)))
    one.put("name", credential, UpstreamRefused(401, b'{"message": "\xff"}', {"WWW-Authenticate": "Bearer"}))
    heard = two.get("another name", credential)
    assert heard is not None
    assert (heard.status, heard.body, heard.headers) == (401, b'{"message": "\xff"}', {"WWW-Authenticate": "Bearer"})
    assert two.get("another name", "Bearer other") is None


def test_a_refusal_too_long_to_share_is_remembered_by_who_heard_it() -> None:
    shared = shared_refusals()
    one, two = Refusals(shared), Refusals(shared)
    one.put("name", "Bearer x", UpstreamRefused(403, b"x" * 10_000, {}))
    assert one.get("name", "Bearer x") is not None
    assert two.get("name", "Bearer x") is None


def test_wrong_bytes_are_counted_by_all_together_and_forgotten_when_they_are_right() -> None:
    clock = Clock()
    shared = SharedNotes(64, TIMES * 8, WITHIN, clock=clock)
    processes = [WrongBytes(shared, clock), WrongBytes(other(shared, 64, TIMES * 8, WITHIN, clock), clock)]
    for number in range(TIMES):
        assert processes[0].pause("image") <= 0
        processes[number % 2].count("image")
        clock.now += 1
    assert [process.pause("image") for process in processes] == [PAUSE - 1] * 2
    assert processes[0].pause("another") <= 0
    clock.now += PAUSE
    assert processes[1].pause("image") <= 0
    processes[1].count("image")
    assert processes[0].pause("image") == PAUSE
    processes[0].forget("image")
    assert processes[1].pause("image") <= 0


def test_wrong_bytes_are_forgotten_after_ten_minutes() -> None:
    clock = Clock()
    wrong = WrongBytes(SharedNotes(64, TIMES * 8, WITHIN, clock=clock), clock)
    for _ in range(TIMES - 1):
        wrong.count("image")
    clock.now += WITHIN
    wrong.count("image")
    assert wrong.pause("image") <= 0
    assert shared_wrong_bytes().get("image") is None


def test_notes_that_nobody_uses_any_more_leave_no_descriptor_open() -> None:
    notes = SharedNotes(16, 8, 10.0)
    descriptor = notes.descriptor
    del notes
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
