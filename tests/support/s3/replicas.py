"""Mirrors over one bucket, reached through a front that misbehaves."""

import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirror.simulator.client import Simulator
from mirror.store.s3.timings import Timings
from tests.support.downloads import Outcome
from tests.support.forked import ForkedMirror
from tests.support.s3.fixtures import TestBucket
from tests.support.s3.front import Front

MIB = 1 << 20
SIZE = 12 * MIB
TIMINGS = Timings(spared=1.0, first_round=0.5, round=0.5)
CONSTANTS = {
    "mirror.images.store_health:LOOK_AGAIN": 0.2,
    "mirror.store.memory:GATHER": 0.1,
    "mirror.store.s3.parts:PART": 5 * MIB,
}

KINDS = pytest.mark.parametrize("local_copy", [True, False], ids=["tiered", "bucket only"])
"""For a test that has to hold with a disk before the bucket, and without."""

HIT = "pps-mirror; hit"
STORED = "pps-mirror; fwd=miss; stored"
BYPASS = "pps-mirror; fwd=bypass"


@dataclass(frozen=True, slots=True)
class Replicas:
    """Makes mirrors with empty disks over one bucket, reached through the front, or else at `endpoint`."""

    directory: Path
    front: Front
    bucket: TestBucket
    simulator: Simulator

    def make(
        self,
        name: str = "mirror",
        *,
        local_copy: bool,
        upstream: bool = True,
        endpoint: str | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> ForkedMirror:
        """Make one, not started."""
        sections: dict[str, dict[str, object]] = {
            "upstream": {"metadata_ttl": "0s"},
            "auth": {} if upstream else {"mode": "open"},
            "store.s3": {
                "bucket": self.bucket.name,
                "endpoint_url": endpoint or self.front.endpoint_url,
                "local_copy": local_copy,
            },
        }
        mirror = ForkedMirror(
            self.directory / name,
            self.simulator.api_url if upstream else "",
            sections,
            environ or self.bucket.server.environ,
        )
        mirror.timings = TIMINGS
        mirror.constants = CONSTANTS
        return mirror

    @property
    def image(self) -> str:
        """The name of the current image's object."""
        return f"images/{self.simulator.image_sha256('first')}"

    def arrived(self) -> bool:
        """Whether the image is in the bucket, and right."""
        image = self.bucket.read(self.image)
        return image is not None and hashlib.sha256(image).hexdigest() == self.simulator.image_sha256("first")

    def assert_right(self, outcome: Outcome, *cache_status: str) -> None:
        """The client got the image, and was told that it came that way."""
        assert (outcome.status, outcome.ended) == (200, "complete")
        assert outcome.sha256 == self.simulator.image_sha256("first")
        assert not cache_status or outcome.cache_status in cache_status


@dataclass(frozen=True, slots=True)
class Health:
    """What `/readyz` says."""

    status: int
    reasons: str
    degraded: str


def health(mirror: ForkedMirror) -> Health:
    """Ask as an orchestrator does, who is not patient."""
    try:
        with urllib.request.urlopen(f"{mirror.admin_url}/readyz", timeout=5) as answer:
            status, said = answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        status, said = error.code, json.load(error)
    assert said["ready"] == (status == 200)
    return Health(status, "; ".join(said["reasons"]), "; ".join(said["degraded"]))


WELL = Health(200, "", "")


def mend(front: Front) -> None:
    """End whatever is wrong with it."""
    front.clear()
    front.refuse()
    front.listen()


@pytest.fixture
def replicas(tmp_path: Path, front: Front, bucket: TestBucket, simulator: Simulator) -> Replicas:
    """Makes mirrors over the test's bucket."""
    return Replicas(tmp_path, front, bucket, simulator)
