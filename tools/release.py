"""`make release`: builds what is handed out, tries it out, and then cuts the CHANGELOG. It pushes nothing.

All of it is made from the last commit, in a directory of its own. A release that is not fit leaves the tree as it was.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

UNRELEASED = "## Unreleased\n"

ASSETS = ("", "style.css", "script.js")
"""What the status page is made of: files of the package that are no Python."""

START_SECONDS = 60.0
"""How long the mirror may take to start before it is killed."""

NEXT = """\
{version} is built and tried out: {files}.
CHANGELOG.md has its section now. Look at it, and then:
  git commit -m "Release {version}" CHANGELOG.md
  git tag -a v{version} -m "Release {version}"
  git push --follow-tags
Then hand out what is in dist/, and set the next version in mirror/__init__.py.
"""


class Unfit(Exception):
    """There can be no release; `str()` says why, and what to do."""


def main() -> int:
    """Make a release of the project in the working directory. Returns the exit status."""
    try:
        version, files = release(Path.cwd(), datetime.now(UTC).date().isoformat())
    except Unfit as unfit:
        print(f"no release: {unfit}", file=sys.stderr)
        return 1
    print(NEXT.format(version=version, files=", ".join(files)), end="")
    return 0


def release(project: Path, today: str) -> tuple[str, Sequence[str]]:
    """Build, try out, cut. Returns the version and the names of the files in dist/. Raises Unfit."""
    if changed := _said("git", "status", "--porcelain", cwd=project):
        raise Unfit(f"there are changes that are not committed; commit or remove them:\n{changed}")
    version = _version(project)
    if _said("git", "tag", "--list", f"v{version}", cwd=project):
        raise Unfit(f"the tag v{version} exists; set the next version in mirror/__init__.py, and commit that")
    changelog = cut((project / "CHANGELOG.md").read_text(), version, today)
    with tempfile.TemporaryDirectory(prefix="pps-mirror-release-") as name:
        directory = Path(name)
        tree, built = directory / "tree", directory / "dist"
        _run("git", "clone", "--quiet", str(project), str(tree), cwd=directory)
        (tree / "CHANGELOG.md").write_text(changelog)
        _run(sys.executable, "-m", "build", "--no-isolation", f"--outdir={built}", cwd=tree)
        files = sorted(built.iterdir())
        _run(sys.executable, "-m", "twine", "check", "--strict", *map(str, files), cwd=directory)
        (wheel,) = (file for file in files if file.suffix == ".whl")
        try_out(_installed(wheel, tree / "constraints.txt", directory), version, directory)
        (project / "dist").mkdir(exist_ok=True)
        for file in files:
            shutil.copy(file, project / "dist")
    (project / "CHANGELOG.md").write_text(changelog)
    return version, [f"dist/{file.name}" for file in files]


def cut(changelog: str, version: str, today: str) -> str:
    """Return the text with what is unreleased below the version and its date. Raises Unfit when there is nothing."""
    if f"\n## {version} " in changelog:
        raise Unfit(f"CHANGELOG.md has {version} already; set the next version in mirror/__init__.py, and commit that")
    before, heading, after = changelog.partition(UNRELEASED)
    section = re.split(r"^## ", after, maxsplit=1, flags=re.MULTILINE)[0]
    if not heading or not re.search(r"^- ", section, re.MULTILINE):
        raise Unfit("CHANGELOG.md has nothing under Unreleased; say there what users will notice, and commit that")
    return f"{before}{heading}\n## {version} - {today}\n{after}"


def try_out(program: Path, version: str, directory: Path) -> None:
    """Run what was installed: its version, the main job, and the status page with all that it is made of.

    Raises Unfit. The working directory is none of a project, so that nothing of that is imported by mistake.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PPS_MIRROR_")}
    if (said := _said(str(program), "--version", cwd=directory)) != f"pps-mirror {version}":
        raise Unfit(f"the wheel of {version} says that it is {said}")
    _run(str(program), "demo", "--once", "--size=8MiB", "--rate=50MB/s", cwd=directory, environ=environ)
    with tempfile.TemporaryDirectory(dir=directory) as store:
        settings = {
            "AUTH__MODE": "open",
            "SERVER__HOST": "127.0.0.1",
            "SERVER__PORT": "0",
            "ADMIN__PORT": "0",
            "STORE__PATH": store,
            "LOG__FORMAT": "json",
        }
        environ |= {f"PPS_MIRROR__{key}": value for key, value in settings.items()}
        with subprocess.Popen(
            [program, "serve"], cwd=directory, env=environ, stderr=subprocess.PIPE, text=True
        ) as mirror:
            give_up = threading.Timer(START_SECONDS, mirror.kill)
            give_up.start()
            try:
                _look_at_the_page(mirror)
            finally:
                give_up.cancel()
                mirror.send_signal(signal.SIGTERM)
                mirror.communicate()
        if mirror.returncode != 0:
            raise Unfit(f"the mirror of the wheel ended with status {mirror.returncode} at SIGTERM")


def _look_at_the_page(mirror: subprocess.Popen[str]) -> None:
    directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the environment names
    lines = []
    for line in mirror.stderr or ():
        lines.append(line)
        said = json.loads(line)
        if said.get("event.action") == "mirror.started":
            url = said["message"].rpartition("admin on ")[2]
            for asset in ASSETS:
                with directly.open(f"{url}/{asset}") as answer:
                    if not answer.read():
                        raise Unfit(f"/{asset} of the status page is empty")
            return
    raise Unfit(f"the mirror of the wheel does not start:\n{''.join(lines)}")


def _installed(wheel: Path, constraints: Path, directory: Path) -> Path:
    """Install the wheel into an empty environment. Returns the path of its program."""
    environment = directory / "environment"
    _run(sys.executable, "-m", "venv", "--without-pip", str(environment), cwd=directory)
    pip = (sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "--disable-pip-version-check")
    _run(*pip, "install", f"--constraint={constraints}", str(wheel), cwd=directory)
    return environment / "bin" / "pps-mirror"


def _version(project: Path) -> str:
    text = (project / "mirror" / "__init__.py").read_text()
    (version,) = re.findall(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    return str(version)


def _said(*command: str, cwd: Path) -> str:
    return _run(*command, cwd=cwd).strip()


def _run(*command: str, cwd: Path, environ: Mapping[str, str] | None = None) -> str:
    """Return what the command writes to its standard output. Raises Unfit with all that it said when it fails."""
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unfit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
