"""Signatures of OpenSSH keys, made and checked by `ssh-keygen`: who made a bundle.

They are made in a namespace of our own, so that a signature of something else (a git commit, a mail) is none here. No
key is read by this process.
"""

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mirror.bundle.layout import SIGNATURE, SUMS, BadBundle
from mirror.errors import MirrorError, UsageError
from mirror.scratch import need_temporary_files

NAMESPACE = "bundle@pps-mirror"

_INSTALL = "ssh-keygen is not installed here: apt-get install openssh-client"


def check_key(key: Path) -> None:
    """Find out early whether `sign` could work, without asking for a passphrase. Raises UsageError."""
    need_temporary_files()
    done = _run("-l", "-f", _path(key, "--sign"))
    if done.returncode:
        raise UsageError(f"--sign {key}: no OpenSSH key can be read there")


def sign(sums: bytes, key: Path) -> bytes:
    """Sign SHA256SUMS; the passphrase is asked for on the terminal. Raises MirrorError."""
    with tempfile.TemporaryDirectory(prefix="pps-mirror-") as directory:
        signed = Path(directory) / SUMS
        signed.write_bytes(sums)
        done = _run("-Y", "sign", "-n", NAMESPACE, "-f", _path(key, "--sign"), str(signed))
        if done.returncode:
            raise MirrorError(f"{SUMS} cannot be signed with {key}: {_last_line(done.stderr)}")
        return signed.with_name(SIGNATURE).read_bytes()


def verify(sums: bytes, signature: bytes, trusted: Path) -> str:
    """Who of those that the file `trusted` allows signed SHA256SUMS. Raises BadBundle when none of them did.

    The file is in the format of ssh-keygen(1), "ALLOWED SIGNERS". Raises UsageError when it cannot be read.
    """
    allowed = _path(trusted, "--trust")
    need_temporary_files()
    with tempfile.TemporaryDirectory(prefix="pps-mirror-") as directory:
        copy = Path(directory) / SIGNATURE  # what is on the medium might change between the two calls
        copy.write_bytes(signature)
        found = _run("-Y", "find-principals", "-s", str(copy), "-f", allowed)
        for principal in found.stdout.decode(errors="replace").splitlines():
            done = _run(
                "-Y", "verify", "-f", allowed, "-I", principal, "-n", NAMESPACE, "-s", str(copy), standard_input=sums
            )
            if done.returncode == 0:
                return "".join(character if character.isprintable() else "?" for character in principal)
            if b"incorrect signature" in done.stderr.lower():
                raise BadBundle(f"{SUMS} was altered after it was signed: its signature is not of these bytes")
    raise BadBundle(f"{SIGNATURE} is not by anybody whom {trusted} allows to sign bundles (namespace {NAMESPACE})")


def _path(path: Path, option: str) -> str:
    """An absolute path, which no tool takes for an option."""
    if not path.is_file():
        raise UsageError(f"{option} {path}: there is no such file")
    return str(path.absolute())


def _run(*arguments: str, standard_input: bytes | None = None) -> "subprocess.CompletedProcess[bytes]":
    command: Sequence[str] = ["ssh-keygen", *arguments]
    try:
        return subprocess.run(command, input=standard_input, capture_output=True, check=False)  # noqa: S603 - no shell
    except FileNotFoundError:
        raise MirrorError(_INSTALL) from None


def _last_line(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "ssh-keygen does not say why"
