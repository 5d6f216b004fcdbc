"""`pull` where a mirror runs: that one is asked to fetch, and watched; what it cannot do is done without it."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from mirror.simulator.client import Fault, ImageSpec, Simulator
from tests.support.admin import actions_of, status_of
from tests.support.fixtures import FreshMirror
from tests.support.forked import ForkedMirror
from tests.support.processes import MirrorProcess, eventually

SIZE = 8 << 20
BEGUN = "a mirror runs on this store, and was asked: the current image "
ADMIN_TOKEN = "operators-only"


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[Simulator]:
    with Simulator.start([ImageSpec("first", size=SIZE), ImageSpec("second", size=SIZE // 2)]) as simulator:
        yield simulator


@pytest.fixture
def token_file(tmp_path: Path, simulator: Simulator) -> str:
    path = tmp_path / "token"
    path.write_text(simulator.token)
    path.chmod(0o600)
    return str(path)


@pytest.fixture
def mirror(fresh_mirror: FreshMirror, simulator: Simulator, token_file: str) -> MirrorProcess:
    return fresh_mirror({"upstream": {"token_file": token_file}})


def begin(mirror: MirrorProcess, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, "-m", "mirror.cli.main", "pull", "-c", mirror.config_file],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": "/usr/bin:/bin"} | environ,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit status, and what it wrote."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def pull(mirror: MirrorProcess, **environ: str) -> tuple[int, str, str]:
    return end(begin(mirror, **environ))


def stored(mirror: MirrorProcess, simulator: Simulator, name: str = "first") -> bool:
    return (mirror.store / "images" / simulator.image_sha256(name) / "image").exists()


def received(mirror: MirrorProcess, simulator: Simulator) -> int:
    path = mirror.store / "partial" / simulator.image_sha256("first")
    return path.stat().st_size if path.exists() else 0


def test_the_running_mirror_fetches_it_and_the_next_pull_has_nothing_to_do(
    mirror: MirrorProcess, simulator: Simulator
) -> None:
    simulator.fault(Fault("store", hang_after=SIZE // 2))
    process = begin(mirror)
    eventually(lambda: [fill["position"] for fill in status_of(mirror)["fills"]] == [SIZE // 2])
    simulator.release()
    status, out, err = end(process)
    assert (status, err) == (0, "")
    begun, *_, done = out.splitlines()
    name = simulator.image_sha256("first")[:12]
    assert begun == f"{BEGUN}{name} (8.0 MiB) is being fetched"
    assert "receiving: " in out
    assert done == f"{name} is verified and stored, by the running mirror"
    assert stored(mirror, simulator)
    assert simulator.counters().image_requests == 1
    assert {"prefetch.began", "fill.published"} <= set(actions_of(mirror))
    assert pull(mirror) == (0, f"{name} is stored already: nothing to do\n", "")


def test_whose_fetch_fails_is_told_why_and_it_is_not_begun_again(mirror: MirrorProcess, simulator: Simulator) -> None:
    simulator.fault(Fault("store", corrupt_at=SIZE - 1, times=None))
    status, out, err = pull(mirror)
    assert (status, out.startswith(BEGUN)) == (1, True)
    (line,) = err.splitlines()
    assert line.startswith("pps-mirror: the running mirror says: fill of ")
    assert "expected sha256" in line
    assert simulator.counters().image_requests == 1
    assert not stored(mirror, simulator)


def test_when_the_running_mirror_dies_the_pull_goes_on_where_that_stopped(
    mirror: MirrorProcess, simulator: Simulator
) -> None:
    simulator.fault(Fault("store", hang_after=SIZE // 2))
    process = begin(mirror)
    eventually(lambda: received(mirror, simulator) == SIZE // 2)
    assert process.stdout is not None
    assert process.stdout.readline().startswith(BEGUN)
    mirror.kill()
    status, out, err = end(process)
    assert (status, err) == (0, "")
    assert "the running mirror does not bring it (" in out
    assert "is verified and stored, after" in out
    assert stored(mirror, simulator)
    assert [request.range for request in simulator.log("store")] == [None, f"bytes={SIZE // 2}-"]


def test_interrupted_it_leaves_the_fetch_to_the_running_mirror(mirror: MirrorProcess, simulator: Simulator) -> None:
    simulator.fault(Fault("store", hang_after=SIZE // 2))
    process = begin(mirror)
    assert process.stdout is not None
    assert process.stdout.readline().startswith(BEGUN)
    eventually(lambda: received(mirror, simulator) == SIZE // 2)
    process.send_signal(signal.SIGINT)
    status, out, err = end(process)
    assert (status, err) == (130, "")
    assert out.endswith("the running mirror goes on receiving it\n")
    simulator.release()
    eventually(lambda: stored(mirror, simulator))
    assert simulator.counters().image_requests == 1


def test_what_the_running_mirror_has_no_token_for_is_pulled_without_it(
    fresh_mirror: FreshMirror, simulator: Simulator
) -> None:
    mirror = fresh_mirror()
    status, out, err = pull(mirror, DATAROBOT_API_TOKEN=simulator.token)
    assert (status, err) == (0, "")
    assert out.startswith(
        "the running mirror does not bring it (it answered 502: upstream answered 401, for it wants a token: "
    )
    assert stored(mirror, simulator)


def test_a_mirror_on_another_store_is_not_asked(mirror: MirrorProcess, simulator: Simulator, tmp_path: Path) -> None:
    other = tmp_path / "other"
    status, out, err = pull(mirror, PPS_MIRROR__STORE__PATH=str(other))
    assert (status, err) == (0, "")
    assert "running mirror" not in out
    assert (other / "images" / simulator.image_sha256("first") / "image").exists()
    assert not stored(mirror, simulator)


def test_upstreams_rollover_under_it_ends_with_the_new_image(mirror: MirrorProcess, simulator: Simulator) -> None:
    simulator.fault(Fault("metadata", roll_over="second"))
    status, out, err = pull(mirror)
    assert (status, err) == (0, "")
    assert "upstream has another image than it said: asking again" in out
    assert stored(mirror, simulator, "second")


@pytest.mark.parametrize("token", [ADMIN_TOKEN, "another", None])
def test_it_needs_the_admin_token_and_does_without_the_mirror_if_it_has_none(
    fresh_mirror: FreshMirror, simulator: Simulator, token_file: str, tmp_path: Path, token: str | None
) -> None:
    file = tmp_path / "admin-token"
    file.write_text(ADMIN_TOKEN)
    file.chmod(0o600)
    mirror = fresh_mirror({"upstream": {"token_file": token_file}, "admin": {"token_file": str(file)}})
    if token is None:
        file.unlink()
    else:
        file.write_text(token)
    status, out, err = pull(mirror)
    assert stored(mirror, simulator)
    assert (status, err) == (0, "")
    assert out.startswith(BEGUN if token == ADMIN_TOKEN else "the running mirror does not bring it (it answered 401: ")
    assert ADMIN_TOKEN not in out + err


class Stranger(BaseHTTPRequestHandler):
    """Says the same to everybody, and hears everything."""

    answer = b""
    heard: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.heard.append(f"{self.command} {self.headers}")
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(self.answer)


@pytest.mark.parametrize("answer", [b"", b"{", b"[]", b'{"rooms": 5}', b'{"rooms": [{"place": "disk", "where": []}]}'])
def test_what_speaks_at_the_admin_port_and_is_no_mirror_is_left_alone(
    tmp_path: Path, simulator: Simulator, token_file: str, answer: bytes
) -> None:
    mirror = ForkedMirror(tmp_path / "mirror", simulator.api_url, {"upstream": {"token_file": token_file}})
    Stranger.answer = answer
    with HTTPServer(("127.0.0.1", 0), Stranger) as stranger:
        threading.Thread(target=stranger.serve_forever, daemon=True).start()
        status, out, err = pull(mirror, PPS_MIRROR__ADMIN__PORT=str(stranger.server_port))
        stranger.shutdown()
    assert len(Stranger.heard) == 1
    assert Stranger.heard.pop().startswith("GET ")
    assert (status, err) == (0, "")
    assert "running mirror" not in out
    assert stored(mirror, simulator)
