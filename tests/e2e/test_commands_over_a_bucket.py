"""The commands where images are in a bucket, on the disk, or in both."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mirror.simulator.client import Simulator
from mirror.store.s3.timings import Timings
from tests.support.by_hand import lay_out
from tests.support.commands import one_line, run
from tests.support.downloads import fetch
from tests.support.fixtures import SIZE, Sections
from tests.support.forked import ForkedMirror
from tests.support.processes import eventually
from tests.support.s3.fixtures import TestBucket
from tests.support.s3.replicas import KINDS
from tests.support.scripted import metadata_of

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def command(store: Path, bucket: TestBucket) -> Command:
    """Runs `pps-mirror` with the bucket, a disk, and more variables of the configuration."""
    own = {f"PPS_MIRROR__STORE__S3__{name.upper()}": str(value) for name, value in bucket.section.items()}
    own |= {"PPS_MIRROR__STORE__PATH": str(store), "PPS_MIRROR__STORE__MIN_FREE": "0"}

    def of_the_bucket(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return run(*arguments, **{**bucket.server.environ, **own, **environ})

    return of_the_bucket


def put(bucket: TestBucket, image: bytes) -> str:
    """Lay an image into the bucket; its hash."""
    metadata = metadata_of(image)
    bucket.write(f"images/{metadata.hash}", image)
    bucket.write(f"images/{metadata.hash}.json", metadata.raw)
    return metadata.hash


def test_an_empty_bucket_is_nothing_to_complain_of(command: Command, bucket: TestBucket) -> None:
    listed = command("ls")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert f"or the bucket {bucket.name}" in listed.stdout
    assert command("gc").stdout == "nothing to remove\n"
    assert command("verify").returncode == 0


def test_ls_says_where_each_image_is(command: Command, bucket: TestBucket, store: Path) -> None:
    both = lay_out(store, b"both")
    assert put(bucket, b"only in the bucket") != both
    bucket.write(f"images/{both}", b"both")
    bucket.write(f"images/{both}.json", (store / "images" / both / "metadata.json").read_bytes())
    disk = lay_out(store, b"only on the disk")
    places = {image["hash"]: image["places"] for image in json.loads(command("ls", "--json").stdout)}
    assert places == {
        both: ["disk", "bucket"],
        disk: ["disk"],
        metadata_of(b"only in the bucket").hash: ["bucket"],
    }
    shown = command("ls").stdout
    assert "WHERE" in shown
    assert "disk and bucket" in shown


def test_verify_looks_at_every_place_and_says_which_is_bad(command: Command, bucket: TestBucket, store: Path) -> None:
    image_hash = lay_out(store, b"image")
    metadata = (store / "images" / image_hash / "metadata.json").read_bytes()
    bucket.write(f"images/{image_hash}", b"imagE")
    bucket.write(f"images/{image_hash}.json", metadata)
    done = command("verify", image_hash[:8])
    assert done.returncode == 1
    assert f"{image_hash[:12]} (5 B) on the disk: good" in done.stdout
    assert f"{image_hash[:12]} (5 B) in the bucket: wrong bytes" in done.stdout
    told = json.loads(command("verify", "--json").stdout)
    assert {each["place"]: each["good"] for each in told} == {"disk": True, "bucket": False}


@KINDS
def test_pins_hold_in_the_bucket_and_rm_takes_all_of_it(command: Command, bucket: TestBucket, local_copy: bool) -> None:
    image_hash = put(bucket, b"image")
    where = {"PPS_MIRROR__STORE__S3__LOCAL_COPY": str(local_copy).lower()}
    assert command("pin", image_hash[:8], **where).returncode == 0
    assert bucket.names("pinned/") == [f"pinned/{image_hash}"]
    refused = command("rm", image_hash[:8], **where)
    assert refused.returncode == 1
    assert "pinned" in one_line(refused.stderr)
    assert command("unpin", image_hash[:8], **where).returncode == 0
    assert command("rm", image_hash[:8], "--force", **where).returncode == 0
    assert bucket.names() == []


def test_check_tries_the_bucket_and_leaves_nothing_there(command: Command, bucket: TestBucket) -> None:
    told = {each["check"]: each for each in json.loads(command("check", "--json").stdout)}
    assert told["bucket"]["ok"]
    assert "with the credentials from the environment" in told["bucket"]["message"]
    assert bucket.names() == []
    assert not bucket.client.uploads(bucket.name)
    missing = command("check", "--json", PPS_MIRROR__STORE__S3__BUCKET="there-is-none")
    told = {each["check"]: each for each in json.loads(missing.stdout)}
    assert not told["bucket"]["ok"]
    assert "there is no such bucket" in told["bucket"]["message"]
    wrong = command("check", "--json", AWS_SECRET_ACCESS_KEY="another-secret")
    told = {each["check"]: each for each in json.loads(wrong.stdout)}
    assert "refuses our secret key" in told["bucket"]["message"]
    assert "another-secret" not in wrong.stdout + wrong.stderr


@KINDS
def test_pull_ends_when_the_image_is_in_the_bucket(
    command: Command, bucket: TestBucket, simulator: Simulator, local_copy: bool
) -> None:
    environ = {
        "PPS_MIRROR__UPSTREAM__URL": simulator.api_url,
        "DATAROBOT_API_TOKEN": simulator.token,
        "PPS_MIRROR__STORE__S3__LOCAL_COPY": str(local_copy).lower(),
    }
    pulled = command("pull", **environ)
    assert pulled.returncode == 0, pulled.stderr
    image_hash = simulator.image_sha256("first")
    assert bucket.read(f"images/{image_hash}") == simulator.read("first")
    assert bucket.names("parts/") == []
    again = command("pull", **environ)
    assert "is stored already" in again.stdout


def test_an_image_that_was_on_the_disk_before_there_was_a_bucket_is_brought_there(
    tmp_path: Path, bucket: TestBucket, simulator: Simulator
) -> None:
    mirror = ForkedMirror(tmp_path, simulator.api_url)
    with mirror:
        assert fetch(mirror.image_url).length == SIZE
    with_bucket = ForkedMirror(tmp_path, simulator.api_url, {"store.s3": bucket.section}, bucket.server.environ)
    with_bucket.timings = Timings(first_round=0.1)
    with with_bucket:
        eventually(lambda: bucket.read(f"images/{simulator.image_sha256('first')}") == simulator.read("first"))
        eventually(lambda: bucket.names("leases/") == [])
    assert len(simulator.log("store")) == 1


@KINDS
def test_an_image_in_the_bucket_alone_is_exported_and_imported_into_another_bucket(
    command: Command, bucket: TestBucket, tmp_path: Path, local_copy: bool
) -> None:
    image = os.urandom(3 << 20)
    image_hash = put(bucket, image)
    where = {"PPS_MIRROR__STORE__S3__LOCAL_COPY": str(local_copy).lower()}
    exported = command("export", image_hash[:8], str(tmp_path), "--split", "1MiB", **where)
    assert (exported.returncode, exported.stderr) == (0, "")
    volumes = sorted(tmp_path.glob("pps-*/*.00?"))
    assert b"".join(path.read_bytes() for path in volumes) == image
    assert command("rm", "current", "--force", **where).returncode == 0
    imported = command("import", str(tmp_path), **where)
    assert (imported.returncode, imported.stderr) == (0, "")
    assert "it is the current image" in imported.stdout
    assert bucket.read(f"images/{image_hash}") == image
    assert bucket.names("parts/") == bucket.names("leases/") == []


def test_what_is_imported_at_one_replica_without_upstream_is_served_by_another(
    command: Command, bucket: TestBucket, tmp_path: Path
) -> None:
    first, second = lay_out(tmp_path, b"first"), lay_out(tmp_path, b"second", created="2025-01-02T03:04:05Z")
    sections: Sections = {
        "store.s3": bucket.section,
        "auth": {"mode": "open"},
        "upstream": {"metadata_ttl": "0s"},
    }
    named = {"metadata": (tmp_path / "images" / first / "metadata.json").read_text(), "fetchedAt": "2024-02-01T00:00Z"}
    bucket.write("current.json", json.dumps(named).encode())
    with ForkedMirror(tmp_path / "replica", "", sections, bucket.server.environ) as mirror:
        for image_hash in (first, second):
            image = tmp_path / "images" / image_hash
            imported = command("import", str(image / "image"), str(image / "metadata.json"))
            assert (imported.returncode, imported.stderr) == (0, "")
            assert fetch(mirror.image_url).sha256 == image_hash
