"""A site's day in a minute: a new image, a window, a line that breaks; everybody gets it, and the old one goes.

The page and the metrics tell the story afterwards. Only the windows see another time than there is.
"""

from functools import partial
from pathlib import Path

from mirror.simulator.client import TOKEN, Fault, ImageSpec, Simulator
from tests.support.admin import actions_of, ask_admin, is_stored, metric, status_of
from tests.support.downloads import at_once, fetch
from tests.support.forked import ForkedMirror
from tests.support.processes import eventually

MIB = 1 << 20
SIZE = 6 * MIB
NODES = 8

STORY = [
    "image.announced",
    "prefetch.began",
    "fill.cut",
    "fill.cut",
    "prefetch.paused",
    "fill.went_on",
    "fill.published",
    "image.switched",
    "image.evicted",
]


def tells(mirror: ForkedMirror) -> bool:
    """Whether the events of the page are the story, in its order, among others."""
    told = iter(actions_of(mirror))
    return all(step in told for step in STORY)


def test_a_sites_day(tmp_path: Path) -> None:
    images = [
        ImageSpec(name, size=SIZE, created=f"2026-11-2{day}T00:00:00Z")
        for day, name in enumerate(("v1", "v2", "v3"), 1)
    ]
    sections: dict[str, dict[str, object]] = {
        "server": {"workers": 2},
        "auth": {"mode": "open"},
        "upstream": {"rollover": "when_stored", "metadata_ttl": "0s"},
        "store": {"max_size": "13MiB", "keep": 1},
        "prefetch": {"enabled": True, "interval": "10m", "window": "22:00-06:00"},
    }
    with Simulator.start(images) as upstream:
        mirror = ForkedMirror(tmp_path, upstream.api_url, sections, {"DATAROBOT_API_TOKEN": TOKEN})
        mirror.constants = {"mirror.images.prefetch:FIRST": 0.0, "mirror.images.prefetch:TICK": 0.1}
        mirror.set_clock("2026-11-23T12:00:00")
        with mirror:
            hashes = {name: upstream.image_sha256(name) for name in ("v1", "v2", "v3")}

            def stored(name: str) -> bool:
                return is_stored(mirror, hashes[name])

            def received(name: str) -> float:
                return metric(mirror, "fill_received_bytes", image=hashes[name][:12])

            nodes = partial(fetch, mirror.image_url)

            # By day the nodes want the image: one fetch, at once.
            assert {each.sha256 for each in at_once(NODES, nodes)} == {hashes["v1"]}
            assert len(upstream.log("store")) == 1

            # DataRobot publishes v2. Nobody is kept waiting, and nothing is fetched before the night... but by clients'
            # own asking: with when_stored that brings it, so they do not ask now.
            upstream.roll_over("v2")
            upstream.set_rate(MIB)
            upstream.fault(Fault("store", cut_after=MIB, times=2))
            assert not stored("v2")

            # The window opens; the line is cut twice; the window ends before the image is whole.
            mirror.set_clock("2026-11-23T22:00:00")
            eventually(lambda: received("v2") > 2.5 * MIB, what="a part of v2, after two cuts")
            mirror.set_clock("2026-11-24T06:00:00")
            eventually(lambda: "was paused at" in status_of(mirror)["prefetch"]["doing"], what="the pause")
            eventually(lambda: "fill.stopped" in actions_of(mirror), what="the end of what was being written")
            at = (mirror.store / "partial" / hashes["v2"]).stat().st_size

            # The next night brings the rest, and the nodes switch.
            upstream.set_rate(None)
            mirror.set_clock("2026-11-24T22:00:00")
            eventually(lambda: stored("v2"), what="v2")
            assert upstream.log("store")[-1].range == f"bytes={at}-"
            assert {each.sha256 for each in at_once(NODES, nodes)} == {hashes["v2"]}

            # v3 needs the room of v1, which nobody wants any more.
            upstream.roll_over("v3")
            mirror.set_clock("2026-11-24T22:30:00")
            eventually(lambda: stored("v3"), what="v3")
            assert not stored("v1")

            # What an operator sees in the morning.
            eventually(lambda: metric(mirror, "served_bytes_total") == 2 * NODES * SIZE, what="all that was served")
            eventually(lambda: tells(mirror), what="the story")
            eventually(lambda: status_of(mirror)["today"]["served"] == 2 * NODES * SIZE, what="the sum of the day")
            status = status_of(mirror)
            assert 3 * SIZE <= status["today"]["fetched"] < 3 * SIZE + MIB
            assert status["today"]["saved"] == 2 * NODES * SIZE - status["today"]["fetched"]
            assert metric(mirror, "fetched_bytes_total", origin="upstream") < 3 * SIZE + MIB
            assert metric(mirror, "fills_total", outcome="published") == 3
            assert metric(mirror, "evictions_total") == 1
            assert metric(mirror, "fill_resumes_total") >= 2
            page = ask_admin(mirror, "GET", "/").body.decode()
            assert hashes["v3"][:12] in page
            assert "the window has ended" in page
