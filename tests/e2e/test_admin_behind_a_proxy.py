"""The admin listener behind a real nginx, as docs/operating.md sets it up, with a prefix that is taken away or left."""

import http.client
import json
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mirror.http.token_guesses import FROM_ONE
from tests.support.admin import CHANGING, Answer, ask_admin, metric
from tests.support.downloads import fetch
from tests.support.fixtures import Canary, FreshMirror
from tests.support.nginx import Nginx, before_the_admin_listener
from tests.support.processes import MirrorProcess, eventually, free_port

TOKEN = "the-token-of-the-operators"
PUBLIC = "https://ops.example"
BUFFERS = "proxy_buffer_size 512k; proxy_buffers 8 512k; proxy_busy_buffers_size 1m;\n"
"""So much that whatever nginx keeps back is kept for longer than any test waits."""
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def token_file(tmp_path: Path, canary: Canary) -> Path:
    canary.hide(TOKEN)
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    return file


class Site:
    """A mirror, and the nginx before it."""

    def __init__(self, mirror: MirrorProcess, nginx: Nginx) -> None:
        self.mirror = mirror
        self.nginx = nginx

    def ask(self, method: str, path: str, headers: dict[str, str], address: str = "127.0.0.1") -> Answer:
        """Ask nginx from an address of loopback, as a browser that has it from `PUBLIC`."""
        with closing(
            http.client.HTTPConnection("127.0.0.1", self.nginx.port, timeout=20, source_address=(address, 0))
        ) as connection:
            connection.request(method, f"/pps-mirror{path}", headers={"Host": "ops.example"} | headers)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())


@pytest.fixture(params=[False, True], ids=["prefix left", "prefix taken away"])
def site(request: pytest.FixtureRequest, fresh_mirror: FreshMirror, tmp_path: Path, token_file: Path) -> Iterator[Site]:
    mirror = fresh_mirror({"admin": {"token_file": str(token_file), "public_url": f"{PUBLIC}:443/pps-mirror"}})
    server = before_the_admin_listener(mirror.admin_port, stripping=request.param)
    with Nginx(tmp_path / "nginx", server) as nginx:
        yield Site(mirror, nginx)


def test_all_of_it_is_there_with_the_token_and_what_probes_ask_for_without(site: Site) -> None:
    fetch(site.mirror.image_url)
    for path in ("/healthz", "/readyz", "/metrics"):
        assert site.ask("GET", path, {}).status == 200
    for path in ("/", "/style.css", "/script.js", "/api/status"):
        refused = site.ask("GET", path, {})
        assert refused.status == 401
        assert any("Basic" in value for value in refused.headers.get_all("WWW-Authenticate", ()))
        assert site.ask("GET", path, AUTHORIZED).status == 200
    page = site.ask("GET", "/", AUTHORIZED).body.decode()
    assert '"/pps-mirror/style.css"' in page
    assert ask_admin(site.mirror, "GET", "/pps-mirror/style.css", AUTHORIZED).status == 200  # on the machine itself
    assert ask_admin(site.mirror, "GET", "/", AUTHORIZED).body.decode().count('"/pps-mirror/style.css"') == 1
    assert site.ask("GET", "/nothing", AUTHORIZED).status == 404


def test_the_page_there_may_act_and_no_other_may(site: Site) -> None:
    fetch(site.mirror.image_url)
    pin = "/api/images/current/pin"
    ours = CHANGING | {"Origin": PUBLIC, "Sec-Fetch-Site": "same-origin"}
    assert site.ask("POST", pin, ours | AUTHORIZED).status == 200
    assert site.ask("POST", pin, ours).status == 401
    assert site.ask("POST", pin, AUTHORIZED | {"Origin": PUBLIC}).status == 403  # as a form would send it
    for forged in (
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "http://ops.example"},
        {"Origin": f"{PUBLIC}:8443"},
        {"Origin": "https://ops.example.evil.example"},
        {"Origin": "null"},
        {"Origin": PUBLIC, "Sec-Fetch-Site": "same-site"},
    ):
        assert site.ask("POST", pin, CHANGING | AUTHORIZED | forged).status == 403


