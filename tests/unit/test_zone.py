"""Which time zones a machine knows, and which it takes for UTC without a word."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mirror.common.time_zone import trouble

NAMES = ["Europe/Berlin", "Nowhere/Town", ":Nowhere/Town", "CET-1CEST,M3.5.0,M10.5.0/3", "<+03>-3", "CET", "EST5EDT"]


@pytest.fixture
def zones(tmp_path: Path) -> Path:
    (tmp_path / "Europe").mkdir()
    (tmp_path / "Europe" / "Berlin").touch()
    return tmp_path


@pytest.mark.parametrize(
    "name", ["", "UTC", "UTC0", "Etc/UTC", "Europe/Berlin", ":Europe/Berlin", *NAMES[3:5], "EST5EDT"]
)
def test_a_zone_that_is_there_or_written_out_is_known(zones: Path, name: str) -> None:
    assert trouble({"TZ": name, "TZDIR": str(zones)}) is None


@pytest.mark.parametrize("name", ["Europe/London", "Europe/berlin", "CET", "Berlin", ":/nowhere", "+1"])
def test_another_is_named_with_what_to_do(zones: Path, name: str) -> None:
    said = trouble({"TZ": name, "TZDIR": str(zones)})
    assert said == (
        f"TZ = {name!r} is no time zone that this machine knows, "
        "so times and windows of the day are UTC; install the package tzdata, or correct the name"
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_system_takes_for_utc_what_is_said_to_be_unknown(zones: Path, name: str) -> None:
    """As the C library has it, with no zone installed."""
    environ = {**os.environ, "TZ": name, "TZDIR": str(zones / "nothing")}
    code = "import time; print(time.localtime(1780000000).tm_gmtoff or time.localtime(1770000000).tm_gmtoff)"
    offset = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert (offset.stdout.strip() == "0") == (trouble(environ) is not None)


def test_a_machine_whose_own_zone_is_not_installed_is_told(tmp_path: Path) -> None:
    local = tmp_path / "localtime"
    assert trouble({}, local) is None
    local.symlink_to("/nowhere/Europe/Berlin")
    assert "leads to '/nowhere/Europe/Berlin', which is not there" in (trouble({}, local) or "")
