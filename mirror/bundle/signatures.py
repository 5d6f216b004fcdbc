"""Signs bundles and checks signatures, with OpenSSH keys and `ssh-keygen`.

The signatures are in a namespace of our own, so that a signature of something else (a git commit, a mail) is worth
nothing here. This process reads no key.
"""

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mirror.bundle.format import SIGNATURE, SUMS, BadBundle
from mirror.common.log import plain
from mirror.common.temporary_files import need_temporary_files
from mirror.model.errors import MirrorError, UsageError

NAMESPACE = "bundle@pps-mirror"

_INSTALL = "ssh-keygen is not installed here: apt-get install openssh-client"


def check_key(key: Path) -> None:
    """Sign a test text, to find out before hours of writing whether `sign` works with this key, passphrase and agent.

    Raises UsageError with ssh-keygen's own reason.
    """
    need_temporary_files()
    path = _path(key, "--sign")
    try:
        _sign(b"pps-mirror", path)
    except _Refused as refusal:
        raise UsageError(f"--sign {key}: ssh-keygen cannot sign with it: {refusal}") from None


def sign(sums: bytes, key: Path) -> bytes:
    """Sign SHA256SUMS; a passphrase is asked for on the terminal, unless an agent has the key. Raises MirrorError."""
    try:
        return _sign(sums, _path(key, "--sign"))
    except _Refused as refusal:
        raise MirrorError(f"{SUMS} cannot be signed with {key}: {refusal}") from None


class _Refused(Exception):
    """ssh-keygen does not sign; the text is its reason."""


def _sign(data: bytes, key: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="pps-mirror-") as directory:
        signed = Path(directory) / SUMS
        signed.write_bytes(data)
        done = _run("-Y", "sign", "-n", NAMESPACE, "-f", key, str(signed))
        if done.returncode:
            raise _Refused(_reason(done.stderr))
        return signed.with_name(SIGNATURE).read_bytes()


def verify(sums: bytes, signature: bytes, trusted: Path) -> str:
    """Return which signer of the file `trusted` signed SHA256SUMS. Raises BadBundle when none of them did.

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
    """Return an absolute path, which no tool takes for an option."""
    if not path.is_file():
        raise UsageError(f"{option} {path}: there is no such file")
    return str(path.absolute())


def _run(*arguments: str, standard_input: bytes | None = None) -> "subprocess.CompletedProcess[bytes]":
    command: Sequence[str] = ["ssh-keygen", *arguments]
    try:
        return subprocess.run(command, input=standard_input, capture_output=True, check=False)  # noqa: S603 - no shell
    except FileNotFoundError:
        raise MirrorError(_INSTALL) from None


def _reason(said: bytes) -> str:
    """Return what ssh-keygen said, on one line and without its banners."""
    lines = [line.strip(" @\r") for line in said.decode(errors="replace").splitlines()]
    reason = " ".join(line.removeprefix("Enter passphrase: ") for line in lines if line)
    if "incorrect passphrase" in reason:
        reason += " (give the passphrase on a terminal, or run `ssh-add` first)"
    return plain(reason)[:500] or "it does not say why"
