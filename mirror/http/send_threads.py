"""The threads that send images. Each runs its own event loop, and divides its memory among the downloads."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager

LEAST_SLICE = 64 << 10
"""Bytes of the smallest slice that is sent at a time."""

THREAD_MEMORY = 12 << 20
"""Bytes of all larger slices together that one thread sends at a time."""


class SliceMemory:
    """Divides `size` bytes among the slices that are being sent: the more there are, the smaller is the next."""

    def __init__(self, size: int) -> None:
        self._left = size

    @contextmanager
    def slice(self, most: int, wanted: int) -> Iterator[int]:
        """Reserve a slice of at most that many bytes while it is sent; yields its size."""
        size = min(wanted, most, max(LEAST_SLICE, self._left // 2))
        self._left -= size
        try:
            yield size
        finally:
            self._left += size


class SendThread:
    """A thread with an event loop."""

    def __init__(self, name: str) -> None:
        self.memory = SliceMemory(THREAD_MEMORY)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    async def run(self, work: Coroutine[None, None, None]) -> None:
        """Run `work` in the thread and wait until it has ended, also when this call is cancelled.

        `run_coroutine_threadsafe` would not wait for that, and nobody would know how much was sent.
        """
        here = asyncio.get_running_loop()
        ended = here.create_future()
        tasks: list[asyncio.Task[None]] = []

        def start() -> None:
            task = self._loop.create_task(work)
            task.add_done_callback(lambda task: here.call_soon_threadsafe(_conclude, ended, task))
            tasks.append(task)

        self._loop.call_soon_threadsafe(start)
        try:
            await asyncio.shield(ended)
        except asyncio.CancelledError:
            self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())
            await asyncio.wait([ended])
            if not ended.cancelled():
                ended.exception()  # marks it as retrieved: only the cancellation matters
            raise

    def stop(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _conclude(ended: asyncio.Future[None], task: asyncio.Task[None]) -> None:
    if task.cancelled():
        ended.cancel()
    elif error := task.exception():
        ended.set_exception(error)
    else:
        ended.set_result(None)
