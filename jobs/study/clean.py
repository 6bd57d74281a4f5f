"""What may be deleted from a study's folder, and its deletion.

A finished run keeps all that a report, a behaviour job or a reader needs: only its last checkpoint goes, which serves
nothing but going on. Whole runs go only if a user has chosen them. Whatever belongs to another user, is
write-protected or is reached through a link stays.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

from jobs.study.folder import at_work, launcher_of, launching, look_at, read_jobs, study_name
from jobs.study.squeue import Scheduler
from jobs.study.studies import stats_below, total_bytes
from seqlm.ends import timestamp
from seqlm.errors import FileError, RunBusyError, UsageError
from seqlm.lease import Terms, live_owner
from seqlm.locks import is_locked
from seqlm.reading import exists, is_file, is_folder, is_link
from seqlm.requests import Requests, file_request
from seqlm.run_layout import BEHAVIOUR_FOLDER, CANARY_FOLDER
from seqlm.rundir import RunDirectory

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


@dataclass(frozen=True, kw_only=True)
class Found:
    """What may be deleted from a study, and what looks like it and stays."""

    leftovers: list[Leftover] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    """A line for each file or folder that stays although it is of one of the kinds."""


def find_leftovers(study_dir: Path, run_ids: Collection[str] | None = None) -> Found:
    """List what may be deleted from a study. Writes nothing.

    With ``run_ids``, it lists the folders of these runs, and nothing else.

    Raises:
        RunBusyError: one of these runs is running or queued.
        UsageError: the study belongs to another user.
        FileError: a folder or a record of the study's jobs cannot be read.
    """
    try:
        if study_dir.stat().st_uid != os.geteuid():
            raise UsageError(f"{study_dir} belongs to another user; clean deletes only in your own studies")
        search = _Search(study_dir)
        return search.found() if run_ids is None else search.chosen(run_ids)
    except OSError as error:
        raise FileError.from_os_error("read", error.filename or study_dir, error) from None


def require_no_launcher(study_dir: Path) -> None:
    """Refuse a study that is being launched.

    Raises:
        RunBusyError: a launcher is at work on the study or on its behaviour jobs.
    """
    for folder in (study_dir, study_dir / BEHAVIOUR_FOLDER):
        if (launcher := launcher_of(folder)) is not None:
            who = f"pid {launcher.pid} on {launcher.host}"
            raise RunBusyError(f"study {study_name(folder)} is being launched ({who}); clean it when that has ended")


def delete_leftovers(
    study_dir: Path, shown: Sequence[Leftover], run_ids: Collection[str] | None = None
) -> list[Leftover]:
    """Delete what was shown, unless it has come into use since; return each item with its ``problem``.

    Holds the launch locks of the study and of its behaviour jobs meanwhile.

    Raises:
        RunBusyError: a launcher is at work on the study or on its behaviour jobs, or as :func:`find_leftovers`.
        UsageError, FileError: as :func:`find_leftovers`.
    """
    with contextlib.ExitStack() as locks:
        locks.enter_context(launching(study_dir))
        if is_folder(study_dir / BEHAVIOUR_FOLDER):
            locks.enter_context(launching(study_dir / BEHAVIOUR_FOLDER))
        now = {item.path for item in find_leftovers(study_dir, run_ids).leftovers}
        deleted = []
        for item in shown:
            problem = None
            if item.path in now:
                problem = _delete(study_dir, item.path)
            elif exists(study_dir / item.path):  # else the launch lock's new owner has removed it
                problem = f"{study_dir / item.path} stays: it has come into use meanwhile"
            deleted.append(replace(item, problem=problem))
        _list_no_more(study_dir, [item.path for item in deleted if item.kind == "run" and item.problem is None])
        return deleted


def _list_no_more(study_dir: Path, deleted: Sequence[Path]) -> None:
    """Request that these runs, relative to the study's folder, are listed no more as runs to train."""
    for folder in dict.fromkeys(path.parent for path in deleted):
        launched = Requests(study_dir / folder).by_run().keys()
        if ids := launched & {path.name for path in deleted if path.parent == folder}:
            runs: dict[str, Any] = {run_id: {} for run_id in sorted(ids)}
            file_request(study_dir / folder, {"kind": "remove", "at": timestamp(), "runs": runs})


