"""What lies in deploy/ to be used as it is: manifests that a cluster takes, and that mean what they say."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from mirror.config import Config
from mirror.config import loader as loading

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
BASE = yaml.safe_load((KUBERNETES / "base" / "kustomization.yaml").read_text())
EXAMPLE = yaml.safe_load((KUBERNETES / "example" / "kustomization.yaml").read_text())
NAME = {"app.kubernetes.io/name": "pps-mirror"}

Manifest = dict[str, Any]


def manifests() -> Iterator[Manifest]:
    """All that the base consists of, but for what kustomize generates."""
    for name in BASE["resources"]:
        yield from yaml.safe_load_all((KUBERNETES / "base" / name).read_text())


def of(kind: str) -> Manifest:
    """The first of that kind."""
    return next(manifest for manifest in manifests() if manifest["kind"] == kind)


def settings(kustomization: Manifest) -> dict[str, str]:
    """What it puts into the ConfigMap."""
    (generator,) = kustomization["configMapGenerator"]
    return dict(literal.split("=", 1) for literal in generator["literals"])


POD: Manifest = of("Deployment")["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]


@pytest.mark.parametrize("manifest", list(manifests()), ids=lambda manifest: str(manifest["kind"]))
def test_a_cluster_would_take_every_manifest(manifest: Manifest) -> None:
    if manifest["kind"] == "ServiceMonitor":  # not Kubernetes' own: its schema comes with Prometheus' operator
        (endpoint,) = manifest["spec"]["endpoints"]
        assert manifest["apiVersion"] == "monitoring.coreos.com/v1"
        assert set(manifest["spec"]) <= {"jobLabel", "selector", "endpoints"}
        assert set(endpoint) <= {"port", "path", "interval", "scheme"}
        return
    if manifest["kind"] == "PrometheusRule":
        assert manifest["apiVersion"] == "monitoring.coreos.com/v1"
        assert set(manifest["spec"]) == {"groups"}
        return
    kubernetes_validate.validate(manifest, "1.30", strict=True)


def test_every_file_of_the_base_is_part_of_it() -> None:
    files = {path.name for path in (KUBERNETES / "base").iterdir()}
    assert files == {"kustomization.yaml", *BASE["resources"]}
    assert EXAMPLE["resources"] == ["../base"]


def test_everything_that_selects_pods_selects_these() -> None:
    assert POD["metadata"]["labels"] == NAME
    assert of("Deployment")["spec"]["selector"]["matchLabels"] == NAME
    assert of("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == NAME
    assert of("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == NAME
    services = [manifest for manifest in manifests() if manifest["kind"] == "Service"]
    assert [service["spec"]["selector"] for service in services] == [NAME, NAME]
    monitored = of("ServiceMonitor")["spec"]["selector"]["matchLabels"]
    assert [service["metadata"]["name"] for service in services if service["metadata"]["labels"] == monitored] == [
        "pps-mirror-admin"
    ]


def test_ports_are_those_of_the_mirror_wherever_they_are_named() -> None:
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    config = Config()
    assert ports == {"http": config.server.port, "admin": config.admin.port}
    for service in (manifest for manifest in manifests() if manifest["kind"] == "Service"):
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
    probes = {name: CONTAINER[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {probe["port"] for probe in probes.values()} == {"admin"}
    assert probes["readinessProbe"]["path"] == "/readyz"
    assert {probes[name]["path"] for name in ("startupProbe", "livenessProbe")} == {"/healthz"}
    ingress = of("NetworkPolicy")["spec"]["ingress"]
    assert {port["port"] for rule in ingress for port in rule["ports"]} == set(ports)
    (admin,) = [rule for rule in ingress if rule["ports"] == [{"port": "admin"}]]
    assert admin["from"]
    (endpoint,) = of("ServiceMonitor")["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("admin", "/metrics")


def test_the_alerts_are_those_of_deploy_prometheus_and_find_what_the_service_monitor_scrapes() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
    assert of("PrometheusRule")["spec"] == rules
    monitor = of("ServiceMonitor")["spec"]
    assert monitor["jobLabel"] in monitor["selector"]["matchLabels"]
    job = monitor["selector"]["matchLabels"][monitor["jobLabel"]]
    (down,) = (rule for rule in rules["groups"][0]["rules"] if rule["alert"] == "PpsMirrorDown")
    pattern = re.search('job=~"(.+?)"', down["expr"])
    assert pattern is not None
    assert re.fullmatch(pattern[1], job)


def test_the_pod_may_do_nothing_that_the_mirror_does_not_need() -> None:
    pod, container = POD["spec"]["securityContext"], CONTAINER["securityContext"]
    assert pod["runAsNonRoot"]
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["readOnlyRootFilesystem"]
    assert not container["allowPrivilegeEscalation"]
    assert container["capabilities"] == {"drop": ["ALL"]}
    assert POD["spec"]["automountServiceAccountToken"] is False
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert user is not None
    assert (str(pod["runAsUser"]), str(pod["runAsGroup"])) == user.groups()


@pytest.mark.parametrize("overlay", [{}, settings(EXAMPLE)], ids=["base", "example"])
def test_the_settings_are_a_configuration_that_the_mirror_takes(overlay: dict[str, str]) -> None:
    config = loading.load(None, settings(BASE) | overlay)
    assert config.store.s3.bucket
    assert config.upstream.url
    assert POD["spec"]["terminationGracePeriodSeconds"] > config.server.drain
    mounts = {mount["mountPath"]: mount["name"] for mount in CONTAINER["volumeMounts"]}
    assert mounts[str(config.store.path)] == "store"
    assert config.admin.token_file is not None
    assert mounts[str(config.admin.token_file.parent)] == "admin"
    volumes = {volume["name"]: volume for volume in POD["spec"]["volumes"]}
    room = int(volumes["store"]["emptyDir"]["sizeLimit"].removesuffix("Gi")) << 30
    assert config.store.max_size is not None
    assert room >= config.store.max_size + (15 << 30)


def test_secrets_come_from_secrets_and_lie_nowhere_in_these_files() -> None:
    assert {"secretRef": {"name": "pps-mirror-s3", "optional": True}} in CONTAINER["envFrom"]
    for kustomization in (BASE, EXAMPLE):
        assert not {"secretGenerator"} & set(kustomization)
        assert not [name for name in settings(kustomization) if re.search("SECRET|PASSWORD|ACCESS_KEY|_TOKEN$", name)]
    assert "Secret" not in {manifest["kind"] for manifest in manifests()}
