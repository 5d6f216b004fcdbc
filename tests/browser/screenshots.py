"""`make screenshots`: the pictures in docs/images, of a mirror at work before a simulated DataRobot.

What moved before it was started is invented, in a history file that it finds.
"""

import contextlib
import json
import math
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from selenium import webdriver

from mirror.admin.traffic_history import INTERVAL, KEPT
from mirror.simulator.client import TOKEN, Fault, ImageSpec, Simulator
from tests.support.admin import CHANGING, ask_admin
from tests.support.downloads import Download, fetch
from tests.support.forked import ForkedMirror
from tests.support.processes import MirrorProcess, eventually

IMAGES = Path(__file__).parents[2] / "docs" / "images"
MIB = 1 << 20
SIZE = 192 * MIB
RATE = 6 * MIB
GIB = 1 << 30
HOUR = 17
ZONE = f"SITE{datetime.now(UTC).hour - HOUR:+d}"
"""Where it is that hour now (POSIX.1-2017, section 8.3)."""

NARROW = 500
"""Pixels: no window of Chromium's is narrower, but a phone is."""

VERSIONS = {
    "11.1.0": "2026-05-12T08:00:00Z",
    "11.1.2": "2026-08-30T08:00:00Z",
    "11.2.0": "2026-11-20T08:00:00Z",
}


def main() -> None:
    """Take them."""
    IMAGES.mkdir(exist_ok=True)
    specs = [
        ImageSpec(version, SIZE, filename=f"datarobot-portable-prediction-api-{version}-r42.tar.gz", created=created)
        for version, created in VERSIONS.items()
    ]
    with tempfile.TemporaryDirectory() as directory, Simulator.start(specs) as simulator:
        mirror = ForkedMirror(
            Path(directory),
            simulator.api_url,
            {"upstream": {"metadata_ttl": "1s"}, "prefetch": {"enabled": True, "window": "20:00-06:00"}},
            {"DATAROBOT_API_TOKEN": TOKEN, "TZ": ZONE},
        )
        mirror.store.mkdir()
        (mirror.store / "history.json").write_text(json.dumps(list(yesterday())))
        with mirror:
            work(mirror, simulator)
            with contextlib.ExitStack() as clients:
                for _ in range(4):
                    clients.enter_context(Download(mirror.image_url))
                time.sleep(8)
                for name, width, height, dark in (("status", 1100, 1900, False), ("dark", 1100, 1900, True)):
                    take(mirror.admin_url, IMAGES / f"{name}.png", width, height, dark=dark)
                take(mirror.admin_url, IMAGES / "phone.png", 360, 1800, dark=False)
                simulator.set_rate(None)
                simulator.release()


def work(mirror: MirrorProcess, simulator: Simulator) -> None:
    """Two images stored, one of them pinned, a broken line, and a third one on its way."""
    for version in ("11.1.0", "11.1.2"):
        simulator.roll_over(version)
        time.sleep(1.5)
        if version == "11.1.2":
            simulator.fault(Fault("store", cut_after=SIZE // 3))
        for _ in range(3):
            assert fetch(mirror.image_url).ended == "complete"
    pinned = simulator.image_sha256("11.1.0")
    assert ask_admin(mirror, "POST", f"/api/images/{pinned}/pin", CHANGING).status == 200
    assert ask_admin(mirror, "POST", f"/api/images/{pinned}/verify", CHANGING).status == 200
    simulator.roll_over("11.2.0")
    time.sleep(1.5)
    simulator.set_rate(RATE)
    simulator.fault(Fault("store", cut_after=RATE * 3))
    eventually(lambda: ask_admin(mirror, "POST", "/api/prefetch", CHANGING).status == 200)


def yesterday() -> Iterator[dict[str, object]]:
    """A day at a site: a fill in the night, and nodes that fetch when people work."""
    now = datetime.now(UTC)
    last = now - timedelta(seconds=now.timestamp() % INTERVAL)
    for ago in range(KEPT, 0, -1):
        at = last - timedelta(seconds=ago * INTERVAL)
        hour = (HOUR + 1 - ago * INTERVAL / 3600) % 24
        work = max(0.0, math.sin((hour - 7) / 11 * math.pi)) if 7 <= hour < 18 else 0.0
        downloads = round(6 * work * (1.2 + math.sin(ago * 1.7)))
        fetched = 2 * GIB if 2 <= hour < 3 else 0
        traffic = {"served": downloads * 9 * GIB, "fetched": fetched, "downloads": downloads, "hits": downloads}
        yield {"at": at.isoformat(), "seconds": INTERVAL, "traffic": traffic}


def take(url: str, file: Path, width: int, height: int, *, dark: bool) -> None:
    """Open the page and draw it."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    dark_mode = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--hide-scrollbars",
        f"--window-size={width},{height}",
        *dark_mode,
    ):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    try:
        if width < NARROW:
            phone = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        browser.get(url)
        time.sleep(1.5)
        browser.save_screenshot(str(file))
    finally:
        browser.quit()


if __name__ == "__main__":
    main()
