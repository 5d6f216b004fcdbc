"""What a process knows of the others that worked on its store: who is dead, and of whom that must not be said."""

import asyncio
import shutil
from pathlib import Path

import pytest

from mirror.store.s3 import live_processes as processes
from mirror.store.s3.live_processes import Processes


async def left_by_one_that_died(root: Path) -> str:
    """The id of a process of that store that has ended as by kill -9."""
    died = Processes(root)
    name = await died.ours()
    assert name is not None
    kept = root / "kept"
    kept.hardlink_to(root / "processes" / name)
    died.close()  # the lock goes, and so would the file
    (root / "processes").mkdir(exist_ok=True)
    kept.rename(root / "processes" / name)
    return name


async def test_who_lives_is_not_dead_and_who_was_killed_is(tmp_path: Path) -> None:
    alive, other = Processes(tmp_path), Processes(tmp_path)
    name = await alive.ours()
    assert name is not None
    assert await alive.ours() == name
    assert not await other.has_died(name)
    assert not await alive.has_died(name)
    assert await other.has_died(await left_by_one_that_died(tmp_path))
    alive.close()
    assert not await other.has_died(name)  # nobody knows it here any more


async def test_of_a_process_whose_directory_was_copied_nobody_says_that_it_died(tmp_path: Path) -> None:
    alive = Processes(tmp_path / "one")
    name = await alive.ours()
    assert name is not None
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert not await Processes(tmp_path / "two").has_died(name)
    alive.close()


async def test_of_a_process_of_another_boot_nobody_says_that_it_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await left_by_one_that_died(tmp_path)
    (tmp_path / "boot").write_text("another")
    monkeypatch.setattr(processes, "_BOOT", tmp_path / "boot")
    assert not await Processes(tmp_path).has_died(name)


async def test_a_directory_that_takes_nothing_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    nowhere = Processes(tmp_path / "file")
    assert await nowhere.ours() is None
    assert not await nowhere.has_died("ab12")
    nowhere.close()


async def test_what_the_dead_left_is_cleared_away_by_who_lived_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await left_by_one_that_died(tmp_path)
    first, second = Processes(tmp_path), Processes(tmp_path)
    await asyncio.gather(first.ours(), second.ours())
    monkeypatch.setattr(processes, "LONGEST", -1.0)
    first.close()
    assert [path.name for path in (tmp_path / "processes").iterdir()] == [await second.ours()]
    second.close()
    assert not (tmp_path / "processes").exists()
