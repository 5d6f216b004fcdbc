"""The upstream and the three caches in front of it, each set up as its makers advise for large files.

With `logs` each writes its access log, as it does when it is installed: the mirror to its standard error, nginx and
`varnishncsa` into a file. nginx and Varnish cache the object itself and the metadata; the mirror gets the API, and
follows its redirect to the object, as it does in real life.
"""

import http.client
import os
import subprocess
import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import ClassVar

from benchmarks.material import Certificate, Image
from benchmarks.process import Server, accepts_connections, find_program, free_port

IMAGE_ROUTE = "/api/v2/mlops/portablePredictionServerImage/"
METADATA_ROUTE = IMAGE_ROUTE + "metadata/"
_VERSION_ROUTE = "/api/v2/version/"

_NGINX = """
{user}
daemon off;
pid {directory}/nginx.pid;
worker_processes {workers};
events {{ worker_connections 2048; }}
http {{
    access_log {access_log};
    default_type application/octet-stream;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    server_tokens off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    {http}
}}
"""

_UPSTREAM = """
    server {{
        listen 127.0.0.1:{api_port}{listen};
        {tls}
        root {directory};
        default_type application/json;
        location = {metadata_route} {{ try_files /metadata.json =404; }}
        location = {version_route} {{ try_files /version.json =404; }}
        location = {image_route} {{ return 302 {scheme}://127.0.0.1:{object_port}/object; }}
    }}
    server {{
        listen 127.0.0.1:{object_port}{listen};
        {tls}
        limit_rate {rate};
        location = /object {{ alias {image}; }}
    }}
"""

_NGINX_CACHE = """
    proxy_cache_path {directory}/cache keys_zone=cache:1m max_size=100g inactive=1d use_temp_path=off;
    server {{
        listen 127.0.0.1:{port}{listen};
        {tls}
        proxy_cache cache;
        proxy_cache_key $uri;
        proxy_cache_valid 200 1d;
        proxy_cache_lock on;
        proxy_cache_lock_timeout 10m;
        proxy_cache_lock_age 10m;
        location /object {{ proxy_pass http://127.0.0.1:{object_port}; }}
        location /api/ {{ proxy_pass http://127.0.0.1:{api_port}; }}
    }}
"""

_VARNISH = """
vcl 4.1;
backend upstream_api {{ .host = "127.0.0.1"; .port = "{api_port}"; }}
backend upstream_objects {{ .host = "127.0.0.1"; .port = "{object_port}"; }}
sub vcl_recv {{
    if (req.url == "/object") {{ set req.backend_hint = upstream_objects; }}
    return (hash);
}}
sub vcl_backend_response {{ set beresp.ttl = 1d; }}
"""

_MIRROR = """
[server]
host = "127.0.0.1"
port = {port}
workers = {workers}
tls_cert = "{cert}"
tls_key = "{key}"

[admin]
port = {admin_port}

[upstream]
url = "{url}"
ca_file = "{ca_file}"
metadata_ttl = "10m"

[auth]
mode = "upstream"
ttl = "10m"

[store]
path = "{directory}/store"
min_free = "64MiB"

[log]
level = "{level}"
"""


class Line(Enum):
    """How the upstream is reached."""

    PLAIN = "plain"
    TLS = "tls"
    SLOW = "slow"


@dataclass(frozen=True, slots=True)
class Origin:
    """The two ports of an upstream on one kind of line: the API, and the object store it redirects to."""

    scheme: str
    api_port: int
    object_port: int

    @property
    def api_url(self) -> str:
        """What a client of the real installation would be configured with."""
        return f"{self.scheme}://127.0.0.1:{self.api_port}"

    @property
    def object_url(self) -> str:
        """Where the bytes are."""
        return f"{self.scheme}://127.0.0.1:{self.object_port}/object"


def _nginx_command(directory: Path, workers: int, http: str, *, logs: bool) -> list[str]:
    config = directory / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""  # the directory is ours alone
    access_log = directory / "access.log" if logs else "off"
    config.write_text(_NGINX.format(directory=directory, workers=workers, http=http, user=user, access_log=access_log))
    program = find_program("nginx") or "nginx"
    return [program, "-e", f"{directory}/error.log", "-p", str(directory), "-c", str(config)]


def _nginx_tls(certificate: Certificate) -> str:
    return f"ssl_certificate {certificate.cert}; ssl_certificate_key {certificate.key};"


class Upstream(Server):
    """A DataRobot as far as the mirror can tell: one nginx, reached by every kind of line."""

    name = "upstream"

    def __init__(self, directory: Path, image: Image, certificate: Certificate, slow_rate: int) -> None:
        """Serve `image`; the slow line moves `slow_rate` bytes a second."""
        super().__init__(directory)
        self._image = image
        self._certificate = certificate
        self._slow_rate = slow_rate
        self.origins = {
            line: Origin("https" if line is Line.TLS else "http", free_port(), free_port()) for line in Line
        }

    def prepare(self) -> list[str]:
        """Write the two JSON answers and a pair of virtual servers for each line."""
        (self.directory / "metadata.json").write_bytes(self._image.metadata())
        (self.directory / "version.json").write_text('{"major": 2, "minor": 36, "versionString": "2.36.0"}')
        return _nginx_command(self.directory, 1, "".join(map(self._servers, Line)), logs=False)

    def _servers(self, line: Line) -> str:
        origin = self.origins[line]
        return _UPSTREAM.format(
            directory=self.directory,
            image=self._image.path,
            scheme=origin.scheme,
            api_port=origin.api_port,
            object_port=origin.object_port,
            listen=" ssl" if line is Line.TLS else "",
            tls=_nginx_tls(self._certificate) if line is Line.TLS else "",
            rate=self._slow_rate if line is Line.SLOW else 0,
            metadata_route=METADATA_ROUTE,
            version_route=_VERSION_ROUTE,
            image_route=IMAGE_ROUTE,
        )

    def is_ready(self) -> bool:
        """All virtual servers listen at once, so one speaks for the rest."""
        return accepts_connections(self.origins[Line.PLAIN].object_port)


