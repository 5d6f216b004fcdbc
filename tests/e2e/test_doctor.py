"""`pps-mirror doctor`: real mistakes, and that each is found, said in words, and comes with what to do."""

import json
import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from mirror.cli.doctor import proxy as proxying
from mirror.cli.doctor.case import Case
from mirror.cli.doctor.proxy import useless
from mirror.cli.doctor.store import mount_of
from mirror.cli.doctor.token import beside
from mirror.cli.findings import Finding
from mirror.config import Config
from mirror.simulator.client import Fault, ImageSpec, Simulator
from tests.support.archive import DockerArchive
from tests.support.certificates import certificate
from tests.support.circles import circle, relay
from tests.support.commands import clean_environment, run_forked
from tests.support.fixtures import Ask, Canary
from tests.support.forked import ForkedMirror
from tests.support.needs import needs
from tests.support.processes import MirrorProcess, eventually, free_port
from tests.support.raw import raw_upstream
from tests.support.small_disk import SmallDisk
from tests.support.tinyproxy import TinyProxy

PASSWORD = "a-proxy-password-of-its-own"


@dataclass(frozen=True)
class Report:
    """What it found, by subject, and its exit status."""

    status: int
    findings: list[dict[str, Any]]

    def about(self, subject: str) -> str:
        """All that it says of a subject, with the advice."""
        return "\n".join(f"{each['message']} -> {each['advice']}" for each in self.findings if each["check"] == subject)

    def failed(self) -> list[str]:
        return [each["check"] for each in self.findings if not each["ok"]]


class Doctor:
    """Runs it with a mirror's configuration, and lets the canary hear what it says."""

    def __init__(self, canary: Canary) -> None:
        self._canary = canary

    def run(self, mirror: MirrorProcess, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        given = clean_environment() | environ
        done = run_forked("doctor", "-c", mirror.config_file, *arguments, environ=given, seconds=100)
        self._canary.hear((done.stdout + done.stderr).encode())
        assert "Traceback" not in done.stderr
        assert done.stdout.isascii()
        return done

    def __call__(self, mirror: MirrorProcess, **environ: str) -> Report:
        done = self.run(mirror, "--json", **environ)
        assert done.stderr == ""
        findings = json.loads(done.stdout)
        for each in findings:
            assert set(each) == {"check", "ok", "note", "message", "advice"}
            assert each["advice"] or each["ok"], each
            assert "could not be examined" not in each["message"], each
        assert done.returncode == (0 if all(each["ok"] for each in findings) else 1)
        return Report(done.returncode, findings)


@pytest.fixture
def doctor(canary: Canary) -> Doctor:
    return Doctor(canary)


@pytest.fixture(scope="module")
def shared_simulator(docker_archive: DockerArchive) -> Iterator[Simulator]:
    """A DataRobot with a real docker archive."""
    images = [ImageSpec("first", path=str(docker_archive.path))]
    with Simulator.start(images, forbidden=["a-forbidden-token"]) as simulator:
        yield simulator


Configured = Callable[..., MirrorProcess]


@pytest.fixture
def configured(tmp_path: Path, simulator: Simulator) -> Iterator[Configured]:
    """Mirrors that are not started, with a token of their own; `upstream` are further keys of that section."""
    mirrors: list[MirrorProcess] = []

    def configure(
        url: str = "", sections: Mapping[str, Mapping[str, Any]] | None = None, **upstream: Any
    ) -> MirrorProcess:
        directory = tmp_path / f"mirror-{len(mirrors)}"
        directory.mkdir()
        token = directory / "token"
        token.write_text(simulator.token)
        token.chmod(0o600)
        tables = {**(sections or {}), "upstream": {"token_file": str(token), **upstream}}
        mirrors.append(ForkedMirror(directory, url or simulator.api_url, tables))
        return mirrors[-1]

    yield configure
    for mirror in mirrors:
        if mirror.process is not None:
            mirror.stop()


# Nothing is wrong


def test_where_all_is_well_it_finds_nothing_wrong_asks_little_and_changes_nothing(
    doctor: Doctor, configured: Configured, simulator: Simulator
) -> None:
    mirror = configured()
    report = doctor(mirror)
    assert (report.failed(), report.status) == ([], 0)
    assert "sends it (gzip), and ranges of it" in report.about("image")
    assert "agree" in report.about("clock")
    counters = simulator.counters()
    assert (counters.metadata_requests, counters.image_requests, counters.store_gets) == (1, 1, 1)
    assert counters.bytes_sent <= 512
    assert {each.cdn_loop for each in simulator.log()} == {None}  # who asks is no mirror: its questions can be shared
    assert not mirror.store.exists()


def test_beside_a_running_mirror_it_finds_nothing_wrong_either_and_adds_its_word(
    doctor: Doctor, configured: Configured
) -> None:
    with configured() as mirror:
        before = sorted(path.name for path in mirror.store.rglob("*"))
        report = doctor(mirror)
        assert sorted(path.name for path in mirror.store.rglob("*")) == before
    assert report.failed() == []
    assert "a mirror runs on this store, version" in report.about("running")


def test_without_a_token_it_says_what_it_could_not_try(
    doctor: Doctor, configured: Configured, simulator: Simulator
) -> None:
    report = doctor(configured(token_file=""))
    assert report.failed() == []
    assert simulator.counters().image_requests == 0
    assert "reachable, asked for a token (401)" in report.about("upstream")
    assert "not tried" in report.about("image")


def test_people_read_a_line_for_each_thing_what_to_do_below_it_and_a_last_line(
    doctor: Doctor, configured: Configured
) -> None:
    done = doctor.run(configured(f"http://127.0.0.1:{free_port()}"))
    lines = done.stdout.splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith("FAIL  connection ")]
    assert "connection refused" in lines[at]
    assert lines[at + 1].startswith(" " * 21 + "-> does upstream listen on port ")
    assert lines[-1] == "2 things are wrong. Begin with the first: others may only follow from it."
    assert (done.returncode, done.stderr) == (1, "")


