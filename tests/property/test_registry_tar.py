"""Whatever tar Python's `tarfile` can write, however compressed, the registry reads the same bytes from it."""

import io
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mirror.registry import tar_stream
from mirror.registry.blob_reader import read
from mirror.registry.gzip_file import PlainFile
from mirror.registry.index import Blob
from mirror.registry.seek_index import SeekIndex, SeekIndexWriter
from mirror.registry.tar import Kind, Member, members
from mirror.registry.tar_stream import Budget, IndexedGzip, TarStream
from tests.support.layouts import Layout, archive_files, image_config, make_tar
from tests.support.registry import stored

PAX_SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s", "GNU.sparse.realsize": "4096"}


@dataclass(frozen=True, slots=True)
class Planned:
    """A member to write: `content` for kinds that have data, `target` for links."""

    name: str
    kind: bytes
    content: bytes
    target: str
    pax: dict[str, str]


text = st.characters(exclude_categories=["Cs", "Cc"])
names = st.text(text, min_size=1, max_size=12) | st.text("ab/é", min_size=90, max_size=300)
sizes = st.integers(0, 1600) | st.sampled_from([511, 512, 513, 1024])
contents = st.builds(lambda size, seed: (seed * (size // len(seed) + 1))[:size], sizes, st.binary(min_size=1))
layer_contents = contents.filter(
    lambda data: not data.startswith(b"\x1f\x8b\x08")
)  # else docker would inflate the layer
kinds = st.sampled_from(
    [tarfile.REGTYPE] * 6
    + [tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE]
    + [tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE, b"P"]
)
pax_headers = st.dictionaries(st.sampled_from(["comment", "mtime", "SCHILY.xattr.user.a"]), st.just("1.5é"), max_size=2)
plans = st.lists(st.builds(Planned, names, kinds, contents, names, pax_headers), max_size=6)


def write(plan: Sequence[Planned], pax: bool) -> bytes:
    """Write it; P is a member that is sparse by PAX, which `tarfile` reads and does not write."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT) as archive:
        for each in plan:
            name = each.name
            if each.kind == tarfile.AREGTYPE:  # a slash at the end of that, or of its first 100 bytes, has two meanings
                name = name[:12].rstrip("/") or "-"
            info = tarfile.TarInfo(name)
            info.type, info.linkname = each.kind, each.target
            content = each.content if each.kind in (*tarfile.REGULAR_TYPES, b"P") else b""
            if each.kind == b"P":
                info.type, info.pax_headers = tarfile.REGTYPE, PAX_SPARSE
                content = (b"1\n0\n%d\n" % len(content)).ljust(512, b"\0") + content
            elif pax:
                info.pax_headers = each.pax
            info.size = len(content)
            header = info.tobuf(tarfile.PAX_FORMAT if pax or each.kind == b"P" else tarfile.GNU_FORMAT)
            buffer.write(header + content + bytes(-len(content) % tarfile.BLOCKSIZE))
            archive.offset = buffer.tell()
    return buffer.getvalue()


def compressed(data: bytes, cuts: Sequence[tuple[int, int]]) -> bytes:
    """Return gzip of the data that is flushed after as many bytes as `cuts` say: blocks end at any bit."""
    found, packer = b"", zlib.compressobj(6, zlib.DEFLATED, 31)
    for size, flush in cuts:
        part, data = data[:size], data[size:]
        found += packer.compress(part)
        if flush == zlib.Z_FINISH:  # another member begins
            found += packer.flush()
            packer = zlib.compressobj(1, zlib.DEFLATED, 31)
        else:
            found += packer.flush(flush)
    return found + packer.compress(data) + packer.flush()


flushes = st.sampled_from([zlib.Z_BLOCK, zlib.Z_PARTIAL_FLUSH, zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_FINISH])
all_cuts = st.lists(st.tuples(st.integers(1, 3000), flushes), max_size=15)


@settings(deadline=None, max_examples=60)
@given(plans, st.booleans(), all_cuts, st.integers(500, 5000), st.integers(200, 2000))
def test_every_member_is_what_tarfile_reads(
    plan: list[Planned], pax: bool, cuts: list[tuple[int, int]], spacing: int, piece: int
) -> None:
    written = write(plan, pax)
    with tarfile.open(fileobj=io.BytesIO(written)) as archive:
        expected = [_as_tarfile_reads(archive, info) for info in archive]
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tar_stream, "SPACING", spacing)
        patch.setattr(tar_stream, "PIECE", piece)
        path = Path(directory)
        path.joinpath("tar").write_bytes(written)
        path.joinpath("gzip").write_bytes(compressed(written, cuts))
        with path.joinpath("tar").open("rb") as plain, path.joinpath("gzip").open("rb") as gzipped:
            by_plain = list(members(_stream(PlainFile(plain.fileno()))))
            with SeekIndexWriter(path) as writer:
                by_gzip = list(members(_stream(IndexedGzip(gzipped.fileno(), writer))))
                seek = writer.finish()
            assert by_plain == by_gzip
            for fd, index in ((plain.fileno(), None), (gzipped.fileno(), seek)):
                found = [_as_read(member, _data(fd, index, member)) for member in by_plain]
                assert found == expected


def without_end(tar: bytes) -> bytes:
    """The members of a tar, without the zeros that mark its end: the last member may end in zeros of its own."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        archive.getmembers()
        return tar[: archive.offset]


def _stream(file: PlainFile | IndexedGzip) -> TarStream:
    return TarStream(file, Budget(1), lambda _: None)


def _data(fd: int, seek: SeekIndex | None, member: Member) -> bytes:
    blob = Blob("", member.size, "", member.offset, member.size)
    return b"".join(read(fd, seek, blob, 0, member.size))


def _as_read(member: Member, data: bytes) -> tuple[object, ...]:
    if member.kind is Kind.SPARSE:
        return (Kind.SPARSE,)
    target = member.target if member.kind in (Kind.LINK, Kind.SYMLINK) else ""
    return member.kind, member.name.rstrip("/"), target, data


def _as_tarfile_reads(archive: tarfile.TarFile, info: tarfile.TarInfo) -> tuple[object, ...]:
    if info.sparse is not None:
        return (Kind.SPARSE,)
    if info.isfile():
        file = archive.extractfile(info)
        assert file
        return Kind.FILE, info.name.rstrip("/"), "", file.read()
    which = Kind.SYMLINK if info.issym() else Kind.LINK if info.islnk() else Kind.OTHER
    return which, info.name.rstrip("/"), info.linkname if which is not Kind.OTHER else "", b""


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(Layout),
    st.lists(layer_contents, min_size=1, max_size=5),
    plans,
    st.booleans(),
    st.randoms(use_true_random=False),
)
@example(Layout.CLASSIC, [b"\x1f\x8b"], [], False, Random(1))
def test_a_docker_archive_with_other_members_in_any_order_gives_its_layers(
    layout: Layout, layers: list[bytes], others: list[Planned], pax: bool, order: Random
) -> None:
    files = archive_files(layout, layers, None)
    named = list(files.items())
    order.shuffle(named)
    unrelated = [
        Planned(f"other/{number}", each.kind, each.content, "manifest.json", each.pax)
        for number, each in enumerate(others)
    ]
    tar = without_end(write(unrelated, pax)) + make_tar(dict(named))
    with tempfile.TemporaryDirectory() as directory, stored(Path(directory), compressed(tar, [])) as image:
        index = image.build()
        assert image.read(index, index.config) == image_config(layers)
        for layer, plain in zip(index.layers, layers, strict=True):
            assert zlib.decompress(image.read(index, layer), 31) == plain
