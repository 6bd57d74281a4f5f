"""Convert a study of an earlier format into one of this version, in its place: ``seqlm upgrade STUDY``.

A conversion makes new files and folders from old ones, which it only reads. Then they change places:

    upgrade/new/           what the conversion has made so far; the study is as it was
    upgrade/upgrade.json   all is made; from now on, the old files and folders move away, one by one
    earlier/format-2/      where they go; nothing of them is changed or deleted
    upgrade/upgrade.json   now with `are_moved`: the new ones move into the study, `study.json` last

A process that is killed leaves the folder ``upgrade``. Until the next ``upgrade`` has gone on from there, all other
commands refuse the study (:func:`seqlm.rundir.require_format`).

Format 1 is that of version 0.2.0. Format 2 was written by development versions of 0.3. Later formats are read as they
are, so no conversion follows these two.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from jobs.registry import SCHEDULERS, scheduler
from jobs.study import format_1
from jobs.study.folder import launcher_dir, launching
from jobs.study.scheduler import Claim
from seqlm.errors import BackendError, DamagedFileError, RunBusyError, UsageError, file_errors, printable
from seqlm.files import delete, make_directory, open_at, read_json, rename, second_name, write_json
from seqlm.lease import live_owner
from seqlm.reading import below, confine, exists, is_file, is_folder, is_mine, listed
from seqlm.records.batch import Batch, Submitted, Withdrawn
from seqlm.records.requests import Folders
from seqlm.records.studies import Upgrade
from seqlm.rundir import (
    BEHAVIOUR_FOLDER,
    CANARY_FOLDER,
    STUDY_FORMAT,
    UPGRADE_FOLDER,
    format_of,
    study_record_file,
)

Tell: TypeAlias = Callable[[str], None]
Convert: TypeAlias = Callable[[Path, Path, Tell], list[str]]
"""Makes new files and folders of a study in a folder, and returns the paths in the study of the old ones, which they
replace. Lines about what is not as before go to the last argument."""

EARLIER_FOLDER = "earlier"
PLAN_FILE, RUNS_FILE = "plan.json", "runs.json"
"""Names of :class:`Batch` and :class:`Folders` in format 2."""


@dataclass(frozen=True, kw_only=True)
class Upgraded:
    """What an upgrade has done."""

    format: int
    """Of the study before it."""
    earlier: Path
    """Where the old files are."""


def upgrade(study_dir: Path, tell: Tell) -> Upgraded | None:
    """Convert a study, or finish a conversion that was interrupted. ``None``: it is of this version's format.

    Owns the study meanwhile.

    Raises:
        RunBusyError: a launcher is at work on the study, or a run or job of it is not over.
        UsageError: its format is not known, or it belongs to another user.
        FileError: a file cannot be read or written.
    """
    confine(study_dir)
    if not is_mine(study_dir):
        raise UsageError(f"{printable(str(study_dir))} belongs to another user; ask them to upgrade it, or copy it")
    record = Upgrade.read(study_dir / UPGRADE_FOLDER)
    before = None if record is not None else _known_format(study_dir)
    if before == STUDY_FORMAT:
        return None
    with launching(study_dir):
        if record is None:
            assert before is not None, "no record, so the format was asked for"
            record = _convert(study_dir, before, tell)
        return _finish(study_dir, record)


def _known_format(study_dir: Path) -> int:
    """Return the format of a study.

    Raises:
        UsageError: this version does not know it.
    """
    found = format_of(study_dir)
    if found is not None and (found in CONVERSIONS or found == STUDY_FORMAT):
        return found
    name = printable(str(study_dir))
    if found is None:
        raise UsageError(f"{name}: its study.json is missing or damaged, so its format is not known")
    raise UsageError(f"{name}: format {found} is not known; a later version of seqlm has written it")


def _convert(study_dir: Path, before: int, tell: Tell) -> Upgrade:
    """Make the new files of a study, next to its old ones."""
    _require_rest(study_dir, before, tell)
    place = study_dir / UPGRADE_FOLDER
    with file_errors("delete", place), contextlib.suppress(FileNotFoundError):
        delete(place)
    make_directory(place / "new")
    replaced = CONVERSIONS[before](study_dir, place / "new", tell)
    record = Upgrade(format=before, replaced=tuple(replaced))
    record.write(place)
    return record


def _finish(study_dir: Path, record: Upgrade) -> Upgraded:
    """Put the old files aside and the new ones into their places. Goes on from wherever an earlier call was killed."""
    place = study_dir / UPGRADE_FOLDER
    earlier = study_dir / EARLIER_FOLDER / f"format-{record.format}"
    make_directory(earlier)
    if not record.are_moved:
        for name in record.replaced:
            _move(study_dir / name, earlier / name)
        record = replace(record, are_moved=True)
        record.write(place)
    new, last = place / "new", study_record_file(study_dir).name
    for path in sorted(_tops(new), key=lambda path: path.name == last):
        _move(path, study_dir / path.relative_to(new))
    with file_errors("delete", place):
        delete(place)
    return Upgraded(format=record.format, earlier=earlier)


def _tops(new: Path) -> list[Path]:
    """Return what moves into the study in one step each: what is new in ``canary`` and ``behaviour``, which stay."""
    found = []
    for path in listed(new):
        found += listed(path) if path.name in (CANARY_FOLDER, BEHAVIOUR_FOLDER) else [path]
    return found


def _move(source: Path, target: Path) -> None:
    """Move a file or folder, unless it was moved before."""
    if exists(source):
        make_directory(target.parent)
        with file_errors("write", target):
            rename(source, target)


# -- whether anything is at work -------------------------------------------------------------------------------------


def _require_rest(study_dir: Path, before: int, tell: Tell) -> None:
    """Check that nothing works on a study, and that nothing waits to do so.

    Raises:
        RunBusyError: something does.
    """
    for folder in (study_dir, study_dir / BEHAVIOUR_FOLDER, study_dir / CANARY_FOLDER):
        is_launching = folder != study_dir and live_owner(launcher_dir(folder)) is not None
        if is_launching or _is_locked(folder / format_1.LAUNCH_LOCK):
            raise RunBusyError(f"{folder} is being launched; `upgrade` needs a study without live runs")
        for run in listed(folder, "[!.]*-*"):
            if is_folder(run) and (live_owner(run / "lease") is not None or _is_locked(run / format_1.WORKER_LOCK)):
                raise RunBusyError(f"{run} is running; `upgrade` needs a study without live runs")
    if jobs := _live_jobs(study_dir, before, tell):
        raise RunBusyError(f"job {jobs[0]} of {study_dir} waits or runs; end it with `scancel {jobs[0]}` first")


def _is_locked(path: Path) -> bool:
    """Return whether a process of this machine holds a lock of format 1."""
    if not is_file(path):
        return False
    with file_errors("read", path):
        handle = open_at(path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
    return False


def _live_jobs(study_dir: Path, before: int, tell: Tell) -> list[str]:
    """Return the ids of the jobs of a study that wait or run on the cluster of this machine.

    A job that is not seen here, such as on another cluster, finds its files gone and ends when it starts. A run of it
    has an owner once it trains.
    """
    waits = "a job of this study that still waits ends when it starts"
    if before == 1:
        if format_1.jobs_of(study_dir):  # their folders are not recorded, so they cannot be told from those of others
            tell(f"note: {waits}")
        return []
    found = []
    for name in SCHEDULERS:
        try:
            found += scheduler(name).live({claim for claim in _claims(study_dir) if claim.scheduler == name})
        except BackendError as error:
            tell(f"warning: {error}; {waits}")
    return sorted(job.id for job in found)


def _claims(study_dir: Path) -> Iterator[Claim]:
    """Yield the arrays of a study of format 2 with a run that is not done."""
    for launches in _launches(study_dir):
        for folder in listed(launches, "[0-9]*"):
            if exists(folder / Submitted.FILE) and not exists(folder / Withdrawn.FILE):
                batch = Batch()
                with contextlib.suppress(DamagedFileError):
                    batch = Batch.read_file(folder / PLAN_FILE) or Batch()
                for array in batch.arrays:
                    is_over = all(format_1.is_done(launches.parent / run_id) for run_id in array.runs)
                    if array.job is not None and not is_over:
                        yield Claim(array.job, folder, batch.scheduler)


# -- format 2 --------------------------------------------------------------------------------------------------------


def _launches(study_dir: Path) -> Iterable[Path]:
    """Return the folders of requests of a study, its canaries and its behaviour jobs."""
    folders = (study_dir, study_dir / CANARY_FOLDER, study_dir / BEHAVIOUR_FOLDER)
    return [launches for folder in folders if is_folder(launches := folder / "launches")]


def from_2(study_dir: Path, new: Path, tell: Tell) -> list[str]:
    """Give ``plan.json`` and ``runs.json`` their new names. The arguments are those of :data:`Convert`."""
    replaced = []
    for launches in _launches(study_dir):
        replaced.append(str(launches.relative_to(study_dir)))
        for path in (launches, *below(launches)):
            name = {PLAN_FILE: Batch.FILE, RUNS_FILE: Folders.FILE}.get(path.name, path.name)
            target = new / path.relative_to(study_dir).with_name(name)
            if is_folder(path):
                make_directory(target)
            elif is_file(path):
                second_name(path, target)
    file = study_record_file(study_dir)
    write_json(new / file.name, {**(read_json(file) or {}), "version": STUDY_FORMAT})
    return [*replaced, file.name]


CONVERSIONS: Mapping[int, Convert] = {1: format_1.convert, 2: from_2}
"""Format -> what converts a study of it into one of :data:`STUDY_FORMAT`."""
