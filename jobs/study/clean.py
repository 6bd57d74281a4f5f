"""What may be deleted from a study's folder, and its deletion.

A finished run keeps all that a report, a behaviour job or a reader needs: only its last checkpoint goes, which serves
nothing but going on. Whole runs go only if a user has chosen them. What is a link, or is reached through one, stays.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from jobs.study.folder import Observer, launching
from jobs.study.squeue import Scheduler
from seqlm.errors import FileError, RunBusyError, UsageError, file_errors
from seqlm.lease import live_owner
from seqlm.reading import below, exists, is_file, is_folder, is_link, timestamp
from seqlm.requests import Requests, file_request
from seqlm.rundir import BEHAVIOUR_FOLDER, CANARY_FOLDER, RunDirectory

Kind: TypeAlias = Literal["run", "last checkpoint"]

KINDS: dict[Kind, str] = {
    "run": "chosen with --runs, with their results, behaviour jobs and canaries",
    "last checkpoint": "of runs that are done; their best.pt stays, and they cannot go on to more epochs",
}
"""Each kind, in the order in which it is shown, with a note for a person."""


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """A file or folder that may be deleted."""

    kind: Kind
    path: Path
    """Relative to the study's folder."""
    size_bytes: int
    problem: str | None = None
    """Why it was not deleted; `None`: it was, or nothing has been tried."""


def find_leftovers(study_dir: Path, run_ids: Collection[str] | None = None) -> list[Leftover]:
    """List what may be deleted from a study. Writes nothing.

    With ``run_ids``, it lists the folders of these runs, and nothing else.

    Raises:
        RunBusyError: one of these runs is running or queued.
        UsageError: the study belongs to another user.
        FileError: a folder or a record of the study's jobs cannot be read.
    """
    found: list[Leftover] = []
    scheduler = Scheduler()

    def add(kind: Kind, path: Path) -> None:
        relative = path.relative_to(study_dir)
        if not any(is_link(study_dir / step) for step in (relative, *relative.parents[:-1])):
            files = [one for one in (path, *below(path)) if exists(one) and not is_folder(one)]
            found.append(Leftover(kind=kind, path=relative, size_bytes=sum(one.lstat().st_size for one in files)))

    with file_errors("read", study_dir, within=True):
        if study_dir.stat().st_uid != os.geteuid():
            raise UsageError(f"{study_dir} belongs to another user; clean deletes only in your own studies")
        for folder in (study_dir, study_dir / BEHAVIOUR_FOLDER, study_dir / CANARY_FOLDER):
            observer = Observer(folder, scheduler)
            chosen = [RunDirectory(folder / run_id) for run_id in run_ids or ()]
            for run in RunDirectory.unordered_in(folder) if run_ids is None else chosen:
                state = observer.look_at(run).observation.state  # "failed" if a file of it is damaged
                # A worker may be at it whatever its files say of its state.
                is_busy = live_owner(run.lease_dir) is not None or state in ("running", "queued")
                if run_ids is not None and is_busy:
                    raise RunBusyError(f"{run.path} is running or queued; `cancel` stops it; nothing was deleted")
                if run_ids is not None and (exists(run.path) or run.launched()):
                    add("run", run.path)
                elif run_ids is None and state == "done" and not is_busy:
                    has_best = is_file(run.best_checkpoint) and run.best_checkpoint.stat().st_size > 0
                    for path in (run.last_checkpoint, run.previous_checkpoint) if has_best else ():
                        if exists(path):
                            add("last checkpoint", path)
    return found


def delete_leftovers(
    study_dir: Path, shown: Sequence[Leftover], run_ids: Collection[str] | None = None
) -> list[Leftover]:
    """Delete what was shown, unless it has come into use since; return each item with its ``problem``.

    Owns the study and its behaviour jobs meanwhile.

    Raises:
        RunBusyError: a launcher is at work on the study or on its behaviour jobs, or as :func:`find_leftovers`.
        UsageError, FileError: as :func:`find_leftovers`.
    """
    with contextlib.ExitStack() as owned:
        owned.enter_context(launching(study_dir))
        if is_folder(study_dir / BEHAVIOUR_FOLDER):
            owned.enter_context(launching(study_dir / BEHAVIOUR_FOLDER))
        now = {item.path for item in find_leftovers(study_dir, run_ids)}
        in_use = "stays: it has come into use meanwhile"
        deleted = [
            replace(item, problem=_delete(study_dir / item.path) if item.path in now else f"{item.path} {in_use}")
            for item in shown
        ]
        gone = [item.path for item in deleted if item.kind == "run" and item.problem is None]
        for folder in dict.fromkeys(path.parent for path in gone):  # their runs are listed no more as runs to train
            names = {path.name for path in gone if path.parent == folder}
            if ids := sorted(names & Requests(study_dir / folder).by_run().keys()):
                runs: dict[str, Any] = {run_id: {} for run_id in ids}
                file_request(study_dir / folder, {"kind": "remove", "at": timestamp(), "runs": runs})
        return deleted


def _delete(path: Path) -> str | None:
    """Delete a file or folder; return what went wrong. A link inside a folder goes, and what it names stays."""
    try:
        if is_folder(path):
            # Under a temporary file's name first: a run of which half is deleted must not look like a run.
            path = path.rename(path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp"))
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        return str(FileError.from_os_error("delete", path, error))
    return None
