"""The command line as people and scripts use it: real processes, their output and their exit status."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mirror.simulator.client import Fault, ImageSpec, Simulator
from tests.support.by_hand import lay_out
from tests.support.certificates import certificate
from tests.support.commands import COMMAND, environment, on_a_terminal, one_line, run_really
from tests.support.forked import ForkedMirror
from tests.support.processes import MirrorProcess, eventually

SIZE = 8 << 20


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator.start([ImageSpec("first", size=SIZE), ImageSpec("second", size=SIZE // 2)]) as simulator:
        yield simulator


@pytest.fixture
def token_file(tmp_path: Path, simulator: Simulator) -> str:
    path = tmp_path / "token"
    path.write_text(simulator.token)
    path.chmod(0o600)
    return str(path)


@pytest.fixture
def mirror(tmp_path: Path, simulator: Simulator, token_file: str) -> Iterator[MirrorProcess]:
    """A mirror with its own token that is not started: its configuration is what the commands are run with."""
    mirror = ForkedMirror(
        tmp_path / "mirror", simulator.api_url, {"upstream": {"token_file": token_file}, "log": {"format": "auto"}}
    )
    yield mirror
    if mirror.process is not None and mirror.process.poll() is None:
        mirror.stop()


def pull(mirror: MirrorProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_really("pull", "-c", mirror.config_file, *arguments)


def begin_pull(mirror: MirrorProcess) -> subprocess.Popen[str]:
    return subprocess.Popen(
        # Whoever runs the tests in the background may ignore SIGINT, and what is ignored is inherited.
        ["env", "--default-signal=INT", *COMMAND, "pull", "-c", mirror.config_file],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def partial(mirror: MirrorProcess, simulator: Simulator) -> Path:
    return mirror.store / "partial" / simulator.image_sha256("first")


def length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def stored_hash(mirror: MirrorProcess, simulator: Simulator, name: str = "first") -> str:
    """SHA-256 of what is stored for an image; the test fails when nothing is."""
    image = mirror.store / "images" / simulator.image_sha256(name) / "image"
    return hashlib.sha256(image.read_bytes()).hexdigest()


# The command line itself


@pytest.mark.parametrize(
    "command", ["serve", "check", "doctor", "pull", "ls", "verify", "pin abcdef", "rm abcdef", "gc", "export abcdef ."]
)
@pytest.mark.parametrize("before", [True, False])
def test_a_configuration_error_is_one_line_and_status_2_wherever_the_file_is_named(
    tmp_path: Path, command: str, before: bool
) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[server]\nprot = 1\n")
    place = ["-c", str(config)]
    done = run_really(*place, *command.split()) if before else run_really(*command.split(), *place)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "did you mean server.port?" in one_line(done.stderr)


def test_the_file_named_after_the_command_wins_over_the_one_before_and_the_variable(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(f'[store]\npath = "/nowhere/{name}"\n')
    variable = {"PPS_MIRROR_CONFIG": str(tmp_path / "c")}
    assert "/nowhere/b" in run_really("-c", tmp_path / "a", "ls", "-c", tmp_path / "b", **variable).stdout
    assert "/nowhere/a" in run_really("-c", tmp_path / "a", "ls", **variable).stdout
    assert "/nowhere/c" in run_really("ls", **variable).stdout


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["ls", "--nonsense"], ["ls", "extra"], ["--js", "ls"]])
def test_a_wrong_command_line_is_status_2(arguments: list[str]) -> None:
    done = run_really(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: pps-mirror")


def test_help_names_every_command_and_shows_examples() -> None:
    done = run_really("--help")
    assert done.returncode == 0
    for command in (
        "serve",
        "check",
        "doctor",
        "pull",
        "ls",
        "verify",
        "pin",
        "unpin",
        "rm",
        "gc",
        "export",
        "import",
        "demo",
    ):
        assert re.search(rf"^    {command} ", done.stdout, re.MULTILINE)
        assert run_really(command, "--help").returncode == 0
    assert "  pps-mirror serve -c config.toml" in done.stdout


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["get", "--help"], ["completion", "bash"]])
def test_help_version_and_completion_load_nothing_that_they_do_not_need(arguments: list[str]) -> None:
    loaded = _loaded(*arguments)
    assert "mirror.cli.parser" in loaded
    assert not loaded & {"asyncio", "aiohttp", "pydantic", "rich", "prometheus_client", "json"}


def test_ls_loads_nothing_that_speaks_http(tmp_path: Path) -> None:
    lay_out(tmp_path)
    settings = {"PPS_MIRROR__STORE__PATH": str(tmp_path), "PPS_MIRROR__UPSTREAM__URL": "http://127.0.0.1:9"}
    loaded = _loaded("ls", **settings)
    assert "mirror.cli.ls" in loaded
    assert not loaded & {"aiohttp", "yarl", "prometheus_client", "aiobotocore", "jinja2"}


def _loaded(*arguments: str, **variables: str) -> set[str]:
    """The modules that a command loads."""
    command = [sys.executable, "-X", "importtime", "-m", "mirror", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **variables})
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def test_a_reader_that_has_left_is_no_traceback(tmp_path: Path) -> None:
    lay_out(tmp_path)
    for arguments in (["ls"], ["ls", "--json"], ["--help"]):
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [*COMMAND, *arguments],
            env=environment(PPS_MIRROR__STORE__PATH=str(tmp_path)),
            stdout=writing,
            stderr=subprocess.PIPE,
            check=False,
        )
        os.close(writing)
        assert done.stderr == b"", arguments


# check


def test_check_writes_a_line_for_each_thing_and_exits_0_when_all_is_well(mirror: MirrorProcess) -> None:
    done = run_really("check", "-c", mirror.config_file)
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    lines = [line.split(None, 2) for line in done.stdout.splitlines()]
    assert [(mark, name) for mark, name, _ in lines] == [
        ("ok", "configuration"),
        ("ok", "upstream"),
        ("ok", "token"),
        ("ok", "store"),
        ("note", "tls"),
        ("ok", "server"),
        ("ok", "admin"),
        ("note", "registry"),
    ]
    assert not mirror.store.exists()


def test_check_exits_1_when_anything_fails_and_says_so_in_json_as_well(
    mirror: MirrorProcess, simulator: Simulator
) -> None:
    simulator.set_tokens(["another"])
    done = run_really("check", "-c", mirror.config_file)
    assert done.returncode == 1
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAIL")] == ["token"]
    as_json = run_really("check", "--json", "-c", mirror.config_file)
    assert as_json.returncode == 1
    findings = json.loads(as_json.stdout)
    assert all(set(finding) == {"check", "ok", "message"} for finding in findings)
    assert [finding["check"] for finding in findings if not finding["ok"]] == ["token"]
    assert simulator.token not in done.stdout + as_json.stdout


def test_check_beside_a_running_mirror_sees_that_it_is_one(
    tmp_path: Path, simulator: Simulator, token_file: str
) -> None:
    cert, key = certificate(tmp_path / "tls")
    sections: Mapping[str, Mapping[str, Any]] = {
        "server": {"tls_cert": str(cert), "tls_key": str(key)},
        "upstream": {"token_file": token_file},
    }
    with ForkedMirror(tmp_path / "mirror", simulator.api_url, sections) as mirror:
        done = run_really("check", "-c", mirror.config_file)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("taken, by a pps-mirror that runs already") == 2


# ls


def test_ls_of_a_store_that_does_not_exist_says_so_and_does_not_make_it(tmp_path: Path) -> None:
    environ = {"PPS_MIRROR__STORE__PATH": str(tmp_path / "store")}
    done = run_really("ls", **environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"No images are stored in {tmp_path}/store (it does not exist yet).\n"
    assert run_really("ls", "--json", **environ).stdout == "[]\n"
    assert list(tmp_path.iterdir()) == []


def test_ls_of_an_empty_store_says_so(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    done = run_really("ls", PPS_MIRROR__STORE__PATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, f"No images are stored in {tmp_path}.\n")


def test_ls_shows_what_is_stored_while_upstream_is_away(tmp_path: Path) -> None:
    old = lay_out(tmp_path, b"old", created="2023-01-02T03:04:05Z", filename="old.tar.gz")
    new = lay_out(tmp_path, b"newer", filename="a-very-long-name-" * 5 + ".tar.gz")
    (tmp_path / "images" / old / "pinned").touch()
    done = run_really("ls", PPS_MIRROR__STORE__PATH=str(tmp_path))
    header, first, second = done.stdout.splitlines()
    assert header.split() == ["HASH", "FILE", "SIZE", "STORED", "LAST", "SERVED", "CURRENT", "PINNED", "TAGS"]
    assert first.split()[:4] == [new[:12], "a-very-long-name-" * 5 + ".tar.gz", "5", "B"]
    assert first.split()[-3:] == ["never", "yes", "waiting"]  # current: without upstream that is the newest
    assert second.split()[0] == old[:12]
    assert second.split()[-3:] == ["never", "yes", "waiting"]  # pinned
    assert second.rstrip().index("yes", 60) > first.rstrip().index("yes", 60)
    with_upstream = run_really(
        "ls", "--json", PPS_MIRROR__STORE__PATH=str(tmp_path), PPS_MIRROR__UPSTREAM__URL="http://127.0.0.1:9"
    )
    assert [image["current"] for image in json.loads(with_upstream.stdout)] == [False, False]  # nobody has said yet


def test_a_file_name_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    lay_out(tmp_path, filename="\x1b[31m[red]\u202e.tar.gz")
    done = run_really("ls", PPS_MIRROR__STORE__PATH=str(tmp_path))
    assert " ?[31m[red]?.tar.gz " in done.stdout


def test_ls_in_json_is_what_the_mirror_lists_over_http(mirror: MirrorProcess, simulator: Simulator) -> None:
    assert pull(mirror).returncode == 0
    lay_out(mirror.store)
    mirror.start()
    request = urllib.request.Request(
        f"{mirror.url}/mirror/v1/images/", headers={"Authorization": f"Bearer {simulator.token}"}
    )
    with urllib.request.urlopen(request) as answer:
        over_http = json.load(answer)
    done = run_really("ls", "--json", "-c", mirror.config_file)
    assert json.loads(done.stdout) == over_http
    assert [image["current"] for image in over_http] == [True, False]


# pull


def test_pull_stores_the_current_image_and_the_next_one_has_nothing_to_do(
    mirror: MirrorProcess, simulator: Simulator
) -> None:
    done = pull(mirror)
    assert (done.returncode, done.stderr) == (0, "")
    digest = simulator.image_sha256("first")
    assert stored_hash(mirror, simulator) == digest
    first, *_, last = done.stdout.splitlines()  # more between them when it takes over five seconds
    assert first == "receiving: 0 B of 8.0 MiB (0 %)"
    assert last.startswith(f"{digest[:12]} (8.0 MiB) is verified and stored, after ")
    again = pull(mirror)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout == f"{digest[:12]} (8.0 MiB) is stored already: nothing to do\n"
    assert simulator.counters().image_requests == 1


def test_pull_draws_a_bar_with_bytes_and_rate_on_a_terminal(mirror: MirrorProcess, simulator: Simulator) -> None:
    simulator.set_rate(SIZE)
    simulator.fault(Fault("store", cut_after=SIZE // 2))
    text = on_a_terminal("pull", "-c", mirror.config_file)
    assert re.search(r"\r\d\d:\d\d:\d\d WARNING fill of [^━]*the\s+line\s+broke[^━]*\r\n", text)  # not within the bar
    assert "8.0/8.0 MiB" in text
    assert "MiB/s" in text
    assert re.search(r"\d:\d\d:\d\d", text)
    assert "is verified and stored" in text


def test_pull_without_a_token_or_with_a_bad_one_says_what_to_set(mirror: MirrorProcess, simulator: Simulator) -> None:
    none = run_really("pull", "-c", mirror.config_file, PPS_MIRROR__UPSTREAM__TOKEN_FILE="")
    assert (none.returncode, none.stdout) == (1, "")
    assert "set upstream.token_file or DATAROBOT_API_TOKEN" in one_line(none.stderr)
    simulator.set_tokens(["another"])
    bad = pull(mirror)
    assert (bad.returncode, bad.stdout) == (1, "")
    assert "upstream refuses the token in upstream.token_file (it answered 401)" in one_line(bad.stderr)


def test_pull_of_wrong_bytes_fails_and_stores_nothing(mirror: MirrorProcess, simulator: Simulator) -> None:
    simulator.fault(Fault("store", corrupt_at=SIZE - 1, times=None))
    done = pull(mirror)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("pps-mirror: wrong bytes came in: expected sha256 ")
    assert "Traceback" not in done.stderr
    assert list((mirror.store / "images").iterdir()) == []
    assert simulator.counters().image_requests == 1


def test_pull_takes_the_new_image_when_upstream_rolls_over_under_it(
    mirror: MirrorProcess, simulator: Simulator
) -> None:
    simulator.fault(Fault("metadata", roll_over="second"))
    done = pull(mirror)
    assert done.returncode == 0, done.stderr
    assert "upstream has another image than it said: asking again" in done.stdout
    assert stored_hash(mirror, simulator, "second") == simulator.image_sha256("second")


def is_idle(pid: int) -> bool:
    """Whether a process uses no more than a tick of the processor in half a second."""

    def ticks() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    time.sleep(0.5)
    return ticks() - before <= 1


def test_an_interrupted_pull_keeps_what_it_has_and_the_next_one_goes_on_there(
    mirror: MirrorProcess, simulator: Simulator
) -> None:
    simulator.fault(Fault("store", hang_after=SIZE // 4))
    process = begin_pull(mirror)
    eventually(lambda: length(partial(mirror, simulator)) == SIZE // 4)
    eventually(lambda: is_idle(process.pid), what="the digest of what is written")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")
    assert out.splitlines()[-1].startswith("stopped at 2.0 MiB of 8.0 MiB: that is kept, and will be resumed ")
    simulator.clear_faults()
    assert pull(mirror).returncode == 0
    assert stored_hash(mirror, simulator) == simulator.image_sha256("first")
    assert [request.range for request in simulator.log("store")] == [None, f"bytes={SIZE // 4}-"]


@pytest.fixture
def receiving(mirror: MirrorProcess, simulator: Simulator) -> Iterator[subprocess.Popen[str]]:
    """A pull that has received half of the image, and waits for the rest until the simulator releases it."""
    simulator.fault(Fault("store", hang_after=SIZE // 2))
    process = begin_pull(mirror)
    eventually(lambda: length(partial(mirror, simulator)) == SIZE // 2)
    yield process
    simulator.release()
    process.communicate(timeout=30)


def test_pull_beside_another_that_receives_the_image_follows_it(
    mirror: MirrorProcess, simulator: Simulator, receiving: subprocess.Popen[str]
) -> None:
    process = begin_pull(mirror)
    assert process.stdout is not None
    assert "following it" in process.stdout.readline()
    assert process.stdout.readline() == "following: 4.0 MiB of 8.0 MiB (50 %)\n"
    simulator.release()
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert out.endswith("is stored, by the other process\n")
    assert receiving.wait(30) == 0
    assert stored_hash(mirror, simulator) == simulator.image_sha256("first")
    assert simulator.counters().image_requests == 1


def test_pull_takes_over_when_the_one_that_it_follows_dies(
    mirror: MirrorProcess, simulator: Simulator, receiving: subprocess.Popen[str]
) -> None:
    process = begin_pull(mirror)
    assert process.stdout is not None
    assert "following it" in process.stdout.readline()
    receiving.kill()
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert "is verified and stored" in out
    assert stored_hash(mirror, simulator) == simulator.image_sha256("first")
    assert [request.range for request in simulator.log("store")] == [None, f"bytes={SIZE // 2}-"]


def test_an_interrupted_follower_leaves_the_transfer_alone(
    mirror: MirrorProcess, simulator: Simulator, receiving: subprocess.Popen[str]
) -> None:
    process = begin_pull(mirror)
    assert process.stdout is not None
    assert "following it" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")
    simulator.release()
    assert receiving.wait(30) == 0
    assert simulator.counters().image_requests == 1
