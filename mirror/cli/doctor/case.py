"""The case that is examined: a configuration, and what earlier examinations have found out about it."""

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
"""Seconds that the examination of one subject may take; each step of it has its own, shorter limit."""

Examination = Callable[["Case"], Iterator[Finding]]


@dataclass(slots=True)
class Case:
    """A configuration under examination. `token` is the mirror's own, if it has a usable one; it is a secret.

    `answer` is upstream's answer to a request for metadata, `heard` that to a request without any credential;
    `addresses` are those of its name. `abandoned` counts examinations that hang.
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
        """The URL of upstream, if there is one."""
        return URL(self.config.upstream.url) if self.config.upstream.url else None

    @property
    def deployment(self) -> Deployment:
        """How the mirror is deployed here."""
        return Deployment.here(self.environ)

    @property
    def image(self) -> ImageMetadata | None:
        """The current image, if upstream named it."""
        return self.answer if isinstance(self.answer, ImageMetadata) else None

    def proxies(self) -> Proxies | None:
        """Return the proxies that are used; None when they are misconfigured, which another finding says."""
        try:
            return Proxies.of(self.config.upstream, self.environ)
        except ConfigError:
            return None

    def proxy(self, url: URL) -> Proxy | None:
        """Return the proxy for a URL, if there is one."""
        proxies = self.proxies()
        return proxies.for_url(url) if proxies else None

    def examined(self, subject: str, examination: Examination) -> Iterator[Finding]:
        """Yield the findings of an examination as they come, until it ends or has taken too long.

        It runs in its own thread, because a name server, a disk or a network file system may hang in a call that
        cannot be interrupted.
        """
        said: queue.Queue[Finding | Exception | None] = queue.Queue()

        def examine() -> None:
            try:
                for finding in examination(self):
                    said.put(finding)
            except Exception as error:  # a failing examination must not prevent the others
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
