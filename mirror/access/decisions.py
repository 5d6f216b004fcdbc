"""Remembers which callers upstream accepted and refused, and when: in memory, and in `access.json`.

A credential is known by a keyed hash, never by itself. All processes of a store share the file and the key in it. What
one of them learns outlives all of them, and the latest decision counts, whichever process heard it.

Times are moments of the steady clock (see `mirror.common.clock`). The file has them as times of day, and beside them
the offset between the two clocks, so until the machine boots, setting the clock changes neither their order nor their
age. An acceptance from the future lets nobody in. A refusal from the future counts as one of now: later than everything
that was heard, earlier than what upstream says next.
"""

import asyncio
import hmac
import json
import logging
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from cachetools import LRUCache

from mirror.common.clock import Clock
from mirror.common.files import locked_directory, write_durably
from mirror.common.log import event

T = TypeVar("T")

log = logging.getLogger(__name__)

REMEMBERED = 10_000
"""Credentials remembered at most, of each kind of decision."""

SAVE_STEP = 60.0
"""Seconds by which an acceptance on the disk may lag behind the one in memory."""


_NEVER = float("-inf")

_LONG_AGO = -1e11
"""A moment thousands of years ago: too old for an acceptance to be of use, but any refusal is later than it."""


@dataclass(frozen=True, slots=True)
class Book:
    """The content of the file: the key, and when the credentials of these names were accepted or refused last.

    No name is in both maps, and each map is in order of time. It is not `sound` when some times were in the future.
    """

    key: bytes = field(repr=False)
    accepted: Mapping[str, float]
    refused: Mapping[str, float]
    sound: bool = True

    @classmethod
    def read(cls, path: Path, clock: Clock) -> "Book | None":
        """Read the file. Returns None when there is none that can be used. Blocks."""
        try:
            note = json.loads(path.read_bytes())
            key = bytes.fromhex(note["key"])
            accepted, refused = (
                {str(name): float(when) for name, when in times.items()}
                for times in (note["accepted"], note.get("refused", {}))
            )
            same_boot = clock.boot and note.get("boot") == clock.boot
            ahead = float(note["ahead"]) if same_boot else clock.offset()
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s is left alone: %s", path, error, extra=event("note.ignored"))
            return None
        now, wall = clock.steady(), clock.wall()
        moments = [{name: round(when - ahead, 4) for name, when in times.items()} for times in (accepted, refused)]
        yes, no = moments
        past = {name: when if when <= now and accepted[name] <= wall else _LONG_AGO for name, when in yes.items()}
        sound = all(when <= wall for when in (*accepted.values(), *refused.values()))
        return cls(key, past, {name: min(when, now) for name, when in no.items()}, sound)

    def joined(self, other: "Book", since: float) -> "Book":
        """Return both together under one key, without refusals from before `since` and the oldest of too many."""
        accepted, refused = _latest(self.accepted, other.accepted), _latest(self.refused, other.refused)
        return Book(
            self.key,
            _newest({name: when for name, when in accepted.items() if when > refused.get(name, _NEVER)}),
            _newest({name: when for name, when in refused.items() if when >= max(since, accepted.get(name, _NEVER))}),
        )

    def write_into(self, path: Path, since: float, clock: Clock) -> "Book":
        """Join this with the file's content, under the file's key, write that, and return it. Blocks. Raises OSError.

        If the file has another key, our names are worthless, and nothing is added. If there is no file yet, our key
        becomes its key; the lock on the directory makes one process the first.
        """
        with locked_directory(path.parent):
            there = Book.read(path, clock)
            if there is not None and there.key != self.key:
                return there
            book = self.joined(there, since) if there is not None else self
            if book != there:
                write_durably(path, json.dumps(book._told(clock)).encode(), mode=0o600)
            return book

    def _told(self, clock: Clock) -> Mapping[str, object]:
        """Return this as the file has it."""
        ahead = clock.offset()
        accepted, refused = (
            {name: round(when + ahead, 4) for name, when in times.items()} for times in (self.accepted, self.refused)
        )
        return {"key": self.key.hex(), "boot": clock.boot, "ahead": ahead, "accepted": accepted, "refused": refused}


