"""The studies under a runs folder: the state of each, its best perplexity, its size and its last change."""

from __future__ import annotations

import contextlib
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from jobs.study.folder import observe_study, open_jobs
from jobs.study.origin import StudyPlan
from jobs.study.squeue import Scheduler
from seqlm.errors import FileError, SeqlmError
from seqlm.reading import exists, is_file, is_folder, listed
from seqlm.run_layout import study_record_file
from seqlm.state import State


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """One folder under the runs folder."""

    path: Path
    states: Mapping[State, int] = field(default_factory=dict)
    """Number of runs in each state. A run of the manifest that has no folder yet is pending."""
    changed_at: float | None = None
    """Last change of a run, in seconds since 1970. `None`: the folder holds no run."""
    best_val_ppl: float | None = None
    """Lowest validation perplexity of all runs."""
    size_bytes: int | None = None
    """Of all files below the folder. `None`: not asked for, or not readable."""
    problem: str | None = None
    """What is wrong with the folder, in one line."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def runs(self) -> int:
        """Number of runs, those without a folder included."""
        return sum(self.states.values())


def list_studies(runs_dir: Path, *, with_sizes: bool = True) -> list[StudySummary]:
    """Return every folder below ``runs_dir``, the last changed first; folders without a run come last.

    A damaged folder has a ``problem`` and hides no other. Hidden folders and reports are left out. SLURM is queried
    once.

    Raises:
        FileError: ``runs_dir`` cannot be read.
    """
    if is_file(runs_dir):
        raise FileError(f"cannot read {runs_dir}: Not a directory")
    folders = [path for path in listed(runs_dir, "[!.]*") if is_folder(path) and not is_file(path / "report.md")]
    scheduler = Scheduler()
    scheduler.states({job for folder in folders for job in _open_jobs(folder)})  # one query for all studies
    found = [summarize(folder, scheduler) for folder in folders]
    found = [replace(one, size_bytes=folder_bytes(one.path)) if with_sizes else one for one in found]
    return sorted(found, key=lambda study: (-(study.changed_at or 0.0), study.name))


def _open_jobs(study_dir: Path) -> Iterable[str]:
    with contextlib.suppress(SeqlmError, OSError):  # the summary of this study says what is wrong
        return open_jobs(study_dir).values()
    return ()


def summarize(study_dir: Path, scheduler: Scheduler) -> StudySummary:
    """Summarize one folder."""
    found = StudySummary(path=study_dir)
    try:
        runs = observe_study(study_dir, scheduler)
        record = study_record_file(study_dir)
        if not runs and not is_file(record):
            return replace(found, problem="holds no runs")
        there = [one.run.path for one in runs if exists(one.run.path)] or [record if is_file(record) else study_dir]
        states: Counter[State] = Counter(one.observation.state for one in runs)
        best = [one.observation.best_val_ppl for one in runs if one.observation.best_val_ppl is not None]
        changed_at = max(path.stat().st_mtime for path in there)
        found = replace(found, changed_at=changed_at, states=states, best_val_ppl=min(best, default=None))
        states["pending"] += len(StudyPlan.of(study_dir).absent(one.run.id for one in runs))
    except SeqlmError as error:
        return replace(found, problem=str(error))
    except OSError as error:
        return replace(found, problem=str(FileError.from_os_error("read", error.filename or study_dir, error)))
    return found


def folder_bytes(folder: Path) -> int | None:
    """Bytes of the files below a folder, each once however many names it has. `None`: a part cannot be read."""
    try:
        return total_bytes(stats_below(folder), set())
    except OSError:
        return None


def total_bytes(parts: Iterable[os.stat_result], known: set[tuple[int, int]]) -> int:
    """Bytes of files, without those of ``known`` (device and inode), to which the files are added."""
    total = 0
    for status in parts:
        file = (status.st_dev, status.st_ino)
        if not stat.S_ISDIR(status.st_mode) and file not in known:
            known.add(file)
            total += status.st_size
    return total


def stats_below(folder: Path) -> Iterator[os.stat_result]:
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
