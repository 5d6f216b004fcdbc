"""Decides whether the mirror can serve, from the phase it is in and the health of its parts."""

from enum import Enum

from mirror.admin.all_processes import AllProcesses
from mirror.model.status import Health
from mirror.process.workers import ClientProcesses
from mirror.wiring.mirror import Mirror


class Phase(Enum):
    """Where a mirror is between its start and its end. The value says so in words."""

    STARTING = "the mirror is starting"
    SERVING = "the mirror serves"
    STOPPING = "the mirror is stopping"


class Readiness:
    """Finds out the health of a mirror. `serve` sets its `phase`."""

    def __init__(self, mirror: Mirror, processes: AllProcesses, clients: ClientProcesses) -> None:
        self.phase = Phase.STARTING
        self._mirror = mirror
        self._processes = processes
        self._clients = clients

    async def health(self) -> Health:
        """Return what keeps the mirror from serving now, and what it has to do without."""
        if self.phase is not Phase.SERVING:
            return Health([self.phase.value])
        health = await self._mirror.health(self._processes.store, self._processes.stuck)
        missing, count = self._clients.missing, self._clients.count
        if not missing:
            return health
        said = f"{missing} of {count} workers do not serve"
        if missing == count:
            return Health([*health.reasons, said], health.degraded)
        return Health(health.reasons, [*health.degraded, said])
