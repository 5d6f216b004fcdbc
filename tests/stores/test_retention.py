"""Which images may be evicted, and in which order: the policy alone."""

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from mirror.images.retention import evictable
from mirror.store.base import StoredInfo, newest_first
from tests.support.scripted import metadata_of

START = datetime(2024, 1, 1, tzinfo=UTC)


def info(name: str, *, stored: int, served: int | None = None, pinned: bool = False) -> StoredInfo:
    """An image stored and last served that many days after the start."""
    return StoredInfo(
        metadata_of(name.encode(), name),
        stored_at=START + timedelta(stored),
        last_served_at=None if served is None else START + timedelta(served),
        pinned=pinned,
    )


def names(images: list[StoredInfo], current: str | None = None, read: tuple[str, ...] = (), keep: int = 0) -> list[str]:
    hashes = {image.metadata.filename: image.metadata.hash for image in images}
    free = evictable(images, hashes.get(current or ""), {hashes[each] for each in read}, keep=keep)
    return [image.metadata.filename for image in free]


def test_the_least_recently_served_goes_first_and_one_never_served_counts_from_when_it_was_stored() -> None:
    images = [info("a", stored=1, served=9), info("b", stored=5), info("c", stored=2, served=3), info("d", stored=8)]
    assert names(images) == ["c", "b", "d", "a"]


def test_of_those_served_at_one_time_the_one_stored_first_goes_first_then_by_hash() -> None:
    images = [info("b", stored=2, served=9), info("a", stored=1, served=9), info("c", stored=3, served=9)]
    assert names(images) == names(images[::-1]) == ["a", "b", "c"]
    alike = [info(name, stored=1) for name in "defg"]
    assert (
        names(alike)
        == names(alike[::-1])
        == [each.metadata.filename for each in sorted(alike, key=lambda each: each.metadata.hash)]
    )


def test_a_list_is_newest_first_by_created_then_by_when_it_was_stored_then_by_hash() -> None:
    images = [info(name, stored=stored) for name, stored in (("a", 1), ("b", 3), ("c", 3), ("d", 3), ("e", 2))]
    newer = replace(images[0], metadata=replace(images[0].metadata, created=START + timedelta(400)))
    images.append(newer)
    together = sorted(images[1:4], key=lambda each: each.metadata.hash)
    for order in itertools.permutations(images):
        assert newest_first(order) == [newer, *together, images[4], images[0]]


def test_pinned_current_and_read_images_and_the_newest_never_go() -> None:
    images = [info("old", stored=1), info("pinned", stored=2, pinned=True), info("current", stored=3)]
    images += [info("read", stored=4), info("newer", stored=5), info("newest", stored=6)]
    assert names(images, current="current", read=("read",), keep=2) == ["old"]
    assert names(images, current="current", read=("read",)) == ["old", "newer", "newest"]
    assert names(images, keep=6) == []


def test_a_time_that_is_yet_to_come_keeps_no_image() -> None:
    ahead = (datetime.now(UTC) - START).days + 100
    images = [info("a", stored=ahead), info("b", stored=1, served=ahead), info("c", stored=2), info("d", stored=3)]
    assert names(images) == ["a", "b", "c", "d"]
    assert names(images, keep=2) == ["a", "b"]


class Case(NamedTuple):
    images: list[StoredInfo]
    current: str | None
    read: set[str]
    keep: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    days = st.integers(0, 5)
    images = [
        info(str(number), stored=draw(days), served=draw(days | st.none()), pinned=draw(st.booleans()))
        for number in range(draw(st.integers(0, 6)))
    ]
    hashes = [image.metadata.hash for image in images]
    some = st.sampled_from(hashes) if hashes else st.nothing()
    return Case(images, draw(some | st.none()), draw(st.sets(some)), draw(st.integers(0, 7)))


@given(cases())
def test_what_must_stay_stays_and_the_order_of_the_list_says_nothing(case: Case) -> None:
    images, current, read, keep = case
    free = evictable(images, current, read, keep=keep)
    assert len(free) <= max(0, len(images) - keep)
    for image in free:
        assert not image.pinned
        assert image.metadata.hash not in {current, *read}
        later = [each for each in images if each.stored_at >= image.stored_at]
        assert len(later) > keep
    used = [image.last_served_at or image.stored_at for image in free]
    assert used == sorted(used)
    assert list(evictable(images[::-1], current, read, keep=keep)) == list(free)
    if not keep:
        freed = {image.metadata.hash for image in free}
        assert {image.metadata.hash for image in images} == freed | {current, *read} - {None} | {
            image.metadata.hash for image in images if image.pinned
        }


@given(cases())
def test_serving_an_image_again_never_brings_its_turn_nearer(case: Case) -> None:
    before = list(evictable(case.images, case.current, case.read, keep=case.keep))
    for image in before:
        served = replace(image, last_served_at=START + timedelta(99))
        images = [served if each is image else each for each in case.images]
        assert evictable(images, case.current, case.read, keep=case.keep)[-1] is served
