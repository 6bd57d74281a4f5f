"""Backend ``slurm``: submit runs as job arrays, which need no launcher.

Inside each job, :func:`slurm.task.run_task` starts the workers. ``status`` reads the run directories, and queries
squeue and sacct once for what these do not have (:mod:`jobs.study.squeue`).
"""

from __future__ import annotations

import functools
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import final

from jobs.attempt.retry import put_failure_aside
from jobs.backends.base import Target
from jobs.launch.job import LaunchOptions
from jobs.launch.prepare import waiting_for_budget
from jobs.manifests.policy import Policy
from jobs.plan.capacity import Capacity, Node
from jobs.plan.planned import PlannedRun
from jobs.plan.queue import places
from jobs.spec import Resources, RunSpec
from jobs.study.folder import ObservedRun, read_all_jobs, write_jobs
from jobs.study.kept_code import Code, live_code
from jobs.study.squeue import ask, parents
from seqlm.errors import BackendError
from seqlm.files import make_directory
from seqlm.reading import listed
from seqlm.rundir import RunDirectory
from seqlm.search import Search
from slurm.environment import batch_script, sbatch_environment, submit_script
from slurm.settings import SlurmSettings
from slurm.site import PartitionFacts, controller_config, partition_facts
from slurm.submission import Batch, Submitter, batches, record, require_plain_path

REPORT_MINUTES = 30


@final
class SlurmTarget(Target):
    """A partition of a cluster as a target of runs."""

    name = "slurm"

    def __init__(self, settings: SlurmSettings) -> None:
        self.settings = settings

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


def check(study_dir: Path, settings: SlurmSettings) -> None:
    """Check what would make a submission impossible, before the first file is written.

    Raises:
        UsageError: SLURM cannot use the folder's path, or a variable named by ``env_pass`` is not set.
    """
    require_plain_path(study_dir.absolute())
    sbatch_environment(settings, os.environ)


def submit(todo: Sequence[PlannedRun], options: LaunchOptions, settings: SlurmSettings, code: Code) -> list[str]:
    """Submit prepared runs, and return the ids of the job arrays. The caller holds the study's lock.

    Raises:
        BackendError: sbatch rejected an array. The arrays before it are submitted and recorded.
    """
    study_dir, place = options.study_dir, places(todo)
    # SLURM starts the jobs of an array in this order.
    found = batches(sorted(todo, key=lambda item: place[item.run.id]), settings, controller_config().max_array_size)
    submitter = Submitter(options=options, settings=settings, code=code)
    make_directory(study_dir / "slurm")
    highest = max(batch.resources.priority for batch in found)
    ids: list[str] = []
    submissions: list[str] = []
    for number, (rung, index, batch) in enumerate(_in_stages(found, options.search, todo)):
        items = [item for runs in batch.jobs for item in runs]
        folder = _new_folder(study_dir)
        if rung is None:
            for item in items:
                # Before the job can start, since it would take an old failure as the run's final state. A run that was
                # cancelled since this launch began keeps its mark, and its job leaves it alone.
                if not item.was_cancelled_since:
                    put_failure_aside(item.run, by_hand=item.by_hand, seen=item.observation)
            # Before the jobs can start, since each job checks that its runs belong to its submission.
            write_jobs(study_dir, {}, dict.fromkeys((item.run.id for item in items), folder.name))
            submissions.append(folder.name)
        plans = submitter.plans(batch, submissions[index], rung=rung)
        nice = min(highest - batch.resources.priority, 10_000)
        after = ":".join(ids[before] for before in _waits_for(number, batch, len(found)))
        submitted = submitter.submit(batch, plans, folder, nice=nice, after=after or None)
        jobs = {item.run.id: job for job, runs in zip(submitted, batch.jobs, strict=True) for item in runs}
        write_jobs(study_dir, jobs, {})
        if rung is None:
            record(submitted, plans)
        ids += parents(submitted)
    return ids


