"""Which pages have generated parts, and what these parts should be."""

from __future__ import annotations

import re
from pathlib import Path

from tests.reference import (
    codes,
    columns,
    command_line,
    decisions,
    folders,
    manifest,
    python_api,
    states,
    variables,
)

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PART = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
SUBJECTS = (codes, columns, command_line, decisions, manifest, python_api, states, variables)


def parts() -> dict[str, str]:
    """Return the Markdown of every generated part by its name."""
    return {name: text for subject in SUBJECTS for name, text in subject.parts().items()}


def wanted() -> dict[Path, str]:
    """Return every file that is generated or has generated parts, with the text that it should have.

    Raises:
        KeyError: a page asks for a part that does not exist.
    """
    made = parts()
    texts = {page: page.read_text("utf-8") for page in sorted(DOCS.rglob("*.md"))}
    pages = {
        page: PART.sub(lambda found: f"{found[1]}\n{made[found[2]].strip()}\n\n{found[3]}", text)
        for page, text in texts.items()
        if PART.search(text)
    }
    return {**pages, DOCS / "pictures" / "architecture.svg": folders.draw(), manifest.SCHEMA: manifest.schema_text()}


def stale() -> list[Path]:
    """Return the generated files that are not as they should be, relative to the checkout."""
    return [
        file.relative_to(ROOT)
        for file, text in wanted().items()
        if not file.is_file() or file.read_text("utf-8") != text
    ]


def main(words: list[str]) -> int:
    """Write what is stale, or with ``--check`` list it and return 1."""
    if words not in ([], ["--check"]):
        print("usage: python -m tests.reference [--check]")
        return 2
    texts = wanted()
    found = stale() if words else list(texts)
    if words:
        for file in found:
            print(f"{file} is stale; run: python -m tests.reference")
        return int(bool(found))
    for file, text in texts.items():
        file.write_text(text, "utf-8")
    return 0
