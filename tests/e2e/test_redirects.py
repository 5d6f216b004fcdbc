"""Any road to the bytes, and which hops are never taken: contract section 4, guarantee 6."""

import gzip
import json
import socket
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import pytest
from aiohttp.connector import AddrInfoType
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from mirror.model.errors import BadUpstream
from mirror.simulator.client import TOKEN, Fault, ImageSpec, Simulator, fingerprint
from mirror.upstream.redirects import ForbiddenAddress, RedirectPolicy
from tests.support.certificates import certificate
from tests.support.downloads import AUTHORIZED
from tests.support.fixtures import SIZE, Ask, Canary, FreshMirror
from tests.support.forked import ForkedMirror
from tests.support.processes import IMAGE, MirrorProcess
from tests.support.s3.fixtures import TestBucket

AT_ONCE = 5.0
"""Seconds: less than any timeout of the mirror's, more than a slow machine needs."""

ELSEWHERE = ["*.amazonaws.com", "storage.googleapis.com"]


@pytest.fixture(scope="module")
def cold_mirror(tmp_path_factory: pytest.TempPathFactory, shared_simulator: Simulator) -> Iterator[MirrorProcess]:
    """A mirror that stays empty, because each test wants a hop refused."""
    with ForkedMirror(tmp_path_factory.mktemp("cold"), shared_simulator.api_url) as mirror:
        yield mirror


def assert_credential_stayed_home(simulator: Simulator) -> None:
    """Only the API's own routes saw the client's credential; no request that a redirect led to carried any."""
    for asked in simulator.log():
        at_home = asked.place in {"version", "metadata", "image"}
        assert asked.authorization == (fingerprint(f"Bearer {TOKEN}") if at_home else None), asked


class RefuseAtOnce(Protocol):
    """Lets upstream redirect to `location`: the message of the 502, which came without a second try."""

    def __call__(self, mirror: MirrorProcess, simulator: Simulator, location: str) -> str: ...


@pytest.fixture
def refused_at_once(canary: Canary) -> RefuseAtOnce:
    def ask(mirror: MirrorProcess, simulator: Simulator, location: str) -> str:
        simulator.reset_log()
        simulator.fault(Fault("image", redirect=location, times=None))
        with closing(HTTPConnection("127.0.0.1", mirror.port, timeout=AT_ONCE)) as connection:
            connection.request("GET", IMAGE, headers=AUTHORIZED)
            answer = connection.getresponse()
            body = answer.read()
        canary.hear(bytes(answer.headers) + body)
        assert (answer.status, answer.headers["Content-Type"]) == (502, "application/json")
        assert simulator.counters().image_requests == 1
        assert not list((mirror.store / "images").iterdir())
        assert_credential_stayed_home(simulator)
        message = json.loads(body)["message"]
        assert isinstance(message, str)
        assert "?" not in message
        return message

    return ask


ROADS = {
    "302 to another host": [],
    "301": [Fault("image", status=301, times=None)],
    "303": [Fault("image", status=303, times=None)],
    "307": [Fault("image", status=307, times=None)],
    "308": [Fault("image", status=308, times=None)],
    "200 directly": [Fault("image", redirect="direct", times=None)],
    "200 directly, chunked": [Fault("image", redirect="direct", times=None), Fault("store", chunked=True, times=None)],
    "a path of upstream's own origin": [Fault("image", redirect="origin", times=None)],
    "a relative Location": [Fault("image", redirect="relative", times=None)],
    "a chain": [Fault("image", hops=2, times=None)],
    "as many hops as are allowed": [Fault("image", hops=4, times=None)],
    "chunked": [Fault("store", chunked=True, times=None)],
}


@pytest.mark.parametrize("faults", ROADS.values(), ids=list(ROADS))
def test_any_road_to_the_bytes_is_taken_without_the_clients_credential(
    fresh_mirror: FreshMirror, simulator: Simulator, ask: Ask, faults: list[Fault]
) -> None:
    mirror = fresh_mirror()
    simulator.fault(*faults)
    for cache_status in ("pps-mirror; fwd=miss; stored", "pps-mirror; hit"):
        answer = ask(mirror.image_url)
        assert (answer.status, answer.body) == (200, simulator.read("first"))
        assert answer.header("Cache-Status") == cache_status
    assert simulator.counters().image_requests == 1
    assert_credential_stayed_home(simulator)


