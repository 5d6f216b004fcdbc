"""What the configuration accepts, and the one line that says why not."""

import logging
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mirror.config import FILE_VARIABLE, KEYS, PREFIX, Config, load, load_token
from mirror.config.changes import value_of
from mirror.model.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"

Complain = Callable[..., str]


@pytest.fixture
def complaint(tmp_path: Path) -> Complain:
    """Load a file with this text and these variables, which must fail, and return what the user reads."""

    def complain(text: str = "", **environ: str) -> str:
        (tmp_path / "m.toml").write_text(text)
        with pytest.raises(ConfigError) as caught:
            load(tmp_path / "m.toml", environ)
        message = str(caught.value)
        assert len(message.splitlines()) == 1
        return message.removeprefix(f"{tmp_path}/")

    return complain


def read(tmp_path: Path, text: str, environ: Mapping[str, str] | None = None) -> Config:
    (tmp_path / "m.toml").write_text(text)
    return load(tmp_path / "m.toml", environ or {})


def flat(table: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, value in table.items():
        keys += flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]
    return keys


# The example and the defaults.


def test_the_example_file_is_exactly_the_defaults() -> None:
    assert load(EXAMPLE, {}) == Config()


def test_the_example_file_has_every_key_and_no_other() -> None:
    assert sorted(flat(tomllib.loads(EXAMPLE.read_text()))) == sorted(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_the_example_file_says_of_every_key_what_it_is_for(key: str) -> None:
    line = next(line for line in section_of(key) if line.startswith(f"{key.rpartition('.')[2]} = "))
    assert len(line.partition("# ")[2]) > 10


def section_of(key: str) -> list[str]:
    text = EXAMPLE.read_text()
    if "." not in key:
        return text.partition("\n[")[0].splitlines()
    return text.partition(f"[{key.rpartition('.')[0]}]\n")[2].partition("\n[")[0].splitlines()


def test_every_auth_mode_is_built(tmp_path: Path) -> None:
    assert read(tmp_path, '[auth]\nmode = "tokens"\ntokens_file = "/tokens"').auth.mode == "tokens"
    assert read(tmp_path, '[auth]\nmode = "open"').auth.mode == "open"


# Values.


def test_values_are_parsed_into_bytes_seconds_and_paths(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        """
        [server]
        drain = "5m"
        [upstream]
        ca_file = "/etc/ca.pem"
        token_file = ""
        [store]
        min_free = "2GiB"
        holdback = 4096
        path = "images"
        """,
    )
    assert config.server.drain == 300.0
    assert config.upstream.ca_file == Path("/etc/ca.pem")
    assert config.upstream.token_file is None
    assert (config.store.min_free, config.store.holdback) == (2 * 2**30, 4096)
    assert config.store.path == Path("images")


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("https://app.datarobot.com", "https://app.datarobot.com"),
        ("https://app.datarobot.com/", "https://app.datarobot.com"),
        ("https://app.datarobot.com/api/v2", "https://app.datarobot.com"),
        ("https://app.datarobot.com/api/v2/", "https://app.datarobot.com"),
        ("HTTPS://App.DataRobot.com:8443/some/prefix/api/v2/", "https://app.datarobot.com:8443/some/prefix"),
        ("http://[2001:DB8::1]:80/x", "http://[2001:db8::1]:80/x"),
        ("", None),
    ],
)
def test_the_upstream_url_means_the_same_with_and_without_api_v2(tmp_path: Path, written: str, url: str | None) -> None:
    assert read(tmp_path, f'[upstream]\nurl = "{written}"').upstream.url == url


@pytest.mark.parametrize(
    "written",
    [
        "app.datarobot.com",
        "ftp://app.datarobot.com",
        "https://",
        "https://user:hunter2@app.datarobot.com",
        "https://app.datarobot.com/?sig=hunter2",
        "https://app.datarobot.com/#hunter2",
        "https://app.datarobot.com:0",
        "https://app.datarobot.com:99999",
        "https://app.datarobot.com:hunter2@",
        "https://app.data robot.com",
        "https://app.datarobot.com/../x",
        "https://app.datarobot.com/api/v2/version/",
        "https://[::1",
        "https://app\\u2100.com",
        "file:///etc/passwd",
    ],
)
def test_another_upstream_url_is_refused_without_quoting_what_may_be_secret(written: str, complaint: Complain) -> None:
    message = complaint(f'[upstream]\nurl = "{written}"')
    assert message.startswith("m.toml: upstream.url = ")
    assert ": expected a" in message
    assert "hunter2" not in message


