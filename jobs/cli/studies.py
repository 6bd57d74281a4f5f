"""``list`` and ``clean``: the studies in the runs folder, and what may be deleted from one."""

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.cli.arguments import Arguments
from jobs.cli.naming import chosen_runs, find_trained
from jobs.cli.tables import Column, show
from jobs.cli.view import STATES, STATUS, records_of
from jobs.study.clean import KINDS, Leftover, delete_leftovers, find_leftovers
from jobs.study.folder import observe_study, open_jobs, study_name
from jobs.study.record import StudyRecord
from jobs.study.squeue import Scheduler
from jobs.terminal import confirm, memory, perplexity, say, tell
from seqlm.errors import FileError, SeqlmError, UsageError, printable
from seqlm.reading import exists, is_file, is_folder, listed
from seqlm.rundir import study_record_file
from seqlm.state import State


def show_studies(arguments: Arguments) -> tuple[dict[str, Any], int]:
    """Show every folder of the runs folder, the last changed first; folders without a run come last.

    Hidden folders and reports are left out. SLURM is queried once.
    """
    runs_dir = arguments.runs_dir
    if is_file(runs_dir):
        raise FileError(f"cannot read {runs_dir}: Not a directory")
    folders = [path for path in listed(runs_dir, "[!.]*") if is_folder(path) and not is_file(path / "report.md")]
    scheduler = Scheduler()
    scheduler.states({job for folder in folders for job in _open_jobs(folder)})
    records = [summary(folder, scheduler) for folder in folders]
    records.sort(key=lambda one: one["changed_at"] or "", reverse=True)
    show(COLUMNS, records)
    if not records:
        say(f"no study in {runs_dir}; `run` starts one")
    return {"runs_dir": str(runs_dir), "studies": records}, 0


def _open_jobs(study_dir: Path) -> Iterable[str]:
    with contextlib.suppress(SeqlmError, OSError):  # the summary of this study says what is wrong
        return [job for job, _ in open_jobs(study_dir).values() if job is not None]
    return ()


def summary(study_dir: Path, scheduler: Scheduler) -> dict[str, Any]:
    """Return what ``list`` has of one folder. A damaged one has a ``problem``.

    A run of the manifest that has no folder yet is pending.
    """
    record: dict[str, Any] = {"study": study_dir.name, "path": str(study_dir), "runs": 0, "states": {}}
    record |= {"changed_at": None, "best_val_ppl": None, "problem": None}
    states: Counter[State] = Counter()
    try:
        runs, file = observe_study(study_dir, scheduler), study_record_file(study_dir)
        if not runs and not is_file(file):
            return {**record, "problem": "holds no runs"}
        there = [one.run.path for one in runs if exists(one.run.path)] or [file if is_file(file) else study_dir]
        changed_at = datetime.fromtimestamp(max(path.stat().st_mtime for path in there), UTC)
        best = [one.observation.best_val_ppl for one in runs if one.observation.best_val_ppl is not None]
        record |= {"changed_at": changed_at.isoformat(timespec="seconds"), "best_val_ppl": min(best, default=None)}
        states.update(one.observation.state for one in runs)
        problems: list[str] = []
        states["pending"] += len(StudyRecord(study_dir, problems.append).absent(one.run.id for one in runs))
        record["problem"] = next((line.removeprefix("warning: ") for line in problems), None)
    except SeqlmError as error:
        record["problem"] = str(error)
    except OSError as error:
        record["problem"] = str(FileError.from_os_error("read", error.filename or study_dir, error))
    return {**record, "runs": states.total(), "states": {state: states[state] for state in STATES if states[state]}}


def _state(record: Mapping[str, Any]) -> str:
    """Such as ``5 of 12 done, 1 running, 2 failed``; what is wrong with the folder, if anything is."""
    states = record["states"]
    others = [f"{number} {state}" for state, number in states.items() if state != "done"]
    counts = [f"{states.get('done', 0)} of {record['runs']} done", *others] if record["runs"] else []
    return "; ".join(filter(None, (", ".join(counts), record["problem"])))


def _local_time(changed_at: str | None) -> str:
    return datetime.fromisoformat(changed_at).astimezone().strftime("%Y-%m-%d %H:%M") if changed_at else "-"


COLUMNS = (
    Column("study"),
    Column("state", _state),
    Column("changed", "changed_at", _local_time),
    Column("best val ppl", "best_val_ppl", perplexity, right=True),
)


# -- clean ---------------------------------------------------------------------------------------------------------


def clean_study(arguments: Arguments) -> tuple[dict[str, Any], int]:
    """Show what may be deleted, ask, and delete it."""
    study_dir = find_trained(arguments)
    run_ids = _runs_to_delete(arguments, study_dir)
    items = find_leftovers(study_dir, run_ids)
    only_shows = arguments.dry_run or not items
    name = printable(study_name(study_dir))
    if items:
        show(LEFTOVERS, items)
        for kind in dict.fromkeys(item.kind for item in items):
            say(f"{kind}: {KINDS[kind]}")
    else:
        say(f"nothing to delete in {name}")
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
    return {**document, "items": records}, int(any(item.problem for item in items))


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
        show(STATUS, records_of(runs))
    return [run.run.id for run in runs]


LEFTOVERS = (Column("kind"), Column("path"), Column("size", "size_bytes", memory, right=True))


def _what(items: Sequence[Leftover]) -> str:
    what = "file or folder" if len(items) == 1 else "files and folders"
    return f"{len(items)} {what} ({memory(sum(item.size_bytes for item in items))})"
