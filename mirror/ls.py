"""`pps-mirror ls`: what is stored, read without a running mirror, without upstream, and without touching the disk."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mirror.app import loaded_catalog
from mirror.config import Config
from mirror.store.base import StoredInfo
from mirror.store.disk import DiskStore
from mirror.stores import disk_store
from mirror.units import format_size
from mirror.upstream.client import Upstream
from mirror.upstream.proxies import Proxies

PIPE_WIDTH = 200
"""Columns of a table that goes to a pipe: wide enough that nothing is cut off."""


@dataclass(frozen=True, slots=True)
class Line:
    """A stored image, and whether it is the one that clients get who name none."""

    info: StoredInfo
    current: bool


def read(config: Config) -> Sequence[Line]:
    """List the stored images, newest first; none when the store does not exist yet. Raises StoreUnavailable."""
    if not (config.store.path / "images").exists():
        return []
    with ThreadPoolExecutor(1) as pool:
        return asyncio.run(_read(config, pool))


async def _read(config: Config, pool: ThreadPoolExecutor) -> Sequence[Line]:
    return await lines(config, disk_store(config, pool), pool)


async def lines(config: Config, store: DiskStore, pool: ThreadPoolExecutor) -> Sequence[Line]:
    """List the images of a store that exists, newest first. Raises StoreUnavailable."""
    url = config.upstream.url
    upstream = Upstream(config.upstream, url, Proxies()) if url else None  # never opened: nothing here asks it
    catalog = await loaded_catalog(config, upstream, store, pool)
    current = await catalog.known_hash()
    return [Line(info, current=info.metadata.hash == current) for info in await store.list()]


def write(lines: Sequence[Line], config: Config, stream: TextIO) -> None:
    """Show the images to a person, or say that there are none."""
    console = Console(file=stream, width=None if stream.isatty() else PIPE_WIDTH, highlight=False)
    if not lines:
        missing = "" if config.store.path.exists() else " (it does not exist yet)"
        console.print(Text(f"No images are stored in {config.store.path}{missing}."), soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("HASH", "FILE", "SIZE", "STORED", "LAST SERVED", "CURRENT", "PINNED"):
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
        )
    console.print(table)


def _when(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"


def _plain(name: str) -> str:
    """Make a file name, which upstream chose, harmless on a terminal of any encoding."""
    return "".join(character if character.isascii() and character.isprintable() else "?" for character in name)
