"""What upstream says ends up in headers and paths: nothing it can say breaks out of them."""

import re
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.common.log import redact
from mirror.http.exchange import _SANE_ID
from mirror.http.image_response import content_disposition


def saved_as(header: str) -> str:
    """The name under which a client saves: RFC 6266 prefers the extended parameter."""
    if extended := re.search(r"filename\*=UTF-8''(\S+)", header):
        return unquote(extended[1])
    plain = re.search(r'filename="([^"]*)"', header)
    assert plain is not None
    return plain[1]


@given(st.text(max_size=300))
def test_any_file_name_becomes_one_safe_header_value(filename: str) -> None:
    header = content_disposition(filename, "image.tar.gz")
    assert re.fullmatch(
        r'attachment; filename="[^"\\\x00-\x1f\x7f]+"(; filename\*=UTF-8\'\'[\w.~%-]+)?', header, re.ASCII
    )
    name = saved_as(header)
    assert name
    assert not name.startswith(".")
    assert not {"/", "\\", "\0"} & set(name)


@pytest.mark.parametrize(
    ("filename", "saved"),
    [
        ("datarobot-portable.tar.gz", "datarobot-portable.tar.gz"),
        ("../../etc/passwd", "passwd"),
        ("C:\\x\\y.tar", "y.tar"),
        ("..", "image.tar.gz"),
        ("", "image.tar.gz"),
        (".bashrc", "bashrc"),
        ('a"; filename="b', 'a"; filename="b'),
        ("a\r\nSet-Cookie: b", "aSet-Cookie: b"),
        ("Größe.tar.gz", "Größe.tar.gz"),
    ],
)
def test_a_file_name_is_saved_as_a_person_would_expect(filename: str, saved: str) -> None:
    assert saved_as(content_disposition(filename, "image.tar.gz")) == saved


@given(st.text(max_size=200))
def test_a_request_id_is_taken_over_only_when_it_is_harmless(text: str) -> None:
    if _SANE_ID.fullmatch(text):
        assert text.isascii()
        assert not re.search(r"[\s\"'\\]", text)


@pytest.mark.parametrize(
    "line",
    [
        "header Authorization: Bearer s3cr3t was sent",
        "authorization: token s3cr3t",
        "GET https://bucket.example/key?X-Amz-Signature=s3cr3t HTTP/1.1",
        "http://h:80/?s3cr3t",
    ],
)
def test_the_log_blots_out_credentials_and_queries(line: str) -> None:
    assert "s3cr3t" in line
    assert "s3cr3t" not in redact(line)
