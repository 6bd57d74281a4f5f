import base64
import csv
import ctypes
import json
import os
import re
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

from analysis.report import write_report
from tests import commands
from tests.analysis.behaviour_made_up import add_behaviour, add_samples, raw_sample
from tests.analysis.claims import made_up
from tests.analysis.hand_made import add_run
from tests.analysis.synthetic import make_run

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
TEXT = "e => (e.innerText ?? e.textContent).trim()"
"""A part of a drawing has no ``innerText``."""
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
        return self.script(f"return Array.from(document.querySelectorAll(arguments[0]), {TEXT})", css)

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

    def requests(self) -> list[tuple[str, str | None]]:
        """What was asked for so far but data: URLs, the page itself first, and why it did not come if it failed."""
        self._events += [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        failed = {e["params"]["requestId"]: e["params"] for e in self._events if e["method"] == "Network.loadingFailed"}
        sent = [event["params"] for event in self._events if event["method"] == "Network.requestWillBeSent"]
        return [
            (event["request"]["url"], failed.get(event["requestId"], {}).get("errorText"))
            for event in sent
            if not event["request"]["url"].startswith("data:")
        ]

    # what one does with it

    def find(self, css: str) -> WebElement:
        """The first match."""
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def click(self, text: str, within: str = "body") -> None:
        """Click the first button, link or label within an element that shows exactly this text."""
        source = f"return Array.from(arguments[0].querySelectorAll(arguments[1])).filter({SHOWN})"
        inside = self.script(f"{source}.map(e => [e, ({TEXT})(e)])", self.find(within), PRESSABLE)
        matches = [element for element, shown in inside if shown == text]
        assert matches, f"nothing to click says {text!r}; there are {[shown for _, shown in inside]}"
        self.script("arguments[0].scrollIntoView({block: 'center', inline: 'center', behavior: 'instant'})", matches[0])
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


class Browser:
    """One Chromium, which shows one page after the other."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, file: Path, screen: Screen = DESKTOP, *, scripts: bool = True) -> Page:
        """Load a file; whatever was open before is closed and forgotten."""
        self.driver.get("about:blank")
        size = {"width": screen.width, "height": screen.height, "deviceScaleFactor": screen.scale}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**size, "mobile": screen.mobile})
        self.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})
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


ROWS = "#results tbody tr:first-child"
"""The rows of the results, without the lines of code that other tables have beneath theirs."""

OPEN = "document.querySelectorAll('details').forEach(details => { details.open = true; })"
"""Opens everything that is folded."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, report: Path) -> Page:
    return browser.open(report / "index.html")


@pytest.fixture(scope="module")
def with_samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report with samples of two runs."""
    folder = tmp_path_factory.mktemp("with_samples") / "study"
    for order in (0, 3):
        run = make_run(folder, order, epochs=2)
        add_behaviour(run)
        words = ["one", "very" + 60 * "long", "<eos>", "line"]
        add_samples(
            run, [raw_sample(index, words * (1 + index), [1.0 + index] * 4 * (1 + index)) for index in range(8)]
        )
    return write_report(folder).parent


def column(page: Page, table: str, number: int) -> list[str]:
    """What the cells of a column sort by, as they stand: a value, else their text; empty where a value is missing."""
    cells = f"#{table} tbody tr:first-child > :nth-child({number})"
    values, texts = page.attributes(cells, "data-sort"), page.texts(cells)
    return [text if value is None else value for value, text in zip(values, texts, strict=True)]


def ordered(values: list[str], *, ascending: bool) -> list[str]:
    """The values in order, numbers by size, the missing ones last either way."""
    there = [value for value in values if value != ""]
    numbers = all(re.fullmatch(r"-?[\d.]+(e[+-]?\d+)?", value) for value in there)
    there.sort(key=float if numbers else str, reverse=not ascending)
    return [*there, *([""] * (len(values) - len(there)))]


def words_of(pdf: Path) -> tuple[list[str], list[tuple[float, float]]]:
    """Every word of a PDF, and for each how far its left and right edges are inside the page, in points."""
    done = commands.run(["pdftotext", "-bbox", pdf, "-"], check=True)
    words, margins, width = [], [], 0.0
    for line in done.stdout.splitlines():
        if found := re.search(r'<page width="([\d.]+)"', line):
            width = float(found[1])
        elif found := re.search(r'<word xMin="([-\d.]+)" yMin="[-\d.]+" xMax="([-\d.]+)".*?>(.*)</word>', line):
            words.append(found[3])
            margins.append((float(found[1]), width - float(found[2])))
    return words, margins


@pytest.mark.process
@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_asks_for_nothing_but_itself_and_has_nothing_to_complain(
    browser: Browser, report: Path, with_samples: Path, screen: Screen
) -> None:
    for file in (report / "index.html", with_samples / "samples.html"):
        page = browser.open(file, screen)
        assert page.requests() == [(page.url, None)]
        assert page.console() == []


@pytest.mark.parametrize("table", ["results", "hyperparameters"])
def test_each_heading_sorts_the_table_both_ways_with_missing_values_last(page: Page, table: str) -> None:
    page.script(OPEN)
    buttons = f"#{table} thead th button"
    headings, rows = page.texts(f"#{table} thead th"), page.texts(f"#{table} tbody")
    assert len(headings) > 5
    for number, heading in enumerate(headings, start=1):
        values = column(page, table, number)
        for ascending, direction in ((True, "ascending"), (False, "descending")):
            page.script("document.querySelectorAll(arguments[0])[arguments[1]].click()", buttons, number - 1)
            assert column(page, table, number) == ordered(values, ascending=ascending), heading
            expected = [direction if place == number else None for place in range(1, len(headings) + 1)]
            assert page.attributes(f"#{table} thead th", "aria-sort") == expected
    assert page.texts(f"#{table} tbody") != rows
    assert sorted(page.texts(f"#{table} tbody")) == sorted(rows), "each whole, with its command beneath"


def test_a_table_is_sorted_from_the_keyboard_alone(page: Page) -> None:
    for _ in range(100):
        page.press("TAB")
        if page.focused().tag_name == "button" and page.focused().text == "Valid.":
            break
    assert page.focused().text == "Valid."
    page.press("ENTER")
    place = page.texts("#results thead th").index("Valid.") + 1
    shown = [float(text.replace(",", "")) for text in page.texts(f"{ROWS} > :nth-child({place})")]
    assert shown == sorted(shown)
    page.press("SPACE")
    assert page.attributes("#results thead th", "aria-sort")[place - 1] == "descending"


@pytest.mark.process
@pytest.mark.usefixtures("svg_only")
def test_on_a_phone_only_tables_and_figures_scroll_sideways(
    browser: Browser, report: Path, with_samples: Path, tmp_path: Path
) -> None:
    text = {"corpus": "files", "sha256": "ab" * 32}  # one long word in a sentence
    add_run(tmp_path, 0, "own-text", "gru", "adam", [90.0], data=text)
    pages = [with_samples / name for name in ("index.html", "samples.html")]
    for file in (report / "index.html", *pages, write_report(tmp_path)):
        page = browser.open(file, PHONE)
        for _ in range(2):
            assert page.script("return document.documentElement.scrollWidth") <= PHONE.width
            page.script(OPEN)
        assert page.script("return window.innerWidth") == PHONE.width


@pytest.mark.process
def test_a_link_into_a_folded_section_opens_it(page: Page) -> None:
    assert not page.visible("#hyperparameters")
    page.click("Hyperparameters", within="nav")
    assert page.visible("#hyperparameters")
    assert not page.visible("#resources")


@pytest.mark.process
def test_a_chosen_sample_leads_to_its_place_among_all_samples_and_back(browser: Browser, with_samples: Path) -> None:
    page = browser.open(with_samples / "index.html")
    page.script(OPEN)
    label = page.texts(".sample .why a")[0]
    words = page.texts(".sample .text")[0]
    page.click(label)
    assert page.script("return location.pathname").endswith("/samples.html")
    assert page.texts(".sample:target .text") == [words]
    page.click("Back to the report")
    assert page.script("return location.pathname").endswith("/index.html")
    assert page.visible(".sample"), "the section is open"


def test_names_of_runs_are_on_one_line_and_the_table_scrolls(browser: Browser, report: Path) -> None:
    page = browser.open(report / "index.html", Screen(width=1100, height=900))
    heights = page.script("return Array.from(document.querySelectorAll(arguments[0]), row => row.offsetHeight)", ROWS)
    assert max(heights) - min(heights) <= 2
    assert page.script("const box = document.querySelector('#results .box'); return box.scrollWidth > box.clientWidth")


def test_a_telephone_shows_name_perplexities_and_state_of_a_run(browser: Browser, report: Path) -> None:
    page = browser.open(report / "index.html", PHONE)
    heads = "document.querySelectorAll('#results thead th')"
    shown = page.script(f"return Array.from({heads}).filter(e => e.checkVisibility()).map(e => e.innerText)")
    assert shown == ["No.", "Run", "Valid.", "Test", "State"]
    box = "const box = document.querySelector('#results .box')"
    assert page.script(f"{box}; return box.scrollWidth <= box.clientWidth"), "all of them without scrolling"


def test_rows_of_a_long_table_are_filtered_by_text(browser: Browser, report: Path) -> None:
    page = browser.open(report / "index.html")
    page.find("#results .filter").send_keys("gru adam")
    names = page.script(f"return Array.from(document.querySelectorAll('#results .name')).filter({SHOWN}).map({TEXT})")
    assert names
    assert all("gru" in name and "adam" in name for name in names)


def test_the_page_is_whole_without_scripts(browser: Browser, report: Path) -> None:
    with_scripts = browser.open(report / "index.html")
    assert with_scripts.visible("th button")
    assert with_scripts.visible(".picker")
    with_scripts.script("document.querySelector('.picker').remove()")  # of use to scripts alone
    text = with_scripts.text()
    page = browser.open(report / "index.html", scripts=False)
    assert not page.visible("th button")
    assert not page.visible(".picker")
    assert page.text().split() == text.split()
    for heading in ("Answers", "Results", "Learning curves", "Unfinished runs", "Resources", "Files"):
        assert heading in page.texts("h2")


@pytest.mark.process
def test_the_printed_page_has_every_column_of_every_table_within_the_paper(page: Page, tmp_path: Path) -> None:
    words, margins = words_of(page.pdf(tmp_path / "page.pdf"))
    for table in ("results", "hyperparameters"):
        for heading in page.texts(f"#{table} thead th"):
            assert set(heading.split()) <= set(words), heading
        for text in page.texts(f"#{table} tbody tr:first-child > :last-child"):
            assert set(text.split()) <= set(words)
    assert min(min(edges) for edges in margins) > 0


@pytest.mark.process
def test_a_table_over_several_printed_pages_has_its_headings_on_each(page: Page, tmp_path: Path) -> None:
    page.script("""
      const table = document.querySelector("#results table");
      for (let number = 0; number < 51; number++) {
        const copy = table.tBodies[0].cloneNode(true);
        copy.querySelector(".name").textContent = "copied " + "and rather long ".repeat(5);
        table.appendChild(copy);
      }""")
    done = commands.run(["pdftotext", "-layout", page.pdf(tmp_path / "page.pdf"), "-"], check=True)
    sheets = [sheet.split() for sheet in done.stdout.split("\f") if "copied" in sheet.split()]
    assert len(sheets) > 1
    for words in sheets:
        assert {"Architecture", "Optimizer", "Valid."} <= set(words)


@pytest.mark.process
@pytest.mark.usefixtures("svg_only")
def test_a_study_of_twelve_runs_prints_on_at_most_twelve_sheets_without_samples(
    browser: Browser, tmp_path: Path
) -> None:
    seeds = dict.fromkeys(((arch, "adam") for arch in ("rnn", "gru", "transformer")), 2)
    runs = made_up.make_study(tmp_path, seeds=seeds, behaviours=True)
    assert len(runs) == 12
    page = browser.open(write_report(tmp_path))
    page.script("document.querySelectorAll('article.sample').forEach(sample => { sample.remove(); })")
    done = commands.run(["pdftotext", page.pdf(tmp_path / "page.pdf"), "-"], check=True)
    assert 8 < done.stdout.count("\f") <= 12


@pytest.mark.process
@pytest.mark.usefixtures("svg_only")
def test_type_in_printed_figures_can_be_read(browser: Browser, tmp_path: Path) -> None:
    made_up.make_paper(tmp_path / "study")
    pdf = browser.open(write_report(tmp_path / "study")).pdf(tmp_path / "page.pdf")
    words = commands.run(["pdftotext", "-bbox", pdf, "-"], check=True).stdout
    heights = [float(low) - float(high) for high, low in re.findall(r'yMin="([\d.]+)".*?yMax="([\d.]+)"', words)]
    assert len(heights) > 1000
    assert min(heights) > 4.5, "in points, of the box of a word: type of about 4 points"


@pytest.mark.process
@pytest.mark.usefixtures("svg_only")
def test_no_table_is_wider_than_the_paper_which_would_shrink_the_whole_page(browser: Browser, tmp_path: Path) -> None:
    made_up.make_paper(tmp_path)
    paper = Screen(width=int((210 - 2 * 14) / 25.4 * 96), height=1000)  # A4 within its margins
    page = browser.open(write_report(tmp_path), paper)
    page.script(OPEN)
    assert len(page.texts("#results thead th")) > 15
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert page.script("return document.documentElement.scrollWidth") <= paper.width
    finally:
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def drawn(page: Page, run: int) -> list[bool]:
    """Of everything drawn for a run in any figure, whether it is shown."""
    source = "return Array.from(document.querySelectorAll(arguments[0]), e => getComputedStyle(e).display !== 'none')"
    shown: list[bool] = page.script(source, f"[data-run='{run}']")
    return shown


def test_runs_hide_in_all_figures_at_once_alone_by_group_and_by_legend_and_come_back(page: Page) -> None:
    assert len(drawn(page, 4)) >= 8
    assert all(drawn(page, 4))
    page.click("Runs shown in the figures: all 9", within=".picker")
    page.click("4 gru-adam", within=".picker")
    assert not any(drawn(page, 4))
    assert all(drawn(page, 5))
    assert page.text(".picker summary").endswith("of 9")
    page.click("4 gru-adam", within=".picker")
    assert all(drawn(page, 4))
    for group, hidden in (("Transformer", [7, 8, 9]), ("SGD", [7, 9]), ("SGD", [2, 5, 7, 8, 9]), ("All", [])):
        page.click(group, within=".picker .groups")  # hides the group, unless some of it was hidden: then shows it
        assert [run for run in range(1, 10) if drawn(page, run) and not any(drawn(page, run))] == hidden
    page.script("document.querySelector(\"#validation [data-key='1']\").dispatchEvent(new Event('click'))")
    assert not any(drawn(page, 1))
    assert page.attributes("[data-key='1']", "class") != [None]
    assert page.console() == []


def test_the_pointer_shows_the_value_of_the_nearest_point(page: Page, report: Path) -> None:
    box = page.script(
        "const panel = JSON.parse(document.getElementById('pointers').textContent)['validation'][0];"
        "const svg = document.querySelector('#validation svg');"
        "svg.scrollIntoView({block: 'center', behavior: 'instant'});"
        "const line = panel.lines.find(l => l.run === '4');"
        "const at = (a, v, lo, hi) => { const f = a.log ? Math.log : Number;"
        "  return lo + (hi - lo) * (f(v) - f(a.limits[0])) / (f(a.limits[1]) - f(a.limits[0])); };"
        "const p = new DOMPoint(at(panel.x, line.x[20], panel.box[0], panel.box[2]),"
        "  at(panel.y, line.y[20], panel.box[3], panel.box[1])).matrixTransform(svg.getScreenCTM());"
        "svg.dispatchEvent(new PointerEvent('pointermove', {clientX: p.x, clientY: p.y}));"
        "return [line.x[20], line.y[20]];"
    )
    assert box[0] == 21
    with (report / "data" / "epochs.csv").open(encoding="utf-8", newline="") as file:
        value = next(row["val_ppl"] for row in csv.DictReader(file) if (row["number"], row["epoch"]) == ("4", "20"))
    assert page.text(".pointer") == f"4 gru-adam · epoch 21 · perplexity {float(f'{float(value):.5g}'):g}"
