"""Toward upstream through a real proxy, and with a private authority: contract section 4, guarantee 6."""

import asyncio
import base64
import http.server
import json
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from yarl import URL

from mirror.config import Upstream
from mirror.model.errors import ConfigError
from mirror.simulator.client import TOKEN, Fault, ImageSpec, Simulator, fingerprint
from mirror.upstream.proxies import Proxies, excepted
from tests.support.certificates import certificate
from tests.support.commands import run_forked
from tests.support.downloads import Download
from tests.support.fixtures import SIZE, Ask, Canary
from tests.support.forked import ForkedMirror
from tests.support.processes import MirrorProcess, eventually, free_port
from tests.support.tinyproxy import TinyProxy

PASSWORD = "a-proxy-password-of-its-own"
USER = f"somebody:{PASSWORD}"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def shared_secure(authority: tuple[Path, Path]) -> Iterator[Simulator]:
    cert, key = map(str, authority)
    with Simulator.start([ImageSpec("first", size=SIZE)], tls_cert=cert, tls_key=key) as simulator:
        yield simulator


@pytest.fixture
def secure(shared_secure: Simulator) -> Iterator[Simulator]:
    """A DataRobot that speaks https, with a certificate of a private authority."""
    shared_secure.reset_log()
    yield shared_secure
    shared_secure.clear_faults()


@pytest.fixture(params=["http", "https"])
def upstream(request: pytest.FixtureRequest) -> Simulator:
    """DataRobot by either scheme."""
    simulator = request.getfixturevalue("simulator" if request.param == "http" else "secure")
    assert isinstance(simulator, Simulator)
    return simulator


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[TinyProxy]:
    with TinyProxy(tmp_path / "proxy") as proxy:
        yield proxy


@pytest.fixture
def guarded(tmp_path: Path, canary: Canary) -> Iterator[TinyProxy]:
    """A proxy that asks for a user and a password."""
    canary.hide(PASSWORD, base64.b64encode(USER.encode()).decode())
    with TinyProxy(tmp_path / "guarded", [f"BasicAuth {USER.replace(':', ' ')}"]) as proxy:
        yield proxy


Started = Callable[..., ForkedMirror]


@pytest.fixture
def started(tmp_path: Path, authority: tuple[Path, Path]) -> Iterator[Started]:
    """Starts the test's mirror, which trusts `authority`, with these variables and keys of the section `upstream`."""
    mirrors: list[ForkedMirror] = []

    def start(url: str, environ: Mapping[str, str] | None = None, **upstream: Any) -> ForkedMirror:
        sections = {"upstream": {"ca_file": str(authority[0]), **upstream}}
        mirrors.append(ForkedMirror(tmp_path / f"mirror-{len(mirrors)}", url, sections, environ))
        return mirrors[-1].start()

    yield start
    for mirror in mirrors:
        if mirror.alive():
            mirror.stop()


def place(url: str) -> str:
    return urlsplit(url).netloc


def assert_credential_stayed_home(simulator: Simulator) -> None:
    """The API's own routes saw the client's credential, and nothing that a redirect led to saw any."""
    assert simulator.log("store")
    for asked in simulator.log():
        assert asked.authorization == (None if asked.place == "store" else fingerprint(f"Bearer {TOKEN}")), asked


def message(answer: Any, status: int) -> str:
    assert (answer.status, answer.header("Content-Type")) == (status, "application/json"), answer.body
    text = json.loads(answer.body)["message"]
    assert isinstance(text, str)
    return text


# What goes through a proxy


def test_https_goes_through_tunnels_to_upstream_and_to_where_it_redirects(
    started: Started, secure: Simulator, proxy: TinyProxy, ask: Ask
) -> None:
    mirror = started(secure.api_url, proxy=proxy.url())
    assert ask(mirror.image_url).body == secure.read("first")
    assert set(proxy.asked()) == {("CONNECT", place(secure.api_url)), ("CONNECT", place(secure.store_url))}
    assert_credential_stayed_home(secure)
    assert f"upstream is asked through the proxy {proxy.url()} (upstream.proxy)" in mirror.settled.log()


def test_http_is_asked_of_the_proxy_by_whole_urls(
    started: Started, simulator: Simulator, proxy: TinyProxy, ask: Ask
) -> None:
    mirror = started(simulator.api_url, proxy=proxy.url())
    assert ask(mirror.image_url).body == simulator.read("first")
    asked = proxy.asked()
    assert [method for method, _ in asked] == ["GET"] * 3
    assert [place(url) for _, url in asked] == [place(simulator.api_url)] * 2 + [place(simulator.store_url)]
    assert_credential_stayed_home(simulator)


