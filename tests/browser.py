"""A page of the report in headless Chromium: what it says, asks for and does. Needed with CI=true, else left out.

Chromium and its driver are the system's own, and nothing here reaches a network: pages are files.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

FLAGS = [
    "--headless=new",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no name has an address
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-sync",
    "--remote-debugging-pipe",  # ends with its driver, and the driver with us, even where we are killed
    "--metrics-recording-only",
]

PRESSABLE = "button, a, summary, label, [role=button]"
SHOWN = "e => e.checkVisibility({opacityProperty: true, visibilityProperty: true}) && e.getClientRects().length > 0"


@dataclass(frozen=True, kw_only=True)
class Screen:
    """What the page is shown on, in CSS pixels."""

    width: int
    height: int
    scale: float = 1.0
    """Device pixels in a CSS pixel."""
    mobile: bool = False
    """Obeys the page's viewport, as telephones do."""


DESKTOP = Screen(width=1280, height=900)
PHONE = Screen(width=390, height=844, scale=2.0, mobile=True)


@dataclass(frozen=True, kw_only=True)
class Request:
    """Something that the page asked for."""

    url: str
    failure: str | None = None
    """Why it did not come, for one that failed."""


def require_browser() -> None:
    """Skip where Chromium, its driver or a reader of PDF is not installed; fail instead with CI=true."""
    missing = [name for name in ("chromium", "chromedriver", "pdftotext") if shutil.which(name) is None]
    if not missing:
        return
    if os.environ.get("CI"):
        pytest.fail(f"not installed: {', '.join(missing)} (see .ci/install_programs)")
    pytest.skip(f"not installed: {', '.join(missing)}")


class Page:
    """A page that is open. ``css`` stands for the elements that match a selector."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        self.url = url
        self._console: list[dict[str, Any]] = []
        self._events: list[dict[str, Any]] = []

    # what it says and asks for

    def text(self, css: str = "body") -> str:
        """What is to be seen of the first match."""
        return self.find(css).text

    def texts(self, css: str) -> list[str]:
        """What is to be seen of every match."""
        return self.script("return Array.from(document.querySelectorAll(arguments[0]), e => e.innerText.trim())", css)

    def attributes(self, css: str, name: str) -> list[str | None]:
        """An attribute of every match, None where it has none."""
        source = "return Array.from(document.querySelectorAll(arguments[0]), e => e.getAttribute(arguments[1]))"
        return self.script(source, css, name)

    def visible(self, css: str) -> bool:
        """Whether there is a match and any of them is shown, be it further down the page."""
        return any(self.script(f"return Array.from(document.querySelectorAll(arguments[0]), {SHOWN})", css))

    def focused(self) -> WebElement:
        return self.driver.switch_to.active_element

    def script(self, source: str, *arguments: Any) -> Any:
        """What a piece of JavaScript returns."""
        return self.driver.execute_script(source, *arguments)

    def console(self) -> list[str]:
        """Every warning and error on the console so far, those of the security policy too."""
        self._console += self.driver.get_log("browser")
        return [f"{m['level']}: {m['message']}" for m in self._console if m["level"] in ("WARNING", "SEVERE")]

    def requests(self) -> list[Request]:
        """Everything asked for so far, the page itself first; the page's own data: URLs are not asked of anyone."""
        self._events += [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        failed = {e["params"]["requestId"]: e["params"] for e in self._events if e["method"] == "Network.loadingFailed"}
        sent = [event["params"] for event in self._events if event["method"] == "Network.requestWillBeSent"]
        return [
            Request(url=event["request"]["url"], failure=failed.get(event["requestId"], {}).get("errorText"))
            for event in sent
            if not event["request"]["url"].startswith("data:")
        ]

    # what one does with it

    def find(self, css: str) -> WebElement:
        """The first match.

        Raises:
            selenium.common.NoSuchElementException: there is none.
        """
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def click(self, text: str, within: str = "body") -> None:
        """Click the first button, link or label within an element that shows exactly this text."""
        source = f"return Array.from(arguments[0].querySelectorAll(arguments[1])).filter({SHOWN})"
        inside = self.script(f"{source}.map(e => [e, e.innerText.trim()])", self.find(within), PRESSABLE)
        matches = [element for element, shown in inside if shown == text]
        assert matches, f"nothing to click says {text!r}; there are {[shown for _, shown in inside]}"
        self._scroll_to(matches[0])
        matches[0].click()

    def press(self, *keys: str) -> None:
        """Press keys by name, one after the other: ``press("TAB", "ENTER", "a")``."""
        for key in keys:
            ActionChains(self.driver, duration=0).send_keys(getattr(Keys, key, key)).perform()

    def pdf(self, file: Path) -> Path:
        """The page printed on A4 (inches below), with the browser's own margins."""
        options = {"paperWidth": 8.27, "paperHeight": 11.69, "printBackground": False}
        file.write_bytes(base64.b64decode(self.driver.execute_cdp_cmd("Page.printToPDF", options)["data"]))
        return file

    def _scroll_to(self, element: WebElement) -> None:
        self.script("arguments[0].scrollIntoView({block: 'center', inline: 'center', behavior: 'instant'})", element)


class Browser:
    """One Chromium, which shows one page after the other."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, file: Path, screen: Screen = DESKTOP, *, scripts: bool = True, dark: bool = False) -> Page:
        """Load a file; whatever was open before is closed and forgotten."""
        self.driver.get("about:blank")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        size = {"width": screen.width, "height": screen.height}
        for command, options in (
            (
                "Emulation.setDeviceMetricsOverride",
                {**size, "deviceScaleFactor": screen.scale, "mobile": screen.mobile},
            ),
            ("Emulation.setScriptExecutionDisabled", {"value": not scripts}),
            ("Emulation.setEmulatedMedia", {"features": [scheme]}),
        ):
            self.driver.execute_cdp_cmd(command, options)
        for log in ("browser", "performance"):
            self.driver.get_log(log)  # what the page before has left
        page = Page(self.driver, file.resolve().as_uri())
        self.driver.get(page.url)
        return page


def _end_with_parent() -> None:
    """Have Linux end this process when its parent is gone."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start Chromium with an empty profile; in the end nothing of it is left."""
    require_browser()
    options = Options()
    options.binary_location = str(shutil.which("chromium"))
    with tempfile.TemporaryDirectory(prefix="seqlm-browser-", ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}", *(["--no-sandbox"] if os.geteuid() == 0 else [])):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = Service(executable_path=shutil.which("chromedriver"), popen_kw={"preexec_fn": _end_with_parent})
        driver = webdriver.Chrome(options=options, service=service)
        try:
            yield Browser(driver)
        finally:
            driver.quit()
