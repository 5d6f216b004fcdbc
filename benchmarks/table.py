"""From measured values to a table: medians, ratios, goals. Pure; it measures and prints nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

MIRROR, NGINX, VARNISH, CURL = CONTESTANTS = ("mirror", "nginx", "Varnish", "curl")
BARE = "floor"
"""The column of what a bare thread takes."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on the mirror's value: absolute, or as a ratio to what a peer reached in the same run."""

    sign: Literal["≥", "≤"]
    bound: float
    peer: str | None = None

    def ratio(self, values: Mapping[str, float]) -> float | None:
        """Return what the bound applies to, or None where the mirror or the peer was not measured."""
        value = values.get(MIRROR)
        if self.peer is None or value is None:
            return value
        peer = values.get(self.peer)
        return value / peer if peer else None

    def reached(self, values: Mapping[str, float]) -> bool | None:
        """Tell whether the goal is met; None where it cannot be told."""
        ratio = self.ratio(values)
        if ratio is None:
            return None
        return ratio >= self.bound if self.sign == "≥" else ratio <= self.bound


@dataclass(frozen=True, slots=True)
class Row:
    """One case: a value for each contestant that took part, and the goals of the mirror's."""

    case: str
    unit: str
    values: Mapping[str, float]
    goals: Sequence[Goal]

    def reached(self) -> bool | None:
        """Tell whether all goals that can be told are met; None if none can."""
        verdicts = [goal.reached(self.values) for goal in self.goals]
        told = [verdict for verdict in verdicts if verdict is not None]
        return all(told) if told else None

    def cells(self) -> list[str]:
        """Render the row under `case | mirror | nginx | Varnish | curl | floor | ratio | goal | ok`."""
        relative = [goal for goal in self.goals if goal.peer]
        ratios = [f"{ratio:.2f}" if (ratio := goal.ratio(self.values)) is not None else "" for goal in relative]
        return [
            f"{self.case}, {self.unit}",
            *(number(self.values.get(contestant)) for contestant in (*CONTESTANTS, BARE)),
            " · ".join(filter(None, ratios)),
            " · ".join(_goal_text(goal, self.unit) for goal in self.goals),
            {True: "yes", False: "**no**", None: ""}[self.reached()],
        ]


def _goal_text(goal: Goal, unit: str) -> str:
    of = f"\N{MULTIPLICATION SIGN} {goal.peer}" if goal.peer else unit
    return f"{goal.sign} {goal.bound:.3g} {of}"


def number(value: float | None) -> str:
    """Render a value with three significant digits, without exponent; nothing for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Render a Markdown table whose columns also line up in a terminal; all but the first to the right."""
    lines = [header, *rows]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(header))]

    def render(cells: Sequence[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
        return f"| {' | '.join(padded)} |"

    rule = render(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join([render(header), rule, *map(render, rows)]) + "\n"


def goal_table(rows: Sequence[Row]) -> str:
    """Render the table of goals."""
    return markdown_table(["case", *CONTESTANTS, BARE, "ratio", "goal", "ok"], [row.cells() for row in rows])
