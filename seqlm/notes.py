"""Notes about the runs of a study, ``notes/<number>/note.json``, each written once and never edited.

A note has tags, a text, or both. The newest note of a run that has tags decides its tags, likewise its text.
Whatever reads or writes them raises ``FileError`` if that fails, or ``DamagedFileError``. Standard library alone.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seqlm.files import read_json, write_json
from seqlm.reading import listed, timestamp
from seqlm.requests import claim_number

TAG = re.compile(r"[^\s,=<>!*?\[\]]+")
"""What a tag looks like, so that a filter can name it."""
EMPTY: Mapping[str, Any] = {"tags": [], "text": ""}
"""What is noted about a run without a note."""


def read_notes(study_dir: Path) -> dict[str, Mapping[str, Any]]:
    """Return ``tags`` and ``text`` of each run of a study that has a note, by run id."""
    found: dict[str, Mapping[str, Any]] = {}
    for folder in listed(study_dir / "notes", "[0-9]*"):
        record = read_json(folder / "note.json") or {}  # the process that claimed the number may have been killed
        given = {key: record[key] for key in EMPTY if record.get(key) is not None}
        found |= {run_id: {**found.get(run_id, EMPTY), **given} for run_id in record.get("runs", [])}
    return found


def write_note(study_dir: Path, runs: Iterable[str], tags: Sequence[str] | None, text: str | None) -> None:
    """Write a note about runs, given by their ids. ``None``: their tags, or their text, stay as they are."""
    folder = claim_number(study_dir.absolute() / "notes")
    write_json(folder / "note.json", {"at": timestamp(), "runs": list(runs), "tags": tags, "text": text})
