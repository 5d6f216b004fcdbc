"""The invariants of a fill, with sources that break in any way and readers that come at any time."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mirror.images import retry
from mirror.images.fill import Fill
from mirror.images.fill_outcome import FillFailed, Reason, State
from mirror.model.errors import BadUpstream, NotFound
from mirror.model.metadata import ImageMetadata
from mirror.model.source import UNVOUCHED, Broken, Changed, NoSource
from mirror.store.base import Body, Partial, Transfer
from mirror.store.disk.store import DiskStore
from tests.support.in_memory import directory_in_memory
from tests.support.scripted import Opening, ScriptedSource, disk_store, metadata_of

IMAGE = bytes(range(256)) * 40 + b"the end"
HOLDBACK = 512


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "BACKOFF", (0.0, 0.0))


async def read(body: Body, start: int, stop: int, seen: list[int] | None = None) -> bytes:
    """Read as a client's download does; every limit that was allowed goes to `seen`."""
    received = b""
    while start < stop:
        limit = min(stop, await body.available(start))
        if seen is not None:
            seen.append(limit)
        file = body.file_at(start)
        assert file is not None
        received += file.read(start, limit)
        start = limit
    return received


async def journal_of(store: DiskStore, metadata: ImageMetadata) -> Partial:
    """Begin or resume the journal of an image that is not stored."""
    begun = await store.begin(metadata, NoSource())
    assert isinstance(begun, Transfer)
    return begun.journal


openings = st.lists(
    st.builds(
        Opening,
        count=st.integers(0, len(IMAGE) - 1),
        ranges=st.booleans(),
        etag=st.sampled_from(['"v1"', None]),
    ),
    max_size=6,
)
ranges = st.tuples(st.integers(0, len(IMAGE) - 1), st.integers(1, len(IMAGE))).map(
    lambda pair: (pair[0], min(len(IMAGE), pair[0] + pair[1]))
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=openings, readers=st.lists(st.tuples(ranges, st.integers(0, 30)), max_size=5), left=st.integers(0, 9000))
def test_whatever_breaks_every_reader_gets_the_images_bytes_and_the_image_is_published(
    script: list[Opening], readers: list[tuple[tuple[int, int], int]], left: int
) -> None:
    async def scenario(root: Path) -> None:
        async with disk_store(root) as store:
            metadata = metadata_of(IMAGE)
            if left:  # what an earlier process left behind
                (root / "partial" / metadata.hash).write_bytes(IMAGE[:left])
            source = ScriptedSource(IMAGE, script)
            fill = Fill(metadata, source, await journal_of(store, metadata), holdback=HOLDBACK, retry=60)
            seen: list[int] = []

            async def reader(part: tuple[int, int], later: int) -> None:
                for _ in range(later):
                    await asyncio.sleep(0)
                assert await read(fill, *part, seen) == IMAGE[slice(*part)]

            async def watch() -> None:
                while fill.state not in {State.PUBLISHED, State.FAILED}:
                    assert all(limit <= len(IMAGE) - HOLDBACK for limit in seen)
                    assert fill.position <= len(IMAGE)
                    await asyncio.sleep(0)

            async with asyncio.TaskGroup() as group:
                group.create_task(watch())
                for part, later in readers:
                    group.create_task(reader(part, later))
                group.create_task(fill.run())
            # A source without ranges that never gets further than what is there gives up; see below.
            assert fill.state is State.PUBLISHED
            stored = await store.open(metadata.hash)
            assert stored is not None
            assert await read(stored, 0, len(IMAGE)) == IMAGE
            assert not list((root / "partial").iterdir())

    doomed = sum(not act.ranges for act in script) >= 4
    with directory_in_memory() as root:
        if not doomed:
            asyncio.run(scenario(Path(root)))


async def failed(root: Path, *script: Opening, image: bytes = IMAGE, retry: float = 60) -> tuple[FillFailed, bytes]:
    """Run a fill that must fail; its verdict, and what a reader from 0 had got until then."""
    async with disk_store(root) as store:
        metadata = metadata_of(IMAGE)
        source = ScriptedSource(image, script)
        fill = Fill(metadata, source, await journal_of(store, metadata), holdback=HOLDBACK, retry=retry)
        received = b""

        async def reader() -> None:
            nonlocal received
            while len(received) < len(IMAGE):
                limit = await fill.available(len(received))
                file = fill.file_at(len(received))
                assert file is not None
                received += file.read(len(received), limit)

        task = asyncio.create_task(reader())
        await fill.run()
        with pytest.raises(FillFailed) as verdict:
            await task
        with pytest.raises(FillFailed):  # a reader that joins later learns it as well
            await fill.available(0)
        assert await store.open(metadata.hash) is None
        return verdict.value, received


WRONG_BYTE = IMAGE[:5000] + b"\0" + IMAGE[5001:]
WRONG_END = IMAGE[:-1] + b"\0"


