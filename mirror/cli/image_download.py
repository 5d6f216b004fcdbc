"""Downloads an image into one file, whole and verified, or not at all.

It runs a fill like the mirror's own: broken transfers are resumed, and wrong bytes are thrown away.
"""

import asyncio
import contextlib
import hashlib
import logging
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from mirror.common.log import event
from mirror.common.progress import Meter
from mirror.common.units import format_duration, format_size
from mirror.config import TOKEN_VARIABLE
from mirror.http.image_response import safe_name
from mirror.images.fill import Fill
from mirror.images.fill_outcome import FillFailed, Reason
from mirror.images.retry import RetryBudget
from mirror.model.caller import Caller
from mirror.model.errors import BadUpstream, MirrorError, Unavailable, UpstreamRefused, UpstreamTimeout, UsageError
from mirror.model.metadata import MAX_BODY, ImageMetadata
from mirror.model.source import Broken, Stream
from mirror.store.disk.single_file import SingleFile, part_of
from mirror.upstream.client import Upstream, refused
from mirror.upstream.encoding import decoded
from mirror.upstream.image_source import TRIES, ImageSource
from mirror.upstream.statuses import passes

ATTEMPTS = 3
"""How often in a row the bytes may belong to another image than the metadata said."""

TICK = 0.2
"""Seconds between two updates of the progress."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A whole, verified image in `file`, which may have been there before. `resumes` counts cuts of the transfer."""

    file: Path
    metadata: ImageMetadata
    was_there: bool
    resumes: int
    seconds: float

    def describe(self) -> dict[str, object]:
        """Return it for machines."""
        return {
            "file": str(self.file),
            "hash": self.metadata.hash,
            "size": self.metadata.size,
            "wasThere": self.was_there,
            "resumes": self.resumes,
            "seconds": round(self.seconds, 3),
        }


