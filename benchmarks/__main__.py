"""The command: `python -m benchmarks`, or `make bench`."""

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import date
from importlib import metadata
from pathlib import Path
from types import FrameType

from benchmarks import accounting
from benchmarks.bench import Bench, say
from benchmarks.cases import CASES, slow_rate
from benchmarks.clients import ClientError
from benchmarks.material import make_certificate, make_image
from benchmarks.process import ServerError, find_program
from benchmarks.servers import Upstream
from benchmarks.table import CONTESTANTS, CURL, NGINX, VARNISH, Row, goal_table

_SMALLEST_MIB = 512
_IMAGES_ON_DISK = 7  # the upstream's, each cache's (Varnish reserves four, sparsely), and the client's
_PROGRAMS = {"nginx": "nginx-light", "varnishd": "varnish", "curl": "curl", "openssl": "openssl", "wrk": "wrk"}
_LOGS = {"on": (True,), "off": (False,), "both": (True, False)}
_NEEDED_BY_PEER = {NGINX: "nginx", VARNISH: "varnishd", CURL: "curl"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases asked for; return 0 if all could be measured, whatever they say, 1 if not, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _leave)
    missing = {program for program in _PROGRAMS if not find_program(program)}
    for program in sorted(missing):
        say(f"{program} is missing; to have it: apt-get install {_PROGRAMS[program]}")
    if missing & {"nginx", "curl", "openssl"}:
        say("Every case needs nginx as the upstream, curl as the client and openssl for digests.")
        return 2
    free = shutil.disk_usage(options.dir).free
    if free < _IMAGES_ON_DISK * (options.size << 20):
        say(f"{options.dir} has {free >> 20} MiB free; {_IMAGES_ON_DISK * options.size} are needed (--dir, --size)")
        return 2
    contestants = [
        name for name in CONTESTANTS if name not in options.without and _NEEDED_BY_PEER.get(name) not in missing
    ]
    cases = [case for case in CASES if not options.only or case in options.only]
    if "wrk" in missing and "metadata" in cases:
        cases.remove("metadata")
    status, report = 0, ""
    for logs in _LOGS[options.logs]:
        rows, details, failed = _run(cases, contestants, options, logs=logs)
        reached = [row.reached() for row in rows]
        tables = _tables(goal_table(rows), details, logs=logs)
        print(f"\n{tables}\n{reached.count(True)} goals reached, {reached.count(False)} missed.\n")
        report += f"\n{tables}"
        status = 1 if failed else status
    if options.markdown:
        options.markdown.write_text(_heading(options) + report)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="pps-mirror beside nginx, Varnish and curl, in front of one upstream."
    )
    parser.add_argument("--only", action="append", choices=CASES, metavar="CASE", help=f"one of {', '.join(CASES)}")
    parser.add_argument("--without", action="append", choices=CONTESTANTS, default=[], metavar="WHO", help="leave out")
    parser.add_argument("--logs", choices=_LOGS, default="both", help="with access logs, without, or both (default)")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds after the warm-up (default 3)")
    parser.add_argument("--size", type=int, default=_SMALLEST_MIB, metavar="MIB", help="image size in MiB (512)")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where, on a real disk (/var/tmp)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the report there")
    return parser


def _leave(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(128 + signal.SIGTERM)  # by way of every `with` block, so that no server stays behind


def _run(
    cases: Sequence[str], contestants: Sequence[str], options: argparse.Namespace, *, logs: bool
) -> tuple[list[Row], str, list[str]]:
    """Measure `cases`; return the rows, the details, and the cases that could not be measured."""
    rows: list[Row] = []
    failed: list[str] = []
    busy = accounting.busy_fraction(1)
    if busy > 0.1:
        say(f"The machine is {busy:.0%} busy with something else: the numbers will show it.")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pps-bench-", dir=options.dir)))
        say(f"Making an image of {options.size} MiB ...")
        image = make_image(directory / "image", options.size << 20)
        certificate = make_certificate(directory)
        upstream = stack.enter_context(
            Upstream(directory / "upstream", image, certificate, slow_rate=slow_rate(image.size))
        )
        bench = Bench(
            directory, image, certificate, upstream, contestants=contestants, rounds=options.rounds, logs=logs
        )
        for case in cases:
            say(case)
            try:
                rows += CASES[case](bench)
            except (ClientError, ServerError, subprocess.SubprocessError, OSError) as error:
                say(f"  {case} could not be measured: {error}")
                failed.append(case)
        return rows, bench.details(), failed


def _heading(options: argparse.Namespace) -> str:
    """Say where and when `--markdown` was written."""
    machine = f"{os.cpu_count()} x {_processor()}, Linux {platform.release()}, Python {platform.python_version()}"
    load = f"load average at the end {os.getloadavg()[0]:.1f}"
    versions = f"{_version('nginx', '-v')}, {_version('varnishd', '-V')}, aiohttp {metadata.version('aiohttp')}"
    what = f"An image of {options.size} MiB, medians of {options.rounds} rounds after a warm-up"
    return (
        "## The last run\n\n`make bench ARGS='--markdown FILE'` repeats it and writes this section anew.\n\n"
        f"{what}; {date.today():%Y-%m-%d}, {machine}, {load}, {versions}.\n"
    )


def _tables(goals: str, details: str, *, logs: bool) -> str:
    """Render the goals, and everything measured, of a run with access logs or without."""
    title = "With access logs, as it is installed" if logs else "Without access logs"
    return (
        f"### {title}\n\n{goals}\n"
        "What was measured besides, per case and contestant (the machine's CPU is clients, upstream and server\n"
        f"together; the first byte is the slowest client's, of the answer as curl sees it):\n\n{details}"
    )


def _processor() -> str:
    """Return the processor's name as the kernel knows it, with family and model, because virtual machines hide it."""
    first = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    name = fields.get("model name", platform.machine())
    return f"{name} (family {fields.get('cpu family', '?')}, model {fields.get('model', '?')})"


def _version(program: str, option: str) -> str:
    path = find_program(program)
    if not path:
        return f"no {program}"
    said = subprocess.run([path, option], capture_output=True, text=True, check=False)
    return (said.stderr + said.stdout).splitlines()[0].strip()


if __name__ == "__main__":
    sys.exit(main())
