"""Makes the caller of a request: who asks, as far as upstream and the policies are told."""

from mirror.common.hosts import unmapped
from mirror.http.exchange import Exchange
from mirror.model.caller import Caller
from mirror.model.errors import BadRequest
from mirror.upstream import loop_detection as loop


def caller_of(exchange: Exchange, name: str) -> Caller:
    """Make the caller from a request's headers, with the mirrors that it came through; `name` is this one.

    Raises BadRequest for a header that cannot be sent on, LoopDetected for a request that this mirror has sent itself.
    """
    request = exchange.request
    came_by = loop.came_by(request.headers, name)
    authorization = request.headers.get("Authorization")
    if authorization is not None and not _is_plain(authorization):
        raise BadRequest("the Authorization header has characters that no token has")
    trace = request.headers.get("X-DataRobot-Api-Consumer-Trace")
    sane_trace = trace if trace and _is_plain(trace) else None
    return Caller(authorization, exchange.id, sane_trace, came_by, f"client {unmapped(request.remote)}")


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()
