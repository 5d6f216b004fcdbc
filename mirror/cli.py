"""The command line: parses, calls, prints. No logic of its own.

Exit status: 0 done, 1 failed, 2 usage or configuration, 130 interrupted.
"""

import argparse
import asyncio
import functools
import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mirror import __version__, config, log, serving
from mirror.commands import check
from mirror.commands.examples import EXAMPLES
from mirror.commands.findings import Finding
from mirror.errors import ConfigError, MirrorError, Unheard, UsageError
from mirror.listing import describe, describe_removal, describe_verified
from mirror.store.verification import Verdict
from mirror.units import format_size, parse_duration

HELP_WIDTH = 100
"""Columns of a command's description; its examples keep their lines."""

EPILOG = """\
examples:
  pps-mirror demo                            see it work, with a simulated DataRobot
  pps-mirror doctor -c config.toml           it does not work: why, and what to do
  pps-mirror check -c config.toml            would it work here? a line for each thing that must be right
  pps-mirror serve -c config.toml            serve; stop it with Ctrl-C or SIGTERM
  DATAROBOT_API_TOKEN=... pps-mirror pull    bring the current image into the store before anybody asks

Every key of the configuration can be set in the environment too, which wins:
  PPS_MIRROR__UPSTREAM__URL=https://app.datarobot.com PPS_MIRROR__SERVER__PORT=9000 pps-mirror serve

Exit status: 0 done, 1 failed, 2 usage or configuration. `pps-mirror COMMAND --help` says more of a command.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status. What goes wrong is one line on standard error."""
    options = build_parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.run
    try:
        status = command(options)
        sys.stdout.flush()
    except (ConfigError, UsageError) as error:
        return _complain(str(error), 2)
    except MirrorError as error:
        return _complain(error.message, 1)
    except (BrokenPipeError, Unheard) as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter must not try to flush it again
        reason = error.__cause__ or error
        if isinstance(reason, BrokenPipeError):  # whoever read it has left, and knows that
            return 1
        return _complain(f"standard output cannot be written: {reason}", 1)
    except OSError as error:
        return _complain(str(error), 1)
    except KeyboardInterrupt:
        return 130
    return status


