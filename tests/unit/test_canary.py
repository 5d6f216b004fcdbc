"""The canary of all tests hears what it is there for."""

import base64
import hashlib
import shutil
from pathlib import Path

import pytest

from mirror.simulator.client import TOKEN
from tests.support.fixtures import Canary

SIGNATURE = "0123456789abcdef" * 4

LEAKS = {
    "a token": TOKEN,
    "a token of the test's own": "a-token-of-its-own",
    "a token within other text": f"x{TOKEN}y",
    "its plain hash": hashlib.sha256(TOKEN.encode()).hexdigest(),
    "the plain hash of the header": hashlib.sha256(f"Bearer {TOKEN}".encode()).hexdigest(),
    "a token in base64": base64.b64encode(TOKEN.encode()).decode(),
    "a pre-signed URL": "https://store/x?X-Amz-Signature=1",
    "the signature alone": SIGNATURE,
}


@pytest.mark.parametrize(
    "place", ["mirror.common.log", "seen", "core.4711", "store/current.json", "store/partial/x.json"]
)
@pytest.mark.parametrize("leak", LEAKS.values(), ids=list(LEAKS))
def test_a_secret_is_found_wherever_a_mirror_may_have_left_it(tmp_path: Path, leak: str, place: str) -> None:
    directory = tmp_path / "of-a-mirror"
    (directory / "store" / "partial").mkdir(parents=True)
    (directory / "mirror.common.log").write_text("nothing")
    watching = Canary()
    watching.hide("a-token-of-its-own", SIGNATURE)
    watching.assert_nothing_leaked({directory})
    (directory / place).write_text(f"before {leak} after")
    with pytest.raises(AssertionError):
        watching.assert_nothing_leaked({directory})
    shutil.rmtree(directory)  # or the canary of this very test would find it too


@pytest.mark.parametrize("leak", LEAKS.values(), ids=list(LEAKS))
def test_a_secret_is_found_in_what_a_client_was_told(leak: str) -> None:
    watching = Canary()
    watching.hide("a-token-of-its-own", SIGNATURE)
    watching.hear(f"before {leak} after".encode())
    with pytest.raises(AssertionError):
        watching.assert_nothing_leaked(set())
