"""The parser of the command line: all commands and options, with their help.

Completion and the manual page are made from it too.
"""

import argparse
import textwrap
from pathlib import Path

from mirror import __version__
from mirror.cli.examples import EXAMPLES
from mirror.common.environment import FILE_VARIABLE, TOKEN_VARIABLE
from mirror.common.units import parse_duration

HELP_WIDTH = 100
"""Columns at which a command's description is wrapped; examples keep their lines."""

EPILOG = """\
examples:
  pps-mirror demo                            see it work, with a simulated DataRobot
  pps-mirror doctor -c config.toml           find out why it does not work, and what to do
  pps-mirror check -c config.toml            find out whether it would work here
  pps-mirror serve -c config.toml            serve; stop it with Ctrl-C or SIGTERM
  DATAROBOT_API_TOKEN=... pps-mirror pull    bring the current image into the store before anybody asks

Every key of the configuration can be set in the environment too, which wins:
  PPS_MIRROR__UPSTREAM__URL=https://app.datarobot.com PPS_MIRROR__SERVER__PORT=9000 pps-mirror serve

Exit status: 0 done, 1 failed, 2 wrong usage or configuration, 130 stopped by Ctrl-C.
`pps-mirror COMMAND --help` says more about a command.
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
        command.add_argument("--json", action="store_true", help="write a JSON list, for machines")

    add(
        "serve",
        "serve images to clients until SIGTERM or Ctrl-C",
        "When it is told to stop, running downloads may end first, for server.drain at most.",
    )
    add_json(
        add(
            "check",
            "find out whether the mirror would work here",
            "It tries upstream, token, store, certificate and ports, and changes nothing. The exit status is 1 if any "
            "of them fails.",
        )
    )
    add_json(
        add(
            "doctor",
            "find out why it does not work, and what to do",
            "It tries the things that people get wrong: variables that override the file, proxies, names, "
            "certificates, the clock, tokens, where upstream redirects to, the store's disk, ports, mirrors that lead "
            "back to themselves. Each FAIL and note says what to do. It changes nothing. It needs no token; with one, "
            "it asks for the first bytes of the image. If a mirror runs here, it adds what that says of itself. There "
            "are no secrets in its output. The exit status is 1 if anything is wrong.",
        )
    )
    add(
        "pull",
        "bring the current image into the store now",
        "It uses the mirror's own token. If a mirror runs on this store, that one fetches the image, and this command "
        "watches it. When it is interrupted it keeps what it has, and the next one goes on from there.",
    )
    add_json(add("ls", "list the stored images", "It needs neither upstream nor a running mirror."))

    def add_image(command: argparse.ArgumentParser, *, nargs: str | None = None) -> None:
        command.add_argument(
            "hash", metavar="HASH", nargs=nargs, help="6 or more digits of an image's hash, or: current"
        )

    verify = add(
        "verify",
        "hash stored images again",
        "Without HASH it hashes all of them. A bad image is set aside, and the next request fetches it anew; the exit "
        "status is 1 then. It works beside a running mirror.",
    )
    add_image(verify, nargs="?")
    verify.add_argument("--all", action="store_true", help="all images, as without HASH")
    add_json(verify)
    add_image(add("pin", "keep an image from being evicted", "A pinned image stays, however much room is needed."))
    add_image(add("unpin", "let an image be evicted again", "It is removed when room is needed and its turn comes."))
    rm = add(
        "rm",
        "remove an image",
        "Without --force, a pinned image and the current one are not removed, and running downloads of it go on.",
    )
    add_image(rm)
    rm.add_argument(
        "--force",
        action="store_true",
        help="remove it even if it is pinned or current, and reset running downloads of it",
    )
    gc = add(
        "gc",
        "remove what is of no more use, and images if there is too little room",
        "It removes what crashes left, partials that no fill went on with for a week, and wrong bytes after a day. "
        "Then it removes images, those that were served least recently first, as far as store.max_size and "
        "store.min_free demand. The exit status is 1 if that was not enough.",
    )
    gc.add_argument("--dry-run", action="store_true", help="only list what would be removed")
    add_json(gc)
    export = add(
        "export",
        "write an image to a medium, to be carried across an air gap",
        "It makes a directory in DIR with the image (in volumes, with --split), its metadata, checksums for "
        "sha256sum -c, and a README.txt for people that have no pps-mirror. It reads everything back from the medium. "
        "When it was interrupted, run it again, and it goes on. It works beside a running mirror.",
    )
    add_image(export)
    export.add_argument("directory", metavar="DIR", type=Path, help="where to make the bundle's directory")
    export.add_argument(
        "--split", metavar="SIZE", help="the largest size of a volume; 4GiB means 4 GiB less a byte, which FAT32 takes"
    )
    export.add_argument("--sign", metavar="KEY", type=Path, help="sign it with this OpenSSH key (ssh-keygen -Y sign)")
    add_json(export)
    bring_in = add(
        "import",
        "bring an image that was carried here into the store",
        "PATH is a bundle's directory, or the medium that has it. Name several, in any order, when its volumes are on "
        "several media; or name an image and its metadata. Everything is checked before the store is touched. When it "
        "was interrupted, run it again, and it goes on. A running mirror has the image at once.",
    )
    bring_in.add_argument("paths", metavar="PATH", type=Path, nargs="+", help="where the image is, or parts of it")
    bring_in.add_argument("--metadata", metavar="FILE", type=Path, help="the metadata of a lone image")
    bring_in.add_argument(
        "--trust",
        metavar="ALLOWED_SIGNERS",
        type=Path,
        help="refuse a bundle that none of these signed (ssh-keygen(1) has the format of the file)",
    )
    add_json(bring_in)
    push = add(
        "push",
        "put a stored image into another registry",
        "It sends what TARGET's registry does not have: layers, config and manifest, with the digests that this "
        "mirror's own registry has. The credential is the one that docker login, podman login or a credential helper "
        "keeps. An upload that breaks goes on where the registry can do that, else with the same layer. Nobody can "
        "pull the image there before it is whole.",
    )
    push.add_argument(
        "target",
        metavar="TARGET",
        help="REGISTRY/REPOSITORY[:TAG], such as harbor.example.com/datarobot/pps (default tag: the image's version)",
    )
    push.add_argument(
        "hash",
        metavar="HASH",
        nargs="?",
        default="current",
        help="6 or more digits of an image's hash (default: current)",
    )
    push.add_argument(
        "--tls-verify",
        metavar="BOOL",
        type=_switch,
        default=True,
        help="false: take any certificate of the registry, or plain http (default: true)",
    )
    push.add_argument(
        "--ca-file", type=Path, metavar="FILE", help="a file of PEM certificates to trust beside the system's"
    )
    add_json(push)
    _add_get(
        add(
            "get",
            "download the image as a client, verify it, and load it",
            "It asks a mirror, or DataRobot, at URL for the current image and its hash. It resumes a download that "
            "breaks; if this command was killed, run it again, and it goes on. The file gets its name only when it is "
            f"whole and right. The token of --token-file or {TOKEN_VARIABLE} goes to URL only, not to where "
            "that redirects. It needs no configuration.",
        )
    )
    hooks = add(
        "hooks",
        "try a hook of the configuration",
        "It sends an event of the type hook.test to the hook's url, or runs its command with that, now and once, past "
        "the queue, and shows the answer. The exit status is 1 if the event was not taken.",
    )
    hooks.add_argument("action", choices=("test",), help="what to do")
    hooks.add_argument("name", metavar="NAME", help="the name of the hook in the configuration")
    demo = add(
        "demo",
        "show the mirror at work, with a simulated DataRobot",
        "It needs no configuration, no token and no network, and leaves nothing behind.",
    )
    demo.add_argument(
        "--once", action="store_true", help="end after the demonstration, with a table and an exit status"
    )
    demo.add_argument("--rate", metavar="RATE", help="how fast the simulated upstream sends, e.g. 50MB/s")
    demo.add_argument("--size", metavar="SIZE", help="how large its image is, e.g. 256MiB")
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
        help="the address of a mirror or of DataRobot, with or without the path; or of an image that a mirror "
        "has stored (.../mirror/v1/images/HASH/, or current in place of HASH)",
    )
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="file to write, replacing what is there; or a directory (default: here, under the image's own name)",
    )
    command.add_argument("--load", action="store_true", help="load the image into a container engine when it is whole")
    command.add_argument(
        "--loader",
        choices=("auto", "docker", "podman", "ctr"),
        default="auto",
        help="which engine (auto: the first of these on PATH; ctr loads into the namespace k8s.io)",
    )
    command.add_argument("--token-file", type=Path, metavar="FILE", help="a file that has the token and nothing else")
    command.add_argument(
        "--ca-file", type=Path, metavar="FILE", help="a file of PEM certificates to trust beside the system's"
    )
    command.add_argument(
        "--retry-for",
        type=_duration,
        default="1h",
        metavar="TIME",
        help="give up after this long without a byte (default: 1h)",
    )
    command.add_argument("--json", action="store_true", help="write the outcome as JSON, without progress")


def _switch(text: str) -> bool:
    try:
        return {"true": True, "false": False}[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"expected true or false, not {text!r}") from None


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
        help=f"configuration file (default: the one that {FILE_VARIABLE} names, else none)",
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default=default,
        help="how much to log on standard error (default: log.level for serve, warning for other commands)",
    )
