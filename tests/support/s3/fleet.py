"""Replicas that share a bucket and nothing else."""

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from mirror.simulator.client import Simulator
from mirror.store.s3.timings import Timings
from tests.support.downloads import Download, Outcome, fetch
from tests.support.forked import ForkedMirror
from tests.support.processes import eventually
from tests.support.s3.fixtures import TestBucket

PART = 5 << 20
SIZE = 24 << 20
RATE = 12e6
"""Bytes a second of upstream's line."""

CRAWL = 5e4
"""Bytes a second of a line that all but stands still."""

LEASE = 3.0
"""Seconds that a lease lives here; servers tell times in whole seconds."""

TIMINGS = Timings(lease=LEASE, renew=1.0, flush=1.0, cut_off=1.0)


class Fleet:
    """So many replicas over `bucket`, started; `holder` is the one that fetches."""

    def __init__(
        self,
        directory: Path,
        bucket: TestBucket,
        simulator: Simulator,
        count: int,
        *,
        local_copy: bool = True,
        timings: Timings = TIMINGS,
        sections: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        section = {**bucket.section, "local_copy": local_copy}
        self.bucket = bucket
        self.simulator = simulator
        self.mirrors = [
            ForkedMirror(
                directory / f"replica-{number}",
                simulator.api_url,
                {"store.s3": section, **(sections or {})},
                bucket.server.environ,
            )
            for number in range(count)
        ]
        for mirror in self.mirrors:
            mirror.timings = timings
            mirror.constants = {"mirror.store.s3.parts:PART": PART}
        self._running = ExitStack()
        self._clients = ThreadPoolExecutor(64)

    def __enter__(self) -> "Fleet":
        with ExitStack() as starting:
            for mirror in self.mirrors:
                starting.push(mirror.start(wait=False))
            for mirror in self.mirrors:
                mirror.wait_ready()
            self._running = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()
        self._clients.shutdown()

    def holder(self) -> ForkedMirror:
        """The one that fetches, once it does."""
        holders: list[ForkedMirror] = []

        def found() -> bool:
            holders[:] = [mirror for mirror in self.mirrors if "lease.taken" in mirror.actions()]
            return bool(holders)

        eventually(found, what="a fetch by one of them")
        return holders[0]

    def fetch(self, mirror: ForkedMirror, times: int = 1) -> list[Future[Outcome]]:
        """Let clients download from a replica."""
        return [self._clients.submit(fetch, mirror.image_url) for _ in range(times)]

    def next_holder(self, dead: Sequence[ForkedMirror]) -> ForkedMirror | None:
        """The next one that fetches, now that these are dead; None when the image is there without it."""
        found: list[ForkedMirror] = []

        def is_there() -> bool:
            alive = [mirror for mirror in self.mirrors if mirror not in dead]
            found[:] = [mirror for mirror in alive if "lease.taken" in mirror.actions()]
            return bool(found) or f"images/{self.simulator.image_sha256('first')}" in self.bucket.names("images/")

        eventually(is_there, what="a fetch by one of those that are left")
        return found[0] if found else None

    def position(self) -> int:
        """How far the one that fetches says it is; 0 when there is no lease."""
        note = self.bucket.read(f"leases/{self.simulator.image_sha256('first')}")
        return int(json.loads(note)["position"]) if note else 0

    def fetches(self) -> int:
        """How often bytes of an image were asked of upstream."""
        return len(self.simulator.log("store"))

    def assert_settled(self, name: str = "first") -> None:
        """The bucket has the image, whole and right, and nothing else of its fill, now or soon."""
        image_hash = self.simulator.image_sha256(name)
        expected = {f"images/{image_hash}", f"images/{image_hash}.json", "current.json"}
        eventually(lambda: set(self.bucket.names()) == expected, what=f"{expected}, there is {self.bucket.names()}")
        assert not self.bucket.client.uploads(self.bucket.name)
        image = self.bucket.read(f"images/{image_hash}")
        assert image is not None
        assert hashlib.sha256(image).hexdigest() == image_hash


def assert_right(simulator: Simulator, outcomes: Sequence[Future[Outcome]]) -> None:
    """Every client got the image."""
    for outcome in [each.result() for each in outcomes]:
        assert (outcome.status, outcome.ended, outcome.sha256) == (200, "complete", simulator.image_sha256("first"))


def arrived(fleet: Fleet, share: float) -> Callable[[], bool]:
    """Whether the holder has brought so much into the bucket."""
    return lambda: fleet.position() >= share * SIZE


def all_have(downloads: "Sequence[Progress]", position: int) -> Callable[[], bool]:
    """Whether all have come so far."""
    return lambda: all(download.received >= position for download in downloads)


class Progress:
    """A download in a thread, and how far it is."""

    def __init__(self, url: str) -> None:
        self.received = 0
        self.sha256 = ""
        self.ended: str | None = None
        self.done = False
        self._url = url
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        digest = hashlib.sha256()
        try:
            with Download(self._url) as download:
                while piece := download.read(1 << 16):
                    digest.update(piece)
                    self.received += len(piece)
                self.ended = download.ended
                if download.ended == "complete":
                    self.sha256 = digest.hexdigest()
        finally:
            self.done = True
