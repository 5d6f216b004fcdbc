"""/metrics: valid, whole, true; also when workers die."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from mirror.images.fill_outcome import OUTCOMES
from mirror.simulator.client import Fault, ImageSpec, Simulator
from tests.support.admin import ask_admin, metric
from tests.support.downloads import Download
from tests.support.fixtures import Ask, FreshMirror, Sections
from tests.support.needs import needs
from tests.support.processes import MirrorProcess, eventually
from tests.support.prometheus import Prometheus

MIB = 1 << 20
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


def test_openmetrics_can_be_parsed_and_names_no_image_token_or_client(mirror: MirrorProcess) -> None:
    answer = ask_admin(mirror, "GET", "/metrics", OPENMETRICS)
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in parse_openmetrics(answer.body.decode())}  # type: ignore[no-untyped-call]
    ours = {name: family for name, family in families.items() if name.startswith("pps_mirror_")}
    assert len(ours) > 25
    for name, family in ours.items():
        assert family.documentation.endswith("."), name
        assert len(family.samples) <= 200, name
        for sample in family.samples:
            assert not re.search(r"[0-9a-f]{13}", " ".join(sample.labels.values()))


def test_promtool_finds_nothing_wrong(mirror: MirrorProcess) -> None:
    promtool = needs("promtool", "apt-get install --no-install-recommends prometheus")
    text = ask_admin(mirror, "GET", "/metrics").body
    lint = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    said = [line for line in lint.stderr.decode().splitlines() if "pps_mirror" in line]
    assert not said
    assert b"error while linting" not in lint.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_requests_and_bytes_are_counted_once_among_all_processes(
    fresh_mirror: FreshMirror, ask: Ask, workers: int
) -> None:
    mirror = fresh_mirror({"server": {"workers": workers}})
    for _ in range(4):
        ask(mirror.image_url)
    ask(mirror.metadata_url, "a-token-nobody-knows")
    ask(mirror.url + "/nothing/")
    eventually(lambda: metric(mirror, "requests_total") == 6, what="the count of all requests")
    assert metric(mirror, "requests_total", route="image", status="200", cache="hit") == 3
    assert metric(mirror, "requests_total", route="image", status="200", cache="stored") == 1
    assert metric(mirror, "requests_total", route="metadata", status="401") == 1
    assert metric(mirror, "requests_total", route="other", status="404") == 1
    assert metric(mirror, "served_bytes_total") == 20 * MIB
    assert metric(mirror, "fetched_bytes_total") == 5 * MIB
    assert metric(mirror, "fills_total", outcome="published") == 1
    assert metric(mirror, "access_decisions_total", decision="refused") == 1
    assert metric(mirror, "upstream_requests_total", request="image", outcome="ok") == 1
    assert metric(mirror, "upstream_requests_total", request="metadata", outcome="refused") == 1
    assert metric(mirror, "request_duration_seconds_count", route="image") == 4
    assert metric(mirror, "workers", state="serving") == workers
    # What is looked up rather than counted may be some seconds old.
    eventually(lambda: metric(mirror, "upstream_up") == 1, what="upstream is up")
    eventually(lambda: metric(mirror, "store_used_bytes", place="disk") == 5 * MIB, what="the store's use")


def test_a_download_shows_while_it_runs(simulator: Simulator, fresh_mirror: FreshMirror) -> None:
    simulator.set_rate(MIB)
    mirror = fresh_mirror()
    with Download(mirror.image_url) as download:
        eventually(lambda: metric(mirror, "served_bytes_total") > MIB, what="a part of it")
        assert metric(mirror, "active_downloads") == 1
        eventually(lambda: metric(mirror, "fill_received_bytes") > MIB, what="the fill's position")
        assert metric(mirror, "fill_size_bytes") == 5 * MIB
        assert metric(mirror, "requests_total") == 0
        simulator.set_rate(None)
        download.read_all()
    eventually(lambda: metric(mirror, "active_downloads") == 0, what="its end")


def test_cuts_are_counted_while_the_fill_runs(simulator: Simulator, fresh_mirror: FreshMirror) -> None:
    simulator.fault(Fault("store", cut_after=MIB), Fault("image", hold=True, resumed=True))
    mirror = fresh_mirror()
    with Download(mirror.image_url) as download:
        simulator.wait_held()
        assert metric(mirror, "fill_resumes_total") == 1
        assert metric(mirror, "fills_total") == 0
        simulator.release()
        download.read_all()
    eventually(lambda: metric(mirror, "fills_total") == 1, what="the fill's end")
    assert metric(mirror, "fill_resumes_total") == 1


def test_cuts_and_wrong_bytes_are_counted(simulator: Simulator, fresh_mirror: FreshMirror) -> None:
    simulator.fault(Fault("store", times=2, cut_after=MIB))
    mirror = fresh_mirror()
    with Download(mirror.image_url) as download:
        download.read_all()
    eventually(lambda: metric(mirror, "fill_resumes_total") == 2, what="two resumes")
    simulator.roll_over("second")
    simulator.fault(Fault("store", corrupt_at=MIB))
    other = fresh_mirror()
    with Download(other.image_url) as download:
        assert download.read_all().ended == "reset"
    eventually(lambda: metric(other, "verification_failures_total", where="fill") == 1, what="a wrong image")
    assert metric(other, "fills_total", outcome="wrong_bytes") == 1


def test_what_alerts_look_at_is_there_from_the_beginning(fresh_mirror: FreshMirror) -> None:
    """Or its first increase would be none."""
    text = ask_admin(fresh_mirror(), "GET", "/metrics").body.decode()
    assert set(re.findall(r'pps_mirror_fills_total{outcome="(\w+)"} 0\.0', text)) == set(OUTCOMES)
    for sample in (
        'requests_total{cache="none",route="image",status="503"}',
        'downloads_total{cache="bypass"}',
        'verification_failures_total{where="scrub"}',
        'prefetches_total{outcome="failed"}',
        "worker_deaths_total",
    ):
        assert f"pps_mirror_{sample} 0.0\n" in text


def test_errors_are_counted_where_they_were_expected(simulator: Simulator, fresh_mirror: FreshMirror, ask: Ask) -> None:
    simulator.fault(Fault("metadata", times=2, status=500))
    mirror = fresh_mirror()
    assert ask(mirror.image_url).status == 502
    assert ask(mirror.metadata_url).status == 502
    eventually(lambda: metric(mirror, "requests_total", route="image", status="502", cache="none") == 1)
    eventually(lambda: metric(mirror, "requests_total", route="metadata", status="502", cache="none") == 1)


def test_a_passing_through_that_its_clients_leave_is_neither_good_nor_bad(fresh_mirror: FreshMirror) -> None:
    with Simulator.start([ImageSpec("large", size=24 * MIB)]) as upstream:
        mirror = fresh_mirror({"store": {"max_size": "1MiB"}}, upstream=upstream)
        with Download(mirror.image_url) as download:
            download.read(MIB)
            download.abandon()
        eventually(lambda: metric(mirror, "fills_total", outcome="abandoned") == 1, 60, "its end")
        assert metric(mirror, "fills_total") == 1
        assert metric(mirror, "downloads_total", cache="bypass") == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_degraded_as_long_as_the_last_image_found_no_room_whichever_process_found_that(
    fresh_mirror: FreshMirror, ask: Ask, workers: int
) -> None:
    images = [ImageSpec("large", size=5 * MIB), ImageSpec("small", size=MIB // 2, created="2026-01-02T03:04:05Z")]
    with Simulator.start(images) as upstream:
        sections: Sections = {
            "store": {"max_size": "1MiB"},
            "server": {"workers": workers},
            "upstream": {"metadata_ttl": "0s"},
        }
        mirror = fresh_mirror(sections, upstream=upstream)
        assert ask(mirror.image_url).status == 200
        eventually(lambda: metric(mirror, "degraded") == 1, what="word of it")
        upstream.roll_over("small")
        assert len(ask(mirror.image_url).body) == MIB // 2
        eventually(lambda: metric(mirror, "degraded") == 0, what="word that one was stored")


def test_limits_of_the_configuration_are_told_for_alerts(
    fresh_mirror: FreshMirror, ask: Ask, shared_simulator: Simulator
) -> None:
    mirror = fresh_mirror(
        {
            "store": {"scrub_interval": "2d", "min_free": "3MiB", "max_size": "12MiB"},
            "upstream": {"stale_if_error": "5d"},
        }
    )
    ask(mirror.image_url)
    eventually(lambda: metric(mirror, "current_stored") == 1, what="a look at the store since then")
    assert metric(mirror, "scrub_interval_seconds") == 2 * 86400
    assert metric(mirror, "stale_if_error_seconds") == 5 * 86400
    assert metric(mirror, "store_min_free_bytes", place="disk") == 3 * MIB
    assert metric(mirror, "store_room_bytes", place="disk") == 7 * MIB  # the image that is there is kept
    assert metric(mirror, "current_size_bytes") == 5 * MIB


def test_what_a_worker_counted_outlives_it(fresh_mirror: FreshMirror) -> None:
    mirror = fresh_mirror({"server": {"workers": 2}})
    with Download(mirror.image_url) as download:
        download.read_all()
    eventually(lambda: metric(mirror, "served_bytes_total") == 5 * MIB, what="the count")
    assert mirror.process is not None
    pid = mirror.process.pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    eventually(lambda: metric(mirror, "worker_deaths_total") == 2, what="the end of both workers")
    eventually(lambda: metric(mirror, "workers", state="serving") == 2, what="other workers")
    assert metric(mirror, "served_bytes_total") == 5 * MIB


def test_a_real_prometheus_scrapes_it(mirror: MirrorProcess, tmp_path: Path) -> None:
    with Prometheus(tmp_path / "prometheus", [mirror]) as prometheus:
        eventually(lambda: prometheus.query('up{job="pps-mirror"} == 1'), what="a scrape")
        assert prometheus.query("pps_mirror_ready == 1")
        assert prometheus.query('pps_mirror_fills_total{outcome="published"} > 0')
        assert prometheus.query("histogram_quantile(0.9, sum by (le) (pps_mirror_fill_duration_seconds_bucket))")
