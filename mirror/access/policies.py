"""Decides who may read: upstream decides by answering the caller's metadata call, a list does, or everybody may.

A decision of upstream is remembered under a keyed hash of the credential, never under the credential. Acceptances
outlive a restart (see `mirror.access.decisions`), so that a site is still served while upstream is away.
"""

import asyncio
import logging
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Protocol

from mirror.access.decisions import Decisions
from mirror.access.refusals import Refusals
from mirror.access.tokens import Tokens
from mirror.common.clock import Clock
from mirror.common.concurrency_limit import Limiter
from mirror.common.metrics import Metrics
from mirror.common.shared_memory import SharedNotes
from mirror.config import Config
from mirror.config.reloadable import Ready
from mirror.images.metadata_cache import Current, MetadataCache
from mirror.images.upstream_health import Away
from mirror.model.caller import Caller, OwnCredential
from mirror.model.errors import MirrorError, Unauthorized, UpstreamRefused

log = logging.getLogger(__name__)

STRANGERS = 16
"""The most credentials, none of which upstream has ever accepted, that it is asked about at once. A flood of them
becomes a trickle."""

STRANGERS_WAITING = 1000
STRANGER_SECONDS = 10.0
"""How many others may wait for that, and how many seconds; the rest get 503."""


class Access(Protocol):
    """A policy: decides who may read, and which credential upstream sees."""

    async def admit(self, caller: Caller) -> Current | None:
        """Admit the caller or raise. Returns upstream's metadata if upstream had to be asked, else None."""

    def credential_for_metadata(self, caller: Caller) -> Caller:
        """Return the caller whose credential upstream sees when it is asked for metadata for this caller."""

    def credential_for_image(self, caller: Caller) -> Caller:
        """Return the caller as upstream may see it: without its credential if that is meant for the mirror alone."""

    async def load(self) -> None:
        """Read what is on the disk, at start. Raises ConfigError."""

    async def prepare(self, config: Config) -> Ready:
        """Get ready for a configuration of the same mode (see `mirror.config.reloadable`). Raises ConfigError."""

    async def close(self) -> None:
        """Wait until the last decisions are on the disk."""


class CountingAccess:
    """Counts the decisions of another `Access`: accepted, refused, or unknown when nobody could be asked."""

    def __init__(self, access: Access, metrics: Metrics) -> None:
        self._access = access
        self._accepted, self._refused, self._unknown = map(metrics.decisions.labels, ("accepted", "refused", "unknown"))

    async def admit(self, caller: Caller) -> Current | None:
        """See `Access.admit`."""
        try:
            current = await self._access.admit(caller)
        except MirrorError as error:
            (self._refused if error.status in {401, 403} else self._unknown).inc()
            raise
        self._accepted.inc()
        return current

    def credential_for_metadata(self, caller: Caller) -> Caller:
        """See `Access.credential_for_metadata`."""
        return self._access.credential_for_metadata(caller)

    def credential_for_image(self, caller: Caller) -> Caller:
        """See `Access.credential_for_image`."""
        return self._access.credential_for_image(caller)

    async def load(self) -> None:
        """See `Access.load`."""
        await self._access.load()

    async def prepare(self, config: Config) -> Ready:
        """See `Access.prepare`."""
        return await self._access.prepare(config)

    async def close(self) -> None:
        """See `Access.close`."""
        await self._access.close()


class OpenAccess:
    """Mode open: everybody may read. Upstream is asked with the mirror's own credential, when it has one."""

    def __init__(self, own: OwnCredential) -> None:
        self._own = own

    async def admit(self, caller: Caller) -> Current | None:
        """Admit every caller."""
        return None

    def credential_for_metadata(self, caller: Caller) -> Caller:
        """See `Access.credential_for_metadata`."""
        return self._own.lend(caller)

    def credential_for_image(self, caller: Caller) -> Caller:
        """See `Access.credential_for_image`: a credential that nobody asked for can only be meant for upstream."""
        return caller

    async def load(self) -> None:
        """Do nothing: there is nothing to load."""

    async def prepare(self, config: Config) -> Ready:
        """Nothing to get ready."""
        return Ready(lambda: None)

    async def close(self) -> None:
        """Nothing to wait for."""


