"""Contract section 2: what clients get, to the letter."""

import base64
import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from mirror.simulator.client import Fault, ImageSpec, Simulator
from tests.support.downloads import AUTHORIZED, Download, fetch
from tests.support.forked import ForkedMirror
from tests.support.processes import METADATA, MirrorProcess, eventually

SIZE = 300_000


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    images = [ImageSpec("first", size=SIZE), ImageSpec("second", size=SIZE, created="2026-01-02T03:04:05Z")]
    with Simulator.start(images, tokens=["simulated-token", "other"]) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory, simulator: Simulator) -> Iterator[MirrorProcess]:
    """A mirror that has both images; the first is current."""
    sections = {"upstream": {"metadata_ttl": "0s"}}
    with ForkedMirror(tmp_path_factory.mktemp("mirror"), simulator.api_url, sections) as process:
        for name in ("second", "first"):
            simulator.roll_over(name)
            assert fetch(process.image_url).sha256 == simulator.image_sha256(name)
        yield process


@pytest.fixture(autouse=True)
def _no_faults(simulator: Simulator) -> Iterator[None]:
    yield
    simulator.clear_faults()


def get(url: str, method: str = "GET", **headers: str) -> Download:
    with Download(
        url, method, AUTHORIZED | {name.replace("_", "-"): value for name, value in headers.items()}
    ) as download:
        return download.read_all()