class Decisions:
    """The decisions of one process and, through the file at `path`, of the others.

    A refusal is forgotten after `lasting` seconds: no acceptance from before it counts any more by then. All processes
    share the `clock`.
    """

    def __init__(self, path: Path, *, lasting: float, pool: Executor, clock: Clock) -> None:
        self.lasting = lasting
        self._path = path
        self._pool = pool
        self._clock = clock
        self._heard: LRUCache[str, float] = LRUCache(REMEMBERED)
        self._take_key(secrets.token_bytes(32))
        self._key_is_shared = False
        self._accepted: LRUCache[str, float] = LRUCache(REMEMBERED)
        self._refused: dict[str, float] = {}
        self._noted: Mapping[str, float] = {}
        self._seen: tuple[int, int, int] | None = None
        self._changed = False
        self._saving: asyncio.Task[None] | None = None

    def name(self, credential: str | None) -> str:
        """Return the name of this credential, which holds as long as the key does not change."""
        keyed = self._keyed.copy()
        keyed.update((credential or "").encode())
        return keyed.hexdigest()

    def _take_key(self, key: bytes) -> None:
        self._key = key
        self._keyed = hmac.new(key, digestmod="sha256")  # to copy it takes half as long as to begin with the key

    def accepted_at(self, name: str) -> float | None:
        """Return when the credential of that name was accepted last, as far as this process knows."""
        return self._accepted.get(name)

    def heard_at(self, name: str) -> float | None:
        """Return when upstream last told this very process that it accepts the credential of that name."""
        return self._heard.get(name) if name in self._accepted else None

    async def heard_of(self, credential: str | None) -> float | None:
        """Return when that credential was accepted last, as far as any process knows."""
        await self.take_up()
        return self.accepted_at(self.name(credential))

    async def take_up(self) -> None:
        """Read what other processes, or earlier ones, wrote to the file."""
        self._seen, book = await self._blocking(partial(_read_changed, self._path, self._seen, self._clock))
        if book is not None:
            self._join(book)
            if not book.sound:
                self._save()

    async def accept(self, credential: str | None) -> None:
        """Note that upstream has accepted the credential now."""
        await self.take_up()  # another process may have refused it
        while True:
            name, key = self.name(credential), self._key
            self._accepted[name] = self._heard[name] = self._clock.steady()
            self._refused.pop(name, None)
            if self._accepted[name] - self._noted.get(name, _NEVER) <= SAVE_STEP:
                return
            saving = self._save()
            if self._key_is_shared:
                return
            await asyncio.shield(saving)  # which finds out whether another process has made a key
            if self._key == key:
                return

    async def refuse(self, credential: str | None) -> None:
        """Note that upstream has refused it now. If it was accepted before, this is on the disk on return."""
        known = self._accepted.pop(self.name(credential), None) is not None
        await self.take_up()
        name = self.name(credential)  # the key may have been another one
        if self._accepted.pop(name, None) is not None or known:
            self._refused[name] = self._clock.steady()
            await asyncio.shield(self._save())

    async def close(self) -> None:
        """Wait until what was learnt last is on the disk."""
        if self._saving is not None:
            await self._saving

    def _save(self) -> asyncio.Task[None]:
        self._changed = True
        if self._saving is None or self._saving.done():
            self._saving = asyncio.create_task(self._write(), name="access.json")
        return self._saving

    async def _write(self) -> None:
        while self._changed:
            self._changed = False
            ours = self._book()
            try:
                written = await self._blocking(partial(ours.write_into, self._path, self._since(), self._clock))
            except OSError as error:
                log.warning("%s cannot be written: %s", self._path, error, extra=event("note.unwritten"))
                return
            self._join(written)

    def _book(self) -> Book:
        return Book(self._key, dict(self._accepted), dict(self._refused))

    def _join(self, book: Book) -> None:
        """Take over what the file says."""
        self._key_is_shared = True
        self._noted = book.accepted
        if book.key == self._key:
            book = book.joined(self._book(), self._since())
        self._take_key(book.key)
        self._accepted = LRUCache(REMEMBERED)
        self._accepted.update(_newest(book.accepted))
        self._refused = dict(book.refused)

    def _since(self) -> float:
        """Return the moment before which nothing counts any more."""
        return self._clock.steady() - self.lasting

    async def _blocking(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)


def _read_changed(
    path: Path, seen: tuple[int, int, int] | None, clock: Clock
) -> tuple[tuple[int, int, int] | None, Book | None]:
    """Return the identity of the file that is there, and its content if it is not the one that was `seen`."""
    try:
        file = path.stat()
    except OSError:
        return seen, None
    there = (file.st_ino, file.st_mtime_ns, file.st_size)
    return there, Book.read(path, clock) if there != seen else None


def _latest(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {name: max(one.get(name, _NEVER), other.get(name, _NEVER)) for name in {**one, **other}}


def _newest(times: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(times.items(), key=lambda item: item[1])[-REMEMBERED:])
