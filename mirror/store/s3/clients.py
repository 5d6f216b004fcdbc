"""Makes the client of AWS's libraries that talks to the bucket, and replaces it when credentials or CA change.

Those libraries look for a key, a role, a region and a CA only once, when a client is made. But keys are rotated, and a
role may appear after we have started. So when a request is refused, we look again, and if we find something else, we
send it once more. The old client is closed when its last request has ended.
"""

import asyncio
import io
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession, get_session
from botocore.exceptions import NoCredentialsError
from botocore.loaders import Loader, create_loader

from mirror.common.log import event
from mirror.config import S3
from mirror.store.s3.errors import TROUBLE, is_of_what_was_found

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 20.0
"""Seconds to connect, and between two bytes."""

CONNECTIONS = 1024
"""The most connections at a time: each download that streams from the bucket has one."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Keys:
    """An access key with its secret, and a session token."""

    access: str
    secret: str
    token: str | None


@dataclass(frozen=True, slots=True)
class _Found:
    """What AWS's libraries find now; `ca` is the file of a private CA, and the identity of that file."""

    keys: _Keys | None
    region: str | None
    ca: tuple[object, ...]


@dataclass(slots=True, eq=False)
class _Made:
    """A client, and one that signs for the public endpoint; how many use them, and whether newer ones replaced them."""

    found: _Found
    client: Any
    signer: Any
    stack: AsyncExitStack
    users: int = 0
    retired: bool = False


