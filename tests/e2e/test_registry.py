"""The registry, section by section of the OCI Distribution Specification 1.1, and what the mirror adds to it."""

import hashlib
import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from mirror.simulator.client import TOKEN, Simulator
from tests.support.archive import NAME
from tests.support.forked import ForkedMirror
from tests.support.processes import eventually
from tests.support.pulls import REPOSITORY, Answer, archive, basic, manifest, metric, pullable, request, spec
from tests.support.raw import say

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
VERSION = "7.0.0-r1736"


@dataclass(frozen=True, slots=True)
class Offered:
    """A mirror whose one image can be pulled, and that image's manifest."""

    simulator: Simulator
    mirror: ForkedMirror
    image_id: str
    given: Answer

    def ask(self, path: str, method: str = "GET", **headers: str) -> Answer:
        return request(self.mirror, f"{REPOSITORY}/{path}", method, headers=headers)

    @property
    def digest(self) -> str:
        return self.given.headers["Docker-Content-Digest"]

    @property
    def layers(self) -> list[dict[str, str]]:
        return list(self.given.json["layers"])


@pytest.fixture(scope="module")
def offered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Offered]:
    directory = tmp_path_factory.mktemp("registry")
    made = archive(directory, VERSION)
    with pullable(directory / "mirror", [spec(made, VERSION)]) as (simulator, mirror):
        yield Offered(simulator, mirror, made.image_id, manifest(mirror))


