"""The first thing a newcomer runs: it tells the story, keeps its word and leaves nothing behind."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from mirror.cli.demo import Download, Round, verdict
from tests.support.needs import needs
from tests.support.processes import eventually, free_port

DEMO = [sys.executable, "-m", "mirror.cli.main", "demo", "--size", "8MiB", "--rate", "40MB/s"]


@pytest.fixture
def environ(tmp_path: Path) -> Mapping[str, str]:
    """An environment whose temporary directory is the test's own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PPS_MIRROR")} | {
        "TMPDIR": str(tmp_path)
    }


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(tmp_path: Path) -> Iterator[None]:
    yield
    assert list(tmp_path.iterdir()) == []
    for process in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # somebody else's, or gone
            assert f"TMPDIR={tmp_path}".encode() not in process.read_bytes()


def test_the_demo_tells_its_story_and_ends_with_0(environ: Mapping[str, str]) -> None:
    done = subprocess.run([*DEMO, "--once"], env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 upstream fetch, 8 downloads verified" in done.stdout
    assert "0 upstream fetches, 8 downloads verified" in done.stdout
    assert re.search(r"from the store\W+8\W+8\W+0\W+0 B", done.stdout)
    assert "It is a container image too" in done.stdout


def test_the_demo_pulls_the_image_with_an_engine_that_is_there(environ: Mapping[str, str]) -> None:
    needs("skopeo", "apt-get install --no-install-recommends skopeo")
    done = subprocess.run([*DEMO, "--once"], env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"skopeo pulls it from the mirror\.\n0 upstream fetches, pulled in ", done.stdout)


def test_what_it_prints_works_as_printed_and_sigterm_ends_it(environ: Mapping[str, str]) -> None:
    needs("curl", "apt-get install curl")
    port = free_port()
    running = subprocess.Popen(
        DEMO, env={**environ, "PPS_MIRROR__SERVER__PORT": str(port)}, stdout=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    said = ""
    for line in running.stdout:
        said += line
        if "readyz" in line:
            break
    assert f"http://127.0.0.1:{port}" in said
    page = re.search(r"its status page, for a browser, at (http://\S+/)", said)
    assert page is not None
    with urllib.request.urlopen(page[1], timeout=20) as answer:
        assert b"pps-mirror</title>" in answer.read()
    commands = [line.strip() for line in said.splitlines() if line.strip().startswith("curl ")]
    assert len(commands) == 6
    for command in commands:
        shell = f"set -o pipefail; {command.replace('curl ', 'curl -fsS ', 1)}"
        done = subprocess.run(["bash", "-c", shell], capture_output=True, timeout=30, check=False)
        assert (done.returncode, bool(done.stdout)) == (0, True), command
    running.send_signal(signal.SIGTERM)
    assert running.wait(20) == 0
    running.stdout.close()


def test_a_port_that_is_taken_is_one_clear_line(environ: Mapping[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = {**environ, "PPS_MIRROR__SERVER__PORT": str(taken.getsockname()[1])}
        done = subprocess.run(DEMO, env=busy, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"cannot listen on 127.0.0.1 port {busy['PPS_MIRROR__SERVER__PORT']}" in done.stderr


@pytest.mark.parametrize("option", [["--size", "many"], ["--rate", "fast"]])
def test_a_bad_option_is_one_clear_line(environ: Mapping[str, str], option: list[str]) -> None:
    done = subprocess.run([*DEMO, *option], env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_a_sigterm_in_the_middle_of_the_story_leaves_nothing_either(environ: Mapping[str, str], tmp_path: Path) -> None:
    slow = [*DEMO, "--rate", "1MB/s"]
    running = subprocess.Popen(slow, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    eventually(lambda: any(path.stat().st_size for path in tmp_path.glob("*/store/partial/" + "[0-9a-f]" * 64)))
    running.send_signal(signal.SIGTERM)
    running.wait(20)


def test_the_demo_fails_when_upstream_was_asked_twice_or_a_download_was_wrong() -> None:
    right = [Download(1, "hit", None)] * 8
    assert verdict([Round("cold", right, fetches=1), Round("hot", right)]) == []
    assert "2 times" in verdict([Round("cold", right, fetches=1), Round("hot", right, fetches=1)])[0]
    wrong = [*right[1:], Download(1, "hit", "its 1 bytes are not the image")]
    assert "node 8" in verdict([Round("cold", wrong, fetches=1)])[0]
