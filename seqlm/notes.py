"""Notes about the runs of a study, ``notes/<number>/note.json``, each written once and never edited.

A note has tags, a text, or both. The newest note of a run that has tags decides its tags, likewise its text.
Whatever reads or writes them raises ``FileError`` if that fails, or ``DamagedFileError``. Standard library alone.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from seqlm.files import read_json, write_json
from seqlm.reading import listed, timestamp
from seqlm.requests import claim_number

TAG = re.compile(r"[^\s,=<>!*?\[\]]+")
"""What a tag looks like, so that a filter can name it."""


@dataclass(frozen=True)
class Note:
    """What is noted about a run."""

    tags: tuple[str, ...] = ()
    text: str = ""


def read_notes(study_dir: Path) -> dict[str, Note]:
    """Return what is noted about each run of a study, by run id."""
    found: dict[str, Note] = {}
    for folder in listed(study_dir / "notes", "[0-9]*"):
        record = read_json(folder / "note.json") or {}  # the process that claimed the number may have been killed
        tags, text = record.get("tags"), record.get("text")
        for run_id in record.get("runs", []):
            note = found.get(run_id, Note())
            note = note if tags is None else replace(note, tags=tuple(tags))
            found[run_id] = note if text is None else replace(note, text=text)
    return found


def write_note(study_dir: Path, runs: Iterable[str], tags: Sequence[str] | None, text: str | None) -> None:
    """Write a note about runs, given by their ids. ``None``: their tags, or their text, stay as they are."""
    folder = claim_number(study_dir.absolute() / "notes")
    write_json(folder / "note.json", {"at": timestamp(), "runs": list(runs), "tags": tags, "text": text})
