"""Notes about the runs of a study, ``notes/<number>/note.json``, each written once and never edited.

A note has tags, a text, or both. The newest note of a run that has tags decides its tags, likewise its text.
Whatever reads or writes them raises ``FileError`` if that fails, or ``DamagedFileError``. Standard library alone.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from seqlm.reading import listed, timestamp
from seqlm.records.studies import Note
from seqlm.requests import claim_number

TAG = re.compile(r"[^\s,=<>!*?\[\]]+")
"""What a tag looks like, so that a filter can name it."""


@dataclass(frozen=True, kw_only=True)
class Noted:
    """What is noted about a run."""

    tags: tuple[str, ...] = ()
    text: str = ""


def read_notes(study_dir: Path) -> dict[str, Noted]:
    """Return what is noted about each run of a study that has a note, by run id."""
    noted: dict[str, Noted] = {}
    for folder in listed(study_dir / "notes", "[0-9]*"):
        note = Note.read(folder) or Note()  # the process that claimed the number may have been killed
        for run_id in note.runs:
            before = noted.get(run_id, Noted())
            tags = before.tags if note.tags is None else note.tags
            text = before.text if note.text is None else note.text
            noted[run_id] = Noted(tags=tags, text=text)
    return noted


def write_note(study_dir: Path, runs: Iterable[str], tags: Sequence[str] | None, text: str | None) -> None:
    """Write a note about runs, given by their ids. ``None``: their tags, or their text, stay as they are."""
    folder = claim_number(study_dir.absolute() / "notes")
    Note(at=timestamp(), runs=tuple(runs), tags=None if tags is None else tuple(tags), text=text).write(folder)
