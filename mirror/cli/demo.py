"""`pps-mirror demo`: shows the real mirror in front of a simulated DataRobot, and eight nodes that fetch the image.

The simulator and the mirror run as processes, with a temporary store; nothing is left behind.
"""

import asyncio
import contextlib
import hashlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from mirror import config
from mirror.cli import demo_pull
from mirror.cli.demo_pull import die_with_parent
from mirror.common.temporary_files import need_temporary_files
from mirror.common.units import format_size, parse_rate, parse_size
from mirror.config import Config
from mirror.model.errors import ConfigError, MirrorError
from mirror.simulator.archives import write_archive
from mirror.simulator.client import ImageSpec, Simulator
from mirror.upstream.client import IMAGE, METADATA

DOWNLOADS = 8
SIZE = "256MiB"
"""The size of the image, unless the command line says otherwise."""

RATE = "32MB/s"
"""The rate of upstream's line, unless the command line says otherwise: the image then takes about eight seconds."""

VERSION = "7.0.0-r1736"
REPOSITORY = "datarobot/datarobot-portable-prediction-api"

START_SECONDS = 30.0


@dataclass
class Download:
    """One node's download: the bytes so far, and in the end what was wrong with it, if anything."""

    received: int = 0
    cache_status: str = ""
    wrong: str | None = "not finished"


@dataclass
class Round:
    """Eight simultaneous downloads, with the image requests (`fetches`) and bytes (`fetched`) that upstream saw."""

    name: str
    downloads: list[Download] = field(default_factory=lambda: [Download() for _ in range(DOWNLOADS)])
    seconds: float = 0.0
    fetches: int = 0
    fetched: int = 0

    @property
    def verified(self) -> int:
        """How many downloads were whole and had the right hash."""
        return sum(download.wrong is None for download in self.downloads)


def run(once: bool, rate: str | None, size: str | None, environ: Mapping[str, str]) -> int:
    """Show the demo on standard output, then keep running unless `once`. Returns the exit status.

    Raises ConfigError for a bad rate, size or setting, UsageError without a place for its store, MirrorError when the
    mirror does not start.
    """
    try:
        bytes_of_image, bytes_per_second = parse_size(size or SIZE), parse_rate(rate or RATE)
    except ValueError as error:
        raise ConfigError(f"demo: {error}") from None
    need_temporary_files()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    with tempfile.TemporaryDirectory(prefix="pps-mirror-demo-") as directory:
        try:
            path = Path(directory) / "image"
            image_id = write_archive(path, bytes_of_image, f"{REPOSITORY}:{VERSION}")
            filename = f"datarobot-portable-prediction-api-{VERSION}.tar.gz"
            image = ImageSpec("demo", path=str(path), filename=filename, image_id=image_id)
            with Simulator.start([image], rate=bytes_per_second) as simulator:
                return asyncio.run(_Demo(console, simulator, Path(directory), environ).play(once=once))
        except KeyboardInterrupt:
            return 0


