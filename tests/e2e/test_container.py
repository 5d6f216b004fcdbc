"""The Dockerfile, really built, without a registry or an index, and its image run as locked up as it promises."""

import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mirror.simulator.client import Simulator
from tests.support.compose import environment, services
from tests.support.debian import PROJECT, debian_root, served, wheels
from tests.support.docker_engine import DockerEngine
from tests.support.documents import ROOT, Document
from tests.support.downloads import fetch
from tests.support.hooks import hook, in_environment
from tests.support.needs import needs
from tests.support.processes import IMAGE, eventually, free_port, free_ports

pytestmark = pytest.mark.timeout(600)

BASE, TAG = "debian-with-python", "pps-mirror"
UID = 10001
STORE = "/var/lib/pps-mirror"
LOCKED_UP = ("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges")


@pytest.fixture(scope="module")
def image(docker_engine: DockerEngine) -> str:
    """The tag of the image built from this tree on an imported Debian."""
    docker_engine.run("import", str(debian_root()), BASE)
    with served(wheels()) as url:
        docker_engine.run(
            *("build", "--network=host", f"--tag={TAG}", f"--build-arg=BASE={BASE}", "--build-arg=PIP_NO_INDEX=1"),
            *(f"--build-arg=PIP_FIND_LINKS={url}", str(PROJECT)),
            timeout=300,
        )
    return TAG


@pytest.fixture
def upstream() -> Iterator[Simulator]:
    with Simulator.start() as simulator:
        yield simulator


@dataclass(frozen=True, slots=True)
class Container:
    """A running container, by its `name`."""

    engine: DockerEngine
    name: str

    def inspect(self, field: str) -> str:
        """A field of what the engine knows of it, as a Go template names it."""
        return self.engine.run("inspect", f"--format={{{{{field}}}}}", self.name)


@contextmanager
def running(engine: DockerEngine, image: str, *options: str) -> Iterator[Container]:
    """Run the image as it is meant to be; the engine has no bridge, so it shares our loopback."""
    name = engine.run("run", "--detach", "--pull=never", "--network=host", "--health-interval=1s", *options, image)
    try:
        yield Container(engine, name)
    finally:
        subprocess.run([engine.client, "logs", name], env=engine.environ, check=False)  # pytest shows it of failures
        engine.run("rm", "--force", "--volumes", name)


def assert_it_does_its_job(container: Container, upstream: Simulator, port: int) -> None:
    """Healthy, not root, an image downloaded through it is right, and it ends when told to."""
    eventually(lambda: container.inspect(".State.Health.Status") == "healthy", what="health")
    assert Path(f"/proc/{container.inspect('.State.Pid')}").stat().st_uid == UID
    curl = [needs("curl", "apt-get install curl"), "-sS", "-f", f"http://127.0.0.1:{port}{IMAGE}"]
    image = subprocess.run([*curl, "-H", f"Authorization: Bearer {upstream.token}"], stdout=subprocess.PIPE, check=True)
    assert hashlib.sha256(image.stdout).hexdigest() == upstream.image_sha256("first")
    container.engine.run("stop", container.name)
    assert container.inspect(".State.ExitCode") == "0"


def test_locked_up_with_a_named_volume_and_configured_by_variables(
    docker_engine: DockerEngine, image: str, upstream: Simulator
) -> None:
    port = free_port()
    variables = {
        "PPS_MIRROR__UPSTREAM__URL": upstream.api_url,
        "PPS_MIRROR__SERVER__PORT": port,
        "PPS_MIRROR__ADMIN__PORT": free_port(),
    }
    options = [f"--env={name}={value}" for name, value in variables.items()]
    with running(docker_engine, image, *LOCKED_UP, f"--volume=pps-mirror:{STORE}", *options) as container:
        assert_it_does_its_job(container, upstream, port)
    docker_engine.run("volume", "rm", "pps-mirror")


def test_locked_up_the_command_of_a_hook_is_told(docker_engine: DockerEngine, image: str, upstream: Simulator) -> None:
    hooks = in_environment(
        hook(events=["image.stored"], command=["/bin/sh", "-c", "cat >/tmp/new && mv /tmp/new /tmp/told"])
    )
    port, admin_port = free_ports(2)
    variables = hooks | {
        "PPS_MIRROR__UPSTREAM__URL": upstream.api_url,
        "PPS_MIRROR__SERVER__PORT": str(port),
        "PPS_MIRROR__ADMIN__PORT": str(admin_port),
    }
    options = [*LOCKED_UP, *(f"--env={name}={value}" for name, value in variables.items())]
    with running(docker_engine, image, *options) as container:
        eventually(lambda: container.inspect(".State.Health.Status") == "healthy", what="health")
        assert fetch(f"http://127.0.0.1:{port}{IMAGE}").status == 200
        cat = [docker_engine.client, "exec", container.name, "cat", "/tmp/told"]

        def told() -> str:
            return subprocess.run(cat, env=docker_engine.environ, capture_output=True, text=True, check=False).stdout

        eventually(told, 60, "the command")
        assert json.loads(told())["type"] == "image.stored"


