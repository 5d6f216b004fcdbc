"""What the documents tell people to type, typed; and what they list, looked up."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from mirror.simulator.client import TOKEN, ImageSpec, Simulator
from tests.support.admin import CHANGING, ask_admin, metric
from tests.support.archive import DockerArchive
from tests.support.docker_engine import DockerEngine
from tests.support.documents import DOCS, Document
from tests.support.downloads import Download
from tests.support.fixtures import FreshMirror
from tests.support.hooks import hook, in_environment
from tests.support.needs import needs
from tests.support.processes import MirrorProcess, eventually

MIB = 1 << 20
CLIENTS = Document(DOCS / "clients.md")
TOOLS = {"pps-mirror get": "", "curl": "curl jq", "wget": "wget", "aria2": "aria2c"}
"""The headings of docs/clients.md with commands for a file, and what they need."""


class Node:
    """A node whose user follows docs/clients.md, where `mirror` is that mirror."""

    def __init__(self, directory: Path, mirror: MirrorProcess) -> None:
        self.file = directory / "pps.tar.gz"
        self._directory = directory
        self._url = mirror.url
        directory.mkdir()
        plain = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._environ = plain | {"DATAROBOT_API_TOKEN": TOKEN, "HOME": str(directory), "PATH": programs}

    def run(self, *command: str, text: str, environ: Mapping[str, str] | None = None) -> None:
        """Have the command read the text; fail when it does."""
        done = subprocess.run(
            command,
            input=text.replace("http://mirror:8080", self._url),
            cwd=self._directory,
            env=self._environ | {"MIRROR": self._url} | dict(environ or {}),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def sha256(self) -> str:
        return hashlib.sha256(self.file.read_bytes()).hexdigest()


@pytest.mark.parametrize("tool", TOOLS)
def test_the_commands_for_each_client_get_the_image(
    tool: str, tmp_path: Path, mirror: MirrorProcess, shared_simulator: Simulator
) -> None:
    for program in TOOLS[tool].split():
        needs(program, "apt-get install --no-install-recommends curl jq wget aria2")
    node = Node(tmp_path / "node", mirror)
    blocks = [block.text for block in CLIENTS.blocks("sh") if block.heading == tool]
    assert blocks
    for text in blocks:
        node.run("bash", "-euo", "pipefail", "-s", text=text)
        assert node.sha256() == shared_simulator.image_sha256("first")


def test_the_official_client_as_shown_gets_the_image(
    tmp_path: Path, mirror: MirrorProcess, shared_simulator: Simulator
) -> None:
    node = Node(tmp_path / "node", mirror)
    (block,) = CLIENTS.blocks("python")
    node.run(sys.executable, "-", text=block.text)
    assert node.sha256() == shared_simulator.image_sha256("first")


@pytest.fixture
def upstream(docker_archive: DockerArchive) -> Iterator[Simulator]:
    with Simulator.start([ImageSpec("v1", path=str(docker_archive.path))]) as simulator:
        yield simulator


def test_the_daemon_set_brings_the_image_to_where_the_kubelet_looks(
    tmp_path: Path,
    upstream: Simulator,
    docker_archive: DockerArchive,
    docker_engine: DockerEngine,
    fresh_mirror: FreshMirror,
) -> None:
    ctr = needs("ctr", "apt-get install --no-install-recommends containerd", root=True)
    (text,) = (block.text for block in CLIENTS.blocks("yaml") if "DaemonSet" in block.text)
    (daemon_set,) = (each for each in yaml.safe_load_all(text) if each["kind"] == "DaemonSet")
    (container,) = daemon_set["spec"]["template"]["spec"]["initContainers"]
    assert {each["name"] for each in container["env"]} == {"NODE", "FILE", "MIRROR", "DATAROBOT_API_TOKEN"}
    node = Node(tmp_path / "node", fresh_mirror(upstream=upstream))
    engine = Path(docker_engine.environ["DOCKER_HOST"].removeprefix("unix://")).with_name("exec")
    environ = {"NODE": "/", "FILE": str(node.file), "CONTAINERD_ADDRESS": f"{engine}/containerd/containerd.sock"}
    for _ in range(2):  # and again, as when the node starts again
        node.run(*container["command"], *container["args"], text="", environ=environ)
    listed = [ctr, "-n", "k8s.io", "images", "list", "--quiet"]
    said = subprocess.run(listed, env=os.environ | environ, capture_output=True, text=True, check=True).stdout
    assert docker_archive.tag in said
    assert upstream.counters().image_requests == 1


# Metrics


@dataclass(frozen=True, slots=True)
class Family:
    """A metric; `text` is its HELP."""

    type: str
    labels: frozenset[str]
    text: str


def listed() -> dict[str, Family]:
    """What docs/metrics.md says of each. Beyond the text of its HELP there may be more."""
    return {
        name.strip("`"): Family(kind, frozenset(re.findall("`(.+?)`", labels)), meaning)
        for name, kind, labels, meaning in Document(DOCS / "metrics.md").rows("name", "type", "labels", "meaning")
    }


def exposed(mirror: MirrorProcess) -> dict[str, Family]:
    """What a mirror says of itself just now."""
    text = ask_admin(mirror, "GET", "/metrics").body.decode()
    found = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith("pps_mirror_"):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = frozenset(label for sample in family.samples for label in sample.labels) - {"le"}
            found[name] = Family(family.type, labels, family.documentation)
    return found


def test_the_metrics_that_are_listed_are_those_that_there_are(simulator: Simulator, fresh_mirror: FreshMirror) -> None:
    simulator.set_rate(MIB)
    environ = in_environment(hook(command=["/bin/true"])) | {"DATAROBOT_API_TOKEN": TOKEN}
    mirror = fresh_mirror({"store": {"scrub_interval": "100ms"}, "registry": {"enabled": True}}, environ=environ)
    with Download(mirror.image_url) as download:
        eventually(lambda: metric(mirror, "fill_received_bytes") > 0, what="a fill that is under way")
        during = exposed(mirror)
        simulator.set_rate(None)
        download.read_all()
    assert ask_admin(mirror, "POST", "/api/prefetch", CHANGING).status == 200
    eventually(lambda: metric(mirror, "requests_total") > 0, what="the count of the download")
    eventually(lambda: metric(mirror, "scrubs_total") > 0, what="a scrub")
    eventually(lambda: "pps_mirror_unverified_seconds" in exposed(mirror), what="a look at the store since then")
    after = exposed(mirror)
    said = listed()
    assert set(said) == set(during) | set(after)
    for name, family in said.items():
        seen = [each[name] for each in (during, after) if name in each]
        assert {each.type for each in seen} == {family.type}, name
        assert {label for each in seen for label in each.labels} == family.labels, name
        assert all(family.text.startswith(each.text) for each in seen), name