def test_nothing_that_it_says_speaks_to_a_terminal() -> None:
    finding = Finding("name", False, "a\x1b[31m\nb\u202e", advice="\x07c")
    assert finding.lines() == ["FAIL  name           a\\x1b[31m\\nb\\u202e", " " * 21 + "-> \\x07c"]


# The environment


def test_variables_that_override_the_file_and_those_that_nobody_reads_are_named(
    doctor: Doctor, configured: Configured
) -> None:
    variables = {"PPS_MIRROR__STORE__MIN_FREE": "2MiB", "PPS_MIRROR_UPSTREAM_URL": "x", "PPS_MIRROR_PORT": "tcp://x"}
    said = doctor(configured(), **variables).about("environment")
    assert "PPS_MIRROR__STORE__MIN_FREE overrides store.min_free of " in said
    assert "PPS_MIRROR_UPSTREAM_URL has no effect -> PPS_MIRROR__UPSTREAM__URL is the name" in said
    assert "PPS_MIRROR_PORT" not in said  # Kubernetes sets that


# Proxies


def test_variables_that_contradict_each_other_are_named_and_which_of_them_counts(
    doctor: Doctor, configured: Configured, canary: Canary
) -> None:
    canary.hide(PASSWORD)
    dead = f"http://user:{PASSWORD}@127.0.0.1:{free_port()}"
    report = doctor(configured(), http_proxy="", HTTP_PROXY=dead)
    assert report.failed() == []
    assert "http_proxy and HTTP_PROXY differ: http_proxy counts, although it is empty" in report.about("proxy")
    assert "upstream is asked directly" in report.about("proxy")
    report = doctor(configured(), http_proxy=dead, no_proxy="*.example.com, 10.0.0.0/8")
    assert report.failed()[0] == "proxy"
    assert "(http_proxy) cannot be reached: connection refused" in report.about("proxy")
    assert "'*.example.com' has a star" in report.about("proxy")
    assert "upstream is on this machine, and is asked through" in report.about("proxy")


@pytest.mark.parametrize("user", ["", f"somebody:{PASSWORD}-x"])
def test_a_proxy_that_asks_for_a_password_is_told_from_one_that_is_not_there(
    doctor: Doctor, configured: Configured, tmp_path: Path, canary: Canary, user: str
) -> None:
    canary.hide(PASSWORD)
    with TinyProxy(tmp_path / "proxy", [f"BasicAuth somebody {PASSWORD}"]) as proxy:
        report = doctor(configured("https://127.0.0.1:1", proxy=proxy.url(user)))
    assert report.failed()[0] == "proxy"
    assert ("wants another user or password" if user else "wants a user and a password") in report.about("proxy")
    assert "http://USER:PASSWORD@" in report.about("proxy")


