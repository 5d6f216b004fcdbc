"""What is no docker archive, or a hostile one, is refused with a reason, within bounded time, memory and disk."""

import re
import time
import zlib
from pathlib import Path

import pytest

from mirror.registry import tar_stream
from mirror.registry.index import NotAnArchive, max_inflated
from tests.support.hostile_archives import BOMB, HOSTILE, LAYER, LIMIT, MIB
from tests.support.layouts import Layout, archive_files, image_config, make_tar
from tests.support.registry import stored, zipped


def peak(field: str = "VmHWM") -> int:
    """Return the most memory of this process since `reset_peak`, in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) << 10


def reset_peak() -> int:
    """Forget the most memory so far; return how much is in use now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak("VmRSS")


@pytest.fixture(autouse=True)
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_stream, "max_inflated", lambda size: LIMIT + 50 * size)


def test_an_archive_may_inflate_to_a_gibibyte_and_fifty_times_its_size() -> None:
    assert max_inflated(0) == 1024 * MIB
    assert max_inflated(5_000_000_000) == 1024 * MIB + 250_000_000_000


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused_with_a_reason_and_costs_little(case: str, tmp_path: Path) -> None:
    make, reason = HOSTILE[case]
    archive = make()
    with stored(tmp_path, archive) as image:
        before, began = reset_peak(), time.process_time()
        with pytest.raises(NotAnArchive) as refused:
            image.build()
        assert reason in str(refused.value)
        assert len(str(refused.value)) < 500
        assert peak() - before < 100 * MIB
        assert time.process_time() - began < 60
        assert sorted(path.name for path in image.directory.iterdir()) == ["image", "registry.json"]
        with pytest.raises(NotAnArchive) as remembered:
            image.load()
        assert str(remembered.value) == str(refused.value)


def test_what_comes_behind_the_end_of_the_tar_costs_nothing(tmp_path: Path) -> None:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    behind = packer.compress(bytes(BOMB))
    archive = zipped(make_tar(archive_files(Layout.CLASSIC, [LAYER], None))) + behind + packer.flush()
    with stored(tmp_path, archive) as image:
        read: list[int] = []
        index = image.build(read.append)
        assert image.read(index, index.config) == image_config([LAYER])
        assert max(read) < MIB
