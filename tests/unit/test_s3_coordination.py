"""What a fill remembers of a bucket, on paper: its states, who wrote the bytes it read, how far its parts go."""

from hypothesis import given
from hypothesis import strategies as st

from mirror.store.s3.bucket_state import NEXT, UPLOADING, BucketState
from mirror.store.s3.lease import LeaseNote
from mirror.store.s3.part_table import PartTable
from mirror.store.s3.parts import PART
from mirror.store.s3.provenance import Provenance, WrittenPart

SIZE = 8 * PART + 12345


def reachable_from(state: BucketState) -> set[BucketState]:
    found: set[BucketState] = set()
    todo = [state]
    while todo:
        new = NEXT[todo.pop()] - found
        found |= new
        todo += new
    return found


def test_every_state_is_reached_and_may_end() -> None:
    assert set(NEXT) == set(BucketState) == reachable_from(BucketState.CHOOSING)
    assert all(BucketState.DONE in NEXT[state] for state in BucketState)


def test_a_verified_fill_is_named_or_done_and_never_reads_again() -> None:
    assert NEXT[BucketState.SETTLING] == {BucketState.NAMING, BucketState.DONE}
    assert NEXT[BucketState.NAMING] == {BucketState.DONE}


def test_an_upload_begins_only_where_the_lease_can_be_taken() -> None:
    begins = {before for before in BucketState if before not in UPLOADING and NEXT[before] & UPLOADING}
    assert begins == {BucketState.CHOOSING, BucketState.SETTLING}


numbers = st.integers(0, 8)


@given(adopted=st.sets(numbers), landed=st.lists(numbers), grown=st.integers(0, SIZE), lost=st.none() | numbers)
def test_what_the_lease_says_is_there_without_a_gap(
    adopted: set[int], landed: list[int], grown: int, lost: int | None
) -> None:
    table = PartTable(SIZE, "ab12", {number: WrittenPart(f"cd{number}", '"e"') for number in adopted})
    for number in landed:
        table.land(number, '"f"')
        table.reached()
    table.grow(grown)
    if lost is not None and lost in adopted:
        table.lose(lost)
    reached, writers = table.reached(), table.writers()
    whole = next(number for number in range(10) if table.writer(number) is None)
    start, stop = table.span(whole)
    assert reached == min(SIZE, max(start, grown if start <= grown < stop else 0))
    assert all(writers[number] == table.writer(number) for number in range(whole))
    note = LeaseNote(table.fill, table.part_size, reached, writers, size=SIZE)
    assert LeaseNote.decode(note.encode()) == note, "others can read it"
    table.lose_all()
    assert (table.reached(), table.writers(), table.written, table.etags) == (0, (), {}, [])


def test_what_was_read_is_known_also_when_the_part_was_written_anew() -> None:
    first = Provenance().from_part(0, "ab12").with_whole({0: WrittenPart("ab12", '"e"')}).from_part(1, "cd34")
    second = first.with_whole({1: WrittenPart("ef56", '"f"')})
    assert first.writer(1) == "cd34"
    assert [second.writer(number) for number in range(3)] == ["ab12", "ef56", None]
    assert second.includes("cd34")
    assert not second.includes("ef56")
    assert 1 not in first.whole, "an earlier record stays what it was"
