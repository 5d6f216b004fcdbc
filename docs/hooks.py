"""What `make docs` does beyond MkDocs: README.md becomes a page too, and the example configuration lies beside it.

Both stand above docs/, where MkDocs does not look; links to and from them are turned on the way.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGE = "reference.md"
EXAMPLE = "config.example.toml"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add what stands above docs/."""
    root = Path(config.config_file_path).parent
    readme = re.sub(r"\]\(docs/", "](", (root / "README.md").read_text())
    files.append(File.generated(config, PAGE, content=readme))
    files.append(File.generated(config, EXAMPLE, abs_src_path=str(root / EXAMPLE)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Have links to the README lead to its page."""
    return markdown.replace("](../README.md", f"]({PAGE}").replace(f"](../{EXAMPLE}", f"]({EXAMPLE}")
