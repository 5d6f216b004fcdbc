"""What a test needs from the machine beside Python: without it the test is skipped and says so, but never in CI."""

import os
import shutil
from typing import NoReturn

import pytest

_SYSTEM_PROGRAMS = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where daemons are installed; a user's PATH often lacks it."""


def needs(program: str, install: str, *, root: bool = False) -> str:
    """Return the path of `program`, or end the test: it runs where the command `install` was run, and as `root`."""
    if root and os.geteuid() != 0:
        _lacking(f"{program} needs root; to run this test: sudo make test")
    path = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PROGRAMS}")
    if path is None:
        _lacking(f"{program} is not installed; to run this test: {install}")
    return path


def _lacking(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason} (in CI nothing may be skipped)", pytrace=False)
    pytest.skip(reason)
