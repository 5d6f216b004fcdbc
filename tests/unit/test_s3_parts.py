"""The arithmetic of parts, on paper up to the largest object that S3 knows; and what a lease says, whatever it says."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.store.s3 import parts
from mirror.store.s3.lease import Held, LeaseNote

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40


@given(size=st.integers(1, 5 * TIB))
def test_every_image_has_as_many_parts_as_s3_takes_and_each_is_of_a_size_that_it_takes(size: int) -> None:
    part = parts.part_size(size)
    assert 5 * MIB <= part <= 5 * GIB
    assert part % MIB == 0
    assert 1 <= parts.count(size, part) <= 10_000
    assert (parts.count(size, part) - 1) * part < size <= parts.count(size, part) * part


@pytest.mark.parametrize(
    ("size", "part", "count"),
    [
        (1, 16 * MIB, 1),
        (16 * MIB, 16 * MIB, 1),
        (16 * MIB + 1, 16 * MIB, 2),
        (14_000_000_000, 16 * MIB, 835),
        (160_000 * MIB, 16 * MIB, 10_000),
        (160_000 * MIB + 1, 17 * MIB, 9412),
        (640_000 * MIB, 64 * MIB, 10_000),
        (5 * TIB, 525 * MIB, 9987),
    ],
)
def test_parts_grow_only_when_there_would_be_too_many(size: int, part: int, count: int) -> None:
    assert (parts.part_size(size), parts.count(size, part)) == (part, count)


@given(start=st.integers(0, 10**6), length=st.integers(1, 10**6), part=st.integers(1, 10**6))
def test_spans_divide_any_range_among_its_parts(start: int, length: int, part: int) -> None:
    start, length = start % (20 * part), length % (20 * part) + 1
    covered = start
    for number, first, last in parts.spans(start, start + length, part):
        assert number * part + first == covered
        assert 0 <= first < last <= part
        covered = number * part + last
    assert covered == start + length


names = st.text("0123456789abcdef", min_size=1, max_size=16)


@given(
    runs=st.lists(st.tuples(names, st.integers(1, 50)), max_size=6),
    validator=st.none() | st.text(),
    released=st.booleans(),
    failed=st.none() | st.text(),
)
def test_what_a_lease_says_is_read_as_it_was_written(
    runs: list[tuple[str, int]], validator: str | None, released: bool, failed: str | None
) -> None:
    owners = tuple(owner for owner, count in runs for _ in range(count))
    note = LeaseNote("ab12", 16 * MIB, len(owners) * 16 * MIB, owners, validator, released, failed)
    assert LeaseNote.decode(note.encode()) == note


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_whatever_lies_where_a_lease_should_be_it_is_read_as_nothing_or_as_a_note(data: bytes) -> None:
    assert LeaseNote.decode(data) is None


@pytest.mark.parametrize(
    "change",
    [
        {"fill": "../../images"},
        {"fill": ""},
        {"fill": "a" * 65},
        {"fill": 7},
        {"partSize": 0},
        {"partSize": -1},
        {"position": -1},
        {"position": 100 * MIB},
        {"parts": [["ab12", 10_001]]},
        {"parts": [["ab12", 10**12]]},
        {"parts": [["ab12", -1]]},
        {"parts": [["../x", 1]]},
        {"parts": [[1, 1]]},
        {"parts": "ab"},
        {"parts": None},
        {"validator": ...},
    ],
)
def test_a_lease_that_could_lead_astray_is_read_as_nothing(change: dict[str, object]) -> None:
    good = json.loads(LeaseNote("ab12", 16 * MIB, 20 * MIB, ("ab12", "cd34")).encode())
    changed = {key: value for key, value in {**good, **change}.items() if value is not ...}
    assert LeaseNote.decode(json.dumps(good).encode()) is not None
    assert LeaseNote.decode(json.dumps(changed).encode()) is None


def test_a_lease_is_free_when_it_says_so_or_has_expired() -> None:
    note = LeaseNote("ab12", 16 * MIB)
    assert not Held(note, '"e"').free
    assert Held(note, '"e"', over=True).free
    assert Held(None, '"e"').free
    assert Held(dataclasses.replace(note, released=True), '"e"').free
    assert Held(dataclasses.replace(note, failed="wrong"), '"e"').free