def _in_stages(
    found: Sequence[Batch], search: Search | None, todo: Sequence[PlannedRun]
) -> Iterator[tuple[int | None, int, Batch]]:
    """Yield the arrays to submit: the rung from which an array takes its runs on, its index in ``found``, and itself.

    In a search of mode ``sync`` each array of ``found`` is submitted once more for each rung that a run may reach.
    """
    most = max((item.spec.config.train.epochs for item in todo), default=0)
    rungs = search.rungs if search is not None and search.mode == "sync" else ()
    for rung in (None, *(rung for rung in rungs if rung < most)):
        yield from ((rung, index, batch) for index, batch in enumerate(found))


def _waits_for(number: int, batch: Batch, arrays: int) -> list[int]:
    """Return the indices of the arrays that array ``number`` of :func:`_in_stages` waits for.

    ``arrays`` of them make a stage, which waits for all arrays of the stage before.
    """
    stage = number // arrays
    before = list(range((stage - 1) * arrays, stage * arrays)) if stage else []
    return before if batch.after is None else [*before, stage * arrays + batch.after]


def scripts(
    planned: Sequence[PlannedRun],
    study_dir: Path,
    settings: SlurmSettings,
    policy: Policy,
    search: Search | None = None,
) -> list[str]:
    """Return the sbatch scripts that :func:`submit` would submit, one for each array.

    In an array that waits for others, ``ARRAY_N`` stands for the id of the N-th array.
    """
    options = LaunchOptions(study_dir=study_dir, policy=policy)
    todo = [item for item in planned if item.action != "skip"]
    waits = waiting_for_budget(todo, options)
    todo = [item for item in todo if item.run.id not in waits]
    if not todo:
        return []
    found = batches(todo, settings, controller_config().max_array_size)
    submitter = Submitter(options=options, settings=settings, code=live_code())
    folder = study_dir.absolute() / "slurm" / "0000"
    made = []
    for number, (_, _, batch) in enumerate(_in_stages(found, search, todo)):
        after = ":".join(f"ARRAY_{index + 1}" for index in _waits_for(number, batch, len(found)))
        made.append(submitter.script(batch, folder, after=after or None))
    return made


def submit_report(
    study_dir: Path, jobs: Sequence[str], settings: SlurmSettings, code: Code, *, behaviour: bool | None = None
) -> str:
    """Submit a job that writes the report once all of ``jobs`` have ended, however they ended. Return its id.

    Unless ``behaviour`` is false, the job then computes the behaviour of the models and writes the report again. It
    writes the first report before, in case its time limit ends the computation. If ``behaviour`` is true, it computes
    the behaviour in another user's study as well.
    """
    folder = _new_folder(study_dir)
    make_directory(folder)
    python = settings.python or shlex.quote(sys.executable)
    command = f"{python} {shlex.quote(str(code.path / 'launch.py'))} report {shlex.quote(str(study_dir.absolute()))}"
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


def cancel_jobs(study_dir: Path, runs: Sequence[ObservedRun]) -> None:
    """Cancel the jobs of runs that were marked as cancelled, in one call. A job that has other live runs is kept.

    Raises:
        BackendError: the controller does not answer. Jobs that start later still see the marks.
    """
    jobs = read_all_jobs(study_dir)
    wanted = {job for run in runs for job in jobs.get(run.run.id, ())}
    live = {
        run_id
        for run_id, own in jobs.items()
        if not wanted.isdisjoint(own) and not RunDirectory(study_dir / run_id).has_ended()
    }
    if over := sorted(wanted - {job for run_id in live for job in jobs[run_id]}):
        ask("scancel", "--quiet", *over)


def _new_folder(study_dir: Path) -> Path:
    """Return the path of a new folder for one submission.

    Folders are not shared, because a cluster may reuse job ids and submitit would then read files of an older job.
    """
    numbers = [int(path.name) for path in listed(study_dir / "slurm", "[0-9]*") if path.name.isdigit()]
    return study_dir.absolute() / "slurm" / f"{max(numbers, default=0) + 1:04d}"
