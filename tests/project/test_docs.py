"""What the documents say can be followed: links, code, commands, messages; and the site that is made of them."""

import argparse
import ast
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from mirror import config
from mirror.cli.parser import build_parser
from tests.support.documents import DOCS, DOCUMENTS, ROOT, Document

every_document = pytest.mark.parametrize(
    "document", [Document(path) for path in DOCUMENTS], ids=lambda each: each.path.name
)


def test_these_are_documents_with_links_and_code() -> None:
    """Or what is below would find nothing wrong."""
    read = [Document(path) for path in DOCUMENTS]
    assert sum(len(document.links()) for document in read) > 50
    for language in ("toml", "yaml", "json", "sh", "console", "python"):
        assert any(list(document.blocks(language)) for document in read), language


# Links


def broken(document: Document) -> Iterator[str]:
    for link in document.links():
        if re.match(r"https?://", link):
            continue
        name, _, anchor = link.partition("#")
        target = (document.path.parent / name) if name else document.path
        if not target.exists() or (anchor and anchor not in Document(target).anchors()):
            yield link


@every_document
def test_every_link_and_anchor_leads_somewhere(document: Document) -> None:
    assert list(broken(document)) == []


# Code


@every_document
def test_configurations_are_such_that_the_mirror_takes(document: Document, tmp_path: Path) -> None:
    for number, block in enumerate(document.blocks("toml")):
        file = tmp_path / f"{number}.toml"
        file.write_text(block.text)
        config.load(file, {})


@every_document
def test_shells_and_python_can_read_their_blocks(document: Document) -> None:
    for block in document.blocks("sh", "console"):
        checked = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, ""), block.text
    for block in document.blocks("python"):
        compile(block.text, document.path.name, "exec")


@every_document
def test_yaml_and_json_can_be_read_and_a_cluster_would_take_the_manifests(document: Document) -> None:
    for block in document.blocks("json"):
        json.loads(block.text)
    for block in document.blocks("yaml"):
        for each in yaml.safe_load_all(block.text):
            if isinstance(each, dict) and "apiVersion" in each:
                kubernetes_validate.validate(each, "1.30", strict=True)


def test_the_reference_has_every_key_with_its_default(tmp_path: Path) -> None:
    rows = list(Document(DOCS / "reference" / "configuration.md").rows("key", "default"))
    keys = [key.strip("`") for key, _ in rows]
    assert sorted(keys) == sorted(config.KEYS)
    file = tmp_path / "defaults.toml"
    file.write_text("".join(f"{key} = {default.strip('`')}\n" for key, (_, default) in zip(keys, rows, strict=True)))
    assert config.load(file, {}) == config.Config()


# Names

_KEY = re.compile(r"((?:server|admin|upstream|auth|store|prefetch|log)\.[a-z0-9_.]+)(?: = .*)?")


@every_document
def test_keys_files_and_tests_that_are_named_are_there(document: Document) -> None:
    cells = [cell for (cell,) in Document(DOCS / "logs.md").rows("`event.action`")]
    others = {*re.findall(r"`([^`]+)`", "".join(cells)), "log.logger"}  # names of events look like keys
    code, tests = (list((ROOT / name).rglob("*.py")) for name in ("mirror", "tests"))
    functions = set(re.findall(r"def (test_\w+)", "".join(path.read_text() for path in tests)))
    for span in document.spans():
        if key := _KEY.fullmatch(span):
            assert key[1] in {*config.KEYS, *others}, span
        elif re.fullmatch(r"(tests|mirror|deploy|docs|benchmarks)/[\w./*-]*", span):
            assert list(ROOT.glob(span)), span
        elif re.fullmatch(r"[\w/]*\w\.py", span):
            assert any(path.match(span) for path in (*code, *tests)), span
        elif re.fullmatch(r"test_\w+(…?)", span):
            name = span.rstrip("…")
            assert any(each == name or (name != span and each.startswith(name)) for each in functions), span


# Commands

_COMMAND = re.compile(
    r"(?:^|[|&;(`]|bin/|-- |sudo -u pps-mirror |[A-Z_]+=\S+ )\s*pps-mirror +([a-z]+)\b([^\n|;&)#`]*)", re.MULTILINE
)


