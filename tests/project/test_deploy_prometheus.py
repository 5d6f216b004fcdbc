"""deploy/prometheus: alerts that come when they should, of metrics that exist, each with a section that helps."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mirror.config.schema import KEYS
from tests.support.documents import DOCS, Document
from tests.support.metrics import metrics_in, unknown
from tests.support.prometheus import promtool

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "deploy" / "prometheus"
RULES: dict[str, Any] = yaml.safe_load((DIRECTORY / "alerts.yml").read_text())
TESTS: dict[str, Any] = yaml.safe_load((DIRECTORY / "alerts.test.yml").read_text())
(GROUP,) = RULES["groups"]
ALERTS = {rule["alert"]: rule for rule in GROUP["rules"]}
OPERATING = Document(DOCS / "operating.md")

every_alert = pytest.mark.parametrize("name", ALERTS)


def promtools_verdict(directory: Path, rules: dict[str, Any], name: str) -> int:
    """The exit status of promtool's tests of one alert when the rules are these."""
    only = [rule for rule in rules["groups"][0]["rules"] if rule["alert"] == name]
    (directory / "alerts.yml").write_text(yaml.safe_dump({"groups": [GROUP | {"rules": only}]}))
    tests = [each for each in TESTS["tests"] if f'"{name}"' in each["promql_expr_test"][0]["expr"]]
    (directory / "alerts.test.yml").write_text(yaml.safe_dump(TESTS | {"tests": tests}))
    return promtool("test", "rules", directory / "alerts.test.yml").returncode


def altered(name: str, **changes: str | None) -> dict[str, Any]:
    """The rules with something else in one of them; with None for nothing."""
    rules = copy.deepcopy(RULES)
    (rule,) = (rule for rule in rules["groups"][0]["rules"] if rule["alert"] == name)
    for key, value in changes.items():
        rule.pop(key, None)
        if value is not None:
            rule[key] = value
    return rules


def test_promtool_finds_nothing_wrong() -> None:
    for arguments in (("check", "config", DIRECTORY / "prometheus.yml"), ("check", "rules", DIRECTORY / "alerts.yml")):
        checked = promtool(*arguments)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_comes_when_it_should_and_not_at_a_near_miss() -> None:
    done = promtool("test", "rules", DIRECTORY / "alerts.test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@every_alert
def test_its_tests_fail_when_it_never_comes_always_does_or_does_not_wait(name: str, tmp_path: Path) -> None:
    assert promtools_verdict(tmp_path, RULES, name) == 0
    assert promtools_verdict(tmp_path, altered(name, expr="vector(1) > 2"), name) == 1
    instance = "instance" if name != "PpsMirrorNotScraped" else "other"
    assert (
        promtools_verdict(tmp_path, altered(name, expr=f'label_replace(vector(1), "{instance}", "m", "", "")'), name)
        == 1
    )
    if "for" in ALERTS[name]:
        assert promtools_verdict(tmp_path, altered(name, **{"for": None}), name) == 1
        assert promtools_verdict(tmp_path, altered(name, **{"for": "3d"}), name) == 1


@every_alert
def test_it_looks_at_metrics_and_label_values_that_exist(name: str) -> None:
    assert list(metrics_in(ALERTS[name]["expr"]))
    assert unknown(ALERTS[name]["expr"]) == set()


def test_what_does_not_exist_would_be_noticed() -> None:
    assert unknown("pps_mirror_redy == 0") == {"pps_mirror_redy"}
    assert unknown('rate(pps_mirror_fills_total{result="published"}[5m])') == {"pps_mirror_fills_total{result}"}
    assert unknown('pps_mirror_fills_total{outcome=~"published|lost"}') == {'pps_mirror_fills_total{outcome="lost"}'}
    assert unknown('sum without (place) (pps_mirror_fills_total{outcome="other"})') == {"(place)"}
    assert unknown('pps_mirror_request_duration_seconds_bucket{le="1.0", route="image"}') == set()
    assert unknown('pps_mirror_requests_total{status=~"5.."}') == set()


@every_alert
def test_it_says_what_a_person_at_night_needs(name: str) -> None:
    rule = ALERTS[name]
    assert re.fullmatch(r"PpsMirror[A-Z]\w+", name)
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in {"critical", "warning"}
    said = rule["annotations"]
    assert set(said) == {"summary", "description", "runbook"}
    assert "$labels.instance" in said["summary"] or name == "PpsMirrorNotScraped"
    assert 60 < len(said["description"]) < 300
    assert said["description"].endswith(".")
    assert said["runbook"] == f"docs/operating.md#{name.lower()}"


def test_every_alert_has_its_section_in_the_runbook_and_every_section_its_alert() -> None:
    sections = re.findall(r"^### (PpsMirror\w+)$", OPERATING.prose, re.MULTILINE)
    assert sections == list(ALERTS)
    anchors = OPERATING.anchors()
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook"].partition("#")[2] in anchors, name


@every_alert
def test_its_section_says_what_it_means_where_to_look_and_what_to_do(name: str) -> None:
    section = re.split(r"^##", OPERATING.text.split(f"\n### {name}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]
    assert section.count("\n**Look:**") == 1
    assert section.count("\n**Do:**") == 1
    meaning, _, rest = section.partition("\n**Look:**")
    assert len(meaning.split()) > 12
    assert "`" in rest
    severity = "Critical." if ALERTS[name]["labels"]["severity"] == "critical" else "Warning."
    assert meaning.strip().startswith(severity)


def test_names_of_events_and_keys_in_the_runbook_are_right() -> None:
    runbook = OPERATING.text.split("\n## Alerts, and what to do\n")[1]
    rows = Document(DOCS / "logs.md").rows("`event.action`")
    events = {name.strip("` ") for (cell,) in rows for name in cell.split(",")}
    named = set(re.findall(r"`([a-z]+\.[a-z_]+)`", runbook)) - {"event.action"}
    assert len(named & events) > 10
    assert named - events - set(KEYS) == set()


def test_the_example_loads_the_alerts_and_scrapes_a_job_that_they_find() -> None:
    example = yaml.safe_load((DIRECTORY / "prometheus.yml").read_text())
    assert example["rule_files"] == ["alerts.yml"]
    (scraped,) = example["scrape_configs"]
    assert scraped["job_name"].startswith("pps-mirror")
    assert scraped["static_configs"] == [{"targets": ["127.0.0.1:8081"]}]
