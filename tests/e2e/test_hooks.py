"""What a site is told by hooks: real mirrors, real receivers, real commands."""

import base64
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.simulator.client import Fault, Simulator
from mirror.simulator.images import Image
from tests.support.admin import ask_admin, metric, status_of
from tests.support.archive import DockerArchive
from tests.support.certificates import certificate
from tests.support.commands import run
from tests.support.downloads import Download
from tests.support.fixtures import FreshMirror, Sections
from tests.support.forked import ForkedMirror
from tests.support.hooks import hook, in_environment, in_file, script
from tests.support.processes import MirrorProcess, eventually
from tests.support.pulls import manifest, spec
from tests.support.receiver import KEY, SECRET, Receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def secret_file(tmp_path: Path) -> str:
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n")
    return str(path)


def fetch(mirror: MirrorProcess) -> None:
    with Download(mirror.image_url) as download:
        assert download.read_all().status == 200


def test_a_new_image_is_told_in_the_form_of_the_conventions(
    fresh_mirror: FreshMirror, simulator: Simulator, receiver: Receiver, secret_file: str
) -> None:
    mirror = fresh_mirror(environ=in_environment(hook(url=receiver.url, secret_file=secret_file)))
    fetch(mirror)
    receiver.wait_for("image.current", "image.stored")
    told = next(each for each in receiver.told if each.type == "image.stored")
    assert told.headers["content-type"] == "application/cloudevents+json"
    assert told.headers["webhook-id"] == told.event["id"]
    assert re.fullmatch(r"\d{10}", told.headers["webhook-timestamp"])
    assert told.is_signed_with(KEY)
    assert not told.is_signed_with(b"another secret")
    event = told.event
    image = simulator.setup.images[0]
    assert event["specversion"] == "1.0"
    assert event["source"].startswith("urn:pps-mirror:")
    assert event["subject"] == event["data"]["image"]["hash"]
    assert event["data"]["image"]["size"] == image.size
    assert event["data"]["image"]["tags"]
    assert receiver.types.count("image.stored") == receiver.types.count("image.current") == 1
    assert SECRET.removeprefix("whsec_") not in mirror.settled.log()
    assert "a-secret-of-the-receiver" not in mirror.settled.log()


def test_what_workers_notice_is_told_once(fresh_mirror: FreshMirror, receiver: Receiver) -> None:
    mirror = fresh_mirror(
        {"server": {"workers": 3}, "log": {"format": "json"}}, environ=in_environment(hook(url=receiver.url))
    )
    for _ in range(12):
        fetch(mirror)
    receiver.wait_for("image.current", "image.stored")
    assert sorted(receiver.types) == ["image.current", "image.stored"]


def test_upstream_that_is_away_and_back_is_told_once_each(
    fresh_mirror: FreshMirror, simulator: Simulator, receiver: Receiver
) -> None:
    mirror = fresh_mirror(
        {"upstream": {"metadata_ttl": "0s"}},
        environ=in_environment(hook(url=receiver.url, events=["upstream.away", "upstream.back"])),
    )
    fetch(mirror)
    simulator.fault(Fault("metadata", times=None, status=503))
    for _ in range(3):
        fetch(mirror)
    receiver.wait_for("upstream.away")
    simulator.clear_faults()
    for _ in range(3):
        fetch(mirror)
    receiver.wait_for("upstream.back")
    assert receiver.types == ["upstream.away", "upstream.back"]


def test_upstream_that_was_away_when_the_mirror_ended_is_told_to_be_back(
    fresh_mirror: FreshMirror, simulator: Simulator, receiver: Receiver
) -> None:
    mirror = fresh_mirror(environ=in_environment(hook(url=receiver.url, events=["upstream.away", "upstream.back"])))
    simulator.fault(Fault("metadata", times=None, status=503))
    with Download(mirror.image_url) as download:
        assert download.read_all().status == 503
    receiver.wait_for("upstream.away")
    mirror.kill()
    simulator.clear_faults()
    mirror.start()
    fetch(mirror)
    receiver.wait_for("upstream.back")
    assert receiver.once == ["upstream.away", "upstream.back"]