@pytest.mark.parametrize("name", ["token", "password", "secret_access_key", "api_key", "credentials", "proxi"])
def test_the_value_of_a_made_up_key_that_may_be_a_secret_is_not_quoted(name: str, complaint: Complain) -> None:
    value = "http://user:hunter2@proxy"
    assert "hunter2" not in complaint(f'[upstream]\n{name} = "{value}"')
    assert "hunter2" not in complaint(**{f"PPS_MIRROR__UPSTREAM__{name.upper()}": value})
    if name != "proxi":
        assert "hunter2" not in complaint(f'[upstream]\n{name} = "hunter2"')
        assert "hunter2" not in complaint(f'[upstream.{name}]\nx = "hunter2"')


def test_a_proxy_password_is_neither_in_an_error_nor_in_the_repr(complaint: Complain) -> None:
    assert "hunter2" not in complaint('[upstream]\nproxy = "http://user:hunter2@proxy:3128/x"')
    assert "hunter2" not in complaint('[upstream]\nproxy = "user:hunter2"')
    config = Config.model_validate({"upstream": {"proxy": "http://user:hunter2@proxy:3128"}})
    assert config.upstream.proxy == "http://user:hunter2@proxy:3128"
    assert "hunter2" not in repr(config)


def test_passed_through_routes_end_with_exactly_one_slash(tmp_path: Path) -> None:
    text = '[upstream]\npassthrough = ["version", "a/b//", "version/"]'
    assert read(tmp_path, text).upstream.passthrough == ("version/", "a/b/")
    assert read(tmp_path, "[upstream]\npassthrough = []").upstream.passthrough == ()


@pytest.mark.parametrize(
    "route",
    [
        "/version/",
        "..",
        "a/../b",
        "a/./b",
        "a//b",
        "",
        "/",
        "a%2f",
        "a?b",
        "https://x/",
        "mlops/portablePredictionServerImage/metadata",
    ],
)
def test_a_route_that_leaves_its_place_is_refused(route: str, complaint: Complain) -> None:
    assert complaint(f'[upstream]\npassthrough = ["{route}"]').startswith("m.toml: upstream.passthrough = ")


def test_redirect_hosts_are_names_with_at_most_a_star_in_front(tmp_path: Path, complaint: Complain) -> None:
    text = '[upstream]\nredirect_hosts = ["*.AmazonAWS.com", "10.0.0.1", "::1"]'
    assert read(tmp_path, text).upstream.redirect_hosts == ("*.amazonaws.com", "10.0.0.1", "::1")
    for host in ("https://x", "x:80", "a.*.com", "**", "*.", "x/y", ""):
        assert "upstream.redirect_hosts" in complaint(f'[upstream]\nredirect_hosts = ["{host}"]')


