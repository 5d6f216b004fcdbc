"""What `check` and `doctor` say about pulling images."""

import json
from pathlib import Path

from mirror.cli.check.registry import examine
from mirror.config import load
from mirror.model.metadata import ImageMetadata
from mirror.registry.saved_index import save_refusal
from mirror.store.disk.verified_marker import Identity
from tests.support.by_hand import lay_out


def said(directory: Path, **variables: str) -> list[str]:
    """Its findings, each as `mark: message`."""
    environ = {f"PPS_MIRROR__{name}": value for name, value in variables.items()}
    config = load(None, {"PPS_MIRROR__STORE__PATH": str(directory), **environ})
    return [f"{finding.mark}: {finding.message}" for finding in examine(config)]


def test_plain_http_is_noted_unless_it_is_on_loopback(tmp_path: Path) -> None:
    first, second = said(tmp_path)
    assert first.startswith("note: server.tls_cert is empty")
    assert second == (
        "ok: docker pull HOST:8080/datarobot/datarobot-portable-prediction-api:TAG, docker login takes a DataRobot API "
        "token as the password"
    )
    assert [line[:3] for line in said(tmp_path, SERVER__HOST="127.0.0.1")] == ["ok:"]


def test_who_can_log_in_is_said_for_each_mode(tmp_path: Path) -> None:
    assert said(tmp_path, SERVER__HOST="127.0.0.1", AUTH__MODE="open")[0].endswith("without docker login")
    tokens = {"AUTH__MODE": "tokens", "AUTH__TOKENS_FILE": "tokens"}
    assert "auth.tokens_file" in said(tmp_path, SERVER__HOST="127.0.0.1", **tokens)[0]


def test_a_registry_that_is_off_or_has_no_disk_is_noted(tmp_path: Path) -> None:
    (off,) = said(tmp_path, REGISTRY__ENABLED="false")
    assert off == "note: docker pull from the mirror is off: registry.enabled = false"
    (alone,) = said(tmp_path, STORE__S3__BUCKET="some-bucket", STORE__S3__LOCAL_COPY="false")
    assert alone.startswith("note: this mirror keeps images in a bucket alone")


def test_an_image_that_cannot_be_pulled_is_noted_with_the_reason(tmp_path: Path) -> None:
    image_hash = lay_out(tmp_path)
    directory = tmp_path / "images" / image_hash
    metadata = ImageMetadata.parse((directory / "metadata.json").read_bytes())
    image = (directory / "image").stat()
    marker = {"size": image.st_size, "mtimeNs": image.st_mtime_ns, "inode": image.st_ino}
    (directory / "verified").write_text(json.dumps(marker | {"verifiedAt": "2026-01-02T03:04:05Z"}))
    save_refusal(directory, metadata, Identity.of(image), "it is neither a tar nor gzip of one")
    refused = said(tmp_path, SERVER__HOST="127.0.0.1")[-1]
    assert refused == f"note: {image_hash[:12]} cannot be pulled: it is neither a tar nor gzip of one"
