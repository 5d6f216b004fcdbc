"""The TLS port under attack and mistake: who does not speak TLS hurts nobody, and a wrong pair is a clear error."""

import contextlib
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.simulator.client import TOKEN, Simulator
from tests.support.certificates import certificate
from tests.support.fixtures import FreshMirror
from tests.support.needs import needs
from tests.support.processes import METADATA, MirrorProcess, eventually


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return certificate(tmp_path / "tls")


@pytest.fixture
def hasty(pair: tuple[Path, Path], fresh_mirror: FreshMirror) -> MirrorProcess:
    """A mirror that waits one second for a handshake, and as long for a request."""
    return fresh_mirror({"server": {"tls_cert": str(pair[0]), "tls_key": str(pair[1]), "header_timeout": "1s"}})


@pytest.fixture
def mirror(pair: tuple[Path, Path], fresh_mirror: FreshMirror) -> MirrorProcess:
    return fresh_mirror({"server": {"tls_cert": str(pair[0]), "tls_key": str(pair[1]), "header_timeout": "10m"}})


@contextlib.contextmanager
def connected(mirror: MirrorProcess) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", mirror.port), timeout=30) as connection:
        yield connection


def trusting(**settings: object) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for name, value in settings.items():
        setattr(context, name, value)
    return context


def is_served(mirror: MirrorProcess) -> bool:
    """Whether an honest client is."""
    with connected(mirror) as plain, trusting().wrap_socket(plain) as connection:
        connection.sendall(f"GET {METADATA} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        return connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def ends(connection: socket.socket) -> bool:
    """Whether the other side closes, having said nothing that is HTTP."""
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            said += piece
    return b"HTTP" not in said


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_1_2_and_1_3_are_spoken(mirror: MirrorProcess, version: ssl.TLSVersion) -> None:
    context = trusting(minimum_version=version, maximum_version=version)
    with connected(mirror) as plain, context.wrap_socket(plain) as connection:
        assert connection.version() == version.name.replace("_", ".")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_older_versions_are_refused_by_the_mirror_not_by_the_client(
    mirror: MirrorProcess, version: ssl.TLSVersion
) -> None:
    context = trusting()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    with connected(mirror) as plain, pytest.raises(OSError) as refusal:
        context.wrap_socket(plain)
    assert "NO_PROTOCOLS_AVAILABLE" not in str(refusal.value)  # the client's own objection


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"], ids=["nothing", "a part"])
def test_a_handshake_that_hangs_is_cut_off_after_header_timeout(hasty: MirrorProcess, said: bytes) -> None:
    with connected(hasty) as connection:
        began = time.monotonic()
        connection.sendall(said)
        assert ends(connection)  # within 30 s, or it times out
        assert time.monotonic() - began >= 0.9
    assert is_served(hasty)


def test_a_handshake_is_not_cut_off_earlier(mirror: MirrorProcess) -> None:
    with connected(mirror) as plain:
        assert is_served(mirror)
        plain.settimeout(1.5)
        with pytest.raises(TimeoutError):
            plain.recv(1)
        plain.settimeout(30)
        with trusting().wrap_socket(plain) as connection:
            assert connection.version() == "TLSv1.3"


def test_hundreds_of_handshakes_that_hang_keep_no_honest_client_waiting(hasty: MirrorProcess) -> None:
    with contextlib.ExitStack() as stack:
        hanging = [stack.enter_context(connected(hasty)) for _ in range(500)]
        for connection in hanging[::2]:
            connection.sendall(b"\x16\x03\x01")
        assert is_served(hasty)
        assert all(ends(connection) for connection in hanging)
    assert is_served(hasty)


@pytest.mark.parametrize(
    "said",
    [
        f"GET {METADATA} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        b"SSH-2.0-x\r\n",
        bytes(range(256)) * 300,
        b"\x16\x03\x01\x40",
    ],
    ids=["HTTP", "SSH", "noise", "a record too long"],
)
def test_what_is_no_tls_ends_that_connection_and_nothing_else(mirror: MirrorProcess, said: bytes) -> None:
    with connected(mirror) as plain, trusting().wrap_socket(plain) as honest:
        for _ in range(20):
            with connected(mirror) as connection, contextlib.suppress(ConnectionError):
                connection.sendall(said)
                with contextlib.suppress(OSError):  # it may be reset already
                    connection.shutdown(socket.SHUT_WR)
                assert ends(connection)
        honest.sendall(f"GET {METADATA} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        assert honest.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert '"log.level": "error"' not in mirror.settled.log()


def test_connections_that_never_spoke_tls_leave_no_descriptor_behind(mirror: MirrorProcess) -> None:
    assert is_served(mirror)

    def descriptors() -> int:
        assert mirror.process is not None
        return len(list(Path(f"/proc/{mirror.process.pid}/fd").iterdir()))

    before = descriptors()
    for said in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01") * 10:
        with connected(mirror) as connection:
            connection.sendall(said)
    eventually(lambda: descriptors() <= before, what="the closing of all")


@pytest.mark.parametrize("wrong", ["another key", "no key", "no PEM", "a key with a passphrase", "swapped"])
def test_a_wrong_pair_stops_the_start_with_one_line_that_names_it(
    pair: tuple[Path, Path], tmp_path: Path, simulator: Simulator, wrong: str
) -> None:
    cert, key = pair
    if wrong == "another key":
        key = certificate(tmp_path / "other")[1]
    elif wrong == "no key":
        key.unlink()
    elif wrong == "no PEM":
        cert.write_bytes(b"\x30\x82")
    elif wrong == "a key with a passphrase":
        openssl = needs("openssl", "apt-get install openssl")
        locked = tmp_path / "locked.pem"
        command = [openssl, "pkey", "-in", str(key), "-out", str(locked), "-aes256", "-passout", "pass:x"]
        subprocess.run(command, check=True, capture_output=True)
        key = locked
    else:
        cert, key = key, cert
    sections = {"server": {"tls_cert": str(cert), "tls_key": str(key)}}
    mirror = MirrorProcess(tmp_path / "mirror", simulator.api_url, sections)
    done = subprocess.run(
        [sys.executable, "-m", "mirror.cli.main", "serve", "-c", str(mirror.config_file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("pps-mirror: server.tls_")
    assert str(key if wrong == "no key" else cert) in done.stderr
