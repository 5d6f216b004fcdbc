"""The benchmarks' arithmetic: a ratio, a verdict and a table that say what was measured and nothing more."""

import pytest

from benchmarks.bench import Sample, medians
from benchmarks.clients import percentile
from benchmarks.table import MIRROR, NGINX, VARNISH, Goal, Row, goal_table, markdown_table, number

FASTER_THAN_NGINX = Goal("≥", 1.25, NGINX)


@pytest.mark.parametrize(
    ("goal", "values", "ratio", "reached"),
    [
        (FASTER_THAN_NGINX, {MIRROR: 2.5, NGINX: 2.0}, 1.25, True),
        (FASTER_THAN_NGINX, {MIRROR: 2.4, NGINX: 2.0}, 1.2, False),
        (FASTER_THAN_NGINX, {MIRROR: 2.5}, None, None),
        (FASTER_THAN_NGINX, {NGINX: 2.0}, None, None),
        (Goal("≤", 100), {MIRROR: 60.0}, 60.0, True),
        (Goal("≤", 100), {MIRROR: 101.0, NGINX: 20.0}, 101.0, False),
    ],
)
def test_a_goal_bounds_a_value_or_its_ratio_to_a_peer(
    goal: Goal, values: dict[str, float], ratio: float | None, reached: bool | None
) -> None:
    assert goal.ratio(values) == ratio
    assert goal.reached(values) is reached


def test_a_row_is_ok_only_if_every_goal_that_can_be_told_is_reached() -> None:
    goals = [FASTER_THAN_NGINX, Goal("≥", 1.2, VARNISH)]
    assert Row("hot", "GB/s", {MIRROR: 3.0, NGINX: 2.0}, goals).reached() is True
    assert Row("hot", "GB/s", {MIRROR: 3.0, NGINX: 2.0, VARNISH: 2.9}, goals).reached() is False
    assert Row("hot", "GB/s", {MIRROR: 3.0}, goals).reached() is None


def test_the_columns_of_a_missing_peer_are_empty() -> None:
    table = goal_table([Row("hot", "GB/s", {MIRROR: 3.0, NGINX: 2.0}, [FASTER_THAN_NGINX])])
    header, rule, row = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.replace("| ", "|").splitlines()
    )
    assert header == ["case", "mirror", "nginx", "Varnish", "curl", "floor", "ratio", "goal", "ok"]
    assert len(rule) == len(header)
    assert row == ["hot, GB/s", "3", "2", "", "", "", "1.50", "≥ 1.25 \N{MULTIPLICATION SIGN} nginx", "yes"]


def test_every_line_of_a_table_is_as_long_as_the_others() -> None:
    lines = markdown_table(["a", "b"], [["long first cell", "1"], ["", "1,234,567"]]).splitlines()
    assert len({len(line) for line in lines}) == 1


def test_the_median_leaves_out_what_was_not_measured() -> None:
    fast, slow, silent = Sample(wall=1.0, size=10**9), Sample(wall=4.0, size=10**9), Sample()
    assert medians({"a": [slow, fast, fast], "b": [silent]}, lambda sample: sample.rate) == {"a": 1.0}


def test_a_percentile_is_a_value_that_so_many_do_not_exceed() -> None:
    values = [float(value) for value in range(101)]
    assert percentile(values, 50) == 50
    assert percentile(values, 99) == 99


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (0.28123, "0.281"), (3.4, "3.4"), (99.99, "100"), (43210.9, "43,211"), (0.0, "0")]
)
def test_numbers_have_three_digits_and_no_exponent(value: float | None, text: str) -> None:
    assert number(value) == text
