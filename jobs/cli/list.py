"""``list``: the studies under the runs folder."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from jobs.cli.arguments import ListArguments
from jobs.cli.view import STATES
from jobs.study.studies import StudySummary, list_studies
from jobs.terminal import memory, perplexity, say, say_table, table


def show_studies(arguments: ListArguments) -> tuple[dict[str, Any], int]:
    """Show the studies.

    Raises:
        FileError: the runs folder cannot be read.
    """
    studies = list_studies(arguments.runs_dir, with_sizes=not arguments.no_sizes)
    now = time.time()
    rows = [
        [
            study.name,
            state_text(study),
            age(study.changed_at, now),
            perplexity(study.best_val_ppl),
            memory(study.size_bytes),
        ]
        for study in studies
    ]
    say_table(table(["study", "state", "changed", "best val ppl", "size"], rows, right=(3, 4)))
    if not studies:
        say(f"no study in {arguments.runs_dir}; `run` starts one")
    return {"runs_dir": str(arguments.runs_dir), "studies": [_record(study) for study in studies]}, 0


def state_text(study: StudySummary) -> str:
    """Such as ``5 of 12 done, 1 running, 2 failed``; what is wrong with the folder, if anything is."""
    others = [f"{study.states[state]} {state}" for state in STATES if state != "done" and study.states.get(state)]
    counts = [f"{study.states.get('done', 0)} of {study.runs} done", *others] if study.runs else []
    return "; ".join([*([", ".join(counts)] if counts else []), *([study.problem] if study.problem else [])])


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
