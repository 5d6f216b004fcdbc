"""Makes the index of a stored archive: reads it once, digests every member, and notes where its bytes are.

Two threads share the work, the one that inflates the archive and the one that digests its members. Both have a low
priority, since clients come first. What an archive may cost is bounded (see `mirror.registry.index`).
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TypeVar

from mirror.model.metadata import ImageMetadata
from mirror.registry import saved_index
from mirror.registry.blob_reader import read
from mirror.registry.contents import MANIFEST, Contents, normal
from mirror.registry.documents import wanted_id
from mirror.registry.gzip_file import PlainFile
from mirror.registry.index import MAX_DOCUMENT, ArchiveIndex, Blob, NotAnArchive
from mirror.registry.member_digest import MemberDigest
from mirror.registry.seek_index import DamagedIndex, SeekIndexWriter
from mirror.registry.tar import BLOCK, Kind, Member, has_checksum, members
from mirror.registry.tar_stream import Budget, IndexedGzip, TarStream
from mirror.store.disk.verified_marker import Identity

T = TypeVar("T")

_NICE = 10
"""How much less than others its threads get of a core that is wanted by several."""

_WAITING = 8
"""Pieces that wait to be digested, at most."""


class Stopped(Exception):
    """It was asked to stop; nothing is left behind."""


def build(
    archive: int,
    directory: Path,
    metadata: ImageMetadata,
    *,
    progress: Callable[[int], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> ArchiveIndex:
    """Index the image whose file is open as `archive`, and write `registry.json` and the seek index into `directory`.

    `progress` gets the number of the archive's bytes that were read, `stop` is asked often; both in any thread. Blocks.
    Raises NotAnArchive, which is noted in `registry.json` too, Stopped, NoZlib, OSError.
    """

    def passed(count: int) -> None:
        if stop():
            raise Stopped
        progress(count)

    try:
        with ThreadPoolExecutor(1, "registry-index", _be_nice) as inflating:
            return inflating.submit(_build, archive, directory, metadata, passed).result()
    except NotAnArchive as refusal:
        saved_index.save_refusal(directory, metadata, Identity.of(os.fstat(archive)), str(refusal))
        raise


def _build(archive: int, directory: Path, metadata: ImageMetadata, passed: Callable[[int], None]) -> ArchiveIndex:
    with ExitStack() as stack:
        writer = stack.enter_context(SeekIndexWriter(directory)) if _is_gzip(archive) else None
        budget = Budget(metadata.size)
        with ThreadPoolExecutor(1, "registry-digest", _be_nice) as digesting:
            file = IndexedGzip(archive, writer) if writer else PlainFile(archive)
            manifest, contents = _read(TarStream(file, budget, passed), budget, digesting)
        seek = writer.finish() if writer else None

        def data(member: Member) -> bytes:
            blob = Blob("", member.size, "", member.offset, member.size)
            try:
                return b"".join(read(archive, seek, blob, 0, member.size))
            except DamagedIndex as error:
                raise OSError(f"the archive changed while it was read: {error}") from None

        index = contents.index(manifest, wanted_id(metadata), seek, data)
        if writer:
            writer.publish()
        saved_index.save(directory, metadata, index)
        return index


def _read(stream: TarStream, budget: Budget, digesting: ThreadPoolExecutor) -> tuple[bytes | None, Contents]:
    """Read the whole tar; return `manifest.json`, if it is there, and all members."""
    manifest, contents = None, Contents()
    waiting: deque[Future[None]] = deque()

    def then(work: Callable[[T], None], on: T) -> None:
        waiting.append(digesting.submit(work, on))
        while len(waiting) > _WAITING:
            waiting.popleft().result()

    for member in members(stream):
        if member.kind is not Kind.FILE:
            then(contents.add, member)
            continue
        is_manifest = normal(member.name) == MANIFEST
        if is_manifest and member.size > MAX_DOCUMENT:
            raise NotAnArchive(f"its manifest.json has {member.size} bytes")
        head = stream.exactly(min(member.size, MemberDigest.HEAD))
        kept = bytearray(head)
        digest = MemberDigest(member, head, budget)
        for piece in stream.take(member.size - len(head)):
            if is_manifest:
                kept += piece
            then(digest.update, piece)
        then(lambda digest: contents.add(digest.finish()), digest)
        if is_manifest:
            manifest = bytes(kept)
    for future in waiting:
        future.result()
    return manifest, contents


def _is_gzip(archive: int) -> bool:
    begins = os.pread(archive, BLOCK, 0)
    if begins.startswith(b"\x1f\x8b"):
        return True
    if len(begins) == BLOCK and has_checksum(begins):
        return False
    raise NotAnArchive("it is neither a tar nor gzip of one")


def _be_nice() -> None:
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
