"""Images in a bucket, as clients see them: streamed from there, brought to a disk, or redirected to."""

import base64
import functools
import hashlib
import http.client
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from datarobot.client import Client
from datarobot.rest import RESTClientObject

from mirror.simulator.client import TOKEN, ImageSpec, Simulator
from tests.support.downloads import digest_of, fetch
from tests.support.fixtures import Canary
from tests.support.forked import ForkedMirror
from tests.support.needs import needs
from tests.support.processes import MirrorProcess, eventually
from tests.support.s3.fixtures import TestBucket
from tests.support.s3.front import Front, Trouble
from tests.support.s3.server import S3Server
from tests.support.s3.with_image import HIT, OBJECT, Make, get
from tests.support.several_connections import MODULE, eager
from tests.support.shell import Ended, Shell

MIB = 1 << 20
SIZE = 12 * MIB
NAME = "datarobot-portable-prediction-api-first.tar.gz"


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[Simulator]:
    images = [
        ImageSpec("first", size=SIZE),
        ImageSpec("second", size=SIZE, created="2026-01-02T03:04:05Z"),
        ImageSpec("third", size=SIZE, created="2026-02-02T03:04:05Z"),
    ]
    with Simulator.start(images) as simulator:
        yield simulator


def image_headers(simulator: Simulator) -> dict[str, str]:
    """What the contract wants to be said of the image."""
    sha256 = simulator.image_sha256("first")
    return {
        "Accept-Ranges": "bytes",
        "ETag": f'"{sha256}"',
        "Last-Modified": "Mon, 30 Jun 2025 12:34:56 GMT",
        "Content-Disposition": f'attachment; filename="{NAME}"',
        "Content-Type": "application/octet-stream",
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:",
        "Cache-Status": HIT,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, no-cache",
        "Vary": "Authorization",
    }