def test_a_proxy_that_works_is_used_for_everything_and_one_that_forbids_the_port_is_named(
    doctor: Doctor, configured: Configured, tmp_path: Path
) -> None:
    with TinyProxy(tmp_path / "proxy") as proxy:
        report = doctor(configured(proxy=proxy.url()), HTTPS_PROXY="http://elsewhere:1")
        assert report.failed() == []
        assert "upstream.proxy counts, HTTPS_PROXY and NO_PROXY do not" in report.about("proxy")
        assert f"reached through the proxy {proxy.url()}" in report.about("image")
    with TinyProxy(tmp_path / "strict", ["ConnectPort 443"]) as strict:
        report = doctor(configured("https://127.0.0.1:1", proxy=strict.url()))
        assert "refuses 127.0.0.1 (403) -> have whoever runs it allow 127.0.0.1:1" in report.about("proxy")


def test_a_proxy_that_is_none_is_found_out(doctor: Doctor, configured: Configured) -> None:
    with raw_upstream(lambda: b"\x05\xff") as socks:
        report = doctor(configured("https://127.0.0.1:1", proxy=socks))
    assert "does not answer as an HTTP proxy does -> is it a SOCKS proxy" in report.about("proxy")


@pytest.mark.parametrize(
    ("entry", "wrong"),
    [
        (".example.com", False),
        ("example.com", False),
        ("*", False),
        ("10.0.0.0/8", False),
        ("[::1]:8080", False),
        ("*.example.com", True),
        ("10.*", True),
        ("https://example.com", True),
        ("example.com/8", True),
        ('"example.com"', True),
        ("a;b", True),
    ],
)
def test_entries_of_no_proxy_that_except_nothing_are_told_from_the_others(entry: str, wrong: bool) -> None:
    assert bool(useless(entry)) is wrong


def test_an_address_in_no_proxy_that_is_meant_for_a_name_is_noticed(
    doctor: Doctor, configured: Configured, tmp_path: Path, simulator: Simulator
) -> None:
    with TinyProxy(tmp_path / "proxy") as proxy:
        by_name = simulator.api_url.replace("127.0.0.1", "localhost")
        said = doctor(configured(by_name), HTTP_PROXY=proxy.url(), NO_PROXY="127.0.0.0/8").about("proxy")
    assert "'127.0.0.0/8' has upstream's address, but not its name" in said
    assert "add localhost to NO_PROXY" in said


def test_a_bucket_inside_that_aws_libraries_would_ask_through_the_proxy_is_noticed() -> None:
    given = {
        "auth": {"mode": "open"},
        "store": {"s3": {"bucket": "images", "endpoint_url": "https://s3.inside.example:9000"}},
    }
    environ = {"HTTPS_PROXY": "http://proxy:3128"}
    (found,) = proxying.examine(Case(Config.model_validate(given), environ, None))
    assert "the bucket's endpoint s3.inside.example:9000 goes through the environment's proxy too" in found.message
    assert (
        list(proxying.examine(Case(Config.model_validate(given), environ | {"no_proxy": "inside.example"}, None))) == []
    )


# The way to upstream


def test_a_name_that_does_not_resolve_and_a_port_where_nobody_listens(doctor: Doctor, configured: Configured) -> None:
    report = doctor(configured("https://nowhere.invalid"))
    assert report.failed() == ["name", "upstream"]
    assert "nowhere.invalid does not resolve here" in report.about("name")
    assert "getent hosts nowhere.invalid" in report.about("name")
    report = doctor(configured(f"http://127.0.0.1:{free_port()}"))
    assert report.failed() == ["connection", "upstream"]


