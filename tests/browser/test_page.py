"""The status page, as an operator sees it in Chromium."""

import contextlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from axe_core_python.selenium import Axe
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from mirror.simulator.client import Fault, ImageSpec, Simulator
from tests.support.admin import actions_of, status_of
from tests.support.downloads import Download, fetch
from tests.support.fixtures import Canary, FreshMirror
from tests.support.forked import ForkedMirror
from tests.support.hooks import hook, in_environment
from tests.support.needs import needs
from tests.support.nginx import Nginx, before_the_admin_listener
from tests.support.processes import MirrorProcess, eventually, free_port

MIB = 1 << 20
HOSTILE = "<img src=x onerror=alert(1)>\"'</bdi><script>alert(2)</script>\u202egz.rat" + "x" * 120 + ".tar.gz"
TOKEN = "the-token-of-the-operators"

IMAGE_HASH = "document.querySelector('#images tbody tr').dataset.hash"

Browse = Callable[..., webdriver.Chrome]


@pytest.fixture(scope="module")
def browsers() -> Iterator[dict[tuple[str, ...], webdriver.Chrome]]:
    """Those that are open, one for each kind of user."""
    opened: dict[tuple[str, ...], webdriver.Chrome] = {}
    yield opened
    for browser in opened.values():
        browser.quit()


@pytest.fixture
def browse(browsers: dict[tuple[str, ...], webdriver.Chrome]) -> Iterator[Browse]:
    """Browsers. After the test they show nothing, else their pages would go on asking a mirror that has gone."""
    chromium = needs("chromium", "apt-get install --no-install-recommends chromium")
    driver = needs("chromedriver", "apt-get install --no-install-recommends chromium-driver")

    def start(*arguments: str, scripts: bool = True) -> webdriver.Chrome:
        key = (*arguments, str(scripts))
        if key not in browsers:
            options = webdriver.ChromeOptions()
            options.binary_location = chromium
            own = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
            for argument in (*own, *(arguments or ("--window-size=1200,1400",))):
                options.add_argument(argument)
            if not scripts:
                options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
            options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
            browsers[key] = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        return browsers[key]

    yield start
    for browser in browsers.values():
        browser.get("about:blank")


def text(browser: webdriver.Chrome, identifier: str) -> str:
    """What a person reads there; empty while it is being replaced."""
    with contextlib.suppress(Exception):
        return browser.find_element(By.ID, identifier).text
    return ""


def ask_page(browser: webdriver.Chrome, what: str) -> str:
    """A text that the page has, read in one step: an element may be replaced between two."""
    return str(browser.execute_script(f"return {what}"))


def complaints(browser: webdriver.Chrome) -> list[str]:
    """What the browser refused or failed to do for the page."""
    entries = browser.get_log("browser")  # type: ignore[no-untyped-call] # theirs
    said = [entry["message"] for entry in entries if entry["level"] in {"SEVERE", "WARNING"}]
    return [message for message in said if message.startswith(browser.current_url)]


def press(browser: webdriver.Chrome, path: str) -> None:
    """Press a button, and Yes in the dialog."""

    def pressed() -> bool:
        with contextlib.suppress(NoSuchElementException, StaleElementReferenceException):  # it is being replaced
            browser.find_element(By.CSS_SELECTOR, f'.act[data-path="{path}"]').click()
            return True
        return False

    eventually(pressed, what="the button")
    assert browser.find_element(By.ID, "confirm").is_displayed()
    browser.find_element(By.ID, "do").click()


def outcome(browser: webdriver.Chrome) -> str:
    eventually(lambda: text(browser, "outcome") not in {"", "…"}, what="an outcome")
    said = text(browser, "outcome")
    browser.find_element(By.ID, "cancel").click()
    return said


@pytest.fixture
def token_file(tmp_path: Path, canary: Canary) -> Path:
    """A file with the admin token, which nobody must see."""
    canary.hide(TOKEN)
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    return file


