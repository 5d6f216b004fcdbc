"""Guarantee 1 for downloads that run: an image found bad meanwhile, or removed by force, is nobody's."""

import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mirror.simulator.client import ImageSpec, Simulator
from tests.support.admin import CHANGING, ask_admin
from tests.support.certificates import certificate
from tests.support.commands import COMMAND, environment, run
from tests.support.downloads import AUTHORIZED, Download, fetch
from tests.support.fixtures import FreshMirror, Sections
from tests.support.processes import MirrorProcess, eventually
from tests.support.rights import ordinary_mirror
from tests.support.rot import assert_right, flip, image_file, quarantined

MIB = 1 << 20
SIZE = 24 * MIB
"""Bytes of an image: more than the kernel keeps for a client that does not read."""


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator.start([ImageSpec("first", size=SIZE)]) as simulator:
        yield simulator


def verify(mirror: MirrorProcess, simulator: Simulator) -> None:
    assert run("verify", "current", "-c", mirror.config_file).returncode == 1


def ask_to_verify(mirror: MirrorProcess, simulator: Simulator) -> None:
    ask_admin(mirror, "POST", f"/api/images/{simulator.image_sha256('first')}/verify", CHANGING)
    eventually(lambda: quarantined(mirror))


def scrub(mirror: MirrorProcess, simulator: Simulator) -> None:
    eventually(lambda: quarantined(mirror))


def remove_by_force(mirror: MirrorProcess, simulator: Simulator) -> None:
    assert run("rm", "--force", "current", "-c", mirror.config_file).returncode == 0


def ask_to_remove(mirror: MirrorProcess, simulator: Simulator) -> None:
    path = f"/api/images/{simulator.image_sha256('first')}?force=true"
    assert ask_admin(mirror, "DELETE", path, CHANGING).status == 200


Find = Callable[[MirrorProcess, Simulator], None]


@pytest.mark.parametrize("find", [verify, ask_to_verify, scrub, remove_by_force, ask_to_remove])
def test_downloads_of_an_image_that_turns_out_bad_are_reset_and_the_next_one_is_right(
    fresh_mirror: FreshMirror, simulator: Simulator, find: Find
) -> None:
    sections: Sections = {"store": {"scrub_interval": "100ms"}} if find is scrub else {}
    mirror = fresh_mirror(sections)
    assert_right(fetch(mirror.image_url), simulator)
    part = AUTHORIZED | {"Range": f"bytes={MIB}-"}
    with Download(mirror.image_url) as whole, Download(mirror.image_url, headers=part) as ranged:
        whole.read(MIB)
        ranged.read(MIB)
        flip(image_file(mirror, simulator), SIZE - 1, hidden=True)
        find(mirror, simulator)
        for download in (whole, ranged):
            assert download.read_all().ended == "reset"
            assert len(download.body) < SIZE - MIB
    said = "was found bad, or removed by force, while it was sent"
    eventually(lambda: any(said in each["message"] for each in mirror.events("http.reset")), what="its line in the log")
    assert_right(fetch(mirror.image_url), simulator)


def test_downloads_from_every_worker_are_reset(fresh_mirror: FreshMirror, simulator: Simulator) -> None:
    mirror = fresh_mirror({"server": {"workers": 2}})
    assert_right(fetch(mirror.image_url), simulator)
    with ExitStack() as clients:
        downloads = [clients.enter_context(Download(mirror.image_url)) for _ in range(12)]
        flip(image_file(mirror, simulator), SIZE - 1, hidden=True)
        verify(mirror, simulator)
        assert {download.read_all().ended for download in downloads} == {"reset"}


def test_one_who_has_read_along_since_the_fill_is_reset_too(fresh_mirror: FreshMirror, simulator: Simulator) -> None:
    mirror = fresh_mirror()
    with Download(mirror.image_url) as first:
        first.read(MIB)
        eventually(image_file(mirror, simulator).exists)
        flip(image_file(mirror, simulator), SIZE - 1, hidden=True)
        verify(mirror, simulator)
        assert first.read_all().ended == "reset"


def test_over_tls_they_are_reset_without_close_notify(
    fresh_mirror: FreshMirror, simulator: Simulator, tmp_path: Path
) -> None:
    cert, key = certificate(tmp_path / "tls")
    mirror = fresh_mirror({"server": {"tls_cert": str(cert), "tls_key": str(key)}})
    context = ssl.create_default_context(cafile=cert)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    assert mirror.process is not None
    assert run("pull", "-c", mirror.config_file, DATAROBOT_API_TOKEN=simulator.token).returncode == 0
    with (
        socket.create_connection(("127.0.0.1", mirror.port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False) as connection,
    ):
        path = mirror.image_url.removeprefix(mirror.url)
        authorization = AUTHORIZED["Authorization"]
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\n\r\n".encode())
        received = len(connection.recv(65536))
        flip(image_file(mirror, simulator), SIZE - 1, hidden=True)
        verify(mirror, simulator)
        with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):  # a close_notify would be a clean end
            while piece := connection.recv(65536):
                received += len(piece)
        assert received < SIZE


def test_a_rotten_image_that_cannot_be_set_aside_is_served_to_nobody_and_the_log_says_so(
    tmp_path: Path, simulator: Simulator
) -> None:
    with ordinary_mirror(tmp_path / "mirror", simulator) as mirror:
        assert_right(fetch(mirror.image_url), simulator)
        path = image_file(mirror, simulator)
        with Download(mirror.image_url) as running:
            running.read(MIB)
            flip(path, SIZE - 1, hidden=True)
            path.parent.chmod(0o555)
            done = subprocess.run(
                [*mirror.through, *COMMAND, "verify", "current", "-c", str(mirror.config_file)],
                capture_output=True,
                text=True,
                check=False,
                env=environment(),
            )
            assert done.returncode == 1
            assert "cannot be set aside (Permission denied), and is not served any more" in " ".join(
                (done.stdout + done.stderr).split()
            )
            assert running.read_all().ended == "reset"
        for _ in range(2):
            outcome = fetch(mirror.image_url)
            assert_right(outcome, simulator)
            assert outcome.cache_status == "pps-mirror; fwd=bypass"
        path.parent.chmod(0o755)


@pytest.mark.parametrize("mended", [True, False])
def test_a_file_that_is_moved_back_from_quarantine_is_verified_before_anybody_gets_it_whole(
    fresh_mirror: FreshMirror, simulator: Simulator, mended: bool
) -> None:
    mirror = fresh_mirror()
    assert_right(fetch(mirror.image_url), simulator)
    flip(image_file(mirror, simulator), SIZE - 1, hidden=True)
    verify(mirror, simulator)
    (aside,) = quarantined(mirror)
    if mended:
        flip(aside, SIZE - 1, hidden=True)
    aside.rename(image_file(mirror, simulator))
    outcome = fetch(mirror.image_url)
    if mended:
        assert_right(outcome, simulator)
        assert fetch(mirror.image_url).cache_status == "pps-mirror; hit"
    else:
        assert (outcome.status, outcome.ended) in {(200, "reset"), (502, "complete")}
    assert_right(fetch(mirror.image_url), simulator)
    assert simulator.counters().image_requests == (1 if mended else 2)
