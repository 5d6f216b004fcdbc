"""How far an indexing is, for all processes; and how that reads."""

import os

from mirror.model.status import ArchiveState, Indexing
from mirror.registry.progress import IndexProgress, Progress, shared_progress
from mirror.registry.pull import _indexing


def test_one_process_notes_and_all_read() -> None:
    notes = shared_progress()
    indexing = IndexProgress(notes)
    other = IndexProgress(shared_progress(os.dup(notes.descriptor)))
    assert other.get("a") is None
    indexing.put("a", Progress(0.25, 12.0))
    assert other.get("a") == Progress(0.25, 12.0)
    indexing.forget("a")
    assert other.get("a") is None


def test_a_client_is_told_how_much_is_done_and_what_is_left() -> None:
    state = ArchiveState(Indexing.RUNNING, done=0.437, seconds_left=80.2)
    assert _indexing(state) == ("the image is being indexed: 43 %, about 1m 20s left; ask again", 80.2)
    assert _indexing(ArchiveState(Indexing.WAITING)) == ("the image is here, and is indexed soon; ask again", None)


def test_a_state_reads_as_a_person_would_say_it() -> None:
    assert str(ArchiveState(Indexing.RUNNING, done=0.437)) == "indexing 44%"
    assert str(ArchiveState(Indexing.REFUSED, "it is no tar")) == "refused: it is no tar"
    assert str(ArchiveState(Indexing.READY)) == "ready"
