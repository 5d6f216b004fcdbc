"""`verify`, `pin`, `unpin`, `rm`, `gc`: a person's hands in the store, without a mirror and beside one."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from mirror.simulator.client import Fault, Simulator
from tests.support.admin import ask_admin, status_of
from tests.support.by_hand import lay_out
from tests.support.commands import on_a_terminal, one_line, run
from tests.support.downloads import Download, fetch
from tests.support.fixtures import SIZE, FreshMirror
from tests.support.forked import ForkedMirror
from tests.support.processes import eventually


class Store:
    """A store laid out by hand, and the commands run on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environ = {"PPS_MIRROR__STORE__PATH": str(path), "PPS_MIRROR__STORE__MIN_FREE": "0"}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run(*arguments, **self.environ)

    def directory(self, digest: str) -> Path:
        return self.path / "images" / digest

    def hashes(self) -> set[str]:
        return {path.name for path in (self.path / "images").iterdir()}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def lay_out_alike(store: Store) -> list[str]:
    """Two images whose hashes begin with the same 6 digits, as far as their names and their metadata say."""
    names = ["abcdef" + digit * 58 for digit in "01"]
    for name in names:
        store.directory(lay_out(store.path, name.encode(), hash=name)).rename(store.directory(name))
    return names


# What HASH may be


def test_an_image_is_named_by_some_of_its_hash_or_as_current_and_what_is_wrong_is_said(store: Store) -> None:
    current = store.run("rm", "current")
    assert (current.returncode, current.stdout) == (1, "")
    assert "the current image is not stored" in one_line(current.stderr)
    lay_out_alike(store)
    both = store.run("pin", "ABCDEF")
    assert both.returncode == 1
    assert "2 stored images have a hash that begins with abcdef: give more of it" in one_line(both.stderr)
    for command in ("verify", "unpin"):
        none = store.run(command, "abcdef2")
        assert (none.returncode, none.stdout) == (1, "")
        assert "no stored image has a hash that begins with abcdef2" in one_line(none.stderr)


@pytest.mark.parametrize("name", ["abcde", "nonsense", "", "../etc", "a" * 65])
def test_a_name_that_cannot_be_one_is_status_2(store: Store, name: str) -> None:
    done = store.run("verify", name)
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected 6 or more digits of its hash, or current" in one_line(done.stderr)


@pytest.mark.parametrize("arguments", [["pin"], ["unpin"], ["rm"], ["verify", "abcdef", "--all"], ["gc", "abcdef"]])
def test_a_command_without_what_it_needs_is_status_2(store: Store, arguments: list[str]) -> None:
    assert store.run(*arguments).returncode == 2


# verify


def test_verify_says_of_every_image_whether_it_is_good_and_exits_1_when_one_is_not(store: Store) -> None:
    good, bad, short = (lay_out(store.path, content) for content in (b"good" * 5, b"bad", b"short"))
    (store.directory(bad) / "image").write_bytes(b"BAD")
    (store.directory(short) / "image").write_bytes(b"shor")
    done = store.run("verify", "--all")
    assert (done.returncode, done.stderr) == (1, "")
    said = {line[:12]: line[13:] for line in done.stdout.splitlines() if not line.startswith("verifying")}
    assert said[good[:12]] == "(20 B) good"
    assert re.fullmatch(rf"\(3 B\) wrong bytes: its sha256 is [0-9a-f]{{64}}; .* quarantine/{bad}-\d+", said[bad[:12]])
    assert said[short[:12]] == "(4 B) not whole: it has 4 bytes and should have 5"
    assert not (store.directory(bad) / "image").exists()
    assert (store.directory(short) / "image").exists()
    again = store.run("verify", good[:6])
    assert again.returncode == 0
    assert f"{good[:12]} (20 B) good" in again.stdout


