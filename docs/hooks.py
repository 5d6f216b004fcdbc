"""What `make docs` does beyond MkDocs: what stands above docs/ becomes pages too, as does the example configuration.

MkDocs does not look there; links to and from these files are turned on the way.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",
}
"""The page that each file becomes."""

EXAMPLE = "config.example.toml"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add what stands above docs/."""
    root = Path(config.config_file_path).parent
    for name, page in PAGES.items():
        text = re.sub(r"\]\(docs/", "](", (root / name).read_text())
        files.append(File.generated(config, page, content=_turned(text, "")))
    files.append(File.generated(config, EXAMPLE, abs_src_path=str(root / EXAMPLE)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Have links to what stands above docs/ lead to its page."""
    up = "../" * page.file.src_uri.count("/")
    return _turned(markdown, f"{up}../").replace(f"]({up}../{EXAMPLE}", f"]({up}{EXAMPLE}")


def _turned(markdown: str, above: str) -> str:
    up = above.removesuffix("../")
    for name, page in PAGES.items():
        markdown = markdown.replace(f"]({above}{name}", f"]({up}{page}")
    return markdown
