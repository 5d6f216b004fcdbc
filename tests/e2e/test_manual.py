"""The manual page: made by its own command, in order for those who read it strictly, with all that the help has."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mirror.cli.examples import EXAMPLES
from tests.support.needs import needs

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = tmp_path_factory.mktemp("manual") / "man1" / "pps-mirror.1"
    subprocess.run([sys.executable, ROOT / "docs" / "manual.py", page], cwd=ROOT, check=True, timeout=30)
    return page


def mandoc(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = needs("mandoc", "apt-get install --no-install-recommends mandoc")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=20)


def test_mandoc_finds_nothing_wrong_with_it(page: Path) -> None:
    done = mandoc("-Tlint", "-Wwarning", page)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_command_is_described_and_its_examples_are_there_to_the_letter(page: Path) -> None:
    shown = re.sub(r".\x08", "", mandoc("-Tutf8", "-Owidth=160", page).stdout)
    assert re.search(r"^NAME\n +pps-mirror . a caching mirror", shown, re.MULTILINE)
    for command, examples in EXAMPLES.items():
        assert re.search(rf"^ +pps-mirror {command}$", shown, re.MULTILINE), command
        for line in examples.splitlines():
            assert line.strip() in shown


def test_the_make_target_writes_it_where_packages_look() -> None:
    said = subprocess.run(["make", "-n", "man"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=20)
    assert "docs/manual.py build/pps-mirror.1" in said.stdout