def test_verify_in_json_is_a_list_with_a_line_for_each(store: Store) -> None:
    assert store.run("verify", "--json").stdout == "[]\n"
    good = lay_out(store.path, b"good")
    bad = lay_out(store.path, b"bad")
    (store.directory(bad) / "image").write_bytes(b"BAD")
    done = store.run("verify", "--json")
    assert done.returncode == 1
    outcome = {each["hash"]: (each["good"], each["verdict"]) for each in json.loads(done.stdout)}
    assert outcome == {good: (True, "good"), bad: (False, "wrong bytes")}


def test_verify_of_an_empty_store_says_so(store: Store) -> None:
    done = store.run("verify")
    assert (done.returncode, done.stdout) == (0, f"no images are stored in {store.path}\n")
    assert not store.path.exists()


def test_verify_draws_a_bar_on_a_terminal(store: Store) -> None:
    lay_out(store.path, os.urandom(9 << 20))
    text = on_a_terminal("verify", **store.environ)
    assert "/9.0 MiB" in text
    assert "(9.0 MiB) good" in text


def test_verify_beside_a_running_mirror_sets_a_rotten_image_aside_and_the_mirror_fetches_it_anew(
    fresh_mirror: FreshMirror, simulator: Simulator
) -> None:
    mirror = fresh_mirror()
    assert fetch(mirror.image_url).ended == "complete"
    path = mirror.store / "images" / simulator.image_sha256("first") / "image"
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"rotten")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run("verify", "current", "-c", mirror.config_file).returncode == 1
    assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")
    assert run("verify", "current", "-c", mirror.config_file).returncode == 0


# pin, unpin, rm


def test_pin_and_unpin_may_be_repeated(store: Store) -> None:
    digest = lay_out(store.path)
    for command in ("pin", "pin", "unpin", "unpin"):
        done = store.run(command, digest[:6])
        assert (done.returncode, done.stdout) == (0, f"{command}ned {digest[:12]}\n")
        assert (store.directory(digest) / "pinned").exists() == (command == "pin")


def test_rm_removes_an_image_but_not_a_pinned_or_the_current_one_unless_forced(store: Store) -> None:
    old = lay_out(store.path, b"old", created="2023-01-02T03:04:05Z")
    older = lay_out(store.path, b"older", created="2022-01-02T03:04:05Z")
    current = lay_out(store.path, b"current")
    assert store.run("pin", old[:6]).returncode == 0
    for name, reason in ((old, "pinned"), (current, "current")):
        done = store.run("rm", name)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"{name[:12]} is {reason}: give --force" in one_line(done.stderr)
    done = store.run("rm", older[:6])
    assert (done.returncode, done.stdout) == (0, f"removed {older[:12]}\n")
    assert store.hashes() == {old, current}
    assert store.run("rm", "--force", old[:6]).returncode == 0
    assert store.run("rm", "current", "--force").returncode == 0
    assert store.hashes() == set()


def test_every_list_has_one_order_to_the_last(store: Store) -> None:
    digests = [lay_out(store.path, bytes([65 + number]) * 1000) for number in range(6)]
    for number, digest in enumerate(digests):
        stored = 1_700_000_000 + number // 2  # two of each time
        os.utime(store.directory(digest) / "metadata.json", (stored, stored))
    right = [*sorted(digests[4:]), *sorted(digests[2:4]), *sorted(digests[:2])]
    listed = json.loads(store.run("ls", "--json").stdout)
    assert [image["hash"] for image in listed] == right
    assert [image["hash"] for image in listed if image["current"]] == right[:1]
    shown = store.run("ls").stdout
    assert re.findall(r"^[0-9a-f]{12}", shown, re.MULTILINE) == [digest[:12] for digest in right]
    with ForkedMirror(
        store.path.parent / "mirror", "", {"store": {"path": str(store.path)}, "auth": {"mode": "open"}}
    ) as (mirror):
        with Download(f"{mirror.url}/mirror/v1/images/") as answer:
            assert [image["hash"] for image in json.loads(answer.read_all().body)] == right
        assert [image["hash"] for image in status_of(mirror)["images"]] == right
        page = ask_admin(mirror, "GET", "/").body.decode()
        rows = re.findall(r"/api/images/([0-9a-f]{64})", page)
        assert list(dict.fromkeys(rows)) == right