class Cache(Server):
    """A server that clients fetch the image from instead of the upstream."""

    image_route: ClassVar[str] = "/object"

    def __init__(
        self,
        directory: Path,
        origin: Origin,
        certificate: Certificate | None = None,
        workers: int = 1,
        *,
        logs: bool,
    ) -> None:
        """Stand in front of `origin`, speak TLS to clients if given a certificate, in `workers` processes."""
        super().__init__(directory)
        self.origin = origin
        self.certificate = certificate
        self.workers = workers
        self.logs = logs
        self.port = free_port()

    @property
    def image_url(self) -> str:
        """Where clients get the image."""
        return self._url + self.image_route

    @property
    def metadata_url(self) -> str:
        """Where clients get the metadata."""
        return self._url + METADATA_ROUTE

    @property
    def _url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self.port}"

    def is_ready(self) -> bool:
        """Tell whether the port is open."""
        return accepts_connections(self.port)


class NginxCache(Cache):
    """nginx with `proxy_cache` and `proxy_cache_lock`, in a process apart from the upstream's."""

    name = "nginx"

    def prepare(self) -> list[str]:
        """Write the configuration."""
        http = _NGINX_CACHE.format(
            directory=self.directory,
            port=self.port,
            listen=" ssl" if self.certificate else "",
            tls=_nginx_tls(self.certificate) if self.certificate else "",
            object_port=self.origin.object_port,
            api_port=self.origin.api_port,
        )
        return _nginx_command(self.directory, self.workers, http, logs=self.logs)


class Varnish(Cache):
    """Varnish with file storage of four images' size; it speaks no TLS."""

    name = "Varnish"

    def __init__(self, directory: Path, origin: Origin, image_size: int, *, logs: bool) -> None:
        """Reserve room for images of `image_size` bytes."""
        super().__init__(directory, origin, logs=logs)
        self._storage_size = max(4 * image_size, 1 << 30)
        self._logger: subprocess.Popen[bytes] | None = None

    def prepare(self) -> list[str]:
        """Write the VCL: unlike the built-in one it caches for callers who send credentials."""
        vcl = self.directory / "default.vcl"
        vcl.write_text(_VARNISH.format(object_port=self.origin.object_port, api_port=self.origin.api_port))
        storage = f"file,{self.directory}/storage,{self._storage_size}"
        return [
            find_program("varnishd") or "varnishd",
            *("-F", "-j", "none", "-T", "none", "-n", f"{self.directory}/varnish"),
            *("-a", f"127.0.0.1:{self.port}", "-f", str(vcl), "-s", storage),
        ]

    def start(self) -> None:
        """Start with varnishncsa beside it, which writes the access log."""
        super().start()
        if self.logs and (program := find_program("varnishncsa")):
            command = [program, "-n", f"{self.directory}/varnish", "-w", f"{self.directory}/access.log"]
            self._logger = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        """End both."""
        if self._logger is not None:
            self._logger.kill()
            self._logger.wait()
            self._logger = None
        super().stop()


class Mirror(Cache):
    """The mirror; what it must verify and ask for permission, it does here too."""

    name = "mirror"
    image_route = IMAGE_ROUTE

    def __init__(
        self,
        directory: Path,
        origin: Origin,
        upstream_ca: Certificate,
        certificate: Certificate | None = None,
        workers: int = 1,
        *,
        logs: bool,
    ) -> None:
        """Trust `upstream_ca` when the line to upstream is TLS."""
        super().__init__(directory, origin, certificate, workers, logs=logs)
        self._upstream_ca = upstream_ca
        self._admin_port = free_port()

    def prepare(self) -> list[str]:
        """Write the configuration."""
        config = self.directory / "config.toml"
        (self.directory / "store").mkdir()
        config.write_text(
            _MIRROR.format(
                directory=self.directory,
                port=self.port,
                level="info" if self.logs else "warning",
                workers=self.workers,
                admin_port=self._admin_port,
                cert=self.certificate.cert if self.certificate else "",
                key=self.certificate.key if self.certificate else "",
                url=self.origin.api_url,
                ca_file=self._upstream_ca.cert if self.origin.scheme == "https" else "",
            )
        )
        return [sys.executable, "-m", "mirror.cli.main", "serve", "-c", str(config)]

    def is_ready(self) -> bool:
        """Ask `GET /readyz` of the admin listener."""
        connection = http.client.HTTPConnection("127.0.0.1", self._admin_port, timeout=2)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.client.OK
        except OSError:
            return False
        finally:
            connection.close()
