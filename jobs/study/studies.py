"""The studies under a runs folder: the state of each, its best perplexity, its size and its last change."""

from __future__ import annotations

import contextlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.study.folder import at_work, look_at, read_jobs
from jobs.study.squeue import Scheduler
from seqlm.errors import FileError, SeqlmError
from seqlm.files import read_json
from seqlm.rundir import FINGERPRINT_DIGITS, RunDirectory, State, slugify, study_record_file

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

    A damaged folder has a ``problem`` and hides no other. Hidden folders are left out. SLURM is queried once.

    Raises:
        FileError: ``runs_dir`` cannot be read.
    """
    try:
        folders = sorted(path for path in runs_dir.iterdir() if path.is_dir() and not path.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FileError.from_os_error("read", runs_dir, error) from None
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
            if not RunDirectory(study_dir / run_id).result_file.exists():
                yield job


def summarize(study_dir: Path, scheduler: Scheduler) -> StudySummary:
    """Summarize one folder. Of a run that is done, only ``result.json`` is read, a tenth of the work of ``status``."""
    found = StudySummary(path=study_dir)
    try:
        runs = list(RunDirectory.unordered_in(study_dir))
        record = study_record_file(study_dir)
        if not runs and not record.is_file():
            next(study_dir.iterdir(), None)  # raises if it cannot be read
            return replace(found, problem="holds no runs")
        found = replace(found, changed_at=max(path.stat().st_mtime for path in [run.path for run in runs] or [record]))
        states: Counter[State] = Counter()
        perplexities = []
        rest = []
        for run in runs:
            result = None
            with contextlib.suppress(FileError, OSError):  # the observation of the run says what is wrong
                result = run.read_result()
            if result is None:
                rest.append(run)
            else:
                states["done"] += 1
                perplexities.append(result.get("best_val_ppl"))
        if rest:
            work = at_work(study_dir, scheduler, {run.id for run in rest})
            for observation in (look_at(run, work).observation for run in rest):
                states[observation.state] += 1
                perplexities.append(observation.best_val_ppl)
        finite = [ppl for ppl in perplexities if isinstance(ppl, int | float) and math.isfinite(ppl)]
        found = replace(found, states=states, best_val_ppl=min(finite, default=None))
        states["pending"] += _absent(read_json(record) or {}, runs)
    except SeqlmError as error:
        return replace(found, problem=str(error))
    except OSError as error:
        return replace(found, problem=str(FileError.from_os_error("read", error.filename or study_dir, error)))
    return found


def _absent(record: Mapping[str, Any], runs: Iterable[RunDirectory]) -> int:
    """Number of runs that ``study.json`` plans and that have no folder yet, nor a folder of a variant (``--set``)."""
    known = {part for run in runs for part in run.id.rpartition("-")[::2]}
    planned = record.get("planned")
    entries = [run for run in planned if isinstance(run, dict)] if isinstance(planned, list) else []
    return sum(
        str(run.get("fingerprint"))[:FINGERPRINT_DIGITS] not in known and slugify(str(run.get("name"))) not in known
        for run in entries
    )


def folder_bytes(folder: Path) -> int | None:
    """Bytes of the files below a folder, each once however many names it has. `None`: a part cannot be read."""
    total = 0
    known: set[tuple[int, int]] = set()
    try:
        for entry in entries_below(folder):
            if entry.is_dir(follow_symlinks=False):
                continue
            with contextlib.suppress(FileNotFoundError):  # a live run has just replaced it
                status = entry.stat(follow_symlinks=False)
                if (status.st_dev, status.st_ino) not in known:
                    total += status.st_size
                if status.st_nlink > 1:
                    known.add((status.st_dev, status.st_ino))
    except OSError:
        return None
    return total


def entries_below(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Every entry below a folder. Links are entries and are not followed.

    Raises:
        OSError: a folder cannot be read. One that is gone by the time it is read has no entries.
    """
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as found:
                entries = list(found)
        except FileNotFoundError:
            continue
        waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        yield from entries