def sha256(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


# Determining Support


@pytest.mark.parametrize("path", ["/v2/", "/v2"])
def test_determining_support(offered: Offered, path: str) -> None:
    answer = request(offered.mirror, path)
    assert (answer.status, answer.json) == (200, {})
    assert answer.headers["Docker-Distribution-API-Version"] == "registry/2.0"


# Pulling manifests


@pytest.mark.parametrize("reference", ["latest", VERSION, "digest", "short id"])
def test_pulling_manifests(offered: Offered, reference: str) -> None:
    named = {"digest": offered.digest, "short id": offered.image_id[len("sha256:") :][:12]}.get(reference, reference)
    answer = offered.ask(f"manifests/{named}", Accept="application/vnd.oci.image.manifest.v1+json")
    assert answer.status == 200
    assert answer.body == offered.given.body
    assert answer.headers["Content-Type"] == MANIFEST == answer.json["mediaType"]
    assert answer.headers["Docker-Content-Digest"] == sha256(answer.body)
    assert answer.headers["ETag"] == f'"{sha256(answer.body)}"'
    assert answer.headers["Content-Length"] == str(len(answer.body))
    assert answer.json["config"]["digest"] == offered.image_id
    assert answer.headers["Docker-Distribution-API-Version"] == "registry/2.0"


def test_pulling_manifests_the_client_has_already(offered: Offered) -> None:
    answer = offered.ask("manifests/latest", If_None_Match=f'"{offered.digest}"')
    assert (answer.status, answer.body) == (304, b"")


def test_pulling_manifests_in_ranges(offered: Offered) -> None:
    """containerd 2.1.0 to 2.1.4 sends `Range` with everything, and wants an exact 206."""
    size = len(offered.given.body)
    answer = offered.ask(f"manifests/{offered.digest}", Range="bytes=0-")
    assert (answer.status, answer.body) == (206, offered.given.body)
    assert answer.headers["Content-Range"] == f"bytes 0-{size - 1}/{size}"


@pytest.mark.parametrize(
    "reference", ["8.0.0", "sha256:" + "0" * 64, "sha256:x", "sha512:" + "0" * 128, "no%20tag", "%2e"]
)
def test_pulling_manifests_that_are_not_here(offered: Offered, reference: str) -> None:
    answer = offered.ask(f"manifests/{reference}")
    assert (answer.status, answer.code) == (404, "MANIFEST_UNKNOWN")
    assert offered.simulator.counters().image_requests == 1


# Pulling blobs


def test_pulling_blobs(offered: Offered) -> None:
    for blob in (offered.given.json["config"], *offered.layers):
        answer = offered.ask(f"blobs/{blob['digest']}")
        assert answer.status == 200
        assert (sha256(answer.body), len(answer.body)) == (blob["digest"], blob["size"])
        assert answer.headers["Docker-Content-Digest"] == blob["digest"]
        assert answer.headers["ETag"] == f'"{blob["digest"]}"'
        assert answer.headers["Content-Length"] == str(blob["size"])
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert answer.headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize(("asked", "start", "stop"), [("0-9", 0, 10), ("1000-", 1000, None), ("-7", -7, None)])
def test_pulling_blobs_in_ranges(offered: Offered, asked: str, start: int, stop: int | None) -> None:
    layer = offered.layers[0]
    whole = offered.ask(f"blobs/{layer['digest']}").body
    answer = offered.ask(f"blobs/{layer['digest']}", Range=f"bytes={asked}")
    assert (answer.status, answer.body) == (206, whole[start:stop])
    first = start % len(whole)
    last = (stop or len(whole)) - 1
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{len(whole)}"


def test_pulling_blobs_in_a_range_that_begins_after_the_end(offered: Offered) -> None:
    layer = offered.layers[0]
    answer = offered.ask(f"blobs/{layer['digest']}", Range=f"bytes={layer['size']}-")
    assert (answer.status, answer.code) == (416, "UNSUPPORTED")
    assert answer.headers["Content-Range"] == f"bytes */{layer['size']}"


def test_pulling_blobs_on_a_condition(offered: Offered) -> None:
    digest = offered.layers[0]["digest"]
    assert offered.ask(f"blobs/{digest}", If_None_Match=f'"{digest}"').status == 304
    assert offered.ask(f"blobs/{digest}", If_Match='"another"').status == 412
    assert offered.ask(f"blobs/{digest}", If_Range='"another"', Range="bytes=0-9").status == 200


@pytest.mark.parametrize("digest", ["sha256:" + "0" * 64, "sha256:x", "latest", "uploads"])
def test_pulling_blobs_that_are_not_here(offered: Offered, digest: str) -> None:
    answer = offered.ask(f"blobs/{digest}")
    assert (answer.status, answer.code) == (404, "BLOB_UNKNOWN")


# Checking if content exists in the registry


def test_checking_if_content_exists_in_the_registry(offered: Offered) -> None:
    for path in (f"manifests/{VERSION}", f"manifests/{offered.digest}", f"blobs/{offered.layers[0]['digest']}"):
        head, get = offered.ask(path, "HEAD"), offered.ask(path)
        assert (head.status, head.body) == (200, b"")
        left_out = {"Date", "X-Request-ID"}
        assert {k: v for k, v in head.headers.items() if k not in left_out} == {
            k: v for k, v in get.headers.items() if k not in left_out
        }


def test_checking_if_content_exists_that_does_not(offered: Offered) -> None:
    for path in ("manifests/8.0.0", "blobs/sha256:" + "0" * 64):
        assert offered.ask(path, "HEAD").status == 404


# Listing Tags


def test_listing_tags(offered: Offered) -> None:
    tags = sorted([VERSION, offered.image_id[len("sha256:") :][:12], "latest"])
    answer = offered.ask("tags/list")
    assert (answer.status, answer.json) == (200, {"name": NAME, "tags": tags})
    assert answer.headers["Content-Type"] == "application/json"
    assert "Link" not in answer.headers


def test_listing_tags_page_by_page(offered: Offered) -> None:
    tags = offered.ask("tags/list").json["tags"]
    first = offered.ask("tags/list?n=2")
    assert first.json["tags"] == tags[:2]
    assert first.headers["Link"] == f'<{REPOSITORY}/tags/list?n=2&last={tags[1]}>; rel="next"'
    second = request(offered.mirror, first.headers["Link"].partition(">")[0].removeprefix("<"))
    assert (second.json["tags"], second.headers.get("Link")) == (tags[2:], None)
    none = offered.ask("tags/list?n=0")
    assert (none.json["tags"], none.headers.get("Link")) == ([], None)
    assert offered.ask("tags/list?last=zzz").json["tags"] == []


# Listing Referrers


def test_listing_referrers(offered: Offered) -> None:
    answer = offered.ask("referrers/sha256:" + "0" * 64)
    assert (answer.status, answer.json["manifests"], answer.json["schemaVersion"]) == (200, [], 2)
    assert answer.headers["Content-Type"] == "application/vnd.oci.image.index.v1+json" == answer.json["mediaType"]


# Error Codes


@pytest.mark.parametrize("path", ["other/manifests/latest", "other/tags/list", "x/y/blobs/sha256:" + "0" * 64, "x"])
def test_error_codes_of_a_name_that_is_not_here(offered: Offered, path: str) -> None:
    answer = request(offered.mirror, f"/v2/{path}")
    assert (answer.status, answer.code) == (404, "NAME_UNKNOWN")
    assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", ["blobs/uploads/", "manifests/latest", "blobs/sha256:" + "0" * 64])
def test_error_codes_of_a_write(offered: Offered, method: str, path: str) -> None:
    answer = request(offered.mirror, f"{REPOSITORY}/{path}", method, body=b"{}")
    assert (answer.status, answer.code, answer.headers["Allow"]) == (405, "UNSUPPORTED", "GET, HEAD")


def test_error_codes_without_a_login(offered: Offered) -> None:
    for path in ("/v2/", f"{REPOSITORY}/manifests/latest", f"{REPOSITORY}/blobs/{offered.image_id}", "/v2/_catalog"):
        answer = request(offered.mirror, path, authorization=None)
        assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
        assert answer.headers["WWW-Authenticate"] == 'Basic realm="pps-mirror"'
        assert answer.headers["Docker-Distribution-API-Version"] == "registry/2.0"


# What is not in the specification


def test_the_catalog_has_the_one_repository(offered: Offered) -> None:
    assert request(offered.mirror, "/v2/_catalog").json == {"repositories": [NAME]}


def test_ns_says_nothing(offered: Offered) -> None:
    """containerd says so which registry it asks a mirror for."""
    answer = offered.ask("manifests/latest?ns=registry.example.com")
    assert (answer.status, answer.body) == (200, offered.given.body)


@pytest.mark.parametrize(
    "authorization",
    [
        f"Bearer {TOKEN}",
        f"Token {TOKEN}",
        basic(TOKEN),
        basic(TOKEN, "anybody"),
        basic(TOKEN).replace("Basic", "basic"),
    ],
)
def test_the_token_is_the_password_of_any_user_or_comes_as_for_images(offered: Offered, authorization: str) -> None:
    assert request(offered.mirror, "/v2/", authorization=authorization).status == 200


@pytest.mark.parametrize(
    "authorization", [basic("wrong"), basic(""), "Basic", "Basic !", "Basic bm9jb2xvbg==", "Bearer no"]
)
def test_another_password_is_refused(offered: Offered, authorization: str) -> None:
    answer = request(offered.mirror, f"{REPOSITORY}/manifests/latest", authorization=authorization)
    assert (answer.status, answer.code) == (401, "UNAUTHORIZED")


def test_a_pull_costs_upstream_one_request_for_metadata(offered: Offered) -> None:
    token = "another-token-of-the-simulator"
    offered.simulator.set_tokens([TOKEN, token])
    before = offered.simulator.counters()
    for path in ("manifests/latest", f"manifests/{offered.digest}", f"blobs/{offered.image_id}") * 5:
        assert request(offered.mirror, f"{REPOSITORY}/{path}", authorization=basic(token)).status == 200
    after = offered.simulator.counters()
    assert (after.metadata_requests - before.metadata_requests, after.image_requests - before.image_requests) == (1, 0)


def test_whether_anybody_is_let_in_is_asked_once(offered: Offered) -> None:
    request(offered.mirror, "/v2/", authorization=None)
    before = offered.simulator.counters().metadata_requests
    for _ in range(5):
        assert request(offered.mirror, "/v2/", authorization=None).status == 401
    assert offered.simulator.counters().metadata_requests == before


def test_metrics_and_the_log_say_what_was_pulled(offered: Offered) -> None:
    names = ["registry_pulls_total", "registry_blobs_total", "registry_bytes_total"]
    before = {name: metric(offered.mirror, f"pps_mirror_{name}") for name in names}
    layer = offered.layers[0]
    offered.ask("manifests/latest")
    offered.ask(f"blobs/{layer['digest']}")
    pulled = [1, 1, len(offered.given.body) + int(layer["size"])]
    eventually(
        lambda: [metric(offered.mirror, f"pps_mirror_{name}") - before[name] for name in names] == pulled,
        what="the count of the last bytes, which the client may have before they are counted",
    )

    def told() -> bool:
        said = [str(each["message"]) for each in offered.mirror.events("http.request")]
        pulled = [line for line in said if line.startswith("GET /v2/d")]
        return pulled[-2].endswith(f", {offered.digest}") and pulled[-1].endswith(f", {layer['digest']}")

    eventually(told, 10, "the lines of both requests")


def test_the_page_and_the_list_say_by_which_tags_an_image_can_be_pulled(offered: Offered) -> None:
    tags = sorted(offered.ask("tags/list").json["tags"])
    (image,) = json.loads(request_admin(offered.mirror, "/api/status"))["images"]
    assert (sorted(image["tags"]), image["archive"]["state"]) == (tags, "ready")
    page = request_admin(offered.mirror, "/").decode()
    assert all(f"<code>{tag}</code>" in page for tag in tags)


def request_admin(mirror: ForkedMirror, path: str) -> bytes:
    with urllib.request.urlopen(mirror.admin_url + path) as answer:
        return bytes(answer.read())


def test_the_tls_hello_that_engines_send_first_is_no_event(offered: Offered) -> None:
    before = len(offered.mirror.log())
    hello = bytes.fromhex("16030100c8010000c40303") + bytes(200)
    assert say(offered.mirror, hello).startswith(b"HTTP/1.0 400 ")
    said = offered.mirror.log()[before:]
    assert "Traceback" not in said
    assert not [line for line in said.splitlines() if '"log.level": "debug"' not in line and "http.request" not in line]