@pytest.mark.parametrize(
    ("image", "reason"),
    [(WRONG_BYTE, Reason.WRONG_BYTES), (WRONG_END, Reason.WRONG_BYTES), (IMAGE + b"more", Reason.WRONG_BYTES)],
)
async def test_wrong_bytes_are_never_given_whole_and_set_aside(tmp_path: Path, image: bytes, reason: Reason) -> None:
    verdict, received = await failed(tmp_path, image=image)
    assert verdict.reason is reason
    assert len(received) <= len(IMAGE) - HOLDBACK
    assert len(list((tmp_path / "quarantine").iterdir())) == 1
    assert not list((tmp_path / "partial").iterdir())


async def test_an_image_that_ends_early_twice_at_the_same_byte_is_wrong(tmp_path: Path) -> None:
    short = Opening(4000, clean=True)
    verdict, received = await failed(tmp_path, short, Opening(0, clean=True))
    assert verdict.reason is Reason.WRONG_BYTES
    assert received == IMAGE[:4000]


async def test_a_clean_early_end_is_asked_once_more_and_may_go_on(tmp_path: Path) -> None:
    async with disk_store(tmp_path) as store:
        metadata = metadata_of(IMAGE)
        source = ScriptedSource(IMAGE, [Opening(4000, clean=True)])
        fill = Fill(metadata, source, await journal_of(store, metadata), holdback=HOLDBACK, retry=60)
        await fill.run()
        assert fill.state is State.PUBLISHED
        assert source.asked == [(0, None), (4000, '"v1"')]


async def test_bytes_that_were_received_are_not_fetched_again(tmp_path: Path) -> None:
    async with disk_store(tmp_path) as store:
        metadata = metadata_of(IMAGE)
        source = ScriptedSource(IMAGE, [Opening(count) for count in (3000, 1, 0, 2500)])
        await Fill(metadata, source, await journal_of(store, metadata), holdback=HOLDBACK, retry=60).run()
        assert source.sent == len(IMAGE)
        assert [offset for offset, _ in source.asked] == [0, 3000, 3001, 3001, 5501]


async def test_a_restart_with_other_bytes_fails_as_changed(tmp_path: Path) -> None:
    other = bytes(reversed(IMAGE))
    verdict, _ = await failed(tmp_path, Opening(3000), Opening(9000, ranges=False, image=other))
    assert verdict.reason is Reason.CHANGED
    assert not list((tmp_path / "partial").iterdir())


async def test_a_source_that_has_changed_fails_as_changed_and_what_is_there_is_tried_without_its_validator(
    tmp_path: Path,
) -> None:
    verdict, _ = await failed(tmp_path, Opening(3000), Opening(0, error=Changed("another ETag")))
    assert verdict.reason is Reason.CHANGED
    async with disk_store(tmp_path) as store:
        metadata = metadata_of(IMAGE)
        source = ScriptedSource(IMAGE)
        again = Fill(metadata, source, await journal_of(store, metadata), holdback=HOLDBACK, retry=60)
        await again.run()
        assert again.state is State.PUBLISHED
        assert source.asked == [(3000, None)]


pages = st.builds(
    Opening,
    image=st.binary(min_size=1, max_size=3000).map(lambda page: b"<html>" + page),
    count=st.just(len(IMAGE)),
    clean=st.just(True),
    ranges=st.just(False),
    etag=st.sampled_from([UNVOUCHED, '"page"']),
)
honest = st.builds(
    Opening,
    count=st.integers(0, len(IMAGE) - 1),
    clean=st.booleans(),
    ranges=st.booleans(),
    etag=st.sampled_from(['"v1"', None, UNVOUCHED]),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=st.lists(st.one_of(pages, honest), max_size=6))
def test_whatever_comes_in_the_images_place_nothing_is_built_on_it_and_nothing_counts_as_wrong_bytes(
    script: list[Opening],
) -> None:
    async def scenario(root: Path) -> None:
        async with disk_store(root) as store:
            metadata = metadata_of(IMAGE)
            source = ScriptedSource(IMAGE, script, if_range=True)
            for _ in range(len(script) + 2):
                fill = Fill(metadata, source, await journal_of(store, metadata), holdback=HOLDBACK, retry=60)
                await fill.run()
                if fill.state is State.PUBLISHED:
                    break
                assert fill.failure is not None
                # What ends at the same byte twice, and has an ETag or these bytes, is an image that is too short.
                short = any(act.clean and (act.image is None or act.etag != UNVOUCHED) for act in script)
                assert fill.failure.reason is not Reason.WRONG_BYTES or short
            assert fill.state is State.PUBLISHED
            assert not list((root / "quarantine").iterdir())

    with directory_in_memory() as root:
        asyncio.run(scenario(Path(root)))


async def test_a_page_twice_leaves_no_partial_to_build_on(tmp_path: Path) -> None:
    page = Opening(len(IMAGE), image=b"<html>", clean=True, ranges=False, etag=UNVOUCHED)
    verdict, _ = await failed(tmp_path, page, page)
    assert verdict.reason is Reason.CHANGED
    assert not list((tmp_path / "partial").iterdir())


