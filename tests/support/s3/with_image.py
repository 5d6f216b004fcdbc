"""Mirrors with empty disks over a bucket that has the image."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from mirror.simulator.client import Simulator
from tests.support.downloads import AUTHORIZED, Download
from tests.support.forked import ForkedMirror
from tests.support.processes import MirrorProcess
from tests.support.s3.fixtures import TestBucket
from tests.support.s3.front import Front

HIT = "pps-mirror; hit"
OBJECT = "/images/[0-9a-f]{64}$"

Make = Callable[..., ForkedMirror]


@pytest.fixture
def mirror_on(tmp_path: Path, bucket: TestBucket, front: Front, simulator: Simulator) -> Make:
    """Mirrors with empty disks over the bucket, which has the image; `s3` is for [store.s3]."""
    image_hash = simulator.image_sha256("first")
    bucket.write(f"images/{image_hash}.json", simulator.metadata_body("first"))
    bucket.write(f"images/{image_hash}", simulator.read("first"))
    made = 0

    def make(
        *, upstream: str | None = None, environ: Mapping[str, str] | None = None, auth: str = "upstream", **s3: object
    ) -> ForkedMirror:
        nonlocal made
        made += 1
        section = {"bucket": bucket.name, "endpoint_url": front.endpoint_url, "local_copy": False, **s3}
        return ForkedMirror(
            tmp_path / f"mirror-{made}",
            simulator.api_url if upstream is None else upstream,
            {"store.s3": section, "auth": {"mode": auth}, "upstream": {"metadata_ttl": "0s"}},
            {**bucket.server.environ, **(environ or {})},
        )

    return make


def get(mirror: MirrorProcess, method: str = "GET", **headers: str) -> Download:
    """One request for the image, read to its end; `_` in the name of a header stands for `-`."""
    sent = AUTHORIZED | {name.replace("_", "-"): value for name, value in headers.items()}
    with Download(mirror.image_url, method, sent) as download:
        return download.read_all()
