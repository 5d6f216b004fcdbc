"""Whatever is written: units come back as they went, and no junk ends in anything but one line."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from mirror.common.units import (
    MAX_DURATION,
    format_duration,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
    parse_window,
)
from mirror.config import KEYS, Config, load, load_token
from mirror.model.errors import ConfigError

SIZE_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
DURATION_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}

# Everything an operating system may put into a variable: no NUL, but any byte that is not UTF-8 (surrogates).
any_text = st.text(st.characters(exclude_characters="\x00", exclude_categories=[]), max_size=40)
any_value = any_text | st.sampled_from(
    ["", "0", "1", "true", "5m", "64MiB", "[", '["a"]', "a,b", "http://u:hunter2@h", "https://h", "-1", "tokens", "::1"]
)
variables = st.sampled_from(["PPS_MIRROR__" + key.upper().replace(".", "__") for key in KEYS])
strange_variables = st.builds("PPS_MIRROR__{}".format, any_text)
environments = st.dictionaries(variables | strange_variables, any_value, max_size=4)

keys = st.sampled_from([name for key in KEYS for name in key.split(".")]) | st.text(max_size=8)
scalars = (
    st.booleans()
    | st.integers()
    | st.integers(min_value=10**4400, max_value=10**4500).map(abs)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["upstream", "open", "60s", "1GiB", "https://host", "127.0.0.1"])
)
trees = st.recursive(
    st.dictionaries(keys, scalars | st.lists(scalars, max_size=3), max_size=4),
    lambda inner: st.dictionaries(keys, inner | scalars | st.lists(inner, max_size=2), max_size=4),
    max_leaves=6,
)


def toml(value: object) -> str:
    """Write a value as TOML, integers in hexadecimal (which knows no limit of digits)."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return hex(value) if value >= 0 else str(value)
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(character):08x}" for character in value) + '"'
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml(key)} = {toml(item)}" for key, item in value.items()) + "}"
    return repr(value)


def load_bytes(content: bytes, environ: Mapping[str, str]) -> Config | None:
    """Load it; None when it was refused in one line."""
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(content)
        file.flush()
        try:
            return load(Path(file.name), environ)
        except ConfigError as error:
            message = str(error)
            assert message.splitlines() == [message]
            assert message.isprintable()
            assert "hunter2" not in message
            assert len(message) < 1000
            return None


@given(st.integers(0, 2**22), st.sampled_from(sorted(SIZE_UNITS)), st.sampled_from(["", " "]))
def test_a_size_in_any_unit_is_that_many_bytes(count: int, unit: str, space: str) -> None:
    assert parse_size(f"{count}{space}{unit}") == count * SIZE_UNITS[unit]
    if count:
        assert parse_rate(f"{count}{space}{unit}/s") == count * SIZE_UNITS[unit]


@given(st.integers(0, 2**62))  # a shown MAX_SIZE is rounded up, past what is a size
def test_a_size_that_was_shown_reads_back_as_what_was_shown(size: int) -> None:
    back = parse_size(format_size(size))
    assert abs(back - size) <= size / 20
    assert format_size(back) == format_size(size)


@given(st.integers(0, 36_500), st.sampled_from(sorted(DURATION_UNITS)))
def test_a_duration_in_any_unit_is_that_many_seconds(count: int, unit: str) -> None:
    assert abs(parse_duration(f"{count}{unit}") - count * DURATION_UNITS[unit]) <= 1e-9 * count


@given(st.floats(0, MAX_DURATION))
@example(0.9995)
@example(59.95)
@example(3599.5)
def test_a_duration_that_was_shown_reads_back_within_its_second_unit(seconds: float) -> None:
    parts = format_duration(seconds).split(" ")
    back = sum(parse_duration(part) for part in parts)
    lost = 0.0006 if seconds < 0.9995 else 0.06 if seconds < 59.95 else 1.0 if seconds < 3600 else seconds / 24
    assert abs(back - seconds) <= lost


@given(st.times(), st.times())
def test_a_window_reads_back_as_written(start_time: object, end_time: object) -> None:
    start, end = f"{start_time:%H:%M}", f"{end_time:%H:%M}"
    if start != end:
        window = parse_window(f"{start}-{end}")
        assert (f"{window.start:%H:%M}", f"{window.end:%H:%M}") == (start, end)


@given(st.text() | st.from_regex(re.compile(r"[0-9.]{1,40} ?[A-Za-z]{0,3}(/s)?", re.ASCII), fullmatch=True))
def test_no_junk_makes_a_unit_raise_anything_but_what_is_expected(text: str) -> None:
    for parse in (parse_size, parse_duration, parse_rate, parse_window):
        said = "expected it"
        try:
            parse(text)
        except ValueError as error:
            said = str(error)
        assert said.startswith("expected ")


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_no_junk_file_raises_anything_but_one_line(content: bytes) -> None:
    config = load_bytes(content, {})
    assert config in (None, Config())


@given(trees)
@example({"server": [{"x": 1}]})
@example({"server": {"port": 1 << 20_000}})
@example({"upstream": {"passthrough": [1 << 20_000]}})
def test_no_toml_raises_anything_but_one_line(tree: Mapping[str, object]) -> None:
    load_bytes("\n".join(f"{toml(key)} = {toml(value)}" for key, value in tree.items()).encode(), {})


def test_no_depth_of_tables_raises_anything_but_one_line() -> None:
    deep = ".".join(["a"] * 5_000)
    assert load_bytes(f"[[server]]\n{deep} = 1".encode(), {}) is None
    assert load_bytes(f"{deep} = 1".encode(), {}) is None


@given(environments)
@example({"PPS_MIRROR__UPSTREAM__PASSTHROUGH": "[" * 100_000})
@example({"PPS_MIRROR__UPSTREAM__PASSTHROUGH": "[]\nlist = 1"})
@example({"PPS_MIRROR__STORE__PATH": "\udcff"})
@example({"PPS_MIRROR__AUTH__MODE": "\udcff"})
def test_no_environment_raises_anything_but_one_line(environ: Mapping[str, str]) -> None:
    load_bytes(b"", environ)


@given(any_text)
def test_a_token_is_taken_as_it_is_or_refused_in_one_line(token: str) -> None:
    loaded, refused = None, ""
    try:
        loaded = load_token(Config(), {"DATAROBOT_API_TOKEN": token})
    except ConfigError as error:
        refused = str(error)
    if re.fullmatch(r"[!-~]+", token.strip()) or not token:
        assert (loaded, refused) == (token.strip() or None, "")
    else:
        assert refused.startswith("DATAROBOT_API_TOKEN: expected one token")


@given(st.sampled_from(KEYS), any_value)
def test_what_was_accepted_is_accepted_again_and_means_the_same(key: str, value: str) -> None:
    config = load_bytes(b"", {"PPS_MIRROR__" + key.upper().replace(".", "__"): value})
    if config is not None:
        assert Config.model_validate(config.model_dump()) == config