class TokensAccess:
    """Mode tokens: callers that send a token of `file` may read.

    The tokens are the site's own, and upstream never sees one: it is asked with the mirror's credential, or without
    any.
    """

    def __init__(self, own: OwnCredential, file: Path, pool: Executor) -> None:
        self._own = own
        self._file = file
        self._pool = pool
        self._tokens = Tokens()

    async def load(self) -> None:
        """Read the file. Raises ConfigError."""
        self._tokens = await self._read(self._file)

    async def prepare(self, config: Config) -> Ready:
        """See `Access.prepare`. The file is read again, and may be another one."""
        file = config.auth.tokens_file or self._file
        tokens = await self._read(file)

        def apply() -> None:
            self._file, self._tokens = file, tokens

        return Ready(apply, ("auth.tokens_file",))

    async def _read(self, file: Path) -> Tokens:
        return await asyncio.get_running_loop().run_in_executor(self._pool, Tokens.read, file)

    async def admit(self, caller: Caller) -> Current | None:
        """Admit the caller or raise Unauthorized."""
        scheme, _, token = (caller.authorization or "").partition(" ")
        if scheme.lower() not in {"bearer", "token"} or not (token := token.strip()):
            raise Unauthorized(
                "this mirror wants a token of its own: ask whoever runs it for one and send Authorization: Bearer TOKEN"
            )
        if (name := self._tokens.name_of(token)) is None:
            raise Unauthorized("this token is none of the mirror's own; ask whoever runs the mirror for one")
        log.debug("request %s: let in as %s", caller.request_id, name)
        return None

    def credential_for_metadata(self, caller: Caller) -> Caller:
        """See `Access.credential_for_metadata`."""
        return self._own.lend(caller.stripped())

    def credential_for_image(self, caller: Caller) -> Caller:
        """See `Access.credential_for_image`."""
        return caller.stripped()

    async def close(self) -> None:
        """Nothing to wait for."""


class UpstreamAccess:
    """Mode upstream: a caller may read what upstream lets it read.

    A decision that this process heard holds for `ttl` seconds. While upstream is away, one that any process heard holds
    for `stale_if_error` seconds.
    """

    def __init__(
        self,
        metadata_cache: MetadataCache,
        *,
        ttl: float,
        stale_if_error: float,
        note: Path,
        pool: Executor,
        clock: Clock,
        refused: SharedNotes | None = None,
    ) -> None:
        self._metadata_cache = metadata_cache
        self._ttl = ttl
        self._stale_if_error = stale_if_error
        self._clock = clock
        self._decisions = Decisions(note, lasting=stale_if_error, pool=pool, clock=clock)
        self._refused = Refusals(refused)
        self._asking: dict[str, asyncio.Task[Current]] = {}
        self._strangers = Limiter(
            STRANGERS,
            queue=STRANGERS_WAITING,
            patience=STRANGER_SECONDS,
            message="the mirror is busy asking upstream about many credentials that it does not know; come back soon",
        )

    async def load(self) -> None:
        """Read the acceptances of earlier processes."""
        await self._decisions.take_up()

    async def prepare(self, config: Config) -> Ready:
        """See `Access.prepare`."""

        def apply() -> None:
            self._ttl = config.auth.ttl
            self._stale_if_error = self._decisions.lasting = config.upstream.stale_if_error

        return Ready(apply)

    async def admit(self, caller: Caller) -> Current | None:
        """Admit the caller or raise. Returns upstream's metadata if it had to be asked, None if it was remembered.

        Raises UpstreamRefused (upstream's own answer), Unavailable when upstream is away and never accepted the caller.
        """
        name = self._decisions.name(caller.authorization)
        heard = self._decisions.heard_at(name)
        if heard is not None and self._clock.steady() - heard < self._ttl:
            return None
        if refusal := self._refused.get(name, caller.authorization):
            raise refusal.with_traceback(None)  # otherwise its traceback would grow each time it is raised
        asking = self._asking.get(name)
        if asking is not None and caller.came_by:  # in a circle of mirrors, that other request waits for our answer
            return await self._ask(name, caller)
        if asking is None:  # one question for all requests with this credential
            asking = asyncio.create_task(self._ask(name, caller), name="admit")
            self._asking[name] = asking
            asking.add_done_callback(partial(self._asked, name))
        return await asyncio.shield(asking)

    async def _ask(self, name: str, caller: Caller) -> Current:
        try:
            if self._decisions.accepted_at(name) is not None:  # a known caller never waits behind a flood of others
                current = await self._metadata_cache.fetch(caller)
            else:
                async with self._strangers.turn():
                    current = await self._metadata_cache.fetch(caller)
        except UpstreamRefused as refusal:
            if refusal.status in {401, 403}:
                self._refused.put(name, caller.authorization, refusal)
                await self._decisions.refuse(caller.authorization)
            raise
        except Away as away:
            accepted = await self._decisions.heard_of(caller.authorization)
            if accepted is None or self._clock.steady() - accepted > self._stale_if_error:
                raise away.error from None
            return await self._metadata_cache.last_known(away)
        await self._decisions.accept(caller.authorization)
        return current

    def _asked(self, name: str, asking: asyncio.Task[Current]) -> None:
        del self._asking[name]
        if not asking.cancelled():
            asking.exception()  # mark it as retrieved, even if everybody who waited has left

    def credential_for_metadata(self, caller: Caller) -> Caller:
        """See `Access.credential_for_metadata`: what upstream tells a caller is the caller's own business."""
        return caller

    def credential_for_image(self, caller: Caller) -> Caller:
        """See `Access.credential_for_image`."""
        return caller

    async def close(self) -> None:
        """Wait until what was learnt last is on the disk."""
        for asking in self._asking.values():
            asking.cancel()
        await self._decisions.close()