def test_http_on_an_https_port_and_https_on_an_http_port_are_said_to_be_just_that(
    doctor: Doctor, configured: Configured, simulator: Simulator, tmp_path: Path
) -> None:
    report = doctor(configured(simulator.api_url.replace("http:", "https:")))
    assert report.failed()[0] == "tls"
    assert "speaks plain http, not https -> upstream.url = http://127.0.0.1:" in report.about("tls")
    cert, key = certificate(tmp_path / "tls")
    with Simulator.start([ImageSpec("first", size=1 << 20)], tls_cert=str(cert), tls_key=str(key)) as secure:
        report = doctor(configured(secure.api_url.replace("https:", "http:")))
    assert report.failed()[0] == "answer"
    assert "speaks https, not plain http -> upstream.url = https://127.0.0.1:" in report.about("answer")


def test_a_certificate_that_is_not_trusted_is_explained_also_through_a_proxy(
    doctor: Doctor, configured: Configured, tmp_path: Path
) -> None:
    cert, key = certificate(tmp_path / "tls")
    setup = {"tls_cert": str(cert), "tls_key": str(key)}
    with Simulator.start([ImageSpec("first", size=1 << 20)], **setup) as secure:  # type: ignore[arg-type]
        with TinyProxy(tmp_path / "proxy") as proxy:
            for keys in ({}, {"proxy": proxy.url()}):
                report = doctor(configured(secure.api_url, **keys))
                assert report.failed()[:2] == ["tls", "upstream"]
                assert "from an authority that is not trusted: localhost" in report.about("tls")
                assert "in upstream.ca_file" in report.about("tls")
                assert doctor(configured(secure.api_url, ca_file=str(cert), **keys)).failed() == []
    with Simulator.start([ImageSpec("first", size=1 << 20)], host="127.0.0.2", **setup) as other:  # type: ignore[arg-type]
        report = doctor(configured(other.api_url, ca_file=str(cert)))
        assert "is not 127.0.0.2's: it is for localhost, 127.0.0.1" in report.about("tls")


def test_a_certificate_that_has_ended_is_told_from_a_clock_that_is_wrong(
    doctor: Doctor, configured: Configured, tmp_path: Path
) -> None:
    cert, key = certificate(tmp_path / "tls", days=-1)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)
    now = date()
    with raw_upstream(lambda: f"HTTP/1.1 404 x\r\nDate: {now}\r\nContent-Length: 0\r\n\r\n".encode(), tls) as url:
        mirror = configured(url, ca_file=str(cert))
        report = doctor(mirror)
        assert report.failed() == ["tls", "upstream"]
        assert "127.0.0.1's certificate ended " in report.about("tls")
        assert "our clock is not to blame" in report.about("tls")
        now = date(days=-2)
        report = doctor(mirror)
        assert "but our clock is 2d ahead -> set the clock" in report.about("tls")
        assert "ahead of upstream's" in report.about("clock")


def date(**ago: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(**ago), usegmt=True)


@pytest.mark.parametrize(
    ("minutes", "ok", "said"), [(2, True, "behind upstream's"), (-10, False, "ahead of upstream's: certificates")]
)
def test_a_clock_that_differs_is_a_note_at_first_and_then_a_failure(
    doctor: Doctor, configured: Configured, simulator: Simulator, minutes: float, ok: bool, said: str
) -> None:
    simulator.fault(Fault("version", headers={"Date": date(minutes=minutes)}, times=None))
    report = doctor(configured())
    assert report.failed() == ([] if ok else ["clock"])
    assert said in report.about("clock")
    assert "NTP" in report.about("clock")


def test_an_upstream_that_takes_connections_and_is_silent_does_not_make_it_hang(
    doctor: Doctor, configured: Configured
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        began = time.monotonic()
        report = doctor(configured(f"http://127.0.0.1:{silent.getsockname()[1]}", connect_timeout="1s"))
        assert time.monotonic() - began < 60
    assert report.failed() == ["answer", "upstream"]
    assert "no answer in time" in report.about("answer")


# The token and the image


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"abc123\n", ""),
        (b"  abc123  \r\n", ""),
        ("abc123".encode("utf-16"), "UTF-16"),
        (b"Bearer abc123", "begins with 'Bearer'"),
        (b"Authorization: Token abc123", "begins with 'Authorization:'"),
        (b'"abc123"', "quotation marks"),
        (b"abc123\nabc456\n", "on 2 lines"),
        (b"abc 123", "white space"),
        (b"DATAROBOT_API_TOKEN=abc123", "assigns a variable"),
        (b"\n", "empty"),
    ],
)
def test_what_is_beside_a_token_is_named_and_not_quoted(data: bytes, said: str) -> None:
    found = " ".join(beside(data))
    assert (said in found) if said else not found
    assert "abc" not in found


