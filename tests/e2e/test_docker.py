"""The real job: an image piped through the mirror into Docker or Podman, and never a broken one."""

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from mirror.simulator.client import Fault, Simulator
from tests.support.archive import DockerArchive
from tests.support.docker_engine import DockerEngine
from tests.support.forked import ForkedMirror
from tests.support.needs import needs
from tests.support.processes import MirrorProcess

CURL = 'curl -sS -f -D "$HEADERS" -H "Authorization: Bearer $TOKEN" "$URL"'
DOCKER_LOAD = f"{CURL} | docker load"
PODMAN_LOAD = f"{CURL} | gzip -dc | $PODMAN load"  # Debian 12's Podman cannot read the gzip archive itself


@dataclass(frozen=True, slots=True)
class Podman:
    """Podman with a storage of its own. `command` has no character that a shell would see."""

    command: str

    def images(self) -> set[str]:
        """The ids of all images it has."""
        listed = [*self.command.split(), "images", "--all", "--quiet", "--no-trunc"]
        return set(subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split())


@pytest.fixture
def podman() -> Iterator[Podman]:
    program = needs("podman", "apt-get install --no-install-recommends podman", root=True)
    # Not below pytest's directory: Podman takes a runroot of 50 characters at most.
    with TemporaryDirectory(prefix="pps-podman-") as directory:
        options = f"--root={directory}/root --runroot={directory}/run --storage-driver=vfs"
        yield Podman(f"{program} {options} --cgroup-manager=cgroupfs --events-backend=none")


@pytest.fixture
def mirror(tmp_path: Path, upstream: Simulator) -> Iterator[MirrorProcess]:
    with ForkedMirror(tmp_path, upstream.api_url) as mirror:
        yield mirror


@dataclass(frozen=True, slots=True)
class Piped:
    """How a pipe ended, and the lines of the headers that curl got."""

    status: int
    output: str
    headers: list[str]


def pipe(command: str, mirror: MirrorProcess, token: str, environ: Mapping[str, str]) -> Piped:
    """Run a shell's pipe as a careful user does: it fails when any part of it does."""
    headers = mirror.log_file.with_name("headers")
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env={**environ, "URL": mirror.image_url, "TOKEN": token, "HEADERS": str(headers)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Piped(done.returncode, done.stdout + done.stderr, headers.read_text().splitlines())


def test_docker_loads_and_runs_the_image_during_a_fill_and_from_the_store(
    docker_engine: DockerEngine, docker_archive: DockerArchive, upstream: Simulator, mirror: MirrorProcess
) -> None:
    before = docker_engine.images()
    for cache_status in ("pps-mirror; fwd=miss; stored", "pps-mirror; hit"):
        loaded = pipe(DOCKER_LOAD, mirror, upstream.token, docker_engine.environ)
        assert loaded.status == 0, loaded.output
        assert f"Cache-Status: {cache_status}" in loaded.headers
        assert docker_archive.tag in loaded.output
        assert docker_engine.images() - before == {docker_archive.image_id}
        said = docker_engine.run("run", "--rm", "--network=none", "--pull=never", docker_archive.tag)
        assert said == docker_archive.says
        docker_engine.run("image", "rm", docker_archive.tag)
    assert upstream.counters().image_requests == 1


def test_podman_loads_the_image_during_a_fill(
    podman: Podman, docker_archive: DockerArchive, upstream: Simulator, mirror: MirrorProcess
) -> None:
    loaded = pipe(PODMAN_LOAD, mirror, upstream.token, os.environ | {"PODMAN": podman.command})
    assert loaded.status == 0, loaded.output
    assert podman.images() == {docker_archive.image_id}


WRONG: Mapping[str, Callable[[int], Fault]] = {
    "byte in the middle": lambda size: Fault("store", corrupt_at=size // 2, times=None),
    "last byte": lambda size: Fault("store", corrupt_at=size - 1, times=None),
    "another image": lambda size: Fault("metadata", values={"hash": "0" * 64}, times=None),
}
"""What upstream does wrong with an image of so many bytes. Without the mirror Docker would load the last of them, and
Podman the last two, because it has all it needs before `gzip` complains."""


@pytest.mark.parametrize("wrong", WRONG)
def test_docker_loads_nothing_of_a_wrong_fill_and_the_pipe_fails(
    docker_engine: DockerEngine, docker_archive: DockerArchive, upstream: Simulator, mirror: MirrorProcess, wrong: str
) -> None:
    before = docker_engine.images()
    upstream.fault(WRONG[wrong](docker_archive.size))
    loaded = pipe(DOCKER_LOAD, mirror, upstream.token, docker_engine.environ)
    assert_reset(loaded, mirror)
    assert docker_engine.images() == before


@pytest.mark.parametrize("wrong", WRONG)
def test_podman_loads_nothing_of_a_wrong_fill_and_the_pipe_fails(
    podman: Podman, docker_archive: DockerArchive, upstream: Simulator, mirror: MirrorProcess, wrong: str
) -> None:
    upstream.fault(WRONG[wrong](docker_archive.size))
    loaded = pipe(PODMAN_LOAD, mirror, upstream.token, os.environ | {"PODMAN": podman.command})
    assert_reset(loaded, mirror)
    assert podman.images() == set()


def assert_reset(loaded: Piped, mirror: MirrorProcess) -> None:
    """The pipe failed because curl did, whose connection was reset, and nothing was stored."""
    assert loaded.status != 0, loaded.output
    assert "curl: (56)" in loaded.output, loaded.output
    assert not list((mirror.store / "images").iterdir())
