"""Archives that are no docker archives, or hostile ones, each with what the reason says why it is refused."""

import gzip
import tarfile
import zlib
from collections.abc import Callable, Mapping

from mirror.registry.index import MAX_DOCUMENT
from tests.support.layouts import File, Layout, Link, archive_files, compact, image_config, make_tar
from tests.support.registry import zipped

LAYER = make_tar({"etc/hostname": File(b"pps\n")})
MIB = 1 << 20
BOMB = 200 * MIB
"""Bytes to which a bomb inflates at least; LIMIT is less."""

LIMIT = 128 * MIB
"""Bytes to which an archive may inflate in tests, beside fifty times its size."""


def files(layout: Layout = Layout.CLASSIC) -> dict[str, File | Link]:
    """An archive that is in order."""
    return archive_files(layout, [LAYER], None)


def with_manifest(manifest: object, *, raw: bytes | None = None) -> bytes:
    """An archive with another `manifest.json`."""
    return make_tar(files() | {"manifest.json": File(compact(manifest) if raw is None else raw)})


def with_layer(name: str, **others: File | Link) -> bytes:
    """An archive whose only layer has that name."""
    config = image_config([LAYER])
    manifest = [{"Config": "config", "RepoTags": None, "Layers": [name]}]
    return make_tar({"config": File(config), **others, "manifest.json": File(compact(manifest))})


def with_config(config: bytes) -> bytes:
    """An archive with another config."""
    return make_tar(archive_files(Layout.CLASSIC, [LAYER], None, config))


def with_gzip_layer(layer: bytes) -> bytes:
    """An archive with these bytes as the layer, which should be gzip of LAYER."""
    return with_layer("layer", layer=File(layer))


def member(name: str = "x", size: int = 0, kind: bytes = b"0", pax: Mapping[str, str] | None = None) -> bytes:
    """The header of a member, whose data does not follow."""
    info = tarfile.TarInfo(name)
    info.type, info.pax_headers = kind, dict(pax or {})
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT)


def changed(header: bytes, at: int, data: bytes) -> bytes:
    """The last block of a header with other bytes at `at`, and the right checksum."""
    before, block = header[:-512], bytearray(header[-512:])
    block[at : at + len(data)] = data
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return before + bytes(block)


def pax_header(records: bytes, kind: bytes = b"x") -> bytes:
    """A PAX header with these records."""
    return member("pax", len(records), kind) + records + bytes(-len(records) % 512)


