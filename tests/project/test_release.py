"""`make release`, in a repository of its own: what it builds and tries out, what it writes, and when it refuses."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import mirror
from tests.support.documents import ROOT
from tests.support.needs import needs
from tools.release import Unfit, cut

CHANGES = "# Changelog\n\n## Unreleased\n\n### Added\n\n- a thing\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """This project, committed, with one change that is not released."""
    project = tmp_path / "project"
    unwanted = shutil.ignore_patterns("__pycache__")
    for name in ("mirror", "tools"):
        shutil.copytree(ROOT / name, project / name, ignore=unwanted)
    for name in (".gitignore", "MANIFEST.in", "README.md", "config.example.toml", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, project)
    (project / "CHANGELOG.md").write_text(CHANGES)
    git(project, "init", "--quiet")
    commit(project)
    return project


def git(project: Path, *arguments: str) -> str:
    command = [needs("git", "apt-get install git"), "-c", "user.name=A", "-c", "user.email=a@example.com"]
    return subprocess.run([*command, *arguments], cwd=project, capture_output=True, text=True, check=True).stdout


def commit(project: Path) -> None:
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message=as it is")


def release(project: Path) -> subprocess.CompletedProcess[str]:
    """Make a release without the Internet: what the wheel depends on is ours and not installed for it."""
    environ = os.environ | {"PIP_NO_DEPS": "1", "PYTHONPATH": sysconfig.get_path("purelib")}
    return subprocess.run(
        [sys.executable, "-m", "tools.release"], cwd=project, env=environ, capture_output=True, text=True, check=False
    )


def test_a_release_is_built_and_tried_out_and_its_changes_get_its_name(project: Path) -> None:
    before = git(project, "rev-parse", "HEAD")
    done = release(project)
    assert (done.returncode, done.stderr) == (0, "")
    version = mirror.__version__
    sdist, wheel = f"pps_mirror-{version}.tar.gz", f"pps_mirror-{version}-py3-none-any.whl"
    assert {path.name for path in (project / "dist").iterdir()} == {sdist, wheel}
    with zipfile.ZipFile(project / "dist" / wheel) as archive:
        names = archive.namelist()
    assert {"mirror/py.typed", *(f"mirror/http/page/{each}" for each in ("page.html", "style.css", "script.js"))} <= {
        *names
    }
    assert {name.split("/")[0] for name in names} == {"mirror", f"pps_mirror-{version}.dist-info"}
    # Nothing is committed or tagged: a person looks first, and is told what to do.
    assert git(project, "status", "--porcelain") == " M CHANGELOG.md\n"
    assert (git(project, "rev-parse", "HEAD"), git(project, "tag")) == (before, "")
    assert f"\n## Unreleased\n\n## {version} - 2" in (project / "CHANGELOG.md").read_text()
    for command in (f'git commit -m "Release {version}" CHANGELOG.md', f"git tag -a v{version}"):
        assert command in done.stdout
    # And now there can be no second one of that name.
    assert "not committed" in release(project).stderr
    commit(project)
    assert f"CHANGELOG.md has {version} already" in release(project).stderr
    git(project, "tag", f"v{version}")
    assert f"the tag v{version} exists" in release(project).stderr


def test_a_wheel_that_lacks_the_page_is_not_fit(project: Path) -> None:
    file = project / "pyproject.toml"
    file.write_text(file.read_text().replace('"mirror.http.page" = ["*.html", "*.css", "*.js"]', ""))
    commit(project)
    done = release(project)
    assert (done.returncode, "style.css" in done.stderr) == (1, True), done.stderr
    assert git(project, "status", "--porcelain") == ""
    assert not (project / "dist").exists()


@pytest.mark.parametrize("name", ["new.py", "README.md"])
def test_what_is_not_committed_is_not_released(project: Path, name: str) -> None:
    (project / name).write_text("changed")
    done = release(project)
    assert (done.returncode, name in done.stderr) == (1, True)
    assert (project / "CHANGELOG.md").read_text() == CHANGES


def test_what_is_unreleased_goes_below_its_version() -> None:
    text = cut(CHANGES + "\n## 0.9 - 2026-01-01\n\n- old\n", "1.0", "2026-02-03")
    assert text == (
        "# Changelog\n\n## Unreleased\n\n## 1.0 - 2026-02-03\n\n### Added\n\n- a thing\n"
        "\n## 0.9 - 2026-01-01\n\n- old\n"
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("# Changelog\n\n## Unreleased\n", "nothing under Unreleased"),
        ("# Changelog\n\n## Unreleased\n\n### Added\n\n## 0.9 - 2026-01-01\n\n- old\n", "nothing under Unreleased"),
        ("# Changelog\n\n- a thing\n", "nothing under Unreleased"),
        (CHANGES + "\n## 1.0 - 2026-01-01\n\n- old\n", "has 1.0 already"),
    ],
)
def test_there_is_no_release_without_changes_or_with_an_old_version(text: str, why: str) -> None:
    with pytest.raises(Unfit, match=why):
        cut(text, "1.0", "2026-02-03")
