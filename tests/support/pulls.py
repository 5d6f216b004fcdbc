"""Images that can be pulled: a simulator that hands out docker archives, a mirror in front of it, and its answers."""

import base64
import http.client
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirror.simulator.client import TOKEN, ImageSpec, Simulator
from tests.support.archive import NAME, DockerArchive, make_archive
from tests.support.forked import ForkedMirror
from tests.support.layouts import Layout
from tests.support.processes import MirrorProcess, eventually

REPOSITORY = f"/v2/{NAME}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the mirror said to one request."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Why it was refused, as the distribution specification calls that."""
        (error,) = self.json["errors"]
        assert set(error) == {"code", "message", "detail"}
        return str(error["code"])

    @property
    def message(self) -> str:
        return str(self.json["errors"][0]["message"])


def basic(token: str, user: str = "token") -> str:
    """The header that an engine sends after a login."""
    return "Basic " + base64.b64encode(f"{user}:{token}".encode()).decode()


def request(
    mirror: MirrorProcess,
    path: str,
    method: str = "GET",
    authorization: str | None = basic(TOKEN),
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Ask the mirror; `_` in the name of a header stands for `-`."""
    sent = {name.replace("_", "-"): value for name, value in (headers or {}).items()}
    if authorization is not None:
        sent["Authorization"] = authorization
    with closing(http.client.HTTPConnection("127.0.0.1", mirror.port, timeout=30)) as connection:
        connection.request(method, path, body=body, headers=sent)
        answer = connection.getresponse()
        return Answer(answer.status, dict(answer.headers.items()), answer.read())


def spec(archive: DockerArchive, version: str, **more: Any) -> ImageSpec:
    """How the simulator hands out an archive: as DataRobot names such a file."""
    filename = f"datarobot-portable-prediction-api-{version}.tar.gz"
    return ImageSpec(f"v{version}", path=str(archive.path), filename=filename, image_id=archive.image_id, **more)


def archive(directory: Path, version: str, layout: Layout = Layout.CRANE, padding: int = 1 << 20) -> DockerArchive:
    """Make an archive whose first layer is that of any other of the same padding."""
    directory.mkdir(parents=True, exist_ok=True)
    return make_archive(directory / f"{version}-{layout}.tar.gz", version, padding, layout=layout)


@contextmanager
def pullable(
    directory: Path,
    images: Sequence[ImageSpec],
    sections: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    patience: float | None = None,
    **setup: Any,
) -> Iterator[tuple[Simulator, ForkedMirror]]:
    """Run a mirror that has a registry, in front of a simulator that has these images, the first of them current.

    With `patience`, a request waits that long for an image that is on its way.
    """
    with Simulator.start(images, **setup) as simulator:
        mirror = ForkedMirror(directory, simulator.api_url, {"registry": {"enabled": True}, **(sections or {})})
        if patience is not None:
            mirror.constants = {"mirror.registry.pull:WAIT_SECONDS": patience}
        with mirror:
            yield simulator, mirror


def manifest(mirror: MirrorProcess, reference: str = "latest", seconds: float = 60.0) -> Answer:
    """Ask for a manifest until it is there."""
    found: list[Answer] = []

    def there() -> bool:
        found.append(request(mirror, f"{REPOSITORY}/manifests/{reference}"))
        assert found[-1].status in {200, 429}, found[-1]
        return found[-1].status == 200

    eventually(there, seconds, f"the manifest of {reference}")
    return found[-1]


def metric(mirror: MirrorProcess, name: str) -> float:
    """The sum of a metric."""
    with closing(http.client.HTTPConnection("127.0.0.1", mirror.admin_port, timeout=30)) as connection:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))
