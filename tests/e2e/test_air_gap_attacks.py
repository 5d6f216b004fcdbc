"""What was carried here is hostile, or by somebody else: it is refused in one line, and the store is as it was."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from mirror.bundle.signatures import NAMESPACE
from tests.support.air_gap import Site, allowed, key_of, put, sum_again
from tests.support.commands import COMMAND, environment, one_line
from tests.support.needs import needs
from tests.support.processes import eventually

IMAGE = os.urandom(100_000)
DIGEST = hashlib.sha256(IMAGE).hexdigest()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Site:
    site = Site(tmp_path_factory.mktemp("here"))
    put(site.store, IMAGE, filename="pps.tar.gz")
    return site


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, here: Site) -> Path:
    """A good bundle of two volumes, to be copied."""
    return here.export(tmp_path_factory.mktemp("made") / "stick", "--split", "50kB")


@pytest.fixture
def bundle(tmp_path: Path, made: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bundle"))


@pytest.fixture
def there(tmp_path: Path) -> Site:
    return Site(tmp_path / "there")


def refused(there: Site, *arguments: str | Path) -> str:
    """Why an import is refused; the store must be as it was."""
    done = there.run("import", *arguments)
    assert done.returncode == 1
    assert there.is_untouched()
    return one_line(done.stderr)


# The bundle


def replaced(name: str, by: Callable[[Path], None]) -> Callable[[Path], None]:
    def attack(bundle: Path) -> None:
        (bundle / name).unlink()
        by(bundle / name)

    return attack


def rewritten(name: str, content: bytes) -> Callable[[Path], None]:
    def attack(bundle: Path) -> None:
        (bundle / name).write_bytes(content)

    return attack


def endless(name: str) -> Callable[[Path], None]:
    """A hole of a tebibyte."""

    def attack(bundle: Path) -> None:
        (bundle / name).write_bytes(b"")
        os.truncate(bundle / name, 1 << 40)

    return attack


def linked(name: str) -> Callable[[Path], None]:
    """The file is a link to one that is as it should be."""

    def attack(bundle: Path) -> None:
        (bundle / name).rename(bundle.parent / "elsewhere")
        (bundle / name).symlink_to(bundle.parent / "elsewhere")

    return attack


def listing(line: str) -> Callable[[Path], None]:
    def attack(bundle: Path) -> None:
        with (bundle / "SHA256SUMS").open("a") as sums:
            sums.write(line + "\n")

    return attack


def described(**fields: object) -> Callable[[Path], None]:
    """Metadata that says something else, and sums that agree with it."""

    def attack(bundle: Path) -> None:
        metadata = json.loads((bundle / "metadata.json").read_bytes())
        (bundle / "metadata.json").write_text(json.dumps(metadata | fields))
        sum_again(bundle)

    return attack


def swapped(bundle: Path) -> None:
    """The two volumes in each other's place, and sums that agree with it."""
    (bundle / "pps.tar.gz.001").rename(bundle / "other")
    (bundle / "pps.tar.gz.002").rename(bundle / "pps.tar.gz.001")
    (bundle / "other").rename(bundle / "pps.tar.gz.002")
    sum_again(bundle)


def other_metadata(bundle: Path) -> None:
    (bundle / "metadata.json").write_bytes((bundle / "metadata.json").read_bytes() + b" ")


def enlarged(bundle: Path) -> None:
    with (bundle / "pps.tar.gz.002").open("ab") as volume:
        volume.write(b"more")
    sum_again(bundle)


