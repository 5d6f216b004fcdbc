"""deploy/grafana: a dashboard that Grafana takes, that can be read, and that asks for what there is."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.support.dashboard import FILE, dashboard, expressions, panels
from tests.support.metrics import listed, metrics_in, unknown

WIDTH = 24
"""Columns that Grafana has."""

every_panel = pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])


def test_grafanas_own_schema_has_a_place_for_all_of_it() -> None:
    plugins.register_default_plugins()
    read = Dashboard.from_json(dashboard())
    assert list(lost(dashboard(), json.loads(JSONEncoder().encode(read)))) == []


def lost(before: Any, after: Any, path: str = "") -> list[str]:
    """Where something of `before` is not in `after`."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            each
            for key, value in before.items()
            for each in (lost(value, after[key], f"{path}/{key}") if key in after else [f"{path}/{key}"])
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [each for i in range(len(before)) for each in lost(before[i], after[i], f"{path}/{i}")]
    return [] if before == after else [path]


def test_it_can_be_put_into_any_grafana_and_keeps_its_address() -> None:
    found = dashboard()
    assert found["uid"] == "pps-mirror"
    assert "id" not in found
    variables = {each["name"]: each for each in found["templating"]["list"]}
    assert list(variables) == ["datasource", "instance"]
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    assert (variables["instance"]["multi"], variables["instance"]["includeAll"]) == (True, True)
    source = {"type": "prometheus", "uid": "${datasource}"}
    asking = [*panels(), *(target for panel in panels() for target in panel["targets"]), variables["instance"]]
    assert all(each["datasource"] == source for each in [*asking, *found["annotations"]["list"]])


def test_panels_have_numbers_of_their_own_and_do_not_lie_on_one_another() -> None:
    everything = dashboard()["panels"]
    assert [panel["id"] for panel in everything] == list(range(1, len(everything) + 1))
    places = [panel["gridPos"] for panel in everything]
    assert all(each["x"] >= 0 and each["w"] > 0 and each["x"] + each["w"] <= WIDTH for each in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)


@every_panel
def test_a_panel_explains_itself(panel: Any) -> None:
    assert panel["description"].endswith(".")
    known = {value for value in vars(units).values() if isinstance(value, str)}
    assert panel["fieldConfig"]["defaults"]["unit"] in known
    letters = [target["refId"] for target in panel["targets"]]
    assert len(letters) == len(set(letters))
    for target in panel["targets"]:
        assert "$instance" in target["expr"]
        assert target["legendFormat"] or panel["type"] == "table"


def test_it_asks_for_all_that_is_listed_and_for_nothing_else() -> None:
    asked = [expression for _, expression in expressions()]
    assert set().union(*(unknown(each) for each in asked)) == set()
    shown = {re.sub("_(bucket|sum|count)$", "", name) for each in asked for name, _ in metrics_in(each)}
    assert set(listed()) <= shown


def test_what_provides_it_fits_together_and_with_compose() -> None:
    directory, compose = FILE.parent / "provisioning", FILE.parents[1] / "compose"
    (source,) = yaml.safe_load((directory / "datasources" / "prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((directory / "dashboards" / "pps-mirror.yaml").read_text())["providers"]
    services = yaml.safe_load((compose / "compose.yaml").read_text())["services"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in services
    mounts = [volume.split(":") for volume in services["grafana"]["volumes"]]
    found = {(compose / mount[0]).resolve(): Path(mount[1]) for mount in mounts if mount[0].startswith(".")}
    assert found[FILE].parent == Path(provider["options"]["path"])
    assert str(found[FILE]) == services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    for name in ("datasources", "dashboards"):
        assert found[directory / name] == Path("/etc/grafana/provisioning") / name
