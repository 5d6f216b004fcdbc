"""Fixtures of all tests: made or started once, when first asked for; and the canary that listens to every mirror."""

import base64
import hashlib
import mmap
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs

import pytest

from mirror.simulator.client import TOKEN, ImageSpec, Simulator, SimulatorFailed
from tests.support.archive import DockerArchive, make_archive
from tests.support.docker_engine import DockerEngine
from tests.support.downloads import Download
from tests.support.forked import ForkedMirror
from tests.support.processes import MirrorProcess
from tests.support.s3.front import Front
from tests.support.s3.server import S3Server

SIZE = 5 << 20

Sections = Mapping[str, Mapping[str, Any]]


@pytest.fixture(scope="session")
def docker_archive(tmp_path_factory: pytest.TempPathFactory) -> DockerArchive:
    """A docker archive some times as long as what the mirror holds back."""
    return make_archive(tmp_path_factory.mktemp("archive") / "pps-v1.tar.gz", "v1", padding=4 << 20)


@pytest.fixture
def upstream(docker_archive: DockerArchive) -> Iterator[Simulator]:
    """A DataRobot whose image is that archive."""
    with Simulator.start([ImageSpec("v1", path=str(docker_archive.path))]) as simulator:
        yield simulator


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[DockerEngine]:
    """The Docker engine, running; tests remove what they load into it."""
    with DockerEngine() as engine:
        yield engine


class Canary:
    """Knows the secrets of a test, hears what clients are told, and looks for the one in the other."""

    def __init__(self) -> None:
        self._secrets = {TOKEN}
        self._heard: list[bytes] = []

    def hide(self, *tokens: str) -> None:
        """Let these tokens be found nowhere, unless they are shorter than `SHORTEST`."""
        self._secrets.update(token for token in tokens if len(token) >= SHORTEST)
        assert all(_TEXT.fullmatch(token.encode()) for token in self._secrets), "all secrets are printable"

    def hear(self, said: bytes) -> None:
        """Keep what a client was told."""
        self._heard.append(said)

    def assert_nothing_leaked(self, mirrors: set[Path]) -> None:
        """No token, its plain hash or a pre-signed URL is in what was heard or in what these mirrors left.

        That is the log, the store, what others could see of the process, and what a crash dumped.
        """
        needles = self._needles()
        for said in self._heard:
            for needle in needles:
                assert needle not in said, f"a client was told {needle!r}: {said!r}"
        for path in (path for directory in mirrors for path in _written_by_a_mirror(directory)):
            with suppress(FileNotFoundError):  # a mirror that still runs may take one away
                found = _found(path, needles)
                assert not found, f"{found} in {path}"

    def _needles(self) -> list[bytes]:
        values = {f"{scheme}{token}".encode() for token in self._secrets for scheme in ("", "Bearer ", "Token ")}
        hashes = {hashlib.sha256(value).hexdigest().encode() for value in values}
        encoded = {base64.b64encode(token.encode()).rstrip(b"=") for token in self._secrets}
        return [
            b"X-Amz-Signature",
            b"AWS4-HMAC-SHA256",
            *(token.encode() for token in self._secrets),
            *hashes,
            *encoded,
        ]


SHORTEST = 12
"""Bytes of a secret that is looked for. Shorter ones are words that a log may say."""

_TEXT = re.compile(rb"[ -~]{%d,}" % SHORTEST)
"""Where a secret can be, which is nearly nowhere in the bytes of an image: those are not looked through for each."""


def _written_by_a_mirror(directory: Path) -> Iterator[Path]:
    yield directory / "mirror.common.log"
    if (seen := directory / "seen").exists():
        yield seen
    yield from directory.glob("core*")
    yield from (path for path in (directory / "store").rglob("*") if path.is_file())


def _found(path: Path, needles: list[bytes]) -> list[bytes]:
    if not path.stat().st_size:
        return []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if path.name == "image" and hashlib.sha256(content).hexdigest() == path.parent.name:
            return []  # nothing but what upstream sent
        text = b"\n".join(_TEXT.findall(content))
    return [needle for needle in needles if needle in text]


def signatures(simulator: Simulator) -> set[str]:
    """The signatures of the pre-signed URLs that it was asked for."""
    queries = (parse_qs(asked.query) for asked in simulator.log("store"))
    return {signature for query in queries for signature in query.get("X-Amz-Signature", ())}


