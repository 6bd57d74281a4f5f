"""The list of docs/project/decisions, read from the records."""

import re
from pathlib import Path
from typing import NamedTuple

from tests.reference.markdown import table

FOLDER = Path(__file__).parents[2] / "docs" / "project" / "decisions"
RECORD = re.compile(r"# (?P<title>.+)\n\n- Date: (?P<date>\d{4}-\d\d-\d\d)\n- Status: (?P<status>.+)\n\n")


class Decision(NamedTuple):
    """The head of a record."""

    file: str
    title: str
    date: str
    status: str
    """``accepted`` or ``superseded by [title](file)``, perhaps with a remark."""


def records() -> list[Decision]:
    """Return all records, newest first.

    Raises:
        ValueError: a record lacks its title, date or status.
    """
    found = []
    for path in FOLDER.glob("[0-9]*.md"):
        head = RECORD.match(path.read_text("utf-8"))
        if head is None or not path.name.startswith(head["date"]):
            raise ValueError(f"{path.name}: expected a title, a date as in the file's name, and a status")
        found.append(Decision(path.name, head["title"], head["date"], head["status"]))
    return sorted(found, key=lambda record: (record.date, record.file), reverse=True)


def parts() -> dict[str, str]:
    """Return the table of the records."""
    rows = [
        [f"`{each.date}`", f"[{each.title}]({each.file})", each.status.partition(" ")[0].rstrip(";")]
        for each in records()
    ]
    return {"decisions": table(["date", "decision", "status"], rows)}
