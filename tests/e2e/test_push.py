"""An image is pushed into a real registry, from where other tools pull the same bytes."""

import asyncio
import base64
import json
import os
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mirror.common.progress import Silence
from mirror.model.errors import MirrorError
from mirror.model.push_target import Target
from mirror.registry.index import ArchiveIndex
from mirror.registry.push import pusher, remote_registry
from mirror.registry.push.docker_credentials import Credential
from mirror.registry.push.pusher import Pushed
from mirror.registry.push.remote_registry import RemoteRegistry
from mirror.simulator.client import ImageSpec, Simulator
from mirror.store.base import StoredImage
from mirror.store.shared_file import SharedFile
from tests.support.archive import DockerArchive
from tests.support.commands import run
from tests.support.docker_registry import PASSWORD, USER, DockerRegistry, ResumableRegistry, TokenServer
from tests.support.downloads import Download
from tests.support.forked import ForkedMirror
from tests.support.hooks import in_environment
from tests.support.needs import needs
from tests.support.processes import eventually
from tests.support.registry import Stored, stored

KNOWN = Credential(USER, PASSWORD)


class Image:
    """A stored archive with its index."""

    def __init__(self, image: Stored) -> None:
        self._image = image
        self.index: ArchiveIndex = image.build()

    def push(
        self,
        host: str,
        credential: Credential | None = KNOWN,
        *,
        repository: str = "site/pps",
        alike: Sequence[str] = (),
        ca: Path | None = None,
    ) -> Pushed:
        """Push it under the tag 1."""
        target = Target(host, repository, "1")
        stored_image = StoredImage(self._image.metadata, SharedFile(os.dup(self._image.fd)))
        tls = ssl.create_default_context(cafile=ca)

        async def run() -> Pushed:
            async with RemoteRegistry(target, credential, tls, may_be_plain=ca is None) as remote:
                return await pusher.push(self.index, stored_image, remote, "1", alike, Silence())

        return asyncio.run(run())


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, docker_archive: DockerArchive) -> Iterator[Image]:
    with stored(tmp_path_factory.mktemp("image"), docker_archive.path.read_bytes(), docker_archive.image_id) as found:
        yield Image(found)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[DockerRegistry]:
    with DockerRegistry.with_passwords(tmp_path / "registry") as registry:
        yield registry


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little time between two tries."""
    monkeypatch.setattr(remote_registry, "PAUSE", 0.01)


def pulled(tmp_path: Path, reference: str, *options: str) -> dict[str, Any]:
    """The manifest that skopeo gets, after it has checked all blobs."""
    into = tmp_path / "pulled"
    skopeo = needs("skopeo", "apt-get install skopeo")
    copy = [skopeo, "copy", f"--src-creds={USER}:{PASSWORD}", *options, f"docker://{reference}", f"dir:{into}"]
    done = subprocess.run(copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    manifest: dict[str, Any] = json.loads((into / "manifest.json").read_text())
    return manifest


def test_what_another_registry_gets_is_what_ours_serves(tmp_path: Path, image: Image, registry: DockerRegistry) -> None:
    blobs = len(image.index.blobs)
    first = image.push(registry.host)
    assert (first.sent, first.mounted, first.known) == (blobs, 0, 0)
    assert first.digest == image.index.manifest_digest
    assert first.bytes_sent == sum(blob.size for blob in image.index.blobs.values())
    reference = f"{registry.host}/site/pps"
    assert pulled(tmp_path, f"{reference}:1", "--src-tls-verify=false") == json.loads(image.index.manifest)
    assert len(registry.requests("PATCH")) == blobs

    again = image.push(registry.host)
    assert (again.sent, again.mounted, again.known, again.bytes_sent) == (0, 0, blobs, 0)
    assert len(registry.requests("PATCH")) == blobs


def test_what_lies_in_another_repository_of_the_registry_is_mounted(image: Image, registry: DockerRegistry) -> None:
    image.push(registry.host, repository="datarobot/elsewhere")
    sent = len(registry.requests("PATCH"))
    pushed = image.push(registry.host, alike=["datarobot/not-there", "datarobot/elsewhere"])
    assert (pushed.sent, pushed.mounted, pushed.known) == (0, len(image.index.blobs), 0)
    assert len(registry.requests("PATCH")) == sent
    # each upload that the registry began in place of a mount was given back
    assert len(registry.requests("DELETE")) == len(image.index.blobs)


def test_over_tls_with_a_private_authority(tmp_path: Path, image: Image) -> None:
    with DockerRegistry.with_passwords(tmp_path / "registry", tls=True) as registry:
        assert image.push(registry.host, ca=registry.cert).sent == len(image.index.blobs)
        with pytest.raises(MirrorError, match="is not trusted: name its authority by --ca-file"):
            target = Target(registry.host, "site/pps")
            asyncio.run(entered(RemoteRegistry(target, KNOWN, ssl.create_default_context(), may_be_plain=False)))


async def entered(remote: RemoteRegistry) -> None:
    async with remote:
        await remote.enter()


def test_by_plain_http_only_what_may_be_asked_so(registry: DockerRegistry) -> None:
    with pytest.raises(MirrorError, match=r"does not speak TLS: .* --tls-verify=false"):
        target = Target(registry.host, "site/pps")
        asyncio.run(entered(RemoteRegistry(target, KNOWN, ssl.create_default_context(), may_be_plain=False)))
    assert not registry.requests("GET")


@pytest.mark.parametrize(
    ("credential", "said"),
    [(None, "wants a user and a password: run docker login"), (Credential(USER, "wrong"), "lets this user not push")],
    ids=["none", "wrong"],
)
def test_who_may_not_push_is_told(
    image: Image, registry: DockerRegistry, credential: Credential | None, said: str
) -> None:
    with pytest.raises(MirrorError, match=said):
        image.push(registry.host, credential)


@pytest.mark.parametrize("how", ["password", "identity token"])
def test_a_token_server_gives_tokens_for_what_is_needed(tmp_path: Path, image: Image, how: str) -> None:
    with TokenServer(tmp_path / "tokens") as tokens, DockerRegistry(tmp_path / "registry", tokens.auth) as registry:
        credential = KNOWN if how == "password" else Credential("", "", tokens.identity)
        assert image.push(registry.host, credential).sent == len(image.index.blobs)
        assert set(tokens.scopes) == {"repository:site/pps:pull,push"}
        assert len(tokens.scopes) == 1, "a token is used again"
        image.push(registry.host, credential, repository="site/other", alike=["site/pps"])
        assert "repository:site/pps:pull" in tokens.scopes
        for wrong in (Credential(USER, "wrong"), Credential("", "", "wrong")):
            with pytest.raises(MirrorError, match="refuses this user and password"):
                image.push(registry.host, wrong)
        with pytest.raises(MirrorError, match="wants a user and a password"):
            image.push(registry.host, None)


class Relay:
    """A line to a port of this machine that is cut each time after so many bytes of the cuts; use as a context
    manager. Without cuts left it stays whole.
    """

    def __init__(self, port: int, cuts: Sequence[int]) -> None:
        self._port = port
        self._cuts = list(cuts)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> "Relay":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._port)) as server:
            back = threading.Thread(target=self._pass_back, args=(server, client), daemon=True)
            back.start()
            passed = 0
            with suppress(OSError):
                while data := client.recv(1 << 14):
                    server.sendall(data)
                    passed += len(data)
                    if self._cuts and passed > self._cuts[0]:
                        self._cuts.pop(0)
                        for end in (client, server):
                            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        break
            for end in (client, server):  # a socket that another thread reads from would stay open
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            back.join()

    def _pass_back(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 14):
                client.sendall(data)


@pytest.mark.usefixtures("quick")
def test_a_push_that_is_cut_ends_well_and_sends_no_finished_blob_again(
    tmp_path: Path, image: Image, registry: DockerRegistry
) -> None:
    with Relay(registry.port, [1 << 20, 1 << 20, 1 << 20]) as relay:
        pushed = image.push(relay.host)
    assert pushed.sent == len(image.index.blobs)
    reference = f"{registry.host}/site/pps:1"
    assert pulled(tmp_path, reference, "--src-tls-verify=false") == json.loads(image.index.manifest)
    assert len(registry.requests("PATCH")) == len(image.index.blobs) + 3


@pytest.mark.usefixtures("quick")
def test_an_upload_that_the_registry_has_kept_goes_on_where_it_was_cut(image: Image) -> None:
    with ResumableRegistry() as registry:
        with Relay(registry.port, [1 << 20, 1 << 20, 1 << 20]) as relay:
            image.push(relay.host)
        assert registry.begun == len(image.index.blobs)
        resumed = [part for part in registry.parts if part is not None]
        assert len(resumed) == 3
        assert sorted(resumed, key=lambda part: int(part.partition("-")[0])) == resumed
        assert {digest: len(data) for digest, data in registry.blobs.items()} == {
            digest: blob.size for digest, blob in image.index.blobs.items()
        }
        assert registry.manifests == {"1": image.index.manifest}


def test_a_blob_that_is_too_large_for_one_request_goes_in_chunks(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_registry, "CHUNK", 1 << 20)
    with ResumableRegistry(largest=1 << 20) as registry:
        image.push(registry.host)
        assert set(registry.blobs) == set(image.index.blobs)
        largest = max(blob.size for blob in image.index.blobs.values())
        assert len(registry.parts) >= largest >> 20


@pytest.mark.usefixtures("quick")
def test_a_registry_that_does_not_read_on_is_given_up(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_registry, "STALLED", 0.3)
    monkeypatch.setattr(remote_registry, "TRIES", 2)
    with socket.create_server(("127.0.0.1", 0)) as deaf, pytest.raises(MirrorError, match="the line broke"):
        image.push(f"127.0.0.1:{deaf.getsockname()[1]}")


@pytest.mark.usefixtures("quick")
def test_a_registry_that_is_away_is_named(image: Image) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        host = f"127.0.0.1:{nobody.getsockname()[1]}"
    with pytest.raises(MirrorError, match=f"{host} is no registry: the line broke"):
        image.push(host)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, docker_archive: DockerArchive) -> Path:
    """The configuration of a mirror that has stored the archive and does not run."""
    directory = tmp_path_factory.mktemp("mirror")
    path = directory / "config.toml"
    with Simulator.start([ImageSpec("v1", path=str(docker_archive.path))]) as simulator:
        path.write_text(f'[upstream]\nurl = "{simulator.api_url}"\n[store]\npath = "{directory / "store"}"\n')
        stored = run("pull", "-c", path, DATAROBOT_API_TOKEN=simulator.token)
    assert stored.returncode == 0, stored.stderr
    return path


def logged_in(home: Path, registry: DockerRegistry) -> dict[str, str]:
    """The environment of a user after `docker login`."""
    known = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (home / ".docker").mkdir(parents=True)
    (home / ".docker" / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": known}}}))
    return {"HOME": str(home), "DOCKER_CONFIG": str(home / ".docker")}


def test_the_command_pushes_the_current_image_under_its_version(
    tmp_path: Path, config: Path, registry: DockerRegistry, docker_archive: DockerArchive
) -> None:
    environ = logged_in(tmp_path / "home", registry)
    pushed = run("push", "-c", config, f"{registry.host}/site/pps", **environ)
    assert pushed.returncode == 0, pushed.stderr
    (said,) = [line for line in pushed.stdout.splitlines() if " blobs pushed " in line]
    assert said.startswith(f"{registry.host}/site/pps:")
    tag = said.split(" ")[0].rpartition(":")[2]
    manifest = pulled(tmp_path, f"{registry.host}/site/pps:{tag}", "--src-tls-verify=false")
    assert manifest["config"]["digest"] == f"sha256:{docker_archive.image_id}".replace("sha256:sha256:", "sha256:")
    again = run("push", "-c", config, "--json", f"{registry.host}/site/pps:stable", "current", **environ)
    assert again.returncode == 0, again.stderr
    (described,) = json.loads(again.stdout)
    assert described["target"] == f"{registry.host}/site/pps:stable"
    assert (described["blobsPushed"], described["bytesPushed"]) == (0, 0)
    assert described["blobsThere"] == len(manifest["layers"]) + 1


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["harbor"], 2, "expected REGISTRY/REPOSITORY[:TAG]"),
        (["{host}/site/pps", "0123456789"], 1, "no stored image has a hash that begins with 0123456789"),
        (["{host}/site/pps"], 1, "wants a user and a password: run docker login, or podman login"),
        (["--ca-file", "/nowhere/at-all", "{host}/site/pps"], 2, "--ca-file /nowhere/at-all cannot be read"),
        (["--tls-verify", "maybe", "{host}/site/pps"], 2, "expected true or false"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_the_command_says_in_one_line_why_nothing_is_pushed(
    tmp_path: Path, config: Path, registry: DockerRegistry, arguments: list[str], status: int, said: str
) -> None:
    words = [word.format(host=registry.host) for word in arguments]
    done = run("push", "-c", config, *words, HOME=str(tmp_path), DOCKER_CONFIG=str(tmp_path))
    assert done.returncode == status
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1 or status == 2
    assert not registry.requests("PATCH")


def test_the_command_trusts_anybody_only_when_it_is_told_to(tmp_path: Path, config: Path) -> None:
    with DockerRegistry.with_passwords(tmp_path / "registry", tls=True) as registry:
        environ = logged_in(tmp_path / "home", registry)
        target = f"{registry.host}/site/pps:1"
        refused = run("push", "-c", config, target, **environ)
        assert refused.returncode == 1
        assert "is not trusted: name its authority by --ca-file" in refused.stderr
        assert not registry.requests("PATCH")
        pushed = run("push", "-c", config, "--tls-verify=false", target, **environ)
        assert pushed.returncode == 0, pushed.stderr
        again = run("push", "-c", config, "--ca-file", str(registry.cert), "--json", target, **environ)
        assert json.loads(again.stdout)[0]["blobsPushed"] == 0


def test_what_is_no_docker_archive_cannot_be_pushed(tmp_path: Path, registry: DockerRegistry) -> None:
    config = tmp_path / "config.toml"
    with Simulator.start([ImageSpec("v1", size=1 << 20)]) as simulator:
        config.write_text(f'[upstream]\nurl = "{simulator.api_url}"\n[store]\npath = "{tmp_path / "store"}"\n')
        assert run("pull", "-c", config, DATAROBOT_API_TOKEN=simulator.token).returncode == 0
    done = run("push", "-c", config, f"{registry.host}/site/pps:1", **logged_in(tmp_path / "home", registry))
    assert done.returncode == 1
    assert "cannot be pushed: it is neither a tar nor gzip of one" in done.stderr


def test_a_hook_pushes_each_new_image_and_says_how_it_went(
    tmp_path: Path, registry: DockerRegistry, docker_archive: DockerArchive
) -> None:
    hooks = in_environment({"name": "site", "push": f"{registry.host}/site/pps:current"})
    environ = {**logged_in(tmp_path / "home", registry), **hooks}
    with Simulator.start([ImageSpec("v1", path=str(docker_archive.path))]) as simulator:
        store = {"DATAROBOT_API_TOKEN": simulator.token, "PPS_MIRROR__UPSTREAM__URL": simulator.api_url}
        with ForkedMirror(
            tmp_path / "mirror", simulator.api_url, {"registry": {"enabled": True}}, environ={**environ, **store}
        ) as mirror:
            tried = run("hooks", "test", "site", "-c", mirror.config_file, **environ)
            assert (tried.returncode, tried.stderr) == (0, "")
            assert f"{registry.host} answers, and lets this user in" in tried.stdout
            assert not registry.requests("PATCH")
            with Download(mirror.image_url) as download:
                assert download.status == 200
                download.read(docker_archive.size)
            eventually(lambda: registry.requests("PUT", "/manifests/current"), 60, "the push")
            eventually(lambda: mirror.events("hook.delivered"), what="the hook's end")
    manifest = pulled(tmp_path, f"{registry.host}/site/pps:current", "--src-tls-verify=false")
    assert manifest["config"]["digest"] == docker_archive.image_id


def test_a_hook_that_may_not_push_is_tried_again(tmp_path: Path, registry: DockerRegistry) -> None:
    hooks = in_environment({"name": "site", "push": f"{registry.host}/site/pps"})
    done = run("hooks", "test", "site", PPS_MIRROR__STORE__PATH=str(tmp_path), HOME=str(tmp_path), **hooks)
    assert done.returncode == 1
    assert "wants a user and a password: run docker login" in done.stderr + done.stdout