def test_rm_beside_a_running_mirror_cuts_no_download_and_the_next_one_is_fetched_anew(
    fresh_mirror: FreshMirror, simulator: Simulator
) -> None:
    mirror = fresh_mirror({"upstream": {"metadata_ttl": "0s"}})
    assert fetch(mirror.image_url).ended == "complete"
    with Download(mirror.image_url) as download:
        download.read(1000)
        simulator.roll_over("second")
        assert fetch(mirror.image_url).ended == "complete"
        assert run("rm", simulator.image_sha256("first"), "-c", mirror.config_file).returncode == 0
        assert download.read_all().body == simulator.read("first")
    simulator.roll_over("first")
    outcome = fetch(mirror.image_url)
    assert (outcome.sha256, outcome.cache_status) == (simulator.image_sha256("first"), "pps-mirror; fwd=miss; stored")


# gc


def test_gc_of_a_tidy_store_or_none_has_nothing_to_do(store: Store) -> None:
    done = store.run("gc")
    assert (done.returncode, done.stdout, done.stderr) == (0, "nothing to remove\n", "")
    assert not store.path.exists()
    lay_out(store.path)
    assert store.run("gc", "--json").stdout == "[]\n"


def test_gc_clears_leftovers_and_evicts_down_to_max_size_and_a_dry_run_says_the_same(store: Store) -> None:
    digests = [
        lay_out(store.path, bytes([65 + year]) * 1000, created=f"202{year}-01-02T03:04:05Z") for year in range(4)
    ]
    for number, digest in enumerate(digests):
        os.utime(store.directory(digest) / "metadata.json", (number, number))
    (store.path / "partial").mkdir()
    (store.path / "quarantine").mkdir()
    leftover, stale = store.path / "images" / f"{'a' * 64}.x.tmp", store.path / "partial" / ("b" * 64)
    expired = store.path / "quarantine" / f"{'c' * 64}-1"
    for path in (leftover, stale, expired):
        path.write_bytes(b"12345")
        os.utime(path, (1, 1))
    store.environ |= {"PPS_MIRROR__STORE__MAX_SIZE": "2500", "PPS_MIRROR__STORE__KEEP": "1"}
    would = store.run("gc", "--dry-run")
    assert store.hashes() == {*digests, leftover.name}
    done = store.run("gc")
    assert (would.returncode, done.returncode, done.stderr) == (0, 0, "")
    assert would.stdout == done.stdout.replace("removed ", "would remove ")
    assert done.stdout.splitlines() == [
        f"removed leftover {leftover.name} (5 B): left by a crash",
        f"removed partial {stale.name} (5 B): nobody resumes it",
        f"removed quarantined {expired.name} (5 B): wrong bytes",
        f"removed image {digests[0]} (1000 B): served least recently",
        f"removed image {digests[1]} (1000 B): served least recently",
    ]
    assert store.hashes() == set(digests[2:])
    assert not stale.exists()
    assert not expired.exists()


def test_gc_that_may_not_remove_enough_says_so_and_exits_1(store: Store) -> None:
    lay_out(store.path, b"x" * 3000)
    store.environ |= {"PPS_MIRROR__STORE__MAX_SIZE": "1000"}
    done = store.run("gc", "--json")
    assert (done.returncode, done.stdout) == (1, "[]\n")
    assert "the store is still 2.0 KiB beyond store.max_size or store.min_free" in one_line(done.stderr)


def test_gc_beside_a_running_mirror_leaves_its_fill_alone(fresh_mirror: FreshMirror, simulator: Simulator) -> None:
    simulator.fault(Fault("store", hang_after=SIZE // 2))
    mirror = fresh_mirror()
    with Download(mirror.image_url) as download:
        partial = mirror.store / "partial" / simulator.image_sha256("first")
        eventually(lambda: partial.exists() and partial.stat().st_size == SIZE // 2)
        os.utime(partial, (1, 1))
        done = run("gc", "-c", mirror.config_file)
        assert (done.returncode, done.stdout) == (0, "nothing to remove\n")
        simulator.release()
        assert download.read_all().body == simulator.read("first")
