"""Backend ``slurm``: submit runs as job arrays, which need no launcher.

Inside each job, :func:`slurm.task.run_task` starts the workers. ``status`` reads the run directories, and queries
squeue and sacct once for what these do not have (:mod:`jobs.study.squeue`).
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from jobs.attempt.retry import put_failure_aside
from jobs.backends.base import Finding
from jobs.launch.job import LaunchOptions
from jobs.launch.prepare import waiting_for_budget
from jobs.launch.scheduled import ScheduledBackend
from jobs.plan.capacity import Capacity, Node
from jobs.plan.planned import PlannedRun
from jobs.plan.queue import places
from jobs.spec import Resources, RunSpec
from jobs.study.cancel import Cancelled, wait_for_locks
from jobs.study.folder import read_jobs, write_jobs
from jobs.study.kept_code import Code, live_code
from jobs.study.squeue import ask, parents
from seqlm.errors import BackendError
from seqlm.files import make_directory
from seqlm.reading import listed
from seqlm.rundir import RunDirectory
from slurm.doctor import examine
from slurm.environment import batch_script, sbatch_environment, submit_script
from slurm.settings import SlurmSettings, read_settings
from slurm.site import PartitionFacts, controller_config, partition_facts
from slurm.submission import Batch, Submitter, batches, record, require_plain_path

REPORT_MINUTES = 30


@final
class SlurmBackend(ScheduledBackend):
    """A partition of a cluster."""

    name = "slurm"
    TABLE = SlurmSettings

    @classmethod
    def read(cls, table: Mapping[str, Any], *, where: str) -> SlurmSettings:
        return read_settings(table, where=where, environ=os.environ)

    @classmethod
    def doctor(cls, *, runs_dir: Path, is_asked: bool, wait_s: float) -> list[Finding]:
        """Look for sbatch. The cluster itself is checked only on request, since that takes a job."""
        found = []
        if shutil.which("sbatch") is not None:
            found.append(Finding("ok", "SLURM", "sbatch found; `doctor --backend slurm` looks at the cluster"))
        if is_asked:
            found += examine(cls.read({}, where=""), runs_dir=runs_dir, wait_s=wait_s)
        return found

    @functools.cached_property
    def _partition(self) -> PartitionFacts:
        return partition_facts(self.settings.partition)

    def describe(self) -> str:
        facts = self._partition
        gpus = f", {facts.gpus_per_node} GPUs each" if facts.gpus_per_node else ""
        return f"SLURM, partition {facts.name} ({facts.nodes} nodes{gpus})"

    def capacity(self) -> Capacity:
        facts = self._partition
        nodes = [
            Node(name=f"{number}-{place}", cpus=kind.cpus, gpus={str(index): 1.0 for index in range(kind.gpus)})
            for number, kind in enumerate(facts.kinds)
            for place in range(kind.count)
        ]
        return Capacity(nodes, where=f"partition {facts.name}")

    def resolve(self, spec: RunSpec, at_most: int) -> Resources:
        partition = self._partition  # outside the try: a missing cluster is not an error of this run
        try:
            return partition.resolve(spec.resources, self.settings)
        except BackendError as error:
            raise BackendError(f"{spec.name}: {error}") from None

    def check(self, study_dir: Path) -> None:
        require_plain_path(study_dir.absolute())
        sbatch_environment(self.settings, os.environ)

    def submit(self, todo: Sequence[PlannedRun], options: LaunchOptions, code: Code) -> list[str]:
        study_dir, settings = options.study_dir, self.settings
        submitter = Submitter(options=options, settings=settings, code=code)
        arrays = _arrays(todo, settings, study_dir)
        make_directory(study_dir / "slurm")
        ids: list[str] = []
        started: set[str] = set()
        for array in arrays:
            items = [item for runs in array.batch.jobs for item in runs]
            submission = array.folder.name
            for item in items:
                # Before the job can start, since it would take an old failure as the run's final state. A run that was
                # cancelled since this launch began keeps its mark, and its job leaves it alone.
                if not item.was_cancelled_since:
                    put_failure_aside(item.run, by_hand=item.by_hand, seen=item.observation)
            # Before the jobs can start, since each job checks that its runs belong to its submission.
            write_jobs(study_dir, {}, dict.fromkeys((item.run.id for item in items), submission))
            plans = submitter.plans(array.batch, submission)
            after = None if array.batch.after is None else ids[array.batch.after]
            try:
                submitted = submitter.submit(array.batch, plans, array.folder, nice=array.nice, after=after)
            except BackendError as error:
                if not ids:
                    raise
                before = f"{len(started)} of {len(todo)} runs were submitted before and go on; `run` submits the others"
                raise BackendError(f"{error}; {before}") from None
            jobs = {item.run.id: job for job, runs in zip(submitted, array.batch.jobs, strict=True) for item in runs}
            write_jobs(study_dir, jobs, {})
            record(submitted, plans)
            started |= jobs.keys()
            ids += parents(submitted)
        return ids

    def scripts(self, planned: Sequence[PlannedRun], options: LaunchOptions) -> list[str]:
        """Return the sbatch scripts that :meth:`submit` would submit, one for each array, with ``--live-code``.

        In an array that waits for another one, ``ARRAY_N`` stands for the id of the N-th array.
        """
        require_plain_path(options.study_dir.absolute())
        todo = [item for item in planned if item.action != "skip"]
        if not todo or waiting_for_budget(options):
            return []
        submitter = Submitter(options=options, settings=self.settings, code=live_code())
        return [
            submitter.script(
                array.batch,
                array.folder,
                nice=array.nice,
                after=None if array.batch.after is None else f"ARRAY_{array.batch.after + 1}",
            )
            for array in _arrays(todo, self.settings, options.study_dir)
        ]

    def submit_report(self, study_dir: Path, jobs: Sequence[str], code: Code, *, behaviour: bool | None = None) -> str:
        settings, folder = self.settings, _folder(study_dir, _new_number(study_dir))
        make_directory(folder)
        python = settings.python or shlex.quote(sys.executable)
        command = (
            f"{python} {shlex.quote(str(code.path / 'launch.py'))} report {shlex.quote(str(study_dir.absolute()))}"
        )
        options = {
            "dependency": f"afterany:{':'.join(jobs)}",
            "job-name": f"seqlm-{study_dir.name}-report",
            "output": folder / "report.log",
            "time": max(REPORT_MINUTES, settings.timeout_min) if behaviour is not False else REPORT_MINUTES,
        }
        commands = [f"{command} --no-behaviour"]
        if behaviour is not False:
            commands.append(f"{command} --behaviour" if behaviour else command)
        return submit_script(folder / "report.sh", batch_script(settings, options, *commands), settings)

    @classmethod
    def cancel(cls, study_dir: Path, marked: Sequence[Cancelled]) -> list[Cancelled]:
        """Cancel the jobs of these runs in one call. A job that has other live runs is kept."""
        jobs = read_jobs(study_dir)
        mine = [one for one in marked if one.run.id in jobs]
        wanted = {jobs[one.run.id] for one in mine}
        live = {job for run_id, job in jobs.items() if not RunDirectory(study_dir / run_id).has_ended()}
        try:
            if over := sorted(wanted - live):
                ask("scancel", "--quiet", *over)
        except BackendError as error:
            for one in mine:
                one.problem = one.problem or f"marked as cancelled, but its job runs until it sees the mark: {error}"
        wait_for_locks([one.run.worker_lock_file for one in mine if one.problem is None], seconds=30)
        return [one for one in marked if one.run.id not in jobs]


@dataclass(frozen=True, kw_only=True)
class _Array:
    """An array as it is submitted."""

    batch: Batch
    folder: Path
    """A new one, whose name is that of the submission."""
    nice: int
    """How much lower its priority is."""


def _arrays(todo: Sequence[PlannedRun], settings: SlurmSettings, study_dir: Path) -> list[_Array]:
    """Return the arrays of these runs in the order of their submission, which is that of the queue.

    Raises:
        BackendError: the controller does not answer, or takes no arrays.
    """
    place = places(todo)
    # SLURM starts the jobs of an array in this order.
    found = batches(sorted(todo, key=lambda item: place[item.run.id]), settings, controller_config().max_array_size)
    highest = max(batch.resources.priority for batch in found)
    first = _new_number(study_dir)
    return [
        _Array(batch=batch, folder=_folder(study_dir, number), nice=min(highest - batch.resources.priority, 10_000))
        for number, batch in enumerate(found, start=first)
    ]


def _folder(study_dir: Path, number: int) -> Path:
    return study_dir.absolute() / "slurm" / f"{number:04d}"


def _new_number(study_dir: Path) -> int:
    """Return the number of the next submission's folder.

    Folders are not shared, because a cluster may reuse job ids and submitit would then read files of an older job.
    """
    numbers = [int(path.name) for path in listed(study_dir / "slurm", "[0-9]*") if path.name.isdecimal()]
    return max(numbers, default=0) + 1
