"""Finds out which user the mirror runs as, and what the modes of files let that user do.

Changing owners and modes is advised only where this user really lacks a right: a volume that belongs to root and is
writable through its group (`fsGroup` of Kubernetes) is in order, whoever owns it.
"""

import os
import pwd
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

FILES = 5000
"""The most files that are looked at."""

SERVICE = "pps-mirror"
"""The user that the systemd unit runs the mirror as."""

READ, WRITE, SEARCH = os.R_OK, os.W_OK, os.X_OK


@dataclass(frozen=True, slots=True)
class User:
    """A user by number, with its groups, the primary one first."""

    uid: int
    gids: tuple[int, ...]

    @property
    def name(self) -> str:
        """The user's name, or its number where the machine knows no name."""
        return user_name(self.uid)

    def may(self, path: Path, wanted: int) -> bool:
        """Whether this user has the rights `wanted` (READ, WRITE, SEARCH, added up) at `path`. Raises OSError."""
        if self.uid == os.geteuid():  # the kernel knows about ACLs and capabilities too
            return os.access(path, wanted, effective_ids=True)
        found = path.stat()
        if self.uid == 0:
            return True
        if found.st_uid == self.uid:
            granted = found.st_mode >> 6
        elif found.st_gid in self.gids:
            granted = found.st_mode >> 3
        else:
            granted = found.st_mode
        return granted & wanted == wanted


def user_name(uid: int) -> str:
    """The user's name, or its number where the machine knows no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def mirrors_user(store: Path) -> User:
    """Return the user that the mirror runs as: the user of this command or, if that is root, the owner of the store.

    It is root only when neither the store nor a user named SERVICE points to another one.
    """
    uid = os.geteuid()
    if uid != 0:
        return User(uid, (os.getegid(), *os.getgroups()))
    found = [path.lstat() for path in (store, *islice(below(store), FILES)) if path.exists()]
    if found and found[0].st_uid != 0:
        owner = found[0].st_uid
    elif owners := Counter(each.st_uid for each in found if each.st_uid != 0):
        owner = owners.most_common(1)[0][0]  # files of root may come from a restore, and say nothing about the mirror
    else:
        with suppress(KeyError):
            entry = pwd.getpwnam(SERVICE)
            return _user(entry.pw_uid, entry.pw_gid)
        return _user(0, 0)
    return _user(owner, next(each.st_gid for each in found if each.st_uid == owner))


def _user(uid: int, gid: int) -> User:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return User(uid, (gid,))
    return User(uid, (entry.pw_gid, *os.getgrouplist(entry.pw_name, entry.pw_gid)))


def below(directory: Path) -> Iterator[Path]:
    """Yield everything below a directory that we may list."""
    try:
        paths = sorted(directory.iterdir())
    except OSError:
        return
    for path in paths:
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from below(path)


def closed_to(user: User, store: Path) -> Iterator[Path]:
    """Yield files below the store that the mirror, which runs as `user`, cannot use."""
    for path in islice(below(store), FILES):
        try:
            if path.is_symlink():
                continue
            if path.is_dir():
                wanted = READ | WRITE | SEARCH
            elif path.parent == store / "partial":  # the only files that are written to where they lie
                wanted = READ | WRITE
            else:
                wanted = READ
            if not user.may(path, wanted) or _stuck(user, path):
                yield path
        except FileNotFoundError:  # a running mirror has removed it
            continue


def _stuck(user: User, path: Path) -> bool:
    """Whether a sticky directory forbids the user to rename and remove a file that belongs to another one."""
    parent = path.parent.stat()
    return bool(parent.st_mode & stat.S_ISVTX) and user.uid not in {0, parent.st_uid, path.lstat().st_uid}