async def test_after_kill_9_amid_a_page_nothing_is_built_on_it(tmp_path: Path) -> None:
    metadata = metadata_of(IMAGE)
    async with disk_store(tmp_path) as store:
        page = Opening(len(IMAGE), image=b"<html>", ranges=False, etag=UNVOUCHED, hang=True)
        fill = Fill(metadata, ScriptedSource(IMAGE, [page]), await journal_of(store, metadata), holdback=0, retry=60)
        running = asyncio.create_task(fill.run())
        await fill.available(5)
        while fill.journal.validator is None:
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait({running})
    assert (tmp_path / "partial" / metadata.hash).read_bytes() == b"<html>"
    async with disk_store(tmp_path) as store:
        source = ScriptedSource(IMAGE)
        states = []
        for _ in range(2):
            fill = Fill(metadata, source, await journal_of(store, metadata), holdback=0, retry=60)
            await fill.run()
            states.append(fill.state)
        assert states == [State.FAILED, State.PUBLISHED]
        assert source.asked == [(0, None), (0, None)]
        assert not list((tmp_path / "quarantine").iterdir())


async def test_pages_at_a_resume_are_a_line_that_broke(tmp_path: Path) -> None:
    async with disk_store(tmp_path) as store:
        metadata = metadata_of(IMAGE)
        page = Opening(len(IMAGE), image=b"<html>", clean=True, ranges=False, etag=UNVOUCHED)
        source = ScriptedSource(IMAGE, [Opening(4000), page, page])
        fill = Fill(metadata, source, await journal_of(store, metadata), holdback=HOLDBACK, retry=60)
        await fill.run()
        assert fill.state is State.PUBLISHED
        assert source.asked == [(0, None)] + [(4000, '"v1"')] * 3


async def test_upstreams_refusal_is_what_readers_without_a_byte_are_told(tmp_path: Path) -> None:
    verdict, received = await failed(tmp_path, Opening(0, error=NotFound("no image")))
    assert (verdict.reason, verdict.error.status, received) == (Reason.REFUSED, 404, b"")


async def test_a_redirect_target_that_refuses_again_and_again_is_final(tmp_path: Path) -> None:
    expired = [Opening(0, error=Broken("403", definitive_after=4)) for _ in range(4)]
    verdict, _ = await failed(tmp_path, Opening(3000), *expired)
    assert verdict.reason is Reason.REFUSED
    assert isinstance(verdict.error, BadUpstream)


async def test_without_progress_for_fill_retry_it_gives_up_and_keeps_the_partial(tmp_path: Path) -> None:
    cuts = [Opening(3000), *(Opening(0) for _ in range(10_000))]
    verdict, received = await failed(tmp_path, *cuts, retry=0.05)
    assert verdict.reason is Reason.GAVE_UP
    assert received == IMAGE[:3000]
    assert (tmp_path / "partial" / metadata_of(IMAGE).hash).read_bytes() == IMAGE[:3000]


async def test_a_partial_that_was_altered_while_the_mirror_was_down_is_never_served_whole(tmp_path: Path) -> None:
    async with disk_store(tmp_path) as store:
        metadata = metadata_of(IMAGE)
        (tmp_path / "partial" / metadata.hash).write_bytes(b"\0" * 5000)
        fill = Fill(metadata, ScriptedSource(IMAGE), await journal_of(store, metadata), holdback=HOLDBACK, retry=60)
        await fill.run()
        assert fill.failure is not None
        assert fill.failure.reason is Reason.WRONG_BYTES
        again = Fill(metadata, ScriptedSource(IMAGE), await journal_of(store, metadata), holdback=HOLDBACK, retry=60)
        await again.run()
        assert again.state is State.PUBLISHED


async def test_a_fill_that_is_stopped_leaves_a_clean_partial(tmp_path: Path) -> None:
    async with disk_store(tmp_path) as store:
        metadata = metadata_of(IMAGE)
        source = ScriptedSource(IMAGE, [Opening(5000, hang=True)])
        fill = Fill(metadata, source, await journal_of(store, metadata), holdback=HOLDBACK, retry=60)
        task = asyncio.create_task(fill.run())
        await fill.available(4999)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (tmp_path / "partial" / metadata.hash).read_bytes() == IMAGE[:5000]
        again = await journal_of(store, metadata)  # the lock is free
        await again.close()


async def test_an_image_smaller_than_the_holdback_is_answered_as_soon_as_upstream_does(tmp_path: Path) -> None:
    async with disk_store(tmp_path) as store:
        metadata = metadata_of(IMAGE)
        source = ScriptedSource(IMAGE, [Opening(100, hang=True)])
        fill = Fill(metadata, source, await journal_of(store, metadata), holdback=1 << 20, retry=60)
        running = asyncio.create_task(fill.run())
        await asyncio.wait_for(fill.answered(), 10)
        reading = asyncio.create_task(fill.available(0))
        await asyncio.wait({reading}, timeout=0.1)
        assert not reading.done()
        running.cancel()
        await asyncio.wait({running, reading})
        assert isinstance(reading.exception(), FillFailed)
