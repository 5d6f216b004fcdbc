"""What a fill had open is closed when its last reader lets go of it, however the fill ended.

Not when the garbage collector comes by: what is quarantined or discarded would take room until then.
"""

import asyncio
import gc
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest

from mirror.images.fill_outcome import FillFailed
from mirror.images.library import Library
from mirror.model.caller import Caller, OwnCredential
from mirror.model.errors import MirrorError
from mirror.store.disk.store import DiskStore
from mirror.upstream.client import Upstream
from tests.support.scripted_upstream import HOLDBACK, METADATA, SIZES, Fate, ScriptedUpstream


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Nothing is closed by the garbage collector meanwhile, and no record of the log keeps what it tells of."""
    gc.collect()
    gc.disable()
    logging.disable()
    yield
    logging.disable(logging.NOTSET)
    gc.enable()


def open_below(root: Path) -> list[str]:
    """The files below a directory that this process has open, removed ones too."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if (name := str(descriptor.readlink())).startswith(f"{root}/"):
                found.append(name)
    return found


ENDS = {
    "well": [],
    "after a cut": [Fate(after=3000)],
    "by wrong bytes": [Fate(wrong_byte=100)],
    "by a change": [Fate(after=3000), Fate(etag="other")],
    "by a refusal": [Fate(status=404, redirected=False)],
    "by stopping": [Fate(after=3000, then="hang")],
}


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("end", ENDS)
async def test_a_fill_that_ended_leaves_nothing_open(tmp_path: Path, end: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        upstream = ScriptedUpstream()
        upstream.fates = list(ENDS[end])
        store = DiskStore(tmp_path, min_free=0, pool=pool)
        await store.prepare()
        library = Library(
            store,
            cast("Upstream", upstream),
            own=OwnCredential(None),
            holdback=HOLDBACK,
            retry=3600,
            changed=lambda: None,
        )

        begun = 0

        async def download() -> None:
            nonlocal begun
            with suppress(FillFailed, MirrorError):
                opened = await library.open(METADATA[0], Caller(None, "0"))
                begun += 1
                position = 0
                while position < SIZES[0]:
                    limit = await opened.body.available(position)
                    file = opened.body.file_at(position)
                    assert file is not None
                    position += len(file.read(position, limit))

        downloads = [asyncio.create_task(download()) for _ in range(3)]
        if end == "by stopping":
            while begun < len(downloads) or not open_below(tmp_path):  # one that comes after the stop fills anew
                await asyncio.sleep(0.01)
            await library.stop()
        await asyncio.wait(downloads)
        await library.stop()
        del downloads
        async with asyncio.timeout(20):
            while open_below(tmp_path):
                await asyncio.sleep(0.01)
