"""The alerts of deploy/prometheus in a real Prometheus that scrapes a real mirror: nothing when it is well."""

from pathlib import Path
from typing import Any

import yaml

from mirror.simulator.client import Fault, Simulator
from tests.support.admin import metric
from tests.support.fixtures import Ask, FreshMirror
from tests.support.processes import eventually
from tests.support.prometheus import Alert, Prometheus

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "alerts.yml"


def hasty() -> dict[str, Any]:
    """The rules, but none waits for long before it fires: as long as one scrape may take too long on a busy machine."""
    rules: dict[str, Any] = yaml.safe_load(RULES.read_text())
    for rule in rules["groups"][0]["rules"]:
        if "for" in rule:
            rule["for"] = "3s"
    return rules


def firing(prometheus: Prometheus) -> list[Alert]:
    """The alerts that people are told of now."""
    return [each for each in prometheus.alerts() if each.state == "firing"]


def test_a_mirror_that_is_well_has_no_alert(fresh_mirror: FreshMirror, ask: Ask, tmp_path: Path) -> None:
    mirror = fresh_mirror()
    with Prometheus(tmp_path / "prometheus", [mirror], hasty()) as prometheus:
        prometheus.watch(6)
        assert firing(prometheus) == []
        for _ in range(2):
            ask(mirror.image_url)
        eventually(lambda: metric(mirror, "current_stored") == 1, what="a look at the store")
        prometheus.watch(6)
        assert firing(prometheus) == []


def test_wrong_bytes_and_then_no_mirror_at_all_are_told_to_people(
    simulator: Simulator, fresh_mirror: FreshMirror, ask: Ask, tmp_path: Path
) -> None:
    mirror = fresh_mirror()
    instance = f"127.0.0.1:{mirror.admin_port}"
    with Prometheus(tmp_path / "prometheus", [mirror], hasty()) as prometheus:
        prometheus.watch()
        simulator.fault(Fault("store", corrupt_at=1 << 20))
        assert ask(mirror.image_url).ended == "reset"
        wrong = told(prometheus, "PpsMirrorWrongBytes")
        assert wrong.labels == {
            "alertname": "PpsMirrorWrongBytes",
            "severity": "warning",
            "job": "pps-mirror",
            "instance": instance,
            "where": "fill",
        }
        assert wrong.annotations["summary"] == f"Wrong bytes came for an image at the mirror at {instance}"
        assert {each.name for each in firing(prometheus)} == {"PpsMirrorWrongBytes"}  # not that fills fail, after one
        mirror.stop()
        down = told(prometheus, "PpsMirrorDown")
        assert down.labels["severity"] == "critical"
        assert down.annotations["summary"] == f"The mirror at {instance} does not answer"


def test_an_image_that_has_no_room_is_told_before_and_when_it_is_passed_through(
    fresh_mirror: FreshMirror, ask: Ask, tmp_path: Path
) -> None:
    mirror = fresh_mirror({"store": {"max_size": "3MiB"}})
    with Prometheus(tmp_path / "prometheus", [mirror], hasty()) as prometheus:
        ask(mirror.metadata_url)
        no_room = told(prometheus, "PpsMirrorNoRoom")
        assert "may have 3MiB there" in no_room.annotations["description"]
        assert ask(mirror.image_url).status == 200
        assert told(prometheus, "PpsMirrorNotStoring").labels["severity"] == "warning"
        told(prometheus, "PpsMirrorDegraded")


def told(prometheus: Prometheus, name: str) -> Alert:
    """The alert of that name, when it fires."""
    found: list[Alert] = []

    def fires() -> bool:
        found[:] = [each for each in firing(prometheus) if each.name == name]
        return bool(found)

    eventually(fires, 60, name)
    (alert,) = found
    return alert
