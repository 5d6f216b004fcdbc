"""The parts of one upload: which are in the bucket, which fill wrote each, and how far they go without a gap."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from mirror.store.s3 import parts
from mirror.store.s3.provenance import WrittenPart


class PartTable:
    """The parts of an image of `size` bytes that the fill `fill` uploads. It wakes tasks that wait for a change.

    A part is first *landed*, as an object that others can read, and then *copied* into the multipart upload. `adopted`
    are parts that other fills landed. `received` counts the bytes that the journal has.
    """

    def __init__(self, size: int, fill: str, adopted: Mapping[int, WrittenPart]) -> None:
        self.size = size
        self.fill = fill
        self.part_size = parts.part_size(size)
        self.count = parts.count(size, self.part_size)
        self.adopted = adopted
        self.received = 0
        self.open_end = 0
        self._landed: dict[int, str] = {}
        self._copied: dict[int, str] = {}
        self._without_gap = 0
        self._changed = asyncio.Event()

    def span(self, number: int) -> tuple[int, int]:
        """Return where the bytes of part `number` begin and end in the image."""
        return number * self.part_size, min(self.size, (number + 1) * self.part_size)

    def writer(self, number: int) -> str | None:
        """Return the id of the fill that wrote part `number`, if that part is in the bucket."""
        if number in self.adopted:
            return self.adopted[number].fill
        return self.fill if number in self._landed else None

    @property
    def written(self) -> Mapping[int, WrittenPart]:
        """The parts that we wrote, by number."""
        return {number: WrittenPart(self.fill, etag) for number, etag in self._landed.items()}

    @property
    def etags(self) -> Sequence[str]:
        """The ETags of the copies, in order, with which the multipart upload is completed."""
        return [self._copied[number] for number in sorted(self._copied)]

    def reached(self) -> int:
        """Return how many bytes from the beginning the parts in the bucket cover without a gap."""
        while self.writer(self._without_gap) is not None:
            self._without_gap += 1
        start, stop = self.span(self._without_gap)
        return min(self.size, max(start, self.open_end if start <= self.open_end < stop else 0))

    def writers(self) -> tuple[str, ...]:
        """Return the ids of the fills that wrote the parts up to `reached`, by number."""
        numbers = range(parts.count(self.reached(), self.part_size))
        return tuple(self.adopted[number].fill if number in self.adopted else self.fill for number in numbers)

    def receive(self, position: int) -> None:
        """Note that the journal has the bytes up to `position`."""
        self.received = position
        self.wake()

    def grow(self, end: int) -> None:
        """Note that a part which is still growing was written up to byte `end` of the image."""
        self.open_end = end
        self.wake()

    def land(self, number: int, etag: str) -> None:
        """Note that we wrote part `number`."""
        self._landed[number] = etag
        self.wake()

    def copy(self, number: int, etag: str) -> None:
        """Note that part `number` is in the multipart upload."""
        self._copied[number] = etag

    def lose(self, number: int) -> None:
        """Forget an adopted part, which is no longer in the bucket."""
        self.adopted = {each: part for each, part in self.adopted.items() if each != number}
        self._without_gap = 0

    def lose_all(self) -> None:
        """Forget all parts: the upload begins again."""
        self.adopted, self._landed, self._copied = {}, {}, {}
        self.open_end = self._without_gap = 0

    def wake(self) -> None:
        """Wake the tasks that wait in `until`."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Wait until the condition holds, or for that long; return whether it holds."""
        try:
            async with asyncio.timeout(seconds):
                while not holds():
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True