@pytest.mark.parametrize("slash", ["/", ""], ids=["with a slash", "without"])
def test_metadata_is_upstreams_byte_for_byte(mirror: MirrorProcess, simulator: Simulator, slash: str) -> None:
    answer = get(mirror.metadata_url.rstrip("/") + slash)
    assert answer.status == 200
    assert answer.body == simulator.metadata_body("first")
    assert answer.header("Content-Type") == "application/json"
    head = get(mirror.metadata_url.rstrip("/") + slash, "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.header("Content-Length") == str(len(answer.body))


@pytest.mark.parametrize("slash", ["/", ""], ids=["with a slash", "without"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_image_carries_all_headers_of_the_contract(
    mirror: MirrorProcess, simulator: Simulator, method: str, slash: str
) -> None:
    answer = get(mirror.image_url.rstrip("/") + slash, method, X_Request_ID="from-the-client.1")
    sha256 = simulator.image_sha256("first")
    assert answer.status == 200
    assert answer.body == (simulator.read("first") if method == "GET" else b"")
    expected = {
        "Content-Length": str(SIZE),
        "Accept-Ranges": "bytes",
        "ETag": f'"{sha256}"',
        "Last-Modified": "Mon, 30 Jun 2025 12:34:56 GMT",
        "Content-Disposition": 'attachment; filename="datarobot-portable-prediction-api-first.tar.gz"',
        "Content-Type": "application/octet-stream",
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:",
        "Cache-Status": "pps-mirror; hit",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, no-cache",
        "Vary": "Authorization",
        "X-Request-ID": "from-the-client.1",
    }
    assert {name: answer.header(name) for name in expected} == expected
    assert not answer.header("Content-Encoding")


@pytest.mark.parametrize(
    ("wanted", "status", "part", "content_range"),
    [
        ("bytes=0-9", 206, slice(0, 10), f"bytes 0-9/{SIZE}"),
        ("bytes=299990-", 206, slice(299_990, SIZE), f"bytes 299990-299999/{SIZE}"),
        ("bytes=-5", 206, slice(SIZE - 5, SIZE), f"bytes 299995-299999/{SIZE}"),
        ("bytes=100-999999999", 206, slice(100, SIZE), f"bytes 100-299999/{SIZE}"),
        ("bytes=0-1,4-5", 200, slice(0, SIZE), ""),
        ("nonsense", 200, slice(0, SIZE), ""),
    ],
)
def test_ranges(
    mirror: MirrorProcess, simulator: Simulator, wanted: str, status: int, part: slice, content_range: str
) -> None:
    answer = get(mirror.image_url, Range=wanted)
    assert (answer.status, answer.header("Content-Range")) == (status, content_range)
    assert answer.body == simulator.read("first")[part]
    assert answer.header("Content-Length") == str(len(answer.body))


def test_a_range_beyond_the_end_is_416(mirror: MirrorProcess) -> None:
    answer = get(mirror.image_url, Range=f"bytes={SIZE}-")
    assert (answer.status, answer.header("Content-Range")) == (416, f"bytes */{SIZE}")
    assert answer.header("Content-Type") == "application/json"
    assert json.loads(answer.body)["message"]


def test_conditionals(mirror: MirrorProcess, simulator: Simulator) -> None:
    tag = f'"{simulator.image_sha256("first")}"'
    unchanged = get(mirror.image_url, If_None_Match=tag)
    assert (unchanged.status, unchanged.body, unchanged.header("ETag")) == (304, b"", tag)
    assert get(mirror.image_url, If_None_Match='"x"').status == 200
    assert get(mirror.image_url, If_Match='"x"').status == 412
    assert get(mirror.image_url, If_Modified_Since="Mon, 30 Jun 2025 12:34:56 GMT").status == 304
    assert get(mirror.image_url, If_Unmodified_Since="Mon, 30 Jun 2025 12:34:55 GMT").status == 412
    assert get(mirror.image_url, Range="bytes=0-0", If_Range=tag).status == 206
    assert get(mirror.image_url, Range="bytes=0-0", If_Range='"x"').status == 200


def test_images_by_hash_whichever_is_current(mirror: MirrorProcess, simulator: Simulator) -> None:
    for name in ("first", "second"):
        url = f"{mirror.url}/mirror/v1/images/{simulator.image_sha256(name)}"
        for slash in ("", "/"):
            answer = get(url + slash)
            assert (answer.status, answer.body) == (200, simulator.read(name))
            assert answer.header("Cache-Status") == "pps-mirror; hit"
            assert get(f"{url}/metadata{slash}").body == simulator.metadata_body(name)
        assert get(url, Range="bytes=5-9").body == simulator.read(name, 5, 10)
        assert get(url, "HEAD").header("Content-Length") == str(SIZE)
    assert get(f"{mirror.url}/mirror/v1/images/{'0' * 64}/").status == 404
    assert get(f"{mirror.url}/mirror/v1/images/{'0' * 64}/metadata/").status == 404


def test_the_list_has_the_newest_first_with_what_the_mirror_knows(mirror: MirrorProcess, simulator: Simulator) -> None:
    get(mirror.image_url)
    answer = get(f"{mirror.url}/mirror/v1/images/")
    assert answer.header("Content-Type") == "application/json"
    second, first = json.loads(answer.body)
    for entry, name, current in ((second, "second", False), (first, "first", True)):
        assert simulator.metadata(name).items() <= entry.items()
        assert (entry["pinned"], entry["current"]) == (False, current)
        assert datetime.fromisoformat(entry["storedAt"]).tzinfo
        assert entry["lastServedAt"] is None or datetime.fromisoformat(entry["lastServedAt"]).tzinfo
    assert first["lastServedAt"]


def test_what_passthrough_lists_is_forwarded_and_never_cached(mirror: MirrorProcess, simulator: Simulator) -> None:
    simulator.reset_log()
    for url in ("/api/v2/version/", "/api/v2/version", "/api/v2/version/?x=%41"):
        answer = get(mirror.url + url)
        assert (answer.status, "versionString" in json.loads(answer.body)) == (200, True)
    assert len(simulator.log("version")) == 3


def test_the_cache_status_of_metadata(mirror: MirrorProcess, simulator: Simulator) -> None:
    assert get(mirror.metadata_url).header("Cache-Status") == "pps-mirror; fwd=stale"  # metadata_ttl = 0s
    simulator.fault(Fault("metadata", status=500, times=None))
    assert get(mirror.metadata_url).header("Cache-Status") == "pps-mirror; hit; detail=stale"
    assert get(mirror.image_url).header("Cache-Status") == "pps-mirror; hit; detail=stale"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_another_method_is_405_with_allow(mirror: MirrorProcess, method: str) -> None:
    answer = get(mirror.image_url, method)
    assert (answer.status, answer.header("Allow")) == (405, "GET, HEAD")
    assert json.loads(answer.body)["message"]


@pytest.mark.parametrize(
    "path", ["/", "/api/v2/", "/api/v2/users/", METADATA + "x/", "/mirror/v1/", "/mirror/v1/images/..%2f/"]
)
def test_anything_else_is_404_as_the_official_client_reads_it(mirror: MirrorProcess, path: str) -> None:
    answer = get(mirror.url + path)
    assert (answer.status, answer.header("Content-Type")) == (404, "application/json")
    assert json.loads(answer.body)["message"].isascii()


def test_every_answer_carries_a_request_id_that_is_in_the_log_and_at_upstream(
    mirror: MirrorProcess, simulator: Simulator
) -> None:
    simulator.reset_log()
    given = get(mirror.metadata_url, X_Request_ID="abc-123", X_DataRobot_Api_Consumer_Trace="the trace")
    assert given.header("X-Request-ID") == "abc-123"
    eventually(lambda: "request abc-123" in mirror.log(), what="the line of the request")
    (asked,) = simulator.log("metadata")
    assert (asked.request_id, asked.trace) == ("abc-123", "the trace")
    for insane in ("a b", "x" * 200, "é".encode().decode("latin-1"), '"'):
        made = get(mirror.metadata_url, X_Request_ID=insane).header("X-Request-ID")
        assert re.fullmatch(r"[0-9a-f]{32}", made)
    assert re.fullmatch(r"[0-9a-f]{32}", get(mirror.url + "/nothing").header("X-Request-ID"))


def test_upstreams_404_passes_through_whatever_is_stored(mirror: MirrorProcess, simulator: Simulator) -> None:
    simulator.roll_over("none")
    try:
        for url in (mirror.metadata_url, mirror.image_url):
            assert get(url).status == 404
    finally:
        simulator.roll_over("first")


def test_the_store_is_laid_out_as_documented(mirror: MirrorProcess, simulator: Simulator) -> None:
    for name in ("first", "second"):
        directory = mirror.store / "images" / simulator.image_sha256(name)
        assert (directory / "image").read_bytes() == simulator.read(name)
        assert (directory / "metadata.json").read_bytes() == simulator.metadata_body(name)
    current = json.loads((mirror.store / "current.json").read_text())
    assert current["metadata"].encode() == simulator.metadata_body("first")
    assert datetime.fromisoformat(current["fetchedAt"]).tzinfo
    assert (mirror.store / "access.json").stat().st_mode & 0o777 == 0o600


def test_a_directory_laid_out_by_hand_is_served_without_upstream(
    tmp_path: Path, mirror: MirrorProcess, simulator: Simulator
) -> None:
    directory = tmp_path / "store" / "images" / simulator.image_sha256("second")
    directory.mkdir(parents=True)
    (directory / "image").write_bytes(simulator.read("second"))
    (directory / "metadata.json").write_bytes(simulator.metadata_body("second"))
    sections = {"upstream": {"url": ""}, "auth": {"mode": "open"}}
    with ForkedMirror(tmp_path, "", sections) as alone, Download(alone.image_url, headers={}) as download:
        assert download.read_all().body == simulator.read("second")
        assert json.loads(get(f"{alone.url}/mirror/v1/images/").body)[0]["current"]


@pytest.mark.parametrize(
    ("note", "current"),
    [
        ('{"metadata": %s, "fetchedAt": "2026-01-02T03:04:05+00:00"}', "first"),
        ('{"metadata": %s, "fetchedAt": "2026-01-02T03:04:05"}', "first"),
        ('{"metadata": %s, "fetchedAt": "yesterday"}', "second"),
        ("nonsense %s", "second"),
    ],
)
def test_a_current_json_laid_out_by_hand_says_what_is_current_and_a_broken_one_is_left_alone(
    tmp_path: Path, simulator: Simulator, note: str, current: str
) -> None:
    for name in ("first", "second"):
        directory = tmp_path / "store" / "images" / simulator.image_sha256(name)
        directory.mkdir(parents=True)
        (directory / "image").write_bytes(simulator.read(name))
        (directory / "metadata.json").write_bytes(simulator.metadata_body(name))
    (tmp_path / "store" / "current.json").write_text(note % json.dumps(simulator.metadata_body("first").decode()))
    with ForkedMirror(tmp_path, "", {"upstream": {"url": ""}, "auth": {"mode": "open"}}) as alone:
        assert get(alone.metadata_url).body == simulator.metadata_body(current)
        assert get(alone.image_url).body == simulator.read(current)
