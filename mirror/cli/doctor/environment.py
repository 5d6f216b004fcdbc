"""Examines the environment: versions, variables that override the file, misspelt ones, and the user."""

import os
import platform
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mirror import __version__
from mirror.cli.doctor.case import Case
from mirror.cli.doctor.user import mirrors_user
from mirror.cli.findings import Finding
from mirror.config import FILE_VARIABLE, KEYS, PREFIX, TOKEN_VARIABLE


def examine(case: Case) -> Iterator[Finding]:
    """Examine versions, variables and the user."""
    yield Finding(
        "environment",
        True,
        f"pps-mirror {__version__}, Python {platform.python_version()}, {platform.system()} {platform.release()}, "
        f"user id {os.geteuid()}",
    )
    yield from _overrides(case)
    yield from _misspelt(case.environ)
    if os.geteuid() == 0:
        user = mirrors_user(case.config.store.path)
        command = case.deployment.run_doctor_as(user, case.file)
        advice = f"run it as the mirror's user: {command}" if user.uid else "let the mirror run as a user of its own"
        yield Finding(
            "environment",
            True,
            "this is root: what it may do, the mirror's own user may not be able to",
            note=True,
            advice=advice,
        )


def _overrides(case: Case) -> Iterator[Finding]:
    path = case.file or (Path(case.environ[FILE_VARIABLE]) if case.environ.get(FILE_VARIABLE) else None)
    if path is None:
        return
    given = tomllib.loads(path.expanduser().read_text("utf-8-sig"))
    for key in KEYS:
        variable = PREFIX + key.upper().replace(".", "__")
        if variable in case.environ and _has(given, key):
            yield Finding(
                "environment",
                True,
                f"{variable} overrides {key} of {path}",
                note=True,
                advice=f"unset {variable}, if the file is right",
            )
    if case.environ.get(TOKEN_VARIABLE) and case.config.upstream.token_file:
        yield Finding("environment", True, f"{TOKEN_VARIABLE} does not count: upstream.token_file does", note=True)


def _has(tree: Mapping[str, Any], key: str) -> bool:
    node: Any = tree
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def _misspelt(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Find variables that have no effect: with one underscore in place of two, or in lower case."""
    meant = {key.upper().replace(".", "_"): key.upper().replace(".", "__") for key in KEYS}
    for name in sorted(environ):
        bare = name.upper().removeprefix("PPS_MIRROR").lstrip("_").replace("__", "_")
        if name.upper().startswith("PPS_MIRROR_") and not name.startswith(PREFIX) and bare in meant:
            yield Finding(
                "environment", True, f"{name} has no effect", note=True, advice=f"{PREFIX}{meant[bare]} is the name"
            )
