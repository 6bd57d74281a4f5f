"""The studies under a runs folder: the state of each, its best perplexity, its size and its last change."""

from __future__ import annotations

import contextlib
import math
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from jobs.study.folder import at_work, look_at, read_jobs
from jobs.study.origin import StudyPlan
from jobs.study.squeue import Scheduler
from seqlm.errors import FileError, SeqlmError
from seqlm.reading import exists, is_file, is_folder, listed
from seqlm.run_layout import study_record_file
from seqlm.rundir import RunDirectory, reaches
from seqlm.state import State

THREADS = 8
"""Folders whose sizes are read at the same time: on a network file system each call waits for an answer."""


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
    with ThreadPoolExecutor(THREADS) as pool:
        sizes = pool.map(folder_bytes, folders) if with_sizes else [None] * len(folders)
        found = [summarize(folder, scheduler) for folder in folders]
        found = [replace(one, size_bytes=size) for one, size in zip(found, sizes, strict=True)]
    return sorted(found, key=lambda study: (-(study.changed_at or 0.0), study.name))


def _open_jobs(study_dir: Path) -> Iterable[str]:
    with contextlib.suppress(SeqlmError, OSError):  # the summary of this study says what is wrong
        for run_id, job in read_jobs(study_dir).items():
            if not RunDirectory(study_dir / run_id).is_done():
                yield job


def summarize(study_dir: Path, scheduler: Scheduler) -> StudySummary:
    """Summarize one folder. Of a run that is done, neither metrics nor leases are read, which ``status`` reads."""
    found = StudySummary(path=study_dir)
    try:
        runs = list(RunDirectory.unordered_in(study_dir))
        record = study_record_file(study_dir)
        if not runs and not is_file(record):
            return replace(found, problem="holds no runs")
        there = [run.path for run in runs if exists(run.path)] or [record if is_file(record) else study_dir]
        found = replace(found, changed_at=max(path.stat().st_mtime for path in there))
        best = {run.id: ppl for run in runs if (ppl := _result_of(run)) is not None}
        states: Counter[State] = Counter("done" for _ in best)
        rest = [run for run in runs if run.id not in best]
        if rest:
            work = at_work(study_dir, scheduler, {run.id for run in rest})
            for run in rest:
                seen = look_at(run, work).observation
                states[seen.state] += 1
                best[run.id] = math.inf if seen.best_val_ppl is None else seen.best_val_ppl
        finite = [ppl for ppl in best.values() if math.isfinite(ppl)]
        found = replace(found, states=states, best_val_ppl=min(finite, default=None))
        states["pending"] += len(StudyPlan.of(study_dir).absent(run.id for run in runs))
    except SeqlmError as error:
        return replace(found, problem=str(error))
    except OSError as error:
        return replace(found, problem=str(FileError.from_os_error("read", error.filename or study_dir, error)))
    return found


def _result_of(run: RunDirectory) -> float | None:
    """Return the best perplexity of a run that is done, NaN if it has none. ``None``: another state, or damaged."""
    with contextlib.suppress(FileError, OSError):  # the observation of the run says what is wrong
        result = run.read_result()
        if result is not None and reaches(result, run.read_config()):
            run.read_provenance()
            ppl = result.get("best_val_ppl")
            return ppl if isinstance(ppl, int | float) else math.nan
    return None


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
