"""nginx as a reverse proxy before something of a test, on a free port of loopback."""

import contextlib
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.documents import DOCS, Document
from tests.support.needs import needs
from tests.support.processes import eventually, free_port


class Nginx:
    """Serves what `server` says (the inside of `server { }`), from start to end of the context."""

    def __init__(self, directory: Path, server: str, port: int | None = None) -> None:
        self._nginx = needs("nginx", "apt-get install nginx-light")
        self.port = port or free_port()
        directory.mkdir()
        self._config, self._log = directory / "nginx.conf", directory / "error.log"
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = "\n".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)
        self._config.write_text(
            f"daemon off; master_process off; pid {directory}/pid; error_log {self._log};\nevents {{}}\nhttp {{\n"
            f"access_log off;\n{paths}\nserver {{\nlisten 127.0.0.1:{self.port};\n{server}\n}}\n}}\n"
        )

    def __enter__(self) -> Self:
        self._process = subprocess.Popen([self._nginx, "-e", str(self._log), "-c", str(self._config)])
        try:
            eventually(lambda: _listens(self.port) or self._process.poll() is not None, what="nginx")
            assert self._process.poll() is None, self._log.read_text()
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(20)


def before_the_admin_listener(port: int, *, stripping: bool) -> str:
    """What docs/operating.md gives for a prefix of /pps-mirror, for our port; the two ways it knows."""
    document = Document(DOCS / "operating.md")
    (block,) = (each for each in document.blocks("nginx") if each.heading == "The status page behind a proxy")
    as_it_is, stripped = "proxy_pass http://127.0.0.1:8081;", "proxy_pass http://127.0.0.1:8081/;"
    assert as_it_is in block.text
    assert stripped in document.text
    return block.text.replace(as_it_is, stripped if stripping else as_it_is).replace(":8081", f":{port}")


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False
