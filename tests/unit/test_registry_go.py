"""Go's compress/gzip reads every layer: go-containerregistry, and so Kaniko, takes nothing else."""

import os
import random
import subprocess
from pathlib import Path

import pytest

from tests.support.layouts import File, Layout, archive_files, make_tar, sha256
from tests.support.needs import needs
from tests.support.registry import stored, zipped

PROGRAM = Path(__file__).parent.parent / "support" / "read_gzip.go"


@pytest.fixture(scope="module")
def read_gzip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    go = needs("go", "apt-get install --no-install-recommends golang-go")
    directory = tmp_path_factory.mktemp("go")
    surroundings = os.environ | {"GOCACHE": str(directory / "cache"), "GO111MODULE": "off", "GOFLAGS": ""}
    subprocess.run([go, "build", "-o", directory / "read-gzip", PROGRAM], env=surroundings, check=True)
    return directory / "read-gzip"


@pytest.mark.parametrize("layout", Layout)
def test_go_reads_every_layer_of_every_layout(layout: Layout, read_gzip: Path, tmp_path: Path) -> None:
    noise = random.Random(7).randbytes(200_000)
    layers = [b"", make_tar({"etc/hostname": File(b"pps\n")}), noise[:65535], noise[:65536], noise]
    with stored(tmp_path, zipped(make_tar(archive_files(layout, layers, None)))) as image:
        index = image.build()
        paths = []
        for number, layer in enumerate(index.layers):
            path = tmp_path / f"layer-{number}"
            path.write_bytes(image.read(index, layer))
            paths.append(path)
        run = subprocess.run([read_gzip, *paths], capture_output=True, text=True, check=False)
        assert run.stderr == ""
        assert run.stdout.split() == [sha256(layer) for layer in layers]
