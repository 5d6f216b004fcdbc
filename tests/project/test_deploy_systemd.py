"""deploy/systemd/: units that systemd takes, shut in as far as they can be, and that mean what they say."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mirror.config import Config
from mirror.config.loader import load
from mirror.process.systemd import PassedSockets
from tests.support.needs import needs

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
EXPOSURE = 2.5
"""Of 10, at most, as `systemd-analyze security` reckons."""

HERE = Path(sys.executable).with_name("pps-mirror")
INSTALL = "apt-get install systemd"


def settings(name: str, key: str) -> list[str]:
    """All values of that key in a unit."""
    lines = (UNITS / name).read_text().splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{key}=")]


def setting(name: str, key: str) -> str:
    """The only one."""
    (value,) = settings(name, key)
    return value


SERVICE, SOCKET = "pps-mirror.service", "pps-mirror.socket"


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units as they are, but for the program, which is not in /opt here."""
    for path in UNITS.iterdir():
        text = path.read_text()
        assert path.suffix != ".service" or "ExecStart=/opt/pps-mirror/bin/pps-mirror serve " in text
        (tmp_path / path.name).write_text(text.replace("/opt/pps-mirror/bin/pps-mirror", str(HERE)))
    return tmp_path


def test_systemd_finds_nothing_wrong(units: Path) -> None:
    verify = [needs("systemd-analyze", INSTALL), "verify", "--man=no"]
    done = subprocess.run(
        [*verify, *(str(units / name) for name in (SERVICE, SOCKET))], capture_output=True, text=True, check=False
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if "pps-mirror" in line]) == (0, [])


def test_systemd_would_find_a_key_that_it_does_not_know(units: Path) -> None:
    service = units / SERVICE
    service.write_text(service.read_text().replace("WatchdogSec=", "WatchdogSeconds="))
    done = subprocess.run(
        [needs("systemd-analyze", INSTALL), "verify", "--man=no", str(service)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "WatchdogSeconds" in done.stderr


def test_the_service_is_shut_in(units: Path) -> None:
    security = [needs("systemd-analyze", INSTALL), "security", "--offline=true", "--no-pager", "--json=short"]
    threshold = f"--threshold={int(EXPOSURE * 10)}"
    done = subprocess.run([*security, threshold, str(units / SERVICE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    open_to = {each["name"] for each in json.loads(done.stdout) if each["set"] is False}
    assert not open_to & {"NoNewPrivileges=", "ProtectSystem=", "ProtectHome=", "PrivateDevices="}


def test_the_user_that_the_service_runs_as_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    declared = shutil.copy(UNITS / "pps-mirror.sysusers.conf", tmp_path)
    subprocess.run([needs("systemd-sysusers", INSTALL), f"--root={tmp_path}", declared], check=True)
    user, _, number, *_, home, shell = (tmp_path / "etc" / "passwd").read_text().strip().split(":")
    assert (user, home) == (setting(SERVICE, "User"), str(Config().store.path))
    assert int(number) > 0
    assert shell.endswith("nologin")


def test_the_service_leaves_downloads_the_time_that_the_mirror_gives_them() -> None:
    assert int(setting(SERVICE, "TimeoutStopSec")) > Config().server.drain
    assert int(setting(SERVICE, "LimitNOFILE")) > 4 * Config().server.max_connections


def test_the_socket_is_one_that_the_mirror_takes_and_on_its_port() -> None:
    assert setting(SOCKET, "FileDescriptorName") in PassedSockets.__slots__
    assert int(setting(SOCKET, "ListenStream")) == Config().server.port


def test_paths_are_those_of_the_mirror() -> None:
    assert Path("/var/lib", setting(SERVICE, "StateDirectory")) == Config().store.path
    assert f" -c /etc/{setting(SERVICE, 'ConfigurationDirectory')}/config.toml" in setting(SERVICE, "ExecStart")


def test_every_credential_is_a_file_that_a_key_can_name(tmp_path: Path) -> None:
    credentials = [name for name in settings(SERVICE, "LoadCredential") if name.endswith("-token")]
    named = {
        f"PPS_MIRROR__{name.removesuffix('-token').upper()}__TOKEN_FILE": str(tmp_path / name) for name in credentials
    }
    config = load(None, named)
    assert config.upstream.token_file == tmp_path / "upstream-token"
    assert config.admin.token_file == tmp_path / "admin-token"
