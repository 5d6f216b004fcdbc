"""The status page."""

from mirror.status import Status


class Page:
    """Renders a status as HTML."""

    style = b""
    script = b""

    def render(self, status: Status) -> str:
        """The page."""
        return f"<!DOCTYPE html><title>pps-mirror</title><p>{status.version}"
