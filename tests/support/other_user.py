"""`pps-mirror` run as another user than root, also where that user may not read our interpreter."""

import encodings.idna
import encodings.utf_8_sig  # noqa: F401 - for a process that may not be able to import them later
import importlib
import os
import pkgutil
import resource
import subprocess
from functools import partial
from pathlib import Path

import mirror
from tests.support.commands import run_forked
from tests.support.needs import needs

UID = 10001
"""The user that the image and the Kubernetes manifests run the mirror as."""


def run_as(
    uid: int, *arguments: str | Path, environ: dict[str, str], open_files: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command as that user, who may have so many files open. Ends the test where we are not root."""
    needs("true", "apt-get install coreutils", root=True)
    return run_forked(*arguments, environ=environ, cwd=Path("/"), prepare=partial(_become, uid, open_files))


def _become(uid: int, open_files: int | None) -> None:
    """Import everything first: the interpreter may lie where only root can read it."""
    for module in pkgutil.walk_packages(mirror.__path__, "mirror."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    if open_files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
