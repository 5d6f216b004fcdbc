"""The object store: pre-signed GETs of whole images or one range of them, and redirects on the way there."""

import re
from dataclasses import dataclass
from urllib.parse import quote

from aiohttp import web

from mirror.simulator.answers import EXCHANGE, hinder, settle, xml_error
from mirror.simulator.faults import Fault
from mirror.simulator.grants import Refused
from mirror.simulator.images import Image
from mirror.simulator.record import Exchange
from mirror.simulator.sending import send_body
from mirror.simulator.state import State

PAGE = "<!doctype html><title>Sign in</title><p>You have to sign in before you can use this network.</p>\n" * 20

_RANGE = re.compile(r"bytes=(?:(\d+)-(\d*)|-(\d+))")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which bytes of an image answer a request, `start` inclusive, `stop` exclusive, with 200, 206 or 416."""

    status: int
    start: int
    stop: int


class ObjectStore:
    """The routes that hand out bytes: on the store's port, and on the API's own for redirects that stay there."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._sending: list[tuple[Exchange, int]] = []
        """What is being answered with bytes, and with how many."""

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the store's listener."""
        return [
            web.get("/hops/{left:[0-9]+}/{key}/{filename}", self._hop, name="hop"),
            web.get("/loop/{turn:[0-9]+}", self._loop, name="loop"),
            web.get("/objects/{key}/{filename}", self.serve, name="store"),
        ]

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer a pre-signed GET as S3 does. HEAD is not signed for, and a second credential is an error."""
        fault = self._state.faults.take("store", resumed="Range" in request.headers)
        if hindered := await hinder(request, fault, self._state):
            return hindered
        key = request.match_info["key"]
        try:
            if fault.at_most is None and fault.status is not None:
                raise Refused(fault.status, "SimulatedFault", "Simulated.")
            if fault.at_most is not None and self._bodies_under_way() >= fault.at_most:
                raise Refused(fault.status or 503, "SlowDown", "Please reduce your request rate.")
            self._state.grants.admit(request.method, key, request.query, request.headers.get("Authorization"))
            image = self._state.image_at(key)
            if image is None:
                raise Refused(404, "NoSuchKey", "The specified key does not exist.")
        except Refused as refusal:
            answer = xml_error(refusal.status, refusal.code, refusal.message)
            if fault.body is not None:
                answer.body = fault.body.encode()
            settle(answer, fault, self._state)
            return answer
        return await self.hand_out(request, image, fault)

    async def hand_out(self, request: web.Request, image: Image, fault: Fault) -> web.StreamResponse:
        """Send the image, or the range asked for, to a caller that has been let in."""
        if fault.page is not None:
            return await _page(request, fault, self._state)
        exchange = request[EXCHANGE]
        exchange.image = image.name
        selection = select(request, image, fault)
        if selection.status == 416:
            refusal = xml_error(416, "InvalidRange", "The requested range is not satisfiable")
            refusal.headers["Content-Range"] = f"bytes */{image.size}"
            settle(refusal, fault, self._state)
            return refusal
        response = _headers(image, selection, fault)
        settle(response, fault, self._state)
        exchange.status = response.status
        if request.method == "GET":
            stop = max(selection.start, selection.stop + fault.send_extra)
            body = exchange, stop - selection.start
            self._sending.append(body)
            try:
                await send_body(request, response, image, selection.start, stop, fault, self._state, exchange)
            finally:
                self._sending.remove(body)
        return response

    def _bodies_under_way(self) -> int:
        """Return how many bodies lack bytes: one that has its last only waits for the rate of its line."""
        return sum(exchange.sent < size for exchange, size in self._sending)

    async def _hop(self, request: web.Request) -> web.StreamResponse:
        left = int(request.match_info["left"])
        if "Authorization" in request.headers:
            return xml_error(400, "InvalidArgument", "Only one auth mechanism allowed")
        onward = f"../../{left - 1}" if left > 1 else "../../../objects"
        target = f"{request.match_info['key']}/{quote(request.match_info['filename'], safe='')}"
        return web.Response(status=302, headers={"Location": f"{onward}/{target}?{request.rel_url.raw_query_string}"})

    async def _loop(self, request: web.Request) -> web.StreamResponse:
        # The path changes each time: comparing URLs is not enough to see that it leads nowhere.
        turn = int(request.match_info["turn"])
        return web.Response(status=302, headers={"Location": f"{turn + 1}?{request.rel_url.raw_query_string}"})


def select(request: web.Request, image: Image, fault: Fault) -> Selection:
    """Read `Range` and `If-Range`; several ranges, a malformed one or a validator that differs mean the whole image."""
    whole = Selection(200, 0, image.size)
    match = _RANGE.fullmatch(request.headers.get("Range", ""))
    validator = request.headers.get("If-Range")
    if match is None or not fault.ranges or validator not in (None, image.etag, image.last_modified):
        return whole
    first, last, suffix = match.groups()
    if suffix is not None:
        start, stop = max(0, image.size - int(suffix)), image.size
    else:
        start, stop = int(first), min(int(last) + 1, image.size) if last else image.size
        if last and int(last) < start:
            return whole
    if start >= image.size:
        return Selection(416, image.size, image.size)
    return Selection(206, min(max(0, start + fault.range_shift), stop - 1), stop)


async def _page(request: web.Request, fault: Fault, state: State) -> web.StreamResponse:
    """Make the page that a captive portal, or a filter, puts in the image's place."""
    said = (PAGE if fault.body is None else fault.body).encode()
    response = web.StreamResponse(headers={"Content-Type": fault.page or ""})
    if fault.chunked:
        response.enable_chunked_encoding()
    else:
        response.content_length = len(said)
    settle(response, fault, state)
    await response.prepare(request)
    await response.write(said)
    await response.write_eof()
    return response


def _headers(image: Image, selection: Selection, fault: Fault) -> web.StreamResponse:
    response = web.StreamResponse(status=selection.status)
    response.headers["Content-Type"] = "binary/octet-stream"
    response.headers["ETag"] = image.etag
    response.headers["Last-Modified"] = image.last_modified
    if fault.ranges:
        response.headers["Accept-Ranges"] = "bytes"
    if selection.status == 206:
        response.headers["Content-Range"] = f"bytes {selection.start}-{selection.stop - 1}/{image.size}"
    if fault.chunked:
        response.enable_chunked_encoding()
    else:
        response.content_length = max(0, selection.stop - selection.start + fault.declare_extra)
    return response
