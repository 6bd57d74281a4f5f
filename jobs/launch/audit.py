"""Audits of a study: draw the epochs to train again, and launch a job for each run.

An audit is a study of its own, ``runs/<study>/audits/<number>/``. Its jobs are launched like runs, by the same launcher
on the same backends, and run the code of this process, not that of the study.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.backends.base import Backend
from jobs.launch.prepare import find_data
from jobs.spec import RunSpec
from jobs.study.folder import ObservedRun
from jobs.study.kept_code import source_tree
from seqlm.audit import Stretch, stretches_of
from seqlm.reading import exists, listed, read_archive, read_bytes
from seqlm.records.attempts import Worker
from seqlm.records.runs import AuditEnd, AuditFile, Result
from seqlm.records.studies import TaskFile
from seqlm.rundir import AUDITS_FOLDER, RunDirectory

WORKER = ("-m", "seqlm.training.audit")
"""Command line of a rank, without the interpreter and the folder of the job."""
NICE = 10000
"""How much lower the priority of audits on SLURM is than that of other jobs of the user."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Which epochs of a study are trained again."""

    stretches: Mapping[str, Sequence[Stretch]]
    """By the id of the run."""
    possible: int
    """Stretches from which they were drawn."""
    epochs: int
    """All epochs of the runs."""

    @property
    def number(self) -> int:
        return sum(map(len, self.stretches.values()))


def draw(runs: Sequence[ObservedRun], share: float, seed: int, *, whole: bool) -> Drawn:
    """Draw stretches at random, in proportion to their steps, until they have ``share`` of all steps.

    ``whole``: all epochs of each run, from its seed to its end, in place of stretches.

    Raises:
        FileError: a file of a run cannot be read.
    """
    lengths = {run.run.id: (run.run.read_result() or Result()).epochs or 0 for run in runs}
    if whole:
        found = {run_id: [Stretch(0, epochs)] for run_id, epochs in lengths.items() if epochs}
        return Drawn(stretches=found, possible=len(found), epochs=sum(lengths.values()))
    total, possible = 0, []
    for run in runs:
        epochs, _ = run.run.read_metrics()
        steps = epochs[-1].get("steps") if epochs else 1
        weight = steps if type(steps) is int and steps > 0 else 1
        total += weight * lengths[run.run.id]
        possible += [(run.run.id, stretch, weight) for stretch in stretches_of(run.run, lengths[run.run.id])]
    generator = random.Random(seed)
    # Exponential waiting times with these rates come in the order of a draw without replacement.
    order = sorted(possible, key=lambda one: generator.expovariate(one[2]))
    stretches: dict[str, list[Stretch]] = {}
    taken = 0
    for run_id, stretch, weight in order:
        if taken >= share * total:
            break
        stretches.setdefault(run_id, []).append(stretch)
        taken += weight
    return Drawn(stretches=stretches, possible=len(possible), epochs=sum(lengths.values()))


def open_audit(study_dir: Path) -> tuple[Path, AuditFile] | None:
    """Return the newest audit of a study if its findings were never shown: it was interrupted, or sent with --no-wait.

    Raises:
        FileError: a file of it cannot be read.
    """
    for folder in reversed(listed(study_dir / AUDITS_FOLDER, "[0-9]*")):
        file = AuditFile.read(folder)
        if file is not None:
            return None if exists(folder / AuditEnd.FILE) else (folder, file)
    return None


def specs_of(runs: Sequence[ObservedRun], data: Path | None) -> list[RunSpec]:
    """Return the audited runs as a launcher needs them, on as many ranks and the kind of device that each was done on.

    ``data``: path of the corpus; ``None``: as its launch had it.

    Raises:
        ModelError, FileError: a file cannot be read, or the files of a model have changed.
    """
    found = []
    for run in runs:
        spec, worker = run.to_spec(), worker_of(run.run)
        resources = replace(spec.resources, ranks=worker.ranks or spec.resources.ranks)
        if worker.device is not None and not worker.multiprocessors:
            resources = replace(resources, gpus=0)
        found.append(replace(spec, resources=resources, data_path=find_data(data, spec.data_path), first_seed=None))
    return found


def worker_of(run: RunDirectory) -> Worker:
    """Return what the attempt that finished a run has recorded of itself."""
    return run.read_worker((run.read_result() or Result()).attempt or 1)


def tasks_of(runs: Sequence[ObservedRun], drawn: Drawn) -> dict[str, TaskFile]:
    """Return what the job of each run has to compute, by the id of the run."""
    tasks = {}
    for run in runs:
        stretches: list[list[int]] = [[one.start, one.end] for one in drawn.stretches.get(run.run.id, ())]
        tasks[run.run.id] = TaskFile(settings={"stretches": stretches})
    return tasks


def elsewhere(place: Backend, runs: Sequence[ObservedRun]) -> None:
    """Have a SLURM backend use a low priority, and other nodes than the runs had."""
    settings: Any = place.settings
    workers = [run.run.read_worker(number) for run in runs for number in run.run.attempts()]
    exclude = ",".join(sorted({name for name in (settings.exclude, *(worker.node for worker in workers)) if name}))
    place.settings = replace(settings, exclude=exclude or None, sbatch={"nice": NICE, **settings.sbatch})


def code_differs(study_dir: Path) -> list[str]:
    """Return the files of ``seqlm`` in the kept code of a study that differ from the installed ones.

    Only compared: nothing of it is run.

    Raises:
        FileError: an archive is damaged.
    """
    root, differ = source_tree(), dict[str, None]()
    for archive in listed(study_dir / "code", "*.zip"):
        for name, content in read_archive(archive).items():
            if name.startswith("seqlm/") and name.endswith(".py") and _installed(root / name) != content:
                differ[name] = None
    return list(differ)


def _installed(path: Path) -> bytes | None:
    try:
        return read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
