"""Writes README.txt of a bundle, for people on the other side that have everyday tools and maybe not this software."""

from collections.abc import Sequence

from mirror.bundle.format import METADATA, SIGNATURE, SUMS, Volume, directory_name, image_name
from mirror.bundle.signatures import NAMESPACE
from mirror.common.units import format_size
from mirror.model.metadata import ImageMetadata


def leaflet(metadata: ImageMetadata, volumes: Sequence[Volume]) -> bytes:
    """Return its text. Lines that begin with four blanks are commands. Names from upstream come in made safe."""
    name = image_name(metadata)
    names = [volume.name for volume in volumes] if len(volumes) < 10 else [f"{name}.[0-9][0-9][0-9]"]
    files = "\n".join(f"  {volume.name}  {format_size(volume.size)} ({volume.size} bytes)" for volume in volumes)
    gather = f"Copy the volumes from all the disks, and {SUMS}, into one directory, if they are on several.\n"
    text = f"""\
DataRobot's Portable Prediction Server, a docker image of {metadata.created:%Y-%m-%d}: carried here by pps-mirror
================================================================================================

{files}
  {METADATA}  what DataRobot says about the image
  {SUMS}  checksums of all of these files
  {SIGNATURE}  who made this; there only when it was signed

If {SUMS} is missing, writing this was interrupted: begin it again where it was written.


With pps-mirror
---------------

Name this directory, and those of the other disks when it is on several. It checks everything by itself:

    pps-mirror import {directory_name(metadata)}

All of what follows is for those who have no pps-mirror.


1. Check
--------

{gather if len(volumes) > 1 else ""}Every line must end in OK. Run this in this directory:

    sha256sum -c {SUMS}

(Windows: "certutil -hashfile FILE SHA256", and compare with {SUMS}. macOS: "shasum -a 256 -c {SUMS}".)

When it is signed, and you have the list of those whom you trust (see ssh-keygen(1), ALLOWED SIGNERS):

    ssh-keygen -Y verify -f allowed_signers -I SIGNER -n {NAMESPACE} -s {SIGNATURE} < {SUMS}
"""
    if len(volumes) > 1:
        text += f"""

2. Join
-------

The image is in {len(volumes)} volumes, in this order. Join them on a disk that takes files of that size (FAT32 takes
4 GiB) and has {format_size(metadata.size)} free, here your home directory:

    cat {" ".join(names)} > ~/{name}

(Windows: "copy /b {"+".join(volume.name for volume in volumes[:2])} C:\\{name}", with all of them.)
It is whole when this says OK:

    echo "{metadata.hash} *$HOME/{name}" | sha256sum -c
"""
    where = f"~/{name}" if len(volumes) > 1 else name
    text += f"""

{3 if len(volumes) > 1 else 2}. Load
-------

    docker load -i {where}

(A podman that says it cannot read it: "gzip -dc {where} | podman load".)
"""
    return text.encode("ascii")
