"""``clean``: delete from a study what nothing needs any more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.cli.arguments import CleanArguments
from jobs.study.clean import KINDS, Found, Leftover, delete_leftovers, find_leftovers, require_no_launcher
from jobs.study.folder import find_study, is_behaviour_study, study_name
from jobs.terminal import confirm, memory, say, say_table, table, tell
from seqlm.errors import UsageError, printable

KEPT_LINES = 10
"""Most lines about files that stay; ``--json`` has all."""


def clean_study(arguments: CleanArguments) -> tuple[dict[str, Any], int]:
    """Show what may be deleted, ask, and delete it.

    Raises:
        UsageError: there is no such study, it belongs to another user, or the answer is not yes.
        RunBusyError: the study is being launched.
        FileError: a file of the study cannot be read.
    """
    study_dir = find_study(arguments.study, arguments.runs_dir)
    if is_behaviour_study(study_dir):
        raise UsageError(f"{study_dir} holds behaviour jobs; expected their study: clean {study_dir.parent}")
    found = find_leftovers(study_dir)
    if found.leftovers and not arguments.dry_run:
        require_no_launcher(study_dir)
    _show(study_dir, found)
    if arguments.dry_run or not found.leftovers:
        return _document(study_dir, found.leftovers, found, dry_run=arguments.dry_run), 0
    if not arguments.yes:
        what = f"{_what(found.leftovers)} of {printable(study_name(study_dir))}"
        confirm(
            f"delete {what}",
            without_terminal=f"clean would delete {what}; add --yes to delete, or --dry-run to look",
            refused="nothing is deleted; expected y or yes",
        )
    outcome = delete_leftovers(study_dir, found.leftovers)
    problems = [item.problem for item in outcome if item.problem]
    for line in problems:
        tell(f"error: {line}")
    deleted = [item for item in outcome if not item.problem]
    say(f"deleted {_what(deleted)}")
    return _document(study_dir, outcome, found, dry_run=False), 1 if problems else 0


def _show(study_dir: Path, found: Found) -> None:
    rows = []
    for kind, note in KINDS.items():
        items = [item for item in found.leftovers if item.kind == kind]
        if items:
            rows.append([kind, str(len(items)), memory(sum(item.size_bytes for item in items)), note])
    if rows:
        say_table(table(["kind", "number", "size", ""], rows, right=(1, 2)))
    else:
        say(f"nothing to delete in {printable(study_name(study_dir))}")
    for line in found.kept[:KEPT_LINES]:
        tell(line)
    if len(found.kept) > KEPT_LINES:
        tell(f"{len(found.kept) - KEPT_LINES} more stay; --json lists them")


def _what(items: Sequence[Leftover]) -> str:
    what = "file or folder" if len(items) == 1 else "files and folders"
    return f"{len(items)} {what} ({memory(sum(item.size_bytes for item in items))})"


def _document(study_dir: Path, items: Sequence[Leftover], found: Found, *, dry_run: bool) -> dict[str, Any]:
    return {
        "study": study_dir.name,
        "dry_run": dry_run,
        "freed_bytes": 0 if dry_run else sum(item.size_bytes for item in items if item.problem is None),
        "items": [
            {"kind": item.kind, "path": str(item.path), "size_bytes": item.size_bytes, "problem": item.problem}
            for item in items
        ],
        "kept": found.kept,
    }
