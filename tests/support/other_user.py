"""`pps-mirror` run as another user than root, also where that user may not read our interpreter."""

import sys

from tests.support.needs import needs

UID = 10001
"""The user that the image and the Kubernetes manifests run the mirror as."""

_BECOME = """
import sys, os, encodings.idna, encodings.utf_8_sig, pkgutil, importlib
import mirror
for module in pkgutil.walk_packages(mirror.__path__, "mirror."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
uid, gid = map(int, sys.argv[1:3])
del sys.argv[1:3]
os.setgroups([])
os.setresgid(gid, gid, gid)
os.setresuid(uid, uid, uid)
sys.exit(mirror.cli.main.main())
"""
"""Everything is imported first: the interpreter may lie where only root can read it."""


def command_as(uid: int, gid: int | None = None) -> list[str]:
    """`pps-mirror` as that user: to be followed by its arguments. Ends the test where we are not root."""
    needs("true", "apt-get install coreutils", root=True)
    return [sys.executable, "-c", _BECOME, str(uid), str(uid if gid is None else gid)]