def bomb(size: int) -> bytes:
    """Gzip of `size` bytes of zeros."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    chunk = bytes(MIB)
    return b"".join([*(packer.compress(chunk) for _ in range(size // MIB)), packer.flush()])


def one_block_bomb(size: int) -> bytes:
    """Gzip of zeros in a single block with fixed codes, so that nothing can begin within it."""
    bits = 0b011 | (0b00001100 << 3)  # the last block, fixed codes; a literal of zero is 00110000, in reverse
    count = 11
    # a match of 258 bytes is the code 11000101 (in reverse) with no extra bits; its distance of 1 is 00000
    unit, length = 0b10100011, 13
    repeated = 0
    for number in range(8):
        repeated |= unit << (length * number)
    eight = repeated.to_bytes(13, "little")
    body = int.from_bytes(eight * (size // 258 // 8), "little")
    stream = (bits | (body << count)).to_bytes(len(eight) * (size // 258 // 8) + 2, "little")
    return bytes.fromhex("1f8b08000000000000ff") + stream


def tar_of_many(count: int) -> bytes:
    """A tar of very many empty members."""
    return member() * count + make_tar(files())


def many_pax_headers() -> bytes:
    """A member behind a million headers that say nothing of use."""
    return pax_header(b"11 a=bcdef\n") * 30_000 + make_tar(files())


def bomb_behind_a_header(size: int) -> bytes:
    """A member of zeros that fills a small gzip file."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    chunk = bytes(MIB)
    begins = packer.compress(member("x", size))
    return b"".join([begins, *(packer.compress(chunk) for _ in range(size // MIB)), packer.flush()])


def one_block_bomb_behind_a_header(size: int) -> bytes:
    """The same, without a place to begin from."""
    return gzip.compress(member("x", size), mtime=0) + one_block_bomb(size)


def many_bombs() -> bytes:
    """Bombs that are small each."""
    small = bomb(64 * MIB)
    return zipped(make_tar({f"{number}": File(small) for number in range(20)}), 0)


def long_name(number: int) -> bytes:
    """A member with a name of a mebibyte less a bit."""
    name = b"%d" % number + b"n" * (MIB - 100)
    return member("long", len(name), b"L") + name + bytes(-len(name) % 512) + member()


def layer_that_is(kind: bytes, pax: Mapping[str, str] | None = None) -> bytes:
    """An archive whose layer is a member of that kind."""
    return without_end(with_layer("layer")) + member("layer", 0, kind, pax) + bytes(1024)


def without_end(tar: bytes) -> bytes:
    """The tar without the zeros that mark its end, so that another can follow."""
    members = tar.rstrip(b"\0")
    return members + bytes(-len(members) % 512)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "neither a tar nor gzip"),
    "text": (lambda: b"<html>not found</html>" * 100, "neither a tar nor gzip"),
    "another compression": (lambda: b"\x28\xb5\x2f\xfd" + bytes(2000), "neither a tar nor gzip"),
    "gzip of text": (lambda: zipped(b"hello " * 1000), "it is no tar"),
    "gzip of nothing": (lambda: zipped(b""), "no manifest.json"),
    "a tar of something else": (lambda: zipped(make_tar({"readme": File(b"hi")})), "no manifest.json"),
    "an empty tar": (lambda: make_tar({}), "neither a tar nor gzip"),
    "gzip that is cut off": (lambda: zipped(make_tar(files()))[:-200], "gzip is damaged: it is cut off"),
    "gzip with a wrong byte": (
        lambda: zipped(make_tar(files()))[:300] + b"\0\0\0\0" + zipped(make_tar(files()))[304:],
        "damaged",
    ),
    "a header only of gzip": (lambda: b"\x1f\x8b\x08\0\0\0\0\0\0\xff", "it is cut off"),
    "a tar that is cut off": (lambda: make_tar(files())[:1100], "its tar is cut off"),
    "a tar cut off in a header": (lambda: make_tar(files())[:1200], "cut off"),
    "a damaged header": (lambda: without_end(make_tar(files())) + b"\x07" * 512, "a damaged header"),
    "a wrong checksum": (lambda: member() + b"A" * 512 + make_tar(files()), "a damaged header"),
    "a bomb": (lambda: bomb_behind_a_header(BOMB), "inflates to more than"),
    "a bomb as a layer": (lambda: with_gzip_layer(bomb(BOMB)), "inflates to more than"),
    "a bomb in each of many members": (lambda: many_bombs(), "inflates to more than"),
    "a bomb of one block": (
        lambda: one_block_bomb_behind_a_header(150 * MIB),
        "without a place to begin from",
    ),
    "gzip members with nothing in them": (lambda: gzip.compress(b"", mtime=0) * 200_000, "have nothing in them"),
    "a member of 2^63 bytes": (lambda: changed(member(), 124, b"\x80\0\0\0" + b"\x80" + bytes(7)), "inflates to more"),
    "a member of 2^63 bytes in a PAX record": (lambda: member(pax={"size": str(2**63)}), "inflates to more than"),
    "a member of less than nothing": (lambda: changed(member(), 124, b"\xff" * 12), "a wrong number"),
    "a size that is no number": (lambda: changed(member(), 124, b"0x10_000\0"), "a wrong number"),
    "a PAX size that is no number": (lambda: pax_header(b"12 size=-12\n") + member(), "wrong size in a PAX record"),
    "a PAX record of no length": (lambda: pax_header(b"0 a=b\n") + member(), "wrong PAX record"),
    "a PAX record that leads out": (lambda: pax_header(b"9999 path=b\n") + member(), "wrong PAX record"),
    "a PAX header of a gigabyte": (lambda: zipped(member("x", 1 << 30, b"x")), "a header of 1073741824 bytes"),
    "a long name of a gigabyte": (lambda: zipped(member("x", 1 << 30, b"L")), "a header of 1073741824 bytes"),
    "a size for all members": (lambda: pax_header(b"11 size=10\n", b"g") + member(), "a size for all members"),
    "two names of one member": (
        lambda: pax_header(b"10 path=a\n") + pax_header(b"10 path=b\n") + member(),
        "two values of path",
    ),
    "more than 20000 members": (lambda: zipped(tar_of_many(20_001)), "more than 20000 members"),
    "more than 20000 headers of one member": (lambda: zipped(many_pax_headers()), "more than 20000 members"),
    "very many members that seem to be gzip": (
        lambda: zipped(make_tar({f"{number}": File(b"\x1f\x8b\x08") for number in range(19_000)})),
        "no manifest.json",
    ),
    "a sparse map without end": (
        lambda: zipped(changed(member("x", 0, b"S"), 482, b"\1") + (bytes(504) + b"\1" + bytes(7)) * 30_000),
        "sparse member without end",
    ),
    "names of many megabytes": (
        lambda: zipped(b"".join(long_name(number) for number in range(20))),
        "names in its tar",
    ),
    "a manifest that is too large": (
        lambda: with_manifest(None, raw=b" " * (MAX_DOCUMENT + 1)),
        "manifest.json has 4194305 bytes",
    ),
    "a manifest that is no JSON": (lambda: with_manifest(None, raw=b"{nope"), "manifest.json is unusable"),
    "a manifest that is no text": (lambda: with_manifest(None, raw=b"\xff\xfe\0"), "manifest.json is unusable"),
    "a manifest that is an object": (lambda: with_manifest({"Config": "x"}), "manifest.json is unusable"),
    "a manifest of nothing": (lambda: with_manifest([]), "names no image"),
    "a manifest of null": (lambda: with_manifest([None]), "manifest.json is unusable: 0:"),
    "a manifest with numbers for names": (
        lambda: with_manifest([{"Config": 1, "Layers": [2]}]),
        "manifest.json is unusable: 0.Config:",
    ),
    "a manifest that is nested deeply": (lambda: with_manifest(None, raw=b"[" * MIB), "manifest.json is unusable"),
    "a manifest of very many values": (
        lambda: with_manifest(None, raw=b"[" + b"0," * (2 * MIB - 2) + b"0]"),
        "more than 50000 values",
    ),
    "a manifest of very many images": (
        lambda: with_manifest([{"Config": "x", "Layers": []}] * 2000),
        "2000 images",
    ),
    "a manifest that is a link to itself": (
        lambda: make_tar(files() | {"manifest.json": Link("manifest.json")}),
        "no manifest.json",
    ),
    "two manifests": (
        lambda: without_end(make_tar({"manifest.json": File(b"[]")})) + make_tar(files()),
        "more than one manifest.json",
    ),
    "a layer that is missing": (lambda: with_layer("gone"), "its layer 'gone' is missing"),
    "a layer outside of the archive": (lambda: with_layer("../../etc/passwd"), "leads out of it"),
    "a layer at an absolute path": (lambda: with_layer("/etc/passwd"), "leads out of it"),
    "a layer with a NUL in its name": (lambda: with_layer("layer\0x"), "leads out of it"),
    "a link out of the archive": (lambda: with_layer("layer", layer=Link("../etc/passwd")), "leads out of it"),
    "a link to an absolute path": (lambda: with_layer("layer", layer=Link("/etc/passwd")), "leads out of it"),
    "a hard link out of the archive": (
        lambda: with_layer("layer", layer=Link("../../layer", hard=True)),
        "leads out of it",
    ),
    "links in a circle": (lambda: with_layer("a", a=Link("b"), b=Link("a")), "a link that never ends"),
    "a link to itself": (lambda: with_layer("a", a=Link("a", hard=True)), "a link that never ends"),
    "a link to nothing": (lambda: with_layer("a", a=Link("b")), "its layer 'a' is missing"),
    "a layer that is a directory": (lambda: layer_that_is(b"5"), "no file"),
    "a layer that is a device": (lambda: layer_that_is(b"3"), "no file"),
    "a layer that is sparse": (lambda: layer_that_is(b"S"), "a sparse file"),
    "a layer that is sparse by PAX": (
        lambda: layer_that_is(b"0", {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}),
        "a sparse file",
    ),
    "two layers of one name": (
        lambda: without_end(make_tar({"layer": File(b"other")})) + with_layer("layer", layer=File(LAYER)),
        "more than one layer",
    ),
    "a layer that is another": (lambda: with_layer("layer", layer=File(b"other")), "not the one that its config names"),
    "a layer in another compression": (
        lambda: with_layer("layer", layer=File(b"\x28\xb5\x2f\xfd\0\0")),
        "not the one that its config names",
    ),
    "a layer that is gzip of another": (
        lambda: with_gzip_layer(gzip.compress(b"other", mtime=0)),
        "not the one that its config names",
    ),
    "a gzip layer that is cut off": (
        lambda: with_gzip_layer(gzip.compress(LAYER, mtime=0)[:-9]),
        "its gzip is cut off",
    ),
    "a gzip layer with a wrong check": (
        lambda: with_gzip_layer(gzip.compress(LAYER, mtime=0)[:-8] + b"12345678"),
        "its gzip is damaged",
    ),
    "a gzip layer with bytes behind it": (
        lambda: with_gzip_layer(gzip.compress(LAYER, mtime=0) + bytes(100)),
        "other bytes after its gzip",
    ),
    "a layer without the hash that it is named by": (
        lambda: with_layer(f"{'0' * 64}.tar", **{f"{'0' * 64}.tar": File(LAYER)}),
        "does not have the hash that it is named by",
    ),
    "a config without the hash that it is named by": (
        lambda: make_tar(
            {
                f"sha256:{'0' * 64}": File(image_config([LAYER])),
                "layer": File(LAYER),
                "manifest.json": File(
                    compact([{"Config": f"sha256:{'0' * 64}", "RepoTags": None, "Layers": ["layer"]}])
                ),
            }
        ),
        "does not have the hash that it is named by",
    ),
    "a config that is no JSON": (lambda: with_config(b"hello"), "config is unusable"),
    "a config without layers": (lambda: with_config(b'{"rootfs":{"diff_ids":[]}}'), "1 layers, and its config names 0"),
    "a config of another shape": (lambda: with_config(b'{"rootfs":[]}'), "config is unusable: rootfs:"),
    "a config that is too large": (lambda: with_config(b" " * (MAX_DOCUMENT + 1)), "its config has 4194305 bytes"),
    "a config of very many values": (lambda: with_config(b'{"x":[' + b"0," * MIB + b"0]}"), "more than 50000 values"),
}