def _complain(text: str, status: int) -> int:
    print(f"pps-mirror: {text}".encode("ascii", "backslashreplace").decode(), file=sys.stderr)
    return status


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of the whole command line; completion and the manual page are made from it too."""
    parser = argparse.ArgumentParser(
        prog="pps-mirror",
        description="A caching mirror for DataRobot's Portable Prediction Server image: one verified fetch for all.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pps-mirror {__version__}")
    _add_common(parser, None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], summary: str, more: str) -> argparse.ArgumentParser:
        description = f"{summary[0].upper()}{summary[1:]}. {more}"
        command = commands.add_parser(
            name,
            help=summary,
            description=textwrap.fill(description, HELP_WIDTH),
            epilog=f"examples:\n{EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        _add_common(command, argparse.SUPPRESS)
        command.set_defaults(run=run)
        return command

    def add_json(command: argparse.ArgumentParser) -> None:
        command.add_argument("--json", action="store_true", help="write a JSON list instead, for machines")

    add("serve", _serve, "serve images to clients until SIGTERM or Ctrl-C", "Downloads that run may end first.")
    add_json(
        add(
            "check",
            _check,
            "find out whether the mirror would work here",
            "Tries upstream, token, store, certificate and ports, and changes nothing. Exit status 1 if any fails.",
        )
    )
    add_json(
        add(
            "doctor",
            _doctor,
            "find out why it does not work, and what to do",
            "Looks at what people get wrong: variables that override the file, proxies, names, certificates, the "
            "clock, tokens, where upstream redirects to, the store's disk, ports, mirrors that lead back to "
            "themselves. Each FAIL and note says what to do. Tries all of that and changes nothing; needs no token, "
            "but with one it asks for the first bytes of the image. Works beside a running mirror, whose word it adds, "
            "and without one. Its output has no secrets in it. Exit status 1 if anything is wrong.",
        )
    )
    add(
        "pull",
        _pull,
        "bring the current image into the store now",
        "Uses the mirror's own token. Interrupted, it keeps what it has, and the next one goes on from there. "
        "A mirror that runs on this store is asked to fetch it, and watched; where none runs it is fetched here.",
    )
    add_json(add("ls", _ls, "list the stored images", "Needs neither upstream nor a running mirror."))

    def add_image(command: argparse.ArgumentParser, *, nargs: str | None = None) -> None:
        command.add_argument(
            "hash", metavar="HASH", nargs=nargs, help="6 or more digits of an image's hash, or: current"
        )

    verify = add(
        "verify",
        _verify,
        "hash stored images again",
        "Without HASH all of them. A bad one is set aside and fetched anew at the next request; then the exit status "
        "is 1. Works beside a running mirror.",
    )
    add_image(verify, nargs="?")
    verify.add_argument("--all", action="store_true", help="all images, as without HASH")
    add_json(verify)
    add_image(add("pin", _pin, "keep an image from being evicted", "Whatever room is needed, a pinned image stays."))
    add_image(add("unpin", _unpin, "let an image be evicted again", "It goes when room is needed and its turn comes."))
    rm = add("rm", _rm, "remove an image", "Downloads that run go on. Not a pinned or the current one without --force.")
    add_image(rm)
    rm.add_argument("--force", action="store_true", help="also when it is pinned or current")
    gc = add(
        "gc",
        _gc,
        "clear away what nobody will miss",
        "What crashes left, partials that nobody resumes, wrong bytes looked at long enough; and images, those least "
        "recently served first, as far as store.max_size and store.min_free demand. Exit status 1 if that did not do.",
    )
    gc.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    add_json(gc)
    export = add(
        "export",
        _export,
        "write an image to a medium, to be carried across an air gap",
        "Makes a directory of its own in DIR, for that image: the image (in volumes, with --split), its metadata, "
        "checksums for sha256sum -c, and a README.txt for whoever has no pps-mirror. All is read back from the medium. "
        "Interrupted, it goes on when it is run again. Works beside a running mirror.",
    )
    add_image(export)
    export.add_argument("directory", metavar="DIR", type=Path, help="where to make the bundle's directory")
    export.add_argument(
        "--split", metavar="SIZE", help="bytes of a volume at most; 4GiB is made 4 GiB less a byte, which FAT32 takes"
    )
    export.add_argument("--sign", metavar="KEY", type=Path, help="sign it with this OpenSSH key (ssh-keygen -Y sign)")
    add_json(export)
    bring_in = add(
        "import",
        _import,
        "bring an image that was carried here into the store",
        "PATH is a bundle's directory, or the medium that has it; several when its volumes are on several media, in "
        "any order; or an image and its metadata. All of it is checked before the store is touched. Interrupted, it "
        "goes on when it is run again. A running mirror has the image at once.",
    )
    bring_in.add_argument("paths", metavar="PATH", type=Path, nargs="+", help="where the image is, or parts of it")
    bring_in.add_argument("--metadata", metavar="FILE", type=Path, help="the metadata of a lone image")
    bring_in.add_argument(
        "--trust",
        metavar="ALLOWED_SIGNERS",
        type=Path,
        help="refuse what is not signed by one of these (the format is in ssh-keygen(1))",
    )
    add_json(bring_in)
    _add_get(
        add(
            "get",
            _get,
            "download the image as a client, verified, and load it",
            "Asks URL, a mirror's or DataRobot's, for the current image and its hash. A line that breaks is resumed, "
            "also after this command was killed: run it again. The file has its name only when it is whole and right. "
            f"Sends the token of --token-file or {config.TOKEN_VARIABLE}, never to where URL redirects to. "
            "Needs no configuration.",
        )
    )
    demo = add(
        "demo",
        _demo,
        "show the mirror at work, with a simulated DataRobot",
        "Needs no configuration, no token and no network; leaves nothing behind.",
    )
    demo.add_argument("--once", action="store_true", help="end after the story, with a table and an exit status")
    demo.add_argument("--rate", metavar="RATE", help="how fast the simulated upstream sends, e.g. 50MB/s")
    demo.add_argument("--size", metavar="SIZE", help="size of its image, e.g. 256MiB")
    completion = add(
        "completion",
        _completion,
        "print a script that completes this command in a shell",
        "Put it where the shell looks for such scripts, or read it at the start: source <(pps-mirror completion bash).",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell it is for")
    return parser


def _add_get(command: argparse.ArgumentParser) -> None:
    command.add_argument("url", metavar="URL", help="a mirror's or DataRobot's address, with or without the path")
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="where to put the image, replacing what is there; or a directory (else: here, by the name it comes with)",
    )
    command.add_argument("--load", action="store_true", help="when it is whole, load it into a container engine")
    command.add_argument(
        "--loader",
        choices=("auto", "docker", "podman", "ctr"),
        default="auto",
        help="which one (auto: the first of these that is on PATH; ctr loads into the namespace k8s.io)",
    )
    command.add_argument("--token-file", type=Path, metavar="FILE", help="a file with nothing but the token")
    command.add_argument("--ca-file", type=Path, metavar="FILE", help="PEM certificates to trust, beside the system's")
    command.add_argument(
        "--retry-for",
        type=_duration,
        default="1h",
        metavar="TIME",
        help="give up when nothing came for this long (default: 1h)",
    )
    command.add_argument("--json", action="store_true", help="write the outcome as JSON, and no progress")


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _add_common(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Add what is understood before and after the command; suppressed there, so that it overrides only if given."""
    parser.add_argument(
        "-c",
        "--config",
        type=Path,
        metavar="FILE",
        default=default,
        help=f"configuration file (else the one that {config.FILE_VARIABLE} names, else none)",
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default=default,
        help="what is logged on standard error (serve: log.level; the other commands: warning)",
    )


