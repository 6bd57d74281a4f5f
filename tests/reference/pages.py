"""Which pages have generated parts, and what these parts should be."""

import re
from pathlib import Path

from tests.reference import (
    agents,
    codes,
    columns,
    command_line,
    documents,
    layers,
    manifest,
    python_api,
    states,
    variables,
)

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PART = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
SUBJECTS = (agents, codes, columns, command_line, documents, layers, manifest, python_api, states, variables)


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
    return {**pages, manifest.SCHEMA: manifest.schema_text(), agents.LLMS: agents.llms_text()}
