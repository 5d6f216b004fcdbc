"""Finds out how the mirror is deployed, and gives advice in the commands of that deployment.

Advice for one deployment may do harm in another: no process can be root in our pod, and root cannot change an owner in
a container that has dropped its capabilities.
"""

import shlex
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

from mirror.cli.doctor.user import User

_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))
"""Files that docker and podman put into each container."""


class Deployment(Enum):
    """Where this command runs, and so the mirror."""

    HOST = "host"
    CONTAINER = "container"
    KUBERNETES = "kubernetes"

    @classmethod
    def here(cls, environ: Mapping[str, str]) -> "Deployment":
        """Recognise it by the variables and files that Kubernetes, podman and docker put into their containers.

        The variable `container` (systemd's "Container Interface") takes precedence over docker's file: when it is
        empty, this is no container.
        """
        if "KUBERNETES_SERVICE_HOST" in environ:
            return cls.KUBERNETES
        if "container" in environ:
            return cls.CONTAINER if environ["container"] else cls.HOST
        return cls.CONTAINER if any(mark.exists() for mark in _MARKS) else cls.HOST

    def run_doctor_as(self, user: User, file: Path | None) -> str:
        """Say how to run this command as the mirror's user."""
        options = f" -c {shlex.quote(str(file))}" if file else ""
        match self:
            case Deployment.KUBERNETES:
                return f"kubectl exec POD -- pps-mirror doctor{options}"
            case Deployment.CONTAINER:
                return f"docker exec --user {user.uid} CONTAINER pps-mirror doctor{options}"
            case _ if user.name != str(user.uid):
                return f"runuser -u {user.name} -- pps-mirror doctor{options}"
            case _:
                ids = f"--reuid={user.uid} --regid={user.gids[0]} --clear-groups"
                return f"setpriv {ids} pps-mirror doctor{options}"

    def hand_over(self, store: Path, user: User, owner: int | None = None) -> str:
        """Say how to give the store, or the files of `owner` in it, to the mirror's user."""
        source = "" if owner is None else f" --from={owner}"
        chown = f"-R{source} {user.uid}:{user.gids[0]} {shlex.quote(str(store))}"
        match self:
            case Deployment.KUBERNETES:
                return (
                    f"fsGroup: {user.gids[0]} and fsGroupChangePolicy: Always in the pod's securityContext: the volume "
                    "is made writable for that group when the pod starts"
                )
            case Deployment.CONTAINER:
                return f"docker run --rm --user=0 --volumes-from=CONTAINER --entrypoint=chown IMAGE {chown}"
            case _:
                return f"as root: chown {chown}"

    def keep_secret(self, path: Path, user: User) -> str:
        """Say how to make a file readable by the mirror's user only; empty when it is."""
        found = path.stat()
        name = shlex.quote(str(path))
        by_owner, by_group = found.st_uid == user.uid, found.st_gid in user.gids and found.st_mode & 0o040
        if by_owner and found.st_mode & 0o044:
            command = f"chmod go= {name}"
        elif by_group and not by_owner and found.st_mode & 0o004:
            command = f"chmod o= {name}"
        elif not by_owner and not by_group:  # the mirror reads it as everybody does, so it must become the owner first
            command = f"chown {user.uid} {name} && chmod 400 {name}"
        else:
            return ""
        match self:
            case Deployment.KUBERNETES:
                group = user.gids[0]
                return f"defaultMode: 0440 for the secret's volume, and fsGroup: {group} in the pod's securityContext"
            case Deployment.CONTAINER:
                return f"on the host, for the file that is mounted there: {command}"
            case _:
                return command

    @property
    def logs(self) -> str:
        """Say where the mirror's log can be read."""
        match self:
            case Deployment.KUBERNETES:
                return "kubectl describe pod POD; kubectl logs POD"
            case Deployment.CONTAINER:
                return "docker ps --all; docker logs CONTAINER"
            case _:
                return "systemctl status pps-mirror; journalctl -u pps-mirror"

    def more_files(self, wanted: int) -> str:
        """Say how to let the mirror open more files."""
        match self:
            case Deployment.KUBERNETES:
                return "raise LimitNOFILE of the node's container runtime, or lower server.max_connections"
            case Deployment.CONTAINER:
                return f"docker run --ulimit nofile={wanted}:{wanted}, or lower server.max_connections"
            case _:
                return f"LimitNOFILE={wanted} in the service's unit (systemctl edit), or lower server.max_connections"

    @property
    def low_ports(self) -> str:
        """Say how to listen on a port below 1024."""
        match self:
            case Deployment.KUBERNETES:
                return "a port from 1024 on, which the Service maps to the one that clients use"
            case Deployment.CONTAINER:
                return "a port from 1024 on, which --publish maps to the one that clients use"
            case _:
                return "AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit, or a socket unit, or a port from 1024 on"
