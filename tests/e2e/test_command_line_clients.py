"""curl, wget and aria2c as users run them: they get the image, or they fail; never anything between."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.simulator.client import Fault, Simulator
from tests.support.fixtures import SIZE, Canary, FreshMirror
from tests.support.processes import MirrorProcess, eventually
from tests.support.shell import Ended, Shell


@pytest.fixture
def shell(tmp_path: Path, canary: Canary) -> Shell:
    directory = tmp_path / "user"
    directory.mkdir()
    return Shell(directory, canary)


@pytest.fixture
def cold_mirror(fresh_mirror: FreshMirror) -> MirrorProcess:
    return fresh_mirror()


@pytest.fixture
def wrong_mirror(fresh_mirror: FreshMirror, simulator: Simulator) -> Iterator[MirrorProcess]:
    """A mirror whose upstream sends a wrong last byte, always."""
    mirror = fresh_mirror()
    simulator.fault(Fault("store", corrupt_at=SIZE - 1, times=None))
    yield mirror
    assert not list((mirror.store / "images").iterdir())


def test_curl_gets_the_image_cold_and_hot(shell: Shell, cold_mirror: MirrorProcess, simulator: Simulator) -> None:
    for name in ("cold", "hot"):
        assert shell.curl("-o", name, cold_mirror.image_url) == Ended(0, "", "")
        assert shell.read(name) == simulator.read("first")
    assert simulator.counters().image_requests == 1


def test_curl_sees_the_headers_with_head(shell: Shell, mirror: MirrorProcess, simulator: Simulator) -> None:
    status, *headers = shell.curl("-I", mirror.image_url).stdout.splitlines()
    assert status == "HTTP/1.1 200 OK"
    assert f"Content-Length: {SIZE}" in headers
    assert "Accept-Ranges: bytes" in headers
    assert f'ETag: "{simulator.image_sha256("first")}"' in headers


@pytest.mark.parametrize(
    ("wanted", "part"),
    [("100-199", slice(100, 200)), ("-10", slice(SIZE - 10, SIZE)), ("5000000-", slice(5_000_000, SIZE))],
)
def test_curl_gets_a_range(shell: Shell, mirror: MirrorProcess, simulator: Simulator, wanted: str, part: slice) -> None:
    got = shell.curl("-r", wanted, "-o", "part", "-w", "%{http_code}", mirror.image_url)
    assert got == Ended(0, "206", "")
    assert shell.read("part") == simulator.read("first")[part]


@pytest.mark.parametrize("state", ["cold", "hot"])
def test_curl_resumes_where_it_stopped(
    shell: Shell, cold_mirror: MirrorProcess, mirror: MirrorProcess, simulator: Simulator, state: str
) -> None:
    shell.write("image", simulator.read("first", 0, 2_000_000))
    url = (cold_mirror if state == "cold" else mirror).image_url
    got = shell.curl("-C", "-", "-o", "image", "-w", "%{http_code} %{size_download}", url)
    assert got == Ended(0, f"206 {SIZE - 2_000_000}", "")
    assert shell.read("image") == simulator.read("first")


def test_curl_fetches_nothing_that_it_has(shell: Shell, mirror: MirrorProcess, simulator: Simulator) -> None:
    assert shell.curl("--etag-save", "etag", "-o", "image", mirror.image_url).status == 0
    written = ("-o", "again", "-w", "%{http_code} %{size_download}")
    assert shell.curl("--etag-compare", "etag", *written, mirror.image_url) == Ended(0, "304 0", "")
    shell.write("etag", b'"of another image"\n')
    assert shell.curl("--etag-compare", "etag", *written, mirror.image_url) == Ended(0, f"200 {SIZE}", "")
    assert shell.read("again") == simulator.read("first")


def test_compressed_changes_nothing(shell: Shell, mirror: MirrorProcess, simulator: Simulator) -> None:
    assert shell.curl("--compressed", "-D", "headers", "-o", "image", mirror.image_url).status == 0
    assert shell.read("image") == simulator.read("first")
    assert b"content-encoding" not in shell.read("headers").lower()
    assert f"Content-Length: {SIZE}\r\n".encode() in shell.read("headers")


def test_curl_exits_56_when_upstreams_bytes_are_wrong(shell: Shell, wrong_mirror: MirrorProcess) -> None:
    got = shell.curl("-o", "image", wrong_mirror.image_url)
    assert got.status == 56, got
    assert len(shell.read("image")) < SIZE


def test_curl_says_which_status_it_got_for_a_bad_token(shell: Shell, mirror: MirrorProcess) -> None:
    got = shell.curl("-o", "image", mirror.image_url, token="a-token-that-is-none")
    assert (got.status, got.stderr.strip()) == (22, "curl: (22) The requested URL returned error: 401")
    assert not (shell.directory / "image").exists()


def test_wget_gets_the_image(shell: Shell, cold_mirror: MirrorProcess, simulator: Simulator) -> None:
    got = shell.wget("-O", "image", cold_mirror.image_url)
    assert got.status == 0, got
    assert shell.read("image") == simulator.read("first")


def test_wget_resumes_where_it_stopped(shell: Shell, mirror: MirrorProcess, simulator: Simulator) -> None:
    shell.write("image", simulator.read("first", 0, 2_000_000))
    got = shell.wget("--server-response", "-c", "-O", "image", mirror.image_url)
    assert got.status == 0, got
    assert "206 Partial Content" in got.stderr
    assert shell.read("image") == simulator.read("first")
    again = shell.wget("-c", "-O", "image", mirror.image_url)
    assert again.status == 0, again
    assert shell.read("image") == simulator.read("first")


def test_wget_saves_under_the_name_in_metadata(shell: Shell, mirror: MirrorProcess, simulator: Simulator) -> None:
    got = shell.wget("--content-disposition", mirror.image_url)
    assert got.status == 0, got
    assert [path.name for path in shell.directory.iterdir()] == [simulator.metadata("first")["filename"]]
    assert shell.read(simulator.metadata("first")["filename"]) == simulator.read("first")


def test_wget_fails_when_upstreams_bytes_are_wrong(shell: Shell, wrong_mirror: MirrorProcess) -> None:
    got = shell.wget("-O", "image", wrong_mirror.image_url)
    assert got.status == 4, got  # network failure
    assert len(shell.read("image")) < SIZE


def test_aria2c_gets_the_image_by_four_ranges_of_which_it_checks_the_whole(
    shell: Shell, mirror: MirrorProcess, simulator: Simulator
) -> None:
    before = answered(mirror, 206)
    checksum = f"--checksum=sha-256={simulator.image_sha256('first')}"
    slowly = "--max-overall-download-limit=5M"  # so that the first connection does not get all before the others begin
    got = shell.aria2c(slowly, checksum, "-o", "image", mirror.image_url)
    assert got.status == 0, got
    assert "Verification finished successfully" in got.stdout
    assert shell.read("image") == simulator.read("first")
    # The first of four connections asks for all, and leaves in the middle.
    eventually(lambda: answered(mirror, 206) - before >= 3)
    assert simulator.counters().image_requests == 0


def test_aria2c_on_a_cold_cache_costs_one_upstream_fetch(
    shell: Shell, cold_mirror: MirrorProcess, simulator: Simulator
) -> None:
    simulator.set_rate(SIZE)  # a second: long enough for four connections to begin
    checksum = f"--checksum=sha-256={simulator.image_sha256('first')}"
    got = shell.aria2c(checksum, "-o", "image", cold_mirror.image_url)
    assert got.status == 0, got
    assert shell.read("image") == simulator.read("first")
    # Where one connection catches up with the beginning of the next, aria2c gives up the next: they end in any way.
    eventually(lambda: sum(answered(cold_mirror, status) for status in (200, 206, 499)) >= 4)
    counters = simulator.counters()
    assert (counters.image_requests, counters.store_gets, counters.bytes_sent) == (1, 1, SIZE)


def test_aria2c_fails_when_upstreams_bytes_are_wrong(shell: Shell, wrong_mirror: MirrorProcess) -> None:
    got = shell.aria2c("-o", "image", wrong_mirror.image_url)
    assert got.status != 0, got
    assert (shell.directory / "image.aria2").exists()  # its note that the image is not whole


def answered(mirror: MirrorProcess, status: int) -> int:
    """How many requests for the image its log tells of that ended with `status`; 499 is a client that left."""
    return mirror.log().count(f"portablePredictionServerImage/ {status} ")
