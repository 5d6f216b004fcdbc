"""Handles errors that asyncio reports because nobody awaits them: they are logged, except one that means nothing."""

import asyncio
import logging
from typing import Any

log = logging.getLogger(__name__)


def report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report an error as asyncio does by default, except that a transport lost its connection twice.

    This is a loop's exception handler. When a client leaves in the moment in which the last byte of a full buffer
    is sent, CPython 3.11 calls a transport's `_call_connection_lost` at once, and again when nothing is left to close.
    """
    twice = isinstance(context.get("exception"), AttributeError) and "_call_connection_lost" in str(
        context.get("message")
    )
    if twice:
        log.debug("a connection was lost twice: %s", context["message"])
    else:
        loop.default_exception_handler(context)
