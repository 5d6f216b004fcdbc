"""Where a push goes: what a person may write, and what they are told when it is something else."""

import pytest

from mirror.model.errors import UsageError
from mirror.model.push_target import Target

RIGHT = {
    "harbor.site/datarobot/pps": Target("harbor.site", "datarobot/pps"),
    "harbor.site/datarobot/pps:7.0.0-r1736": Target("harbor.site", "datarobot/pps", "7.0.0-r1736"),
    "docker://harbor.site/pps:latest": Target("harbor.site", "pps", "latest"),
    "127.0.0.1:5000/a__b/c-d.e": Target("127.0.0.1:5000", "a__b/c-d.e"),
    "localhost/pps": Target("localhost", "pps"),
    "localhost:5000/pps:_": Target("localhost:5000", "pps", "_"),
    "[::1]:5000/pps": Target("[::1]:5000", "pps"),
}


@pytest.mark.parametrize("text", RIGHT)
def test_a_target_is_a_registry_a_repository_and_maybe_a_tag(text: str) -> None:
    assert Target.parse(text) == RIGHT[text]
    assert str(RIGHT[text]) == text.removeprefix("docker://")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected REGISTRY/REPOSITORY"),
        ("pps", "expected REGISTRY/REPOSITORY"),
        ("datarobot/pps", "expected REGISTRY/REPOSITORY"),
        ("https://harbor.site/pps", "expected REGISTRY/REPOSITORY"),
        ("user:secret@harbor.site/pps", "expected REGISTRY/REPOSITORY"),
        ("harbor.site/", "a repository has"),
        ("harbor.site/PPS", "a repository has"),
        ("harbor.site/../pps", "a repository has"),
        ("harbor.site/a//b", "a repository has"),
        ("harbor.site/" + "a" * 256, "a repository has"),
        ("harbor.site/pps:", "a tag has"),
        ("harbor.site/pps:-1", "a tag has"),
        ("harbor.site/pps:" + "1" * 129, "a tag has"),
        ("harbor.site/pps@sha256:" + "0" * 64, "by a tag"),
    ],
)
def test_anything_else_is_explained(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Target.parse(text)


def test_docker_hub_is_asked_where_it_answers() -> None:
    assert Target.parse("docker.io/datarobot/pps").host == "registry-1.docker.io"
    assert Target.parse("harbor.site:8443/pps").host == "harbor.site:8443"
