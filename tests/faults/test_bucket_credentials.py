"""What a bucket is asked with changes while the mirror runs: keys are rotated, roles come up, CAs are exchanged."""

import hashlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from mirror.simulator.client import Simulator
from mirror.store.s3.timings import Timings
from tests.support.certificates import certificate
from tests.support.commands import run_forked
from tests.support.downloads import Download, Outcome, fetch
from tests.support.fixtures import Canary, simulator_of, two_images
from tests.support.forked import ForkedMirror
from tests.support.http_server import HttpServer
from tests.support.processes import eventually
from tests.support.s3.fixtures import KIND, TestBucket, make_bucket
from tests.support.s3.front import Front, Trouble
from tests.support.s3.replicas import KINDS
from tests.support.s3.server import S3Server
from tests.support.s3.weed import Weed

MIB = 1 << 20
SIZE = 12 * MIB
NEVER = 1e6
CONSTANTS = {
    "mirror.store.memory:GATHER": 0.1,
    "mirror.store.s3.parts:PART": 5 * MIB,
}
HIT = "pps-mirror; hit"


shared_simulator = simulator_of(two_images(SIZE))


@pytest.fixture
def weed(tmp_path: Path, canary: Canary) -> Iterator[Weed]:
    """A server of the test's own, whose key can be rotated."""
    if KIND != "weed":
        pytest.skip("keys are rotated at this server only")
    canary.hide("the-secret-key-of-today")
    with Weed(tmp_path / "weed") as server:
        yield server


