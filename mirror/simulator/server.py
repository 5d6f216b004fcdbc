"""Starts and runs both listeners, from their sockets to the ready line."""

import asyncio
import dataclasses
import json
import ssl
import sys

from aiohttp import web

from mirror.simulator.answers import recorder
from mirror.simulator.api import Api
from mirror.simulator.control import Control
from mirror.simulator.images import Image
from mirror.simulator.objects import ObjectStore
from mirror.simulator.setup import Setup
from mirror.simulator.state import State

_GOODBYE = 0.1  # seconds that running transfers get at the end


async def run(setup: Setup, stop: asyncio.Event) -> None:
    """Load the images, listen, print one line of JSON with the URLs, and serve until `stop` is set.

    Raises:
        OSError: a file cannot be read or a port cannot be had.
        ValueError: an image cannot be called that.
        KeyError: the image to begin with does not exist.
    """
    images = await asyncio.to_thread(lambda: [Image.load(spec) for spec in setup.images])
    state = State(setup, images)
    store = ObjectStore(state)
    tls = _tls(setup)
    api_runner = _runner([*Api(state, store).routes(), *Control(state).routes()], state, "api")
    store_runner = _runner(store.routes(), state, "store")
    try:
        scheme = "http" if tls is None else "https"
        api_port = await _listen(api_runner, setup.host, setup.api_port, tls)
        store_port = await _listen(store_runner, setup.host, setup.store_port, tls)
        state.api_url = f"{scheme}://{_in_url(setup.host)}:{api_port}"
        state.store_url = f"{scheme}://{_in_url(setup.store_name or setup.host)}:{store_port}"
        ready = {
            "api_url": state.api_url,
            "store_url": state.store_url,
            "tokens": setup.tokens,
            "images": [dataclasses.asdict(image.spec) for image in images],
        }
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()
        await stop.wait()
    finally:
        await asyncio.gather(api_runner.cleanup(), store_runner.cleanup())


def _tls(setup: Setup) -> ssl.SSLContext | None:
    if not setup.tls_cert:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(setup.tls_cert, setup.tls_key or None)
    return context


def _runner(routes: list[web.RouteDef], state: State, listener: str) -> web.AppRunner:
    app = web.Application(middlewares=[recorder(state, listener)])
    app.add_routes(routes)
    return web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=_GOODBYE)


async def _listen(runner: web.AppRunner, host: str, port: int, tls: ssl.SSLContext | None) -> int:
    await runner.setup()
    await web.TCPSite(runner, host, port, ssl_context=tls, backlog=1024).start()
    return int(runner.addresses[0][1])


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
