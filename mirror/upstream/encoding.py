"""Decodes small answers that are compressed although that was not asked for; an image is never decoded."""

import zlib
from collections.abc import Mapping

from mirror.model.errors import BadUpstream

_GZIP = b"\x1f\x8b"
_ANY_HEADER = zlib.MAX_WBITS | 32  # gzip's or zlib's


def decoded(body: bytes, headers: Mapping[str, str], limit: int) -> bytes:
    """Undo the `Content-Encoding` of a small answer, which may become `limit` bytes at most.

    Raises BadUpstream, naming the encoding, when it is unknown or broken, or when there would be more bytes.
    """
    encoding = headers.get("Content-Encoding", "").strip().lower()
    if encoding in {"", "identity"} and not body.startswith(_GZIP):  # gzip is never text, whatever the headers say
        return body
    shown = encoding.encode("ascii", "backslashreplace").decode()[:40] or "gzip"
    if encoding not in {"", "identity", "gzip", "x-gzip", "deflate"}:
        raise BadUpstream(f"upstream's answer is encoded as {shown}, although none was asked for: look at the proxies")
    decoder = zlib.decompressobj(_ANY_HEADER)
    try:
        plain = decoder.decompress(body, limit + 1)
    except zlib.error:
        raise BadUpstream(f"upstream's answer is called {shown}, and is not") from None
    if len(plain) > limit:
        raise BadUpstream(f"upstream's answer is longer than {limit} bytes once its {shown} is undone")
    if not decoder.eof or decoder.unused_data:
        raise BadUpstream(f"upstream's answer is called {shown}, and is not whole")
    return plain
