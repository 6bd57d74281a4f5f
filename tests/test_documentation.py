"""The generated parts of docs/ are those of the code, and what the code says of docs/ is there.

``make docs`` checks the links and anchors between the pages.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reference import pages

ROOT = pages.ROOT
OUTSIDE = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"]
"""Pages in Markdown that are not part of the site."""
PAGES = [*OUTSIDE, *(ROOT / "docs").rglob("*.md")]
PAGES = [page for page in PAGES if not {"CHANGELOG.md", "_build"} & {*page.parts}]
"""All pages but the changelog, which names files of earlier times."""
MADE = re.compile("/_build/|/YYYY-|slurm/cluster.toml")
"""What a user makes."""


@pytest.fixture(scope="module")
def wanted() -> dict[Path, str]:
    return pages.wanted()


@pytest.mark.slow
def test_nothing_generated_is_stale(wanted: dict[Path, str]) -> None:
    stale = [file for file, text in wanted.items() if file.read_text("utf-8") != text]
    assert not stale, "run: python -m tests.reference"


@pytest.mark.slow
def test_every_part_that_is_made_is_on_a_page(wanted: dict[Path, str]) -> None:
    used = {found[2] for text in wanted.values() for found in pages.PART.finditer(text)}
    assert used == pages.parts().keys()


def test_the_index_of_decisions_has_every_page() -> None:
    folder = ROOT / "docs" / "project" / "decisions"
    listed = re.findall(r"\]\(([\w-]+\.md)\)", (folder / "index.md").read_text("utf-8"))
    assert sorted([*listed, "index.md"]) == sorted(page.name for page in folder.iterdir())


@pytest.mark.parametrize("page", OUTSIDE, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_pages_outside_the_site_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_files_that_a_page_names_are_there_and_have_what_it_says_is_in_them(page: Path) -> None:
    text = page.read_text("utf-8")
    for name in re.findall(r"`((?:seqlm|jobs|slurm|analysis|benchmarks|examples|tests|docs)/[\w./-]+)`", text):
        assert MADE.search(name) or (ROOT / name).exists(), name
    for name, file in re.findall(r"`(\w+)(?:\.\w+)*` (?:in|\|) `([\w/.]+\.py)`", text):
        assert re.search(rf"\b{name}\b", (ROOT / file).read_text("utf-8")), f"{name} in {file}"


def test_every_page_that_the_code_names_is_there() -> None:
    missing = [(str(file), name) for file, name in _named() if not (ROOT / name).exists()]
    assert not missing


def _named() -> Iterator[tuple[Path, str]]:
    """Return the files of docs/ that are named outside of it, with the file that names each."""
    sources = [ROOT / "launch.py", ROOT / "Makefile", ROOT / "README.md"]
    for package in ("seqlm", "jobs", "slurm", "analysis", "benchmarks", "examples", "tests"):
        sources += [file for kind in ("*.py", "*.toml", "*.ipynb", "*.html") for file in (ROOT / package).rglob(kind)]
    for file in sources:
        for name in re.findall(r"\bdocs/[\w/.-]*\.(?:md|svg|png|json)\b", file.read_text("utf-8")):
            yield file.relative_to(ROOT), name
