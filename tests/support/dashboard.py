"""deploy/grafana/dashboard.json, as Grafana would read it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[2] / "deploy" / "grafana" / "dashboard.json"


def dashboard() -> Any:
    """All of it."""
    return json.loads(FILE.read_text())


def panels() -> list[Any]:
    """Its panels, but for rows, which are headings."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    """Everything that it asks Prometheus for, with the title of the panel; its variables filled in for all mirrors."""
    asked = [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]
    asked += [(each["name"], each["expr"]) for each in dashboard()["annotations"]["list"]]
    for title, expression in asked:
        for variable, value in {"$__rate_interval": "5m", "$__range": "6h", "$instance": ".*"}.items():
            expression = expression.replace(variable, value)
        assert not re.search(r"\$\w", expression), expression
        yield title, expression
