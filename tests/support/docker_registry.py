"""A real registry to push to: Debian's docker-registry (distribution), with passwords or with a token server."""

import base64
import hashlib
import json
import re
import secrets
import subprocess
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tests.support.certificates import certificate
from tests.support.http_server import HttpServer
from tests.support.needs import needs
from tests.support.processes import eventually

INSTALL = "apt-get install docker-registry"

USER, PASSWORD = "pusher", "secret"
_HTPASSWD = f"{USER}:$2y$05$tF5DAlScXzPt8zQT8k4in.belqyoNJdpP5k5ciBdwA88zQ7D0M0oa\n"


class DockerRegistry:
    """A registry of its own below `directory`; use as a context manager.

    `auth` is the `auth` section of its configuration; `tls` makes it speak https, with the certificate `cert`.
    """

    def __init__(self, directory: Path, auth: dict[str, Any] | None = None, *, tls: bool = False) -> None:
        self._program = needs("docker-registry", INSTALL)
        self._directory = directory
        directory.mkdir()
        http: dict[str, Any] = {"addr": "127.0.0.1:0", "secret": "tests"}
        self.cert: Path | None = None
        if tls:
            self.cert, key = certificate(directory)
            http["tls"] = {"certificate": str(self.cert), "key": str(key)}
        config = {
            "version": 0.1,
            "log": {"level": "info"},
            "storage": {"filesystem": {"rootdirectory": str(directory / "data")}, "delete": {"enabled": True}},
            "http": http,
            **({"auth": auth} if auth else {}),
        }
        self._config = directory / "config.yml"
        self._config.write_text(json.dumps(config))  # YAML takes it

    @classmethod
    def with_passwords(cls, directory: Path, *, tls: bool = False) -> "DockerRegistry":
        """A registry that knows USER and PASSWORD."""
        passwords = directory.with_name(f"{directory.name}.htpasswd")
        passwords.write_text(_HTPASSWD)
        return cls(directory, {"htpasswd": {"realm": "tests", "path": str(passwords)}}, tls=tls)

    def __enter__(self) -> Self:
        with (self._directory / "log").open("wb") as log:
            self._process = subprocess.Popen([self._program, "serve", str(self._config)], stdout=log, stderr=log)
        listening = re.compile(r"listening on 127\.0\.0\.1:(\d+)")
        eventually(lambda: listening.search(self.log) or self._process.poll() is not None, what="the registry's start")
        found = listening.search(self.log)
        assert found is not None, self.log
        self.port = int(found[1])
        self.host = f"127.0.0.1:{self.port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()

    @property
    def log(self) -> str:
        """What it has logged, a line for each request among that."""
        return (self._directory / "log").read_text()

    def requests(self, method: str, part: str = "") -> list[str]:
        """The log's lines of requests by that method, with `part` in their path."""
        lines = [line for line in self.log.splitlines() if f'"{method} ' in line]
        return [line for line in lines if part in line]


class ResumableRegistry(HttpServer):
    """What the specification says of uploads and no more: it keeps what came before a cut, which distribution does not.

    Use as a context manager. A request with more than `largest` bytes is refused. `begun` counts uploads, `parts` are
    the ranges that came.
    """

    def __init__(self, largest: int | None = None) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.begun = 0
        self.parts: list[str | None] = []
        self.largest = largest
        self.uploads: dict[str, bytearray] = {}
        self.receiving = Lock()
        """Held while a part comes in, so that nobody is told how much there is before the rest of a cut one came."""
        super().__init__(_Uploads, registry=self)


