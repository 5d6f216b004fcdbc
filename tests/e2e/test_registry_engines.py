"""Real engines and tools pull from the mirror, each layout, and run what they pulled."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from mirror.simulator.client import TOKEN, Fault, Simulator
from tests.support.archive import NAME, DockerArchive
from tests.support.certificates import certificate
from tests.support.containerd import Containerd
from tests.support.docker_engine import DockerEngine
from tests.support.docker_registry import DockerRegistry
from tests.support.forked import ForkedMirror
from tests.support.layouts import Layout
from tests.support.needs import needs
from tests.support.processes import eventually
from tests.support.pulls import archive, manifest, pullable, spec

QUICK = ("--network=none", "--pull=never")


@dataclass(frozen=True, slots=True)
class Stocked:
    """A mirror that has an image of each layout; its version is the layout's name."""

    mirror: ForkedMirror
    simulator: Simulator
    images: Mapping[Layout, DockerArchive]

    def name(self, layout: Layout) -> str:
        """The name by which engines pull it."""
        return f"127.0.0.1:{self.mirror.port}/{NAME}:7.0.0-{layout}"


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stocked]:
    directory = tmp_path_factory.mktemp("stocked")
    images = {layout: archive(directory, f"7.0.0-{layout}", layout, padding=1 << 18) for layout in Layout}
    specs = [spec(image, f"7.0.0-{layout}") for layout, image in images.items()]
    sections = {"upstream": {"metadata_ttl": "0s"}, "auth": {"ttl": "1h"}}
    with pullable(directory / "mirror", specs, sections) as (simulator, mirror):
        for layout, each in zip(images, specs, strict=True):
            simulator.roll_over(each.name)
            manifest(mirror, f"7.0.0-{layout}")
        yield Stocked(mirror, simulator, images)


# docker


@pytest.mark.parametrize("layout", Layout)
def test_docker_pulls_and_runs_each_layout(stocked: Stocked, docker_engine: DockerEngine, layout: Layout) -> None:
    name, made = stocked.name(layout), stocked.images[layout]
    docker_engine.run("login", f"127.0.0.1:{stocked.mirror.port}", "--username=token", f"--password={TOKEN}")
    before = stocked.simulator.counters()
    docker_engine.run("pull", name)
    try:
        assert docker_engine.run("inspect", "--format={{.Id}}", name) == made.image_id
        assert docker_engine.run("run", "--rm", *QUICK, name) == made.says
    finally:
        docker_engine.run("image", "rm", name)
    assert stocked.simulator.counters().image_requests == before.image_requests
    assert stocked.simulator.counters().metadata_requests - before.metadata_requests <= 2


def test_docker_pulls_by_the_manifests_digest(stocked: Stocked, docker_engine: DockerEngine) -> None:
    docker_engine.run("login", f"127.0.0.1:{stocked.mirror.port}", "--username=token", f"--password={TOKEN}")
    digest = manifest(stocked.mirror, f"7.0.0-{Layout.CRANE}").headers["Docker-Content-Digest"]
    name = f"127.0.0.1:{stocked.mirror.port}/{NAME}@{digest}"
    docker_engine.run("pull", name)
    assert docker_engine.run("inspect", "--format={{.Id}}", name) == stocked.images[Layout.CRANE].image_id
    docker_engine.run("image", "rm", name)


