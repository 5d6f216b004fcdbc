"""The documents as a reader finds them: code blocks, spans of code, headings, links."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted(DOCS.rglob("*.md")),
    *sorted((ROOT / "deploy").rglob("*.md")),
]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^(#{1,6}) +(.*?) *$", re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_SPAN = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True, slots=True)
class Block:
    """A code block, below the last `heading` before it."""

    heading: str
    language: str
    text: str


class Document:
    """One file of Markdown."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = path.read_text()
        self.prose = _FENCE.sub("", self.text)

    def blocks(self, *languages: str) -> Iterator[Block]:
        """Its code blocks in one of these languages; without any, all of them."""
        for found in _FENCE.finditer(self.text):
            if not languages or found[1] in languages:
                before = _HEADING.findall(_FENCE.sub("", self.text[: found.start()]))
                yield Block(before[-1][1] if before else "", found[1], found[2])

    def spans(self) -> list[str]:
        """What stands between backquotes in its prose."""
        return _SPAN.findall(self.prose)

    def links(self) -> list[str]:
        """Where its prose links to."""
        return _LINK.findall(_SPAN.sub("", self.prose))

    def anchors(self) -> set[str]:
        """The names of its headings, as those who show Markdown make them."""
        return {
            re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")
            for _, heading in _HEADING.findall(self.prose)
        }

    def rows(self, *column: str) -> Iterator[list[str]]:
        """The rows of its tables whose header has all of these columns: the cells of these columns."""
        header: list[str] | None = None
        for line in self.prose.splitlines():
            if not line.startswith("|"):
                header = None
                continue
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if header is None:
                header = cells
            elif set(column) <= set(header) and not set(cells) <= {"---"}:
                yield [cells[header.index(name)] for name in column]


def listed() -> set[str]:
    """The names that docs/logs.md has in its last table."""
    rows = re.findall(
        r"^\| (`.*?`) \|",
        (ROOT / "docs" / "logs.md").read_text().partition("## What happens, by name")[2],
        re.MULTILINE,
    )
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row) if name != "event.action"]
    assert len(names) == len(set(names)), "a name is listed twice"
    return set(names)
