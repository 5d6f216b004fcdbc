"""A real docker archive, small and the same to the byte each time: what the mirror carries, in miniature."""

import gzip
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.layouts import File, Layout, archive_files, image_config, make_tar, manifest_first, sha256
from tests.support.needs import needs

NAME = "datarobot/datarobot-portable-prediction-api"


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


def make_archive(
    path: Path, version: str, padding: int = 0, *, layout: Layout = Layout.DOCKER_20, first: bool = False
) -> DockerArchive:
    """Write an archive as `docker save | gzip` does; `padding` bytes of it cannot be compressed.

    The image is a static busybox whose entry point prints the version. Skips the test where there is none. With `first`
    its `manifest.json` is not last, where every real tool has it: nothing is known to the reader before the end.
    """
    says = f"portable-prediction-server {version}"
    layers = [
        make_tar(
            {
                "bin/busybox": File(_static_busybox(), 0o755),
                "opt/padding": File(random.Random(0).randbytes(padding)),
            }
        ),
        make_tar({"entrypoint": File(f"#!/bin/busybox sh\necho '{says}'\n".encode(), 0o755)}),
    ]
    tag = f"{NAME}:{version}"
    files = archive_files(layout, layers, [tag])
    path.write_bytes(gzip.compress(make_tar(manifest_first(files) if first else files), mtime=0))
    return DockerArchive(path, tag, f"sha256:{sha256(image_config(layers))}", says)


def _static_busybox() -> bytes:
    install = "apt-get install --no-install-recommends busybox-static"
    path = Path(needs("busybox", install))
    linked = subprocess.run(["ldd", path], capture_output=True, check=False).returncode == 0
    assert not linked, f"{path} needs shared libraries, which an image of its own does not have; {install}"
    return path.read_bytes()