@pytest.fixture(autouse=True)
def canary(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Canary]:
    """Look for secrets when a test is over and the mirrors that were its own have ended."""
    canary = Canary()
    yield canary
    used = list(request.node.funcargs.values())
    for simulator in (each for each in used if isinstance(each, Simulator)):
        canary.hide(*simulator.setup.tokens, *simulator.setup.forbidden)
        with suppress(SimulatorFailed):  # it may have ended
            canary.hide(*signatures(simulator))
    for server in (each for each in used if isinstance(each, S3Server)):
        canary.hide(*server.secrets)
    for front in (each for each in used if isinstance(each, Front)):
        canary.hide(*front.secrets())
    mirrors = {log.parent for log in tmp_path.rglob("mirror.common.log")}
    mirrors |= {each.log_file.parent for each in used if isinstance(each, MirrorProcess)}
    canary.assert_nothing_leaked(mirrors)
    for log in (directory / "mirror.common.log" for directory in mirrors):
        assert not log.exists() or "Traceback" not in log.read_text(), "the mirror's log has a traceback"


def two_images(size: int) -> list[ImageSpec]:
    """Two images of one size, the second made a day after the first."""
    return [ImageSpec("first", size=size), ImageSpec("second", size=size, created="2026-01-02T03:04:05Z")]


def simulator_of(images: Sequence[ImageSpec]) -> Callable[[], Iterator[Simulator]]:
    """Make a module's own `shared_simulator`, which has these images."""

    @pytest.fixture(scope="module")
    def shared_simulator() -> Iterator[Simulator]:
        with Simulator.start(images) as simulator:
            yield simulator

    return shared_simulator


@pytest.fixture(scope="session")
def shared_simulator() -> Iterator[Simulator]:
    """One DataRobot with two images of one size, for tokens it takes and one that it forbids.

    A module that needs another has a fixture of this name and of its own scope.
    """
    tokens = [TOKEN, "another-good-token"]
    with Simulator.start(two_images(SIZE), tokens=tokens, forbidden=["a-forbidden-token"]) as simulator:
        yield simulator


@pytest.fixture
def simulator(shared_simulator: Simulator) -> Iterator[Simulator]:
    """The shared simulator as it was at first: the first image is current, nothing is wrong, nothing was asked."""
    shared_simulator.reset_log()
    yield shared_simulator
    shared_simulator.clear_faults()
    shared_simulator.set_rate(None)
    shared_simulator.roll_over(shared_simulator.setup.images[0].name)
    shared_simulator.set_tokens(shared_simulator.setup.tokens, forbidden=shared_simulator.setup.forbidden)


@pytest.fixture(scope="session")
def mirror(tmp_path_factory: pytest.TempPathFactory, shared_simulator: Simulator) -> Iterator[MirrorProcess]:
    """One mirror that has the first image, for tests that change nothing about it."""
    with ForkedMirror(tmp_path_factory.mktemp("mirror"), shared_simulator.api_url) as mirror:
        with Download(mirror.image_url) as download:
            assert download.read_all().body == shared_simulator.read("first")
        yield mirror


class FreshMirror(Protocol):
    """Starts a mirror with an empty store, in front of `upstream` or else the test's simulator."""

    def __call__(
        self,
        sections: Sections | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        upstream: Simulator | None = None,
    ) -> MirrorProcess:
        """Start one more; it ends with the test."""


@pytest.fixture
def fresh_mirror(request: pytest.FixtureRequest, tmp_path: Path, simulator: Simulator) -> Iterator[FreshMirror]:
    """Mirrors of the test's own: forked, unless it is marked `real_command`."""
    kind = MirrorProcess if request.node.get_closest_marker("real_command") else ForkedMirror
    with ExitStack() as running:
        started = 0

        def start(
            sections: Sections | None = None,
            *,
            environ: Mapping[str, str] | None = None,
            upstream: Simulator | None = None,
        ) -> MirrorProcess:
            nonlocal started
            started += 1
            url = (upstream or simulator).api_url
            return running.enter_context(kind(tmp_path / f"mirror-{started}", url, sections, environ))

        yield start


class Ask(Protocol):
    """Asks as the holder of a token, or of none, and reads the answer to its end; the canary hears every error."""

    def __call__(self, url: str, token: str | None = TOKEN, method: str = "GET", **headers: str) -> Download:
        """Send one request; `_` in the name of a header stands for `-`."""


@pytest.fixture
def ask(canary: Canary) -> Ask:
    """Requests one by one."""

    def send(url: str, token: str | None = TOKEN, method: str = "GET", **headers: str) -> Download:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            canary.hide(token)
            sent["Authorization"] = f"Bearer {token}"
        with Download(url, method, sent) as download:
            answer = download.read_all()
        if answer.status >= 400:
            canary.hear(bytes(answer.answer.headers) + answer.body)
        return answer

    return send
