"""Standard streams that are closed, or whose encoding lacks a character: the work is done all the same."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from mirror.simulator.client import TOKEN, Fault, Simulator
from tests.support.air_gap import Site, put
from tests.support.commands import COMMAND, drawn, environment
from tests.support.downloads import Download
from tests.support.fixtures import SIZE
from tests.support.processes import MirrorProcess

CLOSINGS = ("<&-", ">&-", "2>&-", "<&- >&- 2>&-")
ENCODINGS: Mapping[str, Mapping[str, str]] = {
    "C": {"LC_ALL": "C"},
    "UTF-8": {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "utf-8:strict"},  # as in any other locale of UTF-8
    "ASCII": {"PYTHONIOENCODING": "ascii"},
    "ISO-8859-1": {"PYTHONIOENCODING": "iso-8859-1"},
}
STRANGE = os.fsdecode(b"caf\xe9 \xe2\x9c\x93")
"""A name with a letter of ISO-8859-1, which is no UTF-8, and a check mark, which ISO-8859-1 has not."""


def closing(which: str) -> list[str]:
    """What is put before a command to close descriptors of it."""
    return ["sh", "-c", f'exec "$@" {which}', "sh"]


def run(*arguments: str | Path, closed: str = "", **environ: str) -> "subprocess.CompletedProcess[bytes]":
    command = [*(closing(closed) if closed else ()), *COMMAND, *arguments]
    given = {name: value for name, value in environment().items() if not name.lower().endswith("_proxy")}
    return subprocess.run(command, env=given | environ, capture_output=True, timeout=120, check=False)


def assert_done(done: "subprocess.CompletedProcess[bytes]") -> None:
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A store with an image whose name has a check mark."""
    site = Site(tmp_path / "site")
    put(site.store, b"an image", filename="pps \N{CHECK MARK}.tar.gz")
    return site


def commands(site: Site, simulator: Simulator, directory: Path) -> list[list[str | Path]]:
    """One of each kind, into directories with a strange name; each succeeds wherever its output goes."""
    new = directory / STRANGE
    new.mkdir()
    return [
        ["--help"],
        ["ls"],
        ["ls", "--json"],
        ["gc"],
        ["verify", "--all"],
        ["export", "current", new],
        ["get", "-o", new / "image", simulator.api_url],
        ["completion", "bash"],
    ]


@pytest.mark.parametrize("which", CLOSINGS)
def test_commands_do_their_work_with_closed_streams(
    which: str, site: Site, simulator: Simulator, tmp_path: Path
) -> None:
    for command in commands(site, simulator, tmp_path):
        assert_done(run(*command, closed=which, DATAROBOT_API_TOKEN=TOKEN, **site.environ))
    assert (tmp_path / STRANGE / "image").read_bytes() == simulator.read("first")
    (bundle,) = (path for path in (tmp_path / STRANGE).iterdir() if path.is_dir())
    other = Site(tmp_path / "other")
    assert_done(run("import", bundle, closed=which, **other.environ))
    assert other.images() == site.images()
    failed = run("import", tmp_path / "nothing", closed=which, **other.environ)
    assert failed.returncode == 1
    assert b"Traceback" not in failed.stdout + failed.stderr
    misspelt = run("sl", closed=which)
    assert (misspelt.returncode, misspelt.stdout) == (2, b"")


@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS)
def test_commands_escape_what_the_encoding_lacks(
    encoding: Mapping[str, str], site: Site, simulator: Simulator, tmp_path: Path
) -> None:
    said = b""
    for command in commands(site, simulator, tmp_path):
        done = run(*command, DATAROBOT_API_TOKEN=TOKEN, **encoding, **site.environ)
        assert_done(done)
        said += done.stdout
    assert b"caf\\udce9" in said or b"caf\xe9" in said
    (bundle,) = (path for path in (tmp_path / STRANGE).iterdir() if path.is_dir())
    other = Site(tmp_path / "other")
    assert_done(run("import", bundle, **encoding, **other.environ))
    failed = run("import", tmp_path / STRANGE / "nothing", **encoding, **other.environ)
    assert failed.returncode == 1
    assert b"Traceback" not in failed.stderr
    checked = run("check", **encoding, **site.environ)
    assert b"Traceback" not in checked.stdout + checked.stderr
    misspelt = run("get", STRANGE, **encoding)
    assert misspelt.returncode == 2
    assert b"Traceback" not in misspelt.stderr


@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS)
def test_a_bar_on_a_terminal_is_drawn_in_any_encoding(
    encoding: Mapping[str, str], simulator: Simulator, tmp_path: Path
) -> None:
    directory = tmp_path / STRANGE
    directory.mkdir()
    environ = environment(TERM="xterm", DATAROBOT_API_TOKEN=TOKEN, **encoding)
    status, shown = drawn([*COMMAND, "get", "-o", str(directory / "image"), simulator.api_url], environ)
    assert status == 0, shown
    assert (directory / "image").stat().st_size == SIZE


def test_the_demo_ends_well_with_closed_streams(tmp_path: Path) -> None:
    environ = {"TMPDIR": str(tmp_path)}
    assert_done(run("demo", "--once", "--size", "4MiB", "--rate", "40MB/s", closed=CLOSINGS[-1], **environ))


def test_the_demo_tells_its_story_in_ascii() -> None:
    done = run("demo", "--once", "--size", "4MiB", "--rate", "40MB/s", PYTHONIOENCODING="ascii")
    assert_done(done)
    assert b"8 downloads verified" in done.stdout
    assert done.stdout.isascii()


@pytest.mark.parametrize("workers", [1, 2])
def test_no_file_and_no_connection_of_a_mirror_takes_the_place_of_a_closed_stream(
    tmp_path: Path, simulator: Simulator, workers: int
) -> None:
    mirror = MirrorProcess(tmp_path / "mirror", simulator.api_url, {"server": {"workers": workers}})
    mirror.through = closing("<&- >&- 2>&-")
    simulator.fault(Fault("store", hang_after=SIZE // 2))
    with mirror, Download(mirror.image_url) as download:
        download.read(SIZE // 4)
        assert mirror.process is not None
        main = mirror.process.pid
        children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
        assert len(children) == (workers if workers > 1 else 0)
        for number in range(3):
            assert str(Path(f"/proc/{main}/fd/{number}").readlink()) == "/dev/null"
        for child in children:
            kinds = [str(Path(f"/proc/{child}/fd/{number}").readlink()).partition(":")[0] for number in range(3)]
            assert kinds[2] == "/dev/null"
            assert set(kinds[:2]) <= {"pipe", "socket"}
        simulator.wait_held()
        simulator.release()
        assert download.read_all().body == simulator.read("first")
        assert mirror.stop() == 0
