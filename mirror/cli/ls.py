"""`pps-mirror ls`: lists the stored images, without a running mirror, without upstream, without writing anything."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mirror.common.units import format_size
from mirror.config import Config
from mirror.images.describe import describe
from mirror.model.status import as_json
from mirror.registry.catalog import Catalog, Entries
from mirror.registry.progress import IndexProgress, shared_progress
from mirror.wiring.selection import StoredLine
from mirror.wiring.selection import lines as listed
from mirror.wiring.stores import open_stores

PIPE_WIDTH = 200
"""Columns of a table that is written to a pipe: enough that nothing is cut off."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The stored images, newest first, and which of them the registry offers (`entries`); None without a registry."""

    lines: Sequence[StoredLine]
    entries: Entries | None

    def describe(self) -> Sequence[dict[str, object]]:
        """Return them for machines."""
        return [self._describe(line) for line in self.lines]

    def tags(self, line: StoredLine) -> str:
        """Return by which tags an image can be pulled, or else how its archive is, in a word."""
        entries, image_hash = self.entries or Entries(), line.info.metadata.hash
        if (entry := entries.by_hash(image_hash)) is None:
            return "not on the disk"
        return ", ".join(entries.tags_of(image_hash, current=line.current)) if entry.index else entry.state.state

    def _describe(self, line: StoredLine) -> dict[str, object]:
        described, image_hash = describe(line.info, current=line.current), line.info.metadata.hash
        if self.entries is None:
            return described
        entry, tags = self.entries.by_hash(image_hash), self.entries.tags_of(image_hash, current=line.current)
        return described | {"tags": tags, "archive": as_json(entry.state) if entry else None}


def read(config: Config) -> Listing:
    """List the stored images; none when the store does not exist yet. Raises StoreUnavailable."""
    with ThreadPoolExecutor(1) as pool:
        return asyncio.run(_read(config, pool))


async def _read(config: Config, pool: ThreadPoolExecutor) -> Listing:
    async with open_stores(config, pool) as stores:
        lines, entries = await listed(config, stores, pool), Entries() if config.registry.enabled else None
        if entries and stores.disk is not None and (config.store.path / "images").exists():
            entries = await Catalog(stores.disk, pool, IndexProgress(shared_progress())).entries()
        return Listing(lines, entries)


def write(listing: Listing, config: Config, stream: TextIO) -> None:
    """Write the images as a table, or that there are none."""
    lines = listing.lines
    console = Console(file=stream, width=None if stream.isatty() else PIPE_WIDTH, highlight=False)
    if not lines:
        missing = "" if config.store.path.exists() else " (it does not exist yet)"
        bucket = f" or the bucket {config.store.s3.bucket}" if config.store.s3.bucket else ""
        console.print(Text(f"No images are stored in {config.store.path}{missing}{bucket}."), soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    titles = ["HASH", "FILE", "SIZE", "STORED", "LAST SERVED", "CURRENT", "PINNED"]
    if config.store.s3.bucket:
        titles.append("WHERE")
    if config.registry.enabled:
        titles.append("TAGS")
    for title in titles:
        table.add_column(title, justify="right" if title == "SIZE" else "left", overflow="fold")
    for line in lines:
        info = line.info
        table.add_row(
            info.metadata.hash[:12],
            Text(_plain(info.metadata.filename)),
            format_size(info.metadata.size),
            _when(info.stored_at),
            _when(info.last_served_at) if info.last_served_at else "never",
            "yes" if line.current else "",
            "yes" if info.pinned else "",
            *([" and ".join(info.places)] if config.store.s3.bucket else ()),
            *([Text(listing.tags(line))] if config.registry.enabled else ()),
        )
    console.print(table)


def _when(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"


def _plain(name: str) -> str:
    """Make upstream's file name safe for a terminal of any encoding."""
    return "".join(character if character.isascii() and character.isprintable() else "?" for character in name)
