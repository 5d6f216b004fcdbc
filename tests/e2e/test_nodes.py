"""What `deploy/` has for nodes, run as their administrators would: Ansible's playbook, and what cloud-init writes."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mirror.simulator.client import TOKEN, Simulator
from tests.support.archive import DockerArchive
from tests.support.docker_engine import DockerEngine
from tests.support.forked import ForkedMirror
from tests.support.needs import needs
from tests.support.processes import MirrorProcess

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture
def mirror(tmp_path: Path, upstream: Simulator) -> Iterator[MirrorProcess]:
    with ForkedMirror(tmp_path, upstream.api_url) as mirror:
        yield mirror


@pytest.fixture
def path(tmp_path: Path, docker_engine: DockerEngine) -> str:
    """The PATH of a node that has pps-mirror and docker."""
    programs = tmp_path / "bin"
    programs.mkdir()
    scripts = {
        "pps-mirror": f'exec {sys.executable} -m mirror "$@"',
        "docker": f'DOCKER_HOST={docker_engine.environ["DOCKER_HOST"]} exec {docker_engine.client} "$@"',
    }
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    return f"{programs}:{os.environ.get('PATH', os.defpath)}"


def assert_runs(engine: DockerEngine, archive: DockerArchive) -> None:
    assert engine.run("run", "--rm", "--network=none", "--pull=never", archive.tag) == archive.says


def test_ansible_brings_the_image_to_a_node_once(
    tmp_path: Path,
    path: str,
    mirror: MirrorProcess,
    upstream: Simulator,
    docker_engine: DockerEngine,
    docker_archive: DockerArchive,
) -> None:
    playbook = [needs("ansible-playbook", "apt-get install ansible-core"), "--connection=local"]
    directory = tmp_path / "node"
    variables = {"mirror": mirror.url, "directory": str(directory), "ansible_python_interpreter": sys.executable}
    given = [f"--extra-vars={name}={value}" for name, value in variables.items()]
    environ = {
        "PATH": path,
        "HOME": str(tmp_path),
        "LANG": "C.UTF-8",
        "ANSIBLE_LOCAL_TEMP": str(tmp_path / "ansible"),
        "DATAROBOT_API_TOKEN": TOKEN,
    }
    for changed in (2, 0):
        done = subprocess.run(
            [*playbook, "--inventory=node,", *given, str(DEPLOY / "ansible" / "load-image.yml")],
            env=environ,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"changed={changed} " in done.stdout
        assert TOKEN not in done.stdout + done.stderr
        assert_runs(docker_engine, docker_archive)
    docker_engine.run("image", "rm", docker_archive.tag)
    assert upstream.counters().image_requests == 1


def test_what_cloud_init_writes_brings_the_image_to_a_node(
    tmp_path: Path,
    path: str,
    mirror: MirrorProcess,
    docker_engine: DockerEngine,
    docker_archive: DockerArchive,
) -> None:
    file = DEPLOY / "cloud-init" / "user-data.yaml"
    schema = [
        needs("cloud-init", "apt-get install cloud-init (on a machine to throw away: it acts at the next boot)"),
        "schema",
        "--config-file",
        str(file),
    ]
    judged = subprocess.run(schema, capture_output=True, text=True, timeout=60, check=False)
    assert judged.returncode == 0, judged.stdout + judged.stderr
    data = yaml.safe_load(file.read_text())
    written = {Path(each["path"]): each for each in data["write_files"]}
    assert written[Path("/etc/pps-node.env")]["permissions"] == "0600"
    units = [tmp_path / name.name for name in written if name.parent == Path("/etc/systemd/system")]
    for unit in units:
        unit.write_text(written[Path("/etc/systemd/system", unit.name)]["content"])
    verify = [needs("systemd-analyze", "apt-get install systemd"), "verify", "--man=no", *map(str, units)]
    verified = subprocess.run(verify, capture_output=True, text=True, timeout=60, check=False)
    assert not [line for line in verified.stderr.splitlines() if "pps-image" in line]
    enabled = {command[-1] for command in data["runcmd"] if "enable" in command}
    assert enabled <= {unit.name for unit in units}

    variables = dict(line.split("=", 1) for line in written[Path("/etc/pps-node.env")]["content"].split())
    assert set(variables) == {"DATAROBOT_API_TOKEN", "MIRROR"}
    service = (tmp_path / "pps-image.service").read_text()
    (start,) = [line.partition("=")[2] for line in service.splitlines() if line.startswith("ExecStart=")]
    state = tmp_path / "state"
    state.mkdir()
    command = start.replace("${MIRROR}", mirror.url).replace("/var/lib/pps-node", str(state))
    for _ in range(2):
        done = subprocess.run(
            shlex.split(command),
            env={"PATH": path, "DATAROBOT_API_TOKEN": TOKEN},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert_runs(docker_engine, docker_archive)
    docker_engine.run("image", "rm", docker_archive.tag)