def test_a_running_fill_moves(simulator: Simulator, fresh_mirror: FreshMirror, browse: Browse) -> None:
    simulator.set_rate(MIB // 4)
    mirror = fresh_mirror()
    browser = browse()
    with Download(mirror.image_url) as download:
        browser.get(mirror.admin_url)
        seen: set[str] = set()

        def moved() -> bool:
            with contextlib.suppress(Exception):
                seen.add(browser.find_element(By.CSS_SELECTOR, "#fills progress").get_attribute("value") or "")
            return len(seen) >= 3

        eventually(moved, what="three positions")
        assert "1 client attached" in text(browser, "fills")
        assert text(browser, "sentence") == "Serving, and fetching an image."
        simulator.set_rate(None)
        download.read_all()
    eventually(lambda: "None." in text(browser, "fills"), what="the end of the fill")
    eventually(lambda: "current" in text(browser, "images"), what="the image")
    assert f"fill of {simulator.image_sha256('first')[:12]} verified and stored: " in text(
        browser, "events"
    )  # not all of its digits
    assert complaints(browser) == []


def test_it_is_whole_without_scripts(mirror: MirrorProcess, simulator: Simulator, browse: Browse) -> None:
    browser = browse("--window-size=1200,1401", scripts=False)
    browser.get(mirror.admin_url)
    assert simulator.image_sha256("first")[:12] in text(browser, "images")
    assert "pps-mirror pull" in text(browser, "now")
    assert not any(button.is_displayed() for button in browser.find_elements(By.CSS_SELECTOR, ".act"))
    assert browser.find_element(By.CSS_SELECTOR, "noscript meta[http-equiv=refresh]")


def test_a_hostile_file_name_is_text(simulator: Simulator, fresh_mirror: FreshMirror, browse: Browse) -> None:
    simulator.fault(Fault("metadata", times=None, values={"filename": HOSTILE}))
    mirror = fresh_mirror()
    fetch(mirror.image_url)
    browser = browse()
    browser.get(mirror.admin_url)
    shown = browser.find_element(By.CSS_SELECTOR, "#images bdi.name")
    assert "<img src=x onerror=alert(1)>" in (shown.get_attribute("textContent") or "")
    assert not browser.find_elements(By.CSS_SELECTOR, "main img, main script")
    assert complaints(browser) == []


def test_buttons_pin_verify_and_delete(simulator: Simulator, fresh_mirror: FreshMirror, browse: Browse) -> None:
    mirror = fresh_mirror({"upstream": {"metadata_ttl": "0s"}})
    fetch(mirror.image_url)
    image = f"/api/images/{simulator.image_sha256('first')}"
    simulator.roll_over("second")
    fetch(mirror.image_url)
    browser = browse()
    browser.get(mirror.admin_url)
    press(browser, f"{image}/pin")
    assert "is pinned" in outcome(browser)
    eventually(lambda: "pinned" in text(browser, "images"), what="the pin")
    press(browser, image)
    assert "is pinned: " in outcome(browser)
    press(browser, f"{image}/verify")
    assert "is being verified" in outcome(browser)
    eventually(lambda: "image.verified" in actions_of(mirror), what="the verification")
    eventually(lambda: browser.find_elements(By.CSS_SELECTOR, f'.act[data-path="{image}/unpin"]'), what="the button")
    press(browser, f"{image}/unpin")
    assert "is unpinned" in outcome(browser)
    press(browser, image)
    assert "is removed" in outcome(browser)
    assert [each["hash"] for each in status_of(mirror)["images"]] == [simulator.image_sha256("second")]


def test_a_button_works_from_the_keyboard_and_asks_for_the_token(
    fresh_mirror: FreshMirror, browse: Browse, token_file: Path
) -> None:
    mirror = fresh_mirror({"admin": {"token_file": str(token_file)}})
    fetch(mirror.image_url)
    browser = browse()
    browser.get(mirror.admin_url)

    def tab() -> str:
        webdriver.ActionChains(browser).send_keys(Keys.TAB).perform()
        return ask_page(browser, "document.activeElement.textContent")

    assert tab() == "Skip to the content"
    eventually(lambda: tab().startswith("Pin "), what="the button")
    webdriver.ActionChains(browser).send_keys(Keys.ENTER).perform()
    field = browser.find_element(By.ID, "token")
    eventually(field.is_displayed, what="the field for the token")
    field.send_keys("wrong", Keys.ENTER)
    eventually(lambda: "is not the token" in text(browser, "outcome"), what="a refusal")
    field.clear()
    field.send_keys(TOKEN, Keys.ENTER)
    eventually(lambda: "is pinned" in text(browser, "outcome"), what="the pin")


def test_it_says_that_the_mirror_is_gone_and_comes_back_by_itself(fresh_mirror: FreshMirror, browse: Browse) -> None:
    mirror = fresh_mirror()
    browser = browse()
    browser.get(mirror.admin_url)
    eventually(lambda: text(browser, "sentence") == "Serving.", what="the page")
    mirror.stop()
    eventually(lambda: "does not answer" in text(browser, "sentence"), what="the bad news")
    assert "does not answer" in browser.title
    assert browser.find_element(By.ID, "sentence").get_attribute("class") == "bad"
    mirror.start()
    eventually(lambda: text(browser, "sentence") == "Serving.", seconds=40, what="the page, alive again")
    assert browser.title.startswith("Serving.")


def test_it_is_kept_fresh_when_no_event_comes_through(fresh_mirror: FreshMirror, browse: Browse) -> None:
    """As behind a proxy that waits for the end of an answer before it passes it on."""
    mirror = fresh_mirror()
    browser = browse("--window-size=1200,1402")
    silence = "window.EventSource = class extends EventTarget {};"
    silenced = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": silence})
    try:
        browser.get(mirror.admin_url)
        fetch(mirror.image_url)
        eventually(lambda: "current" in text(browser, "images"), seconds=40, what="the image")
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", silenced)


def test_beyond_this_machine_one_login_is_enough_and_a_wrong_token_does_not_end_it(
    fresh_mirror: FreshMirror, browse: Browse, token_file: Path
) -> None:
    mirror = fresh_mirror({"admin": {"host": "0.0.0.0", "token_file": str(token_file)}})
    browser = browse()
    browser.get(f"http://anybody:{TOKEN}@127.0.0.1:{mirror.admin_port}/")
    assert browser.execute_script("return getComputedStyle(document.body).margin") == "0px", "it has its style"
    fetch(mirror.image_url)
    eventually(lambda: "current" in text(browser, "images"), what="the image, pushed")
    path = f"/api/images/{ask_page(browser, IMAGE_HASH)}"
    for token, said in (("wrong", "this is not the token"), (TOKEN, "is pinned"), ("", "is unpinned")):
        button = f"{path}/unpin" if said == "is unpinned" else f"{path}/pin"
        selector = f'.act[data-path="{button}"]'
        eventually(partial(browser.find_elements, By.CSS_SELECTOR, selector), what="the button")
        browser.find_element(By.CSS_SELECTOR, selector).click()
        browser.find_element(By.ID, "token").clear()
        browser.find_element(By.ID, "token").send_keys(token)
        browser.find_element(By.ID, "do").click()
        assert said in outcome(browser)
    assert text(browser, "sentence") == "Serving."


@pytest.mark.parametrize("stripping", [False, True], ids=["prefix left", "prefix taken away"])
def test_behind_a_proxy_with_a_prefix_it_is_whole_live_and_acts(
    fresh_mirror: FreshMirror, browse: Browse, token_file: Path, tmp_path: Path, stripping: bool
) -> None:
    port = free_port()
    public = f"ops.test:{port}/pps-mirror"
    mirror = fresh_mirror({"admin": {"token_file": str(token_file), "public_url": f"http://{public}"}})
    with Nginx(tmp_path / "nginx", before_the_admin_listener(mirror.admin_port, stripping=stripping), port):
        browser = browse("--window-size=1200,1403", "--host-resolver-rules=MAP ops.test 127.0.0.1")
        browser.get(f"http://anybody:{TOKEN}@{public}/")
        assert browser.execute_script("return getComputedStyle(document.body).margin") == "0px", "it has its style"
        fetch(mirror.image_url)
        eventually(lambda: "current" in text(browser, "images"), what="the image, pushed")
        press(browser, f"/api/images/{ask_page(browser, IMAGE_HASH)}/pin")
        assert "is pinned" in outcome(browser)
        eventually(lambda: "pinned" in text(browser, "images"), what="the tag")
        links = ask_page(browser, "[...document.querySelectorAll('footer a')].map(link => link.href).join(' ')")
        ours = f"http://anybody:{TOKEN}@{public}"
        assert links == f"{ours}/metrics {ours}/api/status"
        assert complaints(browser) == []


def test_the_focus_stays_where_it_was_when_the_page_changes(fresh_mirror: FreshMirror, browse: Browse) -> None:
    mirror = fresh_mirror()
    browser = browse()
    browser.get(mirror.admin_url)
    browser.execute_script("document.querySelector('footer a').focus()")
    fetch(mirror.image_url)
    eventually(lambda: "current" in text(browser, "images"), what="the image")
    assert ask_page(browser, "document.activeElement.textContent") == "Metrics"
    path = f"/api/images/{ask_page(browser, IMAGE_HASH)}"
    press(browser, f"{path}/pin")
    eventually(lambda: browser.find_elements(By.CSS_SELECTOR, f'.act[data-path="{path}/unpin"]'), what="the pin")
    assert "is pinned" in outcome(browser)
    wanted = f"{path}/unpin"
    eventually(lambda: ask_page(browser, "document.activeElement.dataset.path") == wanted, what="the focus")


def test_on_a_phone_nothing_lies_beyond_the_edge(fresh_mirror: FreshMirror, browse: Browse) -> None:
    mirror = fresh_mirror()
    fetch(mirror.image_url)
    browser = browse("--window-size=500,901")
    phone = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    browser.get(mirror.admin_url)
    for button in browser.find_elements(By.CSS_SELECTOR, ".act"):
        assert button.is_displayed()
        assert button.rect["x"] + button.rect["width"] <= 360
    assert "Last served" in text(browser, "images")
    assert browser.find_element(By.CSS_SELECTOR, "#images tbody tr").aria_role == "row"
    found = Axe().run(browser)["violations"]
    assert [each["id"] for each in found if each["impact"] in {"serious", "critical"}] == []


def test_events_and_pictures_say_when_by_the_clock(fresh_mirror: FreshMirror, browse: Browse) -> None:
    mirror = fresh_mirror(environ={"TZ": "XST-3"})
    browser = browse()
    browser.get(mirror.admin_url)
    time_of_start = browser.find_element(By.CSS_SELECTOR, "#events time")
    at = datetime.fromisoformat(time_of_start.get_attribute("datetime") or "") + timedelta(hours=3)
    assert time_of_start.text == f"{at:%H:%M:%S}"
    assert " XST" in text(browser, "foot")
    axes = [axis.text.split() for axis in browser.find_elements(By.CSS_SELECTOR, ".axis")]
    assert [len(axis) for axis in axes] == [5, 5, 5]
    assert [axis[-1] for axis in axes] == ["now"] * 3
    assert len({each.rect["y"] for each in browser.find_elements(By.CSS_SELECTOR, ".axis span")}) == 1, "one line"


def test_another_page_can_neither_act_nor_read(fresh_mirror: FreshMirror, browse: Browse, tmp_path: Path) -> None:
    mirror = fresh_mirror()
    fetch(mirror.image_url)
    [image] = status_of(mirror)["images"]
    target = f"{mirror.admin_url}/api/images/{image['hash']}/pin"
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "index.html").write_text(
        f"""<!DOCTYPE html><title>waiting</title><iframe name=hidden></iframe>
        <form action="{target}" method=post target=hidden><input name=a></form>
        <script>
        document.forms[0].submit();
        const tries = [
          fetch("{target}", {{method: "POST"}}),
          fetch("{target}", {{method: "POST", mode: "no-cors"}}),
          fetch("{target}", {{method: "POST", headers: {{"X-Requested-With": "pps-mirror"}}}}),
          fetch("{target}", {{method: "POST", headers: {{"Content-Type": "application/json"}}, body: "{{}}"}}),
          fetch("{mirror.admin_url}/api/status").then(answer => answer.text()),
        ];
        Promise.allSettled(tries).then(all =>
          document.title = all.map(each => each.value && each.value.type !== "opaque" ? "came through" : "no").join());
        </script>"""
    )

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path / "evil"))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = browse()
        browser.get(f"http://localhost:{server.server_port}/")
        eventually(lambda: browser.title != "waiting", what="the end of all tries")
        time.sleep(0.5)
        server.shutdown()
    assert browser.title == "no,no,no,no,no"
    assert not status_of(mirror)["images"][0]["pinned"]