@pytest.mark.parametrize("redirect", ["store", "direct"])
def test_content_encoding_is_not_decoded_nor_passed_on(
    tmp_path: Path, fresh_mirror: FreshMirror, ask: Ask, redirect: str
) -> None:
    compressed = tmp_path / "image.tar.gz"
    compressed.write_bytes(gzip.compress(b"what a decoder would make of it" * 100_000, 1))
    with Simulator.start([ImageSpec("compressed", path=str(compressed))]) as upstream:
        mirror = fresh_mirror(upstream=upstream)
        upstream.fault(
            Fault("image", redirect=redirect, times=None),
            Fault("store", headers={"Content-Encoding": "gzip"}, times=None),
        )
        for _ in ("cold", "hot"):
            answer = ask(mirror.image_url, Accept_Encoding="gzip")
            assert answer.body == compressed.read_bytes()
            assert answer.header("Content-Encoding") == ""
        assert {asked.accept_encoding for asked in upstream.log()} == {"identity"}


def test_a_loop_is_a_502_at_once(
    cold_mirror: MirrorProcess, simulator: Simulator, refused_at_once: RefuseAtOnce
) -> None:
    assert "more than 5 times" in refused_at_once(cold_mirror, simulator, "loop")
    assert len(simulator.log("loop")) == 5


def test_more_than_five_hops_are_a_502_at_once(
    cold_mirror: MirrorProcess, simulator: Simulator, refused_at_once: RefuseAtOnce
) -> None:
    simulator.fault(Fault("image", hops=5, times=None))
    assert "more than 5 times" in refused_at_once(cold_mirror, simulator, "store")
    assert simulator.log("store") == []


def test_a_host_that_redirect_hosts_does_not_list_is_named_in_the_502_with_the_key_to_set(
    fresh_mirror: FreshMirror, simulator: Simulator, refused_at_once: RefuseAtOnce
) -> None:
    mirror = fresh_mirror({"upstream": {"redirect_hosts": ELSEWHERE}})
    for location in ("store", "https://s3.amazonaws.com.evil.example/x?X-Amz-Signature=1", "http://amazonaws.com/x"):
        simulator.clear_faults()
        message = refused_at_once(mirror, simulator, location)
        host = "127.0.0.1" if location == "store" else URL(location).host
        assert f"redirects to {host}," in message
        assert "upstream.redirect_hosts" in message
    assert simulator.log("store") == []


@pytest.mark.parametrize(
    ("hosts", "redirect"),
    [(["127.0.0.1"], "store"), ([*ELSEWHERE, "127.0.0.1"], "store"), (ELSEWHERE, "origin"), (ELSEWHERE, "relative")],
    ids=["listed", "listed among others", "upstream's own origin", "relative"],
)
def test_what_redirect_hosts_lists_and_upstreams_own_origin_are_followed(
    fresh_mirror: FreshMirror, simulator: Simulator, ask: Ask, hosts: list[str], redirect: str
) -> None:
    mirror = fresh_mirror({"upstream": {"redirect_hosts": hosts}})
    simulator.fault(Fault("image", redirect=redirect, times=None))
    assert ask(mirror.image_url).body == simulator.read("first")


UNSAFE = {
    "user info": ("http://somebody:a-password@127.0.0.1:9/x?X-Amz-Signature=1", "user info"),
    "a file": ("file://localhost/etc/passwd", "file URL"),
    "a file without a host": ("file:///etc/passwd", "file URL"),
    "gopher": ("gopher://127.0.0.1:9/x", "gopher URL"),
    "a link-local address": ("http://169.254.169.254/latest/meta-data/?X-Amz-Signature=1", "169.254.169.254"),
    "the same, written in hex": ("http://0xa9fea9fe/latest/meta-data/", "link-local"),
    "the same, mapped into IPv6": ("http://[::ffff:169.254.169.254]/latest/meta-data/", "link-local"),
    "a link-local IPv6 address": ("http://[fe80::1]/x", "link-local"),
    "a port that is none": ("http://127.0.0.1:99999/x", "not a URL"),
    "an address that is none": ("http://[not-an-address/x", "not a URL"),
    "a name with an empty label": ("http://store..example/x?X-Amz-Signature=1", ""),
    "a name with a label that is too long": (f"http://{'a' * 64}.example/x?X-Amz-Signature=1", ""),
    "a number for an address": ("http://2852039166/latest/meta-data/", ""),
}
"""Where upstream redirects to, and what the message says about it."""


@pytest.mark.parametrize(("location", "said"), UNSAFE.values(), ids=list(UNSAFE))
def test_what_is_unsafe_or_makes_no_sense_is_a_502_at_once_without_connecting(
    cold_mirror: MirrorProcess, simulator: Simulator, refused_at_once: RefuseAtOnce, location: str, said: str
) -> None:
    message = refused_at_once(cold_mirror, simulator, location)
    assert said in message
    assert "a-password" not in message