class _Uploads(BaseHTTPRequestHandler):
    registry: ResumableRegistry
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/v2/":
            self._answer(200)
        elif (upload := self.registry.uploads.get(self.path)) is not None:
            with self.registry.receiving:
                length = len(upload)
            self._answer(204, Location=self.path, Range=f"0-{max(0, length - 1)}")
        else:
            self._answer(404)

    def do_HEAD(self) -> None:
        self._answer(200 if self.path.rpartition("/")[2] in self.registry.blobs else 404)

    def do_POST(self) -> None:
        self.registry.begun += 1
        place = f"{self.path}{self.registry.begun}"
        self.registry.uploads[place] = bytearray()
        self._answer(202, Location=place)

    def do_PATCH(self) -> None:
        upload, size = self.registry.uploads[self.path], int(self.headers["Content-Length"])
        if self.registry.largest is not None and size > self.registry.largest:
            self.close_connection = True
            self._answer(413)
            return
        self.registry.parts.append(self.headers["Content-Range"])
        if (part := self.headers["Content-Range"]) and int(part.partition("-")[0]) != len(upload):
            self._answer(416)
            return
        with self.registry.receiving:
            while size and (data := self.rfile.read1(min(size, 1 << 16))):
                upload += data
                size -= len(data)
        self._answer(202, Location=self.path)

    def do_PUT(self) -> None:
        place, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if "/manifests/" in place:
            self.registry.manifests[place.rpartition("/")[2]] = body
        else:
            data = bytes(self.registry.uploads.pop(place)) + body
            digest = parse_qs(query)["digest"][0]
            if digest != f"sha256:{hashlib.sha256(data).hexdigest()}":
                self._answer(400)
                return
            self.registry.blobs[digest] = data
        self._answer(201)

    def _answer(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


class TokenServer(HttpServer):
    """Gives tokens to whoever has USER and PASSWORD, or the identity token `identity`; use as a context manager."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._cert, self._key = directory / "cert.pem", directory / "key.pem"
        make = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=tests")
        _openssl(*make, "-keyout", str(self._key), "-out", str(self._cert))
        self.identity = secrets.token_hex(8)
        self.scopes: list[str] = []
        self.lifetime = 300
        super().__init__(_Handler, grant=self._grant, identity=self.identity)
        self.auth = {
            "token": {
                "realm": f"http://{self.host}/token",
                "service": "the registry of the tests",
                "issuer": "tests",
                "rootcertbundle": str(self._cert),
            }
        }

    def _grant(self, service: str, scopes: list[str]) -> str:
        """Sign a token (RFC 7519) with the key whose certificate the registry trusts."""
        self.scopes += scopes
        access = [
            {"type": kind, "name": name, "actions": actions.split(",")}
            for kind, name, actions in (scope.split(":") for scope in scopes)
        ]
        now = int(time.time())
        certificates = "".join(line for line in self._cert.read_text().splitlines() if not line.startswith("-----"))
        header = {"typ": "JWT", "alg": "RS256", "x5c": [certificates]}
        claims = {
            "iss": "tests",
            "aud": service,
            "sub": USER,
            "nbf": now - 60,
            "iat": now - 60,
            "exp": now + self.lifetime,
            "jti": secrets.token_hex(8),
            "access": access,
        }
        signed = ".".join(_encoded(json.dumps(part).encode()) for part in (header, claims))
        signature = _openssl("dgst", "-sha256", "-sign", str(self._key), data=signed.encode())
        return f"{signed}.{_encoded(signature)}"


class _Handler(BaseHTTPRequestHandler):
    grant: Callable[[str, list[str]], str]
    identity: str

    def do_GET(self) -> None:
        basic = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        self._answer(parse_qs(urlsplit(self.path).query), admitted=self.headers["Authorization"] == basic)

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        form["scope"] = form["scope"][0].split(" ")
        self._answer(form, admitted=form.get("refresh_token") == [self.identity])

    def _answer(self, query: dict[str, list[str]], *, admitted: bool) -> None:
        body = json.dumps({"token": self.grant(query["service"][0], query.get("scope", []))} if admitted else {})
        self.send_response(200 if admitted else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())


def _openssl(*arguments: str, data: bytes = b"") -> bytes:
    openssl = needs("openssl", "apt-get install openssl")
    return subprocess.run([openssl, *arguments], input=data, capture_output=True, check=True).stdout


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
