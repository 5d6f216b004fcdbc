"""Names where to push to: `REGISTRY/REPOSITORY[:TAG]`, as docker and skopeo write it."""

import re
from dataclasses import dataclass

from mirror.model.errors import UsageError
from mirror.model.image_name import is_repository, is_tag

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?")
_DOCKER_HUB = "registry-1.docker.io"


@dataclass(frozen=True, slots=True)
class Target:
    """A repository of a registry, and a tag if one is given. `registry` is a host, with a port if need be."""

    registry: str
    repository: str
    tag: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Parse `REGISTRY/REPOSITORY[:TAG]`. Raises UsageError."""
        registry, _, rest = text.removeprefix("docker://").partition("/")
        repository, _, tag = rest.partition(":")
        if not _HOST.fullmatch(registry) or not (re.search("[.:]", registry) or registry == "localhost"):
            raise UsageError(f"{text!r}: expected REGISTRY/REPOSITORY[:TAG], such as harbor.example.com/datarobot/pps")
        if "@" in rest:
            raise UsageError(
                f"{text!r}: an image is pushed by a tag, or without one; its digest follows from its bytes"
            )
        if not is_repository(repository):
            raise UsageError(f"{text!r}: a repository has lower-case letters, digits and ._-/ between them")
        if ":" in rest and not is_tag(tag):
            raise UsageError(f"{text!r}: a tag has up to 128 letters, digits and ._- and begins with none of .-")
        return cls(registry, repository, tag or None)

    @property
    def host(self) -> str:
        """Where the registry is asked: Docker Hub has another name for that than in references."""
        return _DOCKER_HUB if self.registry in {"docker.io", "index.docker.io"} else self.registry

    @property
    def is_local(self) -> bool:
        """Whether the registry is on this machine, where plain http is as good as any, as docker takes it."""
        return bool(re.fullmatch(r"(localhost|127\.[0-9.]+|\[::1\])(:[0-9]+)?", self.registry))

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}" + (f":{self.tag}" if self.tag else "")