def test_a_bare_star_in_redirect_hosts_means_any_host(tmp_path: Path, complaint: Complain) -> None:
    assert read(tmp_path, '[upstream]\nredirect_hosts = ["*"]').upstream.redirect_hosts == ("*",)
    assert '"*" for any' in complaint('[upstream]\nredirect_hosts = ["*x"]')


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[server]\nport = 65536", "server.port = 65536: expected a whole number from 0 to 65535"),
        ("[server]\nport = true", "server.port = True: expected a whole number from 0 to 65535"),
        ("[server]\nport = 1.0", "server.port = 1.0: expected a whole number from 0 to 65535"),
        ("[server]\nhost = ''", "server.host = '': expected a text without control characters, not empty"),
        ("[server]\nhost = '0.0.0.0:8080'", "server.host = '0.0.0.0:8080': expected a host name or an IP address"),
        ("[server]\nmax_connections = 0", "server.max_connections = 0: expected a whole number from 1 to"),
        ("[server]\nheader_timeout = 0", "server.header_timeout = 0: expected a duration of 1ms or more"),
        ("[server]\ndrain = '1w'", "server.drain = '1w': expected a duration such as 30s"),
        ("[server]\ntls_cert = 5", "server.tls_cert = 5: expected a text"),
        ("[store]\nmin_free = '1 gigabyte'", "store.min_free = '1 gigabyte': expected a size such as 64MiB"),
        ("[store]\nmax_size = 0", "store.max_size = 0: expected a size above zero"),
        ("[store]\npath = ''", "store.path = '': expected a text"),
        ("[store]\nholdback = '1KiB'", "store.holdback = '1KiB': expected 4KiB or more: the end of the gzip stream"),
        ("[store.s3]\nbucket = '/x'", "store.s3.bucket = '/x': expected a bucket name"),
        ("[store.s3]\nprefix = '/x'", "store.s3.prefix = '/x': expected a key prefix"),
        ("[store.s3]\npresign_ttl = '8d'", "store.s3.presign_ttl = '8d': expected a duration from 1s to 7d"),
        ("[store.s3]\nlocal_copy = false", "store.s3.local_copy = False needs store.s3.bucket as well"),
        ("[store.s3]\nserve = 'redirect'", "store.s3.serve = 'redirect' needs store.s3.bucket as well"),
        ("[store.s3]\nlocal_copy = 1", "store.s3.local_copy = 1: expected true or false"),
        ("[prefetch]\nwindow = '22-6'", "prefetch.window = '22-6': expected two different times of day"),
        ("[registry]\nenabled = 'on'", "registry.enabled = 'on': expected true or false"),
        ("[registry]\nrepository = 'Pps'", "registry.repository = 'Pps': expected a repository's name without a host"),
        ("[registry]\nrepository = 'h:1/pps'", "registry.repository = 'h:1/pps': expected a repository's name without"),
        (
            "[registry]\nrepository = '/pps'",
            "registry.repository = '/pps': expected a repository's name without a host",
        ),
        ("[auth]\nmode = 'tokns'", "auth.mode = 'tokns': expected 'upstream', 'tokens' or 'open'"),
        ("[log]\nlevel = 'INFO'", "log.level = 'INFO': expected 'debug', 'info', 'warning' or 'error'"),
        ("[upstream]\npassthrough = [1]", "upstream.passthrough = [1]: expected a text"),
        ("[upstream]\npassthrough = 1", "upstream.passthrough = 1: expected a list of texts"),
        ("server = 5", "server = 5: expected a section, [server]"),
        ("[[server]]\nport = 5", "server = (not shown): expected a section, [server]"),
        (
            "[hooks]\nname = 'a'",
            "hooks = a section: expected tables [[hooks]] with name, events, and url, command or push",
        ),
        ("hooks = [3]", "hooks.0 = 3: expected a section"),
        ("[[hooks]]\nurl = 'http://x'\nevents = ['fill.failed']", "hooks.0.name is missing"),
        ("[[hooks]]\nname = 'a'\nurl = 'http://x'", "hooks.0.name = 'a' is of a hook without events"),
        ("[[hooks]]\nname = 'A b'", "hooks.0.name = 'A b': expected 1 to 40 small letters, digits and dashes"),
        (
            "[[hooks]]\nname = 'a'\nevents = []",
            "hooks.0.events = []: expected a list with some of image.stored, image.c",
        ),
        (
            "[[hooks]]\nname = 'a'\nevents = ['image.store']",
            "hooks.0.events = ['image.store']: expected only image.stored,",
        ),
        (
            "[[hooks]]\nname = 'a'\nevents = ['image.stored']\nurl = 'ftp://x'",
            "hooks.0.url = 'ftp://x': expected an http:// or https:// URL",
        ),
        (
            "[[hooks]]\nname = 'a'\nevents = ['image.stored']\nurl = 'http://user:password@x'",
            "hooks.0.url = (not shown): expected an http:// or https:// URL",
        ),
        (
            "[[hooks]]\nname = 'a'\nevents = ['image.stored']\ncommand = 'rollout'",
            "hooks.0.command = 'rollout': expected a list of texts such as",
        ),
        (
            "[[hooks]]\nname = 'a'\nevents = ['image.stored']\ncommand = ['rollout']",
            "hooks.0.command = ['rollout']: expected a list of texts such as",
        ),
    ],
)
def test_a_bad_value_is_answered_with_file_key_value_and_what_is_allowed(
    text: str, expected: str, complaint: Complain
) -> None:
    assert complaint(text).startswith(f"m.toml: {expected}")


