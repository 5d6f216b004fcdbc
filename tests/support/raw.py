"""Raw bytes on a connection to a mirror, and an upstream that answers with raw bytes."""

import contextlib
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.support.processes import MirrorProcess


def connect(mirror: MirrorProcess, timeout: float = 30.0) -> socket.socket:
    """Open a connection to its client listener."""
    return socket.create_connection(("127.0.0.1", mirror.port), timeout=timeout)


def say(mirror: MirrorProcess, data: bytes, timeout: float = 30.0) -> bytes:
    """Send raw bytes; everything that comes back until the mirror closes the connection, which it must."""
    with connect(mirror, timeout) as connection:
        with contextlib.suppress(ConnectionError):  # it may have closed before it had everything
            connection.sendall(data)
        return hear(connection)


def hear(connection: socket.socket) -> bytes:
    """Everything that comes until the other side closes."""
    said = bytearray()
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(1 << 20):
            said += piece
    return bytes(said)


@contextmanager
def raw_upstream(answer: Callable[[], bytes], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve an upstream that answers each connection's first request with what `answer` returns and closes; its URL.

    With `tls` it speaks https.
    """

    class Answering(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            if tls is None:
                self.answer(self.request)
                return
            with contextlib.suppress(OSError):  # who does not trust us leaves when it likes
                with tls.wrap_socket(self.request, server_side=True) as connection:
                    self.answer(connection)

        def answer(self, connection: socket.socket) -> None:
            asked = b""
            while b"\r\n\r\n" not in asked and (piece := connection.recv(65536)):
                asked += piece
            connection.sendall(answer())

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
