"""The `datarobot` package with the mirror as its endpoint: it cannot tell it from the real thing."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from datarobot.client import Client
from datarobot.errors import ClientError, ServerError
from datarobot.rest import RESTClientObject

from mirror.simulator.client import TOKEN, Fault, Simulator, fingerprint
from tests.support.fixtures import SIZE, Canary, FreshMirror
from tests.support.processes import MirrorProcess, eventually
from tests.support.tokens import write_tokens

IMAGE = "mlops/portablePredictionServerImage/"
METADATA = IMAGE + "metadata/"
HOLDBACK = 64 << 10

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using an empty collection for 'allowed_methods':FutureWarning"),
    pytest.mark.filterwarnings("ignore:Client version is ahead of server version:UserWarning"),
]


@pytest.fixture(autouse=True)
def _no_other_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATAROBOT_API_TOKEN", "DATAROBOT_ENDPOINT", "DATAROBOT_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")


def connect(mirror: MirrorProcess, token: str = TOKEN, **options: Any) -> RESTClientObject:
    """Do what the package's users do, but for the endpoint."""
    return Client(token=token, endpoint=f"{mirror.url}/api/v2", **options)


@pytest.fixture
def client(mirror: MirrorProcess) -> Iterator[RESTClientObject]:
    with closing(connect(mirror)) as client:
        yield client


def test_creating_a_client_asks_upstream_for_its_version(mirror: MirrorProcess, simulator: Simulator) -> None:
    with closing(connect(mirror)):
        (asked,) = simulator.log("version")
    assert (asked.status, asked.authorization) == (200, fingerprint(f"Token {TOKEN}"))


def test_metadata_is_upstreams(client: RESTClientObject, simulator: Simulator) -> None:
    answer = client.get(METADATA)
    assert answer.json() == simulator.metadata("first")
    assert answer.content == simulator.metadata_body("first")


def test_a_streamed_download_is_the_image_cold_and_hot(fresh_mirror: FreshMirror, simulator: Simulator) -> None:
    with closing(connect(fresh_mirror())) as client:
        for cache_status in ("pps-mirror; fwd=miss; stored", "pps-mirror; hit"):
            with client.get(IMAGE, stream=True) as answer:
                assert b"".join(answer.iter_content(1 << 16)) == simulator.read("first")
                assert answer.headers["Cache-Status"] == cache_status
    assert simulator.counters().image_requests == 1


def test_a_download_in_one_piece_is_the_image(client: RESTClientObject, simulator: Simulator) -> None:
    assert client.get(IMAGE).content == simulator.read("first")


@pytest.mark.parametrize("scheme", ["Token", "Bearer"])
def test_both_schemes_are_understood_and_reach_upstream_as_they_are(
    fresh_mirror: FreshMirror, simulator: Simulator, scheme: str
) -> None:
    with closing(connect(fresh_mirror(), token_type=scheme)) as client, client.get(IMAGE, stream=True) as answer:
        assert b"".join(answer.iter_content(1 << 16)) == simulator.read("first")
    api = [asked for asked in simulator.log() if asked.listener == "api"]
    assert [asked.place for asked in api] == ["version", "metadata", "image"]
    assert {asked.authorization for asked in api} == {fingerprint(f"{scheme} {TOKEN}")}


def test_the_clients_trace_is_passed_on_to_upstream(fresh_mirror: FreshMirror, simulator: Simulator) -> None:
    with closing(connect(fresh_mirror(), trace_context="an-accelerator")) as client:
        simulator.reset_log()
        client.get("version/")
        client.get(IMAGE)
    traces = {asked.place: asked.trace or "" for asked in simulator.log() if asked.listener == "api"}
    assert {place: "an-accelerator" in trace for place, trace in traces.items()} == {
        "version": True,
        "metadata": True,
        "image": True,
    }
    assert all(asked.trace is None for asked in simulator.log("store"))