class ImageDownload:
    """Downloads the image at `path` of a server; it is the current one unless `image_hash` is given.

    `file` is where it goes, or in which directory; None means here. `retry_for` limits seconds without progress.
    """

    def __init__(
        self,
        upstream: Upstream,
        path: str,
        image_hash: str | None,
        caller: Caller,
        meter: Meter,
        *,
        file: Path | None,
        retry_for: float,
    ) -> None:
        self._file = file
        self._retry_for = retry_for
        self._upstream = upstream
        self._path = path
        self._hash = image_hash
        self._caller = caller
        self._meter = meter
        self._resumes = 0

    async def run(self) -> ImageFile:
        """Download the image; begin again with the new one if another image becomes current."""
        clock = asyncio.get_running_loop().time
        began = clock()
        for attempt in range(1, ATTEMPTS + 1):
            metadata = await self._current()
            target, mine = self._target(metadata)
            name = f"{metadata.hash[:12]} ({format_size(metadata.size)})"
            if was_there := await asyncio.to_thread(_holds, target, metadata):
                self._meter.say(f"{name} is in {target} already, verified: nothing to do")
            elif target.exists() and not target.is_file():  # root could otherwise replace /dev/null
                raise MirrorError(f"{target} is in the way: it is no plain file")
            elif target.exists() and not mine:
                raise MirrorError(f"{target} is there and is not this image: say with -o where to put it")
            elif not await self._brought(metadata, target, last=attempt == ATTEMPTS):
                continue
            else:
                self._meter.say(f"{name} is verified and in {target}, after {format_duration(clock() - began)}")
            return ImageFile(target, metadata, was_there, self._resumes, clock() - began)
        raise AssertionError("the last attempt returns or raises")

    def _target(self, metadata: ImageMetadata) -> tuple[Path, bool]:
        """Return where the image goes, and whether the user named that very file, so that it may be replaced."""
        given = self._file or Path()
        if given.is_symlink():  # the image goes to the target of the link, and needs room there
            try:
                given = given.resolve()
            except RuntimeError:
                raise UsageError(f"-o {given}: its links lead in a circle") from None
        if given.is_dir():
            return given / safe_name(metadata.filename, f"{metadata.hash[:12]}.tar.gz"), False
        return given, True

    # Metadata

    async def _current(self) -> ImageMetadata:
        """Ask for the metadata, with retries."""
        patience = RetryBudget(self._retry_for, asyncio.get_running_loop().time)
        while True:
            try:
                return await self._ask()
            except Broken as cut:
                patience.count(cut)
                if patience.hopeless or patience.spent:
                    raise Unavailable(str(cut)) from cut
                log.warning("%s; retry in %.1f s", cut, patience.delay, extra=event("get.retried"))
                await asyncio.sleep(patience.delay)

    async def _ask(self) -> ImageMetadata:
        """Ask for the metadata once. Raises Broken when another try may help."""
        try:
            answer = await self._upstream.forward("GET", f"{self._path}metadata/", "", self._caller)
            if answer.status == 200:
                return self._right(ImageMetadata.parse(decoded(answer.body, answer.headers, MAX_BODY)))
        except (Unavailable, UpstreamTimeout) as error:
            raise Broken(error.message) from error
        except BadUpstream as error:
            raise Broken(error.message, definitive_after=TRIES) from error
        if passes(answer.status):
            raise Broken(f"upstream answered {answer.status}", retry_after=answer.retry_after)
        raise self._refusal(refused(answer.status, answer.body, answer.headers, answer.retry_after))

    def _right(self, metadata: ImageMetadata) -> ImageMetadata:
        if self._hash not in {None, metadata.hash}:
            raise MirrorError(f"the answer is about another image ({metadata.hash}) than the URL")
        return metadata

    def _refusal(self, refusal: UpstreamRefused) -> MirrorError:
        if refusal.status == 404 and self._hash is not None:
            return MirrorError(f"the mirror does not have {self._hash[:12]}: /mirror/v1/images/ lists what it has")
        if refusal.status == 404:
            return MirrorError("there is no image (the answer was 404): is the URL right?")
        if refusal.status not in {401, 403}:
            return MirrorError(f"{refusal.message}: is the URL right?")
        if self._caller.authorization is None:
            return MirrorError(f"a token is wanted ({refusal.status}): give --token-file or set {TOKEN_VARIABLE}")
        return MirrorError(f"the token is refused (the answer was {refusal.status})")

    # The image

    async def _brought(self, metadata: ImageMetadata, target: Path, *, last: bool) -> bool:
        """Fetch the image. Returns False when the bytes were those of another one. Raises MirrorError."""
        source = _Patient(ImageSource(self._upstream, metadata, self._caller))
        try:
            journal = await asyncio.to_thread(SingleFile.take_up, target, metadata)
        except OSError as error:
            raise _unwritable(target, error) from error
        await self._check_room(target, metadata)
        fill = Fill(metadata, source, journal, holdback=0, retry=self._retry_for)
        try:
            await self._watch(fill, target)
        except FillFailed as failure:
            if failure.reason not in {Reason.CHANGED, Reason.WRONG_BYTES} or last:
                raise self._explained(failure, target) from failure
            log.warning("%s: beginning anew", failure.words, extra=event("get.began_anew"))
            return False
        finally:
            self._resumes += fill.resumes
        return True

    async def _check_room(self, target: Path, metadata: ImageMetadata) -> None:
        wanted = metadata.size - _received(target)
        disk = shutil.disk_usage(part_of(target).parent)
        if disk.total and disk.free < wanted:  # some shares know no sizes
            raise MirrorError(f"{target} needs {format_size(wanted)} more, and {format_size(disk.free)} are free there")

    async def _watch(self, fill: Fill, target: Path) -> None:
        """Run the fill and show its progress. Raises FillFailed."""
        size = fill.metadata.size
        self._meter.start(size, _received(target), fill.state)
        try:
            async with _run(fill) as running:
                while not running.done():
                    await asyncio.wait([running], timeout=TICK)
                    self._meter.show(fill.position, fill.state)
                await fill.ended()
        except asyncio.CancelledError:
            self._meter.stop()
            self._meter.say(
                f"stopped at {format_size(_received(target))} of {format_size(size)}: that is {_kept(target)}"
            )
            raise
        finally:
            self._meter.stop()

    def _explained(self, failure: FillFailed, target: Path) -> MirrorError:
        if isinstance(failure.error, UpstreamRefused):
            return self._refusal(failure.error)
        said = failure.words
        if failure.reason is Reason.STORE and isinstance(failure.error.__cause__, OSError):
            said = _unwritable(target, failure.error.__cause__).message
        return MirrorError(f"{said}; what came is {_kept(target)}" if _received(target) else said)


@asynccontextmanager
async def _run(fill: Fill) -> AsyncIterator[asyncio.Task[None]]:
    """Run the fill in the background; on exit it is cancelled and no longer writes."""
    running = asyncio.create_task(fill.run())
    try:
        yield running
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


class _Patient:
    """The source of an image that retries when it is told to come back later (429)."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source

    @asynccontextmanager
    async def open(self, offset: int, validator: str | None) -> AsyncIterator[Stream]:
        """See `Source.open`."""
        try:
            async with self._source.open(offset, validator) as stream:
                yield stream
        except UpstreamRefused as refusal:
            if refusal.status != 429:
                raise
            raise Broken(refusal.message, retry_after=refusal.retry_after) from refusal


def _holds(target: Path, metadata: ImageMetadata) -> bool:
    """Whether the file is that image already. Blocks."""
    if not target.is_file() or target.stat().st_size != metadata.size:
        return False
    with target.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == metadata.hash


def _received(target: Path) -> int:
    """Return how many bytes of the image are there already."""
    return part_of(target).stat().st_size if part_of(target).exists() else 0


def _kept(target: Path) -> str:
    return f"kept in {part_of(target)}, and the same command goes on from there"


def _unwritable(target: Path, error: OSError) -> MirrorError:
    return MirrorError(f"{part_of(target)} cannot be written: {error.strerror or type(error).__name__}")
