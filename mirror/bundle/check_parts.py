"""Checks all parts of an image that was carried here, so that a person learns at once which of them are bad."""

import asyncio
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

from mirror.bundle.discovery import Carried, Part
from mirror.bundle.format import BadBundle
from mirror.bundle.medium import open_to_read, size_of
from mirror.common.progress import Meter
from mirror.common.tasks import finished

STEP = 2 << 20
"""Bytes read at a time."""


@dataclass(frozen=True, slots=True)
class Checked:
    """The outcome for one part: the copy that is used, its `size` in bytes, and what is wrong with it, if anything."""

    path: Path
    size: int
    trouble: str | None = None

    def describe(self) -> dict[str, object]:
        """As machines see it."""
        return {"path": str(self.path), "size": self.size, "good": self.trouble is None, "detail": self.trouble}


class BadParts(BadBundle):
    """Some parts of an image are bad. `checked` are all of them."""

    def __init__(self, image_hash: str, checked: Sequence[Checked]) -> None:
        bad = [each.trouble for each in checked if each.trouble is not None]
        share = f"{len(bad)} of {len(checked)} volumes {'is' if len(bad) == 1 else 'are'} bad: " if checked[1:] else ""
        super().__init__(f"{share}{'; '.join(bad)}. Nothing was imported: copy what is bad again")
        self.image_hash = image_hash
        self.checked = checked

    def describe(self) -> dict[str, object]:
        """As machines see it."""
        parts = [each.describe() for each in self.checked]
        return {"hash": self.image_hash, "stored": False, "current": False, "parts": parts}


class Checking:
    """Checks the parts of one image."""

    def __init__(self, carried: Carried, meter: Meter, pool: Executor) -> None:
        self._parts = carried.parts
        self._size = carried.metadata.size
        self._hash = carried.metadata.hash
        self._meter = meter
        self._pool = pool
        self._done = 0
        self._whole: hashlib._Hash | None = None

    async def run(self, position: int) -> Sequence[Checked]:
        """Check the parts that will be read: those that reach beyond byte `position` of the image.

        Raises BadParts; or BadBundle when all parts are as they were written, and together are not the image of the
        metadata.
        """
        checked = [await self._found(part.copies[0]) for part in self._parts]
        first = self._first([each.size for each in checked], position)
        self._done = 0
        self._whole = hashlib.sha256() if first == 0 and len(self._parts) > 1 else None
        self._meter.start(sum(each.size for each in checked[first:]), 0, "checking")
        try:
            for number, part in enumerate(self._parts[first:], first):
                checked[number] = await self._best_copy(part)
        finally:
            self._meter.stop()
        if any(each.trouble for each in checked):
            raise BadParts(self._hash, checked)
        self._judge(checked)
        return checked

    def _first(self, sizes: Sequence[int], position: int) -> int:
        """Return the index of the first part beyond `position`; 0 when the sizes are not those of this image."""
        if sum(sizes) != self._size:
            return 0
        return next(number for number, end in enumerate(accumulate(sizes)) if end > position)

    def _judge(self, checked: Sequence[Checked]) -> None:
        if (size := sum(each.size for each in checked)) != self._size:
            raise BadBundle(
                f"the volumes together: {size} bytes, and metadata promises {self._size}. Nothing was imported"
            )
        if self._whole is not None and self._whole.hexdigest() != self._hash:
            raise BadBundle(
                "the volumes together are not the image that metadata promises: their sha256 is "
                f"{self._whole.hexdigest()}, and should be {self._hash}. Nothing was imported"
            )

    async def _best_copy(self, part: Part) -> Checked:
        """Return the first good copy of a part, or else the first bad one."""
        bad = None
        for path in part.copies:
            found = await self._found(path)
            if found.trouble is None:
                found = await self._hashed(part, found)
            if found.trouble is None:
                return found
            bad = bad or found
        assert bad is not None  # noqa: S101 - a part has a copy at least
        return bad

    async def _found(self, path: Path) -> Checked:
        try:
            size = await asyncio.get_running_loop().run_in_executor(self._pool, size_of, path)
        except BadBundle as error:
            return Checked(path, 0, error.message)
        if size > self._size:
            return Checked(path, size, f"{path} has {size} bytes, more than the whole image ({self._size})")
        if len(self._parts) == 1 and size < self._size:
            return Checked(path, size, f"{path} has {size} bytes of the {self._size} that metadata promises")
        return Checked(path, size)

    async def _hashed(self, part: Part, found: Checked) -> Checked:
        """Read a copy to its end. If it is good, it goes into the digest of the whole image."""
        loop = asyncio.get_running_loop()
        digest, whole = hashlib.sha256(), self._whole.copy() if self._whole is not None else None

        def step() -> int:
            data = os.pread(fd, min(STEP, found.size - position), position)
            digest.update(data)
            if whole is not None:
                whole.update(data)
            return len(data)

        position = 0
        try:
            fd = await loop.run_in_executor(self._pool, open_to_read, found.path)
            with os.fdopen(fd, "rb", buffering=0):
                while position < found.size and (count := await finished(loop.run_in_executor(self._pool, step))):
                    position += count
                    self._done += count
                    self._meter.show(self._done, "checking")
        except BadBundle as error:
            return replace(found, trouble=error.message)
        except OSError as error:
            return replace(found, trouble=f"{found.path} cannot be read at byte {position}: {error.strerror}")
        if part.sha256 is not None and digest.hexdigest() != part.sha256:
            sums = f"its sha256 is {digest.hexdigest()}, and should be {part.sha256}"
            return replace(found, trouble=f"{found.path} ({position} bytes): {sums}")
        self._whole = whole
        return found
