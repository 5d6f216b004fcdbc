"""Pulling while things go wrong: the image is not here yet, upstream is away, files are damaged, processes die."""

import fcntl
import hashlib
import http.client
import json
import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mirror.simulator.client import TOKEN, Fault, ImageSpec, Simulator
from mirror.store.read_locks import is_read
from tests.support.by_hand import lay_out
from tests.support.downloads import Download
from tests.support.forked import ForkedMirror, Step, Steps
from tests.support.layouts import Layout
from tests.support.processes import MirrorProcess, eventually
from tests.support.pulls import REPOSITORY, Answer, archive, basic, manifest, metric, pullable, request, spec
from tests.support.rot import image_file
from tests.support.tokens import write_tokens

V1, V2 = "7.0.0-r1736", "8.0.0-r1800"
MIB = 1 << 20


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[ImageSpec]:
    """Two releases that share their first layer; the second one is newer."""
    directory = tmp_path_factory.mktemp("archives")
    first, second = archive(directory, V1), archive(directory, V2)
    return [spec(first, V1), spec(second, V2, created="2026-01-02T03:04:05Z")]


def ask(mirror: MirrorProcess, path: str, method: str = "GET", token: str = TOKEN) -> Answer:
    return request(mirror, f"{REPOSITORY}/{path}", method, authorization=basic(token))


def layers(given: Answer) -> list[str]:
    return [layer["digest"] for layer in given.json["layers"]]


def status(mirror: MirrorProcess) -> Any:
    with urllib.request.urlopen(f"{mirror.admin_url}/api/status") as answer:
        return json.load(answer)


