"""The mirror with what deploy/compose gives it: Prometheus reads it freely, people with the token only."""

from pathlib import Path

from mirror.simulator.client import Simulator
from tests.support.admin import ask_admin
from tests.support.compose import environment
from tests.support.fixtures import SIZE, Ask
from tests.support.processes import MirrorProcess

TOKEN = "the-token-of-the-operators"  # not DataRobot's


def test_as_in_compose_metrics_are_for_all_on_its_network_and_the_page_for_who_has_the_token(
    simulator: Simulator, ask: Ask, tmp_path: Path
) -> None:
    given = environment()
    token_file = tmp_path / Path(given["PPS_MIRROR__ADMIN__TOKEN_FILE"]).name
    token_file.write_text(TOKEN + "\n")
    token_file.chmod(0o400)
    here = {"PPS_MIRROR__UPSTREAM__URL": simulator.api_url, "PPS_MIRROR__ADMIN__TOKEN_FILE": str(token_file)}
    assert set(here) <= set(given)
    with MirrorProcess(tmp_path / "mirror", "http://127.0.0.1:9/", environ=given | here) as mirror:
        as_there = {"Host": "mirror:8081"}  # how Prometheus calls it
        metrics = ask_admin(mirror, "GET", "/metrics", as_there)
        assert metrics.status == 200
        assert b"\npps_mirror_ready 1.0\n" in metrics.body
        assert ask_admin(mirror, "GET", "/healthz", as_there).status == 200
        for path in ("/", "/api/status"):
            assert ask_admin(mirror, "GET", path, as_there).status == 401
            assert ask_admin(mirror, "GET", path, as_there | {"Authorization": f"Bearer {TOKEN}"}).status == 200
        assert len(ask(mirror.image_url).body) == SIZE
        assert mirror.settled.log().startswith("{"), "JSON"
        assert TOKEN not in mirror.settled.log()