def _settings(options: argparse.Namespace) -> config.Config:
    """Load the configuration and set up the log: little of it, and for people."""
    settings = config.load(options.config, os.environ)
    changes = {"level": options.log_level or "warning"}
    if settings.log.format == "auto":
        changes["format"] = "console"
    settings = settings.model_copy(update={"log": settings.log.model_copy(update=changes)})
    log.set_up(settings.log)
    return settings


def _serve(options: argparse.Namespace) -> int:
    settings = config.load(options.config, os.environ)
    if options.log_level:
        settings = settings.model_copy(update={"log": settings.log.model_copy(update={"level": options.log_level})})
    read_again = functools.partial(config.load, options.config, os.environ)
    asyncio.run(serving.serve(settings, os.environ, log.set_up(settings.log), read_again))
    return 0


def _check(options: argparse.Namespace) -> int:
    findings = _show(check.run(_settings(options), os.environ, options.config), as_json=options.json)
    if options.json:
        print(
            json.dumps([{"check": each.check, "ok": each.ok, "message": each.message} for each in findings], indent=2)
        )
    return 0 if all(finding.ok for finding in findings) else 1


def _show(found: Iterable[Finding], *, as_json: bool) -> list[Finding]:
    """Write what is found as soon as it is; as JSON when all is there."""
    findings = []
    for finding in found:
        findings.append(finding)
        if not as_json:
            print("\n".join(finding.lines()), flush=True)
    return findings


def _doctor(options: argparse.Namespace) -> int:
    from mirror.commands import doctor  # what `serve` does not need

    options.log_level = options.log_level or "error"  # what would be warned of is found, and said with more words
    patient = doctor.Doctor(_settings(options), os.environ, options.config)
    found = _show(patient.findings(), as_json=options.json)
    if options.json:
        print(json.dumps([each.describe() for each in found], indent=2))
    else:
        print(f"\n{doctor.summary(found)}")
    status = 0 if all(finding.ok for finding in found) else 1
    if patient.abandoned:  # what hangs must not keep us from ending, as it would where threads are joined
        sys.stdout.flush()
        os._exit(status)
    return status


def _pull(options: argparse.Namespace) -> int:
    from mirror import progress
    from mirror.commands import pull  # with rich, which would cost `serve` 5 MiB

    asyncio.run(pull.pull(_settings(options), os.environ, progress.meter(sys.stdout)))
    return 0


