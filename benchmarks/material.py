"""What the upstream serves: one incompressible image, its metadata, and a certificate for loopback."""

import hashlib
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

_PIECE = 1 << 22


@dataclass(frozen=True, slots=True)
class Image:
    """A file that stands for the PPS image."""

    path: Path
    size: int
    hash: str

    def warm(self) -> None:
        """Read the file, so that upstream has it in the page cache."""
        buffer = bytearray(_PIECE)
        with self.path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    def metadata(self) -> bytes:
        """Return the body of upstream's metadata answer for this image."""
        identifier = hashlib.sha256(self.hash.encode()).hexdigest()
        fields = {
            "baseImageId": "benchmark",
            "created": "2025-01-01T00:00:00.000000Z",
            "datarobotRuntimeImageTag": None,
            "dockerImageId": f"sha256:{identifier}",
            "filename": "datarobot-portable-prediction-api-benchmark.tar.gz",
            "hash": self.hash,
            "hashAlgorithm": "SHA256",
            "imageSize": self.size,
            "shortDockerImageId": identifier[:12],
        }
        return json.dumps(fields).encode()


@dataclass(frozen=True, slots=True)
class Certificate:
    """A self-signed certificate for 127.0.0.1, which is its own authority."""

    cert: Path
    key: Path


def make_image(path: Path, size: int) -> Image:
    """Write `size` random bytes to `path`; they are in the page cache afterwards."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        left = size
        while left:
            piece = os.urandom(min(left, _PIECE))
            digest.update(piece)
            file.write(piece)
            left -= len(piece)
    return Image(path, size, digest.hexdigest())


def make_certificate(directory: Path) -> Certificate:
    """Make a certificate with the openssl command, one that strict verifiers accept as an authority too."""
    certificate = Certificate(directory / "cert.pem", directory / "key.pem")
    request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
    extensions = ["subjectAltName=IP:127.0.0.1", "keyUsage=critical,digitalSignature,keyCertSign"]
    added = [part for extension in extensions for part in ("-addext", extension)]
    subprocess.run(
        [*request.split(), *added, "-out", str(certificate.cert), "-keyout", str(certificate.key)],
        check=True,
        capture_output=True,
    )
    return certificate