def test_a_long_value_is_cut(complaint: Complain) -> None:
    assert len(complaint(f"[log]\nlevel = '{'x' * 10_000}'")) < 200
    assert "(too large to show)" in complaint(f"[server]\nport = 0x{'f' * 9_000}")
    assert len(complaint(f"{'k' * 10_000} = 1")) < 500


# Unknown names.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[server]\nprot = 8081", "server.prot = 8081: unknown name; did you mean server.port? ([server] takes host, "),
        ("[server]\nPort = 8081", "server.Port = 8081: unknown name; did you mean server.port?"),
        (
            "[server]\nmin_free = 1",
            "server.min_free = 1: unknown name; it belongs in another section: store.min_free (",
        ),
        ("[auth]\ntoken_file = 'x'", "auth.token_file = 'x': unknown name; did you mean auth.tokens_file?"),
        ("port = 1", "port = 1: unknown name; it belongs in another section: server.port or admin.port (the sections "),
        ("[sever]\nport = 1", "sever = a section: unknown name; did you mean server? (the sections are server, admin,"),
        ("[s3]\nbucket = 'x'", "s3 = a section: unknown name; it belongs in another section: store.s3"),
        ("[store.s4]\nbucket = 'x'", "store.s4 = a section: unknown name; "),
        ("[server]\nxyzzy = 1", "server.xyzzy = 1: unknown name; the nearest is "),
        (
            "[[hooks]]\nname = 'a'\nevents = ['fill.failed']\nulr = 'x'",
            "hooks.0.ulr = 'x': unknown name; the nearest is hooks.url",
        ),
        (
            "[[upstream.rates]]\nwindow = '01:00-02:00'\nrate = '1MB/s'\nrat = 'x'",
            "upstream.rates.0.rat = 'x': unknown name; did you mean upstr",
        ),
        ('"a\\nb" = 1', "'a\\nb' = 1: unknown name; the nearest is "),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_one(text: str, expected: str, complaint: Complain) -> None:
    assert complaint(text).startswith(f"m.toml: {expected}")


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("PPS_MIRROR__SERVER__PROT", "did you mean PPS_MIRROR__SERVER__PORT? ([server] takes"),
        ("PPS_MIRROR__SERVER__port", "did you mean PPS_MIRROR__SERVER__PORT?"),
        ("PPS_MIRROR__SERVR__PORT", "the nearest is PPS_MIRROR__SERVER__PORT"),
        ("PPS_MIRROR__S3__BUCKET", "the nearest is PPS_MIRROR__STORE__S3__BUCKET"),
        ("PPS_MIRROR__SERVER__MIN_FREE", "it belongs in another section: PPS_MIRROR__STORE__MIN_FREE"),
        ("PPS_MIRROR__SERVER", "the nearest is PPS_MIRROR__SERVER__"),
        ("PPS_MIRROR__", "the nearest is PPS_MIRROR__"),
    ],
)
def test_an_unknown_variable_is_answered_with_the_nearest_one(
    variable: str, expected: str, complaint: Complain
) -> None:
    assert complaint(**{variable: "1"}).startswith(f"{variable} = '1': unknown name; {expected}")


# The environment.