@pytest.mark.parametrize("name", ["{}_PROXY", "{}_proxy"], ids=["upper case", "lower case"])
@pytest.mark.parametrize("prefix", ["http://", ""], ids=["a URL", "host and port"])
def test_the_environment_names_the_proxy_of_each_scheme(
    started: Started, upstream: Simulator, proxy: TinyProxy, ask: Ask, name: str, prefix: str
) -> None:
    scheme, other = ("https", "http") if upstream.api_url.startswith("https:") else ("http", "https")
    if name.isupper():
        scheme, other = scheme.upper(), other.upper()
    dead = f"http://127.0.0.1:{free_port()}"
    environ = {name.format(scheme): f"{prefix}127.0.0.1:{proxy.port}", name.format(other): dead}
    mirror = started(upstream.api_url, environ)
    assert ask(mirror.image_url).body == upstream.read("first")
    assert len(proxy.asked()) >= 2


@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
def test_what_no_proxy_has_is_asked_directly(
    started: Started, upstream: Simulator, proxy: TinyProxy, ask: Ask, variable: str
) -> None:
    environ = {"HTTPS_PROXY": proxy.url(), "HTTP_PROXY": proxy.url(), variable: "example.com, 127.0.0.0/8"}
    mirror = started(upstream.api_url, environ)
    assert ask(mirror.image_url).body == upstream.read("first")
    assert proxy.asked() == []


def test_no_proxy_may_have_one_port_of_a_host(
    started: Started, upstream: Simulator, proxy: TinyProxy, ask: Ask
) -> None:
    environ = {"HTTPS_PROXY": proxy.url(), "HTTP_PROXY": proxy.url(), "NO_PROXY": place(upstream.api_url)}
    mirror = started(upstream.api_url, environ)
    assert ask(mirror.image_url).body == upstream.read("first")
    asked = {target if method == "CONNECT" else place(target) for method, target in proxy.asked()}
    assert asked == {place(upstream.store_url)}


def test_the_key_wins_over_the_whole_environment(
    started: Started, upstream: Simulator, proxy: TinyProxy, ask: Ask
) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    environ = {"HTTPS_PROXY": dead, "HTTP_PROXY": dead, "https_proxy": dead, "NO_PROXY": "*"}
    mirror = started(upstream.api_url, environ, proxy=proxy.url())
    assert ask(mirror.image_url).body == upstream.read("first")
    assert len(proxy.asked()) >= 2


@pytest.mark.parametrize("how", ["key", "environment"])
def test_user_and_password_go_to_the_proxy_and_are_seen_nowhere(
    started: Started, upstream: Simulator, guarded: TinyProxy, ask: Ask, how: str
) -> None:
    url = guarded.url(USER)
    mirror = (
        started(upstream.api_url, proxy=url)
        if how == "key"
        else started(upstream.api_url, {"HTTPS_PROXY": url, "HTTP_PROXY": url})
    )
    upstream.fault(Fault("store", cut_after=1_000_000))
    assert ask(mirror.image_url).body == upstream.read("first")
    assert_credential_stayed_home(upstream)
    assert len(guarded.asked()) >= 3


def test_in_the_tunnel_upstream_sees_nothing_that_is_for_the_proxy(
    started: Started, authority: tuple[Path, Path], guarded: TinyProxy, ask: Ask
) -> None:
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.extend(self.headers)
            self.send_error(401)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority)
        server.timeout = 60
        server.socket = context.wrap_socket(server.socket, server_side=True)
        with ThreadPoolExecutor(1) as pool:
            answered = pool.submit(server.handle_request)
            mirror = started(f"https://127.0.0.1:{server.server_port}", proxy=guarded.url(USER))
            assert ask(mirror.metadata_url).status == 401
            answered.result()
    assert "Authorization" in seen
    assert not [name for name in seen if name.lower().startswith("proxy")]


