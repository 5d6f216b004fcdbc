"""What the mirror is started in: a time zone that is not there, no threads to be had, editors that mark their files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mirror.simulator.client import Simulator
from tests.support.fixtures import Ask, FreshMirror
from tests.support.needs import needs
from tests.support.processes import MirrorProcess

pytestmark = pytest.mark.real_command

NOBODY = 54_321
"""A user id that nothing else runs under."""


def test_a_time_zone_that_is_not_installed_is_said_at_the_start_and_by_check_and_doctor(
    fresh_mirror: FreshMirror,
) -> None:
    mirror = fresh_mirror(environ={"TZ": "Nowhere/Town"})
    said = "TZ = 'Nowhere/Town' is no time zone that this machine knows, so times and windows of the day are UTC"
    assert mirror.settled.log().count(said) == 1
    assert mirror.stop() == 0
    for command in ("check", "doctor"):
        ran = subprocess.run(
            [sys.executable, "-m", "mirror.cli.main", command, "--json", "-c", str(mirror.config_file)],
            env=mirror.environ,
            capture_output=True,
            timeout=120,
            check=False,
        )
        (found,) = (each for each in json.loads(ran.stdout) if each["check"] == "time zone")
        assert said in found["message"]
        assert found["ok"]


def test_where_no_thread_may_be_started_that_is_one_line(tmp_path: Path, simulator: Simulator) -> None:
    setpriv = needs("setpriv", "apt-get install util-linux", root=True)
    prlimit = needs("prlimit", "apt-get install util-linux")
    mirror = MirrorProcess(tmp_path / "mirror", simulator.api_url)
    as_nobody = [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    as_nobody += ["--inh-caps=-all,+dac_override", "--ambient-caps=+dac_override"]  # to read what root has
    mirror.through = [*as_nobody, prlimit, "--nproc=1"]
    mirror.start(wait=False)
    assert mirror.wait_dead(60) == 1
    assert mirror.settled.log() == (
        "pps-mirror: this user may start no more threads or processes here: raise its limit (ulimit -u)\n"
    )


def test_a_home_directory_and_a_byte_order_mark(tmp_path: Path, simulator: Simulator, ask: Ask) -> None:
    mirror = MirrorProcess(tmp_path / "mirror", simulator.api_url, environ={"HOME": str(tmp_path)})
    written = mirror.config_file.read_text().replace(str(mirror.store), "~/mirror/store")
    assert "~/" in written
    mirror.config_file.write_text(written, encoding="utf-8-sig")
    with mirror:
        assert ask(mirror.image_url).status == 200
    assert (mirror.store / "images").is_dir()
    assert not Path("~").exists()