def commands() -> dict[str, argparse.ArgumentParser]:
    (subparsers,) = (each for each in build_parser()._actions if isinstance(each, argparse._SubParsersAction))
    return dict(subparsers.choices)


@every_document
def test_every_command_and_option_exists(document: Document) -> None:
    known = commands()
    for text in (*document.spans(), *(block.text for block in document.blocks())):
        for name, rest in _COMMAND.findall(text.replace("\\\n", " ")):
            assert name in known, f"pps-mirror {name}{rest}"
            options = {word.partition("=")[0] for word in rest.split() if re.match(r"--?[a-z]", word)}
            assert options <= set(known[name]._option_string_actions), f"pps-mirror {name}{rest}"


def test_commands_are_found_where_they_are_and_not_where_a_user_has_the_name() -> None:
    found = _COMMAND.findall(
        "runuser -u pps-mirror -- pps-mirror ls\ninstall -g pps-mirror config.toml\n"
        "  A=b pps-mirror pull && pps-mirror gc\n"
    )
    assert [name for name, _ in found] == ["ls", "pull", "gc"]


# Messages


@functools.cache
def said_by_the_mirror() -> set[str]:
    """Every text in its source; what is put in at run time is a `…`."""
    texts: set[str] = set()
    for path in (ROOT / "mirror").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.JoinedStr(values=values):
                    texts.add("".join(str(each.value) if isinstance(each, ast.Constant) else "…" for each in values))
                case ast.Constant(value=str(text)):
                    texts.add(re.sub(r"%(\.\d)?[sdf]", "…", text))
    return texts


@pytest.mark.parametrize(("page", "least"), [("troubleshooting.md", 40), ("air-gap.md", 8)])
def test_every_message_that_is_explained_is_one_that_the_mirror_says(page: str, least: int) -> None:
    document = Document(DOCS / page)
    cells = [cell for column in ("it says", "the message") for (cell,) in document.rows(column)]
    messages = [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]
    assert len(messages) > least
    texts = said_by_the_mirror()
    for message in messages:
        pieces = [piece.strip() for piece in message.split("…") if len(piece.strip()) > 2]
        if message == "…: Permission denied":  # the system's own word
            continue
        assert any(all(piece in text for piece in pieces) for text in texts), message


# The site


def build(project: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=project,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_site_is_whole_and_asks_nobody_else_for_anything(tmp_path: Path) -> None:
    built = build(ROOT, tmp_path)
    assert (built.returncode, "WARNING" in built.stderr) == (0, False), built.stderr
    pages = {str(path.relative_to(tmp_path).with_suffix("")) for path in tmp_path.rglob("*.html")} - {"404"}
    written = {str(path.relative_to(DOCS).with_suffix("")) for path in DOCS.rglob("*.md")}
    assert pages == written | {"index", "changelog", "contributing", "reporting"}
    assert (tmp_path / "config.example.toml").read_bytes() == (ROOT / "config.example.toml").read_bytes()
    assert not list(tmp_path.rglob("*.py"))
    for page in pages:
        text = (tmp_path / f"{page}.html").read_text()
        fetched = re.findall(r"<(?:script|link|img|iframe|source)[^>]*\b(?:src|href)=\"?([^\"\s>]+)", text)
        assert len(fetched) > 3
        assert [each for each in fetched if re.match(r"(https?:)?//", each)] == []


def test_links_that_lead_nowhere_fail_the_build(tmp_path: Path) -> None:
    for name in ("mkdocs.yml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "config.example.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "docs" / "clients.md").open("a") as page:
        page.write("\n[x](nowhere.md) [x](faq.md#nowhere) [x](../README.md#nowhere)\n")
    built = build(tmp_path, tmp_path / "site")
    assert built.returncode == 1
    warned = [line for line in built.stderr.splitlines() if line.startswith("WARNING")]
    assert len(warned) == 3
    for link, line in zip(("'nowhere.md'", "'faq.md#nowhere'", "'index.md#nowhere'"), warned, strict=True):
        assert link in line
