"""Hooks in the configuration of a mirror."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mirror.model.notification import EVENTS


def hook(name: str = "it", **keys: Any) -> dict[str, Any]:
    """One hook, for all events unless `events` says which."""
    return {"name": name, "events": list(map(str, EVENTS)), **keys}


def in_environment(*hooks: Mapping[str, Any]) -> dict[str, str]:
    """The variable that configures these."""
    tables = (", ".join(f"{key} = {json.dumps(value)}" for key, value in each.items()) for each in hooks)
    return {"PPS_MIRROR__HOOKS": f"[{', '.join(f'{{{table}}}' for table in tables)}]"}


def in_file(*hooks: Mapping[str, Any]) -> str:
    """The same as tables of a file."""
    return "".join(
        "\n[[hooks]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in each.items()) for each in hooks
    )


def script(directory: Path, text: str) -> list[str]:
    """An executable file with this shell script; the command that runs it."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "hook.sh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return [str(path)]