def test_every_key_can_be_set_by_its_variable_which_wins_over_the_file(tmp_path: Path) -> None:
    environ = {
        "PPS_MIRROR__SERVER__PORT": "9000",
        "PPS_MIRROR__SERVER__DRAIN": "1m",
        "PPS_MIRROR__UPSTREAM__URL": "https://app.datarobot.com",
        "PPS_MIRROR__UPSTREAM__PASSTHROUGH": "version, ping/",
        "PPS_MIRROR__UPSTREAM__REDIRECT_HOSTS": '["*.amazonaws.com", "gcs.example"]',
        "PPS_MIRROR__STORE__S3__BUCKET": "",
        "PPS_MIRROR__STORE__S3__LOCAL_COPY": "true",
        "PPS_MIRROR__HOOKS": '[{name = "a", url = "https://ci.example.com/?x=1", events = ["image.stored"]}]',
    }
    config = read(tmp_path, "[server]\nport = 1\nmax_connections = 7", environ)
    assert (config.server.port, config.server.max_connections, config.server.drain) == (9000, 7, 60.0)
    assert config.upstream.url == "https://app.datarobot.com"
    assert config.upstream.passthrough == ("version/", "ping/")
    assert config.upstream.redirect_hosts == ("*.amazonaws.com", "gcs.example")
    assert config.store.s3.bucket is None
    assert [(hook.name, hook.url, hook.events) for hook in config.hooks] == [
        ("a", "https://ci.example.com/?x=1", ("image.stored",))
    ]


def test_an_empty_variable_is_the_empty_value(tmp_path: Path) -> None:
    environ = {"PPS_MIRROR__UPSTREAM__URL": "", "PPS_MIRROR__UPSTREAM__PASSTHROUGH": ""}
    config = read(tmp_path, '[upstream]\nurl = "https://app.datarobot.com"', environ)
    assert config.upstream.url is None
    assert config.upstream.passthrough == ()


def test_an_empty_variable_is_refused_where_empty_means_nothing(complaint: Complain) -> None:
    message = complaint("[server]\nport = 1", PPS_MIRROR__SERVER__PORT="")
    assert message == "PPS_MIRROR__SERVER__PORT: server.port = '': expected a whole number from 0 to 65535"


def test_a_variable_does_not_hide_that_the_file_has_no_section(complaint: Complain) -> None:
    message = complaint("[store]\ns3 = 1", PPS_MIRROR__STORE__S3__BUCKET="images")
    assert message == "m.toml: store.s3 = 1: expected a section, [store.s3]"


def test_variables_that_kubernetes_sets_beside_a_service_are_not_ours(tmp_path: Path) -> None:
    assert read(tmp_path, "", {"PPS_MIRROR_PORT": "tcp://10.0.0.1:8080", "PPS_MIRROR_SERVICE_HOST": "x"}) == Config()


# Files.


def test_the_file_is_the_one_given_else_the_one_of_the_variable_else_none(tmp_path: Path) -> None:
    named = tmp_path / "named.toml"
    named.write_text("[server]\nport = 2")
    environ = {"PPS_MIRROR_CONFIG": str(named)}
    assert read(tmp_path, "[server]\nport = 1", environ).server.port == 1
    assert load(None, environ).server.port == 2
    assert load(None, {"PPS_MIRROR_CONFIG": ""}) == load(None, {}) == Config()


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("[server]\nport = = 1", "m.toml: not TOML: Invalid value (at line 2, column 8)"),
        ("[server]\nport = ", "m.toml: not TOML: Invalid value (at line 2, column 8, end of document)"),
        (f"a = {'[' * 100_000}", "m.toml: expected a TOML file"),
        (f"a = {'9' * 100_000}", "m.toml: expected a TOML file"),
    ],
)
def test_a_file_that_is_not_toml_is_answered_with_line_and_column(text: str, where: str, complaint: Complain) -> None:
    assert complaint(text) == where


def test_a_file_that_cannot_be_read_is_answered_with_the_reason(tmp_path: Path) -> None:
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"[server]\nhost = '\xe9'")
    for path, reason in [
        (tmp_path / "missing.toml", "cannot read it: No such file or directory"),
        (tmp_path, "cannot read it: Is a directory"),
        (latin, "not UTF-8 (at line 2, column 9)"),
    ]:
        with pytest.raises(ConfigError) as caught:
            load(path, {})
        assert str(caught.value) == f"{path}: {reason}"


