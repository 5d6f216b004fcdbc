"""`pps-mirror export`: writes a stored image as a bundle (see `mirror.bundle.format`), to be carried across an air gap.

It reads the image from the store once and hashes it. Bytes that are on the medium already and agree are kept; the rest
is written and read back. SHA256SUMS comes last: without it a bundle is not finished.
"""

import asyncio
import errno
import fcntl
import hashlib
import logging
import os
import shlex
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from mirror.bundle import format as layout
from mirror.bundle import signatures
from mirror.bundle.format import Listed, Volume
from mirror.bundle.medium import PART, FullMedium, MediumFile, is_plain, size_of, too_large_a_file, write_small
from mirror.bundle.readme import leaflet
from mirror.common.progress import Meter
from mirror.common.tasks import finished
from mirror.common.units import MIB, format_size
from mirror.config import Config
from mirror.model.errors import MirrorError, UsageError
from mirror.store.base import Body, Cut
from mirror.wiring.selection import open_selection

log = logging.getLogger(__name__)

PIECE = 2 << 20
"""Bytes read, compared and written at a time."""

SMALL_FILES = MIB
"""Bytes that the directory needs, and all files except the volumes."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Exported:
    """A file of a finished bundle; `size` in bytes."""

    path: Path
    size: int
    sha256: str

    def describe(self) -> dict[str, object]:
        """As machines see it."""
        return {"path": str(self.path), "size": self.size, "sha256": self.sha256}


def export(
    config: Config, name: str, directory: Path, meter: Meter, *, split: str | None = None, key: Path | None = None
) -> Sequence[Exported]:
    """Write a bundle of the image `name` into a directory of its own below `directory`; its files.

    `split` is the size of a volume at most, as a person writes it. With `key` the bundle is signed. Interrupted, it
    goes on when it is called again. Raises UsageError, NotFound, StoreUnavailable, or MirrorError when it cannot be
    written.
    """
    volume_size = None if split is None else layout.parse_split(split)
    if key is not None:
        signatures.check_key(key)
    if not directory.is_dir():
        raise UsageError(f"{directory} is no directory: name the one where the bundle's is to be made")
    if volume_size == layout.FAT32:
        meter.say(f"volumes of {layout.FAT32} bytes, which FAT32 takes")
    return asyncio.run(_export(config, name, directory, meter, volume_size, key))


async def _export(
    config: Config, name: str, directory: Path, meter: Meter, split: int | None, key: Path | None
) -> Sequence[Exported]:
    async with open_selection(config) as selection:
        image = await selection.open(selection.find(name))
        volumes = layout.volumes(image.metadata, split)
        target = directory / layout.directory_name(image.metadata)
        try:
            with _alone_in(target):
                return await _Export(image, target, volumes, meter).run(key)
        except asyncio.CancelledError:
            meter.say(f"stopped; what is in {target} is kept, and the same command goes on from there")
            raise
        except Cut as error:
            raise MirrorError(f"the image cannot be read any more: {error}") from None
        except OSError as error:
            raise _explained(error, target) from None


class _Export:
    """One export of `image` into the directory `target`."""

    def __init__(self, image: Body, target: Path, volumes: Sequence[Volume], meter: Meter) -> None:
        self._image = image
        self._metadata = image.metadata
        self._target = target
        self._volumes = volumes
        self._meter = meter
        self._whole = hashlib.sha256()

    async def run(self, key: Path | None) -> Sequence[Exported]:
        """Write the bundle, the volumes first."""
        await _blocking(self._clear_away)
        await _blocking(self._check_room)
        written = []
        async with aclosing(_pieces(self._image)) as pieces:
            feed = _Feed(pieces)
            for number, volume in enumerate(self._volumes, 1):
                which = f" volume {number} of {len(self._volumes)}" if len(self._volumes) > 1 else ""
                written.append(await self._volume(volume, which, feed))
        if self._whole.hexdigest() != self._metadata.hash:
            raise MirrorError(
                f"the store does not have the right bytes of {self._metadata.hash[:12]} any more, and the bundle is "
                f"not finished: run `pps-mirror verify {self._metadata.hash[:12]}`"
            )
        for name, data in (
            (layout.METADATA, self._metadata.raw),
            (layout.LEAFLET, leaflet(self._metadata, self._volumes)),
        ):
            written.append(await _blocking(self._small, name, data))
        written += await _blocking(self._sums, [Listed(file.path.name, file.sha256) for file in written], key)
        signed = ", signed" if key else ""
        self._meter.say(f"{self._metadata.hash[:12]} is exported{signed}, and was read back: {self._target}")
        if not all(map(_open_to_all, (self._target, *(file.path for file in written)))):
            path = shlex.quote(str(self._target))
            self._meter.say(f"nobody but its owner can read it: chmod -R a+rX {path}, if somebody else carries it on")
        return written

    def _clear_away(self) -> None:
        """Remove what an earlier export of this image left that was split in another way."""
        wanted = {volume.name for volume in self._volumes}
        for path in self._target.iterdir():
            if layout.is_ours(path.name, self._metadata, PART) and path.name.removesuffix(PART) not in wanted:
                (self._target / layout.SUMS).unlink(missing_ok=True)  # it names what is gone: not finished any more
                path.unlink()

    def _check_room(self) -> None:
        there = sum(self._there(volume) for volume in self._volumes)
        wanted = self._metadata.size - there + SMALL_FILES
        stat = os.statvfs(self._target)
        if stat.f_blocks and (free := stat.f_bavail * stat.f_frsize) < wanted:  # some shares know no sizes
            raise FullMedium(
                f"{self._target.parent} has {format_size(free)} free, and the bundle needs {format_size(wanted)}"
                + (f" more: {format_size(there)} are there already" if there else "")
            )

    def _there(self, volume: Volume) -> int:
        path = self._target / volume.name
        files = [each for each in (path.with_name(path.name + PART), path) if is_plain(each)]
        return min(volume.size, size_of(files[0])) if files else 0

    async def _volume(self, volume: Volume, which: str, feed: "_Feed") -> Exported:
        """Write a volume and read it back."""
        digest = hashlib.sha256()

        def put(position: int, data: memoryview) -> None:
            digest.update(data)
            self._whole.update(data)
            file.put(position, data)

        path = self._target / volume.name
        file = await _blocking(MediumFile, path, volume.size)
        try:
            position = 0
            self._meter.start(volume.size, 0, f"writing{which}")
            while position < volume.size:
                data = await feed.take(min(PIECE, volume.size - position))
                await _blocking(put, position, data)
                position += len(data)
                self._meter.show(position, f"{'comparing' if file.kept else 'writing'}{which}")
            position = await _blocking(file.settle)
            self._meter.stop()
            if not file.kept:
                self._meter.start(volume.size, position, f"reading back{which}")
            while position < volume.size:
                position = await _blocking(file.read_back, position)
                self._meter.show(position, f"reading back{which}")
            await _blocking(file.name)
        finally:
            self._meter.stop()
            file.close()
        how = "was there already, and is right" if file.kept else "is written, and was read back"
        self._meter.say(f"{volume.name} ({format_size(volume.size)}) {how}")
        return Exported(path, volume.size, digest.hexdigest())

    def _small(self, name: str, data: bytes) -> Exported:
        path = self._target / name
        write_small(path, data)
        return Exported(path, len(data), hashlib.sha256(data).hexdigest())

    def _sums(self, files: Sequence[Listed], key: Path | None) -> Sequence[Exported]:
        """Write SHA256SUMS, after its signature, so that a bundle with the one has the other."""
        sums = layout.write_sums(files)
        signature_path, sums_path = self._target / layout.SIGNATURE, self._target / layout.SUMS
        written = []
        if key is not None:
            written.append(self._small(layout.SIGNATURE, signatures.sign(sums, key)))
        elif not (is_plain(sums_path) and size_of(sums_path) == len(sums) and sums_path.read_bytes() == sums):
            signature_path.unlink(missing_ok=True)  # otherwise the signature is still good
        return [*written, self._small(layout.SUMS, sums)]


def _open_to_all(path: Path) -> bool:
    """Return whether everybody may read it, whatever our umask made of its mode."""
    mode = path.stat().st_mode
    return mode & 0o004 != 0 and (mode & 0o001 != 0 or not path.is_dir())


class _Feed:
    """Gives an image's bytes in order, as many at a time as are asked for."""

    def __init__(self, pieces: AsyncIterator[bytes | memoryview]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    async def take(self, most: int) -> memoryview:
        """Return the next bytes, at least one. Raises MirrorError when there are none."""
        if not self._rest:
            try:
                self._rest = memoryview(await anext(self._pieces))
            except StopAsyncIteration:
                raise MirrorError("the stored image ends before it is whole: run `pps-mirror verify`") from None
        taken, self._rest = self._rest[:most], self._rest[most:]
        return taken


async def _pieces(image: Body) -> AsyncGenerator[bytes | memoryview, None]:
    position, size = 0, image.metadata.size
    while position < size:
        if (file := image.file_at(position)) is None:
            async with aclosing(image.pieces(position, size)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        try:
            piece = await _blocking(file.read, position, min(size, position + PIECE))
        except OSError as error:
            raise MirrorError(f"the image cannot be read from the store: {error}") from None
        position += len(piece)
        yield piece


@contextmanager
def _alone_in(target: Path) -> Iterator[None]:
    """Make the directory `target` if it is not there, and keep other exports out of it. Raises MirrorError."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise MirrorError(f"{target} is in the way: it is no directory")
    target.mkdir(exist_ok=True)
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MirrorError(f"another export writes into {target} just now") from None
        except OSError as error:
            log.debug("%s cannot be locked: %s", target, error)  # some shares know no locks
        yield
    finally:
        os.close(fd)


def _explained(error: OSError, target: Path) -> MirrorError:
    if error.errno == errno.EFBIG:
        return too_large_a_file(target)
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return FullMedium(
            f"{target.parent} is full; what is written is kept: make room, and the same command goes on from there"
        )
    return MirrorError(f"{target} cannot be written: {error.strerror or error}")


async def _blocking(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a step that waits for a disk in a thread, so that Ctrl-C is noticed between two steps, never within one."""
    return await finished(asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs)))