KINDS = {
    "light": ("--window-size=1200,1400",),
    "dark": ("--window-size=1200,1400", "--blink-settings=preferredColorScheme=0"),
    "phone": ("--window-size=500,900",),
}


@pytest.mark.parametrize("kind", KINDS)
def test_everybody_can_use_it(mirror: MirrorProcess, browse: Browse, kind: str) -> None:
    browser = browse(*KINDS[kind])
    if kind == "phone":
        phone = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    browser.get(mirror.admin_url)
    dark = browser.execute_script("return matchMedia('(prefers-color-scheme: dark)').matches")
    assert dark is (kind == "dark")
    found = Axe().run(browser)["violations"]
    assert [(each["id"], each["impact"]) for each in found if each["impact"] in {"serious", "critical"}] == []
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert complaints(browser) == []


def test_hooks_and_what_operators_did_are_there_when_there_are_some(
    simulator: Simulator, fresh_mirror: FreshMirror, browse: Browse
) -> None:
    image = f"/api/images/{simulator.image_sha256('first')}"
    mirror = fresh_mirror(environ=in_environment(hook("rollout", command=["/bin/false"])))
    browser = browse()
    browser.get(mirror.admin_url)
    assert not browser.find_element(By.ID, "audit").is_displayed()
    assert "was not told anything yet" in text(browser, "hooks")
    fetch(mirror.image_url)
    eventually(lambda: "was not told: /bin/false ended with status 1" in text(browser, "hooks"), what="the failure")
    press(browser, f"{image}/pin")
    assert "is pinned" in outcome(browser)
    eventually(lambda: "127.0.0.1: pin" in text(browser, "audit"), what="the record")
    found = Axe().run(browser)["violations"]
    assert [(each["id"], each["impact"]) for each in found if each["impact"] in {"serious", "critical"}] == []
    plain = fresh_mirror()
    browser.get(plain.admin_url)
    assert not browser.find_element(By.ID, "hooks").is_displayed()


def test_a_mirror_that_knows_nothing_has_a_page_too(tmp_path: Path, browse: Browse) -> None:
    with Simulator.start([ImageSpec("first", size=MIB)]):
        with ForkedMirror(tmp_path, "", {"auth": {"mode": "open"}}) as mirror:
            browser = browse()
            browser.get(mirror.admin_url)
            assert "serves what was imported" in text(browser, "now")
            assert "Prefetch" not in text(browser, "now")


def test_a_mirror_that_never_reached_upstream_does_not_say_that_it_serves(tmp_path: Path, browse: Browse) -> None:
    with ForkedMirror(tmp_path, f"http://127.0.0.1:{free_port()}", {"auth": {"mode": "open"}}) as mirror:
        fetch(mirror.image_url)
        browser = browse()
        browser.get(mirror.admin_url)
        eventually(lambda: text(browser, "sentence") == "Nothing to serve yet: DataRobot cannot be reached.")
