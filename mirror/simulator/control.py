"""The control API, `/_sim/` on the API's port, which `client.py` calls. It answers callers on loopback only."""

import dataclasses
import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from mirror.simulator.answers import CONTROL, json_answer
from mirror.simulator.faults import Fault
from mirror.simulator.state import NO_IMAGE, State

_Action = Callable[[Any], Any]


class Control:
    """Reads and changes the state. Every call answers JSON; a bad one 400 with the reason."""

    def __init__(self, state: State) -> None:
        self._state = state

    def routes(self) -> list[web.RouteDef]:
        """Return one route for each verb and noun."""
        state = self._state
        return [
            web.post(CONTROL + "faults", _on_loopback(self._add_fault)),
            web.delete(CONTROL + "faults", _on_loopback(lambda _: state.faults.clear())),
            web.post(CONTROL + "release", _on_loopback(lambda _: state.release())),
            web.post(CONTROL + "current", _on_loopback(state.roll_over)),
            web.put(CONTROL + "rate", _on_loopback(self._set_rate)),
            web.put(CONTROL + "tokens", _on_loopback(self._set_tokens)),
            web.get(
                CONTROL + "log", _on_loopback(lambda _: [dataclasses.asdict(each) for each in state.log.snapshot()])
            ),
            web.delete(CONTROL + "log", _on_loopback(lambda _: state.log.reset())),
            web.get(CONTROL + "counters", _on_loopback(lambda _: dataclasses.asdict(state.log.counters(state.held)))),
        ]

    def _add_fault(self, data: dict[str, Any]) -> None:
        fault = Fault.from_json(data)
        if fault.roll_over not in (None, NO_IMAGE, *self._state.images):
            raise ValueError(f"there is no image {fault.roll_over!r}")
        self._state.faults.add(fault)

    def _set_rate(self, data: dict[str, float | None]) -> None:
        self._state.rate, self._state.connection_rate = data["rate"], data["connection_rate"]

    def _set_tokens(self, data: dict[str, list[str]]) -> None:
        self._state.tokens, self._state.forbidden = frozenset(data["tokens"]), frozenset(data["forbidden"])


def _on_loopback(action: _Action) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        if request.remote is None or not ipaddress.ip_address(request.remote).is_loopback:
            return json_answer(403, {"message": "The control API is for this machine only."})
        try:
            result = action(await request.json() if request.can_read_body else None)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            return json_answer(400, {"message": f"{type(error).__name__}: {error}"})
        return json_answer(200, {"result": result})

    return handle
