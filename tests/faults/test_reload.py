"""SIGHUP: tokens and the certificate are read again, and what runs loses no byte; a bad file changes nothing."""

import contextlib
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mirror.simulator.client import TOKEN, Fault, Simulator, fingerprint
from tests.support.certificates import certificate
from tests.support.downloads import Download
from tests.support.fixtures import SIZE, Ask, Canary, FreshMirror
from tests.support.processes import IMAGE, MirrorProcess, eventually
from tests.support.tokens import write_tokens

pytestmark = pytest.mark.real_command

OTHER = "another-good-token"
OLD = "the-token-of-yesterday"
NEW = "the-token-of-today"


@pytest.fixture(autouse=True)
def hidden(canary: Canary) -> None:
    canary.hide(OLD, NEW)


@pytest.fixture
def tokens_mirror(tmp_path: Path, fresh_mirror: FreshMirror) -> tuple[MirrorProcess, Path, Path]:
    """A mirror in mode tokens, its list, and the file with its own token."""
    tokens = write_tokens(tmp_path / "tokens", ci=OLD)
    own = tmp_path / "own"
    own.write_text(OTHER)
    own.chmod(0o600)
    sections: dict[str, dict[str, Any]] = {
        "auth": {"mode": "tokens", "tokens_file": str(tokens)},
        "upstream": {"metadata_ttl": "0s", "token_file": str(own)},
    }
    return fresh_mirror(sections), tokens, own


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_who_was_added_is_let_in_who_was_removed_is_not_and_what_runs_goes_on(
    tokens_mirror: tuple[MirrorProcess, Path, Path], simulator: Simulator, ask: Ask
) -> None:
    mirror, tokens, _ = tokens_mirror
    simulator.fault(Fault("store", hang_after=SIZE // 2))
    with Download(mirror.image_url, headers=bearer(OLD)) as download:
        download.read(SIZE // 2)
        write_tokens(tokens, ci=NEW)
        assert mirror.hang_up().count("SIGHUP: reloaded auth.tokens_file, upstream.token_file\n") == 1
        assert [ask(mirror.metadata_url, token).status for token in (OLD, NEW)] == [401, 200]
        simulator.release()
        assert download.read_all().body == simulator.read("first")


@pytest.mark.parametrize("wrong", ["no list", "a bad line", "no file"])
def test_a_bad_list_is_one_line_in_the_log_and_the_old_one_stays(
    tokens_mirror: tuple[MirrorProcess, Path, Path], simulator: Simulator, ask: Ask, wrong: str
) -> None:
    mirror, tokens, own = tokens_mirror
    tokens.unlink()
    if wrong == "no list":
        tokens.mkdir()
    elif wrong == "a bad line":
        write_tokens(tokens, ci=NEW)
        tokens.write_text(f"{tokens.read_text()}ops:{NEW}\n")
    own.write_text(TOKEN)
    (said,) = mirror.hang_up().splitlines()
    assert f"ERROR SIGHUP: auth.tokens_file = '{tokens}'" in said
    assert ("line 2: expected" in said) == (wrong == "a bad line")
    assert said.endswith("; nothing has changed")
    assert [ask(mirror.metadata_url, token).status for token in (OLD, NEW)] == [200, 401]
    assert simulator.log("metadata")[-1].authorization == fingerprint(f"Bearer {OTHER}")  # all or nothing


def test_upstream_is_asked_with_the_new_token_of_the_mirror(
    tokens_mirror: tuple[MirrorProcess, Path, Path], simulator: Simulator, ask: Ask
) -> None:
    mirror, _, own = tokens_mirror
    assert ask(mirror.metadata_url, OLD).status == 200
    own.write_text(TOKEN)
    mirror.hang_up()
    assert ask(mirror.image_url, OLD).body == simulator.read("first")
    for place in ("metadata", "image"):
        assert simulator.log(place)[-1].authorization == fingerprint(f"Bearer {TOKEN}")
    own.write_text("two tokens\n")
    (said,) = mirror.hang_up().splitlines()
    assert "upstream.token_file" in said
    assert "expected one token" in said
    assert ask(mirror.metadata_url, OLD).status == 200
    assert simulator.log("metadata")[-1].authorization == fingerprint(f"Bearer {TOKEN}")


def test_a_fill_whose_token_was_exchanged_meanwhile_goes_on_with_the_new_one(
    tokens_mirror: tuple[MirrorProcess, Path, Path], simulator: Simulator
) -> None:
    mirror, _, own = tokens_mirror
    simulator.fault(Fault("store", hang_after=1_000_000, cut_after=1_000_000))
    with Download(mirror.image_url, headers=bearer(OLD)) as download:
        simulator.wait_held()
        own.write_text(TOKEN)
        mirror.hang_up()
        simulator.set_tokens([TOKEN])
        simulator.release()
        assert download.read_all().ended == "complete"
        assert download.body == simulator.read("first")
    used = [(asked.authorization, asked.status) for asked in simulator.log("image")]
    former, present = fingerprint(f"Bearer {OTHER}"), fingerprint(f"Bearer {TOKEN}")
    assert used == [(former, 302), (former, 401), (present, 302)]


def test_workers_read_their_lists_again_too(
    tmp_path: Path, fresh_mirror: FreshMirror, simulator: Simulator, ask: Ask
) -> None:
    tokens = write_tokens(tmp_path / "tokens", ci=OLD)
    sections: dict[str, dict[str, Any]] = {
        "server": {"workers": 2},
        "auth": {"mode": "tokens", "tokens_file": str(tokens)},
    }
    mirror = fresh_mirror(sections, environ={"DATAROBOT_API_TOKEN": TOKEN})
    assert [ask(mirror.metadata_url, token).status for token in (OLD, NEW)] == [200, 401]
    write_tokens(tokens, ci=NEW)
    assert mirror.hang_up(3).count("SIGHUP: reloaded auth.tokens_file") == 3
    for _ in range(10):  # whichever of them answers
        assert [ask(mirror.metadata_url, token).status for token in (OLD, NEW)] == [401, 200]


# The certificate


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """The certificate and key of the mirror."""
    return certificate(tmp_path / "tls")


@pytest.fixture
def tls_mirror(pair: tuple[Path, Path], fresh_mirror: FreshMirror) -> MirrorProcess:
    return fresh_mirror({"server": {"tls_cert": str(pair[0]), "tls_key": str(pair[1])}})


@contextlib.contextmanager
def connected(mirror: MirrorProcess) -> Iterator[ssl.SSLSocket]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", mirror.port), timeout=30) as plain,
        context.wrap_socket(plain) as connection,
    ):
        yield connection


def presented(mirror: MirrorProcess) -> str:
    """The certificate that new connections see, PEM."""
    with connected(mirror) as connection:
        return ssl.DER_cert_to_PEM_cert(connection.getpeercert(binary_form=True) or b"")


def pem(cert: Path) -> str:
    return ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(cert.read_text()))


def test_new_connections_see_the_new_certificate_and_those_that_are_open_lose_nothing(
    tls_mirror: MirrorProcess, pair: tuple[Path, Path], tmp_path: Path, simulator: Simulator
) -> None:
    assert presented(tls_mirror) == pem(pair[0])
    simulator.fault(Fault("store", hang_after=SIZE // 2))
    with connected(tls_mirror) as connection:
        connection.sendall(f"GET {IMAGE} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        answer = connection.makefile("rb")
        while answer.readline() != b"\r\n":
            pass
        body = answer.read(SIZE // 2)
        for source, target in zip(certificate(tmp_path / "renewed"), pair, strict=True):
            target.write_bytes(source.read_bytes())
        assert tls_mirror.hang_up().endswith("SIGHUP: reloaded server.tls_cert\n")
        assert presented(tls_mirror) == pem(tmp_path / "renewed" / "cert.pem")
        simulator.release()
        assert body + answer.read(SIZE - len(body)) == simulator.read("first")
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")  # and the connection is as good as it was
        assert answer.readline() == b"HTTP/1.1 404 Not Found\r\n"


@pytest.mark.parametrize("wrong", ["another key", "another certificate", "no key", "no PEM"])
def test_a_bad_pair_is_one_line_in_the_log_and_the_old_one_is_used_on(
    tls_mirror: MirrorProcess, pair: tuple[Path, Path], tmp_path: Path, wrong: str
) -> None:
    before = pem(pair[0])
    cert, key = certificate(tmp_path / "renewed")
    if wrong == "another key":
        pair[1].write_bytes(key.read_bytes())
    elif wrong == "another certificate":
        pair[0].write_bytes(cert.read_bytes())
    elif wrong == "no key":
        pair[1].unlink()
    else:
        pair[0].write_text("-----BEGIN CERTIFICATE-----\n")
    (said,) = tls_mirror.hang_up().splitlines()
    assert "ERROR SIGHUP: server.tls_" in said
    assert said.endswith("; nothing has changed")
    assert presented(tls_mirror) == before  # twice, because half a pair would fail each handshake
    assert presented(tls_mirror) == before


def test_with_nothing_to_reload_sighup_changes_nothing(
    fresh_mirror: FreshMirror, simulator: Simulator, ask: Ask
) -> None:
    mirror = fresh_mirror()
    assert mirror.hang_up().endswith("SIGHUP: reloaded nothing\n")
    assert ask(mirror.image_url).body == simulator.read("first")


def test_sighup_while_it_stops_cuts_nothing_off(fresh_mirror: FreshMirror, simulator: Simulator) -> None:
    mirror = fresh_mirror()
    simulator.fault(Fault("store", hang_after=SIZE // 2))
    with Download(mirror.image_url) as download:
        download.read(SIZE // 2)
        mirror.send_signal(signal.SIGTERM)
        eventually(lambda: "mirror.stopping" in mirror.actions())
        mirror.send_signal(signal.SIGHUP)
        simulator.release()
        assert download.read_all().body == simulator.read("first")
    assert mirror.wait_dead(20) == 0
