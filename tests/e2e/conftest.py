"""What the end-to-end tests share: made or started once, when the first test asks for it."""

from collections.abc import Iterator

import pytest

from tests.support.archive import DockerArchive, make_archive
from tests.support.docker_engine import DockerEngine


@pytest.fixture(scope="session")
def docker_archive(tmp_path_factory: pytest.TempPathFactory) -> DockerArchive:
    """A docker archive some times as long as what the mirror holds back."""
    return make_archive(tmp_path_factory.mktemp("archive") / "pps-v1.tar.gz", "v1", padding=4 << 20)


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[DockerEngine]:
    """The Docker engine, running; tests remove what they load into it."""
    with DockerEngine() as engine:
        yield engine
