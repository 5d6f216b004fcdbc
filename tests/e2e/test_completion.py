"""What `completion` prints works in the real shells, and the help that it is made from is whole."""

import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from mirror.cli.examples import EXAMPLES
from mirror.cli.parser import build_parser
from tests.support.commands import run
from tests.support.needs import needs

COMMANDS = list(EXAMPLES)


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("bash", tmp_path_factory.mktemp("completion"))


def write(shell: str, directory: Path) -> Path:
    done = run("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    script = directory / f"pps-mirror.{shell}"
    script.write_text(done.stdout)
    return script


def completed(script: Path, *words: str, directory: Path | None = None) -> Sequence[str]:
    """What bash offers for the last of the words, by the function that the script has put in charge."""
    line = " ".join(f"'{word}'" for word in ("pps-mirror", *words))
    asked = f"""
        source {script}
        COMP_WORDS=({line}) COMP_CWORD={len(words)} COMP_LINE="${{COMP_WORDS[*]}}" COMP_POINT=${{#COMP_LINE}}
        complete -p pps-mirror > /dev/null || exit 1
        function=$(complete -p pps-mirror | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        $function pps-mirror "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}" 2> /dev/null
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", asked], capture_output=True, text=True, check=False, cwd=directory, timeout=20
    )
    assert done.returncode == 0, done.stderr
    return [offer.strip() for offer in done.stdout.splitlines() if offer.strip()]


def test_bash_completes_commands_options_choices_and_files(bash_script: Path, tmp_path: Path) -> None:
    assert set(COMMANDS) <= set(completed(bash_script, ""))
    assert completed(bash_script, "ver") == ["verify"]
    assert completed(bash_script, "gc", "--dry") == ["--dry-run"]
    assert completed(bash_script, "completion", "z") == ["zsh"]
    assert completed(bash_script, "get", "--loader", "po") == ["podman"]
    (tmp_path / "config.toml").touch()
    assert completed(bash_script, "check", "-c", "conf", directory=tmp_path) == ["config.toml"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_itself_finds_nothing_wrong_with_its_script(shell: str, tmp_path: Path) -> None:
    program = needs(shell, f"apt-get install --no-install-recommends {shell}")
    done = subprocess.run(
        [program, "-n", write(shell, tmp_path)], capture_output=True, text=True, check=False, timeout=20
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_shell_that_is_not_known_is_status_2() -> None:
    done = run("completion", "csh")
    assert (done.returncode, done.stdout) == (2, "")
    assert "'bash', 'zsh', 'fish'" in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples_in_its_help_that_it_understands(command: str) -> None:
    shown = run(command, "--help")
    assert shown.returncode == 0
    examples = shown.stdout.partition("\nexamples:\n")[2].splitlines()
    assert examples
    for line in examples:
        assert len(line) <= 120
        typed = re.split(r" {2,}| [|>&] ?", line.strip())[0].partition("pps-mirror ")[2]
        assert vars(build_parser().parse_args(shlex.split(typed)))["command"] == command
