"""A real docker archive, small and the same to the byte each time: what the mirror carries, in miniature."""

import gzip
import hashlib
import io
import json
import platform
import random
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.needs import needs

NAME = "datarobot/datarobot-portable-prediction-api"

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_CREATED = "2025-01-02T03:04:05Z"


@dataclass(frozen=True, slots=True)
class DockerArchive:
    """The gzip archive at `path`: `tag` is loaded from it, its id is `image_id`, and run it prints `says`."""

    path: Path
    tag: str
    image_id: str
    says: str

    @property
    def size(self) -> int:
        """Compressed bytes."""
        return self.path.stat().st_size


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    mode: int = 0o644


def make_archive(path: Path, version: str, padding: int = 0) -> DockerArchive:
    """Write an archive as `docker save | gzip` does; `padding` bytes of it cannot be compressed.

    The image is a static busybox whose entry point prints the version. Skips the test where there is none.
    """
    says = f"portable-prediction-server {version}"
    layers = [
        _tar(
            {
                "bin/busybox": _File(_static_busybox(), 0o755),
                "opt/padding": _File(random.Random(0).randbytes(padding)),
            }
        ),
        _tar({"entrypoint": _File(f"#!/bin/busybox sh\necho '{says}'\n".encode(), 0o755)}),
    ]
    diff_ids = [hashlib.sha256(layer).hexdigest() for layer in layers]
    config = _json(
        {
            "architecture": _architecture(),
            "os": "linux",
            "created": _CREATED,
            "config": {"Entrypoint": ["/entrypoint"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}" for diff_id in diff_ids]},
            "history": [{"created": _CREATED, "created_by": "tests"} for _ in layers],
        }
    )
    image_id = hashlib.sha256(config).hexdigest()
    tag = f"{NAME}:{version}"
    names = [f"{diff_id}/layer.tar" for diff_id in diff_ids]
    files = {f"{image_id}.json": _File(config)}
    files |= {name: _File(layer) for name, layer in zip(names, layers, strict=True)}
    # Last, where every real tool has it: nothing is known to the reader before the end.
    files["manifest.json"] = _File(_json([{"Config": f"{image_id}.json", "RepoTags": [tag], "Layers": names}]))
    path.write_bytes(gzip.compress(_tar(files), mtime=0))
    return DockerArchive(path, tag, f"sha256:{image_id}", says)


def _tar(files: Mapping[str, _File]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, file in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(file.content), file.mode
            archive.addfile(member, io.BytesIO(file.content))
    return buffer.getvalue()


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _static_busybox() -> bytes:
    install = "apt-get install --no-install-recommends busybox-static"
    path = Path(needs("busybox", install))
    linked = subprocess.run(["ldd", path], capture_output=True, check=False).returncode == 0
    assert not linked, f"{path} needs shared libraries, which an image of its own does not have; {install}"
    return path.read_bytes()


def _architecture() -> str:
    return _MACHINES.get(platform.machine(), platform.machine())
