"""What `pps-mirror doctor` advises is done, to the letter, in each deployment: then nothing is wrong any more.

A piece of advice that makes things worse is worse than none.
"""

import json
import os
import shlex
import stat
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mirror.simulator.client import Simulator
from tests.support.commands import clean_environment
from tests.support.needs import needs
from tests.support.other_user import UID, run_as
from tests.support.processes import MirrorProcess

POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}
"""What Kubernetes sets in each container."""

IN_A_CONTAINER = {"container": "podman"}
"""What podman sets in each container."""

Configured = Callable[..., MirrorProcess]


@pytest.fixture
def configured(tmp_path: Path, simulator: Simulator) -> Configured:
    """Mirrors with a token that their user may read, below a directory that everybody may search."""
    needs("chown", "apt-get install coreutils", root=True)
    for directory in (tmp_path, *tmp_path.parents):
        if stat.S_IMODE(directory.stat().st_mode) & 0o001 == 0:
            directory.chmod(directory.stat().st_mode | 0o001)
    mirrors: list[MirrorProcess] = []

    def configure(sections: Mapping[str, Mapping[str, Any]] | None = None) -> MirrorProcess:
        directory = tmp_path / f"mirror-{len(mirrors)}"
        directory.mkdir()
        token = directory / "token"
        token.write_text(simulator.token)
        os.chown(token, UID, UID)
        token.chmod(0o600)
        tables = {"upstream": {"token_file": str(token)}, **(sections or {})}
        mirrors.append(MirrorProcess(directory, simulator.api_url, tables))
        return mirrors[-1]

    return configure


