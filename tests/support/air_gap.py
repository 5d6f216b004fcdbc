"""Two sites with an air gap between them: stores, the commands run on them, and what is carried across."""

import hashlib
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mirror.store.disk.verified_marker import Identity, trust
from tests.support.by_hand import lay_out
from tests.support.commands import run
from tests.support.needs import needs

AUDIT = Path("audit.jsonl")


class Site:
    """A store below `directory`, and the commands run on it."""

    def __init__(self, directory: Path, **environ: str) -> None:
        self.store = directory / "store"
        self.environ = {"PPS_MIRROR__STORE__PATH": str(self.store), "PPS_MIRROR__STORE__MIN_FREE": "0", **environ}

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return run(*arguments, **self.environ)

    def export(self, directory: Path, *arguments: str | Path, name: str = "current") -> Path:
        """Write a bundle below `directory`, which is made if need be; the bundle's own directory."""
        directory.mkdir(exist_ok=True)
        done = self.run("export", name, directory, *arguments)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        (bundle,) = directory.iterdir()
        return bundle

    def images(self) -> set[str]:
        """The hashes of what is stored."""
        images = self.store / "images"
        return {path.parent.name for path in images.glob("*/image")} if images.exists() else set()

    def is_untouched(self) -> bool:
        """Whether no byte of any image is there, nor anything else but the record of who tried."""
        return {path.relative_to(self.store) for path in self.store.rglob("*") if path.is_file()} <= {AUDIT}


def put(store: Path, image: bytes, **fields: Any) -> str:
    """Put a verified image into a store; its hash."""
    digest = lay_out(store, image, **fields)
    directory = store / "images" / digest
    trust(directory, Identity.of((directory / "image").stat()))
    return digest


def sum_again(bundle: Path, extra: Mapping[str, str] | None = None) -> None:
    """Write SHA256SUMS anew, as it should be for what the files are now; `extra` are more lines, by name."""
    names = [line.split("*", 1)[1] for line in (bundle / "SHA256SUMS").read_text().splitlines()]
    sums = {name: hashlib.sha256((bundle / name).read_bytes()).hexdigest() for name in names}
    lines = [f"{digest} *{name}\n" for name, digest in [*sums.items(), *(extra or {}).items()]]
    (bundle / "SHA256SUMS").write_text("".join(lines))


def key_of(directory: Path, name: str) -> Path:
    """A new key without a passphrase."""
    keygen = needs("ssh-keygen", "apt-get install openssh-client")
    subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(directory / name)], check=True)
    return directory / name


def allowed(directory: Path, key: Path, principal: str = "alice@example.com", options: str = "") -> Path:
    """A file that allows one key."""
    path = directory / "allowed_signers"
    path.write_text(f"{principal} {options} {key.with_name(key.name + '.pub').read_text()}")
    return path