def test_a_redirect_without_location_is_a_502(
    cold_mirror: MirrorProcess, simulator: Simulator, refused_at_once: RefuseAtOnce
) -> None:
    simulator.fault(Fault("image", headers={"Location": None}, times=None))
    refused_at_once(cold_mirror, simulator, "store")


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of the site's own and its key."""
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def tls_simulator(pem: tuple[Path, Path]) -> Iterator[Simulator]:
    cert, key = pem
    with Simulator.start([ImageSpec("first", size=SIZE)], tls_cert=str(cert), tls_key=str(key)) as simulator:
        yield simulator


@pytest.fixture
def trusting_mirror(fresh_mirror: FreshMirror, tls_simulator: Simulator, pem: tuple[Path, Path]) -> MirrorProcess:
    return fresh_mirror({"upstream": {"ca_file": str(pem[0])}}, upstream=tls_simulator)


def test_with_ca_file_the_image_comes_over_https_and_the_credential_stays_home(
    trusting_mirror: MirrorProcess, tls_simulator: Simulator, ask: Ask
) -> None:
    assert tls_simulator.store_url.startswith("https:")
    assert ask(trusting_mirror.image_url).body == tls_simulator.read("first")
    assert_credential_stayed_home(tls_simulator)


def test_without_ca_file_upstream_is_not_trusted_and_the_502_names_the_key(
    fresh_mirror: FreshMirror, tls_simulator: Simulator, ask: Ask
) -> None:
    answer = ask(fresh_mirror(upstream=tls_simulator).image_url)
    assert answer.status == 502
    assert "upstream.ca_file" in json.loads(answer.body)["message"]
    assert tls_simulator.log() == []


def test_a_redirect_from_https_to_http_is_refused(
    trusting_mirror: MirrorProcess, tls_simulator: Simulator, simulator: Simulator, refused_at_once: RefuseAtOnce
) -> None:
    plain = f"{simulator.store_url}/objects/first/x?X-Amz-Signature=1"
    message = refused_at_once(trusting_mirror, tls_simulator, plain)
    assert "from https to plain http at 127.0.0.1" in message
    assert simulator.log() == []


