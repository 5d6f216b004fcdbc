"""Ways back to a mirror: a port that leads to another one, and two mirrors that are each other's upstream."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support.forked import ForkedMirror
from tests.support.processes import MirrorProcess


class Gate:
    """Holds what comes until it is opened; `held` is how many pieces wait, or have waited."""

    def __init__(self) -> None:
        self.held = 0
        self._open = threading.Event()

    def pass_through(self) -> None:
        """Wait until it is open."""
        self.held += 1
        self._open.wait(60)

    def open(self) -> None:
        """Let all of it go on."""
        self._open.set()


@contextmanager
def relay(port: int, gate: Gate | None = None) -> Iterator[int]:
    """Another port that leads to `port`, as a load balancer or a mapped port does; it cannot be told from outside.

    What comes waits until the `gate` is open.
    """
    stopping = threading.Event()
    pass_through = gate.pass_through if gate is not None else lambda: None

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                pass_through()
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept(listener: socket.socket, ends: ExitStack) -> None:
        while not stopping.is_set():
            try:
                near, _ = listener.accept()
            except TimeoutError:
                continue
            near.settimeout(None)
            try:
                far = socket.create_connection(("127.0.0.1", port))
            except OSError:
                near.close()
                continue
            for each in (near, far):
                ends.callback(each.close)
            for pair in ((near, far), (far, near)):
                threading.Thread(target=pass_on, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as ends:
        listener.settimeout(0.1)
        accepting = threading.Thread(target=accept, args=(listener, ends))
        accepting.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            stopping.set()
            accepting.join()


@contextmanager
def circle(
    directory: Path, sections: Any = None, gate: Gate | None = None
) -> Iterator[tuple[MirrorProcess, MirrorProcess]]:
    """Two mirrors, each the other's upstream; what the first asks the second waits until the `gate` is open."""
    with ExitStack() as stack:
        first = ForkedMirror(directory / "first", "http://127.0.0.1:9", sections)
        second = ForkedMirror(directory / "second", first.url, sections)
        there = stack.enter_context(relay(second.port, gate))
        first.config_file.write_text(first.config_file.read_text().replace("127.0.0.1:9", f"127.0.0.1:{there}"))
        yield stack.enter_context(first), stack.enter_context(second)
