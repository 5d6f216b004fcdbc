"""Threads that send images. Each runs its own event loop."""

import asyncio
import threading
from collections.abc import Coroutine

from mirror.common.tasks import let_end


class SendThread:
    """A thread with an event loop."""

    def __init__(self, name: str) -> None:
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
            await let_end(ended)  # only the cancellation matters
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
