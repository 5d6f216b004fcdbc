"""The file of a site's own tokens: what it may say, and that what it says stays in it."""

import logging
from hashlib import sha256
from pathlib import Path

import pytest

from mirror.access.tokens import Tokens
from mirror.model.errors import ConfigError

SECRET = "a-secret-that-nobody-may-see"
HASH = sha256(SECRET.encode()).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.touch(mode=0o600)
    return path


def test_a_token_is_known_by_its_hash_alone(file: Path) -> None:
    file.write_text(f"ci:{HASH}\n")
    tokens = Tokens.read(file)
    assert tokens.name_of(SECRET) == "ci"
    for other in ("", HASH, SECRET.upper(), SECRET + " ", f"ci:{SECRET}", "ci"):
        assert tokens.name_of(other) is None


def test_comments_blank_lines_and_upper_case_are_fine_and_a_name_may_have_two_tokens(file: Path) -> None:
    file.write_bytes(
        b"\xef\xbb\xbf# Clients of site \xc3\xa9\n\n  ci : " + HASH.upper().encode() + b"  \r\n"
        b"ops@example.com:" + sha256(b"old").hexdigest().encode() + b"\n"
        b"ops@example.com:" + sha256(b"new").hexdigest().encode()
    )
    tokens = Tokens.read(file)
    assert [tokens.name_of(token) for token in (SECRET, "old", "new")] == ["ci", "ops@example.com", "ops@example.com"]


@pytest.mark.parametrize(
    "line",
    [
        SECRET,
        HASH,
        f"ci:{SECRET}",
        f"ci:{HASH}0",
        f"ci:{HASH[:-1]}",
        f"ci:{HASH[:-1]}g",
        f":{HASH}",
        f"two words:{HASH}",
        f"{'n' * 65}:{HASH}",
        f"ci:{HASH} # Tom",
        f"ci={HASH}",
        f"\x1b[2J:{HASH}",
    ],
)
def test_anything_else_is_an_error_that_names_file_and_line_and_quotes_nothing(file: Path, line: str) -> None:
    file.write_text(f"# one\nother:{HASH}\n{line}\n")
    with pytest.raises(ConfigError) as error:
        Tokens.read(file)
    said = str(error.value)
    assert said.startswith(f"auth.tokens_file = '{file}', line 3: expected \"name:sha256-of-token\"")
    assert "\n" not in said
    assert SECRET not in said
    assert HASH[:-1] not in said.lower()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^auth\.tokens_file = '.*/none': cannot read it: No such file or directory$"
    ):
        Tokens.read(tmp_path / "none")
    with pytest.raises(ConfigError, match="cannot read it: Is a directory"):
        Tokens.read(tmp_path)


def test_a_file_that_everybody_can_write_to_is_worth_a_warning(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_text(f"ci:{HASH}\n")
    with caplog.at_level(logging.WARNING):
        Tokens.read(file)
        assert caplog.messages == []
        file.chmod(0o666)
        assert Tokens.read(file).name_of(SECRET) == "ci"
    assert caplog.messages == [
        f"auth.tokens_file = '{file}': every user of this machine can write to it; expected mode 0600"
    ]


def test_an_empty_file_lets_nobody_in_and_says_so(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_text("# nobody yet\n")
    assert Tokens.read(file).name_of("") is None
    assert "nobody may read" in caplog.messages[0]


def test_tokens_do_not_show_their_hashes(file: Path) -> None:
    file.write_text(f"ci:{HASH}\n")
    assert repr(Tokens.read(file)) == "Tokens()"
