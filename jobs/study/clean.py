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
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from jobs.study.folder import ObservedRun, Observer, launching
from jobs.study.squeue import Scheduler
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
    found, counted, scheduler = Found(), set[tuple[int, int]](), Scheduler()
    try:
        if study_dir.stat().st_uid != os.geteuid():
            raise UsageError(f"{study_dir} belongs to another user; clean deletes only in your own studies")
        for folder in (study_dir, study_dir / BEHAVIOUR_FOLDER, study_dir / CANARY_FOLDER):
            if is_link(folder) and folder != study_dir:
                continue
            observer = Observer(folder, scheduler)
            for run in map(RunDirectory, map(folder.joinpath, run_ids or ())):
                if _is_busy(run, observer.look_at(run)):
                    raise RunBusyError(f"{run.path} is running or queued; `cancel` stops it; nothing was deleted")
                _add(found, "run", study_dir, run.path, counted)
            for run in RunDirectory.unordered_in(folder) if run_ids is None else ():
                seen = observer.look_at(run)  # "failed" if a file of it is damaged
                has_best = is_file(run.best_checkpoint) and run.best_checkpoint.stat().st_size > 0
                if seen.observation.state == "done" and has_best and not _is_busy(run, seen):
                    for path in (run.last_checkpoint, run.previous_checkpoint):
                        _add(found, "last checkpoint", study_dir, path, counted)
    except OSError as error:
        raise FileError.from_os_error("read", error.filename or study_dir, error) from None
    return found


def _is_busy(run: RunDirectory, seen: ObservedRun) -> bool:
    """Return whether a run is running or queued, or a worker may be at it whatever its files say of its state."""
    terms = Terms.from_environment(os.environ)
    has_worker = is_locked(run.worker_lock_file) or live_owner(run.lease_dir, terms.stale_seconds) is not None
    return has_worker or seen.observation.state in ("running", "queued")


def _add(found: Found, kind: Kind, study_dir: Path, path: Path, counted: set[tuple[int, int]]) -> None:
    """Add a file or folder to ``found``, if it exists and nothing forbids its deletion.

    ``counted``: the files (device and inode) whose sizes are counted.
    """
    relative = path.relative_to(study_dir)
    try:
        status = path.lstat()
    except FileNotFoundError:
        if kind == "run" and RunDirectory(path).launched():
            found.leftovers.append(Leftover(kind=kind, path=relative, size_bytes=0))
        return
    parts, reason = [status], None
    steps = [study_dir / step for step in (*reversed(relative.parents), relative)]
    if link := next((step for step in steps[1:] if is_link(step)), None):
        reason = f"{link} is a link" if link != path else "it is a link"
    elif not status.st_mode & stat.S_IWUSR:
        reason = "it is write-protected"
    elif not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        reason = "it is no regular file"
    else:
        parts += _stats_below(path) if stat.S_ISDIR(status.st_mode) else []
        if any(one.st_uid != os.geteuid() for one in parts):
            reason = "it belongs to another user"
    if reason:
        found.kept.append(f"{path} stays: {reason}")
    else:
        found.leftovers.append(Leftover(kind=kind, path=relative, size_bytes=_total_bytes(parts, counted)))


def _total_bytes(parts: Iterable[os.stat_result], known: set[tuple[int, int]]) -> int:
    """Bytes of files, without those of ``known`` (device and inode), to which the files are added."""
    total = 0
    for status in parts:
        file = (status.st_dev, status.st_ino)
        if not stat.S_ISDIR(status.st_mode) and file not in known:
            known.add(file)
            total += status.st_size
    return total


def _stats_below(folder: Path) -> Iterator[os.stat_result]:
    """The status of everything below a folder. Links are not followed.

    Raises:
        OSError: a folder cannot be read. What is gone by the time it is read is left out.
    """
    waiting = [str(folder)]
    while waiting:
        with contextlib.suppress(FileNotFoundError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # a live run has just replaced it
                    status = entry.stat(follow_symlinks=False)
                    yield status
                    if stat.S_ISDIR(status.st_mode):
                        waiting.append(entry.path)


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
                problem = _delete(study_dir / item.path)
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