# What does not go together.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[server]\ntls_cert = 'c.pem'", "server.tls_cert = 'c.pem' needs server.tls_key as well"),
        ("[server]\ntls_key = 'k.pem'", "server.tls_key = (not shown) needs server.tls_cert as well"),
        (
            "[admin]\nhost = '0.0.0.0'",
            "admin.host = '0.0.0.0' is not a loopback address, so admin.token_file is required",
        ),
        ("[admin]\nhost = 'ops.example'", "admin.host = 'ops.example' is not a loopback address"),
        (
            "[admin]\npublic_url = 'https://ops.example/mirror'",
            "admin.public_url = 'https://ops.example/mirror' is not on loopback, so admin.token_file is required",
        ),
        ("[auth]\nmode = 'tokens'", "auth.mode = 'tokens' needs auth.tokens_file as well"),
        ("[server]\nport = 8081", "server.port = 8081 is admin.port too"),
        ("[server]\nport = 1\n[admin]\nport = 1", "admin.port = 1 is server.port too"),
        (
            "[upstream]\nurl = 'http://127.0.0.1:8080'",
            "upstream.url = 'http://127.0.0.1:8080' is the mirror's own address",
        ),
        (
            "[upstream]\nurl = 'http://LOCALHOST:8080/api/v2'",
            "upstream.url = 'http://LOCALHOST:8080/api/v2' is the mirror's own",
        ),
        ("[upstream]\nurl = 'http://[::1]:8081'", "upstream.url = 'http://[::1]:8081' is the mirror's own address"),
        (
            "[server]\nport = 80\n[upstream]\nurl = 'http://127.1.2.3'",
            "upstream.url = 'http://127.1.2.3' is the mirror's",
        ),
        (
            "[server]\nhost = '10.0.0.5'\n[upstream]\nurl = 'http://10.0.0.5:8080'",
            "upstream.url = 'http://10.0.0.5:8080' is the mirror's own address",
        ),
        (
            "[[hooks]]\nname = 'a'\nevents = ['fill.failed']",
            "hooks.0.name = 'a' is of a hook that has not exactly one of url, command and push",
        ),
        (
            "[[hooks]]\nname = 'a'\nevents = ['fill.failed']\nurl = 'http://x'\ncommand = ['/bin/true']",
            "hooks.0.name = 'a' is of a hook that has not exactly one of url, command and push",
        ),
        (
            2 * "[[hooks]]\nname = 'a'\nevents = ['fill.failed']\nurl = 'http://x'\n",
            "hooks.1.name = 'a' is the name of another hook too",
        ),
        (
            "[[hooks]]\nname = 'a'\nevents = ['fill.failed']\ncommand = ['/bin/true']\nsecret_file = 'x'",
            "hooks.0.secret_file = 'x' is for a hook with a url",
        ),
        (
            "[[hooks]]\nname = 'a'\nevents = ['fill.failed']\nurl = 'http://x'\nca_file = 'x'",
            "hooks.0.ca_file = 'x' needs a url that begins with https:",
        ),
        (
            "[[hooks]]\nname = 'a'\npush = 'harbor.site/pps'\ntimeout = '5s'",
            "hooks.0.timeout = '5s' is for a hook with a url or a command",
        ),
        (
            "[[hooks]]\nname = 'a'\npush = 'harbor.site/pps'\nsecret_file = 'x'",
            "hooks.0.secret_file = 'x' is for a hook with a url",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(text: str, expected: str, complaint: Complain) -> None:
    assert complaint(text).startswith(f"m.toml: {expected}")


@pytest.mark.parametrize(
    "text",
    [
        "[server]\ntls_cert = 'c.pem'\ntls_key = 'k.pem'",
        "[admin]\nhost = '0.0.0.0'\ntoken_file = '/token'",
        "[admin]\nhost = '::1'",
        "[admin]\npublic_url = 'https://ops.example/mirror'\ntoken_file = '/token'",
        "[admin]\npublic_url = 'http://localhost:9000/mirror/'",
        "[admin]\nhost = 'localhost'",
        "[server]\nport = 0\n[admin]\nport = 0",
        "[server]\nhost = '10.0.0.5'\nport = 8081",
        "[server]\nhost = '127.0.0.1'\n[upstream]\nurl = 'http://127.0.0.2:8080'",
        "[upstream]\nurl = 'http://127.0.0.1:9090'",
        "[upstream]\nurl = 'http://mirror.example:8080'",
    ],
)
def test_what_only_looks_like_a_contradiction_is_accepted(text: str, tmp_path: Path) -> None:
    read(tmp_path, text)


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().server.port = 1


# The mirror's own token.


def with_token_file(path: Path) -> Config:
    return Config.model_validate({"upstream": {"token_file": str(path)}})


def test_the_token_file_wins_over_the_variable(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(" abc+/=\n")
    environ = {"DATAROBOT_API_TOKEN": "other\n"}
    assert load_token(with_token_file(tmp_path / "token"), environ) == "abc+/="
    assert load_token(Config(), environ) == "other"
    assert load_token(Config(), {}) is None
    assert load_token(Config(), {"DATAROBOT_API_TOKEN": ""}) is None


@pytest.mark.parametrize(
    "content", [b"", b" \n", b"hunter2 hunter2", b"Bearer hunter2", b"hunter2\nhunter2", b"hunter2\xc3\xa9"]
)
def test_what_is_not_one_token_is_refused_without_quoting_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(ConfigError, match="expected one token") as caught:
        load_token(with_token_file(tmp_path / "token"), {})
    assert "hunter2" not in str(caught.value)
    assert str(tmp_path / "token") in str(caught.value)


def test_a_bad_token_in_the_environment_is_answered_with_its_variable() -> None:
    with pytest.raises(ConfigError, match=r"^DATAROBOT_API_TOKEN: expected one token") as caught:
        load_token(Config(), {"DATAROBOT_API_TOKEN": "hunter2 hunter2"})
    assert "hunter2" not in str(caught.value)


def test_a_token_file_that_is_not_there_is_answered_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^upstream.token_file = '.*/token': cannot read it: No such file"):
        load_token(with_token_file(tmp_path / "token"), {})


@pytest.mark.parametrize(("mode", "warned"), [(0o644, True), (0o600, False), (0o640, False)])
def test_a_token_that_everybody_can_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warned: bool
) -> None:
    (tmp_path / "token").write_text("hunter2")
    (tmp_path / "token").chmod(mode)
    with caplog.at_level(logging.WARNING):
        assert load_token(with_token_file(tmp_path / "token"), {}) == "hunter2"
    assert ("expected mode 0600" in caplog.text) is warned
    assert "hunter2" not in caplog.text


# Paths, and what editors write before a text


def test_a_home_directory_is_meant_by_a_tilde_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    paths = [key for key in KEYS if key.endswith(("_file", "tls_cert", "tls_key", "store.path"))]
    assert len(paths) == 7
    config = read(tmp_path, "", {f"{PREFIX}{key.upper().replace('.', '__')}": f"~/{key}" for key in paths})
    for key in paths:
        assert value_of(config, key) == Path(f"/home/somebody/{key}")
    assert read(tmp_path, '[store]\npath = "~/images"').store.path == Path("/home/somebody/images")
    assert read(tmp_path, '[store]\npath = "images"').store.path == Path("images")


def test_a_tilde_that_is_nobodys_home_is_refused_by_name(complaint: Complain) -> None:
    said = complaint('[store]\npath = "~no-such-user-here/images"')
    assert "store.path = '~no-such-user-here/images': expected a path; what begins with ~ has to be a home" in said


def test_the_file_itself_may_be_in_a_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "config.toml").write_text("[store]\nkeep = 7\n")
    assert load(Path("~/config.toml"), {}).store.keep == load(None, {FILE_VARIABLE: "~/config.toml"}).store.keep == 7
    with pytest.raises(ConfigError, match=r"^~no-such-user-here/x: no such home directory is known here$"):
        load(Path("~no-such-user-here/x"), {})


def test_a_byte_order_mark_is_taken_for_what_it_is(tmp_path: Path) -> None:
    file, token = tmp_path / "config.toml", tmp_path / "token"
    file.write_bytes(b"\xef\xbb\xbf[upstream]\r\ntoken_file = '" + str(token).encode() + b"'\r\n")
    token.write_bytes(b"\xef\xbb\xbfabc\r\n")
    assert load_token(load(file, {}), {}) == "abc"
    file.write_bytes("[store]\n".encode("utf-16"))
    with pytest.raises(ConfigError, match=r"config\.toml: not UTF-8 but UTF-16; save it as UTF-8$"):
        load(file, {})