def test_a_fill_that_fails_is_told_with_the_reason(
    fresh_mirror: FreshMirror, simulator: Simulator, receiver: Receiver
) -> None:
    mirror = fresh_mirror(environ=in_environment(hook(url=receiver.url, events=["fill.failed"])))
    simulator.fault(Fault("store", times=None, corrupt_at=1000))
    with Download(mirror.image_url) as download:
        download.read_all()
    receiver.wait_for("fill.failed")
    assert receiver.told[0].event["data"]["reason"] == "wrong_bytes"


def test_an_image_that_makes_room_is_told_and_where(
    fresh_mirror: FreshMirror, simulator: Simulator, receiver: Receiver
) -> None:
    size = simulator.setup.images[0].size
    sections: Sections = {"store": {"max_size": f"{size * 3 // 2}", "keep": 0}, "upstream": {"metadata_ttl": "0s"}}
    mirror = fresh_mirror(sections, environ=in_environment(hook(url=receiver.url, events=["image.evicted"])))
    fetch(mirror)
    simulator.roll_over("second")
    fetch(mirror)
    receiver.wait_for("image.evicted")
    (told,) = receiver.told
    assert told.event["data"]["place"] == "disk"
    assert told.event["subject"] == Image.load(simulator.setup.images[0]).spec.sha256


def test_an_image_that_can_be_pulled_is_told_with_all_its_tags(
    tmp_path: Path, receiver: Receiver, docker_archive: DockerArchive
) -> None:
    variable = in_environment(hook(url=receiver.url, events=["image.indexed"]))
    with Simulator.start([spec(docker_archive, "11.1.0-r7")]) as simulator:
        sections = {"registry": {"enabled": True}}
        with ForkedMirror(tmp_path / "mirror", simulator.api_url, sections, variable) as mirror:
            fetch(mirror)
            receiver.wait_for("image.indexed", seconds=60)
            (told,) = receiver.told
            assert told.event["data"]["manifestDigest"] == manifest(mirror).headers["Docker-Content-Digest"]
            assert "11.1.0-r7" in told.event["data"]["image"]["tags"]


def test_a_receiver_that_fails_hangs_or_ends_the_connection_gets_each_event_in_order_with_the_same_id(
    fresh_mirror: FreshMirror, receiver: Receiver
) -> None:
    receiver.answers = [500, 0, -1, 302, 204]
    mirror = fresh_mirror(environ=in_environment(hook(url=receiver.url, timeout="1s")))
    fetch(mirror)
    receiver.wait_for("image.stored", seconds=60)
    assert receiver.types == ["image.current"] * 5 + ["image.stored"]
    assert len(set(receiver.ids)) == 2
    assert mirror.settled.actions().count("hook.failed") == 4
    times = [int(each.headers["webhook-timestamp"]) for each in receiver.told]
    assert times[4] > times[0]


def test_a_receiver_that_does_not_want_it_any_more_gets_the_next_all_the_same(
    fresh_mirror: FreshMirror, receiver: Receiver
) -> None:
    receiver.answers = [410]
    mirror = fresh_mirror(environ=in_environment(hook(url=receiver.url)))
    fetch(mirror)
    receiver.wait_for("image.stored")
    assert receiver.types == ["image.current", "image.stored"]
    assert "hook.given_up" in mirror.settled.actions()
    shown = status_of(mirror)["hooks"][0]
    assert (shown["name"], shown["givenUp"]) == ("it", 1)
    page = ask_admin(mirror, "GET", "/").body.decode()
    assert "1 given up" in page
    assert "http://127.0.0.1:" in page
    assert "a-secret-of-the-receiver" not in page
    assert metric(mirror, "hook_deliveries_total", hook="it", outcome="given_up") == 1


