"""``list`` and ``clean``: the studies in the runs folder, and what may be deleted from one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.cli.arguments import Arguments
from jobs.cli.naming import chosen_runs, find_trained
from jobs.cli.tables import Column, show
from jobs.cli.view import STATES, STATUS, view_of
from jobs.study.clean import KINDS, Leftover, delete_leftovers, find_leftovers
from jobs.study.folder import study_name
from jobs.study.studies import StudySummary, list_studies
from jobs.terminal import confirm, memory, perplexity, say, tell
from seqlm.errors import UsageError, printable

KEPT_LINES = 10
"""Most lines about files that stay; ``--json`` has all."""


def show_studies(arguments: Arguments) -> tuple[dict[str, Any], int]:
    """Show the studies."""
    studies = list_studies(arguments.runs_dir, with_sizes=not arguments.no_sizes)
    show(COLUMNS, studies)
    if not studies:
        say(f"no study in {arguments.runs_dir}; `run` starts one")
    records = [
        {
            "study": one.name,
            "path": str(one.path),
            "runs": one.runs,
            "states": {state: number for state in STATES if (number := one.states.get(state))},
            "changed_at": one.changed_at and datetime.fromtimestamp(one.changed_at, UTC).isoformat(timespec="seconds"),
            **{key: getattr(one, key) for key in ("best_val_ppl", "size_bytes", "problem")},
        }
        for one in studies
    ]
    return {"runs_dir": str(arguments.runs_dir), "studies": records}, 0


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


# -- clean ---------------------------------------------------------------------------------------------------------


def clean_study(arguments: Arguments) -> tuple[dict[str, Any], int]:
    """Show what may be deleted, ask, and delete it."""
    study_dir = find_trained(arguments)
    run_ids = _runs_to_delete(arguments, study_dir)
    found = find_leftovers(study_dir, run_ids)
    items, only_shows = found.leftovers, arguments.dry_run or not found.leftovers
    name = printable(study_name(study_dir))
    by_kind = {kind: [item.size_bytes for item in items if item.kind == kind] for kind in KINDS}
    if items:
        show(KIND_COLUMNS, [(kind, sizes) for kind, sizes in by_kind.items() if sizes])
    else:
        say(f"nothing to delete in {name}")
    for line in found.kept[:KEPT_LINES]:
        tell(line)
    if len(found.kept) > KEPT_LINES:
        tell(f"{len(found.kept) - KEPT_LINES} more stay; --json lists them")
    if not only_shows:
        what = f"{_what(items)} of {name}"
        if not arguments.yes:
            confirm(
                f"delete {what}",
                without_terminal=f"clean would delete {what}; add --yes to delete, or --dry-run to look",
                refused="nothing is deleted; expected y or yes",
            )
        items = delete_leftovers(study_dir, items, run_ids)
        for item in items:
            if item.problem:
                tell(f"error: {item.problem}")
        say(f"deleted {_what([item for item in items if not item.problem])}")
    freed = 0 if only_shows else sum(item.size_bytes for item in items if item.problem is None)
    records = [{**vars(item), "path": str(item.path)} for item in items]
    document = {"study": study_dir.name, "dry_run": arguments.dry_run, "freed_bytes": freed}
    return {**document, "items": records, "kept": found.kept}, int(any(item.problem for item in items))


def _runs_to_delete(arguments: Arguments, study_dir: Path) -> list[str] | None:
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
        show(STATUS, [view_of(run, measured=False) for run in runs])
    return [run.run.id for run in runs]


KIND_COLUMNS = (
    Column("kind", lambda one: one[0]),
    Column("number", lambda one: len(one[1]), right=True),
    Column("size", lambda one: sum(one[1]), memory, right=True),
    Column("", lambda one: KINDS[one[0]]),
)


def _what(items: Sequence[Leftover]) -> str:
    what = "file or folder" if len(items) == 1 else "files and folders"
    return f"{len(items)} {what} ({memory(sum(item.size_bytes for item in items))})"
