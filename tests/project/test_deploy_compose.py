"""deploy/compose: a compose file that is shut in, refers to nothing that is not there, and means what it says."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mirror.common.units import parse_duration
from mirror.config import loader as loading
from tests.support.compose import DIRECTORY, FILE, environment, services
from tests.support.needs import needs
from tests.support.prometheus import promtool

ROOT = DIRECTORY.parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())

every_service = pytest.mark.parametrize("name", services())


def test_docker_compose_takes_it() -> None:
    program = needs("docker-compose", "apt-get install --no-install-recommends docker-compose")
    done = subprocess.run([program, "-f", FILE, "config"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(yaml.safe_load(done.stdout)["services"]) == {"mirror", "prometheus", "grafana"}


@every_service
def test_a_service_may_do_nothing_that_it_does_not_need(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices", "user"} & set(service)
    assert service["networks"] == ["private"]
    assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])
    assert "healthcheck" in service or (name == "mirror" and "\nHEALTHCHECK" in (ROOT / "Dockerfile").read_text())
    for volume in service["volumes"]:
        assert volume.endswith(":ro") or volume.split(":")[0] in COMPOSE["volumes"]


def test_only_the_port_of_clients_is_open_to_others() -> None:
    published = {port for service in services().values() for port in service["ports"]}
    assert {port for port in published if not port.startswith("127.0.0.1:")} == {"8080:8080"}
    assert len(published) == 4


def test_every_file_that_it_names_is_there_but_for_the_secrets_that_its_readme_makes() -> None:
    readme = (DIRECTORY / "README.md").read_text()
    for service in services().values():
        sources = [volume.split(":")[0] for volume in service["volumes"]]
        assert all((DIRECTORY / source).exists() for source in sources if source.startswith("."))
    assert (DIRECTORY / services()["mirror"]["build"] / "Dockerfile").is_file()
    for name, secret in COMPOSE["secrets"].items():
        path = secret["file"].removeprefix("./")
        assert f"/dev/stdin {path}" in readme
        assert path.startswith("secrets/")
        readers = [each for each in services().values() if name in each.get("secrets", ())]
        assert [f"/run/secrets/{name}" in each["environment"].values() for each in readers] == [True]
    assert "/secrets/" in (DIRECTORY / ".gitignore").read_text().splitlines()


def test_the_secrets_belong_to_the_users_that_read_them() -> None:
    user = re.search(r"^USER (\d+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert user is not None
    readme = (DIRECTORY / "README.md").read_text()
    assert f"-m 0400 -o {user[1]} /dev/stdin secrets/admin-token" in readme
    assert "-m 0400 -o 472 /dev/stdin secrets/grafana-password" in readme


def test_the_mirror_takes_its_settings() -> None:
    config = loading.load(None, environment())
    assert config.upstream.url == "https://app.datarobot.com"
    mirror = services()["mirror"]
    assert parse_duration(mirror["stop_grace_period"]) > config.server.drain
    volumes = dict(volume.split(":") for volume in mirror["volumes"])
    assert volumes["images"] == str(config.store.path)
    assert mirror["ports"] == [f"{config.server.port}:8080", f"127.0.0.1:{config.admin.port}:8081"]


def test_nobody_is_let_into_grafana_without_a_password() -> None:
    environ = services()["grafana"]["environment"]
    assert environ["GF_SECURITY_ADMIN_PASSWORD__FILE"] == "/run/secrets/grafana_password"
    assert environ["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    assert environ["GF_USERS_ALLOW_SIGN_UP"] == "false"


def test_its_prometheus_is_the_example_for_another_target_and_has_the_alerts(tmp_path: Path) -> None:
    ours = yaml.safe_load((DIRECTORY / "prometheus.yml").read_text())
    example = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    (scraped,) = ours["scrape_configs"]
    assert scraped["static_configs"] == [{"targets": ["mirror:8081"]}]
    assert "mirror" in services()
    scraped["static_configs"] = example["scrape_configs"][0]["static_configs"]
    assert ours == example
    for volume in services()["prometheus"]["volumes"]:
        source, target = volume.split(":")[:2]
        if target.startswith("/etc/prometheus/"):
            shutil.copy(DIRECTORY / source, tmp_path / Path(target).name)
    checked = promtool("check", "config", tmp_path / "prometheus.yml")
    assert checked.returncode == 0, checked.stderr
    assert "1 rule files found" in checked.stdout