def test_a_netrc_file_is_not_read(
    started: Started, simulator: Simulator, proxy: TinyProxy, ask: Ask, tmp_path: Path
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password a-password-of-netrc\n")
    netrc.chmod(0o600)
    environ = {"HOME": str(tmp_path), "NETRC": str(netrc), "HTTP_PROXY": proxy.url()}
    assert ask(started(simulator.api_url, environ).metadata_url, token=None).status == 401
    assert [asked.authorization for asked in simulator.log()] == [None]


@contextmanager
def behind_tls(proxy: TinyProxy, authority: tuple[Path, Path]) -> Iterator[str]:
    """The URL of a proxy that takes TLS off and is otherwise that one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(65536):
                writer.write(piece)
                await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writers.extend((writer, inner_writer))
        await asyncio.gather(carry(reader, inner_writer), carry(inner_reader, writer))

    async def end() -> None:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)
        await asyncio.sleep(0.01)  # a transport is closed some turns of the loop later

    writers: list[asyncio.StreamWriter] = []
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(accept, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"https://{USER}@127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(end())
        loop.close()


def test_a_proxy_may_be_spoken_to_over_tls(
    started: Started, upstream: Simulator, guarded: TinyProxy, authority: tuple[Path, Path], tmp_path: Path, ask: Ask
) -> None:
    with behind_tls(guarded, authority) as url:
        assert ask(started(upstream.api_url, proxy=url).image_url).body == upstream.read("first")
        assert len(guarded.asked()) >= 2
        other, _ = certificate(tmp_path / "other")
        said = message(ask(started(upstream.api_url, proxy=url, ca_file=str(other)).image_url), 503)
    assert said == (
        "the proxy (upstream.proxy) cannot be reached: its certificate is not trusted; see upstream.ca_file"
    )


# A proxy that does not do it


def test_a_proxy_that_is_down_is_named_by_its_key_and_asked_again_when_it_is_back(
    started: Started, upstream: Simulator, guarded: TinyProxy, ask: Ask
) -> None:
    guarded.stop()
    mirror = started(upstream.api_url, proxy=guarded.url(USER))
    answer = ask(mirror.image_url)
    assert message(answer, 503) == "the proxy (upstream.proxy) cannot be reached: connection refused"
    assert answer.header("Retry-After")
    guarded.start()
    assert ask(mirror.image_url).body == upstream.read("first")


def test_a_fill_goes_on_when_the_proxy_is_back(started: Started, upstream: Simulator, proxy: TinyProxy) -> None:
    upstream.fault(Fault("store", hang_after=2_000_000))
    mirror = started(upstream.api_url, proxy=proxy.url())
    with Download(mirror.image_url) as client:
        client.read(1_000_000)  # what has not come through the proxy yet is lost with it
        upstream.wait_held()
        proxy.stop()
        eventually(lambda: "the proxy (upstream.proxy) cannot be reached" in mirror.log(), what="a retry")
        proxy.start()
        assert (client.read_all().ended, client.body) == ("complete", upstream.read("first"))
    first, second = upstream.log("store")
    assert first.range is None
    assert second.range is not None
    assert second.range.startswith("bytes=")


def test_a_wrong_password_is_a_502_that_names_the_key(
    started: Started, secure: Simulator, guarded: TinyProxy, ask: Ask, canary: Canary
) -> None:
    canary.hide("not-the-proxys-password")
    mirror = started(secure.api_url, proxy=guarded.url("somebody:not-the-proxys-password"))
    said = message(ask(mirror.image_url), 502)
    assert said.startswith("the proxy (upstream.proxy) answered 401 when asked for 127.0.0.1: it wants a user and")
    assert secure.log() == []


def test_a_missing_password_is_a_502_that_says_so(
    started: Started, upstream: Simulator, guarded: TinyProxy, ask: Ask
) -> None:
    variable = f"{urlsplit(upstream.api_url).scheme}_proxy"
    mirror = started(upstream.api_url, {variable: guarded.url()})
    said = message(ask(mirror.image_url), 502)
    assert said.startswith(
        f"the proxy ({variable}) answered 407 when asked for 127.0.0.1: it wants a user and password"
    )
    assert upstream.log() == []


def test_a_proxy_that_refuses_a_fill_ends_it_soon(
    started: Started, upstream: Simulator, proxy: TinyProxy, ask: Ask
) -> None:
    mirror = started(upstream.api_url, proxy=proxy.url(), metadata_ttl="1h")
    assert ask(mirror.metadata_url).status == 200
    proxy.stop()
    proxy.configure(["BasicAuth somebody another-password"])
    proxy.start()
    said = message(ask(mirror.image_url), 502)
    assert said.startswith("upstream's image cannot be had: the proxy (upstream.proxy) answered 407 ")


def test_a_tunnel_that_the_proxy_does_not_allow_is_a_502_that_says_so(
    started: Started, secure: Simulator, tmp_path: Path, ask: Ask
) -> None:
    with TinyProxy(tmp_path / "strict", ["ConnectPort 443"]) as strict:
        said = message(ask(started(secure.api_url, proxy=strict.url()).image_url), 502)
    assert said == "the proxy (upstream.proxy) answered 403 when asked for 127.0.0.1: it has to allow that"


def test_a_proxy_that_never_answers_is_given_up_after_connect_timeout(
    started: Started, secure: Simulator, ask: Ask
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        mirror = started(secure.api_url, proxy=url, connect_timeout="1s")
        said = message(ask(mirror.image_url), 503)
    assert said == "the proxy (upstream.proxy) has no connection to 127.0.0.1 in time"


# Where a proxy must not be sent


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "0xa9fea9fe", "2852039166", "[::ffff:169.254.169.254]", "[fe80::1]"]
)
def test_no_proxy_is_asked_for_a_link_local_address(
    started: Started, upstream: Simulator, proxy: TinyProxy, ask: Ask, host: str
) -> None:
    mirror = started(upstream.api_url, proxy=proxy.url())
    scheme = urlsplit(upstream.api_url).scheme
    upstream.fault(Fault("image", redirect=f"{scheme}://{host}/latest/?X-Amz-Signature=1", times=None))
    said = message(ask(mirror.image_url), 502)
    assert "link-local" in said
    assert "upstream.redirect_hosts" in said
    assert {urlsplit(target).netloc or target for _, target in proxy.asked()} == {place(upstream.api_url)}


@pytest.mark.parametrize("target", ["127.0.0.1", "localhost", "0.0.0.0", "[::1]"])
def test_no_proxy_is_asked_for_a_loopback_address_unless_upstream_is_there(
    started: Started, simulator: Simulator, tmp_path: Path, ask: Ask, target: str
) -> None:
    with TinyProxy(tmp_path / "afar", [f'Upstream http {place(simulator.api_url)} "upstream.invalid"']) as afar:
        mirror = started("http://upstream.invalid", proxy=afar.url())
        simulator.fault(Fault("image", redirect=f"http://{target}:9/x?X-Amz-Signature=1", times=None))
        assert "a loopback address" in message(ask(mirror.image_url), 502)
    assert {place(target) for _, target in afar.asked()} == {"upstream.invalid"}


def test_a_name_that_only_the_proxy_can_resolve_is_left_to_it(started: Started, tmp_path: Path, ask: Ask) -> None:
    with Simulator.start([ImageSpec("first", size=SIZE)], store_name="store.invalid") as simulator:
        port = urlsplit(simulator.store_url).port
        lines = [f'Upstream http {place(simulator.api_url)} "upstream.invalid"']
        lines += [f'Upstream http 127.0.0.1:{port} "store.invalid"']
        with TinyProxy(tmp_path / "afar", lines) as afar:
            mirror = started("http://upstream.invalid", proxy=afar.url())
            assert ask(mirror.image_url).body == simulator.read("first")
        assert [place(url) for _, url in afar.asked()] == ["upstream.invalid"] * 2 + [f"store.invalid:{port}"]
        assert_credential_stayed_home(simulator)


# Certificates


@pytest.mark.parametrize("through", ["directly", "through a proxy"])
def test_a_certificate_of_an_unknown_authority_is_a_502_that_names_the_key(
    started: Started, secure: Simulator, proxy: TinyProxy, tmp_path: Path, ask: Ask, through: str
) -> None:
    other, _ = certificate(tmp_path / "other")
    more = {"proxy": proxy.url()} if through == "through a proxy" else {}
    mirror = started(secure.api_url, ca_file=str(other), **more)
    assert message(ask(mirror.image_url), 502) == "upstream's certificate is not trusted; see upstream.ca_file"
    assert secure.log() == []


@pytest.mark.parametrize("through", ["directly", "through a proxy"])
def test_a_redirect_to_a_host_with_such_a_certificate_is_one_too(
    started: Started, secure: Simulator, proxy: TinyProxy, tmp_path: Path, ask: Ask, through: str
) -> None:
    cert, key = map(str, certificate(tmp_path / "other"))
    with Simulator.start(tls_cert=cert, tls_key=key) as other:
        secure.fault(Fault("image", redirect=f"{other.store_url}/x", times=None))
        more = {"proxy": proxy.url()} if through == "through a proxy" else {}
        said = message(ask(started(secure.api_url, **more).image_url), 502)
        assert said.endswith("127.0.0.1: its certificate is not trusted; see upstream.ca_file")
        assert other.log() == []


# What an operator is told


def pps_mirror(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return run_forked(*arguments, environ=clean | environ, seconds=100)


def test_check_says_through_which_proxy_and_what_is_wrong_with_it(
    secure: Simulator, authority: tuple[Path, Path], guarded: TinyProxy, tmp_path: Path
) -> None:
    mirror = MirrorProcess(tmp_path / "mirror", secure.api_url, {"upstream": {"ca_file": str(authority[0])}})
    check = ("check", "-c", str(mirror.config_file))
    done = pps_mirror(*check, HTTPS_PROXY=guarded.url(USER), DATAROBOT_API_TOKEN=TOKEN)
    assert f"{secure.api_url} through the proxy {guarded.url()} (HTTPS_PROXY): reachable" in " ".join(
        done.stdout.split()
    )
    refused = pps_mirror(*check, HTTPS_PROXY=guarded.url())
    assert refused.returncode == 1
    assert "the proxy (HTTPS_PROXY) answered 407" in " ".join(refused.stdout.split())
    assert PASSWORD not in done.stdout + done.stderr


@pytest.mark.parametrize("value", [f"socks5://{USER}@proxy:1", f"http://{USER}@proxy:99999", f"http://{USER} @proxy"])
def test_a_variable_that_names_no_proxy_stops_the_start_with_one_line_that_does_not_quote_it(
    tmp_path: Path, value: str
) -> None:
    mirror = MirrorProcess(tmp_path / "mirror", "https://upstream.invalid")
    done = pps_mirror("serve", "-c", str(mirror.config_file), https_proxy=value)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pps-mirror: https_proxy: expected a proxy such as http://")
    assert done.stderr.count("\n") == 1
    assert PASSWORD not in done.stderr


def test_the_demo_needs_no_proxy() -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    done = pps_mirror("demo", "--once", "--size", "1MiB", http_proxy=dead, PPS_MIRROR__UPSTREAM__PROXY=dead)
    assert done.returncode == 0, done.stdout + done.stderr


# What NO_PROXY says


@pytest.mark.parametrize(
    ("host", "no_proxy", "expected"),
    [
        ("example.com", "", False),
        ("example.com", "*", True),
        ("example.com", "example.com", True),
        ("EXAMPLE.com", "Example.COM", True),
        ("example.com.", "example.com", True),
        ("app.example.com", "example.com", True),
        ("app.example.com", ".example.com", True),
        ("example.com", ".example.com", True),
        ("anexample.com", "example.com", False),
        ("example.com", "app.example.com", False),
        ("example.com", "localhost,127.0.0.1, example.com", True),
        ("example.com", "localhost example.com", True),
        ("example.com", " , ., ,", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "0.0.1", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("::1", "[::1]", True),
        ("fd00::7", "fd00::/8", True),
        ("10.1.2.3", "fd00::/8, example.com", False),
        ("example.com", "example.com:8443", True),
        ("app.example.com", ".example.com:8443", True),
        ("example.com", "example.com:443", False),
        ("example.com", "example.com:443, example.com:8443", True),
        ("example.com", "example.com:, example.com:https", False),
        ("10.1.2.3", "10.1.2.3:8443", True),
        ("10.1.2.3", "10.1.2.3:443", False),
        ("::1", "[::1]:8443", True),
        ("::1", "[::1]:443", False),
        ("fd00::8443", "fd00::8443", True),
        ("example.com", ":8443", False),
    ],
)
def test_no_proxy_is_read_as_curl_reads_it(host: str, no_proxy: str, expected: bool) -> None:
    assert excepted(host, no_proxy, 8443) is expected


def test_a_variable_in_lower_case_wins_also_when_it_is_empty() -> None:
    both = {"HTTPS_PROXY": "http://upper:1", "https_proxy": "http://lower:2", "HTTP_PROXY": "upper:3", "http_proxy": ""}
    proxies = Proxies.of(Upstream(), both)
    assert str(proxies.https) == "the proxy http://lower:2 (https_proxy)"
    assert proxies.http is None


def test_a_password_in_a_proxys_url_may_have_any_character_when_it_is_percent_encoded() -> None:
    proxies = Proxies.of(Upstream(proxy="http://user:%3A%40%2F%C3%A9@proxy"), {})
    proxy = proxies.for_url(URL("http://example.com"))
    assert proxy is not None
    assert proxy.authorization == "Basic " + base64.b64encode("user::@/é".encode()).decode()
    assert "@/" not in repr(proxies)
    with pytest.raises(ConfigError, match=r"upstream\.proxy"):
        Proxies.of(Upstream(proxy="http://us%3Aer:x@proxy"), {})