class _Demo:
    """Runs one demo."""

    def __init__(self, console: Console, simulator: Simulator, directory: Path, environ: Mapping[str, str]) -> None:
        self._console = console
        self._simulator = simulator
        self._ports = [_reserve_port(), _reserve_port()]
        # The environment may set any key but the upstream, which is the simulator.
        self._environ = {
            "PPS_MIRROR__SERVER__HOST": "127.0.0.1",
            "PPS_MIRROR__SERVER__PORT": str(self._ports[0].getsockname()[1]),
            "PPS_MIRROR__ADMIN__PORT": str(self._ports[1].getsockname()[1]),
            "PPS_MIRROR__STORE__PATH": str(directory / "store"),
            "PPS_MIRROR__STORE__MIN_FREE": "64MiB",
            "PPS_MIRROR__LOG__LEVEL": "warning",
            **environ,
            "PPS_MIRROR__UPSTREAM__URL": simulator.api_url,
            "PPS_MIRROR__UPSTREAM__PROXY": "",
            "no_proxy": "*",
        }
        self._config: Config = config.load(None, self._environ)
        server = self._config.server
        scheme = "https" if server.tls_cert else "http"
        host = "127.0.0.1" if server.host in {"0.0.0.0", "::"} else server.host  # noqa: S104 - compared, not bound
        self._url = f"{scheme}://{host}:{server.port}"
        self._headers = {"Authorization": f"Bearer {simulator.token}"}

    async def play(self, *, once: bool) -> int:
        """Run two rounds of downloads and print what they prove. Returns the exit status."""
        size = format_size(self._simulator.image_size("demo"))
        self._say(
            f"A simulated DataRobot holds an image of {size} behind a thin line; the mirror stands in front of it."
        )
        self._say(
            f"{DOWNLOADS} nodes ask the mirror for it at the same moment. Watch what crosses the line, and how often.\n"
        )
        async with self._mirror():
            cold = await self._round(Round("cold"))
            self._say(f"{_fetches(cold.fetches)}, {cold.verified} downloads verified, in {cold.seconds:.1f} s.\n")
            hot = await self._round(Round("from the store"))
            times = cold.seconds / hot.seconds
            self._say(f"{_fetches(hot.fetches)}, {hot.verified} downloads verified, {times:.0f} times as fast.\n")
            status = verdict([cold, hot])
            if once:
                self._console.print(_table([cold, hot]))
            if self._config.registry.enabled:
                status += await self._pull()
            for problem in status:
                self._say(f"Wrong: {problem}")
            if not once and not status:
                self._explain()
                await asyncio.Event().wait()
            return 1 if status else 0

    @contextlib.asynccontextmanager
    async def _mirror(self) -> AsyncIterator[None]:
        """Run the mirror as a process that ends when this one does, in any way. Raises ConfigError or MirrorError."""
        with tempfile.TemporaryFile() as said, self._ports[0], self._ports[1]:
            process = subprocess.Popen(  # noqa: ASYNC220 - it starts at once
                [sys.executable, "-m", "mirror.cli.main", "serve"],
                env=self._environ,
                stdout=said,
                stderr=said,
                preexec_fn=die_with_parent,
            )
            try:
                await self._ready(process)
            except TimeoutError:
                process.kill()
                process.wait()
                said.seek(0)
                message = said.read().decode(errors="replace").strip() or "it says nothing"
                if process.returncode == 2:
                    raise ConfigError(message.removeprefix("pps-mirror: ")) from None
                raise MirrorError(f"the mirror did not start: {message}") from None
            try:
                yield
            finally:
                process.terminate()
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    async def _ready(self, process: "subprocess.Popen[bytes]") -> None:
        """Wait until the mirror is ready. Raises TimeoutError, also when it has ended."""
        deadline = time.monotonic() + START_SECONDS
        admin = f"http://{self._config.admin.host}:{self._config.admin.port}/readyz"
        async with aiohttp.ClientSession() as session:
            while process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(admin) as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.05)
        raise TimeoutError

    async def _round(self, act: Round) -> Round:
        """Start eight downloads at once, and show them until they have ended."""
        before = await asyncio.to_thread(self._simulator.counters)
        began = time.monotonic()
        connector = aiohttp.TCPConnector(limit=0, ssl=False)  # a demo may use any certificate
        async with aiohttp.ClientSession(connector=connector, headers=self._headers, auto_decompress=False) as session:
            async with session.get(self._url + METADATA) as answer:
                promised = json.loads(await answer.read())
            showing = asyncio.create_task(self._show(act, promised["imageSize"], before.bytes_sent))
            try:
                await asyncio.gather(*(self._download(session, download, promised) for download in act.downloads))
                act.seconds = time.monotonic() - began
            finally:
                showing.cancel()
                await asyncio.gather(showing, return_exceptions=True)
        after = await asyncio.to_thread(self._simulator.counters)
        act.fetches = after.image_requests - before.image_requests
        act.fetched = after.bytes_sent - before.bytes_sent
        return act

    async def _download(
        self, session: aiohttp.ClientSession, download: Download, promised: Mapping[str, object]
    ) -> None:
        digest = hashlib.sha256()
        try:
            async with session.get(self._url + IMAGE, timeout=aiohttp.ClientTimeout(total=None)) as answer:
                download.cache_status = answer.headers.get("Cache-Status", "").removeprefix("pps-mirror; ")
                answer.raise_for_status()
                async for piece in answer.content.iter_any():
                    digest.update(piece)
                    download.received += len(piece)
        except aiohttp.ClientError as error:
            download.wrong = f"it ended with {type(error).__name__} at byte {download.received}"
            return
        right = digest.hexdigest() == promised["hash"] and download.received == promised["imageSize"]
        download.wrong = None if right else f"its {download.received} bytes are not the image"

    async def _show(self, act: Round, size: int, before: int) -> None:
        """Show a running round: bars on a terminal, elsewhere a line a second."""
        if not self._console.is_terminal:
            while True:
                await asyncio.sleep(1)
                fetched = await self._fetched(before)
                received = sum(download.received for download in act.downloads)
                self._say(f"  {act.name}: {format_size(fetched)} from upstream, {format_size(received)} to the nodes")
        progress = Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn()
        )
        line = progress.add_task("[bold]from DataRobot[/]", total=size)
        bars = [progress.add_task(f"node {number}", total=size) for number in range(1, DOWNLOADS + 1)]
        with Live(progress, console=self._console, refresh_per_second=10):
            try:
                while True:
                    progress.update(line, completed=await self._fetched(before))
                    for bar, download in zip(bars, act.downloads, strict=True):
                        progress.update(bar, completed=download.received)
                    await asyncio.sleep(0.1)
            finally:
                progress.update(line, completed=self._simulator.bytes_sent() - before)
                for bar, download in zip(bars, act.downloads, strict=True):
                    progress.update(bar, completed=download.received)

    async def _pull(self) -> list[str]:
        """Pull the image with an engine that is installed, or else say how. Returns what went wrong."""
        engine = await demo_pull.find_engine(self._name, self._environ)
        if engine is None:
            self._say(f"It is a container image too: docker pull {self._name}\n")
            return []
        self._say(f"It is a container image too: {engine} pulls it from the mirror.")
        before = await asyncio.to_thread(self._simulator.counters)
        began = time.monotonic()
        if wrong := await demo_pull.pull(engine, self._name, self._simulator.token, self._environ):
            return [f"the pull failed: {wrong}"]
        fetches = (await asyncio.to_thread(self._simulator.counters)).image_requests - before.image_requests
        self._say(f"{_fetches(fetches)}, pulled in {time.monotonic() - began:.1f} s.\n")
        return [] if fetches == 0 else [f"upstream was asked for the image {fetches} times for a pull"]

    @property
    def _name(self) -> str:
        """What engines call the image."""
        return f"{self._url.partition('://')[2]}/{self._config.registry.repository}:{VERSION}"

    async def _fetched(self, before: int) -> int:
        return await asyncio.to_thread(self._simulator.bytes_sent) - before

    def _explain(self) -> None:
        authorization = f'-H "Authorization: {self._headers["Authorization"]}"'
        admin = f"http://{self._config.admin.host}:{self._config.admin.port}"
        self._say(
            f"The mirror is at {self._url} and stays up until Ctrl-C; its status page, for a browser, at {admin}/"
        )
        self._say("In another terminal try:\n")
        for command in (
            f"curl {authorization} {self._url}{METADATA}",
            f"curl {authorization} {self._url}{IMAGE} | sha256sum",
            f"curl -I {authorization} {self._url}{IMAGE}",
            f"curl -r 0-99 {authorization} {self._url}{IMAGE} | wc -c",
            f"curl {authorization} {self._url}/mirror/v1/images/",
            f"curl {admin}/readyz",
            f"docker login -u token -p {self._simulator.token} {self._name.partition('/')[0]}",
            f"docker pull {self._name}",
        ):
            self._say(f"  {command}")

    def _say(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


def verdict(rounds: list[Round]) -> list[str]:
    """Say what went wrong; empty when every download was right and upstream was asked once."""
    problems = [
        f"{act.name}, node {number}: {download.wrong}"
        for act in rounds
        for number, download in enumerate(act.downloads, 1)
        if download.wrong is not None
    ]
    fetches = sum(act.fetches for act in rounds)
    return problems if fetches == 1 else [*problems, f"upstream was asked for the image {fetches} times, not once"]


def _table(rounds: list[Round]) -> Table:
    table = Table("round", "downloads", "verified", "upstream fetches", "from upstream", "seconds", "Cache-Status")
    for act in rounds:
        statuses = Counter(download.cache_status for download in act.downloads)
        table.add_row(
            act.name,
            str(len(act.downloads)),
            str(act.verified),
            str(act.fetches),
            format_size(act.fetched),
            f"{act.seconds:.1f}",
            Text("\n".join(f"{count} x {status}" for status, count in statuses.items())),
        )
    return table


def _fetches(count: int) -> str:
    return f"{count} upstream fetch" + ("" if count == 1 else "es")


def _reserve_port() -> socket.socket:
    """Bind a free port without listening: nobody else is given it, and the mirror can listen there."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return holder