def test_a_slow_receiver_holds_no_client(fresh_mirror: FreshMirror, receiver: Receiver) -> None:
    receiver.answers = [-1] * 100
    mirror = fresh_mirror(environ=in_environment(hook(url=receiver.url, timeout="60s")))
    for _ in range(3):
        fetch(mirror)
    eventually(lambda: status_of(mirror)["hooks"][0]["queued"] == 2)
    assert receiver.types == ["image.current"]


def test_a_receiver_with_a_certificate_of_the_site_is_trusted_by_ca_file_only(
    fresh_mirror: FreshMirror, tmp_path: Path
) -> None:
    cert, key = certificate(tmp_path / "site")
    with Receiver((cert, key)) as receiver:
        hooks = hook("trusting", url=receiver.url, ca_file=str(cert)), hook("wary", url=receiver.url)
        mirror = fresh_mirror(environ=in_environment(*hooks))
        fetch(mirror)
        receiver.wait_for("image.stored")
        lines = {line["name"]: line for line in status_of(mirror)["hooks"]}
        assert "certificate" in lines["wary"]["trouble"]
        assert lines["trusting"]["trouble"] is None
        assert len(receiver.told) == 2


@pytest.mark.parametrize("host", ["169.254.169.254", "[::ffff:169.254.1.1]"])
def test_the_clouds_services_are_refused(host: str, tmp_path: Path) -> None:
    file = tmp_path / "m.toml"
    file.write_text(in_file(hook(url=f"http://{host}:1/")))
    done = run("hooks", "test", "it", "-c", file)
    assert done.returncode == 1
    assert "leads to a link-local address, which is refused" in done.stderr


def test_redirects_to_this_machine_are_not_followed(
    fresh_mirror: FreshMirror, receiver: Receiver, tmp_path: Path
) -> None:
    with Receiver() as other:
        receiver.status, receiver.headers = 307, {"Location": other.url}
        file = tmp_path / "m.toml"
        file.write_text(in_file(hook(url=receiver.url)))
        done = run("hooks", "test", "it", "-c", file)
        assert (done.returncode, done.stdout) == (1, "")
        assert "a redirect, which is not followed" in done.stderr
        assert other.told == []


def test_hooks_test_shows_the_answer(receiver: Receiver, tmp_path: Path, secret_file: str) -> None:
    file = tmp_path / "m.toml"
    file.write_text(in_file(hook(url=receiver.url, secret_file=secret_file)))
    done = run("hooks", "test", "it", "-c", file)
    assert (done.returncode, done.stdout) == (0, "hook it: 127.0.0.1 answered 204\n"), done.stderr
    (told,) = receiver.told
    assert told.type == "hook.test"
    assert told.is_signed_with(KEY)


def test_two_secrets_sign_while_one_replaces_the_other(receiver: Receiver, tmp_path: Path) -> None:
    new = b"n" * 32
    both = tmp_path / "secrets"
    both.write_text(f"{SECRET}\nwhsec_{base64.b64encode(new).decode()}\n")
    file = tmp_path / "m.toml"
    file.write_text(in_file(hook(url=receiver.url, secret_file=str(both))))
    assert run("hooks", "test", "it", "-c", file).returncode == 0
    assert receiver.told[0].is_signed_with(KEY)
    assert receiver.told[0].is_signed_with(new)


def test_the_environments_proxy_is_used_and_told_nothing_but_where_to(receiver: Receiver, tmp_path: Path) -> None:
    file = tmp_path / "m.toml"
    file.write_text(in_file(hook(url="http://receiver.example/told")))
    done = run("hooks", "test", "it", "-c", file, http_proxy=f"http://127.0.0.1:{receiver.port}")
    assert done.returncode == 0, done.stderr
    assert receiver.told[0].headers["host"] == "receiver.example"
    other = run("hooks", "test", "it", "-c", file, http_proxy=f"http://127.0.0.1:{receiver.port}", no_proxy="*")
    assert other.returncode == 1


