"""Pulling from mirrors whose images are in a bucket."""

from pathlib import Path

from mirror.simulator.client import Simulator
from tests.support.forked import ForkedMirror
from tests.support.processes import eventually
from tests.support.pulls import REPOSITORY, archive, manifest, request, spec
from tests.support.s3.fixtures import TestBucket

VERSION = "7.0.0-r1736"


def mirror_over(directory: Path, upstream: str, bucket: TestBucket, *, local_copy: bool) -> ForkedMirror:
    """A mirror with an empty disk over the bucket."""
    sections: dict[str, dict[str, object]] = {
        "registry": {"enabled": True},
        "store.s3": {**bucket.section, "local_copy": local_copy},
    }
    return ForkedMirror(directory, upstream, sections, bucket.server.environ)


def test_each_replica_indexes_its_own_copy_and_upstream_is_asked_once(tmp_path: Path, bucket: TestBucket) -> None:
    made = archive(tmp_path, VERSION)
    with Simulator.start([spec(made, VERSION)]) as simulator:
        with mirror_over(tmp_path / "first", simulator.api_url, bucket, local_copy=True) as first:
            given = manifest(first)
            stored = f"images/{simulator.image_sha256(f'v{VERSION}')}"
            eventually(lambda: stored in bucket.names(), 30, "the upload")
            eventually(lambda: not bucket.names("leases/"), 30, "its end")
        with mirror_over(tmp_path / "second", simulator.api_url, bucket, local_copy=True) as second:
            assert manifest(second, VERSION).body == given.body
            for layer in given.json["layers"]:
                assert request(second, f"{REPOSITORY}/blobs/{layer['digest']}").status == 200
        assert simulator.counters().image_requests == 1


def test_a_bucket_alone_has_nothing_to_pull_and_says_why(tmp_path: Path, bucket: TestBucket) -> None:
    with (
        Simulator.start([spec(archive(tmp_path, VERSION), VERSION)]) as simulator,
        mirror_over(tmp_path / "mirror", simulator.api_url, bucket, local_copy=False) as mirror,
    ):
        assert request(mirror, "/v2/").status == 200
        assert request(mirror, "/v2/_catalog").json == {"repositories": []}
        for path in ("manifests/latest", "tags/list", "blobs/sha256:" + "0" * 64):
            answer = request(mirror, f"{REPOSITORY}/{path}")
            assert (answer.status, answer.code) == (404, "NAME_UNKNOWN")
            assert "store.s3.local_copy = true" in answer.message
        assert "registry.empty" in mirror.settled.actions()
        assert simulator.counters().image_requests == 0
