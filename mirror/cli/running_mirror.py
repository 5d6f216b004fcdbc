"""Finds a mirror that runs on the store, and asks it through its admin listener to fetch an image or how it is."""

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp
from yarl import URL

from mirror.common.log import harmless
from mirror.common.progress import Meter
from mirror.config import Config, load_admin_token
from mirror.http.admin_auth import REQUESTED
from mirror.http.errors import JSON
from mirror.model.errors import ConfigError, MirrorError

TICK = 0.5
"""Seconds between two questions how far the transfer is."""

LOST = 10.0
"""Seconds after which an image that is neither stored nor being fetched is given up."""

ROLLOVERS = 3
"""How often in a row upstream may have another image than its metadata said."""

_TIMEOUT = aiohttp.ClientTimeout(total=30, connect=3)


class MirrorGone(MirrorError):
    """The mirror has stopped, or cannot or may not do what we asked: the caller may do it without the mirror."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a transfer ended; `another` says that upstream had another image by then."""

    message: str
    another: bool


@dataclass(frozen=True, slots=True)
class Condition:
    """How a mirror is: what keeps it from serving, what it does without, why upstream is `away`, and `since` when.

    `errors` are its last errors with their times, the oldest first.
    """

    version: str
    reasons: Sequence[str]
    degraded: Sequence[str]
    away: str | None
    since: str
    errors: Sequence[str]


class RunningMirror:
    """Sends requests to an admin listener."""

    def __init__(self, session: aiohttp.ClientSession, token: str | None) -> None:
        self._session = session
        self._headers = {REQUESTED: "pps-mirror"} | ({"Authorization": f"Bearer {token}"} if token else {})

    async def bring(self, meter: Meter) -> None:
        """Make the mirror fetch the current image, show the progress on `meter`, and return when it is stored.

        Raises MirrorGone, or MirrorError when the image cannot be had.
        """
        for turn in range(ROLLOVERS):
            stored = await self._stored()
            asked_at = datetime.now(UTC).isoformat(timespec="seconds")
            async with self._asked("POST", "/api/prefetch") as answer:
                image_hash, said = str(answer["image"]), harmless(answer["message"])
            if image_hash in stored:
                meter.say(f"{image_hash[:12]} is stored already: nothing to do")
                return
            meter.say(f"a mirror runs on this store, and was asked: {said}")
            try:
                failure = await self._watch(image_hash, asked_at, meter)
            except asyncio.CancelledError:
                meter.stop()
                meter.say("the running mirror goes on receiving it")
                raise
            finally:
                meter.stop()
            if failure is None:
                meter.say(f"{image_hash[:12]} is verified and stored, by the running mirror")
                return
            if not failure.another or turn == ROLLOVERS - 1:
                raise MirrorError(f"the running mirror says: {failure.message}")
            meter.say("upstream has another image than it said: asking again")

    async def _watch(self, image_hash: str, since: str, meter: Meter) -> "_Failure | None":
        """Show a transfer until the image is stored. Returns why it failed, if it did `since` that ISO 8601 time."""
        clock = asyncio.get_running_loop().time
        seen, shown = clock(), ""
        while True:
            async with self._asked("GET", "/api/status") as status:
                places = next((set(each["places"]) for each in status["images"] if each["hash"] == image_hash), None)
                missing = {room["place"] for room in status["rooms"] if room["trouble"] is None} - (places or set())
                fills = [
                    (int(each["size"]), int(each["position"]), harmless(each["state"]))
                    for each in status["fills"]
                    if each["hash"] == image_hash
                ]
                failures = [
                    _Failure(harmless(each["message"]), each["action"] == "fill.changed")
                    for each in status["events"]
                    if each["level"] == "error" and each["image"] == image_hash and each["at"] >= since
                ]
            if places is not None and not missing:
                return None
            if places is not None:
                if shown != "settling":
                    meter.stop()
                    meter.say("it is being brought into the bucket")
                shown = "settling"
            elif fills:
                size, position, state = fills[0]
                if not shown:
                    meter.start(size, position, state)
                seen, shown = clock(), "fill"
                meter.show(position, state)
            elif failures:
                return failures[0]
            elif clock() - seen > LOST:
                raise MirrorError("the running mirror has let go of the image: its status page tells why")
            await asyncio.sleep(TICK)

    async def _stored(self) -> set[str]:
        async with self._asked("GET", "/api/status") as status:
            return {image["hash"] for image in status["images"]}

    async def serves(self, config: Config) -> bool:
        """Whether it is a mirror on the store of `config`. Raises MirrorGone."""
        async with self._asked("GET", "/api/status") as status:
            places = {room["place"]: room["where"] for room in status["rooms"]}
        if "disk" in places:
            return bool(places["disk"] == _where(config))
        return "bucket" in places and str(places["bucket"]) == config.store.s3.bucket

    async def condition(self) -> Condition:
        """Ask the mirror how it is. Raises MirrorGone."""
        async with self._asked("GET", "/api/status") as status:
            health, upstream = status["health"], status["upstream"]
            away = harmless(str(upstream["reason"])) if upstream["reachable"] is False else None
            return Condition(
                version=harmless(str(status["version"])),
                reasons=[harmless(str(each)) for each in health["reasons"]],
                degraded=[harmless(str(each)) for each in health["degraded"]],
                away=away,
                since=harmless(str(upstream["since"])),
                errors=sorted(
                    harmless(f"{each['at']}: {each['message']}")
                    for each in status["events"]
                    if each["level"] == "error"
                ),
            )

    @asynccontextmanager
    async def _asked(self, method: str, path: str) -> AsyncIterator[Any]:
        """Send a request and yield its answer, to be taken apart inside. Raises MirrorGone."""
        try:
            async with self._session.request(method, path, headers=self._headers, allow_redirects=False) as answer:
                said = await answer.json() if answer.content_type == JSON else {}
                if answer.status != 200:
                    raise MirrorGone(f"it answered {answer.status}: {said.get('message', 'nothing that explains it')}")
            yield said
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise MirrorGone(str(error) or type(error).__name__) from error
        except (KeyError, TypeError, AttributeError) as error:
            raise MirrorGone("what it says is not understood: it is of another version") from error


@asynccontextmanager
async def running_mirror(config: Config) -> AsyncIterator[RunningMirror | None]:
    """Find the mirror that serves the store of `config`; yields None when there is none, or it refuses to answer us."""
    try:
        token = load_admin_token(config)
    except ConfigError:  # a user that may not read it may not use the listener either
        token = None
    async with aiohttp.ClientSession(base_url=_address(config), timeout=_TIMEOUT) as session:
        found = RunningMirror(session, token)
        try:
            serves = await found.serves(config)
        except MirrorGone:
            serves = False
        yield found if serves else None


def _where(config: Config) -> str:
    """Return the path of the store as the status shows it."""
    return str(config.store.path.absolute())


def _address(config: Config) -> URL:
    """Return the address of the admin listener as seen from this machine."""
    host = config.admin.host
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        if address.is_unspecified:
            host = "127.0.0.1" if address.version == 4 else "::1"
    return URL.build(scheme="http", host=host, port=config.admin.port)