def test_as_the_readme_runs_it(docker_engine: DockerEngine, image: str, upstream: Simulator) -> None:
    (block,) = (each for each in Document(ROOT / "README.md").blocks("sh") if each.heading == "In a container")
    _, line = block.text.replace("\\\n", " ").strip().split("\n")
    words = shlex.split(line)
    assert words[:3] == ["docker", "run", "-d"]
    assert words[-1] == image
    options = words[3:-1]
    published = options.index("-p")  # the engine has no bridge
    assert options[published + 1] == "8080:8080"
    del options[published : published + 2]
    options = [each.replace("https://app.datarobot.com", upstream.api_url) for each in options]
    port = free_port()
    ports = [f"--env=PPS_MIRROR__SERVER__PORT={port}", f"--env=PPS_MIRROR__ADMIN__PORT={free_port()}"]
    with running(docker_engine, image, *options, *ports) as container:
        eventually(lambda: container.inspect(".State.Health.Status") == "healthy", what="health")
        done = subprocess.run(
            [docker_engine.client, "exec", container.name, "pps-mirror", "demo", "--once"],
            env=docker_engine.environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert "or run it with --tmpfs /tmp" in done.stderr
        assert_it_does_its_job(container, upstream, port)
    docker_engine.run("volume", "rm", "pps-mirror")


def test_locked_up_with_a_bind_mount_and_configured_by_a_file(
    docker_engine: DockerEngine, image: str, upstream: Simulator, tmp_path: Path
) -> None:
    port, admin_port = free_ports(2)
    config, store = tmp_path / "config.toml", tmp_path / "store"
    config.write_text(f'[server]\nport = {port}\n[upstream]\nurl = "{upstream.api_url}"\n')
    store.mkdir()
    os.chown(store, UID, UID)
    options = [
        f"--volume={store}:{STORE}",
        f"--volume={config}:/etc/pps-mirror.toml:ro",
        "--env=PPS_MIRROR_CONFIG=/etc/pps-mirror.toml",
        f"--env=PPS_MIRROR__ADMIN__PORT={admin_port}",  # where the health check finds it as well
    ]
    with running(docker_engine, image, *LOCKED_UP, *options) as container:
        assert_it_does_its_job(container, upstream, port)
    assert (store / "images" / upstream.image_sha256("first") / "image").stat().st_uid == UID


def test_as_compose_runs_it_with_the_secret_as_its_readme_makes_it(
    docker_engine: DockerEngine, image: str, upstream: Simulator, tmp_path: Path
) -> None:
    service, given = services()["mirror"], environment()
    port, admin_port = free_ports(2)
    secret = tmp_path / "admin-token"
    secret.write_text("the-token-of-the-operators\n")
    secret.chmod(0o400)
    os.chown(secret, UID, UID)
    here = {
        "PPS_MIRROR__UPSTREAM__URL": upstream.api_url,
        "PPS_MIRROR__SERVER__PORT": str(port),
        "PPS_MIRROR__ADMIN__PORT": str(admin_port),
    }
    volume, path = service["volumes"][0].split(":")
    options = [
        *(f"--env={name}={value}" for name, value in (given | here).items()),
        *(f"--cap-drop={each}" for each in service["cap_drop"]),
        *(f"--security-opt={each}" for each in service["security_opt"]),
        *(f"--tmpfs={each}" for each in service["tmpfs"]),
        "--read-only",
        f"--volume={volume}:{path}",
        f"--volume={secret}:{given['PPS_MIRROR__ADMIN__TOKEN_FILE']}:ro",
    ]
    with running(docker_engine, image, *options) as container:
        assert_it_does_its_job(container, upstream, port)
    docker_engine.run("volume", "rm", volume)


def test_what_root_left_in_the_volume_is_handed_over_as_doctor_advises(
    docker_engine: DockerEngine, image: str, upstream: Simulator
) -> None:
    variables = {
        "PPS_MIRROR__UPSTREAM__URL": upstream.api_url,
        "PPS_MIRROR__SERVER__PORT": free_port(),
        "PPS_MIRROR__ADMIN__PORT": free_port(),
    }
    options = [f"--env={name}={value}" for name, value in variables.items()]
    with running(docker_engine, image, *LOCKED_UP, f"--volume=pps-mirror:{STORE}", *options) as container:
        eventually(lambda: container.inspect(".State.Health.Status") == "healthy", what="health")
        left = f"umask 077; echo 1 > {STORE}/partial/{'0' * 64}"
        volumes = f"--volumes-from={container.name}"
        docker_engine.run("run", "--rm", "--user=0", "--entrypoint=sh", volumes, image, "-c", left)
        (found,) = [each for each in doctor(container) if each["check"] == "store" and not each["ok"]]
        program, *command = shlex.split(found["advice"])
        assert program == "docker"
        docker_engine.run(*(each.replace("CONTAINER", container.name).replace("IMAGE", image) for each in command))
        assert [each for each in doctor(container) if each["check"] == "store" and not each["ok"]] == []
    docker_engine.run("volume", "rm", "pps-mirror")


def doctor(container: Container) -> list[dict[str, Any]]:
    """What `pps-mirror doctor` finds inside the container."""
    engine = container.engine
    done = subprocess.run(
        [engine.client, "exec", container.name, "pps-mirror", "doctor", "--json"],
        env=engine.environ,
        capture_output=True,
        check=False,
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_the_image_is_small_and_has_no_installer(docker_engine: DockerEngine, image: str) -> None:
    size, base = (int(docker_engine.run("inspect", "--format={{.Size}}", tag)) for tag in (image, BASE))
    assert size - base < 80_000_000
    installed = docker_engine.run("run", "--rm", "--network=none", "--entrypoint=ls", image, "/opt/pps-mirror/bin")
    assert "pip" not in installed.split()


def test_hadolint_has_nothing_to_say_about_the_dockerfile() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    said = subprocess.run([hadolint, PROJECT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout + said.stderr) == (0, "")
