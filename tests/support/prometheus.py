"""A real Prometheus that scrapes real mirrors, and promtool."""

import json
import signal
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.support.needs import needs
from tests.support.processes import MirrorProcess, eventually, free_port

INSTALL = "apt-get install --no-install-recommends prometheus"


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run it to its end, whatever that is."""
    program = needs("promtool", INSTALL)
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)


@dataclass(frozen=True, slots=True)
class Series:
    """A line of an answer."""

    labels: dict[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Alert:
    """One that is `pending` or `firing`, as people get to read it."""

    name: str
    state: str
    labels: dict[str, str]
    annotations: dict[str, str]


class Prometheus:
    """Scrapes `mirrors` every second, and goes by `rules` if there are any. Use as a context manager."""

    def __init__(self, directory: Path, mirrors: Sequence[MirrorProcess], rules: dict[str, Any] | None = None) -> None:
        directory.mkdir()
        self.port = free_port()
        self._directory = directory
        self._config = directory / "prometheus.yml"
        targets = [f"127.0.0.1:{mirror.admin_port}" for mirror in mirrors]
        config: dict[str, Any] = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "scrape_configs": [{"job_name": "pps-mirror", "static_configs": [{"targets": targets}]}],
        }
        if rules is not None:
            (directory / "rules.yml").write_text(yaml.safe_dump(rules))
            config["rule_files"] = ["rules.yml"]
        self._config.write_text(yaml.safe_dump(config))
        self._process: subprocess.Popen[bytes] | None = None

    def query(self, expression: str) -> list[Series]:
        """What an expression gives now. Raises AssertionError with what is wrong with it."""
        answer = self._asked("query", query=expression)
        if answer["resultType"] == "scalar":
            return [Series({}, float(answer["result"][1]))]
        return [Series(each["metric"], float(each["value"][1])) for each in answer["result"]]

    def watch(self, scrapes: int = 4) -> None:
        """Wait until it has read the mirrors' metrics so many times more, and has gone by the rules since."""

        def read() -> float:
            return min((each.value for each in self.query("count_over_time(pps_mirror_ready[1h])")), default=0)

        before = read()
        eventually(lambda: read() >= before + scrapes, 60, "so many scrapes")

    def alerts(self) -> list[Alert]:
        """Those that are there now."""
        return [
            Alert(each["labels"]["alertname"], each["state"], each["labels"], each["annotations"])
            for each in self._asked("alerts")["alerts"]
        ]

    def _asked(self, what: str, **fields: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{what}?{urllib.parse.urlencode(fields)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{fields}: {error.read().decode()}") from None

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def __enter__(self) -> Self:
        with (self._directory / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    needs("prometheus", INSTALL),
                    f"--config.file={self._config}",
                    f"--storage.tsdb.path={self._directory / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdout=log,
                stderr=log,
            )
        eventually(self._is_ready, what="Prometheus' start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(20)