def on_disk(directory: Path) -> int:
    """Bytes of all files below it."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def test_a_hit_from_the_bucket_is_like_one_from_disk_and_leaves_nothing_there(
    mirror_on: Make, simulator: Simulator
) -> None:
    image, etag = simulator.read("first"), f'"{simulator.image_sha256("first")}"'
    with mirror_on() as mirror:
        for verified in (False, True):
            for wanted, part in (
                ("bytes=100-199", image[100:200]),
                ("bytes=-100", image[-100:]),
                (f"bytes={SIZE - MIB}-", image[-MIB:]),
            ):
                partial = get(mirror, Range=wanted)
                assert (partial.status, partial.ended) == (206, "complete")
                assert partial.body == part
                assert partial.header("Content-Range").endswith(f"/{SIZE}")
                assert partial.header("Cache-Status") == HIT
            if not verified:
                whole = get(mirror)
                assert (whole.status, whole.ended) == (200, "complete")
                assert whole.body == image
                expected = image_headers(simulator) | {"Content-Length": str(SIZE)}
                assert {name: whole.header(name) for name in expected} == expected
        head = get(mirror, "HEAD")
        assert (head.status, head.body) == (200, b"")
        assert {name: head.header(name) for name in expected} == expected
        assert get(mirror, If_None_Match=etag).status == 304
        assert get(mirror, If_Match='"another"').status == 412
        assert get(mirror, Range="bytes=0-9", If_Range='"another"').body == image
        unsatisfiable = get(mirror, Range=f"bytes={SIZE}-")
        assert (unsatisfiable.status, unsatisfiable.header("Content-Range")) == (416, f"bytes */{SIZE}")
        assert on_disk(mirror.store) < 64 << 10
    assert simulator.counters().store_gets == 0


@pytest.mark.parametrize("local_copy", [False, True], ids=["streamed", "to a disk"])
def test_where_one_connection_to_the_bucket_is_slow_several_bring_the_image(
    mirror_on: Make, front: Front, simulator: Simulator, local_copy: bool
) -> None:
    window = 3 * MIB
    slow = {f"{MODULE}:{name}": value for name, value in eager(window).items()}
    mirror = mirror_on(local_copy=local_copy)
    mirror.constants = {**slow, "mirror.store.s3.object_reader:WINDOW": window}
    with mirror:
        front.trouble(Trouble("GET", OBJECT, times=4, cut_after=100_000))
        whole = get(mirror)
        assert (whole.ended, whole.body == simulator.read("first")) == ("complete", True)
        asked = [asked for asked in front.asked("GET", OBJECT) if asked.sent]
        assert len(asked) > 8
        assert "bucket.connections" in mirror.settled.actions()
    assert sum(each.sent for each in asked) <= SIZE + window + 10 * MIB  # what was on its way, at most


def test_a_line_to_the_bucket_that_breaks_is_gone_on_with_and_the_client_does_not_notice(
    mirror_on: Make, front: Front, simulator: Simulator
) -> None:
    with mirror_on() as mirror:
        front.trouble(
            Trouble("GET", OBJECT, times=1, cut_after=3 * MIB), Trouble("GET", OBJECT, times=1, cut_after=2 * MIB)
        )
        whole = get(mirror)
        assert (whole.ended, whole.body == simulator.read("first")) == ("complete", True)
        eventually(lambda: len(front.asked("GET", OBJECT)) >= 3, what="the note of the last request, at its end")
        ranges = [asked.range for asked in front.asked("GET", OBJECT)]
        assert ranges == [f"bytes={start}-{SIZE - 1}" for start in (0, 3 * MIB, 5 * MIB)]


def test_fifty_downloads_from_the_bucket_stay_below_150_mib(
    mirror_on: Make, bucket: TestBucket, s3_server: S3Server, tmp_path: Path
) -> None:
    size = 64 * MIB
    with Simulator.start([ImageSpec("large", size=size)]) as simulator:
        sha256 = simulator.image_sha256("large")
        bucket.write(f"images/{sha256}.json", simulator.metadata_body("large"))
        bucket.write(f"images/{sha256}", simulator.read("large"))
        with (
            mirror_on(upstream=simulator.api_url, endpoint_url=s3_server.endpoint_url) as mirror,
            ThreadPoolExecutor(50) as pool,
        ):
            curl = needs("curl", "apt-get install curl")
            command = [curl, "-sS", "-H", f"Authorization: Bearer {TOKEN}", mirror.image_url]
            slow = [pool.submit(digest_of, [*command, "--limit-rate", "8M"]) for _ in range(40)]
            quick = [pool.submit(digest_of, command) for _ in range(10)]
            assert {each.result() for each in slow + quick} == {sha256}
            assert mirror.process is not None
            status = Path(f"/proc/{mirror.process.pid}/status").read_text()
            peak = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))
            assert peak < 150 * MIB
            assert on_disk(mirror.store) < 64 << 10
        assert simulator.counters().store_gets == 0


def test_an_empty_disk_is_filled_from_the_bucket_and_upstreams_image_is_not_asked_for(
    mirror_on: Make, bucket: TestBucket, simulator: Simulator
) -> None:
    with mirror_on(local_copy=True) as mirror:
        for _ in range(2):
            outcome = fetch(mirror.image_url)
            assert (outcome.sha256, outcome.cache_status) == (simulator.image_sha256("first"), HIT)
        assert simulator.counters().image_requests == 0
        kept = mirror.store / "images" / simulator.image_sha256("first") / "image"
        assert hashlib.sha256(kept.read_bytes()).hexdigest() == simulator.image_sha256("first")


def test_what_is_evicted_from_the_disk_stays_in_the_bucket(
    tmp_path: Path, bucket: TestBucket, simulator: Simulator
) -> None:
    sections: dict[str, dict[str, object]] = {
        "store.s3": {**bucket.section, "local_copy": True},
        "store": {"max_size": SIZE * 5 // 2, "keep": 0},
        "upstream": {"metadata_ttl": "0s"},
    }
    with ForkedMirror(tmp_path / "mirror", simulator.api_url, sections, bucket.server.environ) as mirror:
        for name in ("first", "second", "third"):
            simulator.roll_over(name)
            assert fetch(mirror.image_url).sha256 == simulator.image_sha256(name)
            arrived = functools.partial(is_in, bucket, simulator.image_sha256(name))
            eventually(arrived, what="its arrival in the bucket")
            eventually(lambda: not bucket.names("parts/") and not bucket.names("leases/"), what="the upload's end")
        first = simulator.image_sha256("first")
        assert not (mirror.store / "images" / first).exists()
        assert is_in(bucket, first)
        simulator.roll_over("first")
        again = fetch(mirror.image_url)
        assert (again.sha256, again.cache_status) == (first, HIT)
        assert simulator.counters().store_gets == 3


def is_in(bucket: TestBucket, image_hash: str) -> bool:
    """Whether that image has its name in the bucket."""
    return f"images/{image_hash}" in bucket.names()


@pytest.mark.parametrize("local_copy", [True, False], ids=["tiered", "bucket only"])
def test_without_upstream_what_is_in_the_bucket_is_served(
    mirror_on: Make, simulator: Simulator, local_copy: bool
) -> None:
    with mirror_on(upstream="", auth="open", local_copy=local_copy) as mirror:
        for _ in range(2):
            outcome = fetch(mirror.image_url, headers={})
            assert (outcome.status, outcome.cache_status) == (200, HIT)
            assert outcome.sha256 == simulator.image_sha256("first")


# Redirects


@pytest.fixture
def redirecting(mirror_on: Make, s3_server: S3Server) -> Iterator[ForkedMirror]:
    """A mirror that sends clients to the server's own address, not to the one that it asks itself."""
    with mirror_on(serve="redirect", public_endpoint_url=s3_server.endpoint_url) as mirror:
        yield mirror


