"""`pps-mirror get`: the whole image or none, whatever happens on the way, and into an engine only when it is whole."""

import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from mirror.simulator.client import TOKEN, Fault, ImageSpec, Simulator, fingerprint
from tests.support.archive import DockerArchive
from tests.support.certificates import certificate
from tests.support.commands import COMMAND, environment, one_line, run_forked
from tests.support.docker_engine import DockerEngine
from tests.support.fixtures import FreshMirror
from tests.support.needs import needs
from tests.support.processes import IMAGE, eventually
from tests.support.raw import raw_upstream
from tests.support.small_disk import SmallDisk

SIZE = 5 << 20


class Node:
    """A node's directory, and `pps-mirror get` run there with a token in the environment."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / "pps.tar.gz"
        self.part = directory / "pps.tar.gz.part"
        self.note = directory / "pps.tar.gz.part.json"
        directory.mkdir()

    def start(self, *arguments: str | Path, **environ: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            # Whoever runs the tests in the background may ignore SIGINT, and what is ignored is inherited.
            [needs("env", "apt-get install coreutils"), "--default-signal=INT", *COMMAND, "get", *arguments],
            cwd=self.directory,
            env=self._environment(environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def get(self, *arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
        return run_forked("get", *arguments, environ=self._environment(environ), cwd=self.directory)

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        ours = {name: value for name, value in environment().items() if not name.lower().endswith("_proxy")}
        return ours | {"DATAROBOT_API_TOKEN": TOKEN} | dict(more)

    def into_file(self, url: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return self.get("-o", self.file, *arguments, url)

    def names(self) -> set[str]:
        return {path.name for path in self.directory.iterdir()}

    def sha256(self) -> str:
        return hashlib.sha256(self.file.read_bytes()).hexdigest()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "node")


# Where from and where to


@pytest.mark.parametrize("tail", ["/", "/api/v2", IMAGE, IMAGE + "metadata"])
def test_the_url_may_be_the_address_or_the_images_own(node: Node, simulator: Simulator, tail: str) -> None:
    done = node.into_file(simulator.api_url + tail)
    assert (done.returncode, done.stderr) == (0, "")
    assert node.file.read_bytes() == simulator.read("first")
    assert node.names() == {"pps.tar.gz"}


def test_a_mirrors_image_gets_the_name_it_comes_with_and_a_second_get_has_nothing_to_do(
    node: Node, simulator: Simulator, fresh_mirror: FreshMirror
) -> None:
    mirror = fresh_mirror()
    first = json.loads(node.get("--json", mirror.url).stdout)
    name = simulator.metadata("first")["filename"]
    assert node.names() == {name}
    assert (first["file"], first["hash"], first["size"]) == (name, simulator.image_sha256("first"), SIZE)
    assert (first["wasThere"], first["loadedInto"]) == (False, None)
    assert json.loads(node.get("--json", mirror.url).stdout)["wasThere"] is True
    assert simulator.counters().image_requests == 1


@pytest.mark.parametrize("tail", ["images", "images/", "images/current", "images/current/metadata/?x=y"])
def test_a_mirrors_list_and_current_in_place_of_a_hash_mean_the_current_image(
    node: Node, simulator: Simulator, fresh_mirror: FreshMirror, tail: str
) -> None:
    done = node.into_file(f"{fresh_mirror().url}/mirror/v1/{tail}")
    assert (done.returncode, done.stderr) == (0, "")
    assert node.sha256() == simulator.image_sha256("first")


@pytest.mark.parametrize("tail", ["", "/", "/metadata/"])
def test_a_stored_image_is_had_by_the_url_that_names_it_when_another_one_is_current(
    node: Node, simulator: Simulator, fresh_mirror: FreshMirror, tail: str
) -> None:
    mirror = fresh_mirror()
    assert node.into_file(mirror.url).returncode == 0
    simulator.roll_over("second")
    old = simulator.image_sha256("first")
    node.file.unlink()
    done = node.into_file(f"{mirror.url}/mirror/v1/images/{old}{tail}")
    assert (done.returncode, done.stderr) == (0, "")
    assert node.sha256() == old
    missing = node.into_file(f"{mirror.url}/mirror/v1/images/{'0' * 64}/")
    assert missing.returncode == 1
    assert "the mirror does not have 000000000000: /mirror/v1/images/ lists what it has" in one_line(missing.stderr)
    assert node.sha256() == old
    part = node.into_file(f"{mirror.url}/mirror/v1/images/{old[:12]}/")
    assert part.returncode == 2
    assert f"expected the whole hash of an image, or current, in place of '{old[:12]}'" in one_line(part.stderr)


def test_an_answer_about_another_image_than_the_url_names_is_refused(node: Node, simulator: Simulator) -> None:
    other = "0" * 64
    metadata = json.dumps(simulator.metadata("first")).encode()

    def answer() -> bytes:
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(metadata), metadata)

    with raw_upstream(answer) as url:
        done = node.into_file(f"{url}/mirror/v1/images/{other}/")
    assert done.returncode == 1
    assert "the answer is about another image" in one_line(done.stderr)
    assert node.names() == set()


def test_a_url_that_leads_elsewhere_is_said_to_and_where_to_look(node: Node) -> None:
    def answer() -> bytes:
        head = b"HTTP/1.1 301 Moved Permanently\r\nLocation: https://app.datarobot.com/\r\n"
        return head + b"Content-Length: 0\r\nConnection: close\r\n\r\n"

    with raw_upstream(answer) as url:
        done = node.into_file(url, "--retry-for", "1s")
    assert done.returncode == 1
    assert "answered 301 elsewhere; set URL to where it really is" in done.stderr


def test_a_link_that_is_named_leads_to_where_the_image_goes(tmp_path: Path, simulator: Simulator) -> None:
    """The room that counts is the target's, and the link stays."""
    node = Node(tmp_path / "node")
    with SmallDisk(tmp_path / "disk", 8 << 20) as disk, SmallDisk(tmp_path / "small", 1 << 20) as small:
        link = small.path / "link"
        link.symlink_to(disk.path / "pps.tar.gz")
        for _ in ("dangling", "in place of what is there"):
            done = node.get("-o", link, simulator.api_url)
            assert (done.returncode, done.stderr) == (0, "")
            assert link.is_symlink()
            assert hashlib.sha256(link.read_bytes()).hexdigest() == simulator.image_sha256("first")
            (disk.path / "pps.tar.gz").write_bytes(b"another")
        assert {path.name for path in small.path.iterdir()} == {"link"}
        (small.path / "circle").symlink_to(small.path / "circle")
        done = node.get("-o", small.path / "circle", simulator.api_url)
        assert done.returncode == 2
        assert "its links lead in a circle" in one_line(done.stderr)


