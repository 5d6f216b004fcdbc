"""Inflates with the zlib that Python itself runs on, through the calls that Python's own module does not offer.

These stop at the end of a deflate block, say at which bit that is, and begin there (`Z_BLOCK`, `inflatePrime`). They
are called through ctypes, which releases the GIL meanwhile. The structure is part of zlib's binary interface, which has
not changed since 1995, and zlib checks its size.
"""

import ctypes
import weakref
from functools import cache

WINDOW = 32 << 10
"""Bytes before a point that are needed in order to inflate from there."""

GZIP, RAW = 31, -15
"""What is inflated: gzip with header and check, or what is between these."""

_OK, _STREAM_END, _BUF_ERROR = 0, 1, -5
_NO_FLUSH, _BLOCK = 0, 5
_AT_BLOCK_END, _LAST_BLOCK, _BITS = 128, 64, 7


class BadGzip(Exception):
    """What should be gzip is not; the text says why."""


class NoZlib(Exception):
    """There is no zlib to load; the text says what to install."""


class _Stream(ctypes.Structure):
    """`z_stream`."""

    _fields_ = (
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_uint),
        ("total_in", ctypes.c_ulong),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint),
        ("total_out", ctypes.c_ulong),
        ("msg", ctypes.c_char_p),
        ("state", ctypes.c_void_p),
        ("zalloc", ctypes.c_void_p),
        ("zfree", ctypes.c_void_p),
        ("opaque", ctypes.c_void_p),
        ("data_type", ctypes.c_int),
        ("adler", ctypes.c_ulong),
        ("reserved", ctypes.c_ulong),
    )


@cache
def _zlib() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libz.so.1")
    except OSError:
        raise NoZlib("libz.so.1 cannot be loaded: install zlib (on Debian, the package zlib1g)") from None
    library.zlibVersion.restype = ctypes.c_char_p
    return library


class Inflater:
    """One stream that is being inflated: feed it, take what comes out. For one thread at a time.

    Raises NoZlib.
    """

    def __init__(self, kind: int) -> None:
        self._zlib = _zlib()
        self._stream = stream = _Stream()
        self._fed: object = None
        self._size = ctypes.sizeof(stream)
        code = self._zlib.inflateInit2_(ctypes.byref(stream), kind, self._zlib.zlibVersion(), self._size)
        if code != _OK:
            raise MemoryError(f"zlib cannot begin to inflate ({code})")
        weakref.finalize(self, self._zlib.inflateEnd, ctypes.byref(stream))
        self.ended = False
        self.has_begun = False
        """Its header, if it has one, is a gzip header."""

    @property
    def unread(self) -> int:
        """Return how many bytes of what was fed are not inflated yet."""
        return int(self._stream.avail_in)

    @property
    def at_block_end(self) -> bool:
        """Return whether it stands between two blocks, where `point` may be asked for."""
        return bool(self._stream.data_type & (_AT_BLOCK_END | _LAST_BLOCK) == _AT_BLOCK_END)

    @property
    def bits(self) -> int:
        """Return how many bits of the last byte that it took belong to the next block."""
        return int(self._stream.data_type & _BITS)

    def begin(self, bits: int, value: int, window: bytes) -> None:
        """Begin within a stream (RAW): `value` has its first `bits` bits, `window` came before."""
        if bits:
            self._check(self._zlib.inflatePrime(ctypes.byref(self._stream), bits, value))
        if window:
            self._check(self._zlib.inflateSetDictionary(ctypes.byref(self._stream), window, len(window)))

    def window(self) -> bytes:
        """Return the last bytes that came out, WINDOW at most."""
        buffer, length = ctypes.create_string_buffer(WINDOW), ctypes.c_uint()
        self._check(self._zlib.inflateGetDictionary(ctypes.byref(self._stream), buffer, ctypes.byref(length)))
        return buffer.raw[: length.value]

    def feed(self, data: memoryview) -> None:
        """Give it the next bytes, which must be writable and stay as they are until they are inflated."""
        self._fed = data  # zlib does not keep it alive
        self._stream.next_in = ctypes.addressof(ctypes.c_char.from_buffer(data)) if len(data) else None
        self._stream.avail_in = len(data)

    def skip(self, count: int) -> None:
        """Leave out `count` of the bytes that were fed."""
        self._stream.next_in += count
        self._stream.avail_in -= count

    def inflate(self, out: memoryview, *, to_block_end: bool = False) -> int:
        """Write what comes next into `out`; return how many bytes; after the last, `ended` is set. Raises BadGzip.

        With `to_block_end` it also stops where a block ends.
        """
        stream = self._stream
        stream.next_out = ctypes.addressof(ctypes.c_char.from_buffer(out))
        stream.avail_out = len(out)
        code = self._zlib.inflate(ctypes.byref(stream), _BLOCK if to_block_end else _NO_FLUSH)
        self.ended = code == _STREAM_END
        if code not in (_OK, _STREAM_END, _BUF_ERROR):
            self._check(code)
        count = len(out) - int(stream.avail_out)
        self.has_begun = self.has_begun or count > 0 or self.ended or self.at_block_end
        return count

    def restart(self) -> None:
        """Take what follows as another gzip member."""
        self._check(self._zlib.inflateReset2(ctypes.byref(self._stream), GZIP))
        self.ended = self.has_begun = False

    def _check(self, code: int) -> None:
        if code != _OK:
            raise BadGzip((self._stream.msg or b"").decode() or f"zlib's error {code}")
