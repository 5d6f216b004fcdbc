"""An HTTP server in a thread of the test's own process, for what answers in a few lines."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


class HttpServer:
    """Answers by `handler`, which gets these `attributes`, on a free `port` of loopback while the context lasts."""

    def __init__(self, handler: type[BaseHTTPRequestHandler], **attributes: object) -> None:
        quiet = type("Quiet", (handler,), {"log_message": lambda *_: None, **attributes})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), quiet)
        self.port = int(self._server.server_address[1])
        self.host = f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
