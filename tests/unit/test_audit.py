"""The audit's file: bounded, newest first, whatever a crash left in it."""

from pathlib import Path

import pytest

from mirror.admin.audit import MOST_BYTES, Audit, user
from mirror.model.errors import NotFound


def test_it_is_bounded_and_the_newest_come_first(tmp_path: Path) -> None:
    audit = Audit(tmp_path)
    many = 3 * MOST_BYTES // 600
    for number in range(many):
        audit.note("somebody", "pin", f"{number} {'x' * 400}", "done")
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 2 * MOST_BYTES + 1000
    assert {file.name for file in tmp_path.iterdir()} == {"audit.jsonl", "audit.1.jsonl"}
    last = audit.last(MOST_BYTES)
    numbers = [int(line.what.split()[0]) for line in last]
    assert numbers == list(range(many - 1, many - 1 - len(numbers), -1))
    assert len(numbers) > MOST_BYTES // 700
    assert len(audit.last(3)) == 3


def test_a_line_that_a_power_cut_has_cut_is_left_out(tmp_path: Path) -> None:
    audit = Audit(tmp_path)
    audit.note("somebody", "pin", "one", "done")
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.write(b'{"at": "20\n\0\0\n')
    audit.note("somebody", "pin", "two", "done")
    assert [line.what for line in audit.last(10)] == ["two", "one"]


def test_nothing_long_or_secret_and_no_line_of_its_own_gets_in(tmp_path: Path) -> None:
    audit = Audit(tmp_path)
    audit.note("somebody\n", "import", f"https://user:password@host/?signature=abc {'x' * 5000}", "done")
    (line,) = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert "password" not in line
    assert "signature" not in line
    assert len(line) < 1000


def test_what_fails_is_recorded_as_that_and_raised(tmp_path: Path) -> None:
    audit = Audit(tmp_path)
    with pytest.raises(NotFound), audit.recording("somebody", "pin", "abc"):
        raise NotFound("there is none")
    with pytest.raises(KeyboardInterrupt), audit.recording("somebody", "verify", "all"):
        raise KeyboardInterrupt
    with audit.recording("somebody", "pin", "cur") as recorded:
        recorded.what = "current"
    assert [(line.what, line.outcome) for line in reversed(audit.last(9))] == [
        ("abc", "failed: there is none"),
        ("all", "did not end: KeyboardInterrupt"),
        ("current", "done"),
    ]


def test_it_says_who_is_behind_sudo() -> None:
    own = user({})
    assert user({"SUDO_USER": "alice"}) == f"alice as {own}"
    assert user({"SUDO_USER": own}) == own
