"""Pulls the demo's image with a container engine that is installed here, and leaves nothing of it behind."""

import asyncio
import ctypes
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence

PULL_SECONDS = 60.0
"""Seconds that the image may take until it can be pulled, and the pull."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h: which signal a process gets when its parent dies


async def find_engine(name: str, environ: Mapping[str, str]) -> str | None:
    """Return a program that pulls images and works here; None when there is none. `name` is the image's."""
    if shutil.which("skopeo"):
        return "skopeo"
    if shutil.which("docker") and name.startswith("127.") and (await _run(environ, "docker", "version"))[0] == 0:
        return "docker"
    return None


async def pull(engine: str, name: str, token: str, environ: Mapping[str, str]) -> str | None:
    """Pull the image and remove it again. Returns what went wrong, if anything."""
    with tempfile.TemporaryDirectory(prefix="pps-mirror-demo-pull-") as directory:
        for command in _commands(engine, name, token, directory):
            status, said = await _run({**environ, "DOCKER_CONFIG": directory}, *command)
            if status != 0:
                return said
    return None


def die_with_parent() -> None:
    """Ask the kernel, in a new process, to end it when its parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _commands(engine: str, name: str, token: str, directory: str) -> Sequence[Sequence[str]]:
    if engine == "docker":
        login = ("docker", "login", "--username=token", f"--password={token}", name.partition("/")[0])
        return login, ("docker", "pull", "--quiet", name), ("docker", "image", "rm", name)
    options = ("--quiet", "--src-tls-verify=false", f"--src-creds=token:{token}")
    return [("skopeo", "--override-os=linux", "copy", *options, f"docker://{name}", f"dir:{directory}/image")]


async def _run(environ: Mapping[str, str], *command: str) -> tuple[int | None, str]:
    """Run a command that ends when this process does; return its status and what it said at the end."""
    running = await asyncio.create_subprocess_exec(
        *command,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=die_with_parent,
    )
    try:
        async with asyncio.timeout(PULL_SECONDS):
            said, _ = await running.communicate()
    except TimeoutError:
        return None, f"it has not ended after {PULL_SECONDS:g} s"
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()
    return running.returncode, said.decode(errors="replace").strip()[-500:]
