"""``list`` and ``clean``: the studies in the runs folder, and what may be deleted from one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.cli.arguments import CleanArguments, ListArguments
from jobs.cli.naming import chosen_runs
from jobs.cli.tables import Column, show
from jobs.cli.view import STATES, STATUS, RunView
from jobs.study.clean import KINDS, Found, Leftover, delete_leftovers, find_leftovers, require_no_launcher
from jobs.study.folder import find_study, is_behaviour_study, study_name
from jobs.study.studies import StudySummary, list_studies
from jobs.terminal import confirm, memory, perplexity, say, tell
from seqlm.errors import UsageError, printable

KEPT_LINES = 10
"""Most lines about files that stay; ``--json`` has all."""


def show_studies(arguments: ListArguments) -> tuple[dict[str, Any], int]:
    """Show the studies."""
    studies = list_studies(arguments.runs_dir, with_sizes=not arguments.no_sizes)
    show(COLUMNS, studies)
    if not studies:
        say(f"no study in {arguments.runs_dir}; `run` starts one")
    return {"runs_dir": str(arguments.runs_dir), "studies": [_record(study) for study in studies]}, 0


def state_text(study: StudySummary) -> str:
    """Such as ``5 of 12 done, 1 running, 2 failed``; what is wrong with the folder, if anything is."""
    others = [f"{study.states[state]} {state}" for state in STATES if state != "done" and study.states.get(state)]
    counts = [f"{study.states.get('done', 0)} of {study.runs} done", *others] if study.runs else []
    return "; ".join(filter(None, (", ".join(counts), study.problem)))


def age(changed_at: float | None, now: float) -> str:
    """Time since a change, such as ``3 days ago``; a dash for none.

    >>> age(1000.0, 1000.0 + 3 * 86400)
    '3 days ago'
    """
    if changed_at is None:
        return "-"
    seconds = max(0.0, now - changed_at)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}s ago"
    return "just now" if seconds < 60 else "1 minute ago"


COLUMNS = (
    Column("study", "name"),
    Column("state", state_text),
    Column("changed", lambda one: age(one.changed_at, time.time())),
    Column("best val ppl", "best_val_ppl", perplexity, right=True),
    Column("size", "size_bytes", memory, right=True),
)


def _record(study: StudySummary) -> dict[str, Any]:
    changed = None if study.changed_at is None else datetime.fromtimestamp(study.changed_at, UTC)
    return {
        "study": study.name,
        "path": str(study.path),
        "runs": study.runs,
        "states": {state: number for state in STATES if (number := study.states.get(state))},
        "changed_at": None if changed is None else changed.isoformat(timespec="seconds"),
        "best_val_ppl": study.best_val_ppl,
        "size_bytes": study.size_bytes,
        "problem": study.problem,
    }


# -- clean ---------------------------------------------------------------------------------------------------------


def clean_study(arguments: CleanArguments) -> tuple[dict[str, Any], int]:
    """Show what may be deleted, ask, and delete it."""
    study_dir = find_study(arguments.study, arguments.runs_dir)
    if is_behaviour_study(study_dir):
        raise UsageError(f"{study_dir} holds behaviour jobs; expected their study: clean {study_dir.parent}")
    run_ids = _runs_to_delete(arguments, study_dir)
    found = find_leftovers(study_dir, run_ids)
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
    outcome = delete_leftovers(study_dir, found.leftovers, run_ids)
    problems = [item.problem for item in outcome if item.problem]
    for line in problems:
        tell(f"error: {line}")
    deleted = [item for item in outcome if not item.problem]
    say(f"deleted {_what(deleted)}")
    return _document(study_dir, outcome, found, dry_run=False), 1 if problems else 0


def _runs_to_delete(arguments: CleanArguments, study_dir: Path) -> list[str] | None:
    """Show the runs that are chosen with ``--runs``, and return their ids. ``None``: the flag is not given."""
    if arguments.runs != bool(arguments.only):
        raise UsageError("--runs and --only belong together: clean STUDY --runs --only state=failed")
    if not arguments.runs:
        return None
    chosen = chosen_runs(arguments, study_dir)
    runs = [run for run in chosen if run.config is not None]
    for run in chosen:
        if run.config is None:  # it may be done, and only look like a failed one
            tell(f"{run.name} stays: {run.observation.reason}")
    if runs:
        show(STATUS, [RunView.of(run) for run in runs])
    return [run.run.id for run in runs]


def _show(study_dir: Path, found: Found) -> None:
    by_kind = {kind: [item.size_bytes for item in found.leftovers if item.kind == kind] for kind in KINDS}
    if found.leftovers:
        show(KIND_COLUMNS, [(kind, sizes) for kind, sizes in by_kind.items() if sizes])
    else:
        say(f"nothing to delete in {printable(study_name(study_dir))}")
    for line in found.kept[:KEPT_LINES]:
        tell(line)
    if len(found.kept) > KEPT_LINES:
        tell(f"{len(found.kept) - KEPT_LINES} more stay; --json lists them")


KIND_COLUMNS = (
    Column("kind", lambda one: one[0]),
    Column("number", lambda one: len(one[1]), right=True),
    Column("size", lambda one: sum(one[1]), memory, right=True),
    Column("", lambda one: KINDS[one[0]]),
)


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