def test_a_token_file_with_quotes_that_everybody_may_read_is_noticed(
    doctor: Doctor, configured: Configured, simulator: Simulator, tmp_path: Path
) -> None:
    file = tmp_path / "quoted"
    file.write_text(f'"{simulator.token}"')
    file.chmod(0o644)
    report = doctor(configured(token_file=str(file)))
    assert report.failed() == ["token", "token file"]
    assert "upstream refuses the one in upstream.token_file" in report.about("token")
    assert "it has quotation marks -> it has to be the token alone" in report.about("token file")
    assert f"every user of this machine can read it (mode 0644) -> chmod go= {file}" in report.about("token file")


def test_a_token_that_may_see_the_metadata_and_not_the_image_is_told_from_a_bad_one(
    doctor: Doctor, configured: Configured, simulator: Simulator
) -> None:
    simulator.fault(Fault("image", status=403, times=None))
    report = doctor(configured())
    assert report.failed() == ["image"]
    assert "lets the token see the metadata, and refuses it the image (403)" in report.about("image")


@pytest.mark.parametrize(
    ("fault", "upstream", "ok", "said"),
    [
        (Fault("store", ranges=False), {}, True, "127.0.0.1, where upstream redirects to, reached directly, ignores"),
        (Fault("store", status=403), {}, False, "answers 403 -> a pre-signed URL is refused"),
        (Fault("image", redirect="http://nowhere.invalid/x?X=1"), {}, False, "nowhere.invalid cannot be reached"),
        (Fault("image"), {"redirect_hosts": ["x.example.com"]}, False, "add the host to upstream.redirect_hosts"),
        (Fault("image", redirect="http://169.254.169.254/x?X=1"), {}, False, "a link-local address"),
        (Fault("image", status=404), {}, False, "answers 404 to the request for the image"),
    ],
)
def test_where_upstream_redirects_to_is_tried_by_the_mirrors_own_rules(
    doctor: Doctor,
    configured: Configured,
    simulator: Simulator,
    fault: Fault,
    upstream: dict[str, Any],
    ok: bool,
    said: str,
) -> None:
    simulator.fault(fault)
    report = doctor(configured(**upstream))
    assert report.failed() == ([] if ok else ["image"])
    assert said in report.about("image")
    assert "X=1" not in report.about("image")


def test_a_redirects_host_with_a_certificate_that_is_not_trusted_is_named(
    doctor: Doctor, configured: Configured, simulator: Simulator, tmp_path: Path
) -> None:
    cert, key = certificate(tmp_path / "tls")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)
    with raw_upstream(lambda: b"", tls) as url:
        simulator.fault(Fault("image", redirect=f"{url}/x?X=1"))
        report = doctor(configured())
    assert report.failed() == ["image"]
    assert "127.0.0.1 cannot be reached: its certificate is not trusted" in report.about("image")
    assert "in upstream.ca_file as well" in report.about("image")


def test_a_page_in_the_images_place_is_noticed(doctor: Doctor, configured: Configured) -> None:
    page = b"<html>please log in</html>"
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(page), page)
    with raw_upstream(lambda: answer) as portal, Simulator.start([ImageSpec("first", size=1 << 20)]) as simulator:
        simulator.fault(Fault("image", redirect=f"{portal}/x"))
        report = doctor(configured(simulator.api_url))
    assert report.failed() == ["image"]
    assert "sends a text in its place" in report.about("image")


# The store


def test_a_store_in_memory_or_mounted_read_only_is_noticed(
    doctor: Doctor, configured: Configured, tmp_path: Path
) -> None:
    with SmallDisk(tmp_path / "disk", 64 << 20) as disk:
        mirror = configured(sections={"store": {"path": str(disk.path), "min_free": "1MiB"}})
        report = doctor(mirror)
        assert report.failed() == []
        assert f"it lies on {disk.path} (tmpfs): images are in memory" in report.about("store")
        disk.remount("ro")
        report = doctor(mirror)
        assert report.failed() == ["store", "store"]
        assert "which is mounted read-only" in report.about("store")
        assert "Read-only file system -> remount it writable" in report.about("store")


