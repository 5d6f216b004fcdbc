"""Asks the mirror that runs on this store, if there is one, how it is."""

import asyncio
from collections.abc import Iterator

from mirror import __version__
from mirror.cli import raw_request
from mirror.cli.doctor.case import Case
from mirror.cli.findings import Finding
from mirror.cli.running_mirror import Condition, MirrorGone, running_mirror

LAST = 3
"""How many of its last errors are shown."""


def examine(case: Case) -> Iterator[Finding]:
    """Ask the running mirror how it is."""
    condition = asyncio.run(_condition(case))
    if condition is None:
        yield _alone(case)
        return
    yield Finding("running", True, f"a mirror runs on this store, version {condition.version}")
    if condition.version != __version__:
        advice = "restart it, if it was upgraded"
        yield Finding("running", True, f"this command is of version {__version__}", note=True, advice=advice)
    for reason in condition.reasons:
        yield Finding(
            "running", False, f"it cannot serve: {reason}", advice="docs/troubleshooting.md explains what it says"
        )
    for reason in condition.degraded:
        advice = "it goes on without; docs/troubleshooting.md explains what it says"
        yield Finding("running", False, f"it is in trouble: {reason}", advice=advice)
    if condition.away is not None:
        advice = "if upstream is well now, as the lines above say, it finds out at the next request; else see there"
        yield Finding(
            "running", False, f"upstream is away for it since {condition.since}: {condition.away}", advice=advice
        )
    for message in condition.errors[-LAST:]:
        advice = f"docs/troubleshooting.md explains what it says; {case.deployment.logs}"
        yield Finding("running", True, f"its log said {message}", note=True, advice=advice)


def _alone(case: Case) -> Finding:
    admin = case.config.admin
    heard = raw_request.health(admin.host, admin.port, tls=False)
    if heard is not None and heard.is_mirror:
        said = f"a pps-mirror is at {admin.host} port {admin.port}, and it is another store's, or lets nobody look"
        advice = "is this the configuration that it runs with? may this user read admin.token_file?"
        return Finding("running", True, said, note=True, advice=advice)
    said = f"no mirror runs on this store, as far as can be seen at {admin.host} port {admin.port}"
    return Finding("running", True, said, note=True, advice=case.deployment.logs)


async def _condition(case: Case) -> Condition | None:
    async with running_mirror(case.config) as mirror:
        try:
            return await mirror.condition() if mirror is not None else None
        except MirrorGone:
            return None