def test_no_client_is_created_with_a_bad_token(mirror: MirrorProcess, canary: Canary) -> None:
    canary.hide("a-token-that-is-none")
    with pytest.raises(ClientError, match="Unable to authenticate") as refused:
        connect(mirror, "a-token-that-is-none")
    assert isinstance(refused.value.__cause__, ClientError)
    assert refused.value.__cause__.json == {"message": "Invalid Authorization header."}


@pytest.mark.parametrize("what", [METADATA, IMAGE])
def test_a_client_whose_token_was_revoked_is_told_what_upstream_says(
    fresh_mirror: FreshMirror, simulator: Simulator, what: str
) -> None:
    with closing(connect(fresh_mirror())) as client:
        simulator.set_tokens([])
        with pytest.raises(ClientError) as refused:
            client.get(what, stream=True)
    assert (refused.value.status_code, refused.value.json) == (401, {"message": "Invalid Authorization header."})


@pytest.mark.parametrize("what", [METADATA, IMAGE])
def test_a_client_whose_token_is_forbidden_shows_upstreams_message(
    fresh_mirror: FreshMirror, simulator: Simulator, what: str
) -> None:
    with closing(connect(fresh_mirror())) as client:
        simulator.set_tokens([], forbidden=[TOKEN])
        with pytest.raises(ClientError, match="You do not have permission to perform this action"):
            client.get(what, stream=True)


def test_it_shows_the_mirrors_own_message_and_the_id_that_is_in_the_log(
    fresh_mirror: FreshMirror, simulator: Simulator
) -> None:
    mirror = fresh_mirror()
    simulator.fault(Fault("metadata", omit=("hash",), times=None))
    with closing(connect(mirror, max_retries=0)) as client:
        with pytest.raises(ServerError, match="field 'hash' is missing") as failed:
            client.get(IMAGE, stream=True)
        said, _, request_id = str(failed.value).partition(" request id ")
        assert said.startswith("502 server error: {'message': ")  # read as JSON, not shown as text
        eventually(lambda: f"request {request_id}" in mirror.log(), what="the line of the request")
        with pytest.raises(ClientError, match="the mirror serves"):
            client.get("users/")


def test_it_comes_back_after_a_503_as_it_is_told(fresh_mirror: FreshMirror, simulator: Simulator) -> None:
    with closing(connect(fresh_mirror())) as client:
        simulator.fault(Fault("metadata", status=503, headers={"Retry-After": "1"}, times=2))
        assert client.get(IMAGE).content == simulator.read("first")
    assert simulator.counters().metadata_requests == 3


@pytest.mark.parametrize("at", [10, SIZE - 1], ids=["near the start", "the last one"])
def test_a_wrong_byte_raises_in_the_client_instead_of_ending_cleanly(
    fresh_mirror: FreshMirror, simulator: Simulator, at: int
) -> None:
    with closing(connect(fresh_mirror())) as client:
        simulator.fault(Fault("store", corrupt_at=at))
        received = 0
        with (
            pytest.raises(OSError, match="ConnectionResetError") as broken,
            client.get(IMAGE, stream=True) as answer,
        ):
            for piece in answer.iter_content(1 << 14):
                received += len(piece)
        assert type(broken.value).__module__ == "requests.exceptions"
        assert received <= SIZE - HOLDBACK
        assert client.get(IMAGE).content == simulator.read("first")


def test_a_token_of_the_sites_own_list_is_a_token_to_it(
    tmp_path: Path, fresh_mirror: FreshMirror, simulator: Simulator, canary: Canary
) -> None:
    canary.hide(local := "a-token-of-this-site")
    file = write_tokens(tmp_path / "tokens", ci=local)
    sections = {"auth": {"mode": "tokens", "tokens_file": str(file)}}
    mirror = fresh_mirror(sections, environ={"DATAROBOT_API_TOKEN": TOKEN})
    with closing(connect(mirror, local)) as client:
        assert client.get(METADATA).json() == simulator.metadata("first")
        with client.get(IMAGE, stream=True) as answer:
            assert b"".join(answer.iter_content(1 << 16)) == simulator.read("first")
    with pytest.raises(ClientError):
        connect(mirror, TOKEN)
    assert fingerprint(f"Token {local}") not in {asked.authorization for asked in simulator.log()}