def test_a_store_in_a_containers_own_layer_is_noticed(doctor: Doctor, configured: Configured, tmp_path: Path) -> None:
    with SmallDisk(tmp_path / "disk", 64 << 20) as disk:
        lower, upper, work, merged = (disk.path / name for name in ("lower", "upper", "work", "merged"))
        for each in (lower, upper, work, merged):
            each.mkdir()
        layers = f"lowerdir={lower},upperdir={upper},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, merged], check=True, timeout=20)
        try:
            report = doctor(configured(sections={"store": {"path": str(merged / "store"), "min_free": "1MiB"}}))
        finally:
            subprocess.run(["umount", "--lazy", merged], check=True, timeout=20)
    assert report.failed() == []
    assert "(overlay), the container's own layer: images are lost with the container" in report.about("store")
    assert "-v pps-mirror:/var/lib/pps-mirror" in report.about("store")


@pytest.mark.parametrize(("size", "ok"), [(3 << 20, False), (7 << 20, True)])
def test_a_disk_that_is_too_small_for_what_is_to_be_kept_is_noticed(
    doctor: Doctor, configured: Configured, tmp_path: Path, simulator: Simulator, size: int, ok: bool
) -> None:
    assert 4 << 20 < simulator.image_size("first") < 6 << 20
    with SmallDisk(tmp_path / "disk", size) as disk:
        report = doctor(configured(sections={"store": {"path": str(disk.path), "min_free": 0}}))
    assert (report.failed() == []) is ok
    said = "there is room for one image only" if ok else "no room for an image, even if it were empty"
    assert said in report.about("store")


_MOUNTS = """\
22 1 0:20 / / rw,relatime shared:1 - overlay overlay rw,lowerdir=/x
30 22 0:30 / /srv/my\\040images rw,noatime - nfs4 server:/export rw,vers=4.2
31 22 0:31 / /srv/sshfs rw - fuse.sshfs host: rw
32 22 8:1 / /data ro,relatime - ext4 /dev/sda1 rw
33 32 8:2 / /data/more rw - ext4 /dev/sda2 rw
"""


def test_what_a_directory_lies_on_is_read_as_the_kernel_writes_it() -> None:
    for path, kind in {
        "/var/lib": "overlay",
        "/srv/my images/a": "nfs4",
        "/srv/sshfs": "fuse.sshfs",
        "/data/x": "ext4",
        "/srv/sshfs-not": "overlay",
    }.items():
        mount = mount_of(Path(path), _MOUNTS)
        assert mount is not None
        assert mount.kind == kind
    for path, read_only in {"/data/x": True, "/data/more/x": False}.items():
        mount = mount_of(Path(path), _MOUNTS)
        assert mount is not None
        assert ("ro" in mount.options) is read_only


# Ports


def test_who_has_the_port_is_named(doctor: Doctor, configured: Configured) -> None:
    mirror = configured()
    with socket.create_server(("127.0.0.1", mirror.port)):
        report = doctor(mirror)
    assert report.failed() == ["server"]
    own = Path("/proc/self/comm").read_text().strip()
    assert f"Address already in use, by {own} (process {os.getpid()}) -> stop that, or set server.port" in report.about(
        "server"
    )


def test_ports_that_are_mixed_up_are_noticed(doctor: Doctor, configured: Configured) -> None:
    mirror = configured()
    with mirror:
        ports = {"PPS_MIRROR__SERVER__PORT": mirror.admin_port, "PPS_MIRROR__ADMIN__PORT": mirror.port}
        report = doctor(mirror, **{name: str(port) for name, port in ports.items()})
    assert report.failed() == ["server", "admin"]
    assert "did you mix up server.port and admin.port?" in report.about("server")
    assert f"did you mix up server.port and admin.port? admin.port is {mirror.port} here" in report.about("admin")


def test_a_port_for_root_only_is_worth_a_note(doctor: Doctor, configured: Configured) -> None:
    needs("true", "apt-get install coreutils", root=True)
    said = doctor(configured(), PPS_MIRROR__SERVER__PORT="700").about("server")
    assert "AmbientCapabilities=CAP_NET_BIND_SERVICE" in said


# Mirrors that lead back to themselves


