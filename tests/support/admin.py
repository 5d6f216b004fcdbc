"""An operator at the admin listener."""

import http.client
import json
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from email.message import Message
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.support.processes import MirrorProcess

CHANGING = {"X-Requested-With": "pps-mirror"}


@dataclass(frozen=True)
class Answer:
    """What the listener said."""

    status: int
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask_admin(mirror: MirrorProcess, method: str, path: str, headers: Mapping[str, str] | None = None) -> Answer:
    """Send one request."""
    with closing(http.client.HTTPConnection("127.0.0.1", mirror.admin_port, timeout=20)) as connection:
        connection.request(method, path, headers=dict(headers or {}))
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())


def status_of(mirror: MirrorProcess) -> Any:
    """What /api/status says."""
    return ask_admin(mirror, "GET", "/api/status").json


def is_stored(mirror: MirrorProcess, image_hash: str) -> bool:
    """Whether an image is stored and its fill is over, which clients may still join a moment after it has its name."""
    over = {each.get("pps_mirror.image") for each in mirror.events("fill.published")}
    return image_hash in over and (mirror.store / "images" / image_hash / "image").exists()


def actions_of(mirror: MirrorProcess) -> list[str]:
    """What happened, oldest first."""
    return [event["action"] for event in reversed(status_of(mirror)["events"])]


def metric(mirror: MirrorProcess, name: str, **labels: str) -> float:
    """The value of a sample, summed over the labels that are not named; 0 when there is none."""
    text = ask_admin(mirror, "GET", "/metrics").body.decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"pps_mirror_{name}" and labels.items() <= sample.labels.items()
    )


@contextmanager
def pushed(mirror: MirrorProcess) -> Iterator[Iterator[Any]]:
    """Follow /api/events: each status as it comes."""
    with closing(http.client.HTTPConnection("127.0.0.1", mirror.admin_port, timeout=20)) as connection:
        connection.request("GET", "/api/events")
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/event-stream"
        yield (json.loads(line[6:]) for line in answer if line.startswith(b"data: "))


def degraded(mirror: MirrorProcess) -> list[str]:
    """What it has to do without, as the admin listener says."""
    with urllib.request.urlopen(f"{mirror.admin_url}/readyz", timeout=10) as answer:
        said = json.load(answer)
    assert said["ready"]
    return list(said["degraded"])