def test_docker_shows_how_far_the_image_is(tmp_path: Path, docker_engine: DockerEngine) -> None:
    made = archive(tmp_path, "7.0.0")
    with pullable(tmp_path / "mirror", [spec(made, "7.0.0")], patience=0.1) as (simulator, mirror):
        simulator.fault(Fault("store", hang_after=made.size // 2))
        docker_engine.run("login", f"127.0.0.1:{mirror.port}", "--username=token", f"--password={TOKEN}")
        with pytest.raises(AssertionError, match=r"(?s)toomanyrequests.*the image is being fetched"):
            docker_engine.run("pull", f"127.0.0.1:{mirror.port}/{NAME}")
        simulator.release()


def test_docker_logs_in_with_a_token_only(stocked: Stocked, docker_engine: DockerEngine) -> None:
    with pytest.raises(AssertionError, match="401 Unauthorized"):
        docker_engine.run("login", f"127.0.0.1:{stocked.mirror.port}", "--username=token", "--password=wrong")


# podman and skopeo


@pytest.fixture
def podman() -> Iterator[list[str]]:
    program = needs("podman", "apt-get install --no-install-recommends podman", root=True)
    # Not below pytest's directory: Podman takes a runroot of 50 characters at most.
    with TemporaryDirectory(prefix="pps-podman-") as directory:
        options = [f"--root={directory}/root", f"--runroot={directory}/run", "--storage-driver=vfs"]
        yield [program, *options, "--cgroup-manager=cgroupfs", "--events-backend=none", "--runtime=runc"]


@pytest.fixture
def skopeo() -> str:
    return needs("skopeo", "apt-get install --no-install-recommends skopeo")


def said(*command: str | Path) -> str:
    environ = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout.strip()


@pytest.mark.parametrize("layout", [Layout.CRANE, Layout.PODMAN])
def test_podman_pulls_and_runs(stocked: Stocked, podman: list[str], layout: Layout) -> None:
    name, made = stocked.name(layout), stocked.images[layout]
    assert said(*podman, "pull", "--quiet", "--tls-verify=false", f"--creds=token:{TOKEN}", name) == made.image_id[7:]
    limits = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096")
    assert said(*podman, "run", "--rm", "--network=none", "--pull=never", *limits, name) == made.says


@pytest.mark.parametrize("layout", [Layout.CRANE, Layout.OCI])
def test_skopeo_copies(stocked: Stocked, skopeo: str, tmp_path: Path, layout: Layout) -> None:
    source = f"docker://{stocked.name(layout)}"
    said(skopeo, "copy", "--src-tls-verify=false", f"--src-creds=token:{TOKEN}", source, f"dir:{tmp_path}")
    copied = json.loads((tmp_path / "manifest.json").read_text())
    assert copied["config"]["digest"] == stocked.images[layout].image_id
    assert all((tmp_path / layer["digest"].removeprefix("sha256:")).exists() for layer in copied["layers"])


def test_skopeo_copies_on_to_another_registry(stocked: Stocked, skopeo: str, tmp_path: Path) -> None:
    """What arrives there has the manifest's digest that it has here."""
    with DockerRegistry(tmp_path / "registry") as other:
        target = f"docker://{other.host}/pps:7.0.0"
        options = ("--src-tls-verify=false", f"--src-creds=token:{TOKEN}", "--dest-tls-verify=false")
        said(skopeo, "copy", *options, f"docker://{stocked.name(Layout.CRANE)}", target)
        arrived = said(skopeo, "inspect", "--tls-verify=false", "--format={{.Digest}}", target)
    assert arrived == manifest(stocked.mirror, f"7.0.0-{Layout.CRANE}").headers["Docker-Content-Digest"]


def test_skopeo_lists_the_tags(stocked: Stocked, skopeo: str) -> None:
    name = stocked.name(Layout.CRANE).rpartition(":")[0]
    listed = said(skopeo, "list-tags", "--tls-verify=false", f"--creds=token:{TOKEN}", f"docker://{name}")
    assert {f"7.0.0-{layout}" for layout in Layout} <= set(json.loads(listed)["Tags"])


@contextmanager
def brought_after_a_refusal(directory: Path) -> Iterator[tuple[DockerArchive, Simulator, ForkedMirror]]:
    """A mirror whose image nobody has asked for: half of it comes, and the rest when a client has been told to wait."""
    made = archive(directory, "7.0.0", padding=1 << 18)
    with pullable(directory / "mirror", [spec(made, "7.0.0")], patience=1.0) as (simulator, mirror):
        simulator.fault(Fault("store", hang_after=made.size // 2))

        def bring_the_rest() -> None:
            eventually(lambda: " 429 " in mirror.log(), 60, "a refusal")
            simulator.release()

        with ThreadPoolExecutor(1) as pool:
            rest = pool.submit(bring_the_rest)
            yield made, simulator, mirror
            rest.result()


def test_skopeo_waits_for_an_image_that_nobody_has_asked_for(tmp_path: Path, skopeo: str) -> None:
    with brought_after_a_refusal(tmp_path) as (_, simulator, mirror):
        source = f"docker://127.0.0.1:{mirror.port}/{NAME}"
        said(skopeo, "copy", "--src-tls-verify=false", f"--src-creds=token:{TOKEN}", source, f"dir:{tmp_path}/copy")
        assert simulator.counters().image_requests == 1


def test_podman_waits_for_an_image_that_nobody_has_asked_for(tmp_path: Path, podman: list[str]) -> None:
    with brought_after_a_refusal(tmp_path) as (made, _, mirror):
        name = f"127.0.0.1:{mirror.port}/{NAME}"
        pulled = said(*podman, "pull", "--quiet", "--tls-verify=false", f"--creds=token:{TOKEN}", name)
        assert pulled == made.image_id.removeprefix("sha256:")


def test_skopeo_copies_over_tls(tmp_path: Path, skopeo: str) -> None:
    cert, key = certificate(tmp_path / "tls")
    made = archive(tmp_path, "7.0.0", padding=1 << 18)
    sections = {"server": {"tls_cert": str(cert), "tls_key": str(key)}}
    with pullable(tmp_path / "mirror", [spec(made, "7.0.0")], sections) as (_, mirror):
        (tmp_path / "certificates").mkdir()
        (tmp_path / "certificates" / "ca.crt").write_bytes(cert.read_bytes())
        trust = f"--src-cert-dir={tmp_path}/certificates"
        source = f"docker://127.0.0.1:{mirror.port}/{NAME}"
        said(skopeo, "copy", trust, f"--src-creds=token:{TOKEN}", source, f"dir:{tmp_path}/copy")


# containerd


@pytest.fixture(scope="module")
def containerd() -> Iterator[Containerd]:
    with Containerd() as engine:
        yield engine


def test_containerd_pulls_and_runs(stocked: Stocked, containerd: Containerd, tmp_path: Path) -> None:
    for layout in (Layout.CRANE, Layout.OCI):
        name, made = stocked.name(layout), stocked.images[layout]
        pull = ("images", "pull", "--plain-http", "--snapshotter=native", f"--user=token:{TOKEN}", name)
        containerd.run(*pull)
        said = tmp_path / layout  # ctr itself may lose what a short-lived container prints last
        containerd.run("run", "--rm", "--snapshotter=native", f"--log-uri=file://{said}", name, f"run-{layout}")
        assert said.read_text().strip() == made.says


@pytest.mark.parametrize("mode", ["open", "upstream"])
def test_containerd_pulls_through_a_mirror_in_hosts_toml(containerd: Containerd, tmp_path: Path, mode: str) -> None:
    """It sends no credentials there: the mirror is open, or the token is a header in that file."""
    made = archive(tmp_path, "7.0.0", padding=1 << 18)
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    sections = {"auth": {"mode": mode}, "upstream": {"token_file": str(token)}}
    with pullable(tmp_path / "mirror", [spec(made, "7.0.0")], sections) as (_, mirror):
        header = f'[host."{mirror.url}".header]\nAuthorization = "Bearer {TOKEN}"\n' if mode == "upstream" else ""
        hosts = tmp_path / "hosts" / "registry.example.com" / "hosts.toml"
        hosts.parent.mkdir(parents=True)
        hosts.write_text(
            'server = "https://registry.example.com"\n'
            f'[host."{mirror.url}"]\ncapabilities = ["pull", "resolve"]\n{header}'
        )
        name = f"registry.example.com/{NAME}:7.0.0"
        containerd.run("images", "pull", f"--hosts-dir={tmp_path}/hosts", "--snapshotter=native", name)
        try:
            assert name in containerd.run("images", "list", "--quiet")
        finally:
            containerd.run("images", "rm", name)