def test_a_mirror_that_is_its_own_upstream_is_noticed_before_it_is_started(
    doctor: Doctor, configured: Configured
) -> None:
    mirror = configured("http://127.0.0.1:9")
    text = mirror.config_file.read_text()
    mirror.config_file.write_text(text.replace("127.0.0.1:9", f"127.1:{mirror.port}"))  # a name that leads there
    assert "leads to this mirror's own server.port" in doctor(mirror).about("loop")
    mirror.config_file.write_text(text.replace("127.0.0.1:9", f"127.1:{mirror.admin_port}"))
    assert "leads to this mirror's own admin.port" in doctor(mirror).about("loop")


def test_a_running_mirror_that_leads_back_to_itself_by_another_port_is_noticed(
    doctor: Doctor, configured: Configured
) -> None:
    mirror = configured("http://127.0.0.1:9")
    with relay(mirror.port) as port:
        mirror.config_file.write_text(mirror.config_file.read_text().replace(":9", f":{port}", 1))
        with mirror:
            report = doctor(mirror)
    assert {"loop", "upstream"} <= set(report.failed())
    assert "requests come back to a mirror that sent them (508)" in report.about("loop")


def test_a_circle_of_mirrors_is_noticed_at_each_of_them(doctor: Doctor, tmp_path: Path) -> None:
    with circle(tmp_path) as mirrors:
        for mirror in mirrors:
            report = doctor(mirror)
            assert "leads round in a circle of mirrors -> look at upstream.url of each" in report.about("loop")


def test_a_mirror_behind_a_mirror_is_no_circle(doctor: Doctor, configured: Configured) -> None:
    with configured() as near:
        report = doctor(configured(near.url))
    assert report.failed() == []
    assert "another pps-mirror, and no circle" in report.about("loop")


def test_a_mirror_that_is_its_own_proxy_is_noticed(doctor: Doctor, configured: Configured) -> None:
    mirror = configured("https://127.0.0.1:1", proxy="http://127.0.0.1:9")
    mirror.config_file.write_text(mirror.config_file.read_text().replace(":9", f":{mirror.port}", 1))
    with mirror:
        report = doctor(mirror)
    assert "is a pps-mirror, which is no proxy" in report.about("proxy")
    assert "is this mirror's own server.port" in report.about("loop")


# A mirror that runs


def degraded(mirror: MirrorProcess) -> bool:
    with urllib.request.urlopen(f"{mirror.admin_url}/readyz", timeout=10) as answer:
        return bool(json.load(answer)["degraded"])


def test_what_the_running_mirror_complains_of_is_in_it(
    doctor: Doctor, configured: Configured, simulator: Simulator, ask: Ask
) -> None:
    with configured() as mirror:
        simulator.fault(Fault("metadata", status=500, times=None))
        assert ask(mirror.metadata_url).status == 502
        images = mirror.store / "images"
        images.rmdir()
        images.touch()
        eventually(lambda: degraded(mirror), what="the mirror's noticing that")
        report = doctor(mirror)
    assert set(report.failed()) == {"upstream", "store", "running"}
    said = report.about("running")
    assert "upstream is away for it since 20" in said
    assert "upstream answered 500" in said
    assert "it is in trouble: " in said


# It ends


def test_what_hangs_is_given_up_and_said_and_the_rest_is_examined(configured: Configured, tmp_path: Path) -> None:
    """A pipe in the token file's place has nobody who writes to it; so may a network file system not answer."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    mirror = configured(token_file=str(pipe))
    program = f"""
import sys
from mirror.cli.main import main
from mirror.cli.doctor import case
case.LIMIT = 2.0
sys.exit(main(["doctor", "-c", {str(mirror.config_file)!r}]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=clean_environment(),
    )
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert "FAIL  upstream       could not be examined within 2 s" in lines
    assert "FAIL  token          could not be examined within 2 s" in lines
    assert any(line.startswith("ok    admin ") for line in lines)
    assert "2 things are wrong" in lines[-1]


def test_an_endless_answer_is_not_read_to_its_end(doctor: Doctor, configured: Configured) -> None:
    with raw_upstream(lambda: b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 2_000_000) as endless:
        report = doctor(configured(endless))
    assert report.failed() == ["upstream"]
