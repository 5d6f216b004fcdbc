"""A Debian root with Python, and the wheels to install the project there: a container is built from them offline."""

import hashlib
import http.server
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.support.kept import kept
from tests.support.needs import needs

SUITE = "bookworm"
PYTHON = "3.11"
"""The suite's."""

PROJECT = Path(__file__).parents[2]

_LEFT_OUT = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale")


def debian_root() -> Path:
    """A tar file for `docker import`, made by debootstrap from Debian's own mirror and kept (a minute, 170 MB)."""
    return kept(f"{SUITE}.tar", _bootstrap)


def _bootstrap(tar: Path) -> None:
    program = needs("debootstrap", "apt-get install --no-install-recommends debootstrap", root=True)
    root = tar.with_name("root")
    _run(program, "--variant=minbase", "--include=python3,python3-venv", SUITE, str(root))
    _run(
        "tar", f"--directory={root}", *(f"--exclude=./{name}/*" for name in _LEFT_OUT), f"--file={tar}", "--create", "."
    )


def wheels() -> Path:
    """A directory with what the project is built and installed from, for the Debian root's Python; kept."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    requirements = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    constraints = PROJECT / "constraints.txt"
    key = hashlib.sha256(repr(requirements).encode() + constraints.read_bytes()).hexdigest()[:16]

    def download(directory: Path) -> None:
        target = ("--only-binary=:all:", f"--python-version={PYTHON}", f"--constraint={constraints}")
        _run(sys.executable, "-m", "pip", "download", "--quiet", *target, f"--dest={directory}", *requirements)

    return kept(f"wheels-{key}", download)


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """The URL of a page that lists the directory's files, which is all that `pip --find-links` asks for."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(directory))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
