"""A root file system that is read-only: a command that will need a temporary file says so before its long part."""

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from mirror.simulator.client import TOKEN, Simulator
from tests.support.air_gap import Site, allowed, key_of, put
from tests.support.commands import COMMAND, environment, one_line
from tests.support.needs import needs

IMAGE = b"an image" * 1000


@pytest.fixture
def locked(tmp_path: Path) -> Sequence[str]:
    """What is put before a command to have it find no directory for temporary files; the test's own can be written."""
    unshare, mount = needs("unshare", "apt-get install util-linux", root=True), needs("mount", "apt-get install mount")
    own = shlex.quote(str(tmp_path))
    steps = [f"{mount} --bind {own} {own}"]
    for directory in ("/tmp", "/var/tmp"):
        steps += [f"{mount} --rbind {directory} {directory}", f"{mount} -o remount,ro,bind {directory}"]
    return [unshare, "--mount", "sh", "-e", "-c", "; ".join([*steps, "cd /proc", 'exec "$@"']), "sh"]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path / "site")
    put(site.store, IMAGE)
    return site


def run(*command: object, **environ: str) -> "subprocess.CompletedProcess[str]":
    given = {name: value for name, value in environment().items() if not name.lower().endswith("_proxy")}
    given = {name: value for name, value in given.items() if name not in {"TMPDIR", "TEMP", "TMP"}} | environ
    return subprocess.run([*map(str, command)], env=given, capture_output=True, text=True, timeout=60, check=False)


def assert_told(done: "subprocess.CompletedProcess[str]") -> None:
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "no directory for temporary files can be written: set TMPDIR to one that can be" in one_line(done.stderr)


def test_get_load_asks_for_nothing_first(locked: Sequence[str], simulator: Simulator, tmp_path: Path) -> None:
    engine = tmp_path / "bin" / "docker"
    engine.parent.mkdir()
    engine.write_text("#!/bin/sh\ncat >/dev/null\necho Loaded image: pps\n")
    engine.chmod(0o755)
    environ = {"PATH": f"{engine.parent}:{os.environ['PATH']}", "DATAROBOT_API_TOKEN": TOKEN}
    get = [*locked, *COMMAND, "get", "--load", "--loader", "docker", "-o", tmp_path / "image", simulator.api_url]
    assert_told(run(*get, **environ))
    assert simulator.counters().image_requests == 0
    assert not simulator.log("metadata")
    own = tmp_path / "own"
    own.mkdir()
    done = run(*get, TMPDIR=str(own), **environ)
    assert done.returncode == 0, done.stderr + done.stdout


def test_a_signature_is_not_begun(locked: Sequence[str], site: Site, tmp_path: Path) -> None:
    key = key_of(tmp_path, "alice")
    stick = tmp_path / "stick"
    stick.mkdir()
    assert_told(run(*locked, *COMMAND, "export", "current", stick, "--sign", key, **site.environ))
    assert list(stick.iterdir()) == []
    bundle = site.export(stick, "--sign", key)
    other = Site(tmp_path / "other")
    trusting = ["import", bundle, "--trust", allowed(tmp_path, key)]
    assert_told(run(*locked, *COMMAND, *trusting, **other.environ))
    assert other.is_untouched()
    own = tmp_path / "own"
    own.mkdir()
    done = run(*locked, *COMMAND, *trusting, TMPDIR=str(own), **other.environ)
    assert done.returncode == 0, done.stderr
    assert other.images() == site.images()


def test_the_demo_says_what_it_lacks(locked: Sequence[str]) -> None:
    assert_told(run(*locked, *COMMAND, "demo", "--once", "--size", "1MiB"))
