"""Handles errors that asyncio reports because nobody awaits them: they are logged, except two that mean nothing."""

import asyncio
import logging
from typing import Any

import aiohttp

log = logging.getLogger(__name__)


def report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report an error as asyncio does by default, unless it only says again that a connection was lost.

    This is a loop's exception handler. When a client leaves in the moment in which the last byte of a full buffer
    is sent, CPython 3.11 calls a transport's `_call_connection_lost` at once, and again when nothing is left to close.

    When a server leaves before a request with a body (`Expect: 100-continue`) has begun, aiohttp tells the caller that
    it is gone, and forgets the task that found the same when it was to write. (Since 3.12 that task begins at once.)
    """
    error, message = context.get("exception"), str(context.get("message"))
    if isinstance(error, AttributeError) and "_call_connection_lost" in message:
        log.debug("a connection was lost twice: %s", message)
    elif isinstance(error, aiohttp.ClientConnectionError) and "ClientRequest.write_bytes" in str(context.get("future")):
        log.debug("a request could not be sent: %s", error)
    else:
        loop.default_exception_handler(context)
