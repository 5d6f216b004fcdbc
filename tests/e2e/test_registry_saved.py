"""Archives that engines themselves have saved are indexed: what a person lays out by hand came from one of them."""

import json
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.docker_engine import DockerEngine
from tests.support.layouts import File, Layout, archive_files, image_config, make_tar, sha256
from tests.support.needs import needs
from tests.support.registry import stored, zipped

TAG = "localhost/pps/saved:7.0.0"
SHARED = make_tar({"etc/hostname": File(b"pps\n")})
LAYERS = [SHARED, make_tar({"opt/model": File(b"model " * 50_000)}), SHARED]


@pytest.fixture
def to_load(tmp_path: Path) -> Path:
    path = tmp_path / "to-load.tar"
    path.write_bytes(make_tar(archive_files(Layout.CLASSIC, LAYERS, [TAG])))
    return path


@pytest.fixture
def podman() -> Iterator[list[str]]:
    program = needs("podman", "apt-get install --no-install-recommends podman", root=True)
    # Not below pytest's directory: Podman takes a runroot of 50 characters at most.
    with TemporaryDirectory(prefix="pps-podman-") as directory:
        yield [program, f"--root={directory}/root", f"--runroot={directory}/run", "--storage-driver=vfs"]


def check(saved: Path, tmp_path: Path) -> None:
    """The image that an engine has saved is the one that it loaded, as it is and compressed."""
    for number, archive in enumerate((saved.read_bytes(), zipped(saved.read_bytes()))):
        with stored(tmp_path / str(number), archive, sha256(image_config(LAYERS))) as image:
            index = image.build()
            assert not index.warnings
            assert index.repo_tags == (TAG,)
            assert [zlib.decompress(image.read(index, layer), 31) for layer in index.layers] == LAYERS
            assert json.loads(image.read(index, index.config)) == json.loads(image_config(LAYERS))


def test_what_docker_saves_is_indexed(docker_engine: DockerEngine, to_load: Path, tmp_path: Path) -> None:
    docker_engine.run("load", "--quiet", "--input", str(to_load))
    try:
        docker_engine.run("save", "--output", str(tmp_path / "saved.tar"), TAG)
    finally:
        docker_engine.run("image", "rm", TAG)
    check(tmp_path / "saved.tar", tmp_path)


def test_what_podman_saves_is_indexed(podman: list[str], to_load: Path, tmp_path: Path) -> None:
    command = [*podman, "--events-backend=none"]
    subprocess.run([*command, "load", "--quiet", "--input", to_load], check=True, capture_output=True)
    save = ["save", "--quiet", "--format=docker-archive", "--output", str(tmp_path / "saved.tar"), TAG]
    subprocess.run([*command, *save], check=True, capture_output=True)
    check(tmp_path / "saved.tar", tmp_path)
