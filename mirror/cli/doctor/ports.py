"""Examines the ports: which process has them, and whether they are the right ones."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from mirror.cli import raw_request as wire
from mirror.cli.doctor.case import Case
from mirror.cli.findings import Finding

PROCESSES = 20_000
"""The most processes that are looked at."""

_LISTENS = "0A"
_SOCKET = re.compile(r"socket:\[(\d+)\]")
_UNPRIVILEGED = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


def examine(case: Case) -> Iterator[Finding]:
    """Examine the ports of both listeners."""
    server, admin = case.config.server, case.config.admin
    yield from _privileged(case, "server", server.port)
    yield from _privileged(case, "admin", admin.port)
    clients = wire.health(server.host, server.port, tls=server.tls_cert is not None)
    operators = wire.health(admin.host, admin.port, tls=False)
    if clients is not None and clients.is_mirror and clients.status == 200:
        advice = "did you mix up server.port and admin.port? a client listener knows no /healthz"
        yield Finding("server", False, f"port {server.port} has the admin listener of a pps-mirror", advice=advice)
    if operators is not None and operators.is_mirror and operators.status == 404:
        advice = f"did you mix up server.port and admin.port? admin.port is {admin.port} here"
        yield Finding("admin", False, f"port {admin.port} has the client listener of a pps-mirror", advice=advice)


def _privileged(case: Case, key: str, port: int) -> Iterator[Finding]:
    try:
        first = int(_UNPRIVILEGED.read_text())
    except (OSError, ValueError):
        first = 1024
    if 0 < port < first and os.geteuid() == 0:
        said = f"port {port} is for root only, and for who has the capability to bind it"
        yield Finding(key, True, said, note=True, advice=case.deployment.low_ports)


def holder(port: int) -> str | None:
    """Return which process listens on a port, as far as we may know; None when the kernel does not tell."""
    sockets: dict[str, int] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in (line.split() for line in lines):
            if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                sockets[fields[9]] = int(fields[7])
    if not sockets:
        return None
    for process in list(Path("/proc").iterdir())[:PROCESSES]:
        if process.name.isdigit() and _holds(process, sockets):
            return _program(process)
    return f"a process of user id {next(iter(sockets.values()))}"


def _holds(process: Path, sockets: Mapping[str, int]) -> bool:
    """Whether a process has one of these sockets open, as far as we may know."""
    try:
        for descriptor in (process / "fd").iterdir():
            match = _SOCKET.fullmatch(str(descriptor.readlink()))
            if match and match[1] in sockets:
                return True
    except OSError:  # it has ended, or belongs to another user
        pass
    return False


def _program(process: Path) -> str:
    try:
        return f"{(process / 'comm').read_text().strip()} (process {process.name})"
    except OSError:
        return f"process {process.name}"