class Clients:
    """Makes clients for `config`, the first at the first request. Every method raises what botocore raises.

    Other credentials are searched for every `look_again` seconds at most, however many requests are refused.
    """

    def __init__(self, config: S3, look_again: float) -> None:
        self._config = config
        self._look_again = look_again
        self._made: _Made | None = None
        self._old: set[_Made] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self._looked = float("-inf")
        self._failure: Exception | None = None

    async def close(self) -> None:
        """Close all connections, including those in use."""
        await asyncio.gather(*self._closing, return_exceptions=True)
        made = [*self._old, *([self._made] if self._made else [])]
        self._made = None
        self._old.clear()
        for each in made:
            await each.stack.aclose()

    @asynccontextmanager
    async def asked(self, operation: str, **parameters: Any) -> AsyncIterator[Any]:
        """Send a request whose answer has a body, which can be read within this context."""
        async with AsyncExitStack() as stack:
            made = await stack.enter_async_context(self._used())
            try:
                answer = await _ask(made, operation, parameters)
            except TROUBLE as error:
                if not is_of_what_was_found(error) or not await self._found_other_than(made):
                    raise
                made = await stack.enter_async_context(self._used())
                answer = await _ask(made, operation, parameters)
            yield answer

    async def ask(self, operation: str, **parameters: Any) -> Any:
        """Send a request and return its answer, which has no body."""
        async with self.asked(operation, **parameters) as answer:
            return answer

    async def presign(self, method: str, parameters: dict[str, Any], seconds: int) -> str:
        """Return a URL at the public endpoint that allows this request to anyone who has it."""
        async with self._used() as made:
            return str(await made.signer.generate_presigned_url(method, Params=parameters, ExpiresIn=seconds))

    async def find_anew(self) -> bool:
        """Look for what can be found now, and return whether it has changed. Nothing is changed here.

        Raises NoCredentialsError when there were credentials before and are none now.
        """
        found, before = await self._find(new_session()), self._made
        if found.keys is None and before is not None and before.found.keys is not None:
            raise NoCredentialsError
        return before is None or before.found != found

    def forget(self) -> None:
        """Forget what was found: the next request looks again. The old client is closed when it is no longer in use."""
        old, self._made, self._failure, self._looked = self._made, None, None, float("-inf")
        if old is not None:
            self._retire(old)

    @asynccontextmanager
    async def _used(self) -> AsyncIterator[_Made]:
        """Return the current client, which stays open within this context."""
        made = self._made or await self._first()
        made.users += 1
        try:
            yield made
        finally:
            made.users -= 1
            await self._close_if_done(made)

    async def _first(self) -> _Made:
        async with self._turn:
            if self._made is None:
                if self._failure is not None and not self._may_look():
                    raise self._failure.with_traceback(None)
                self._failure = None
                try:
                    self._made = await self._make()
                except TROUBLE as error:
                    self._failure = error
                    raise
            return self._made

    async def _found_other_than(self, made: _Made) -> bool:
        """Return whether a client other than `made`, which was refused, is there now; look for one if it is time to."""
        async with self._turn:
            if self._made is not made:  # another refused request has already replaced it
                return True
            if not self._may_look():
                return False
            with suppress(*TROUBLE):
                session = new_session()
                found = await self._find(session)
                if found == made.found or found.keys is None:
                    return False
                self._exchange(await self._make(session))
                return True
            return False

    def _may_look(self) -> bool:
        """Return whether it is time to look again; if so, this counts as looking."""
        now = asyncio.get_running_loop().time()
        if now - self._looked < self._look_again:
            return False
        self._looked = now
        return True

    def _exchange(self, made: _Made) -> None:
        old, self._made, self._failure = self._made, made, None
        if old is None:
            return
        if old.found != made.found:
            log.info("the bucket is asked with other credentials from now on", extra=event("bucket.renewed"))
        self._retire(old)

    def _retire(self, old: _Made) -> None:
        old.retired = True
        self._old.add(old)
        closing = asyncio.create_task(self._close_if_done(old), name="close a client of the bucket")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _close_if_done(self, made: _Made) -> None:
        if made.retired and not made.users and made in self._old:
            self._old.discard(made)
            await made.stack.aclose()

    async def _make(self, session: AioSession | None = None) -> _Made:
        session = session or new_session()
        found = await self._find(session)
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(self._client(session, self._config.endpoint_url, found))
            signer = client
            if public := self._config.public_endpoint_url:
                signer = await stack.enter_async_context(self._client(session, public, found))
            return _Made(found, client, signer, stack.pop_all())

    async def _find(self, session: AioSession) -> _Found:
        credentials = await session.get_credentials()
        frozen = await credentials.get_frozen_credentials() if credentials is not None else None
        keys = _Keys(frozen.access_key, frozen.secret_key, frozen.token) if frozen is not None else None
        region = self._config.region or session.get_config_variable("region")
        ca = session.get_config_variable("ca_bundle")
        return _Found(keys, region, _identity(ca) if ca else ())

    def _client(self, session: AioSession, endpoint: str | None, found: _Found) -> Any:
        config = AioConfig(
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=READ_TIMEOUT,
            max_pool_connections=CONNECTIONS,
            retries={"mode": "standard", "total_max_attempts": 3},
            signature_version="s3v4",
            # Servers other than Amazon's seldom have a host name for each bucket.
            s3={"addressing_style": "path" if endpoint else "auto"},
            # Older servers refuse the checksums of newer clients (Ceph 411, Swift 501, over https).
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            user_agent_extra="pps-mirror",
        )
        # Signing needs a region; servers other than Amazon's accept any.
        region = found.region or ("us-east-1" if endpoint else None)
        return session.create_client("s3", endpoint_url=endpoint, region_name=region, config=config)


def new_session() -> AioSession:
    """Return a session. It looks for everything anew but for the description of S3, which takes longest to read."""
    session = get_session()
    session.register_component("data_loader", _descriptions(session.get_config_variable("data_path")))
    return session


@cache
def _descriptions(path: str | None) -> Loader:
    return create_loader(path)


async def _ask(made: _Made, operation: str, parameters: dict[str, Any]) -> Any:
    if isinstance(body := parameters.get("Body"), io.IOBase):
        body.seek(0)  # it may have been sent already
    return await getattr(made.client, operation)(**parameters)


def _identity(path: str) -> tuple[object, ...]:
    """Return which file that is. If it cannot be seen, the client that is made with it reports that."""
    try:
        stat = Path(path).stat()
    except OSError:
        return (path,)
    return path, stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size