@dataclass(frozen=True, slots=True)
class KeyFile:
    """AWS's shared credentials file."""

    path: Path

    @property
    def environ(self) -> Mapping[str, str]:
        """What makes a process look there."""
        nothing = self.path.with_name("no-such-file")
        return {
            "AWS_SHARED_CREDENTIALS_FILE": str(self.path),
            "AWS_CONFIG_FILE": str(nothing),
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def write(self, access_key: str, secret_key: str) -> None:
        """Let it name this key, from one moment to the next."""
        new = self.path.with_suffix(".new")
        new.write_text(f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n")
        new.replace(self.path)

    def write_key_of(self, server: S3Server) -> None:
        """Let it name the key with which everything is allowed there."""
        self.write(server.access_key, server.secret_key)


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "credentials")


Make = Callable[..., ForkedMirror]


@pytest.fixture
def make(tmp_path: Path, simulator: Simulator) -> Make:
    """Make a mirror over a bucket, not started."""

    def make(bucket: TestBucket, environ: Mapping[str, str], *, look_again: float = 0.5, **s3: object) -> ForkedMirror:
        sections: dict[str, dict[str, object]] = {
            "upstream": {"metadata_ttl": "0s"},
            "store.s3": {**bucket.section, **s3},
        }
        mirror = ForkedMirror(tmp_path / "mirror", simulator.api_url, sections, environ)
        mirror.timings = Timings(spared=1.0, credentials=look_again)
        mirror.constants = CONSTANTS
        return mirror

    return make


def degraded(mirror: ForkedMirror) -> str:
    """What `/readyz` says that it does without; nothing when all is well."""
    try:
        with urllib.request.urlopen(f"{mirror.admin_url}/readyz", timeout=5) as answer:
            return "; ".join(json.load(answer)["degraded"])
    except urllib.error.HTTPError as error:
        return "; ".join(json.load(error)["reasons"])


def assert_right(simulator: Simulator, outcome: Outcome, name: str = "first") -> None:
    """The client got the image."""
    assert (outcome.status, outcome.ended) == (200, "complete")
    assert outcome.sha256 == simulator.image_sha256(name)


def arrives(bucket: TestBucket, simulator: Simulator, name: str = "first") -> None:
    """The image comes into the bucket, and is right."""
    image_hash = simulator.image_sha256(name)

    def arrived() -> bool:
        image = bucket.read(f"images/{image_hash}")
        return image is not None and hashlib.sha256(image).hexdigest() == image_hash

    eventually(arrived, 60, "its arrival in the bucket")


def check(mirror: ForkedMirror) -> str:
    """What `pps-mirror check` says of the bucket."""
    done = run_forked("check", "-c", mirror.config_file, environ=mirror.environ)
    (line,) = [line for line in done.stdout.splitlines() if " bucket " in f" {line} "]
    return line


@KINDS
def test_a_key_that_is_rotated_is_seen_by_the_mirror_that_runs_and_no_client_notices(
    make: Make, weed: Weed, keys: KeyFile, simulator: Simulator, local_copy: bool
) -> None:
    keys.write_key_of(weed)
    bucket = make_bucket(weed)
    with make(bucket, keys.environ, local_copy=local_copy) as mirror:
        assert_right(simulator, fetch(mirror.image_url))
        arrives(bucket, simulator)
        keys.write("pps-writer-2", "the-secret-key-of-today")
        weed.rotate("pps-writer-2", "the-secret-key-of-today")
        bucket = TestBucket(weed, bucket.name, weed.client())
        assert_right(simulator, outcome := fetch(mirror.image_url))
        assert outcome.cache_status == HIT
        simulator.roll_over("second")
        assert_right(simulator, fetch(mirror.image_url), "second")
        arrives(bucket, simulator, "second")
        eventually(lambda: not degraded(mirror), what="health")
        assert "can be written" in check(mirror)
        assert simulator.counters().store_gets == 2


@KINDS
def test_a_key_that_is_revoked_before_the_new_one_is_there_is_said_and_the_new_one_is_found_when_it_comes(
    make: Make, weed: Weed, keys: KeyFile, simulator: Simulator, local_copy: bool
) -> None:
    keys.write_key_of(weed)
    bucket = make_bucket(weed)
    with make(bucket, keys.environ, local_copy=local_copy) as mirror:
        assert_right(simulator, fetch(mirror.image_url))
        arrives(bucket, simulator)
        weed.rotate("pps-writer-2", "the-secret-key-of-today")
        eventually(lambda: "does not know our access key" in degraded(mirror), what="word of it")
        assert "does not know our access key" in check(mirror)
        assert_right(simulator, fetch(mirror.image_url))
        keys.write_key_of(weed)
        eventually(lambda: fetch(mirror.image_url).cache_status == HIT, what="recovery")
        assert_right(simulator, fetch(mirror.image_url))
        eventually(lambda: not degraded(mirror), what="health")


def test_a_configuration_that_cannot_be_read_does_not_hide_what_the_server_says(
    make: Make, weed: Weed, keys: KeyFile, simulator: Simulator
) -> None:
    keys.write_key_of(weed)
    with make(make_bucket(weed), keys.environ) as mirror:
        assert_right(simulator, fetch(mirror.image_url))
        Path(keys.environ["AWS_CONFIG_FILE"]).write_text("= [")
        weed.rotate("pps-writer-2", "the-secret-key-of-today")
        eventually(lambda: degraded(mirror), what="word of it")
        until = time.monotonic() + 2
        while time.monotonic() < until:  # it looks for others twice a second
            assert "does not know our access key" in degraded(mirror)
            time.sleep(0.1)


@KINDS
def test_a_key_that_is_rotated_in_the_middle_costs_neither_the_upload_nor_a_second_fetch(
    make: Make, weed: Weed, keys: KeyFile, simulator: Simulator, local_copy: bool
) -> None:
    keys.write_key_of(weed)
    bucket = make_bucket(weed)
    simulator.set_rate(2 * MIB)
    with make(bucket, keys.environ, local_copy=local_copy) as mirror, Download(mirror.image_url) as download:
        download.read(6 * MIB)
        keys.write("pps-writer-2", "the-secret-key-of-today")
        weed.rotate("pps-writer-2", "the-secret-key-of-today")
        download.read_all()
        assert (download.ended, hashlib.sha256(download.body).hexdigest()) == (
            "complete",
            simulator.image_sha256("first"),
        )
        arrives(TestBucket(weed, bucket.name, weed.client()), simulator)
        assert simulator.counters().store_gets == 1
        for word in ("lease.lost", "took the lease over", "was lost", "without regard"):
            assert word not in mirror.settled.log()


def test_a_download_that_runs_when_everything_is_found_anew_goes_on_to_its_end(
    make: Make, bucket: TestBucket, front: Front, keys: KeyFile, simulator: Simulator
) -> None:
    image_hash = simulator.image_sha256("first")
    bucket.write(f"images/{image_hash}.json", simulator.metadata_body("first"))
    bucket.write(f"images/{image_hash}", simulator.read("first"))
    keys.write_key_of(bucket.server)
    mirror = make(bucket, keys.environ, endpoint_url=front.endpoint_url, local_copy=False, look_again=NEVER)
    with mirror:
        front.rate = 4 * MIB
        with Download(mirror.image_url) as download:
            download.read(MIB)
            for _ in range(3):
                mirror.hang_up()
            front.rate = None
            download.read_all()
            assert download.ended == "complete"
            assert hashlib.sha256(download.body).hexdigest() == image_hash
        eventually(lambda: front.asked("GET", "/images/[0-9a-f]{64}$"), what="the note of the request, at its end")
        (whole,) = front.asked("GET", "/images/[0-9a-f]{64}$")
        assert whole.sent == SIZE


def test_sighup_takes_up_another_key_at_once_and_one_that_has_vanished_changes_nothing(
    make: Make, bucket: TestBucket, front: Front, keys: KeyFile, simulator: Simulator
) -> None:
    keys.write("nobody", "a-secret-key-of-nobody")
    mirror = make(bucket, keys.environ, endpoint_url=front.endpoint_url, local_copy=False, look_again=NEVER)
    with mirror:
        eventually(lambda: "does not know our access key" in degraded(mirror))
        keys.write_key_of(bucket.server)
        assert_right(simulator, fetch(mirror.image_url))
        eventually(lambda: "does not know our access key" in degraded(mirror))  # nobody looks again for a long time
        assert "the bucket's credentials" in mirror.hang_up()
        assert_right(simulator, fetch(mirror.image_url))
        arrives(bucket, simulator)
        eventually(lambda: not degraded(mirror), what="health")
        keys.path.unlink()
        said = mirror.hang_up()
        assert "no credentials were found" in said
        assert "what was found before stays in use" in said
        assert fetch(mirror.image_url).cache_status == HIT
        eventually(lambda: not degraded(mirror), what="health")
        for secret in ("a-secret-key-of-nobody", bucket.server.secret_key):
            assert secret not in mirror.settled.log()


@KINDS
def test_a_mirror_that_starts_before_its_credentials_takes_them_up_when_they_are_there(
    make: Make, bucket: TestBucket, keys: KeyFile, simulator: Simulator, local_copy: bool
) -> None:
    with make(bucket, keys.environ, local_copy=local_copy) as mirror:
        eventually(lambda: "no credentials were found" in degraded(mirror), what="word of it")
        assert_right(simulator, fetch(mirror.image_url))
        keys.write_key_of(bucket.server)
        eventually(lambda: fetch(mirror.image_url).cache_status == HIT, what="recovery")
        eventually(lambda: not degraded(mirror), what="health")


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"AWS_PROFILE": "nobody"}, "the profile that AWS_PROFILE names does not exist"),
        ({"AWS_CA_BUNDLE": "/no/such/file.pem"}, "AWS_CA_BUNDLE names a file that cannot be read"),
    ],
)
def test_what_aws_libraries_cannot_be_made_with_is_said_and_the_mirror_serves(
    make: Make, bucket: TestBucket, keys: KeyFile, simulator: Simulator, environ: Mapping[str, str], words: str
) -> None:
    keys.write_key_of(bucket.server)
    with make(bucket, {**keys.environ, **environ}, endpoint_url=bucket.server.https_endpoint_url) as mirror:
        eventually(lambda: words in degraded(mirror), what="word of it")
        assert words in check(mirror)
        assert_right(simulator, fetch(mirror.image_url))