def address(host: str) -> AddrInfoType:
    """Make what a resolver answers for some name."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sockaddr: tuple[str, int] | tuple[str, int, int, int] = (host, 443, 0, 0) if ":" in host else (host, 443)
    return family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", sockaddr


LOOPBACK = ["127.0.0.1", "127.1.2.3", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"]
LINK_LOCAL = ["169.254.169.254", "169.254.0.1", "fe80::1", "::ffff:169.254.169.254"]


@pytest.mark.parametrize("upstream", ["192.0.2.7", "2001:db8::7"])
@pytest.mark.parametrize("host", LOOPBACK)
def test_a_name_that_leads_to_loopback_is_refused_unless_upstream_is_there(upstream: str, host: str) -> None:
    policy = RedirectPolicy(URL("https://app.example.com"), [])
    policy.upstream_socket(address(upstream)).close()
    assert policy.next_hop(URL("https://app.example.com/x"), "https://store.example.com/y", 1)  # the name says nothing
    with pytest.raises(ForbiddenAddress):
        policy.redirect_socket(address(host))
    policy.upstream_socket(address("127.0.0.1")).close()
    policy.redirect_socket(address(host)).close()


@pytest.mark.parametrize("hosts", [[], ["*.example.com"], ["*"]], ids=["any host", "some hosts", "all hosts"])
@pytest.mark.parametrize("upstream", ["192.0.2.7", "127.0.0.1"])
@pytest.mark.parametrize("host", LINK_LOCAL)
def test_a_name_that_leads_to_a_link_local_address_is_refused_wherever_upstream_is(
    upstream: str, host: str, hosts: list[str]
) -> None:
    policy = RedirectPolicy(URL("https://app.example.com"), hosts)
    policy.upstream_socket(address(upstream)).close()
    with pytest.raises(ForbiddenAddress):
        policy.redirect_socket(address(host))


def test_the_url_of_a_hop_is_kept_to_the_letter() -> None:
    policy = RedirectPolicy(URL("https://app.example.com"), [])
    signed = "https://store.example.com/a%2Fb%20c/%7Ed;e=f?X-Amz-Credential=A%2F2%2Fs3&sig=a+b%2B%3D&empty="
    assert str(policy.next_hop(URL("https://app.example.com/x"), signed, 1)) == signed
    with pytest.raises(BadUpstream):
        policy.next_hop(URL("https://app.example.com/x"), signed, 6)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=60))
def test_only_what_no_url_can_have_is_encoded_and_the_rest_kept_to_the_letter(value: str) -> None:
    policy = RedirectPolicy(URL("https://app.example.com"), [])
    location = f"https://store.example.com/a%2fb[c]+d%C3%a4?sig=a+b%2F{value.replace('#', '')}"
    wanted = "".join(char if "!" <= char <= "~" else quote(char, safe="") for char in location)
    assert str(policy.next_hop(URL("https://app.example.com/x"), location, 1)) == wanted


def test_octets_that_are_no_utf_8_are_encoded_one_by_one_and_a_host_as_idna() -> None:
    policy = RedirectPolicy(URL("https://app.example.com"), [])
    header = "https://b\u00fccher.example/\u00e4?a=%2f".encode() + b"&b=\xff\xe4 "  # as aiohttp reads it:
    hop = policy.next_hop(URL("https://app.example.com/x"), header.decode("utf-8", "surrogateescape"), 1)
    assert str(hop) == "https://xn--bcher-kva.example/%C3%A4?a=%2f&b=%FF%E4%20"


def test_a_location_with_raw_blanks_and_letters_is_asked_for_as_curl_does(
    fresh_mirror: FreshMirror, simulator: Simulator, ask: Ask
) -> None:
    raw = f"{simulator.store_url}/objects/first/p p-\u00e4.tar.gz?a=%2f+b&c=[d]~&e=f g\u00fc"
    simulator.fault(Fault("image", redirect=raw, times=None))
    ask(fresh_mirror({"upstream": {"fill_retry": "1s"}}).image_url)
    sent = {asked.query for asked in simulator.log("store")}
    assert sent == {"a=%2f+b&c=[d]~&e=f%20g%C3%BC"}


def test_a_real_signature_survives_raw_blanks_and_letters(
    fresh_mirror: FreshMirror, simulator: Simulator, bucket: TestBucket, ask: Ask
) -> None:
    key = "a b/\u00e4 [1]+(c)/image.tar.gz"
    bucket.client.write(bucket.name, key, simulator.read("first"))
    named = {"Bucket": bucket.name, "Key": key, "ResponseContentDisposition": 'attachment; filename="\u00fc x.tar"'}
    signed = bucket.client.raw.generate_presigned_url("get_object", Params=named)
    raw = signed.replace("%20", " ").replace("%C3%A4", "\u00e4").replace("%C3%BC", "\u00fc")
    assert raw != signed
    simulator.fault(Fault("image", redirect=raw, times=None))
    answer = ask(fresh_mirror().image_url)
    assert (answer.status, answer.body) == (200, simulator.read("first"))


def test_an_expired_pre_signed_url_is_replaced_by_a_fresh_one(
    fresh_mirror: FreshMirror, simulator: Simulator, ask: Ask
) -> None:
    mirror = fresh_mirror()
    simulator.fault(Fault("image", expires_in=-1, times=2))
    assert ask(mirror.image_url).body == simulator.read("first")
    assert [asked.status for asked in simulator.log("store")] == [403, 403, 200]
    assert_credential_stayed_home(simulator)


def test_a_pre_signed_url_that_is_good_for_one_request_is_used_once(
    fresh_mirror: FreshMirror, simulator: Simulator, ask: Ask
) -> None:
    mirror = fresh_mirror()
    simulator.fault(Fault("image", uses=1, times=None), Fault("store", cut_after=1_000_000, times=2))
    assert ask(mirror.image_url).body == simulator.read("first")
    gets = simulator.log("store")
    assert [(asked.status, asked.range) for asked in gets] == [
        (200, None),
        (206, "bytes=1000000-"),
        (206, "bytes=2000000-"),
    ]
    assert len({asked.query for asked in gets}) == 3


@pytest.mark.parametrize(
    ("status", "told"), [(401, 502), (403, 502), (404, 502), (400, 502), (429, 503), (500, 503), (503, 503)]
)
def test_what_a_redirect_target_answers_is_never_passed_through(
    fresh_mirror: FreshMirror, simulator: Simulator, ask: Ask, status: int, told: int
) -> None:
    mirror = fresh_mirror({"upstream": {"fill_retry": "1s" if told == 503 else "1m"}})
    body = "<Error><Resource>/x?X-Amz-Signature=1</Resource></Error>"
    headers = {"WWW-Authenticate": "AWS4-HMAC-SHA256", "X-Amz-Request-Id": "1"}
    simulator.fault(Fault("store", status=status, body=body, headers=headers, times=None))
    answer = ask(mirror.image_url)
    assert (answer.status, answer.header("Content-Type")) == (told, "application/json")
    assert f"the redirect target 127.0.0.1 answered {status}" in json.loads(answer.body)["message"]
    assert answer.header("WWW-Authenticate") == answer.header("X-Amz-Request-Id") == ""
    simulator.clear_faults()
    assert ask(mirror.image_url).body == simulator.read("first")