def location(mirror: MirrorProcess, canary: Canary, **headers: str) -> str:
    """Where a client is sent; its signature is to be found nowhere else."""
    answer = get(mirror, **headers)
    assert (answer.status, answer.body) == (302, b"")
    url = answer.header("Location")
    canary.hide(url.partition("X-Amz-Signature=")[2][:64], url.partition("?")[2])
    return url


def status_of(url: str, method: str = "GET") -> int:
    """What the bucket's server answers to whoever has the URL and nothing else."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    with closing(connection):
        connection.request(method, url)
        return connection.getresponse().status


def test_clients_are_sent_to_the_bucket_with_headers_that_let_nobody_keep_the_url(
    redirecting: ForkedMirror, simulator: Simulator, s3_server: S3Server, canary: Canary
) -> None:
    expected = image_headers(simulator) | {"Cache-Control": "no-store"}
    for name in ("Accept-Ranges", "Content-Type", "Content-Disposition"):
        del expected[name]
    for headers in ({}, {"Range": "bytes=100-199"}):
        answer = get(redirecting, **headers)
        assert answer.status == 302
        assert {name: answer.header(name) for name in expected} == expected
        url = location(redirecting, canary, **headers)
        assert url.startswith(f"{s3_server.endpoint_url}/")
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as given:
            wanted = simulator.read("first", 100, 200) if headers else simulator.read("first")
            assert given.read() == wanted
            assert NAME in given.headers["Content-Disposition"]
    for method in ("HEAD", "DELETE", "PUT"):
        assert status_of(url, method) == 403
    head = get(redirecting, "HEAD")
    assert (head.status, head.header("Content-Length"), head.header("Location")) == (200, str(SIZE), "")
    unchanged = get(redirecting, If_None_Match=f'"{simulator.image_sha256("first")}"')
    assert (unchanged.status, unchanged.header("Location")) == (304, "")
    assert get(redirecting, Range=f"bytes={SIZE}-").status == 416
    assert get(redirecting, Authorization="Bearer of-somebody-else").status == 401
    assert simulator.counters().store_gets == 0


def test_a_miss_is_streamed_and_the_next_client_redirected(
    redirecting: ForkedMirror, simulator: Simulator, bucket: TestBucket, canary: Canary
) -> None:
    simulator.roll_over("second")
    outcome = fetch(redirecting.image_url)
    assert (outcome.status, outcome.cache_status) == (200, "pps-mirror; fwd=miss; stored")
    assert outcome.sha256 == simulator.image_sha256("second")
    eventually(lambda: f"images/{simulator.image_sha256('second')}" in bucket.names())
    eventually(lambda: get(redirecting).status == 302, what="a redirect")


def test_the_url_expires(mirror_on: Make, canary: Canary) -> None:
    with mirror_on(serve="redirect", presign_ttl="3s") as mirror:
        url = location(mirror, canary)
        assert status_of(url) == 200
        eventually(lambda: status_of(url) == 403, what="its end")


def test_a_bucket_that_fails_redirects_nobody(mirror_on: Make, front: Front, simulator: Simulator) -> None:
    with mirror_on(serve="redirect") as mirror:
        front.trouble(Trouble(status=403, code="ExpiredToken"))
        outcome = fetch(mirror.image_url)
        assert (outcome.status, outcome.cache_status) == (200, "pps-mirror; fwd=bypass")
        assert outcome.sha256 == simulator.image_sha256("first")


@pytest.fixture
def shell(tmp_path: Path, canary: Canary) -> Shell:
    directory = tmp_path / "user"
    directory.mkdir()
    return Shell(directory, canary)


def test_curl_wget_and_aria2c_follow_and_save_it_under_its_name(
    mirror_on: Make, shell: Shell, simulator: Simulator, front: Front
) -> None:
    with mirror_on(serve="redirect") as mirror:
        programs: dict[str, Callable[[], Ended]] = {
            "curl": lambda: shell.curl("-L", "-OJ", mirror.image_url),
            "wget": lambda: shell.wget("--quiet", "--content-disposition", mirror.image_url),
            "aria2c": lambda: shell.aria2c("--quiet", mirror.image_url),
        }
        for program, run in programs.items():
            front.forget()
            ended = run()
            assert ended.status == 0, f"{program}: {ended}"
            assert shell.read(NAME) == simulator.read("first"), program
            (shell.directory / NAME).unlink()
            signed = "/images/[0-9a-f]{64}[?].*X-Amz-Signature"
            eventually(functools.partial(front.asked, "GET", signed), what="the note of a request, at its end")
            asked = front.asked("GET", signed)
            assert {each.status for each in asked} <= {200, 206}, program
            assert asked, program
            if program == "curl":  # the others send it along, and the server does not mind
                assert not any(each.authorization for each in asked)


@pytest.mark.filterwarnings("ignore:Using an empty collection for 'allowed_methods':FutureWarning")
@pytest.mark.filterwarnings("ignore:Client version is ahead of server version:UserWarning")
def test_the_official_client_follows_and_keeps_its_token_to_itself(
    mirror_on: Make, simulator: Simulator, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    # The port of the mirror and that of the bucket differ in name as well: else `requests` takes them for one host.
    with mirror_on(
        serve="redirect", public_endpoint_url=front.endpoint_url.replace("127.0.0.1", "localhost")
    ) as mirror:
        connected: RESTClientObject = Client(token=TOKEN, endpoint=f"{mirror.url}/api/v2")
        with closing(connected) as client:
            with client.get("mlops/portablePredictionServerImage/", stream=True) as answer:
                assert b"".join(answer.iter_content(1 << 16)) == simulator.read("first")
                assert NAME in answer.headers["Content-Disposition"]
        eventually(lambda: front.asked("GET", "/images/[0-9a-f]{64}[?]"), what="the note of the request, at its end")
        (asked,) = front.asked("GET", "/images/[0-9a-f]{64}[?]")
        assert asked.authorization is None


def test_everything_goes_over_https_with_a_private_ca(
    mirror_on: Make, s3_server: S3Server, shell: Shell, simulator: Simulator
) -> None:
    environ = {"AWS_CA_BUNDLE": str(s3_server.ca_file)}
    https = s3_server.https_endpoint_url
    with mirror_on(serve="redirect", endpoint_url=https, environ=environ) as mirror:
        assert shell.curl("-L", "--cacert", str(s3_server.ca_file), "-o", "it", mirror.image_url).status == 0
        assert shell.read("it") == simulator.read("first")
        simulator.roll_over("second")
        outcome = fetch(mirror.image_url)
        assert (outcome.sha256, outcome.cache_status) == (
            simulator.image_sha256("second"),
            "pps-mirror; fwd=miss; stored",
        )
    with mirror_on(endpoint_url=https) as mirror:
        assert fetch(mirror.image_url).sha256 == simulator.image_sha256("second")
        assert "its certificate is not trusted; AWS_CA_BUNDLE names the file of a private CA" in mirror.settled.log()


def test_the_log_names_no_session_token(mirror_on: Make, canary: Canary, simulator: Simulator) -> None:
    canary.hide(session := "a-session-token-that-nobody-knows")
    with mirror_on(environ={"AWS_SESSION_TOKEN": session}) as mirror:
        assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")
        assert "cannot be used" in mirror.settled.log()
