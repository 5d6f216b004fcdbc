"""Setting up with make, on the oldest Python that is promised; and when pip cannot, the person learns why."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.documents import ROOT
from tests.support.needs import needs

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OLDEST = PROJECT["requires-python"].removeprefix(">=")
RUN, DEVELOP = (
    dict(line.split("==") for line in (ROOT / name).read_text().split())
    for name in ("constraints.txt", "constraints-dev.txt")
)
"""The pins of what the mirror runs on, and of what tests, documents and releases need besides."""

PINS = RUN | DEVELOP

BACKEND = """\
import pathlib

def prepare_metadata_for_build_editable(directory, config_settings=None):
    name = "demo-1.dist-info"
    (pathlib.Path(directory) / name).mkdir()
    text = "Metadata-Version: 2.1\\nName: demo\\nVersion: 1\\nRequires-Dist: helper==1\\n"
    (pathlib.Path(directory) / name / "METADATA").write_text(text)
    return name

def build_editable(directory, config_settings=None, metadata_directory=None):
    raise SystemExit("it came further than it should")
"""


def make(*arguments: str, directory: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [needs("make", "apt-get install make"), f"--directory={directory}", f"PYTHON={sys.executable}"]
    return subprocess.run(
        [*command, *arguments], env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )


def test_every_pin_takes_the_oldest_python_that_is_promised() -> None:
    """Made by a newer one, they would not: `make pins PYTHON=...` resolves them with the oldest."""
    wanted = {}
    for name in PINS:
        try:
            wanted[name] = str(metadata.metadata(name).json.get("requires_python", ""))
        except metadata.PackageNotFoundError:  # what only another Python needs
            continue
    assert len(wanted) > 80
    assert [f"{name} wants Python {which}" for name, which in wanted.items() if OLDEST not in SpecifierSet(which)] == []


def test_what_is_installed_is_what_is_pinned() -> None:
    """Or the test above looked at other versions."""
    different = {}
    for name, pinned in PINS.items():
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if Version(installed) != Version(pinned):
            different[name] = f"{installed}, pinned {pinned}"
    assert different == {}, "remove .venv and set it up again"


def test_the_pins_to_run_it_are_of_what_it_runs_on_and_of_nothing_else() -> None:
    marker = {"python_version": ".".join(OLDEST.split(".")[:2]), "python_full_version": OLDEST, "extra": ""}
    wanted: set[str] = set()
    left = list(PROJECT["dependencies"])
    while left:
        requirement = Requirement(left.pop())
        name = canonicalize_name(requirement.name)
        if name not in wanted and (requirement.marker is None or requirement.marker.evaluate(marker)):
            wanted.add(name)
            left += metadata.requires(name) or ()
    assert {canonicalize_name(name) for name in RUN} == wanted
    assert RUN.keys() & DEVELOP.keys() == set()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of another name with our Makefile."""
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(ROOT / "Makefile", project)
    (project / "backend.py").write_text(BACKEND)
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "demo"\nversion = "1"\nrequires-python = ">=3.11"\n'
    )
    (project / "constraints.txt").write_text("helper==2\n")
    (project / "constraints-dev.txt").write_text("tester==2\n")
    return project


def test_pins_are_resolved_by_the_oldest_python_only(project: Path) -> None:
    done = make("pins", directory=project)
    pins = [(project / name).read_text() for name in ("constraints.txt", "constraints-dev.txt")]
    assert (done.returncode, pins) == (2, ["helper==2\n", "tester==2\n"])
    assert "oldest Python that is promised, 3.11, as on" in done.stderr


def test_a_python_that_is_too_old_is_refused(project: Path) -> None:
    file = project / "pyproject.toml"
    file.write_text(file.read_text().replace("3.11", "99.1"))
    done = make("install", directory=project)
    assert done.returncode == 2
    assert "needs Python 99.1 or newer" in done.stderr


def test_when_pip_fails_the_person_learns_which_packages_conflict(project: Path, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for version in ("1", "2"):
        with zipfile.ZipFile(wheels / f"helper-{version}-py3-none-any.whl", "w") as wheel:
            about = f"helper-{version}.dist-info"
            wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: helper\nVersion: {version}\n")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "")
    done = make("install", directory=project, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels))
    assert done.returncode != 0
    assert "demo 1 depends on helper==1" in done.stderr
    assert "(constraint) helper==2" in done.stderr
    assert "Collecting" not in done.stdout  # and nothing else
    assert not (project / ".venv" / "run.ok").exists()
