"""`make man`: the manual page, made from the parser's own help so that the two never differ.

Writes it to the file that is named.
"""

import os
import re
import sys
from pathlib import Path

from argparse_manpage.manpage import Manpage

from mirror import __version__
from mirror.cli.examples import EXAMPLES
from mirror.cli.parser import EPILOG, build_parser


def page() -> str:
    """The page as troff source."""
    os.environ["COLUMNS"] = "1000"  # a usage in one line, which troff breaks
    parser = build_parser()
    parser.epilog = None
    manual = Manpage(
        parser,
        {
            "description": "a caching mirror for DataRobot's Portable Prediction Server image",
            "project_name": "pps-mirror",
            "version": __version__,
            "manual_title": "pps-mirror manual",
        },
        format="single-commands-section",
    )
    manual.add_section("examples", "=", "\n".join(_verbatim(name, text) for name, text in EXAMPLES.items()))
    manual.add_section("environment and exit status", "=", _verbatim("", EPILOG.partition("\n\n")[2]))
    return _tidy(str(manual))


def _verbatim(heading: str, text: str) -> str:
    escaped = text.rstrip().replace("\\", "\\\\").replace("-", r"\-")
    escaped = re.sub(r"(?m)^(?=[.'])", r"\\&", escaped)
    return (f".SS {heading}\n" if heading else "") + f".nf\n{escaped}\n.fi"


def _tidy(source: str) -> str:
    """Say paragraphs as troff wants them said: an empty line is a macro, or nothing before one."""
    title, *rest = source.splitlines()
    lines = [title.replace(r"\-", "-")]  # a date is no date with other hyphens
    kept = wanted = False
    for line in rest:
        kept = line == ".nf" or (kept and line != ".fi")
        if not line and not kept:
            wanted = True
            continue
        if wanted and not line.startswith("."):
            lines.append(".PP")
        wanted = False
        lines.append(line)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page())
