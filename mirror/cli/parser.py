"""The parser of the command line: all commands and options, with their help.

Completion and the manual page are made from this parser too.
"""

import argparse
import textwrap
from pathlib import Path

from mirror import __version__, config
from mirror.cli.examples import EXAMPLES
from mirror.common.units import parse_duration

HELP_WIDTH = 100
"""Columns at which a command's description is wrapped; examples keep their lines."""

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


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="pps-mirror",
        description="A caching mirror for DataRobot's Portable Prediction Server image: one verified fetch for all.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pps-mirror {__version__}")
    _add_common(parser, None)
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)

    def add(name: str, summary: str, more: str) -> argparse.ArgumentParser:
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
        return command

    def add_json(command: argparse.ArgumentParser) -> None:
        command.add_argument("--json", action="store_true", help="write a JSON list instead, for machines")

    add("serve", "serve images to clients until SIGTERM or Ctrl-C", "Downloads that run may end first.")
    add_json(
        add(
            "check",
            "find out whether the mirror would work here",
            "Tries upstream, token, store, certificate and ports, and changes nothing. Exit status 1 if any fails.",
        )
    )
    add_json(
        add(
            "doctor",
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
        "bring the current image into the store now",
        "Uses the mirror's own token. Interrupted, it keeps what it has, and the next one goes on from there. "
        "A mirror that runs on this store is asked to fetch it, and watched; where none runs it is fetched here.",
    )
    add_json(add("ls", "list the stored images", "Needs neither upstream nor a running mirror."))

    def add_image(command: argparse.ArgumentParser, *, nargs: str | None = None) -> None:
        command.add_argument(
            "hash", metavar="HASH", nargs=nargs, help="6 or more digits of an image's hash, or: current"
        )

    verify = add(
        "verify",
        "hash stored images again",
        "Without HASH all of them. A bad one is set aside and fetched anew at the next request; then the exit status "
        "is 1. Works beside a running mirror.",
    )
    add_image(verify, nargs="?")
    verify.add_argument("--all", action="store_true", help="all images, as without HASH")
    add_json(verify)
    add_image(add("pin", "keep an image from being evicted", "Whatever room is needed, a pinned image stays."))
    add_image(add("unpin", "let an image be evicted again", "It goes when room is needed and its turn comes."))
    rm = add(
        "rm",
        "remove an image",
        "Downloads that run go on, unless --force. Not a pinned or the current one without that.",
    )
    add_image(rm)
    rm.add_argument(
        "--force", action="store_true", help="also when it is pinned or current; downloads of it that run are reset"
    )
    gc = add(
        "gc",
        "clear away what nobody will miss",
        "What crashes left, partials that nobody resumes, wrong bytes looked at long enough; and images, those least "
        "recently served first, as far as store.max_size and store.min_free demand. Exit status 1 if that did not do.",
    )
    gc.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    add_json(gc)
    export = add(
        "export",
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
            "download the image as a client, verified, and load it",
            "Asks URL, a mirror's or DataRobot's, for the current image and its hash. A line that breaks is resumed, "
            "also after this command was killed: run it again. The file has its name only when it is whole and right. "
            f"Sends the token of --token-file or {config.TOKEN_VARIABLE}, never to where URL redirects to. "
            "Needs no configuration.",
        )
    )
    demo = add(
        "demo",
        "show the mirror at work, with a simulated DataRobot",
        "Needs no configuration, no token and no network; leaves nothing behind.",
    )
    demo.add_argument("--once", action="store_true", help="end after the story, with a table and an exit status")
    demo.add_argument("--rate", metavar="RATE", help="how fast the simulated upstream sends, e.g. 50MB/s")
    demo.add_argument("--size", metavar="SIZE", help="size of its image, e.g. 256MiB")
    completion = add(
        "completion",
        "print a script that completes this command in a shell",
        "Put it where the shell looks for such scripts, or read it at the start: source <(pps-mirror completion bash).",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell it is for")
    return parser


def _add_get(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "url",
        metavar="URL",
        help="a mirror's or DataRobot's address, with or without the path; or that of one of a mirror's stored images "
        "(.../mirror/v1/images/HASH/, or current in place of HASH)",
    )
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
    """Add the options that may stand before and after the command; after it they have no default to override with."""
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
