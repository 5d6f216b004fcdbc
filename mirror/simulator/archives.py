"""Makes a docker archive as DataRobot does: go-containerregistry's layout, with layers that cannot be compressed.

It is no image that runs: its layers have one large file each.
"""

import hashlib
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

CREATED = "2025-06-30T12:34:56Z"
LAYERS = 3
_BLOCK = 1 << 20
_STORED = 0
"""The level of compression: what cannot be compressed need not be tried."""


@dataclass(frozen=True, slots=True)
class _Layer:
    path: Path
    digest: str
    diff_id: str


def write_archive(path: Path, size: int, tag: str) -> str:
    """Write an archive of about `size` bytes; return the image's id. It is the same to the byte each time."""
    layers = [_write_layer(path.with_name(f"{path.name}.{number}"), size // LAYERS, number) for number in range(LAYERS)]
    config = _json(
        {
            "architecture": "amd64",
            "config": {"Entrypoint": ["/portable-prediction-server"]},
            "created": CREATED,
            "history": [{"created": CREATED, "created_by": "the simulator"}] * LAYERS,
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.diff_id}" for layer in layers]},
        }
    )
    image_id = f"sha256:{hashlib.sha256(config).hexdigest()}"
    names = [f"{layer.digest}.tar.gz" for layer in layers]
    with path.open("wb") as file:

        def pack() -> Iterator[bytes]:
            yield from _member(image_id, [config], len(config))
            for name, layer in zip(names, layers, strict=True):
                yield from _member(name, _read(layer.path), layer.path.stat().st_size)
                layer.path.unlink()
            manifest = _json([{"Config": image_id, "RepoTags": [tag], "Layers": names}])
            yield from _member("manifest.json", [manifest], len(manifest))
            yield bytes(2 * tarfile.BLOCKSIZE)

        for piece in _gzip(pack()):
            file.write(piece)
    return image_id


def _write_layer(path: Path, size: int, number: int) -> _Layer:
    diff_id, digest = hashlib.sha256(), hashlib.sha256()
    blocks = (
        hashlib.shake_128(f"layer {number}:{start}".encode()).digest(min(_BLOCK, size - start))
        for start in range(0, size, _BLOCK)
    )

    def pack() -> Iterator[bytes]:
        for piece in chain(_member(f"opt/layer-{number}", blocks, size), [bytes(2 * tarfile.BLOCKSIZE)]):
            diff_id.update(piece)
            yield piece

    with path.open("wb") as file:
        for piece in _gzip(pack()):
            digest.update(piece)
            file.write(piece)
    return _Layer(path, digest.hexdigest(), diff_id.hexdigest())


def _member(name: str, content: Iterable[bytes], size: int) -> Iterator[bytes]:
    member = tarfile.TarInfo(name)
    member.size = size
    yield member.tobuf(tarfile.GNU_FORMAT)
    yield from content
    yield bytes(-size % tarfile.BLOCKSIZE)


def _gzip(pieces: Iterable[bytes]) -> Iterator[bytes]:
    packed = zlib.compressobj(_STORED, zlib.DEFLATED, 31)
    for piece in pieces:
        yield packed.compress(piece)
    yield packed.flush()


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_BLOCK):
            yield piece


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
