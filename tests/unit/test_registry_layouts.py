"""Every layout of archive is indexed: manifest, config and layers, each of which hashes to its digest."""

import gzip
import json
import random
from pathlib import Path

import pytest

from tests.support.layouts import File, Layout, archive_files, image_config, make_tar, manifest_first, sha256
from tests.support.registry import stored, zipped

NAME = "datarobot/datarobot-portable-prediction-api:7.0.0-r1736"
IN_ARCHIVE_AS_GZIP = {Layout.CRANE, Layout.OCI_GZIP}


def layers() -> list[bytes]:
    """Three layers, of which the last is the first again; the second does not fit into one block of a wrapping."""
    noise = random.Random(1)
    first = make_tar({"etc/os-release": File(b"ID=debian\n" * 300)})
    second = make_tar({"opt/model": File(noise.randbytes(300_000) + b"text " * 50_000)})
    return [first, second, first]


@pytest.mark.parametrize("compressed", [True, False], ids=["gzip", "plain"])
@pytest.mark.parametrize("first", [False, True], ids=["manifest last", "manifest first"])
@pytest.mark.parametrize("layout", Layout)
def test_every_layout_gives_an_image_whose_layers_are_those_of_the_archive(
    layout: Layout, first: bool, compressed: bool, tmp_path: Path
) -> None:
    files = archive_files(layout, layers(), [NAME])
    tar = make_tar(manifest_first(files) if first else files)
    with stored(tmp_path, zipped(tar) if compressed else tar) as image:
        index = image.build()
        manifest = json.loads(index.manifest)
        assert index.manifest_digest == f"sha256:{sha256(index.manifest)}"
        assert index.repo_tags == (NAME,)
        assert not index.warnings
        assert manifest["config"]["digest"] == index.config.digest
        assert image.read(index, index.config) == image_config(layers())
        assert [layer["digest"] for layer in manifest["layers"]] == [layer.digest for layer in index.layers]
        assert index.layers[0] == index.layers[2]
        for layer, plain in zip(index.layers, layers(), strict=True):
            served = image.read(index, layer)
            assert len(served) == layer.size
            assert f"sha256:{sha256(served)}" == layer.digest
            assert gzip.decompress(served) == plain
            if layout in IN_ARCHIVE_AS_GZIP:
                assert served == gzip.compress(plain, mtime=0)


@pytest.mark.parametrize("layout", Layout)
def test_any_range_of_a_blob_is_that_part_of_it(layout: Layout, tmp_path: Path) -> None:
    at_random = random.Random(2)
    with stored(tmp_path, zipped(make_tar(archive_files(layout, layers(), None)))) as image:
        index = image.build()
        for blob in index.blobs.values():
            whole = image.read(index, blob)
            near = [10, 15, 65_545, 65_550, 65_555, len(whole) - 8, len(whole)]
            edges = [edge + by for edge in near for by in (-1, 0, 1) if 0 <= edge + by <= len(whole)]
            for _ in range(40):
                start, stop = sorted(
                    at_random.choice(edges) if at_random.random() < 0.7 else at_random.randrange(len(whole) + 1)
                    for _ in range(2)
                )
                assert image.read(index, blob, start, stop) == whole[start:stop]


def test_the_manifest_is_this_to_the_byte_for_ever(tmp_path: Path) -> None:
    """Made by hand once, from the words of `mirror.registry.wrapping`: clients pin it by its digest."""
    plain = [b"", b"x" * 65535, b"y" * 65536]
    config = b'{"rootfs":{"type":"layers","diff_ids":[%s]}}' % b",".join(
        b'"sha256:%s"' % sha256(layer).encode() for layer in plain
    )
    manifest = (
        b'{"config":{"digest":"sha256:ca31226d99070953e9aa02fc49d54c92a1cc651eb33642ae12353ecf591ef9d9","media'
        b'Type":"application/vnd.docker.container.image.v1+json","size":263},"layers":[{"digest":"sha256:30e6f'
        b'a98fb48c2b132824d1ac5e2243c0be9e9082ff32598d34d7687ca7f6c7f","mediaType":"application/vnd.docker.ima'
        b'ge.rootfs.diff.tar.gzip","size":23},{"digest":"sha256:643fb7a87b8f0817ef09ff2d10fd0dc57747d02ea7f27f'
        b'5e159c350e2e3f08cf","mediaType":"application/vnd.docker.image.rootfs.diff.tar.gzip","size":65558},{"'
        b'digest":"sha256:1fbab5293602c6fafd070042319dcd9c8f7fb496c679724ea60c0d0847b18e2e","mediaType":"appli'
        b'cation/vnd.docker.image.rootfs.diff.tar.gzip","size":65564}],"mediaType":"application/vnd.docker.dis'
        b'tribution.manifest.v2+json","schemaVersion":2}'
    )
    with stored(tmp_path, make_tar(archive_files(Layout.OCI, plain, None, config))) as image:
        index = image.build()
        assert index.manifest == manifest
        assert index.manifest_digest == "sha256:7884499a0674f0e8154c741710b4cf103902bf525b6ded76ff332ebe6eeac5c1"
