"""An S3 server for all tests that want one, and a bucket for each of them."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.s3.client import S3Client
from tests.support.s3.weed import Weed


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """SeaweedFS, for tests that do not stop it."""
    with Weed(tmp_path_factory.mktemp("weed")) as weed:
        yield weed


@dataclass(frozen=True, slots=True)
class TestBucket:
    """A bucket of the test's own."""

    __test__ = False

    server: Weed
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


def make_bucket(server: Weed) -> TestBucket:
    """Make one more on `server`."""
    bucket = TestBucket(server, f"images-{secrets.token_hex(6)}", server.client())
    bucket.client.make_bucket(bucket.name)
    return bucket


@pytest.fixture
def bucket(weed: Weed) -> Iterator[TestBucket]:
    """A bucket on the shared server, removed with all that is in it."""
    bucket = make_bucket(weed)
    yield bucket
    bucket.client.remove_bucket(bucket.name)
