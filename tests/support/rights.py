"""A mirror that the rights of files hold for, though the tests may be run by root."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mirror.simulator.client import Simulator
from tests.support.fixtures import Sections
from tests.support.needs import needs
from tests.support.processes import MirrorProcess


def repair(images: Path) -> None:
    """Take each of these back."""
    if os.geteuid() == 0:
        subprocess.run(["umount", "--lazy", "--quiet", images], check=False)
        os.chown(images, 0, 0)
    images.chmod(0o755)


@contextmanager
def ordinary_mirror(directory: Path, simulator: Simulator, sections: Sections | None = None) -> Iterator[MirrorProcess]:
    """A mirror that the rights of files hold for, whoever runs the tests."""
    mirror = MirrorProcess(directory, simulator.api_url, sections)
    if os.geteuid() == 0:
        dropped = "-dac_override,-dac_read_search,-fowner"
        setpriv = needs("setpriv", "apt-get install util-linux", root=True)
        mirror.through = [setpriv, f"--bounding-set={dropped}", f"--inh-caps={dropped}"]
    with mirror:
        try:
            yield mirror
        finally:
            repair(mirror.store / "images")