# Commands


def test_a_command_gets_the_event_and_nothing_of_the_mirrors_environment(
    fresh_mirror: FreshMirror, simulator: Simulator, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = script(tmp_path, f"env >{out}.env; cat >{out}.json; echo it was heard; mv {out}.env {out}")
    environ = in_environment(hook(command=command, events=["image.stored"])) | {"SECRET_OF_THE_SITE": "x"}
    mirror = fresh_mirror(environ=environ)
    fetch(mirror)
    eventually(out.exists)
    variables = dict(line.split("=", 1) for line in out.read_text().splitlines())
    image_hash = Image.load(simulator.setup.images[0]).spec.sha256
    assert variables["PPS_MIRROR_EVENT"] == "image.stored"
    assert variables["PPS_MIRROR_HASH"] == image_hash
    assert Path(variables["PPS_MIRROR_IMAGE"]) == mirror.store / "images" / image_hash / "image"
    assert variables["PPS_MIRROR_TAGS"]
    shell = {"PWD", "SHLVL", "_", "OLDPWD"}
    ours = {f"PPS_MIRROR_{name}" for name in ("EVENT", "HASH", "IMAGE", "TAGS")}
    assert variables.keys() - shell == ours | {"PATH", "HOME"}
    assert json.loads(Path(f"{out}.json").read_text())["type"] == "image.stored"
    eventually(lambda: "it: it was heard" in mirror.log())


def test_a_command_that_fails_is_run_again(fresh_mirror: FreshMirror, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    command = script(tmp_path, f"echo >>{runs}; test $(wc -l <{runs}) = 3")
    mirror = fresh_mirror(environ=in_environment(hook(command=command, events=["image.stored"])))
    fetch(mirror)
    eventually(lambda: "hook.delivered" in mirror.actions())
    assert len(runs.read_text().splitlines()) == 3


@pytest.mark.parametrize("ends_itself", [True, False])
def test_everything_that_a_command_started_is_ended_with_it(
    ends_itself: bool, fresh_mirror: FreshMirror, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    rest = "exit 0" if ends_itself else "trap '' TERM; while :; do sleep 1; done"
    command = script(tmp_path, f"sleep 1000 & echo $! $$ >{pids}; {rest}")
    mirror = fresh_mirror(environ=in_environment(hook(command=command, events=["image.stored"], timeout="1s")))
    fetch(mirror)
    action = "hook.delivered" if ends_itself else "hook.failed"
    eventually(lambda: action in mirror.actions())
    for pid in pids.read_text().split():
        eventually(lambda pid=pid: not Path(f"/proc/{pid}").exists(), what="its end")  # type: ignore[misc]


def test_a_command_that_runs_is_ended_with_the_mirror_and_run_again_by_the_next(
    fresh_mirror: FreshMirror, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    command = script(tmp_path, f"echo $$ >>{runs}; test $(wc -l <{runs}) = 2 || exec sleep 1000")
    mirror = fresh_mirror(environ=in_environment(hook(command=command, events=["image.stored"], timeout="1h")))
    fetch(mirror)
    eventually(lambda: runs.exists() and runs.read_text())
    assert mirror.stop() == 0
    assert not Path(f"/proc/{runs.read_text().strip()}").exists()
    mirror.start()
    eventually(lambda: "hook.delivered" in mirror.actions())


def test_a_command_that_runs_goes_on_when_something_else_is_reloaded(fresh_mirror: FreshMirror, tmp_path: Path) -> None:
    runs, end = tmp_path / "runs", tmp_path / "end"
    command = script(tmp_path, f"echo $$ >>{runs}; until test -e {end}; do sleep 0.1; done")
    mirror = fresh_mirror(environ=in_environment(hook(command=command, events=["image.stored"], timeout="1h")))
    fetch(mirror)
    eventually(lambda: runs.exists() and runs.read_text())
    mirror.send_signal(signal.SIGHUP)
    eventually(lambda: "mirror.reloaded" in mirror.actions())
    end.touch()
    eventually(lambda: "hook.delivered" in mirror.actions())
    assert len(runs.read_text().splitlines()) == 1


def test_what_a_command_prints_is_bounded(fresh_mirror: FreshMirror, tmp_path: Path) -> None:
    command = script(tmp_path, "i=0; while [ $i -lt 1000 ]; do echo line $i; i=$((i+1)); done; head -c 9999 /dev/zero")
    mirror = fresh_mirror(environ=in_environment(hook(command=command, events=["image.stored"])))
    fetch(mirror)
    eventually(lambda: "hook.delivered" in mirror.actions())
    assert mirror.settled.log().count("it: line ") == 100
    assert "more than 100 lines" in mirror.settled.log()


# Other processes, other configurations


def test_what_a_command_line_does_is_told_by_the_mirror_that_runs(
    fresh_mirror: FreshMirror, receiver: Receiver
) -> None:
    variable = in_environment(hook(url=receiver.url, events=["image.quarantined"]))
    mirror = fresh_mirror(environ=variable)
    fetch(mirror)
    (image,) = (mirror.store / "images").glob("*/image")
    with image.open("r+b") as file:
        file.seek(1000)
        file.write(b"rot")
    assert run("verify", "-c", mirror.config_file, **variable).returncode == 1
    receiver.wait_for("image.quarantined")
    assert receiver.told[0].event["subject"] == image.parent.name


def test_what_no_mirror_was_there_for_is_told_by_the_next_one(
    fresh_mirror: FreshMirror, receiver: Receiver, simulator: Simulator
) -> None:
    variable = in_environment(hook(url=receiver.url))
    mirror = fresh_mirror(environ=variable)
    mirror.stop()
    done = run("pull", "-c", mirror.config_file, DATAROBOT_API_TOKEN=simulator.token, **variable)
    assert done.returncode == 0, done.stderr
    assert receiver.told == []
    mirror.start()
    receiver.wait_for("image.stored", "image.current")
    assert len(receiver.told) == 2


def test_hooks_change_on_sighup_and_a_bad_one_changes_nothing(
    fresh_mirror: FreshMirror, receiver: Receiver, simulator: Simulator, tmp_path: Path
) -> None:
    mirror = fresh_mirror({"upstream": {"metadata_ttl": "0s"}})
    before = mirror.config_file.read_text()
    fetch(mirror)
    mirror.config_file.write_text(before + in_file(hook(url=receiver.url, secret_file=str(tmp_path / "none"))))
    mirror.send_signal(signal.SIGHUP)
    eventually(lambda: "reload.failed" in mirror.actions())
    assert "secret_file" in mirror.settled.log()
    mirror.config_file.write_text(before + in_file(hook(url=receiver.url)))
    mirror.send_signal(signal.SIGHUP)
    eventually(lambda: "mirror.reloaded" in mirror.actions())
    simulator.roll_over("second")
    fetch(mirror)
    receiver.wait_for("image.current", "image.stored")


@pytest.mark.parametrize(
    ("content", "said"), [("", "is empty"), ("whsec_c2hvcnQ=", "24 to 64"), ("correct-horse", "whsec_")]
)
def test_a_secret_that_is_none_stops_the_start_without_being_shown(content: str, said: str, tmp_path: Path) -> None:
    secret = tmp_path / "it"
    secret.write_text(content)
    file = tmp_path / "m.toml"
    file.write_text(in_file(hook(url="http://localhost/", secret_file=str(secret))))
    done = run("hooks", "test", "it", "-c", file)
    assert done.returncode == 2
    assert said in done.stderr
    assert not content or content.removeprefix("whsec_") not in done.stderr.replace(str(secret), "")
