"""Checks the store: tries the directory and the bucket as a fill would use them."""

import asyncio
import fcntl
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from mirror.cli.findings import Finding
from mirror.common.units import format_duration, format_size
from mirror.config import Config, Store
from mirror.images.retention import evictable
from mirror.model.metadata import ImageMetadata
from mirror.store.base import StoreUnavailable
from mirror.store.disk.layout import Layout
from mirror.store.disk.space import Space

SKEWED = 60.0
"""A difference of so many seconds between our clock and the bucket's is worth a note."""

_SOURCES = {
    "env": "the environment",
    "shared-credentials-file": "the shared credentials file",
    "config-file": "the AWS configuration file",
    "assume-role": "an assumed role",
    "assume-role-with-web-identity": "the service account's role",
    "container-role": "the container's role",
    "iam-role": "the machine's role",
}
"""Where credentials come from: AWS's names for that, in words."""


def examine(config: Config, current: ImageMetadata | None) -> Iterator[Finding]:
    """Try the directory, with room for the `current` image, then the bucket if there is one."""
    yield _directory(config.store, current)
    if config.store.s3.bucket is not None:
        yield from asyncio.run(_bucket(config))


def _directory(config: Store, current: ImageMetadata | None) -> Finding:
    place = config.path
    try:
        for place in _directories(config.path):
            _try_to_write(place)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        said = f"{place} cannot be written by user id {os.geteuid()}: {reason}"
        return Finding("store", False, said, errno=error.errno)
    root = nearest(config.path)
    free = shutil.disk_usage(root).free
    space = f"{format_size(free)} free, store.min_free = {format_size(config.min_free)}"
    wanted = _still_wanted(config.path, current) if current else 0
    lacking = None
    if current and (config.path / "images").is_dir():
        lacking = _space(config).lacking(current, wanted) if wanted else None
    elif free - wanted < config.min_free:
        wants = f"the current image needs {format_size(wanted)} more" if wanted else "no image has room"
        lacking = f"{wants}; free some space"
    if lacking:
        return Finding("store", False, f"{config.path}: {space}: {lacking}")
    state = "writable" if root == config.path else f"does not exist yet, can be made in {root}"
    return Finding("store", True, f"{config.path}: {state} by user id {os.geteuid()}; {space}")


def nearest(path: Path) -> Path:
    """Return the directory itself, or the nearest existing one above it."""
    return next((place for place in (path, *path.parents) if place.exists()), Path("/"))


def _directories(path: Path) -> Iterator[Path]:
    """Yield the directories that the mirror writes to."""
    yield (root := nearest(path))
    if root == path:
        yield from (part for name in ("images", "partial", "quarantine") if (part := root / name).exists())


def _space(config: Store) -> Space:
    keep = functools.partial(evictable, keep=config.keep)
    return Space(Layout(config.path), max_size=config.max_size, min_free=config.min_free, retention=keep)


def _try_to_write(directory: Path) -> None:
    """Do what a fill does, with a file that never gets a name. Raises OSError."""
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(b"pps-mirror check")
        file.flush()
        os.fsync(file.fileno())
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def _still_wanted(root: Path, metadata: ImageMetadata) -> int:
    """Return how many bytes of the image are not in the store yet."""
    if (root / "images" / metadata.hash / "image").exists():
        return 0
    partial = root / "partial" / metadata.hash
    return max(0, metadata.size - (partial.stat().st_size if partial.exists() else 0))


async def _bucket(config: Config) -> Sequence[Finding]:
    """Try everything that a fill does with a bucket, and remove what was written for that."""
    from mirror.store.s3.bucket import Bucket
    from mirror.store.s3.capabilities import find_out  # see `mirror.wiring.stores`

    s3 = config.store.s3
    try:
        async with Bucket(s3) as bucket:
            source = await bucket.credentials()
            offset = abs((await bucket.now() - datetime.now(UTC)).total_seconds())
            abilities = await find_out(bucket)
    except StoreUnavailable as error:
        return [Finding("bucket", False, error.message)]
    where = f" at {s3.endpoint_url}" if s3.endpoint_url else ""
    known = f"the credentials from {_SOURCES.get(source or '', source)}"
    findings = [Finding("bucket", True, f"{s3.bucket}{where}: can be written below {s3.prefix!r} with {known}")]
    findings += [Finding("bucket", True, missing, note=True) for missing in abilities.missing]
    if offset > SKEWED:
        words = f"its clock and ours differ by {format_duration(round(offset))}; from 15 minutes on it refuses us"
        findings.append(Finding("bucket", True, words, note=True))
    return findings
