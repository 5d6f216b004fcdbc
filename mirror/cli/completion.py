"""`pps-mirror completion`: makes a shell's completion script from the parser itself, so that it is never outdated."""

import argparse
from pathlib import Path

import shtab


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the script for bash, zsh or fish; it offers files where a path is expected."""
    _offer_files(parser)
    return shtab.complete(parser, shell)


def _offer_files(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # how shtab is told
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _offer_files(command)
