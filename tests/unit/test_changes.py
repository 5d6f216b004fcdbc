"""Which keys a running mirror takes up, held against every key there is."""

import re
from pathlib import Path
from typing import Any

import pytest

from mirror.config import KEYS, RESTART, Changes, Config, load
from mirror.config.changes import given, value_of
from mirror.model.errors import ConfigError
from tests.support.documents import DOCS, ROOT, Document

OTHER: dict[str, Any] = {
    "hooks": '[{name = "told", url = "https://ci.example.com/", events = ["image.stored"]}]',
    "server.host": "127.0.0.1",
    "server.port": 9000,
    "server.tls_cert": "other.pem",
    "server.tls_key": "other.pem",
    "admin.host": "127.0.0.2",
    "admin.port": 9001,
    "admin.public_url": "http://127.0.0.1/pps-mirror",
    "upstream.url": "https://dr.example",
    "upstream.proxy": "http://proxy.example:3128",
    "upstream.connections": 2,
    "upstream.max_rate": "5MB/s",
    "upstream.rates": "08:00-18:00=5MB/s",
    "upstream.redirect_hosts": "*.example.com",
    "upstream.passthrough": "version/,other/",
    "upstream.rollover": "when_stored",
    "auth.mode": "open",
    "store.max_size": "60GiB",
    "store.holdback": "64KB",
    "store.s3.bucket": "other-bucket",
    "store.s3.region": "other",
    "store.s3.max_size": "60GiB",
    "store.s3.serve": "redirect",
    "store.s3.local_copy": "false",
    "store.s3.endpoint_url": "https://s3.example",
    "store.s3.public_endpoint_url": "https://s3.example",
    "prefetch.enabled": "true",
    "prefetch.window": "22:00-06:00",
    "registry.enabled": "false",
    "registry.repository": "other/image",
    "log.level": "debug",
    "log.format": "json",
}
"""Another value of each key that does not take the one below."""

BASE = {"PPS_MIRROR__STORE__S3__BUCKET": "some-bucket", "PPS_MIRROR__SERVER__TLS_CERT": "cert.pem"}
BASE |= {"PPS_MIRROR__SERVER__TLS_KEY": "key.pem"}


def another(key: str) -> str:
    if key in OTHER:
        return str(OTHER[key])
    kind = type(value_of(Config(), key))
    return {int: "17", float: "17s", type(None): "/other"}.get(kind, "other/")


def variable(key: str) -> str:
    return "PPS_MIRROR__" + key.upper().replace(".", "__")


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_taken_up_or_takes_a_restart(key: str) -> None:
    running = load(None, BASE)
    fresh = load(None, BASE | {variable(key): another(key)})
    assert value_of(running, key) != value_of(fresh, key)
    changes = Changes.between(running, fresh)
    restart = key in RESTART
    assert (changes.restart, changes.taken, changes.kept) == ((key,) if restart else (), () if restart else (key,), ())
    assert value_of(changes.config, key) == value_of(running if restart else fresh, key)


def test_the_keys_that_take_a_restart_are_marked_in_the_example_and_in_the_reference() -> None:
    assert set(KEYS) >= RESTART
    marked, section = set(), ""
    for line in (ROOT / "config.example.toml").read_text().splitlines():
        if header := re.fullmatch(r"\[(.+)\]", line):
            section = header[1]
        elif (key := re.match(r"(\w+) = ", line)) and line.endswith("(restart)"):
            marked.add(f"{section}.{key[1]}")
    assert marked == RESTART
    rows = Document(DOCS / "reference" / "configuration.md").rows("key", "restart")
    assert {key.strip("`") for key, restart in rows if restart == "restart"} == RESTART


@pytest.mark.parametrize("switch", [True, False], ids=["on", "off"])
def test_tls_is_switched_on_and_off_by_a_restart(switch: bool) -> None:
    plain = {"PPS_MIRROR__SERVER__TLS_CERT": "", "PPS_MIRROR__SERVER__TLS_KEY": ""}
    with_tls, without = load(None, BASE), load(None, plain)
    changes = Changes.between(without, with_tls) if switch else Changes.between(with_tls, load(None, BASE | plain))
    assert {"server.tls_cert", "server.tls_key"} <= set(changes.restart)


def test_what_has_gone_from_the_configuration_sets_nothing() -> None:
    running = load(None, {"PPS_MIRROR__UPSTREAM__MAX_RATE": "5MB/s", "PPS_MIRROR__AUTH__TTL": "5s"})
    changes = Changes.between(running, load(None, {"PPS_MIRROR__AUTH__TTL": "7s"}))
    assert (changes.taken, changes.kept) == (("auth.ttl",), ("upstream.max_rate",))
    assert changes.config.upstream.max_rate == 5_000_000
    again = Changes.between(changes.config, load(None, {"PPS_MIRROR__AUTH__TTL": "7s"}))
    assert again.kept == ("upstream.max_rate",)  # it does not forget
    lifted = Changes.between(again.config, load(None, {"PPS_MIRROR__UPSTREAM__MAX_RATE": ""}))
    assert lifted.taken == ("upstream.max_rate",)
    assert lifted.config.upstream.max_rate is None


def test_what_contradicts_what_takes_a_restart_is_refused() -> None:
    running = load(None, {"PPS_MIRROR__ADMIN__HOST": "192.0.2.1", "PPS_MIRROR__ADMIN__TOKEN_FILE": "/token"})
    fresh = load(None, {"PPS_MIRROR__ADMIN__HOST": "127.0.0.1", "PPS_MIRROR__ADMIN__TOKEN_FILE": ""})
    with pytest.raises(ConfigError, match=r"admin\.host is not a loopback address"):
        Changes.between(running, fresh)


def test_given_is_what_was_written_down(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[store]\nkeep = 3\n[store.s3]\nprefix = 'x/'\n[log]\n")
    assert given(load(file, {})) == {"store.keep", "store.s3.prefix"}
