"""A store with bounds: what a running mirror evicts for a new image, and what it never does."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mirror.simulator.client import ImageSpec, Simulator
from tests.support.commands import run
from tests.support.downloads import Download, fetch
from tests.support.fixtures import FreshMirror, Sections
from tests.support.processes import MirrorProcess, eventually

SIZE = 16 << 20
"""Bytes of an image: more than the kernel takes for a client that does not read."""

NAMES = ("a", "b", "c", "d")


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator.start([ImageSpec(name, size=SIZE) for name in NAMES]) as simulator:
        yield simulator


@pytest.fixture
def mirror(fresh_mirror: FreshMirror) -> MirrorProcess:
    """A mirror with room for two images and a bit."""
    return fresh_mirror({"upstream": {"metadata_ttl": "0s"}, "store": {"max_size": SIZE * 5 // 2, "keep": 0}})


def stored(mirror: MirrorProcess, simulator: Simulator) -> set[str]:
    images = mirror.store / "images"
    assert {path.name for path in images.iterdir()} <= {simulator.image_sha256(name) for name in NAMES}
    return {name for name in NAMES if (images / simulator.image_sha256(name) / "image").exists()}


def get(mirror: MirrorProcess, simulator: Simulator, name: str) -> None:
    """Make it the current image and download it, until the mirror has let go of it: what is in use is not evicted."""
    simulator.roll_over(name)
    assert fetch(mirror.image_url).sha256 == simulator.image_sha256(name)
    eventually(lambda: not is_open(mirror, simulator.image_sha256(name)), what="an end to its use")


def is_open(mirror: MirrorProcess, image_hash: str) -> bool:
    """Whether the mirror has a file of that image open, stored or partial."""
    assert mirror.process is not None
    opened = []
    for descriptor in Path(f"/proc/{mirror.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since
            opened.append(str(descriptor.readlink()))
    return any(name.startswith(str(mirror.store)) and image_hash in name for name in opened)


def served_at(mirror: MirrorProcess, simulator: Simulator, name: str) -> float:
    """When it was served last, by the mirror's note; 0 when it has none."""
    note = mirror.store / "images" / simulator.image_sha256(name) / "served"
    return note.stat().st_mtime if note.exists() else 0.0


def by_hash(mirror: MirrorProcess, simulator: Simulator, name: str) -> str:
    return f"{mirror.url}/mirror/v1/images/{simulator.image_sha256(name)}/"


def test_a_new_image_takes_the_room_of_the_one_served_least_recently(
    mirror: MirrorProcess, simulator: Simulator
) -> None:
    get(mirror, simulator, "a")
    get(mirror, simulator, "b")
    eventually(lambda: served_at(mirror, simulator, "b"))  # no client waits for that note
    assert fetch(by_hash(mirror, simulator, "a")).sha256 == simulator.image_sha256("a")
    eventually(lambda: served_at(mirror, simulator, "a") > served_at(mirror, simulator, "b"))
    get(mirror, simulator, "c")
    assert stored(mirror, simulator) == {"a", "c"}
    assert mirror.settled.actions().count("image.evicted") == 1


def test_an_image_that_a_client_downloads_stays_until_it_has_it(mirror: MirrorProcess, simulator: Simulator) -> None:
    get(mirror, simulator, "a")
    with Download(by_hash(mirror, simulator, "a")) as slow:
        slow.read(1 << 20)
        get(mirror, simulator, "b")
        get(mirror, simulator, "c")
        assert stored(mirror, simulator) == {"a", "c"}
        assert slow.read_all().body == simulator.read("a")


def test_a_pinned_image_stays_and_pins_are_set_beside_a_running_mirror(
    mirror: MirrorProcess, simulator: Simulator
) -> None:
    get(mirror, simulator, "a")
    assert run("pin", simulator.image_sha256("a")[:8], "-c", mirror.config_file).returncode == 0
    for name in ("b", "c", "d"):
        get(mirror, simulator, name)
        assert stored(mirror, simulator) == {"a", name}
    assert run("unpin", simulator.image_sha256("a")[:8], "-c", mirror.config_file).returncode == 0
    get(mirror, simulator, "b")
    assert stored(mirror, simulator) == {"b", "d"}


def test_an_image_that_can_never_fit_evicts_nothing_and_is_not_stored(
    fresh_mirror: FreshMirror, simulator: Simulator
) -> None:
    small = ImageSpec("small", size=SIZE // 4)
    with Simulator.start([small, ImageSpec("large", size=SIZE)]) as upstream:
        sections: Sections = {"upstream": {"metadata_ttl": "0s"}, "store": {"max_size": SIZE // 2, "keep": 0}}
        mirror = fresh_mirror(sections, upstream=upstream)
        assert fetch(mirror.image_url).sha256 == upstream.image_sha256("small")
        upstream.roll_over("large")
        with Download(mirror.image_url) as download:
            said = download.read_all().body[:1000].decode(errors="replace")
        assert "store.max_size = 8.0 MiB" in mirror.settled.log() + said
        assert [path.name for path in (mirror.store / "images").iterdir()] == [upstream.image_sha256("small")]
