from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.report import write_report
from tests import commands
from tests.analysis.hand_made import add_run
from tests.browser import DESKTOP, PHONE, Browser, Page, Screen, open_browser

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
    browser: Browser, report: Path, screen: Screen
) -> None:
    page = browser.open(report / "index.html", screen)
    assert [(request.url, request.failure) for request in page.requests()] == [(page.url, None)]
    assert page.console() == []


@pytest.mark.parametrize("table", ["results", "hyperparameters"])
def test_each_heading_sorts_the_table_both_ways_with_missing_values_last(page: Page, table: str) -> None:
    page.script(OPEN)
    headings = page.texts(f"#{table} thead th")
    assert len(headings) > 5
    for number, heading in enumerate(headings, start=1):
        values = column(page, table, number)
        for ascending, direction in ((True, "ascending"), (False, "descending")):
            page.click(heading, within=f"#{table}")
            assert column(page, table, number) == ordered(values, ascending=ascending), heading
            expected = [direction if place == number else None for place in range(1, len(headings) + 1)]
            assert page.attributes(f"#{table} thead th", "aria-sort") == expected


@pytest.mark.process
def test_sorting_keeps_rows_whole_and_each_command_beneath_its_run(page: Page) -> None:
    page.script(OPEN)
    rows = page.texts("#hyperparameters tbody")
    page.click("Learning rate", within="#hyperparameters")
    assert page.texts("#hyperparameters tbody") != rows
    assert sorted(page.texts("#hyperparameters tbody")) == sorted(rows)


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
def test_on_a_phone_only_tables_and_figures_scroll_sideways(browser: Browser, report: Path, tmp_path: Path) -> None:
    text = {"corpus": "files", "sha256": "ab" * 32}  # one long word in a sentence
    add_run(tmp_path, 0, "own-text", "gru", "adam", [90.0], data=text)
    for file in (report / "index.html", write_report(tmp_path)):
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
    assert not page.visible("#section-coverage ~ figure")


@pytest.mark.process
def test_names_of_runs_are_on_one_line_and_the_table_scrolls(browser: Browser, report: Path) -> None:
    page = browser.open(report / "index.html", Screen(width=1100, height=900))
    heights = page.script("return Array.from(document.querySelectorAll(arguments[0]), row => row.offsetHeight)", ROWS)
    assert max(heights) - min(heights) <= 2
    assert page.script("const box = document.querySelector('#results .box'); return box.scrollWidth > box.clientWidth")


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
    for heading in ("Coverage", "Results", "Learning curves", "Unfinished runs", "Hyperparameters", "Files"):
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


def drawn(page: Page, run: int) -> list[bool]:
    """Of everything drawn for a run in any figure, whether it is shown."""
    source = "return Array.from(document.querySelectorAll(arguments[0]), e => getComputedStyle(e).display !== 'none')"
    shown: list[bool] = page.script(source, f"[data-run='{run}']")
    return shown


def test_a_run_hides_in_all_figures_at_once_and_comes_back(page: Page) -> None:
    assert len(drawn(page, 4)) >= 8
    assert all(drawn(page, 4))
    page.click("Runs shown in the figures: all 9", within=".picker")
    page.click("4 gru-adam", within=".picker")
    assert not any(drawn(page, 4))
    assert all(drawn(page, 5))
    assert page.text(".picker summary").endswith("of 9")
    page.click("4 gru-adam", within=".picker")
    assert all(drawn(page, 4))
    assert page.console() == []


def test_groups_of_runs_hide_by_architecture_and_optimizer(page: Page) -> None:
    page.click("Runs shown in the figures: all 9", within=".picker")
    for group, hidden in (("Transformer", [7, 8, 9]), ("SGD", [7, 9]), ("SGD", [2, 5, 7, 8, 9]), ("All", [])):
        page.click(group, within=".picker .groups")  # hides the group, unless some of it was hidden: then shows it
        assert [run for run in range(1, 10) if drawn(page, run) and not any(drawn(page, run))] == hidden


def test_a_legends_entry_hides_its_run(page: Page) -> None:
    page.script("document.querySelector(\"#validation [data-key='1']\").dispatchEvent(new Event('click'))")
    assert not any(drawn(page, 1))
    assert page.attributes("[data-key='1']", "class") != [None]


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