def _ls(options: argparse.Namespace) -> int:
    from mirror.commands import ls  # as above

    settings = _settings(options)
    lines = ls.read(settings)
    if options.json:
        print(json.dumps([describe(line.info, current=line.current) for line in lines], indent=2))
    else:
        ls.write(lines, settings, sys.stdout)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from mirror import progress  # as above
    from mirror.commands import keeping

    if options.hash is not None and options.all:
        raise UsageError("verify takes a HASH or --all, not both")
    meter = progress.Silence() if options.json else progress.meter(sys.stdout)
    outcome = keeping.verify(_settings(options), options.hash, meter)
    if options.json:
        print(json.dumps([describe_verified(each) for each in outcome], indent=2))
    return 0 if all(each.verdict is Verdict.GOOD for each in outcome) else 1


def _pin(options: argparse.Namespace) -> int:
    from mirror.commands import keeping  # as above

    print(f"pinned {keeping.pin(_settings(options), options.hash, pinned=True)[:12]}")
    return 0


def _unpin(options: argparse.Namespace) -> int:
    from mirror.commands import keeping  # as above

    print(f"unpinned {keeping.pin(_settings(options), options.hash, pinned=False)[:12]}")
    return 0


def _rm(options: argparse.Namespace) -> int:
    from mirror.commands import keeping  # as above

    print(f"removed {keeping.remove(_settings(options), options.hash, force=options.force)[:12]}")
    return 0


def _gc(options: argparse.Namespace) -> int:
    from mirror.commands import keeping  # as above

    collected = keeping.collect(_settings(options), dry_run=options.dry_run)
    if options.json:
        print(json.dumps([describe_removal(each) for each in collected.removals], indent=2))
    else:
        done = "would remove" if options.dry_run else "removed"
        for each in collected.removals:
            print(f"{done} {each.kind} {each.path.name} ({format_size(each.size)}): {each.reason}")
        if not collected.removals:
            print("nothing to remove")
    keeping.complain_of_excess(collected)
    return 0


def _export(options: argparse.Namespace) -> int:
    from mirror import progress  # as above
    from mirror.bundle import exporting

    meter = progress.Silence() if options.json else progress.meter(sys.stdout)
    files = exporting.export(
        _settings(options), options.hash, options.directory, meter, split=options.split, key=options.sign
    )
    if options.json:
        print(json.dumps([each.describe() for each in files], indent=2))
    return 0


def _import(options: argparse.Namespace) -> int:
    from mirror import progress  # as above
    from mirror.bundle import checking, importing

    meter = progress.Silence() if options.json else progress.meter(sys.stdout)
    try:
        imported = importing.bring_in(
            _settings(options), options.paths, meter, metadata=options.metadata, trusted=options.trust
        )
    except checking.BadParts as bad:
        if options.json:
            print(json.dumps([bad.describe()], indent=2))
        raise
    if options.json:
        print(json.dumps([imported.describe()], indent=2))
    return 0


def _get(options: argparse.Namespace) -> int:
    from mirror import progress  # as above
    from mirror.commands import get, loaders

    log.set_up(config.Log(level=options.log_level or "warning", format="console"))
    loader = loaders.Loader.find(options.loader, os.environ.get("PATH")) if options.load else None
    meter = progress.Silence() if options.json else progress.meter(sys.stdout)
    order = get.Order(options.url, options.output, options.token_file, options.ca_file, options.retry_for)
    got = get.run(order, loader, os.environ, meter)
    if options.json:
        print(json.dumps(got.describe() | {"loadedInto": loader.name if loader else None}, indent=2))
    return 0


def _completion(options: argparse.Namespace) -> int:
    from mirror.commands import completion  # as above

    print(completion.script(build_parser(), options.shell))
    return 0


def _demo(options: argparse.Namespace) -> int:
    from mirror.commands import demo  # as above

    environ = dict(os.environ)
    if options.config:
        environ[config.FILE_VARIABLE] = str(options.config)
    if options.log_level:
        environ[f"{config.PREFIX}LOG__LEVEL"] = options.log_level
    return demo.run(options.once, options.rate, options.size, environ)


if __name__ == "__main__":
    sys.exit(main())