class Role(HttpServer):
    """What gives a container the credentials of its role; nobody there before it is told a key. A context manager."""

    def __init__(self) -> None:
        self.key: tuple[str, str] | None = None
        self.asked = 0
        role = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                role.asked += 1
                said: dict[str, Any] = {}
                if role.key is not None:
                    access, secret = role.key
                    said = {"AccessKeyId": access, "SecretAccessKey": secret, "Token": "", "RoleArn": "arn:role"}
                    said["Expiration"] = "2099-01-01T00:00:00Z"
                body = json.dumps(said).encode()
                self.send_response(200 if said else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        super().__init__(Handler)

    @property
    def environ(self) -> Mapping[str, str]:
        """What makes a process ask it."""
        return {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://{self.host}/role"}


def test_a_role_that_comes_up_after_the_mirror_is_found(
    make: Make, bucket: TestBucket, keys: KeyFile, simulator: Simulator
) -> None:
    with Role() as role, make(bucket, {**keys.environ, **role.environ}) as mirror:
        eventually(lambda: "no credentials were found" in degraded(mirror), what="word of it")
        assert_right(simulator, fetch(mirror.image_url))
        role.key = bucket.server.access_key, bucket.server.secret_key
        eventually(lambda: not degraded(mirror), what="health")


def test_however_many_are_refused_credentials_are_looked_for_once_in_a_while(
    make: Make, bucket: TestBucket, front: Front, keys: KeyFile, simulator: Simulator
) -> None:
    with Role() as role:
        role.key = bucket.server.access_key, bucket.server.secret_key
        mirror = make(
            bucket,
            {**keys.environ, **role.environ},
            endpoint_url=front.endpoint_url,
            local_copy=False,
            look_again=NEVER,
        )
        with mirror:
            eventually(lambda: not degraded(mirror))
            assert role.asked == 1
            front.trouble(Trouble(status=403, code="InvalidAccessKeyId"))
            for _ in range(5):
                assert_right(simulator, fetch(mirror.image_url))
                eventually(lambda: "does not know our access key" in degraded(mirror), what="word of it")
            assert role.asked == 2


def test_a_ca_that_is_exchanged_is_taken_up(
    make: Make, tmp_path: Path, bucket: TestBucket, keys: KeyFile, simulator: Simulator
) -> None:
    keys.write_key_of(bucket.server)
    ca = tmp_path / "ca.pem"
    ca.write_bytes(certificate(tmp_path / "another")[0].read_bytes())
    environ = {**keys.environ, "AWS_CA_BUNDLE": str(ca)}
    with make(bucket, environ, endpoint_url=bucket.server.https_endpoint_url) as mirror:
        eventually(lambda: "its certificate is not trusted" in degraded(mirror), what="word of it")
        new = ca.with_suffix(".new")
        new.write_bytes(bucket.server.ca_file.read_bytes())
        new.replace(ca)
        eventually(lambda: not degraded(mirror), what="health")
        assert_right(simulator, fetch(mirror.image_url))
        arrives(bucket, simulator)
