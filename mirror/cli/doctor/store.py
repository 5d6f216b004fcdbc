"""Examines the store's directory: its file system, the owners of its files, and how many images it has room for."""

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mirror.cli.check.store import nearest
from mirror.cli.doctor.case import Case
from mirror.cli.doctor.deployment import Deployment
from mirror.cli.doctor.user import User, closed_to, mirrors_user, user_name
from mirror.cli.findings import Finding
from mirror.common.units import format_size
from mirror.store.disk.layout import entries

_NETWORK = re.compile(r"nfs4?|cifs|smb3|smbfs|lustre|glusterfs|ceph|gpfs|beegfs|afs|9p|fuse\..*")
_MEMORY = {"tmpfs", "ramfs"}


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/self/mountinfo: the mount point, the kind of file system, and its options."""

    path: Path
    kind: str
    options: frozenset[str]


def examine(case: Case) -> Iterator[Finding]:
    """Examine the directory, or the one in which it would be made."""
    store = case.config.store
    root = nearest(store.path)
    if mount := mount_of(root.resolve(), Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")):
        yield from _mount(mount, has_bucket=store.s3.bucket is not None)
    yield from _room(case, root)
    if store.path.is_dir():
        yield from _owners(case, store.path)


def mount_of(path: Path, mountinfo: str) -> Mount | None:
    """Find the mount that `path` lies on; of several at the same mount point the last counts."""
    found: Mount | None = None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, *rest) = before.split(), after.split()
        where = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4]))
        if path.is_relative_to(where) and (found is None or where.is_relative_to(found.path)):
            found = Mount(where, kind, frozenset([*fields[5].split(","), *(rest[-1] if rest else "").split(",")]))
    return found


def _mount(mount: Mount, *, has_bucket: bool) -> Iterator[Finding]:
    where = f"it lies on {mount.path} ({mount.kind})"
    if "ro" in mount.options:
        advice = f"mount -o remount,rw {mount.path}; if the kernel made it so, dmesg says why"
        yield Finding("store", False, f"{where}, which is mounted read-only", advice=advice)
    if _NETWORK.fullmatch(mount.kind):
        advice = "one host per directory; several mirrors share a bucket instead (store.s3.bucket)"
        if has_bucket:
            advice = "a directory of its own for each host; the bucket is what they share"
        said = f"{where}, a network file system: its locks do not hold between hosts, and it is as quick as the network"
        yield Finding("store", True, said, note=True, advice=advice)
    elif mount.kind in _MEMORY:
        advice = "store.path on a disk, unless memory is meant"
        yield Finding("store", True, f"{where}: images are in memory, and lost at a restart", note=True, advice=advice)
    elif mount.kind == "overlay":
        advice = "give the container a volume for store.path: -v pps-mirror:/var/lib/pps-mirror"
        said = f"{where}, the container's own layer: images are lost with the container"
        yield Finding("store", True, said, note=True, advice=advice)
    elif "ro" not in mount.options:
        yield Finding("store", True, where)


def _room(case: Case, root: Path) -> Iterator[Finding]:
    image, store = case.image, case.config.store
    if image is None:
        return
    held = sum(_size(path / "image") for path in entries(store.path / "images"))
    held += sum(map(_size, entries(store.path / "partial")))
    room = held + max(0, shutil.disk_usage(root).free - store.min_free)
    if store.max_size is not None:
        room = min(room, store.max_size)
    fits = room // image.size
    said = f"there is room for {fits} images of {format_size(image.size)}"
    if fits < 1:
        advice = (
            f"{format_size(image.size)} at least, and as much again for the next one: a larger disk, or store.max_size"
        )
        yield Finding("store", False, "there is no room for an image, even if it were empty", advice=advice)
    elif fits < 2:
        advice = "a larger disk, or store.max_size: while a new image comes, the last one has to make room for it"
        yield Finding("store", True, "there is room for one image only", note=True, advice=advice)
    elif fits < store.keep:
        advice = f"store.keep = {fits - 1} leaves room for the next one"
        yield Finding("store", True, f"{said}, and store.keep = {store.keep} keeps more", note=True, advice=advice)
    else:
        yield Finding("store", True, said)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _owners(case: Case, store: Path) -> Iterator[Finding]:
    """Find files that the mirror cannot use, as a restore as root or a command run by another user leaves them."""
    user = mirrors_user(store)
    others: dict[int, list[Path]] = {}
    for path in closed_to(user, store):
        others.setdefault(path.lstat().st_uid, []).append(path)
    if others and _of_another_user(store, user):
        said = f"{store} is {user_name(store.stat().st_uid)}'s, and this command runs as {user.name}"
        yield Finding("store", True, said, note=True, advice=store_access(case))
        return
    for uid, paths in others.items():
        count = "one file" if len(paths) == 1 else f"{len(paths)} files"
        said = f"{count} below {store} belong to {user_name(uid)}, and the mirror ({user.name}) cannot use them: "
        advice = case.deployment.hand_over(store, user, uid)
        yield Finding("store", False, said + str(paths[0].relative_to(store)), advice=advice)


def _of_another_user(store: Path, user: User) -> bool:
    """Whether the store belongs to another user, who is more likely to run the mirror than `user`."""
    return store.exists() and store.stat().st_uid not in {0, user.uid}


def store_access(case: Case) -> str:
    """Say what to do when this user may not write to the store, or cannot make it."""
    store = case.config.store.path
    user = mirrors_user(store)
    try:
        there = store.exists()
    except PermissionError:
        path = shlex.quote(str(store))
        return f"`namei -l {path}` shows which directory: let the mirror's user search it (as root: chmod o+x on that)"
    if case.deployment is Deployment.HOST:  # in a container this command runs as the mirror's user anyway
        if _of_another_user(store, user):
            owner = store.stat()
            command = case.deployment.run_doctor_as(User(owner.st_uid, (owner.st_gid,)), case.file)
            return f"run this command as the mirror's user, as root: {command}"
        if not there:
            command = f"install -d -o {user.uid} -g {user.gids[0]} -m 0750 {shlex.quote(str(store))}"
            return f"as root: {command}; or set store.path"
    return case.deployment.hand_over(store, user)
