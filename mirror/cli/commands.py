"""The commands: each calls what does it, and prints the result. They have no other logic.

Each command imports what it needs when it is run: help, version and completion answer in a twentieth of the time that
loading everything takes, and commands that only look at the store do not load what speaks HTTP.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from mirror.cli.parser import build_parser
from mirror.common.environment import FILE_VARIABLE, PREFIX
from mirror.model.errors import UsageError

if TYPE_CHECKING:
    from mirror.admin.audit import Recorded
    from mirror.cli.findings import Finding
    from mirror.common.progress import Meter
    from mirror.config import Config


def _settings(options: argparse.Namespace) -> "Config":
    """Load the configuration, and set up the log: warnings only, in the format for people."""
    from mirror import config
    from mirror.common import log

    settings = config.load(options.config, os.environ)
    changes = {"level": options.log_level or "warning"}
    if settings.log.format == "auto":
        changes["format"] = "console"
    settings = settings.model_copy(update={"log": settings.log.model_copy(update=changes)})
    log.set_up(settings.log.level, settings.log.format)
    return settings


def _recorded(settings: "Config", action: str, what: str) -> AbstractContextManager["Recorded"]:
    """Record for the audit what is done within the context."""
    from mirror.admin.audit import Audit, user

    return Audit(settings.store.path).recording(f"{user(os.environ)}, by command", action, what)


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2))


def _serve(options: argparse.Namespace) -> int:
    import asyncio

    from mirror import config
    from mirror.common import log
    from mirror.serve.main import serve

    def read(running: config.Config | None = None) -> config.Config:
        settings = config.load(options.config, os.environ, running)
        if options.log_level:
            level = settings.log.model_copy(update={"level": options.log_level})
            settings = settings.model_copy(update={"log": level})
        return settings

    settings = read()
    with log.written_aside(settings.log.level, settings.log.format) as (verbosity, writer):
        asyncio.run(serve(settings, os.environ, verbosity, writer, read))
    return 0


def _check(options: argparse.Namespace) -> int:
    from mirror.cli.check import main as check

    findings = _show(check.run(_settings(options), os.environ, options.config), as_json=options.json)
    if options.json:
        _print_json([{"check": each.check, "ok": each.ok, "message": each.message} for each in findings])
    return 0 if all(finding.ok for finding in findings) else 1


def _show(found: "Iterable[Finding]", *, as_json: bool) -> "list[Finding]":
    """Print findings as they come, unless they are to be printed as JSON in the end. Returns all of them."""
    findings = []
    for finding in found:
        findings.append(finding)
        if not as_json:
            print("\n".join(finding.lines()), flush=True)
    return findings


def _doctor(options: argparse.Namespace) -> int:
    from mirror.cli.doctor import main as doctor

    options.log_level = options.log_level or "error"  # warnings would repeat what the findings say better
    patient = doctor.Doctor(_settings(options), os.environ, options.config)
    found = _show(patient.findings(), as_json=options.json)
    if options.json:
        _print_json([each.describe() for each in found])
    else:
        print(f"\n{doctor.summary(found)}")
    status = 0 if all(finding.ok for finding in found) else 1
    if patient.abandoned:  # do not wait for the threads that hang
        sys.stdout.flush()
        os._exit(status)
    return status


def _meter(*, json: bool = False) -> "Meter":
    """Return what shows how far a command is on standard output, where `--json` leaves no room for it."""
    from mirror.cli.progress_bar import meter
    from mirror.common.progress import Silence

    return Silence() if json else meter(sys.stdout)


def _pull(options: argparse.Namespace) -> int:
    import asyncio

    from mirror.cli import pull

    settings = _settings(options)
    with _recorded(settings, "pull", "current"):
        asyncio.run(pull.pull(settings, os.environ, _meter()))
    return 0


def _ls(options: argparse.Namespace) -> int:
    from mirror.cli import ls

    settings = _settings(options)
    listing = ls.read(settings)
    if options.json:
        _print_json(listing.describe())
    else:
        ls.write(listing, settings, sys.stdout)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from mirror.cli import manage
    from mirror.images.describe import describe_verified
    from mirror.store.disk.verification import Verdict

    if options.hash is not None and options.all:
        raise UsageError("verify takes a HASH or --all, not both")
    meter = _meter(json=options.json)
    settings = _settings(options)
    with _recorded(settings, "verify", options.hash or "all") as recorded:
        outcome = manage.verify(settings, options.hash, meter)
        bad = sum(each.verdict is not Verdict.GOOD for each in outcome)
        recorded.outcome = f"{len(outcome) - bad} good, {bad} not"
    if options.json:
        _print_json([describe_verified(each) for each in outcome])
    return 0 if all(each.verdict is Verdict.GOOD for each in outcome) else 1


def _pin(options: argparse.Namespace) -> int:
    return _set_pinned(options, pinned=True)


def _unpin(options: argparse.Namespace) -> int:
    return _set_pinned(options, pinned=False)


def _set_pinned(options: argparse.Namespace, *, pinned: bool) -> int:
    from mirror.cli import manage

    settings = _settings(options)
    with _recorded(settings, options.command, options.hash) as recorded:
        recorded.what = manage.pin(settings, options.hash, pinned=pinned)
    print(f"{'pinned' if pinned else 'unpinned'} {recorded.what[:12]}")
    return 0


def _rm(options: argparse.Namespace) -> int:
    from mirror.cli import manage

    settings = _settings(options)
    with _recorded(settings, "delete by force" if options.force else "delete", options.hash) as recorded:
        recorded.what = manage.remove(settings, options.hash, force=options.force)
    print(f"removed {recorded.what[:12]}")
    return 0


def _gc(options: argparse.Namespace) -> int:
    from mirror.cli import manage
    from mirror.common.units import format_size
    from mirror.images.describe import describe_removal

    settings = _settings(options)
    with nullcontext() if options.dry_run else _recorded(settings, "gc", "store"):
        collected = manage.collect(settings, dry_run=options.dry_run)
    if options.json:
        _print_json([describe_removal(each) for each in collected.removals])
    else:
        done = "would remove" if options.dry_run else "removed"
        for each in collected.removals:
            print(f"{done} {each.kind} {each.path.name} ({format_size(each.size)}): {each.reason}")
        if not collected.removals:
            print("nothing to remove")
    manage.complain_of_excess(collected)
    return 0


def _export(options: argparse.Namespace) -> int:
    from mirror.bundle import exporter

    meter = _meter(json=options.json)
    settings = _settings(options)
    with _recorded(settings, "export", f"{options.hash} to {options.directory}"):
        files = exporter.export(settings, options.hash, options.directory, meter, split=options.split, key=options.sign)
    if options.json:
        _print_json([each.describe() for each in files])
    return 0


def _import(options: argparse.Namespace) -> int:
    from mirror.bundle import importer
    from mirror.bundle.check_parts import BadParts

    meter = _meter(json=options.json)
    settings, paths = _settings(options), " ".join(map(str, options.paths))
    try:
        with _recorded(settings, "import", paths) as recorded:
            imported = importer.bring_in(
                settings, options.paths, meter, metadata=options.metadata, trusted=options.trust
            )
            recorded.what = f"{imported.metadata.hash} from {paths}"
    except BadParts as bad:
        if options.json:
            _print_json([bad.describe()])
        raise
    if options.json:
        _print_json([imported.describe()])
    return 0


def _push(options: argparse.Namespace) -> int:
    from mirror.cli import push

    meter = _meter(json=options.json)
    wanted = push.PushOptions(options.target, options.hash, options.tls_verify, options.ca_file)
    settings = _settings(options)
    with _recorded(settings, "push", f"{options.hash or 'current'} to {options.target}"):
        pushed = push.run(settings, wanted, os.environ, meter)
    if options.json:
        _print_json([pushed.describe()])
    return 0


def _get(options: argparse.Namespace) -> int:
    from mirror.cli import get
    from mirror.cli.container_engines import Loader
    from mirror.common import log

    log.set_up(options.log_level or "warning", "console")
    loader = Loader.find(options.loader, os.environ.get("PATH")) if options.load else None
    meter = _meter(json=options.json)
    wanted = get.GetOptions(options.url, options.output, options.token_file, options.ca_file, options.retry_for)
    got = get.run(wanted, loader, os.environ, meter)
    if options.json:
        _print_json(got.describe() | {"loadedInto": loader.name if loader else None})
    return 0


def _hooks(options: argparse.Namespace) -> int:
    from mirror.cli import hooks

    options.log_level = options.log_level or "info"  # a command's output
    print(hooks.test(_settings(options), os.environ, options.name))
    return 0


def _completion(options: argparse.Namespace) -> int:
    from mirror.cli import completion

    print(completion.script(build_parser(), options.shell))
    return 0


def _demo(options: argparse.Namespace) -> int:
    from mirror.cli import demo

    environ = dict(os.environ)
    if options.config:
        environ[FILE_VARIABLE] = str(options.config)
    if options.log_level:
        environ[f"{PREFIX}LOG__LEVEL"] = options.log_level
    return demo.run(options.once, options.rate, options.size, environ)


COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "serve": _serve,
    "check": _check,
    "doctor": _doctor,
    "pull": _pull,
    "ls": _ls,
    "verify": _verify,
    "pin": _pin,
    "unpin": _unpin,
    "rm": _rm,
    "gc": _gc,
    "export": _export,
    "import": _import,
    "push": _push,
    "get": _get,
    "hooks": _hooks,
    "demo": _demo,
    "completion": _completion,
}
