"""A receiver of hooks: a real server that keeps what it was told, and answers as a test wants."""

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from tests.support.processes import eventually

KEY = b"an-unguessable-secret-of-32-byte"
SECRET = "whsec_" + base64.b64encode(KEY).decode()


@dataclass(frozen=True, slots=True)
class Told:
    """One request."""

    headers: Mapping[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def type(self) -> str:
        return str(self.event["type"])

    def is_signed_with(self, key: bytes) -> bool:
        """Check it as a receiver does, by the words of the specification."""
        signed = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + self.body
        expected = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        return f"v1,{expected}" in self.headers["webhook-signature"].split(" ")


class Receiver:
    """Listens on loopback while its context lasts. `told` is everything that came, in order.

    `answers` are the statuses of the next requests, 0 for one that ends without an answer and -1 for one that hangs;
    all others get `status`.
    """

    def __init__(self, certificate: tuple[Path, Path] | None = None, host: str = "127.0.0.1") -> None:
        self.told: list[Told] = []
        self.answers: list[int] = []
        self.status = 204
        self.headers: dict[str, str] = {}
        self.port = 0
        self._host = host
        self._tls = certificate
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._let_go = asyncio.Event()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self._host}:{self.port}/told?token=a-secret-of-the-receiver"

    @property
    def types(self) -> list[str]:
        return [each.type for each in self.told]

    @property
    def once(self) -> list[str]:
        """The types of what it was told, each event once however often it came."""
        return list({each.event["id"]: each.type for each in self.told}.values())

    @property
    def ids(self) -> list[str]:
        return [each.event["id"] for each in self.told]

    def wait_for(self, *types: str, seconds: float = 30.0) -> None:
        """Wait until it was told of all these."""
        eventually(lambda: set(types) <= set(self.types), seconds, f"{types} (so far {self.types})")

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> None:
        tls = None
        if self._tls is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(*self._tls)
        self._runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, 0, ssl_context=tls)
        await site.start()
        self.port = int(self._runner.addresses[0][1])

    async def _stop(self) -> None:
        self._let_go.set()
        await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.told.append(Told({name.lower(): value for name, value in request.headers.items()}, await request.read()))
        status = self.answers.pop(0) if self.answers else self.status
        if status == 0 and request.transport is not None:
            request.transport.abort()
        if status == -1:
            await self._let_go.wait()
        return web.Response(status=max(200, status), headers=self.headers)