def test_another_file_is_replaced_only_when_it_was_named(node: Node, simulator: Simulator) -> None:
    name = simulator.metadata("first")["filename"]
    (node.directory / name).write_text("my own")
    done = node.get(simulator.api_url)
    assert done.returncode == 1
    assert f"{name} is there and is not this image: say with -o where to put it" in one_line(done.stderr)
    assert (node.directory / name).read_text() == "my own"
    assert node.get("-o", name, simulator.api_url).returncode == 0
    assert (node.directory / name).read_bytes() == simulator.read("first")


def test_a_pipe_or_a_device_is_never_replaced_though_it_was_named(node: Node, simulator: Simulator) -> None:
    os.mkfifo(node.file)
    done = node.into_file(simulator.api_url)
    assert done.returncode == 1
    assert f"{node.file} is in the way: it is no plain file" in one_line(done.stderr)
    assert node.file.is_fifo()
    assert node.names() == {node.file.name}


@pytest.mark.parametrize("filename", ["../../evil", "/.evil\x1b"])
def test_a_hostile_name_stays_in_the_directory(node: Node, simulator: Simulator, filename: str) -> None:
    simulator.fault(Fault("metadata", values={"filename": filename}))
    assert node.get(simulator.api_url).returncode == 0
    assert node.names() == {"evil"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "URL: expected"),
        (["http://127.0.0.1:9", "--retry-for", "soon"], "expected a duration"),
        (["http://127.0.0.1:9", "--load", "--loader", "ctr"], "--load needs ctr, and PATH has none"),
        (["http://127.0.0.1:9", "--token-file", "/nowhere"], "--token-file = '/nowhere': cannot read it"),
        (["http://127.0.0.1:9", "--ca-file", "/nowhere"], "--ca-file = '/nowhere' cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_status_2_and_said(node: Node, arguments: list[str], said: str) -> None:
    done = node.get(*arguments, PATH="/nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert node.names() == set()


# Faults on the way


def test_cuts_resets_expired_urls_and_servers_that_are_busy_are_only_pauses(node: Node, simulator: Simulator) -> None:
    simulator.fault(
        Fault("metadata", status=503, headers={"Retry-After": "1"}),
        Fault("metadata", status=429),
        Fault("metadata", drop=True, reset=True),
        Fault("image", status=429, resumed=False),
        Fault("image", status=502, resumed=False),
        Fault("store", cut_after=SIZE // 3, reset=True, resumed=False),
        Fault("image", status=504, resumed=True),
        Fault("image", expires_in=-1, resumed=True),
        Fault("store", cut_after=SIZE // 3, resumed=True),
    )
    done = node.into_file(simulator.api_url)
    assert done.returncode == 0, done.stderr
    assert node.sha256() == simulator.image_sha256("first")
    assert simulator.bytes_sent() < SIZE * 1.2, "what was there was fetched again"
    assert any(asked.range and asked.if_range for asked in simulator.log("store"))


def test_killed_midway_it_goes_on_from_there_when_run_again(node: Node, simulator: Simulator) -> None:
    simulator.fault(Fault("store", hang_after=SIZE // 2))
    process = node.start("-o", node.file, simulator.api_url)
    eventually(lambda: node.note.exists() and node.part.stat().st_size == SIZE // 2)
    second = node.into_file(simulator.api_url)
    assert second.returncode == 1
    assert f"another process is receiving {node.part}" in one_line(second.stderr)
    process.kill()
    process.communicate()
    assert node.names() == {node.part.name, node.note.name}
    simulator.release()
    simulator.reset_log()
    done = node.into_file(simulator.api_url)
    assert done.returncode == 0, done.stderr
    assert node.sha256() == simulator.image_sha256("first")
    assert node.names() == {node.file.name}
    assert simulator.bytes_sent() == SIZE - SIZE // 2


def test_interrupted_it_says_what_it_keeps(node: Node, simulator: Simulator) -> None:
    simulator.fault(Fault("store", hang_after=SIZE // 2))
    process = node.start("-o", node.file, simulator.api_url)
    eventually(lambda: node.note.exists() and node.part.stat().st_size == SIZE // 2)
    process.send_signal(2)
    output, errors = process.communicate(timeout=20)
    simulator.release()
    assert (process.returncode, errors) == (130, "")
    assert f"stopped at 2.5 MiB of 5.0 MiB: that is kept in {node.part}" in output


def test_a_disk_that_becomes_full_keeps_what_it_has_and_the_same_command_goes_on(
    tmp_path: Path, simulator: Simulator
) -> None:
    with SmallDisk(tmp_path / "disk", 8 << 20) as disk:
        node = Node(disk.path / "node")
        simulator.fault(Fault("store", hang_after=SIZE // 2))
        process = node.start("-o", node.file, simulator.api_url)
        eventually(lambda: node.note.exists() and node.part.stat().st_size == SIZE // 2)
        disk.fill_up()
        simulator.release()
        assert process.wait(60) == 1
        assert f"No space left on device; what came is kept in {node.part}, and" in process.communicate()[1]
        (disk.path / "filler").unlink()
        done = node.into_file(simulator.api_url)
        assert (done.returncode, done.stderr) == (0, "")
        assert node.sha256() == simulator.image_sha256("first")


def test_a_share_that_does_not_say_how_large_it_is_is_written_to(tmp_path: Path, simulator: Simulator) -> None:
    with SmallDisk(tmp_path / "share", SIZE, kind="ramfs") as disk:
        node = Node(disk.path / "node")
        assert node.into_file(simulator.api_url).returncode == 0


def test_nobody_there_is_status_1_after_the_time_given(node: Node) -> None:
    done = node.into_file("http://127.0.0.1:9", "--retry-for", "1s")
    assert done.returncode == 1
    assert "upstream cannot be reached: connection refused" in done.stderr
    assert node.names() == set()


def test_a_line_that_stays_dead_is_status_1_and_what_came_is_kept(node: Node, simulator: Simulator) -> None:
    simulator.fault(Fault("store", cut_after=SIZE // 2), Fault("store", status=503, resumed=True, times=None))
    done = node.into_file(simulator.api_url, "--retry-for", "1s")
    assert done.returncode == 1
    assert f"kept in {node.part}, and the same command goes on from there" in done.stderr
    assert node.part.stat().st_size == SIZE // 2
    assert not node.file.exists()


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("", "a token is wanted (401): give --token-file or set DATAROBOT_API_TOKEN"),
        ("not-a-known-token", "the token is refused (the answer was 401)"),
        ("a-forbidden-token", "the token is refused (the answer was 403)"),
    ],
)
def test_a_token_that_will_not_do_is_said_at_once(node: Node, simulator: Simulator, token: str, said: str) -> None:
    done = node.get("-o", node.file, simulator.api_url, DATAROBOT_API_TOKEN=token)
    assert done.returncode == 1
    assert said in one_line(done.stderr)


def test_no_image_is_said_at_once(node: Node, simulator: Simulator) -> None:
    simulator.roll_over("none")
    done = node.into_file(simulator.api_url)
    assert done.returncode == 1
    assert "there is no image (the answer was 404)" in one_line(done.stderr)


# Wrong bytes and other images


def test_wrong_bytes_are_never_given_the_name_and_fetched_anew(node: Node, simulator: Simulator) -> None:
    simulator.fault(Fault("store", corrupt_at=SIZE - 1))
    done = node.into_file(simulator.api_url)
    assert done.returncode == 0, done.stderr
    assert "wrong bytes came in" in done.stderr
    assert node.sha256() == simulator.image_sha256("first")


def test_bytes_that_stay_wrong_are_status_1_and_leave_what_was_there_as_it_was(
    node: Node, simulator: Simulator
) -> None:
    node.file.write_text("the last good one")
    simulator.fault(Fault("store", corrupt_at=SIZE // 2, times=None))
    done = node.into_file(simulator.api_url)
    assert done.returncode == 1
    assert "wrong bytes came in" in done.stderr
    assert node.names() == {node.file.name}
    assert node.file.read_text() == "the last good one"
    assert simulator.counters().image_requests == 3


def test_an_image_that_rolls_over_midway_ends_as_the_new_one(node: Node, simulator: Simulator) -> None:
    simulator.fault(Fault("store", cut_after=SIZE // 2, roll_over="second", roll_over_after=SIZE // 3))
    done = node.into_file(simulator.api_url)
    assert done.returncode == 0, done.stderr
    assert "beginning anew" in done.stderr
    assert node.sha256() == simulator.image_sha256("second")
    assert node.names() == {node.file.name}


def test_what_is_left_of_a_mirrors_last_image_is_not_taken_for_the_next_one(
    node: Node, simulator: Simulator, fresh_mirror: FreshMirror
) -> None:
    mirror = fresh_mirror({"upstream": {"metadata_ttl": "0s"}})
    simulator.fault(Fault("store", hang_after=SIZE // 2))
    process = node.start("-o", node.file, mirror.url)
    eventually(lambda: node.note.exists() and node.part.stat().st_size == SIZE // 2)
    process.kill()
    process.communicate()
    simulator.roll_over("second")
    simulator.release()
    done = node.into_file(mirror.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert node.sha256() == simulator.image_sha256("second")


def test_an_image_that_changes_between_metadata_and_bytes_ends_as_the_new_one(node: Node, simulator: Simulator) -> None:
    simulator.fault(Fault("metadata", roll_over="second"))
    done = node.into_file(simulator.api_url)
    assert done.returncode == 0, done.stderr
    assert node.sha256() == simulator.image_sha256("second")
    assert len(simulator.log("metadata")) == 2


# Credentials and certificates


def test_the_token_goes_to_no_redirects_target_and_is_nowhere_in_what_is_left(node: Node, simulator: Simulator) -> None:
    simulator.fault(Fault("image", expires_in=-1, times=2))
    done = node.into_file(simulator.api_url, "--log-level", "debug")
    assert done.returncode == 0, done.stderr
    assert {asked.authorization for asked in simulator.log("store")} == {None}
    assert {asked.authorization for asked in simulator.log("image")} == {fingerprint(f"Bearer {TOKEN}")}
    for secret in (TOKEN, "X-Amz-Signature"):
        assert secret not in done.stdout + done.stderr


def test_a_certificate_is_trusted_only_with_ca_file(node: Node, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path / "tls")
    with Simulator.start([ImageSpec("first", size=SIZE)], tls_cert=str(cert), tls_key=str(key)) as simulator:
        refused = node.into_file(simulator.api_url, "--retry-for", "10s")
        assert refused.returncode == 1
        assert "certificate is not trusted; see --ca-file" in refused.stderr
        done = node.into_file(simulator.api_url, "--ca-file", cert)
        assert done.returncode == 0, done.stderr
        assert node.sha256() == simulator.image_sha256("first")


# Into an engine


class Engines:
    """What a node has on its PATH, each a script that becomes the real program with a storage of the tests' own."""

    def __init__(self, directory: Path) -> None:
        self.path = directory
        directory.mkdir()

    def add(self, name: str, command: str, **environ: str) -> None:
        script = self.path / name
        variables = "".join(f"export {key}='{value}'\n" for key, value in environ.items())
        script.write_text(f'#!/bin/sh\n{variables}exec {command} "$@"\n')
        script.chmod(0o755)


@pytest.fixture
def engines(tmp_path: Path) -> Engines:
    return Engines(tmp_path / "engines")


@pytest.fixture
def docker(engines: Engines, docker_engine: DockerEngine) -> DockerEngine:
    """The engine, as the node's `docker`."""
    engines.add("docker", docker_engine.client, DOCKER_HOST=docker_engine.environ["DOCKER_HOST"])
    return docker_engine


def load(node: Node, url: str, engines: Engines, *arguments: str) -> subprocess.CompletedProcess[str]:
    return node.get("--load", *arguments, "-o", node.file, url, PATH=f"{engines.path}:/usr/bin:/bin")


def test_docker_is_given_the_whole_image_after_a_cut_and_runs_it(
    node: Node, upstream: Simulator, docker_archive: DockerArchive, docker: DockerEngine, engines: Engines
) -> None:
    upstream.fault(Fault("store", cut_after=docker_archive.size // 2, reset=True))
    done = load(node, upstream.api_url, engines)
    assert done.returncode == 0, done.stderr
    assert docker_archive.tag in done.stdout
    said = docker.run("run", "--rm", "--network=none", "--pull=never", docker_archive.tag)
    assert said == docker_archive.says
    docker.run("image", "rm", docker_archive.tag)


def test_nothing_is_loaded_of_an_image_that_is_wrong(
    node: Node, upstream: Simulator, docker_archive: DockerArchive, docker: DockerEngine, engines: Engines
) -> None:
    before = docker.images()
    upstream.fault(Fault("store", corrupt_at=docker_archive.size - 1, times=None))
    done = load(node, upstream.api_url, engines, "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert "wrong bytes came in" in done.stderr
    assert docker.images() == before


@pytest.fixture
def podman() -> Iterator[str]:
    """The command of a real podman with a storage of its own."""
    program = needs("podman", "apt-get install --no-install-recommends podman", root=True)
    # Not below pytest's directory: Podman takes a runroot of 50 characters at most.
    with TemporaryDirectory(prefix="pps-podman-") as directory:
        options = f"--root={directory}/root --runroot={directory}/run --storage-driver=vfs"
        yield f"{program} {options} --cgroup-manager=cgroupfs --events-backend=none"


def test_podman_that_cannot_read_gzip_is_given_it_unpacked(
    node: Node, upstream: Simulator, docker_archive: DockerArchive, podman: str, engines: Engines
) -> None:
    engines.add("podman", podman)
    done = load(node, upstream.api_url, engines, "--loader", "podman", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["loadedInto"] == "podman"
    listed = [*podman.split(), "images", "--all", "--quiet", "--no-trunc"]
    said = subprocess.run(listed, capture_output=True, text=True, check=True).stdout
    assert said.split() == [docker_archive.image_id]


@pytest.mark.parametrize("name", ["docker", "podman"])
def test_ended_while_it_loads_it_leaves_no_part_of_an_image_and_no_engine_at_work(
    node: Node,
    upstream: Simulator,
    docker_archive: DockerArchive,
    docker: DockerEngine,
    podman: str,
    engines: Engines,
    tmp_path: Path,
    name: str,
) -> None:
    real = {"docker": f"env DOCKER_HOST={docker.environ['DOCKER_HOST']} {docker.client}", "podman": podman}[name]
    midway, pid = tmp_path / "midway", tmp_path / "pid"
    script = engines.path / name
    # A script before the real engine, as some distributions have: it passes a part on and then waits.
    feeding = f"head -c 100000; touch {midway}; sleep 60; cat"
    script.write_text(f'#!/bin/sh\necho $$ > {pid}\n{{ {feeding}; }} | {real} "$@"\n')
    script.chmod(0o755)

    def images() -> set[str]:  # Docker lists those of one second in any order
        listed = subprocess.run(
            [*real.split(), "images", "--all", "--quiet"], capture_output=True, text=True, check=True
        )
        return set(listed.stdout.split())

    before = images()
    path = f"{engines.path}:/usr/bin:/bin"
    process = node.start("--load", "--loader", name, "-o", node.file, upstream.api_url, PATH=path)
    eventually(midway.exists, what="loading")
    process.terminate()
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (-signal.SIGTERM, "")
    eventually(lambda: not group_of(int(pid.read_text())), what="the engine's end")
    assert images() == before
    assert node.file.read_bytes() == docker_archive.path.read_bytes()


def group_of(leader: int) -> list[int]:
    """The processes of a process group that still run."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with suppress(OSError):
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == leader and fields[0] != "Z":
                    found.append(int(process.name))
    return found


def test_ctr_imports_it_where_kubernetes_looks(
    node: Node, upstream: Simulator, docker_archive: DockerArchive, docker: DockerEngine, engines: Engines
) -> None:
    socket = Path(docker.environ["DOCKER_HOST"].removeprefix("unix://")).with_name("exec") / "containerd"
    program = needs("ctr", "apt-get install containerd")
    engines.add("ctr", program, CONTAINERD_ADDRESS=f"{socket}/containerd.sock")
    done = load(node, upstream.api_url, engines, "--loader", "ctr")
    assert done.returncode == 0, done.stderr
    listing = [str(engines.path / "ctr"), "-n", "k8s.io", "images", "list", "--quiet"]
    assert docker_archive.tag in subprocess.run(listing, capture_output=True, text=True, check=True).stdout


def test_an_engine_that_fails_is_status_1_and_the_image_stays(
    node: Node, upstream: Simulator, docker_archive: DockerArchive, engines: Engines
) -> None:
    engines.add("docker", "sh -c 'head -c 1000 > /dev/null; echo no space left >&2; exit 3' #")
    done = load(node, upstream.api_url, engines)
    assert done.returncode == 1
    assert "docker did not load" in done.stderr
    assert "(exit status 3): no space left" in done.stderr
    assert node.file.read_bytes() == docker_archive.path.read_bytes()
