"""`pps-mirror doctor`: finds out why something does not work, and what to do about it.

It runs the checks of `check`, adds advice to their findings, and examines more around them: each subject in a limited
time, in the order in which one failure explains the next. It changes nothing and needs no token. It asks upstream for
metadata, for its version and, with the mirror's own token, for the first bytes of the image.
"""

import errno
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from mirror.cli.check import main as check
from mirror.cli.check import upstream
from mirror.cli.doctor import environment, loops, ports, proxy, reachability, running, store, token
from mirror.cli.doctor.case import Case
from mirror.cli.findings import Finding
from mirror.config import Config
from mirror.process.descriptors import files_for

_ADVICE = {
    "upstream": "a line above may say which step fails; docs/troubleshooting.md explains the message",
    "token": "a token of DataRobot's (Developer Tools, API keys), alone in upstream.token_file; then SIGHUP",
    "tokens": "a line `name:sha256-of-token` for each; then SIGHUP",
    "bucket": "docs/s3.md says what the credentials must allow, and how each server's endpoint looks",
    "tls": "a certificate and its key, PEM, that the mirror's user may read; then SIGHUP",
}
"""What to do when a check fails, by its subject."""

_STORE_ADVICE: Mapping[int | None, str] = {
    errno.EROFS: "remount it writable; if the kernel made it read-only, dmesg says why",
    errno.EDQUOT: "the quota of that user or directory is used up: raise it (quota -v; xfs_quota; btrfs qgroup show)",
    errno.ENOSPC: "free some space, or inodes (df -i)",
    errno.EIO: "the disk fails: dmesg, smartctl",
    errno.ENOTDIR: "something else is in its place: move that away, or set store.path",
    errno.ESTALE: "the network file system was exchanged under it: mount it again",
}
"""What to do when the store cannot be written, by the system's error."""


class Doctor:
    """Examines one configuration. `abandoned` counts the examinations that hang in their threads."""

    def __init__(self, config: Config, environ: Mapping[str, str], file: Path | None) -> None:
        self._case = Case(config, environ, file)
        self._asked = upstream.UpstreamAnswer()

    @property
    def abandoned(self) -> int:
        """See the class."""
        return self._case.abandoned

    def findings(self) -> Iterator[Finding]:
        """Examine one subject after another."""
        case = self._case
        yield check.configuration(case.environ, case.file)
        yield from (_advised(case, found) for found in check.time_zone(case.environ))
        yield from case.examined("environment", environment.examine)
        yield from case.examined("proxy", proxy.examine)
        yield from case.examined("upstream", reachability.examine)
        yield from case.examined("upstream", self._upstream)
        yield from case.examined("loop", loops.examine)
        yield from case.examined("token", token.examine)
        yield from case.examined("store", store.examine)
        yield from case.examined("store", self._here)
        yield from case.examined("ports", ports.examine)
        yield from case.examined("running", running.examine)

    def _upstream(self, case: Case) -> Iterator[Finding]:
        self._asked = upstream.ask(case.config, case.environ)
        case.token, case.answer = self._asked.token, self._asked.answer
        yield from (_advised(case, found) for found in upstream.examine(case.config, self._asked))

    def _here(self, case: Case) -> Iterator[Finding]:
        yield from (_advised(case, found) for found in check.here(case.config, self._asked))


def summary(found: list[Finding]) -> str:
    """Return the last line, which sums up all findings."""
    wrong = sum(not each.ok for each in found)
    notes = sum(each.ok and each.note for each in found)
    beside = f" {notes} {'note' if notes == 1 else 'notes'} above may explain something all the same." if notes else ""
    if not wrong:
        return f"Nothing is wrong, as far as can be seen from here.{beside}"
    if wrong == 1:
        return "1 thing is wrong: see FAIL above."
    return f"{wrong} things are wrong. Begin with the first: others may only follow from it."


def _advised(case: Case, finding: Finding) -> Finding:
    """Add to a finding of `check` what to do about it."""
    if finding.check == "connections" and (finding.note or not finding.ok):
        wanted = files_for(case.config.server.max_connections)
        return replace(finding, advice=case.deployment.more_files(wanted))
    if finding.ok or finding.advice:
        return finding
    if finding.check in {"server", "admin"}:
        return _listener(case, finding)
    if finding.check == "store":
        if finding.errno == errno.EACCES:
            return replace(finding, advice=store.store_access(case))
        advice = _STORE_ADVICE.get(finding.errno, "docs/operating.md says how much room it needs")
        return replace(finding, advice=advice)
    return replace(finding, advice=_ADVICE.get(finding.check, ""))


def _listener(case: Case, finding: Finding) -> Finding:
    key = f"{finding.check}.port"
    if finding.errno == errno.EADDRINUSE and finding.port is not None:
        who = ports.holder(finding.port) or "nobody who can be seen from here (another container, another namespace)"
        return replace(finding, message=f"{finding.message}, by {who}", advice=f"stop that, or set {key}")
    if finding.errno == errno.EACCES:
        return replace(finding, advice=case.deployment.low_ports)
    return replace(finding, advice=f"{finding.check}.host has to be an address of this machine (ip addr), or 0.0.0.0")
