"""A case: the configuration that is examined, and what the examinations before have learnt."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from yarl import URL

from mirror.cli.doctor.deployment import Deployment
from mirror.cli.findings import Finding
from mirror.cli.raw_request import RawAnswer
from mirror.config import Config
from mirror.model.errors import ConfigError, MirrorError
from mirror.model.metadata import ImageMetadata
from mirror.upstream.proxies import Proxies, Proxy

LIMIT = 45.0
"""Seconds that the examination of one subject may take; each step in it has a shorter limit of its own."""

Examination = Callable[["Case"], Iterator[Finding]]


@dataclass(slots=True)
class Case:
    """What is examined. `token` is the mirror's own, if there is one that can be used; it is a secret.

    `answer` is what upstream said when it was asked for metadata, `heard` what it said to a request without any
    credential, `addresses` are what its name resolves to here. `abandoned` counts examinations that hang.
    """

    config: Config
    environ: Mapping[str, str]
    file: Path | None
    token: str | None = field(default=None, repr=False)
    answer: ImageMetadata | MirrorError | None = None
    heard: RawAnswer | None = None
    addresses: frozenset[str] = frozenset()
    abandoned: int = 0

    @property
    def url(self) -> URL | None:
        """Upstream's, if there is any."""
        return URL(self.config.upstream.url) if self.config.upstream.url else None

    @property
    def deployment(self) -> Deployment:
        """How the mirror is run here."""
        return Deployment.here(self.environ)

    @property
    def image(self) -> ImageMetadata | None:
        """What upstream says is current, if it said so."""
        return self.answer if isinstance(self.answer, ImageMetadata) else None

    def proxies(self) -> Proxies | None:
        """Which proxies count; None when what names them cannot be read, which another finding says."""
        try:
            return Proxies.of(self.config.upstream, self.environ)
        except ConfigError:
            return None

    def proxy(self, url: URL) -> Proxy | None:
        """The proxy for a URL, if there is one."""
        proxies = self.proxies()
        return proxies.for_url(url) if proxies else None

    def examined(self, subject: str, examination: Examination) -> Iterator[Finding]:
        """Give what an examination finds as it finds it, until it ends or has taken too long.

        It runs in a thread of its own: a name server, a disk or a network file system may hang where nothing can be
        interrupted.
        """
        said: queue.Queue[Finding | Exception | None] = queue.Queue()

        def examine() -> None:
            try:
                for finding in examination(self):
                    said.put(finding)
            except Exception as error:  # one that fails must not keep the others from being made
                said.put(error)
            said.put(None)

        threading.Thread(target=examine, name=subject, daemon=True).start()
        deadline = time.monotonic() + LIMIT
        while True:
            try:
                found = said.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                self.abandoned += 1
                hanging = "something hangs: a name server, a disk, a network file system"
                yield Finding(subject, False, f"could not be examined within {LIMIT:g} s", advice=hanging)
                return
            if found is None:
                return
            if isinstance(found, Exception):
                kind = found.strerror if isinstance(found, OSError) and found.strerror else type(found).__name__
                yield Finding(subject, True, f"could not be examined further: {kind}", note=True)
            else:
                yield found