# Not here yet


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("tag", ["latest", V1])
def test_the_first_pull_begins_the_fill_and_is_told_to_come_back(
    tmp_path: Path, images: list[ImageSpec], method: str, tag: str
) -> None:
    with pullable(tmp_path, images, patience=0.5) as (simulator, mirror):
        size = simulator.image_size(images[0].name)
        simulator.fault(Fault("store", hang_after=size // 2))
        first = ask(mirror, f"manifests/{tag}", method)
        assert first.status == 429
        assert 2 <= int(first.headers["Retry-After"]) <= 60
        simulator.wait_held()

        def halfway() -> bool:
            again = ask(mirror, f"manifests/{tag}")
            assert (again.status, again.code) == (429, "TOOMANYREQUESTS")
            return re.match(r"the image is being fetched: (49|50) %", again.message) is not None

        eventually(halfway, 20, "half of the image")
        simulator.release()
        assert manifest(mirror, tag).headers["Docker-Content-Digest"]
        assert simulator.counters().image_requests == 1


def test_a_pull_of_an_image_that_comes_soon_waits_for_it(tmp_path: Path, images: list[ImageSpec]) -> None:
    with pullable(tmp_path, images, patience=30) as (_, mirror):
        assert ask(mirror, "manifests/latest").status == 200


def test_no_request_waits_long_for_an_upstream_that_is_slow(tmp_path: Path, images: list[ImageSpec]) -> None:
    with Simulator.start(images[:1]) as simulator:
        mirror = ForkedMirror(tmp_path, simulator.api_url, {"registry": {"enabled": True}})
        mirror.constants = {"mirror.http.registry_api:ANSWER": 0.5}
        with mirror:
            simulator.fault(Fault("metadata", hold=True))
            answer = ask(mirror, "manifests/latest")
            assert (answer.status, answer.code) == (503, "UNAVAILABLE")
            assert "Retry-After" in answer.headers
            simulator.release()


def test_other_tags_digests_and_blobs_begin_nothing(tmp_path: Path, images: list[ImageSpec]) -> None:
    nothing = "sha256:" + "0" * 64
    with pullable(tmp_path, images) as (simulator, mirror):
        for path in (f"manifests/{V2}", f"manifests/{nothing}", f"blobs/{nothing}", "tags/list"):
            assert ask(mirror, path).status == (200 if path == "tags/list" else 404)
        assert simulator.counters().image_requests == 0


def test_what_upstream_cannot_give_is_unavailable(tmp_path: Path, images: list[ImageSpec]) -> None:
    with pullable(tmp_path, images, {"upstream": {"fill_retry": "0s"}}) as (simulator, mirror):
        simulator.fault(Fault("store", status=404, times=None))
        answer = ask(mirror, "manifests/latest")
        assert (answer.status, answer.code) == (503, "UNAVAILABLE")


def of_the_same_version(images: list[ImageSpec]) -> ImageSpec:
    """The second image, as if it had the first one's file name."""
    return replace(images[1], name="newer", filename=images[0].filename)


@pytest.mark.parametrize("tag", ["latest", V1])
def test_a_new_image_is_given_when_it_can_be_pulled_with_when_stored(
    tmp_path: Path, images: list[ImageSpec], tag: str
) -> None:
    newer = of_the_same_version(images)
    sections = {"upstream": {"rollover": "when_stored", "metadata_ttl": "0s"}}
    with pullable(tmp_path, [images[0], newer], sections) as (simulator, mirror):
        old = manifest(mirror, tag)
        simulator.roll_over("newer")
        simulator.fault(Fault("store", hang_after=MIB // 2))
        assert ask(mirror, f"manifests/{tag}").body == old.body
        simulator.wait_held()
        assert ask(mirror, f"manifests/{tag}").body == old.body
        simulator.release()
        eventually(lambda: ask(mirror, f"manifests/{tag}").json["config"]["digest"] == newer.image_id, 30, "the switch")


@pytest.mark.parametrize("tag", ["latest", V1])
def test_a_new_image_is_waited_for_with_at_once(tmp_path: Path, images: list[ImageSpec], tag: str) -> None:
    newer = of_the_same_version(images)
    sections = {"upstream": {"metadata_ttl": "0s"}}
    with pullable(tmp_path, [images[0], newer], sections, patience=0.5) as (simulator, mirror):
        old = manifest(mirror, tag)
        simulator.roll_over("newer")
        simulator.fault(Fault("store", hang_after=MIB // 2))
        assert ask(mirror, f"manifests/{tag}").status == 429
        assert ask(mirror, f"manifests/{old.headers['Docker-Content-Digest']}").body == old.body
        simulator.wait_held()
        simulator.release()
        assert manifest(mirror, tag).json["config"]["digest"] == newer.image_id


# Who may pull


def test_while_upstream_is_away_who_was_let_in_pulls_and_others_are_told_so(
    tmp_path: Path, images: list[ImageSpec]
) -> None:
    with pullable(tmp_path, images, {"auth": {"ttl": "0s"}}) as (simulator, mirror):
        given = manifest(mirror)
        simulator.fault(Fault("metadata", status=503, times=None))
        assert ask(mirror, "manifests/latest").body == given.body
        assert ask(mirror, f"blobs/{layers(given)[0]}").status == 200
        unknown = ask(mirror, "manifests/latest", token="somebody-else's-token")
        assert (unknown.status, unknown.code) == (503, "UNAVAILABLE")
        assert "Retry-After" in unknown.headers


def test_a_token_that_upstream_refuses_from_now_on_gets_no_blob(tmp_path: Path, images: list[ImageSpec]) -> None:
    with pullable(tmp_path, images, {"auth": {"ttl": "0s"}}) as (simulator, mirror):
        digest = layers(manifest(mirror))[0]
        simulator.set_tokens(["another"], forbidden=["forbidden-token"])
        assert (ask(mirror, f"blobs/{digest}").code, ask(mirror, "manifests/latest").status) == ("UNAUTHORIZED", 401)
        denied = ask(mirror, f"blobs/{digest}", token="forbidden-token")
        assert (denied.status, denied.code) == (403, "DENIED")


def test_a_site_s_own_tokens_are_passwords(tmp_path: Path, images: list[ImageSpec]) -> None:
    tokens = write_tokens(tmp_path / "tokens", site="the-site-s-own-token")
    sections = {
        "auth": {"mode": "tokens", "tokens_file": str(tokens)},
        "upstream": {"token_file": own_token(tmp_path)},
    }
    with pullable(tmp_path / "mirror", images, sections) as (_, mirror):
        eventually(lambda: ask(mirror, "manifests/latest", token="the-site-s-own-token").status == 200, 30, "the pull")
        assert ask(mirror, "manifests/latest", token="another").code == "UNAUTHORIZED"
        assert request(mirror, "/v2/", authorization=None).headers["WWW-Authenticate"] == 'Basic realm="pps-mirror"'


def test_an_open_mirror_wants_no_login(tmp_path: Path, images: list[ImageSpec]) -> None:
    sections = {"auth": {"mode": "open"}, "upstream": {"token_file": own_token(tmp_path)}}
    with pullable(tmp_path / "mirror", images, sections) as (_, mirror):
        path = f"{REPOSITORY}/manifests/latest"
        eventually(lambda: request(mirror, path, authorization=None).status == 200, 30, "the pull")


def own_token(directory: Path) -> str:
    file = directory / "own-token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    return str(file)


# The index


STEPS = ("seek-index", "registry.json")


@pytest.mark.parametrize("name", STEPS)
def test_a_mirror_that_dies_while_it_indexes_begins_again(tmp_path: Path, images: list[ImageSpec], name: str) -> None:
    with Simulator.start(images[:1]) as simulator:
        image_hash = simulator.image_sha256(images[0].name)
        mirror = ForkedMirror(tmp_path, simulator.api_url, {"registry": {"enabled": True}})
        directory = f"images/{image_hash}"
        die_at = next(
            step for step in steps_of_an_index(tmp_path / "before", simulator) if step.target == f"{directory}/{name}"
        )
        mirror.steps = Steps(tmp_path / "steps", die_at)
        mirror.steps.log.touch()
        try:
            mirror.start()
            with Download(mirror.image_url) as download:
                download.read_all()
            assert mirror.wait_dead() == -9
        finally:
            if mirror.alive():
                mirror.kill()
        assert not (mirror.store / directory / "registry.json").exists()
        mirror.steps = None
        with mirror:
            manifest(mirror)


def test_a_mirror_that_is_stopped_while_it_indexes_stops_at_once_and_begins_again(
    tmp_path: Path, images: list[ImageSpec]
) -> None:
    with Simulator.start(images[:1]) as simulator:
        mirror = ForkedMirror(tmp_path, simulator.api_url, {"registry": {"enabled": True}})
        mirror.constants = {"mirror.registry.tar_stream:PIECE": 16}  # which takes long
        with mirror:
            with Download(mirror.image_url) as download:
                download.read_all()
            eventually(lambda: '"state": "indexing"' in json.dumps(status(mirror)["images"]), 10, "the indexing")
            mirror.stop()
            assert not image_file(mirror, simulator, images[0].name).with_name("registry.json").exists()
            assert "Traceback" not in mirror.log()
            mirror.constants = {}
            mirror.start()
            manifest(mirror)


def steps_of_an_index(directory: Path, simulator: Simulator) -> list[Step]:
    """What is made durable while an image is indexed, in order."""
    mirror = ForkedMirror(directory, simulator.api_url, {"registry": {"enabled": True}})
    mirror.steps = Steps(directory / "steps")
    mirror.steps.log.touch()
    with mirror:
        manifest(mirror)
        return mirror.steps.read()


@pytest.fixture(scope="module")
def two(
    tmp_path_factory: pytest.TempPathFactory, images: list[ImageSpec]
) -> Iterator[tuple[Simulator, ForkedMirror, Answer, Answer]]:
    """A mirror with both releases, and their manifests."""
    sections = {"upstream": {"metadata_ttl": "0s"}}
    with pullable(tmp_path_factory.mktemp("two"), images, sections) as (simulator, mirror):
        first = manifest(mirror, V1)
        simulator.roll_over(images[1].name)
        yield simulator, mirror, first, manifest(mirror, V2)


@pytest.mark.parametrize("damage", ["truncated", "swapped", "garbage", "missing", "of another image"])
@pytest.mark.parametrize("name", STEPS)
def test_an_index_that_is_damaged_is_made_again(
    two: tuple[Simulator, ForkedMirror, Answer, Answer], images: list[ImageSpec], name: str, damage: str
) -> None:
    simulator, mirror, given, _ = two
    first, second = (mirror.store / "images" / simulator.image_sha256(each.name) for each in images)
    right = {each: (first / each).read_bytes() for each in STEPS}
    match damage:
        case "truncated":
            (first / name).write_bytes(right[name][:-10])
        case "swapped":
            for each, other in (STEPS, STEPS[::-1]):
                (first / each).write_bytes(right[other])
        case "garbage":
            (first / name).write_bytes(b"garbage")
        case "missing":
            (first / name).unlink()
        case "of another image":
            (first / name).write_bytes((second / name).read_bytes())
    eventually(lambda: all((first / each).exists() for each in STEPS), 30, "the index")
    eventually(lambda: (first / name).read_bytes() == right[name], 30, "the right index")
    assert manifest(mirror, V1).body == given.body
    digest = layers(given)[-1]
    eventually(lambda: ask(mirror, f"blobs/{digest}").status == 200, 10, "the layer")
    assert f"sha256:{hashlib.sha256(ask(mirror, f'blobs/{digest}').body).hexdigest()}" == digest


def test_an_index_that_rots_while_it_is_used_is_made_again_after_the_first_pull_that_it_fails(
    tmp_path: Path, images: list[ImageSpec]
) -> None:
    with Simulator.start(images[:1]) as simulator:
        mirror = ForkedMirror(tmp_path, simulator.api_url, {"registry": {"enabled": True}})
        mirror.constants = {"mirror.registry.tar_stream:SPACING": 1 << 14}
        with mirror:
            digest = layers(manifest(mirror))[-1]
            path = mirror.store / "images" / simulator.image_sha256(images[0].name) / "seek-index"
            right, times = path.read_bytes(), path.stat()
            with path.open("r+b") as file:  # as a disk does it: in place, and no time tells
                file.write(bytes(len(right)))
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            with pytest.raises((ConnectionError, http.client.IncompleteRead)):
                ask(mirror, f"blobs/{digest}")
            eventually(lambda: path.read_bytes() == right, 30, "the right index")

            def pulled() -> bool:
                try:
                    return f"sha256:{hashlib.sha256(ask(mirror, f'blobs/{digest}').body).hexdigest()}" == digest
                except (ConnectionError, http.client.IncompleteRead):
                    return False

            eventually(pulled, 10, "the layer")
            assert simulator.counters().image_requests == 1


def test_what_is_no_archive_is_no_image_here_and_can_be_downloaded(tmp_path: Path) -> None:
    with pullable(tmp_path, [ImageSpec("random", size=MIB)]) as (simulator, mirror):
        with Download(mirror.image_url) as download:
            assert download.read_all().body == simulator.read("random")
        eventually(lambda: "index.refused" in mirror.actions(), 30, "the refusal")
        answer = ask(mirror, "manifests/latest")
        assert (answer.status, answer.code) == (404, "MANIFEST_UNKNOWN")
        assert "cannot be pulled" in answer.message
        eventually(lambda: "cannot be served" in str(status(mirror)["health"]), 10, "being degraded")
        (image,) = status(mirror)["images"]
        assert image["archive"]["state"] == "refused"
        assert metric(mirror, "pps_mirror_indexes_total") == 1
        mirror.stop()
        mirror.start()
        assert ask(mirror, "manifests/latest").code == "MANIFEST_UNKNOWN"
        assert metric(mirror, "pps_mirror_indexes_total") == 0  # it was not read again


def test_an_image_that_was_there_before_is_indexed(tmp_path: Path, images: list[ImageSpec]) -> None:
    with Simulator.start(images[:1]) as simulator:
        with ForkedMirror(tmp_path, simulator.api_url) as mirror, Download(mirror.image_url) as download:
            download.read_all()
        with ForkedMirror(tmp_path, simulator.api_url, {"registry": {"enabled": True}}) as mirror:
            manifest(mirror)
        assert simulator.counters().image_requests == 1


def test_one_mirror_of_a_store_indexes_and_the_other_says_that_it_is_on_its_way(
    tmp_path: Path, images: list[ImageSpec]
) -> None:
    with Simulator.start(images[:1]) as simulator:
        with ForkedMirror(tmp_path, simulator.api_url) as mirror, Download(mirror.image_url) as download:
            download.read_all()
        directory = os.open(mirror.store / "images" / simulator.image_sha256(images[0].name), os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)  # as a mirror does that indexes it
            mirror = ForkedMirror(tmp_path, simulator.api_url, {"registry": {"enabled": True}})
            mirror.constants = {"mirror.registry.pull:WAIT_SECONDS": 1.5}
            with mirror:
                answer = ask(mirror, "manifests/latest")
                assert (answer.status, answer.code) == (429, "TOOMANYREQUESTS")
                assert answer.message == "the image is here, and is indexed soon; ask again"
                fcntl.flock(directory, fcntl.LOCK_UN)
                manifest(mirror)
        finally:
            os.close(directory)


def test_an_image_that_was_laid_out_by_hand_is_verified_and_indexed(tmp_path: Path, images: list[ImageSpec]) -> None:
    image = Path(images[0].path).read_bytes()
    lay_out(tmp_path / "store", image, filename=images[0].filename, dockerImageId=images[0].image_id)
    sections: dict[str, dict[str, object]] = {"registry": {"enabled": True}, "auth": {"mode": "open"}}
    with ForkedMirror(tmp_path, "", sections) as mirror:
        assert manifest(mirror, V1).json["config"]["digest"] == images[0].image_id


def test_an_image_that_was_replaced_by_hand_is_verified_again_or_fetched(
    tmp_path: Path, images: list[ImageSpec]
) -> None:
    with pullable(tmp_path, images[:1]) as (simulator, mirror):
        given = manifest(mirror)
        directory = mirror.store / "images" / simulator.image_sha256(images[0].name)
        image = (directory / "image").read_bytes()
        for put, fetched in ((image, 1), (bytes(len(image)), 2)):
            (directory / "new").write_bytes(put)
            (directory / "new").replace(directory / "image")
            eventually(lambda: ask(mirror, f"blobs/{layers(given)[0]}").status == 404, 10, "a look at the file")
            assert manifest(mirror).body == given.body
            for digest in layers(given):
                blob = ask(mirror, f"blobs/{digest}")
                assert f"sha256:{hashlib.sha256(blob.body).hexdigest()}" == digest
            assert simulator.counters().image_requests == fetched


# Sharing, removing, many at once


def test_a_layer_of_two_releases_is_one_blob_that_either_gives(
    two: tuple[Simulator, ForkedMirror, Answer, Answer], images: list[ImageSpec]
) -> None:
    simulator, mirror, old, new = two
    assert manifest(mirror, V1).body == old.body
    assert manifest(mirror, V2).body == new.body == manifest(mirror).body
    assert layers(old)[0] == layers(new)[0]
    assert layers(old)[1] != layers(new)[1]
    assert [tag for tag in ask(mirror, "tags/list").json["tags"] if "-r" in tag] == [V1, V2]
    run(mirror, "rm", "--force", simulator.image_sha256(images[0].name))
    eventually(lambda: ask(mirror, f"manifests/{V1}").status == 404, 10, "the end of the tag")
    assert ask(mirror, f"blobs/{layers(old)[0]}").status == 200
    assert ask(mirror, f"blobs/{layers(old)[1]}").code == "BLOB_UNKNOWN"


def run(mirror: MirrorProcess, *command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mirror.cli.main", *command, "-c", str(mirror.config_file)],
        env=mirror.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Simulator, ForkedMirror, str]]:
    """A layer that is longer than what sockets hold."""
    directory = tmp_path_factory.mktemp("large")
    made = archive(directory, V1, Layout.OCI, padding=24 * MIB)
    with pullable(directory / "mirror", [spec(made, V1)]) as (simulator, mirror):
        yield simulator, mirror, layers(manifest(mirror))[0]


def test_fifty_pulls_at_once_ask_upstream_for_one_image(large: tuple[Simulator, ForkedMirror, str]) -> None:
    simulator, mirror, digest = large
    url = f"{mirror.url}{REPOSITORY}/blobs/{digest}"
    most = 0
    ended = threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.05):
            most = max(most, mirror.resident())

    def pull(number: int) -> str:
        command = f"curl -sSf -u token:{TOKEN} {url} | sha256sum"
        return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout.split()[0]

    watching = threading.Thread(target=watch)
    watching.start()
    with ThreadPoolExecutor(50) as pool:
        found = set(pool.map(pull, range(50)))
    ended.set()
    watching.join()
    assert found == {digest.removeprefix("sha256:")}
    assert simulator.counters().image_requests == 1
    assert most < 150 * MIB


def test_an_image_whose_layer_is_being_pulled_is_not_evicted_and_is_cut_when_removed_by_force(
    large: tuple[Simulator, ForkedMirror, str],
) -> None:
    simulator, mirror, digest = large
    image = mirror.store / "images" / simulator.image_sha256(f"v{V1}") / "image"
    with Download(f"{mirror.url}{REPOSITORY}/blobs/{digest}") as download:
        download.read(MIB)
        assert is_read(image)
        run(mirror, "rm", "--force", simulator.image_sha256(f"v{V1}"))
        assert download.read_all().ended == "reset"


def test_workers_all_know_what_one_of_them_indexes(tmp_path: Path, images: list[ImageSpec]) -> None:
    with pullable(tmp_path, images[:1], {"server": {"workers": 2}, "log": {"format": "json"}}) as (simulator, mirror):
        given = manifest(mirror)
        for _ in range(10):
            assert ask(mirror, "manifests/latest").body == given.body
        assert mirror.settled.actions().count("index.ready") == 1
        assert simulator.counters().image_requests == 1


@pytest.mark.parametrize("layout", Layout)
def test_every_layout_is_given_to_the_byte(tmp_path: Path, layout: Layout) -> None:
    made = archive(tmp_path, V1, layout)
    with pullable(tmp_path / "mirror", [spec(made, V1)]) as (_, mirror):
        given = manifest(mirror)
        assert given.json["config"]["digest"] == made.image_id
        for blob in (given.json["config"], *given.json["layers"]):
            body = ask(mirror, f"blobs/{blob['digest']}").body
            assert (f"sha256:{hashlib.sha256(body).hexdigest()}", len(body)) == (blob["digest"], blob["size"])
