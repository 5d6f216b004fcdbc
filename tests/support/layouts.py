"""Docker archives in every layout that tools write, from layers that are given; the same to the byte each time."""

import gzip
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_CREATED = "2025-01-02T03:04:05Z"


class Layout(StrEnum):
    """Who writes an archive like that."""

    CLASSIC = "classic"
    """skopeo: `<diff id>.tar` and `<image id>.json`."""
    DOCKER_20 = "docker-20"
    """`docker save` before Docker 25: a directory for each layer; one that is there already is a link to it."""
    PODMAN = "podman"
    """`podman save`: as skopeo, and directories with links beside that."""
    OCI = "oci"
    """`docker save` since Docker 25."""
    OCI_GZIP = "oci-gzip"
    """The same when containerd stores the images: layers are the registry's."""
    CRANE = "crane"
    """go-containerregistry, and so DataRobot: the registry's layers; one that is used twice is there once."""


@dataclass(frozen=True, slots=True)
class File:
    """A regular file in a tar; with `pax_size` its size is in a PAX record only, as Go does it from 8 GiB on."""

    content: bytes
    mode: int = 0o644
    pax_size: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link in a tar, or a hard link."""

    target: str
    hard: bool = False


Files = Mapping[str, File | Link]


def image_config(layers: Sequence[bytes], entrypoint: str = "/entrypoint") -> bytes:
    """Return the config of an image with these layers, each an uncompressed tar."""
    return compact(
        {
            "architecture": _MACHINES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "created": _CREATED,
            "config": {"Entrypoint": [entrypoint], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(layer)}" for layer in layers]},
            "history": [{"created": _CREATED, "created_by": "tests"} for _ in layers],
        }
    )


def archive_files(
    layout: Layout, layers: Sequence[bytes], tags: Sequence[str] | None, config: bytes | None = None
) -> dict[str, File | Link]:
    """Return what an archive in that layout consists of, in order; `manifest.json` comes last."""
    config = image_config(layers) if config is None else config
    files: dict[str, File | Link] = {}
    image_id = sha256(config)
    name = {Layout.CRANE: f"sha256:{image_id}", Layout.OCI: f"blobs/sha256/{image_id}"}
    name[Layout.OCI_GZIP] = name[Layout.OCI]
    config_name = name.get(layout, f"{image_id}.json")
    if layout is Layout.CRANE:
        files[config_name] = File(config)
    names = [_add_layer(files, layout, layer, number) for number, layer in enumerate(layers)]
    if layout in (Layout.OCI, Layout.OCI_GZIP):
        files["oci-layout"] = File(compact({"imageLayoutVersion": "1.0.0"}))
        files["index.json"] = File(compact({"schemaVersion": 2, "manifests": []}))
    files.setdefault(config_name, File(config))
    manifest = [{"Config": config_name, "RepoTags": tags, "Layers": names}]
    files["manifest.json"] = File(compact(manifest))
    return files


def _add_layer(files: dict[str, File | Link], layout: Layout, layer: bytes, number: int) -> str:
    """Add one layer; return the name by which `manifest.json` has it."""
    diff_id = sha256(layer)
    match layout:
        case Layout.CLASSIC | Layout.PODMAN:
            name = f"{diff_id}.tar"
        case Layout.DOCKER_20:
            name = f"{sha256(b'layer %d' % number)}/layer.tar"
        case Layout.OCI:
            name = f"blobs/sha256/{diff_id}"
        case Layout.OCI_GZIP:
            layer = gzip.compress(layer, mtime=0)
            name = f"blobs/sha256/{sha256(layer)}"
        case Layout.CRANE:
            layer = gzip.compress(layer, mtime=0)
            name = f"{sha256(layer)}.tar.gz"
    same = [other for other, file in files.items() if isinstance(file, File) and file.content == layer]
    if layout is Layout.DOCKER_20:
        directory = name.removesuffix("layer.tar")
        files[f"{directory}VERSION"] = File(b"1.0")
        files[f"{directory}json"] = File(b"{}")
        files[name] = Link(f"../{same[0]}") if same else File(layer)
    else:
        files[name] = File(layer, pax_size=layout is Layout.CRANE)
    if layout is Layout.PODMAN:
        files[f"{sha256(b'layer %d' % number)}/layer.tar"] = Link(f"../{name}")
    return name


def manifest_first(files: Files) -> dict[str, File | Link]:
    """Return the same files, with `manifest.json` as the first."""
    return {"manifest.json": files["manifest.json"]} | dict(files)


def make_tar(files: Files) -> bytes:
    """Return a tar of these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, file in files.items():
            member = tarfile.TarInfo(name)
            if isinstance(file, Link):
                member.type = tarfile.LNKTYPE if file.hard else tarfile.SYMTYPE
                member.linkname = file.target
                archive.addfile(member)
                continue
            member.mode = file.mode
            if file.pax_size:
                member.pax_headers = {"size": str(len(file.content))}
                header = member.tobuf(tarfile.PAX_FORMAT)
                padding = bytes(-len(file.content) % tarfile.BLOCKSIZE)
                buffer.write(header + file.content + padding)
                archive.offset = buffer.tell()
                continue
            member.size = len(file.content)
            archive.addfile(member, io.BytesIO(file.content))
    return buffer.getvalue()


def compact(value: object) -> bytes:
    """Return it as JSON without white space."""
    return json.dumps(value, separators=(",", ":")).encode()


def sha256(data: bytes) -> str:
    """Return the SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()
