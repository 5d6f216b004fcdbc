"""The options that a simulator is started with, read from JSON and written as JSON."""

from dataclasses import dataclass
from typing import Any

from mirror.simulator.images import ImageSpec

TOKEN = "simulated-token"  # noqa: S105 - opens nothing but a simulator
"""The token that is accepted unless others are given."""


@dataclass(frozen=True, slots=True)
class Setup:
    """The simulator's options; port 0 takes a free one, rates are bytes per second, `url_lifetime` seconds.

    `current` is the name of the image that is handed out first (empty: the first; `none`: there is no image yet).
    `store_name` is the host in redirects to the store, when that shall not be `host`. `rate` is for all connections
    together, `connection_rate` for each.
    """

    images: tuple[ImageSpec, ...] = (ImageSpec("first"),)
    current: str = ""
    tokens: tuple[str, ...] = (TOKEN,)
    forbidden: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    store_name: str = ""
    api_port: int = 0
    store_port: int = 0
    rate: float | None = None
    connection_rate: float | None = None
    url_lifetime: float = 900.0
    tls_cert: str = ""
    tls_key: str = ""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Setup":
        """The inverse of `dataclasses.asdict`, through JSON; what is missing keeps its default.

        Raises:
            TypeError: an unknown key.
        """
        given = dict(data)
        if "images" in given:
            given["images"] = tuple(ImageSpec(**spec) for spec in given["images"])
        for name in ("tokens", "forbidden"):
            if name in given:
                given[name] = tuple(given[name])
        return cls(**given)
