"""deploy/compose/compose.yaml, as an engine would read it."""

import re
from pathlib import Path
from typing import Any

import yaml

DIRECTORY = Path(__file__).parents[2] / "deploy" / "compose"
FILE = DIRECTORY / "compose.yaml"


def services() -> dict[str, dict[str, Any]]:
    """Its services by name."""
    found: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text())["services"]
    return found


def environment() -> dict[str, str]:
    """What the mirror gets, where nobody has set a variable that the file asks for."""
    given = services()["mirror"]["environment"]
    return {name: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", str(value)) for name, value in given.items()}
