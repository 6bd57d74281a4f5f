"""What a program needs to drive seqlm: parts of docs/SKILL.md, and docs/llms.txt as a whole."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.cli import documents
from jobs.cli.arguments import COMMANDS
from tests.reference import codes
from tests.reference.documents import kinds
from tests.reference.markdown import table

DOCS = Path(__file__).parents[2] / "docs"
LLMS = DOCS / "llms.txt"
_TOCTREE = re.compile(r"```\{toctree\}\n:hidden:\n:caption: ([^\n]+)\n\n(.*?)```", re.DOTALL)
_HIDDEN = re.compile(r"\A---\n.*?\n---\n|<!--.*?-->|^```.*?^```$", re.DOTALL | re.MULTILINE)
_PARAGRAPH = re.compile(r"^(?![^\n]+\n:)[\w`](?:.|\n(?!\n))*", re.MULTILINE)


def parts() -> dict[str, str]:
    """Return the tables in their short forms."""
    envelope = documents.tables()[documents.ENVELOPE]
    by_code: dict[str, list[str]] = {}
    for kind, (code, _) in kinds().items():
        by_code.setdefault(code or "1 to 130", []).append(f"`{kind}`")
    groups: dict[str, list[str]] = {}
    for name, command in COMMANDS.items():
        groups.setdefault(command.group, []).append(f"`{name}`")
    return {
        "agent-document": table(["field", "meaning"], [[f"`{path}`", text] for path, (_, text) in envelope.items()]),
        "agent-exit-codes": table(["code", "meaning"], [[str(code), text] for code, text in codes.MEANINGS.items()]),
        "agent-error-kinds": table(["exit code", "kinds"], _joined(by_code)),
        "agent-commands": table(["for", "commands"], _joined(groups)),
    }


def _joined(names: Mapping[str, Sequence[str]]) -> list[list[str]]:
    return [[title, ", ".join(those)] for title, those in names.items()]


def llms_text() -> str:
    """Return the list of the site's pages for language models, in the order and sections of the index."""
    index = (DOCS / "index.md").read_text("utf-8")
    lines = ["# seqlm", "", f"> {' '.join(_paragraph(index).split())}", ""]
    for caption, pages in _TOCTREE.findall(index):
        lines += [f"## {caption}", "", *map(_line, pages.split()), ""]
    return "\n".join(lines)


def _line(page: str) -> str:
    """Return the link to a page, with its title and the first sentence."""
    text = (DOCS / f"{page}.md").read_text("utf-8")
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    first = re.split(r"(?<=\.)\s", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", _paragraph(text)), maxsplit=1)[0]
    link = f"- [{title[1] if title else page.rpartition('/')[2].capitalize()}]({page}.md)"
    return f"{link}: {' '.join(first.split())}" if first else link


def _paragraph(text: str) -> str:
    """Return the first paragraph below the title; ``""`` without one."""
    found = _PARAGRAPH.search(_HIDDEN.sub("", text))
    return found[0] if found else ""