def _delete(study_dir: Path, path: Path) -> str | None:
    """Delete a file or folder below a study; return what went wrong. No component below the study may be a link.

    Folders are opened one inside the other, so that no link which somebody puts in place meanwhile is followed.
    """
    handle = os.open(study_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in path.parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=handle)
            os.close(handle)
            handle = inner
        if stat.S_ISDIR(os.stat(path.name, dir_fd=handle, follow_symlinks=False).st_mode):
            # Under a temporary file's name first: a run of which half is deleted must not look like a run.
            doomed = f".{path.name}.{secrets.token_hex(8)}.tmp"
            os.rename(path.name, doomed, src_dir_fd=handle, dst_dir_fd=handle)
            shutil.rmtree(doomed, dir_fd=handle)
        else:
            os.unlink(path.name, dir_fd=handle)
    except FileNotFoundError:
        return None
    except OSError as error:
        return str(FileError.from_os_error("delete", study_dir / path, error))
    finally:
        os.close(handle)
    return None


@final
class _Search:
    """One look at a study's folder."""

    def __init__(self, study_dir: Path) -> None:
        self._study_dir = study_dir
        self._found = Found()
        self._counted: set[tuple[int, int]] = set()
        """Files (device and inode) whose sizes are counted."""
        behaviour = study_dir / BEHAVIOUR_FOLDER
        has_behaviour = is_folder(behaviour) and not is_link(behaviour)
        self._folders = [study_dir, behaviour] if has_behaviour else [study_dir]
        """Of the runs, and of the behaviour jobs."""
        self._scheduler = Scheduler()
        states = self._scheduler.states({job for one in self._folders for job in read_jobs(one).values()})  # one query
        self._alive = {job for job, state in states.items() if state.may_run}

    def found(self) -> Found:
        for folder in self._folders:
            self._add_runs(folder)
        return self._found

    def chosen(self, run_ids: Collection[str]) -> Found:
        for run_id in run_ids:
            for folder in (*self._folders, self._study_dir / CANARY_FOLDER):
                run = RunDirectory(folder / run_id)
                if self._is_busy(run, read_jobs(folder)):
                    raise RunBusyError(f"{run.path} is running or queued; `cancel` stops it; nothing was deleted")
                self._add("run", run.path)
        return self._found

    def _is_busy(self, run: RunDirectory, jobs: Mapping[str, str]) -> bool:
        return _has_worker(run) or jobs.get(run.id) in self._alive

    def _add_runs(self, folder: Path) -> None:
        work, jobs = at_work(folder, self._scheduler), read_jobs(folder)
        for run in RunDirectory.unordered_in(folder):
            if self._is_busy(run, jobs):
                continue
            state = look_at(run, work).observation.state  # "failed" if a file of it is damaged
            if state == "done" and is_file(run.best_checkpoint) and run.best_checkpoint.stat().st_size > 0:
                self._add("last checkpoint", run.last_checkpoint)
                self._add("last checkpoint", run.previous_checkpoint)

    def _add(self, kind: Kind, path: Path) -> None:
        """Add a file or folder, if it exists and nothing forbids its deletion."""
        relative = path.relative_to(self._study_dir)
        try:
            status = path.lstat()
        except FileNotFoundError:
            if kind == "run" and RunDirectory(path).launched():
                self._found.leftovers.append(Leftover(kind=kind, path=relative, size_bytes=0))
            return
        parts, reason = [status], None
        steps = [self._study_dir / step for step in (*reversed(relative.parents), relative)]
        if link := next((step for step in steps[1:] if is_link(step)), None):
            reason = f"{link} is a link" if link != path else "it is a link"
        elif not status.st_mode & stat.S_IWUSR:
            reason = "it is write-protected"
        elif not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            reason = "it is no regular file"
        else:
            parts += stats_below(path) if stat.S_ISDIR(status.st_mode) else []
            if any(one.st_uid != os.geteuid() for one in parts):
                reason = "it belongs to another user"
        if reason:
            self._found.kept.append(f"{path} stays: {reason}")
        else:
            size = total_bytes(parts, self._counted)
            self._found.leftovers.append(Leftover(kind=kind, path=relative, size_bytes=size))


def _has_worker(run: RunDirectory) -> bool:
    """Whether a worker may be at the run, whatever its files say of its state."""
    terms = Terms.from_environment(os.environ)
    return is_locked(run.worker_lock_file) or live_owner(run.lease_dir, terms.stale_seconds) is not None
