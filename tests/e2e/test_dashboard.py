"""What the dashboard asks for, asked of a real Prometheus that scrapes a real mirror."""

from pathlib import Path

from mirror.simulator.client import TOKEN, Simulator
from tests.support.admin import metric
from tests.support.dashboard import expressions
from tests.support.downloads import Download
from tests.support.fixtures import Ask, FreshMirror
from tests.support.hooks import hook, in_environment
from tests.support.processes import eventually
from tests.support.prometheus import Prometheus

MIB = 1 << 20


def test_every_panel_has_something_to_show_once_an_image_was_fetched(
    simulator: Simulator, fresh_mirror: FreshMirror, ask: Ask, tmp_path: Path
) -> None:
    simulator.set_rate(MIB // 8)
    hooks = in_environment(hook(command=["/bin/true"]))
    mirror = fresh_mirror(
        {"auth": {"ttl": "0s"}, "registry": {"enabled": True}}, environ={"DATAROBOT_API_TOKEN": TOKEN, **hooks}
    )
    asked = list(expressions())
    assert len(asked) > 50
    with Prometheus(tmp_path / "prometheus", [mirror]) as prometheus:

        def empty() -> set[tuple[str, str]]:
            return {each for each in asked if not prometheus.query(each[1])}

        ask(mirror.metadata_url)
        with Download(mirror.image_url) as download:
            eventually(lambda: metric(mirror, "fill_received_bytes") > MIB, what="a fill that is under way")
            prometheus.watch()
            without_a_fill = empty()
            simulator.set_rate(None)
            download.read_all()
        ask(mirror.metadata_url)
        ask(mirror.image_url)
        eventually(lambda: metric(mirror, "unverified_seconds") > 0, what="a look at the store")
        prometheus.watch()
        ask(mirror.image_url)
        eventually(lambda: without_a_fill & empty() <= {each for each in asked if each[0] == "Starts"}, 30, "data")
        may_be_empty = {"Fills that run: how far", "Fills that run: time left", "Pace of fills", "Starts"}
        eventually(
            lambda: {title for title, _ in empty()} <= may_be_empty, what="data again, after a scrape that failed"
        )
