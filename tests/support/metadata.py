"""Metadata as DataRobot sends them."""

from typing import Any

GOOD: dict[str, Any] = {
    "baseImageId": "65a",
    "created": "2024-05-06T07:08:09.123456Z",
    "datarobotRuntimeImageTag": None,
    "dockerImageId": "sha256:" + "1" * 64,
    "filename": "datarobot-portable-prediction-api.tar.gz",
    "hash": "ab" * 32,
    "hashAlgorithm": "SHA256",
    "imageSize": 5_000_000_000,
    "shortDockerImageId": "1" * 12,
}
