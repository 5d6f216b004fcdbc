"""What docs/metrics.md lists, and what an expression of PromQL asks for that is not there."""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support.documents import DOCS, Document

TARGET = frozenset({"job", "instance"})
"""Labels that Prometheus gives to everything."""

OTHERS = frozenset({"up", "process_start_time_seconds", "process_resident_memory_bytes", "process_cpu_seconds_total"})
"""Metrics that are not the mirror's own, and there all the same."""

_SELECTOR = re.compile(r"\b((?:pps_mirror|process)_[a-z_]+|up)\b(?!\s*\()\s*(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'\s*(\w+)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"\s*,?')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")


@dataclass(frozen=True, slots=True)
class Listed:
    """A metric as it is listed: its type, its labels, and all that is put between backquotes about it."""

    type: str
    labels: frozenset[str]
    words: frozenset[str]


@functools.cache
def listed() -> dict[str, Listed]:
    """Every metric of docs/metrics.md."""
    document = Document(DOCS / "metrics.md")
    caches = re.findall("`([a-z]+)`", document.text.split("in one word:")[1].split("\n## ")[0])
    shared = {"cache": frozenset(caches)}
    found = {}
    for name, kind, labels, meaning in document.rows("name", "type", "labels", "meaning"):
        names = frozenset(re.findall("`(.+?)`", labels))
        words = frozenset(re.findall(r"`([a-z_]+)`", meaning))
        for label in names & {"route", "request", "place"}:  # where they come first, their values are
            shared.setdefault(label, words)
        found[name.strip("`")] = Listed(kind, names, words.union(*(shared.get(label, ()) for label in names)))
    return found


def metrics_in(expression: str) -> Iterator[tuple[str, dict[str, tuple[str, str]]]]:
    """Every metric that an expression asks for, with its matchers: operator and value by label."""
    plain = _GROUPING.sub("", expression)
    for name, matchers in _SELECTOR.findall(plain):
        yield name, {label: (operator, value) for label, operator, value in _MATCHER.findall(matchers)}


def unknown(expression: str) -> set[str]:
    """What an expression asks for and would never get: metrics, labels and their values that are not listed."""
    wrong: set[str] = set()
    labels = set(TARGET) | {"le"}
    for name, matchers in metrics_in(expression):
        metric = _metric(name)
        if metric is None:
            if name not in OTHERS:
                wrong.add(name)
            metric = Listed("gauge", frozenset(), frozenset())
        own = metric.labels | TARGET | ({"le"} if name.endswith("_bucket") else set())
        labels |= own
        for label, (operator, value) in matchers.items():
            if label not in own:
                wrong.add(f"{name}{{{label}}}")
            elif label in metric.labels and label not in {"status", "image", "version", "python"}:
                values = value.split("|") if operator in {"=~", "!~"} else [value]
                wrong |= {f'{name}{{{label}="{each}"}}' for each in values if each not in metric.words}
    for names in _GROUPING.findall(expression):
        wrong |= {f"({each})" for each in re.findall(r"\w+", names) if each not in labels}
    return wrong


def _metric(name: str) -> Listed | None:
    for each in (name, re.sub(r"_(bucket|sum|count)$", "", name)):
        if each in listed() and (each == name or listed()[each].type == "histogram"):
            return listed()[each]
    return None
