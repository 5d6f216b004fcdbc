"""The log of a real mirror: what machines read, what people see, and how much of it there is."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mirror.simulator.client import TOKEN, Fault, Simulator
from tests.support.admin import actions_of
from tests.support.documents import listed
from tests.support.downloads import Download, fetch
from tests.support.fixtures import SIZE, Ask, FreshMirror
from tests.support.processes import MirrorProcess, eventually

pytestmark = pytest.mark.real_command

JSON = {"log": {"level": "info", "format": "json"}}

TYPES: Mapping[str, type | tuple[type, ...]] = {
    "@timestamp": str,
    "client.address": str,
    "ecs.version": str,
    "error.message": str,
    "error.stack_trace": str,
    "error.type": str,
    "event.action": str,
    "event.duration": int,
    "http.request.id": str,
    "http.request.method": str,
    "http.response.body.bytes": int,
    "http.response.status_code": int,
    "log.level": str,
    "log.logger": str,
    "message": str,
    "process.pid": int,
    "url.path": str,
}
"""The fields of the Elastic Common Schema 8.11 that the mirror uses, and what JSON has for their types there."""


def lines(mirror: MirrorProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in mirror.log().splitlines(keepends=True) if line.endswith("\n")]


def actions(mirror: MirrorProcess) -> list[str]:
    return [line["event.action"] for line in lines(mirror)]


def assert_valid(line: Mapping[str, Any]) -> None:
    """The line is of the schema, and of the few fields of ours; what happened has a listed name."""
    for name, value in line.items():
        if name.startswith("pps_mirror."):
            assert re.fullmatch(r"pps_mirror\.[a-z_]+", name)
            assert isinstance(value, str | int | float)
        else:
            assert isinstance(value, TYPES[name]), name
    assert {"@timestamp", "ecs.version", "log.level", "message", "event.action"} <= line.keys()
    assert line["event.action"] in listed()


def test_every_line_of_a_life_with_faults_and_a_reload_is_of_the_schema_and_says_what_happened(
    simulator: Simulator, fresh_mirror: FreshMirror, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    upstream = {"token_file": str(token), "metadata_ttl": "0s"}
    mirror = fresh_mirror(JSON | {"server": {"workers": 2}, "upstream": upstream})
    assert mirror.process is not None
    simulator.fault(Fault("store", cut_after=SIZE // 2), Fault("store", cut_after=SIZE // 4))
    with Download(mirror.image_url) as download:
        assert download.read_all().status == 200
    simulator.fault(Fault("metadata", times=None, status=503))
    with Download(mirror.image_url) as download:
        assert download.read_all().status == 200
    simulator.clear_faults()
    eventually(lambda: fetch(mirror.metadata_url).status == 200 and "upstream.back" in actions(mirror), what="upstream")
    simulator.roll_over("second")
    simulator.fault(Fault("store", corrupt_at=SIZE - 1, times=None))
    with Download(mirror.image_url) as download:
        download.read_all()
    token.write_text("two words")
    mirror.send_signal(signal.SIGHUP)
    eventually(lambda: "reload.failed" in actions(mirror), what="the complaint")
    token.write_text(TOKEN)
    mirror.send_signal(signal.SIGHUP)
    eventually(lambda: actions(mirror).count("mirror.reloaded") == 3, what="the reload of all processes")
    mirror.stop()
    for line in lines(mirror):
        assert_valid(line)
    assert {
        *("worker.started", "mirror.started", "image.current", "fill.began", "fill.cut"),
        *("fill.published", "upstream.away", "upstream.back", "fill.wrong_bytes", "http.reset", "http.request"),
        *("reload.failed", "mirror.reloaded", "mirror.stopping"),
    } <= set(actions(mirror))
    assert len({line["process.pid"] for line in lines(mirror)}) == 3


def test_a_request_has_a_line_with_who_what_how_much_how_long_and_how(
    simulator: Simulator, fresh_mirror: FreshMirror, ask: Ask
) -> None:
    mirror = fresh_mirror(JSON)
    ask(mirror.image_url, X_Request_ID="the-first")
    ask(mirror.image_url + "?a=secret", Range="bytes=0-9", X_Request_ID="the-second")
    ask(mirror.url + "/nothing%0ahere", X_Request_ID="the-third")
    eventually(lambda: actions(mirror).count("http.request") == 3, what="the lines of the requests")
    found = {line["http.request.id"]: line for line in lines(mirror) if "http.request.id" in line}
    seconds = found["the-first"]["event.duration"] / 1e9
    assert 0 < seconds < 20
    assert [found["the-first"][name] for name in ("http.request.method", "url.path", "client.address")] == [
        "GET",
        "/api/v2/mlops/portablePredictionServerImage/",
        "127.0.0.1",
    ]
    answers = [
        [
            line["http.response.status_code"],
            line["http.response.body.bytes"],
            line["pps_mirror.route"],
            line["pps_mirror.cache_status"],
        ]
        for line in (found["the-first"], found["the-second"])
    ]
    assert answers == [
        [200, SIZE, "image", "fwd=miss; stored"],
        [206, 10, "image", "hit"],
    ]
    assert found["the-second"]["url.path"] == found["the-first"]["url.path"]
    third = found["the-third"]
    assert (third["http.response.status_code"], third["pps_mirror.route"]) == (404, "other")
    assert third["pps_mirror.cache_status"] == "-"


def test_a_hundred_like_warnings_are_twenty_lines_and_in_the_end_their_number(
    simulator: Simulator, fresh_mirror: FreshMirror
) -> None:
    mirror = fresh_mirror(JSON)
    simulator.fault(Fault("store", hang_after=SIZE // 2, corrupt_at=0))
    with ExitStack() as stack:
        downloads = [stack.enter_context(Download(mirror.image_url)) for _ in range(100)]
        simulator.wait_held()
        simulator.release()
        for download in downloads:
            assert download.read_all().ended == "reset"
    eventually(lambda: actions(mirror).count("http.request") == 100, what="the lines of the requests")
    assert actions(mirror).count("http.reset") == 20
    mirror.stop()
    resets = [line for line in lines(mirror) if line["event.action"] == "http.reset"]
    assert len(resets) == 21
    assert resets[-1]["message"].endswith("(and 79 more like this, not shown)")
    assert resets[-1]["pps_mirror.held"] == 79
    assert actions(mirror).count("http.request") == 100


def test_the_status_page_hears_what_is_not_written(fresh_mirror: FreshMirror) -> None:
    mirror = fresh_mirror({"log": {"level": "error", "format": "json"}})
    with Download(mirror.image_url) as download:
        download.read_all()
    assert mirror.settled.log() == ""
    eventually(lambda: "fill.published" in actions_of(mirror), what="the event")
    assert "http.request" not in actions_of(mirror)


# How much


def toggle(mirror: MirrorProcess, processes: int) -> None:
    mirror.send_signal(signal.SIGUSR1)
    eventually(lambda: actions(mirror).count("log.toggled") >= processes, what="the toggle")


def workers_of(mirror: MirrorProcess) -> set[int]:
    assert mirror.process is not None
    pid = mirror.process.pid
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def test_sigusr1_turns_debugging_on_in_all_processes_and_off_again(fresh_mirror: FreshMirror) -> None:
    mirror = fresh_mirror({"server": {"workers": 2}, "log": {"level": "info", "format": "json"}})
    assert mirror.process is not None
    everybody = {mirror.process.pid} | workers_of(mirror)
    assert {line["process.pid"] for line in lines(mirror) if line["log.level"] == "debug"} == set()
    for on in (True, False, True):
        mirror.log_file.write_text("")
        toggle(mirror, 3)
        said = {line["process.pid"]: line["message"] for line in lines(mirror) if line["event.action"] == "log.toggled"}
        what = "has everything now" if on else "is as the configuration says again"
        assert said == dict.fromkeys(everybody, f"SIGUSR1: the log {what}")


def test_a_worker_that_starts_later_debugs_as_the_others_do(fresh_mirror: FreshMirror) -> None:
    mirror = fresh_mirror({"server": {"workers": 2}, "log": {"level": "info", "format": "json"}})
    toggle(mirror, 3)
    before = workers_of(mirror)
    os.kill(max(before), signal.SIGKILL)
    eventually(lambda: actions(mirror).count("log.toggled") == 4, what="the toggle of the new worker")
    [new] = workers_of(mirror) - before
    toggled = [line for line in lines(mirror) if line["event.action"] == "log.toggled"]
    assert (toggled[-1]["process.pid"], toggled[-1]["message"]) == (new, "SIGUSR1: the log has everything now")
    toggle(mirror, 7)
    assert all("as the configuration says" in line["message"] for line in lines(mirror)[-3:])


# How it looks


def start_on_a_terminal(mirror: MirrorProcess, *arguments: str, **environ: str) -> str:
    """What serve draws on a terminal until it says that it serves, and when it is ended then."""
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "mirror.cli.main", "serve", "-c", str(mirror.config_file), *arguments]
    kept = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "TERM"}}
    process = subprocess.Popen(command, stdout=end, stderr=end, env=kept | environ)
    os.close(end)
    shown, ended = b"", False
    try:
        while data := os.read(terminal, 1 << 16):
            shown += data
            if not ended and b"serving " in shown:
                ended = True
                process.terminate()
    except OSError:  # how a terminal ends whose last user has gone
        pass
    finally:
        os.close(terminal)
        process.wait(20)
    return shown.decode()


@pytest.fixture
def not_started(tmp_path: Path, simulator: Simulator) -> MirrorProcess:
    """A mirror that the test starts itself."""
    return MirrorProcess(tmp_path / "mirror", simulator.api_url, {"log": {"level": "info", "format": "auto"}})


@pytest.mark.parametrize(
    ("environ", "coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
    ids=["a terminal", "NO_COLOR", "a dumb terminal"],
)
def test_a_terminal_gets_short_lines_with_colours_unless_told_not_to(
    not_started: MirrorProcess, environ: dict[str, str], coloured: bool
) -> None:
    shown = start_on_a_terminal(not_started, **environ)
    assert ("\x1b[" in shown) == coloured
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert all(re.match(r"\d\d:\d\d:\d\d INFO    \S", line) for line in plain.splitlines()), plain


def test_without_a_terminal_format_auto_is_json(not_started: MirrorProcess) -> None:
    with not_started as mirror:
        assert "mirror.started" in actions(mirror.settled)


def test_the_command_line_says_how_much_is_logged(not_started: MirrorProcess) -> None:
    environ = {"TERM": "dumb", "PPS_MIRROR__LOG__LEVEL": "error"}
    assert "INFO    serving " in start_on_a_terminal(not_started, "--log-level", "info", **environ)