def run(
    mirror: MirrorProcess, uid: int, command: str, *arguments: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    return run_as(uid, command, "-c", mirror.config_file, *arguments, environ=clean_environment() | environ)


def doctor(mirror: MirrorProcess, uid: int, **environ: str) -> list[dict[str, Any]]:
    """What it finds wrong, or worth a note, as that user."""
    done = run(mirror, uid, "doctor", "--json", **environ)
    assert done.stderr == ""
    return [each for each in json.loads(done.stdout) if not each["ok"] or each["note"]]


def wrong(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in found if not each["ok"]]


def assert_it_works(mirror: MirrorProcess, simulator: Simulator, **environ: str) -> None:
    """Nothing is wrong, and the mirror's user can bring an image into the store and take it out again."""
    assert wrong(doctor(mirror, UID, **environ)) == []
    pulled = run(mirror, UID, "pull", **environ)
    assert (pulled.returncode, pulled.stderr) == (0, "")
    name = simulator.image_sha256("first")[:12]
    removed = run(mirror, UID, "rm", "--force", name, **environ)
    assert (removed.returncode, removed.stderr) == (0, "")


def laid_out(store: Path, uid: int, gid: int, mode: int = 0o750) -> None:
    """A store as a mirror of that user leaves it."""
    for directory in (store, store / "images", store / "partial", store / "quarantine"):
        directory.mkdir()
        os.chown(directory, uid, gid)
        directory.chmod(mode)


def as_the_kubelet_does(volume: Path, group: int) -> None:
    """`fsGroup`: what the kubelet does to a volume before the pod starts (SetVolumeOwnership of Kubernetes)."""
    for path in (volume, *sorted(volume.rglob("*"))):
        os.chown(path, -1, group)
        more = 0o2770 if path.is_dir() else 0o660
        path.chmod(stat.S_IMODE(path.stat().st_mode) | more)


# Whose the files are


def test_a_volume_that_is_roots_and_writable_by_the_pods_group_is_in_order(
    configured: Configured, simulator: Simulator
) -> None:
    mirror = configured()
    mirror.store.mkdir()
    os.chown(mirror.store, 0, UID)
    mirror.store.chmod(0o2777)
    assert_it_works(mirror, simulator, **POD)  # files of the mirror's own are in it from here on
    for environ in (POD, IN_A_CONTAINER, {}):
        assert wrong(doctor(mirror, UID, **environ)) == []
        assert wrong(doctor(mirror, 0, **environ)) == []
    assert_it_works(mirror, simulator, **POD)


def test_what_a_restore_as_root_left_is_given_to_the_mirrors_user_and_to_nobody_else(
    configured: Configured, simulator: Simulator
) -> None:
    mirror = configured()
    laid_out(mirror.store, UID, UID)
    left = mirror.store / "partial" / ("0" * 64)
    left.touch(mode=0o600)
    assert_advice_helps(mirror, UID, left, f"chown -R --from=0 {UID}:{UID} {mirror.store}")
    left.unlink()
    left.touch(mode=0o600)
    assert_advice_helps(mirror, 0, left, f"chown -R --from=0 {UID}:{UID} {mirror.store}")
    assert_it_works(mirror, simulator)


def assert_advice_helps(mirror: MirrorProcess, uid: int, left: Path, command: str) -> None:
    (found,) = wrong(doctor(mirror, uid))
    assert str(left.relative_to(mirror.store)) in found["message"]
    assert found["advice"] == f"as root: {command}"
    subprocess.run(shlex.split(command), check=True, timeout=20)
    assert wrong(doctor(mirror, uid)) == []


def test_in_a_pod_a_volume_that_cannot_be_written_becomes_so_by_the_group_that_is_advised(
    configured: Configured, simulator: Simulator
) -> None:
    mirror = configured()
    laid_out(mirror.store, 0, 0, 0o755)
    found = wrong(doctor(mirror, UID, **POD))
    assert all("chown" not in each["advice"] for each in found)
    assert f"fsGroup: {UID} and fsGroupChangePolicy: Always" in found[0]["advice"]
    as_the_kubelet_does(mirror.store, UID)
    assert_it_works(mirror, simulator, **POD)


def test_a_store_that_cannot_be_made_is_made_as_advised(configured: Configured, simulator: Simulator) -> None:
    mirror = configured()
    (found,) = wrong(doctor(mirror, UID))
    command = f"install -d -o {UID} -g {UID} -m 0750 {mirror.store}"
    assert found["advice"] == f"as root: {command}; or set store.path"
    subprocess.run(shlex.split(command), check=True, timeout=20)
    assert_it_works(mirror, simulator)


def test_who_is_not_the_mirrors_user_is_told_to_be_and_not_to_take_the_store_over(
    configured: Configured, simulator: Simulator
) -> None:
    mirror = configured()
    laid_out(mirror.store, UID, UID)
    (mirror.config_file.with_name("token")).chmod(0o644)
    other = UID + 1
    found = [each for each in doctor(mirror, other) if each["check"] == "store"]
    assert all("chown" not in each["advice"] for each in found)
    command = f"setpriv --reuid={UID} --regid={UID} --clear-groups pps-mirror doctor -c {mirror.config_file}"
    assert any(command in each["advice"] for each in found)
    assert needs("setpriv", "apt-get install util-linux")
    ids = shlex.split(command)[:4]
    done = subprocess.run([*ids, "id", "-u"], capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout.strip() == str(UID)
    assert wrong(doctor(mirror, UID)) == []


def test_a_store_behind_a_closed_directory_is_opened_as_advised(configured: Configured, simulator: Simulator) -> None:
    mirror = configured()
    laid_out(mirror.store, UID, UID)
    closed = mirror.store.with_name("closed")
    closed.mkdir(mode=0o700)
    moved = mirror.store.rename(closed / "store")
    environ = {"PPS_MIRROR__STORE__PATH": str(moved)}
    (found,) = wrong(doctor(mirror, UID, **environ))
    assert f"namei -l {moved}" in found["advice"]
    assert "chmod o+x" in found["advice"]
    closed.chmod(closed.stat().st_mode | 0o001)
    assert_it_works(mirror, simulator, **environ)


# The token


@pytest.mark.parametrize("runs", [UID, 0])
@pytest.mark.parametrize(
    ("owner", "group", "mode", "advice"),
    [
        (UID, UID, 0o644, "chmod go= {token}"),
        (UID, 0, 0o640, "chmod go= {token}"),
        (0, UID, 0o644, "chmod o= {token}"),
        (0, 0, 0o644, f"chown {UID} {{token}} && chmod 400 {{token}}"),
    ],
)
def test_a_token_that_others_can_read_is_kept_from_them_and_not_from_the_mirror(
    configured: Configured, runs: int, owner: int, group: int, mode: int, advice: str
) -> None:
    mirror = configured()
    laid_out(mirror.store, UID, UID)
    token = mirror.config_file.with_name("token")
    os.chown(token, owner, group)
    token.chmod(mode)
    (note,) = [each for each in doctor(mirror, runs) if each["check"] == "token file"]
    assert note["advice"] == advice.format(token=token)
    subprocess.run(["sh", "-c", note["advice"]], check=True, timeout=20)
    left = doctor(mirror, UID)
    assert [each for each in left if each["check"] == "token file" or not each["ok"]] == []


def test_a_secret_that_the_mirrors_group_alone_can_read_is_in_order(configured: Configured) -> None:
    """As `deploy/kubernetes` mounts it: root's, mode 0440, of the group fsGroup."""
    mirror = configured()
    laid_out(mirror.store, UID, UID)
    token = mirror.config_file.with_name("token")
    os.chown(token, 0, UID)
    token.chmod(0o440)
    for runs in (UID, 0):
        assert [each for each in doctor(mirror, runs, **POD) if each["check"] == "token file"] == []


# Commands that are advised are there in each deployment


def test_advice_speaks_of_what_is_there(configured: Configured) -> None:
    mirror = configured()
    laid_out(mirror.store, UID, UID)
    for deployment, words in (
        ({}, ("LimitNOFILE=", "AmbientCapabilities", "journalctl -u pps-mirror", "setpriv")),
        (IN_A_CONTAINER, ("--ulimit nofile=", "--publish", "docker logs", "docker exec --user 10001")),
        (POD, ("container runtime", "the Service maps", "kubectl logs", "kubectl exec")),
    ):
        environ = clean_environment() | {"PPS_MIRROR__SERVER__PORT": "700"} | deployment
        done = run_as(0, "doctor", "-c", mirror.config_file, "--json", environ=environ, open_files=1024)
        said = " ".join(each["advice"] for each in json.loads(done.stdout))
        for word in words:
            assert word in said, deployment
