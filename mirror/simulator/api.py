"""The API origin: version, metadata and the image route of a DataRobot installation."""

import secrets
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

from aiohttp import web

from mirror.simulator.answers import EXCHANGE, hinder, json_answer, settle
from mirror.simulator.faults import Fault, Place
from mirror.simulator.images import LATEST, Image, metadata_body
from mirror.simulator.objects import ObjectStore
from mirror.simulator.state import State

IMAGE = "/api/v2/mlops/portablePredictionServerImage/"
METADATA = IMAGE + "metadata/"
VERSION = "/api/v2/version/"

_VERSION = {"major": 2, "minor": 36, "versionString": "2.36.0", "releasedVersion": "2.35.0"}

_Answer = Callable[[web.Request, Fault], Awaitable[web.StreamResponse]]


class Api:
    """The routes below `/api/v2`, and the same-origin path that redirects may lead to."""

    def __init__(self, state: State, store: ObjectStore) -> None:
        self._state = state
        self._store = store

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the API's listener. As in the real one, the trailing slash is part of the path."""
        return [
            web.get(VERSION, self._at("version", self._version), name="version"),
            web.get(METADATA, self._at("metadata", self._metadata), name="metadata"),
            web.get(IMAGE, self._at("image", self._image), name="image"),
            web.get("/files/{key}/{filename}", self._store.serve, name="store"),
        ]

    def _at(self, place: Place, answer: _Answer) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Wrap a route: the installation's front (faults) first, then the credential, then the answer itself."""

        async def handle(request: web.Request) -> web.StreamResponse:
            fault = self._state.faults.take(place, resumed="Range" in request.headers)
            if hindered := await hinder(request, fault, self._state):
                return hindered
            response = _failure(fault) or self._refusal(request) or await answer(request, fault)
            if not response.prepared:
                response.headers["X-DataRobot-Request-ID"] = request.headers.get("X-Request-ID") or secrets.token_hex(8)
                settle(response, fault, self._state)
            return response

        return handle

    def _refusal(self, request: web.Request) -> web.Response | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if not token:
            return json_answer(401, {"message": "Authentication credentials were not provided."})
        if scheme.lower() in ("bearer", "token") and token in self._state.forbidden:
            return json_answer(403, {"message": "You do not have permission to perform this action."})
        if scheme.lower() not in ("bearer", "token") or token not in self._state.tokens:
            return json_answer(401, {"message": "Invalid Authorization header."})
        return None

    async def _version(self, _request: web.Request, fault: Fault) -> web.StreamResponse:
        return json_answer(200, _VERSION if fault.body is None else fault.body.encode())

    async def _metadata(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        if fault.body is not None:
            return json_answer(200, fault.body.encode())
        image = self._state.current
        if image is None:
            return _no_image()
        request[EXCHANGE].image = image.name
        values: dict[str, Any] = {**image.metadata, **(fault.values or {})}
        return json_answer(200, metadata_body({name: values[name] for name in values if name not in fault.omit}))

    async def _image(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        image = self._state.current
        if image is None:
            return _no_image()
        request[EXCHANGE].image = image.name
        if fault.redirect == "direct":
            self._state.decided(fault)
            of_bytes = self._state.faults.take("store", resumed="Range" in request.headers)
            if hindered := await hinder(request, of_bytes, self._state):
                return hindered
            return await self._store.hand_out(request, image, of_bytes)
        return web.Response(status=fault.status or 302, headers={"Location": self._location(image, fault)})

    def _location(self, image: Image, fault: Fault) -> str:
        redirect = fault.redirect or "store"
        if "://" in redirect:
            return redirect
        key = LATEST if redirect == "latest" else image.name
        lifetime = self._state.url_lifetime if fault.expires_in is None else fault.expires_in
        query = self._state.grants.issue(key, lifetime, fault.uses)
        target = f"{key}/{quote(image.spec.filename, safe='')}?{query}"
        store = self._state.store_url
        match redirect:
            case "store" | "latest":
                return f"{store}/hops/{fault.hops}/{target}" if fault.hops else f"{store}/objects/{target}"
            case "origin":
                return f"{self._state.api_url}/files/{target}"
            case "relative":
                return f"/files/{target}"
            case _:  # loop; a fault accepts no other
                return f"{store}/loop/1?{query}"


def _failure(fault: Fault) -> web.Response | None:
    """Return the error that the fault puts in the answer's place. The status of the image's redirect is no error."""
    if fault.status is None or (fault.on == "image" and 300 <= fault.status < 400):
        return None
    body = fault.body.encode() if fault.body is not None else {"message": f"Simulated fault {fault.status}."}
    return json_answer(fault.status, body)


def _no_image() -> web.Response:
    return json_answer(404, {"message": "Portable Prediction Server image was not found."})