ZEROS = "0" * 64
ATTACKS: Mapping[str, tuple[Callable[[Path], None], str]] = {
    "a name above": (
        listing(f"{ZEROS} *../pps.tar.gz.003"),
        "SHA256SUMS, line 5: expected a sha256 and the",
    ),
    "an absolute name": (listing(f"{ZEROS}  /etc/passwd"), "SHA256SUMS, line 5: expected"),
    "an escape sequence": (listing(f"{ZEROS}  pps\x1b[2J"), "SHA256SUMS, line 5: expected"),
    "an option as a name": (listing(f"{ZEROS}  --output"), "SHA256SUMS, line 5: expected"),
    "one name twice": (listing(f"{ZEROS} *pps.tar.gz.001"), "SHA256SUMS names pps.tar.gz.001 twice"),
    "a foreign file": (listing(f"{ZEROS} *run-me.sh"), "expected one image or the volumes of one"),
    "a volume left out": (listing(f"{ZEROS} *pps.tar.gz.004"), "SHA256SUMS does not name pps.tar.gz.003"),
    "binary sums": (rewritten("SHA256SUMS", b"\xff" * 99), "is not plain text"),
    "endless sums": (
        endless("SHA256SUMS"),
        "is too large",
    ),
    "sums that are a pipe": (replaced("SHA256SUMS", os.mkfifo), "SHA256SUMS is no plain file"),
    "linked sums": (linked("SHA256SUMS"), "SHA256SUMS is a symbolic link: expected a plain file"),
    "a linked volume": (linked("pps.tar.gz.002"), "pps.tar.gz.002 is a symbolic link: expected a plain file"),
    "a volume that is a pipe": (replaced("pps.tar.gz.001", os.mkfifo), "pps.tar.gz.001 is no plain file"),
    "a volume that is a directory": (replaced("pps.tar.gz.001", Path.mkdir), "pps.tar.gz.001 is no plain file"),
    "a volume that is a device": (
        replaced("pps.tar.gz.001", lambda path: path.symlink_to("/dev/zero")),
        "pps.tar.gz.001 is a symbolic link",
    ),
    "linked metadata": (linked("metadata.json"), "metadata.json is a symbolic link"),
    "endless metadata": (
        endless("metadata.json"),
        "metadata.json is too large",
    ),
    "other metadata than the sums say": (other_metadata, "metadata.json is not the one that SHA256SUMS names"),
    "metadata of another image": (
        described(hash="f" * 64),
        "their sha256 is " + DIGEST + ", and should be " + "f" * 64,
    ),
    "metadata without a hash": (described(hash="../../etc"), "metadata.json cannot be used: field 'hash'"),
    "metadata of a larger image": (described(imageSize=10**12), "100000 bytes, and metadata promises 1000000000000"),
    "an enlarged volume": (enlarged, "the volumes together: 100004 bytes, and metadata promises 100000"),
    "an endless volume": (
        endless("pps.tar.gz.002"),
        "pps.tar.gz.002 has 1099511627776 bytes, more than the whole image (100000)",
    ),
    "swapped volumes": (swapped, "the volumes together are not the image that metadata promises"),
    "another readme": (
        rewritten("README.txt", b"docker load evil"),
        "README.txt is",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_bundle_is_refused_in_one_line_and_nothing_reaches_the_store(
    bundle: Path, there: Site, attack: str
) -> None:
    act, said = ATTACKS[attack]
    act(bundle)
    assert said in refused(there, bundle)


def test_parts_of_two_bundles_are_not_mixed(tmp_path: Path, there: Site, bundle: Path) -> None:
    other = Site(tmp_path / "other")
    put(other.store, os.urandom(100_000), filename="pps.tar.gz")
    second = other.export(tmp_path / "stick", "--split", "50kB")
    assert "differ: name what belongs to one bundle only" in refused(there, bundle, second)
    (second / "SHA256SUMS").unlink()
    (bundle / "pps.tar.gz.001").unlink()
    said = refused(there, bundle, second / "pps.tar.gz.001")
    assert f"{second / 'pps.tar.gz.001'} (50000 bytes): its sha256 is" in said


def test_a_path_that_leads_nowhere_is_an_error_of_one_line(tmp_path: Path, there: Site) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for name in ("missing", "a"):
        assert "cannot be read" in refused(there, tmp_path / name)


def test_other_metadata_of_an_image_that_is_stored_does_not_make_it_current(
    there: Site, bundle: Path, tmp_path: Path
) -> None:
    put(there.store, IMAGE, filename="pps.tar.gz")
    newer = there.store / "images" / put(there.store, b"newer", created="2025-01-02T03:04:05Z") / "metadata.json"
    note = json.dumps({"metadata": newer.read_text(), "fetchedAt": "2025-02-01T00:00:00+00:00"})
    (there.store / "current.json").write_text(note)
    described(created="2099-01-01T00:00:00Z", imageSize=1)(bundle)
    done = there.run("import", bundle)
    assert done.returncode == 0, done.stderr
    assert "is stored already" in done.stdout
    assert "another image stays the current one" in done.stdout
    assert (there.store / "current.json").read_text() == note


# Its signature


def sign(bundle: Path, key: Path, namespace: str = NAMESPACE) -> None:
    """Sign it by hand."""
    (bundle / "SHA256SUMS.sig").unlink(missing_ok=True)
    ssh_keygen = needs("ssh-keygen", "apt-get install openssh-client")
    command = [ssh_keygen, "-q", "-Y", "sign", "-n", namespace, "-f", str(key), str(bundle / "SHA256SUMS")]
    subprocess.run(command, check=True)


def test_a_signed_bundle_is_imported_from_whom_the_site_trusts_and_ssh_keygen_alone_agrees(
    here: Site, there: Site, tmp_path: Path
) -> None:
    key = key_of(tmp_path, "alice")
    trusted = allowed(tmp_path, key, "bob@example.com,*@example.com", f'namespaces="{NAMESPACE}"')
    signed = here.export(tmp_path / "stick", "--sign", key)
    (command,) = (
        line.strip() for line in (signed / "README.txt").read_text().splitlines() if line.startswith("    ssh-keygen")
    )
    by_hand = command.replace("SIGNER", "eve@example.com").replace(" allowed_signers ", f" {trusted} ")
    subprocess.run(["bash", "-ec", by_hand], cwd=signed, check=True)
    done = there.run("import", signed, "--trust", trusted)
    assert (done.returncode, done.stderr) == (0, "")
    assert "is signed by bob@example.com" in done.stdout
    assert there.images() == {DIGEST}


def test_a_bundle_that_is_signed_is_still_that_when_it_is_exported_again(here: Site, tmp_path: Path) -> None:
    signed = here.export(tmp_path / "stick", "--sign", key_of(tmp_path, "alice"))
    signature = (signed / "SHA256SUMS.sig").read_bytes()
    here.export(tmp_path / "stick")
    assert (signed / "SHA256SUMS.sig").read_bytes() == signature
    here.export(tmp_path / "stick", "--split", "50kB")
    assert not (signed / "SHA256SUMS.sig").exists()


def altered_volume(bundle: Path, key: Path, other: Path) -> None:
    sign(bundle, key)
    with (bundle / "pps.tar.gz.002").open("r+b") as volume:
        volume.write(b"evil")


def altered_with_its_sums(bundle: Path, key: Path, other: Path) -> None:
    altered_volume(bundle, key, other)
    sum_again(bundle)


def linked_signature(bundle: Path, key: Path, other: Path) -> None:
    sign(bundle, key)
    linked("SHA256SUMS.sig")(bundle)


FORGERIES: Mapping[str, tuple[Callable[[Path, Path, Path], object], str]] = {
    "unsigned": (lambda bundle, key, other: None, "it is not signed: there is no SHA256SUMS.sig"),
    "without sums": (
        lambda bundle, key, other: (bundle / "SHA256SUMS").unlink(),
        "it is not signed: there is no SHA256",
    ),
    "by another": (lambda bundle, key, other: sign(bundle, other), "is not by anybody whom"),
    "for something else": (lambda bundle, key, other: sign(bundle, key, "git"), "is not by anybody whom"),
    "nonsense": (
        lambda bundle, key, other: (bundle / "SHA256SUMS.sig").write_text("trust me"),
        "is not by anybody whom",
    ),
    "altered volume": (altered_volume, "1 of 2 volumes is bad"),
    "altered with its sums": (altered_with_its_sums, "SHA256SUMS was altered after it was signed"),
    "linked": (linked_signature, "SHA256SUMS.sig is a symbolic link"),
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("keys")
    return key_of(directory, "alice"), key_of(directory, "mallory")


@pytest.mark.parametrize("forgery", FORGERIES)
def test_what_nobody_trusted_has_signed_as_it_is_does_not_reach_the_store(
    bundle: Path, there: Site, tmp_path: Path, keys: tuple[Path, Path], forgery: str
) -> None:
    act, said = FORGERIES[forgery]
    act(bundle, *keys)
    done = there.run("import", bundle, "--trust", allowed(tmp_path, keys[0]))
    assert done.returncode == 1
    assert said in one_line(done.stderr)
    assert there.is_untouched()


def test_keys_and_lists_that_cannot_be_read_are_status_2(here: Site, there: Site, bundle: Path, tmp_path: Path) -> None:
    needs("ssh-keygen", "apt-get install openssh-client")
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("no key")
    stick = tmp_path / "stick"
    stick.mkdir()
    unread = here.run("export", "current", stick, "--sign", nonsense)
    assert (unread.returncode, list(stick.iterdir())) == (2, [])
    assert f"--sign {nonsense}: ssh-keygen cannot sign with it: Couldn't load public key" in one_line(unread.stderr)
    sign(bundle, key_of(tmp_path, "alice"))
    missing = there.run("import", bundle, "--trust", tmp_path / "missing")
    assert missing.returncode == 2
    assert f"--trust {tmp_path / 'missing'}: there is no such file" in one_line(missing.stderr)


def open_to_all(key: Path) -> str:
    key.chmod(0o644)
    return "Permissions 0644 for"


def with_a_passphrase(key: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "a-passphrase", "-f", str(key)], check=True)
    return "incorrect passphrase supplied to decrypt private key (give the passphrase on a terminal, or run `ssh-add`"


def only_its_public_half(key: Path) -> str:
    key.write_bytes(key.with_name(f"{key.name}.pub").read_bytes())
    return "ssh-keygen cannot sign with it: "


@pytest.mark.parametrize("made", [open_to_all, with_a_passphrase, only_its_public_half])
def test_a_key_that_cannot_sign_is_found_out_before_anything_is_written(
    here: Site, tmp_path: Path, made: Callable[[Path], str]
) -> None:
    """Without a terminal, as in a job at night: what ssh-keygen says is what the person reads."""
    key = key_of(tmp_path, "alice")
    reason = made(key)
    stick = tmp_path / "stick"
    stick.mkdir()
    alone = [needs("setsid", "apt-get install util-linux"), "--wait"]
    done = subprocess.run(
        [*alone, *COMMAND, "export", "current", str(stick), "--sign", str(key)],
        env=environment() | here.environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert f"--sign {key}: ssh-keygen cannot sign with it: " in one_line(done.stderr)
    assert reason in one_line(done.stderr)
    assert list(stick.iterdir()) == []


def test_a_key_with_a_passphrase_that_an_agent_has_signs_without_a_terminal(
    here: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = key_of(tmp_path, "alice")
    socket = tmp_path / "agent"
    agent = subprocess.Popen([needs("ssh-agent", "apt-get install openssh-client"), "-D", "-a", str(socket)])
    try:
        eventually(socket.exists, what="the agent's start")
        subprocess.run(["ssh-add", "-q", str(key)], env={**os.environ, "SSH_AUTH_SOCK": str(socket)}, check=True)
        with_a_passphrase(key)
        monkeypatch.setitem(here.environ, "SSH_AUTH_SOCK", str(socket))
        assert (here.export(tmp_path / "stick", "--sign", key) / "SHA256SUMS.sig").exists()
    finally:
        agent.terminate()
        agent.wait()


def test_without_ssh_keygen_what_needs_it_says_what_to_install(there: Site, bundle: Path, tmp_path: Path) -> None:
    key = key_of(tmp_path, "alice")
    sign(bundle, key)
    there.environ["PATH"] = str(tmp_path)
    assert "ssh-keygen is not installed here: apt-get install openssh-client" in refused(
        there, bundle, "--trust", allowed(tmp_path, key)
    )