def assert_events_come_at_once(site: Site) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", site.nginx.port, timeout=20)) as connection:
        connection.request("GET", "/pps-mirror/api/events", headers=AUTHORIZED)
        answer = connection.getresponse()
        assert answer.status == 200
        lines = (json.loads(line[6:]) for line in answer if line.startswith(b"data: "))
        assert next(lines)["images"] == []
        fetch(site.mirror.image_url)
        assert any(status["images"] for status in lines)


def test_events_come_through_at_once(site: Site) -> None:
    assert_events_come_at_once(site)


def test_events_come_through_at_once_where_nginx_keeps_answers_back(
    fresh_mirror: FreshMirror, tmp_path: Path, token_file: Path
) -> None:
    mirror = fresh_mirror({"admin": {"token_file": str(token_file), "public_url": f"{PUBLIC}/pps-mirror"}})
    server = before_the_admin_listener(mirror.admin_port, stripping=False)
    older = server.replace("proxy_http_version 1.1;", "proxy_http_version 1.0;")  # nginx's own default for long
    assert older != server
    with Nginx(tmp_path / "nginx", BUFFERS + older) as nginx:
        assert_events_come_at_once(Site(mirror, nginx))


def test_a_name_that_was_made_to_point_here_is_refused_and_the_public_one_is_not(site: Site) -> None:
    assert ask_admin(site.mirror, "GET", "/", AUTHORIZED | {"Host": "ops.example"}).status == 200
    assert ask_admin(site.mirror, "GET", "/", AUTHORIZED | {"Host": "evil.example"}).status == 403


def test_who_guesses_is_slowed_and_others_are_not(site: Site) -> None:
    most = FROM_ONE[0]
    statuses: list[int] = []
    while 429 not in statuses:
        wrong = {"Authorization": f"Bearer wrong-{len(statuses)}"}
        statuses.append(site.ask("GET", "/api/status", wrong, "127.0.0.7").status)
        assert len(statuses) < 1000
    assert set(statuses[:most]) == {401}
    refused = site.ask("GET", "/api/status", {"Authorization": "Bearer again"}, "127.0.0.7")
    if refused.status == 429:  # on a slow machine it may have been forgiven one
        assert int(refused.headers["Retry-After"]) >= 1
    assert site.ask("GET", "/api/status", AUTHORIZED, "127.0.0.8").status == 200
    assert metric(site.mirror, "admin_refusals_total", reason="wrong") >= most
    assert metric(site.mirror, "admin_refusals_total", reason="slowed") >= 1
    log = site.mirror.log()
    assert "127.0.0.7 sent a wrong admin token" in log
    assert "so many wrong admin tokens came from 127.0.0.7" in log
    assert "wrong-0" not in log
    assert site.mirror.process is not None
    site.mirror.send_signal(signal.SIGHUP)
    eventually(lambda: "mirror.reloaded" in site.mirror.actions(), what="the reload")
    assert site.ask("GET", "/api/status", AUTHORIZED, "127.0.0.7").status == 200


def test_a_token_that_is_no_text_is_a_wrong_one(site: Site) -> None:
    for header in ("Bearer \xe9\xff", "Basic \xff"):
        assert site.ask("GET", "/api/status", {"Authorization": header}).status == 401


def test_without_a_public_url_a_proxy_that_says_another_host_is_told_what_to_set(
    fresh_mirror: FreshMirror, tmp_path: Path
) -> None:
    mirror = fresh_mirror()
    with Nginx(tmp_path / "nginx", f"location / {{ proxy_pass http://127.0.0.1:{mirror.admin_port}; }}") as nginx:
        with closing(http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=20)) as connection:
            connection.request("POST", "/api/prefetch", headers=CHANGING | {"Origin": PUBLIC})
            answer = connection.getresponse()
            assert answer.status == 403
            assert b"admin.public_url" in answer.read()


def test_the_prefix_may_be_a_word_of_our_own_paths(fresh_mirror: FreshMirror) -> None:
    mirror = fresh_mirror({"admin": {"public_url": f"http://127.0.0.1:{free_port()}/api"}})
    for path in ("/", "/api", "/api/", "/api/status", "/api/api/status", "/api/metrics", "/api/style.css"):
        assert ask_admin(mirror, "GET", path).status == 200, path
    assert ask_admin(mirror, "POST", "/api/api/images/abcdef/pin", CHANGING).status == 404
    assert ask_admin(mirror, "POST", "/api/api/prefetch", CHANGING).status == 502  # it has no token
