"""An S3 server for all tests that want one, and a bucket for each of them.

It is SeaweedFS, or what the environment variable S3_SERVER names: weed, ceph or swift.
"""

import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.s3.ceph import Ceph
from tests.support.s3.client import S3Client
from tests.support.s3.front import Front
from tests.support.s3.server import S3Server
from tests.support.s3.swift import Swift
from tests.support.s3.weed import Weed

SERVERS: dict[str, Callable[[Path], S3Server]] = {"weed": Weed, "ceph": Ceph, "swift": Swift}


KIND = os.environ.get("S3_SERVER", "weed")


def make_server(directory: Path) -> S3Server:
    """One more of the kind that is tested, not started."""
    return SERVERS[KIND](directory / KIND)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is about leases where the server has none, and what is about that where it has."""
    about_other_servers = "leases" if KIND == "swift" else "no_leases"
    left_out = [item for item in items if item.get_closest_marker(about_other_servers)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server for tests that do not stop it."""
    with make_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@dataclass(frozen=True, slots=True)
class TestBucket:
    """A bucket of the test's own."""

    __test__ = False

    server: S3Server
    name: str
    client: S3Client

    @property
    def section(self) -> dict[str, object]:
        """What a mirror's configuration says of it, in [store.s3]."""
        return {"bucket": self.name, "endpoint_url": self.server.endpoint_url}

    def names(self, beginning: str = "") -> list[str]:
        """The keys below the mirror's prefix, without it."""
        return [key.removeprefix("pps-mirror/") for key in self.client.keys(self.name, f"pps-mirror/{beginning}")]

    def read(self, name: str) -> bytes | None:
        """An object below the prefix; None when there is none."""
        return self.client.read(self.name, f"pps-mirror/{name}")

    def write(self, name: str, data: bytes) -> None:
        """Write one."""
        self.client.write(self.name, f"pps-mirror/{name}", data)

    def delete(self, name: str) -> None:
        """Remove one."""
        self.client.delete(self.name, f"pps-mirror/{name}")


def make_bucket(server: S3Server) -> TestBucket:
    """Make one more on `server`."""
    bucket = TestBucket(server, f"images-{secrets.token_hex(6)}", server.client())
    bucket.client.make_bucket(bucket.name)
    return bucket


@pytest.fixture
def bucket(s3_server: S3Server) -> Iterator[TestBucket]:
    """A bucket on the shared server, removed with all that is in it."""
    bucket = make_bucket(s3_server)
    yield bucket
    bucket.client.remove_bucket(bucket.name)


@pytest.fixture
def front(s3_server: S3Server) -> Iterator[Front]:
    """A proxy before the shared server, to misbehave."""
    with Front(s3_server) as front:
        yield front
