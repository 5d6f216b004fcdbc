"""Ways back to a mirror: a port that leads to another one, and two mirrors that are each other's upstream."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support.processes import MirrorProcess


@contextmanager
def relay(port: int) -> Iterator[int]:
    """Another port that leads to `port`, as a load balancer or a mapped port does; it cannot be told from outside."""
    stopping = threading.Event()

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
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
        yield int(listener.getsockname()[1])
        stopping.set()
        accepting.join()


@contextmanager
def circle(directory: Path, sections: Any = None) -> Iterator[tuple[MirrorProcess, MirrorProcess]]:
    """Two mirrors, each the other's upstream."""
    with ExitStack() as stack:
        first = MirrorProcess(directory / "first", "http://127.0.0.1:9", sections)
        second = MirrorProcess(directory / "second", first.url, sections)
        first.config_file.write_text(first.config_file.read_text().replace("http://127.0.0.1:9", second.url))
        yield stack.enter_context(first), stack.enter_context(second)
