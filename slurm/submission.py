"""Submit runs as job arrays: group runs, write one plan for all jobs and a script for each array, and call sbatch."""

from __future__ import annotations

import functools
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.attempt.supervisor import progress_variables
from jobs.launch.job import LaunchOptions
from jobs.plan.planned import PlannedRun
from jobs.spec import Resources
from jobs.study.budget import Budget, hours_of
from jobs.study.folder import ARRAY_FILE, PLAN_FILE, study_name
from jobs.study.kept_code import Code
from seqlm.errors import BackendError
from seqlm.files import write_json
from seqlm.requests import Request
from slurm.environment import batch_script, plain_env, submit_script
from slurm.plan import ArrayPlan, JobPlan
from slurm.settings import SlurmSettings

DEFAULT_NICE = 100
"""What ``--nice`` without a value means to sbatch."""
END_SECONDS = 10
"""How long the processes of a job on other nodes may take to end after that of its first node."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One job array: runs of equal resources, in the order in which they start."""

    jobs: tuple[tuple[PlannedRun, ...], ...]
    """The runs of each job: one, or several that share a GPU."""

    @property
    def resources(self) -> Resources:
        return self.jobs[0][0].spec.resources

    @property
    def runs_per_job(self) -> int:
        return max(len(runs) for runs in self.jobs)


def batches(todo: Sequence[PlannedRun], settings: SlurmSettings, max_array_size: int) -> list[Batch]:
    """Group runs of equal resources into arrays. ``todo`` is in queue order, and arrays keep that order.

    ``max_array_size`` is the cluster's MaxArraySize, the maximum number of jobs of an array.

    Raises:
        BackendError: the cluster takes no job arrays.
    """
    if max_array_size < 1:
        raise BackendError("this cluster takes no job arrays (MaxArraySize is 0); ask its administrator to allow some")
    groups: dict[Resources, list[PlannedRun]] = {}
    for item in todo:
        groups.setdefault(item.spec.resources, []).append(item)
    found = []
    for wanted, items in groups.items():
        jobs = _chunks(items, settings.runs_per_job(wanted))
        found += [Batch(jobs=chunk) for chunk in _chunks(jobs, max_array_size)]
    return found


def _chunks(items: Sequence[Any], size: int) -> list[tuple[Any, ...]]:
    return [tuple(items[start : start + size]) for start in range(0, len(items), size)]


@dataclass(frozen=True, kw_only=True)
class Submission:
    """The job arrays of one launch."""

    batches: Sequence[Batch]
    options: LaunchOptions
    settings: SlurmSettings
    code: Code
    folder: Path
    """That of the request."""

    def submit(self, request: Request) -> list[str]:
        """Write the plan and submit the arrays one after the other; return their ids.

        Raises:
            BackendError: sbatch rejected an array. The arrays before it are submitted; the message says so.
            UsageError: a variable named by ``env_pass`` is not set.
        """
        self._plan(request.number).write(self.folder / PLAN_FILE)
        ids: list[str] = []
        for number in range(len(self.batches)):
            script = self.script(number, after=ids[-1] if ids else None)
            try:
                job = submit_script(self.folder / f"array-{number}.sh", script, self.settings)
            except BackendError as error:
                error = BackendError(f"sbatch rejected the job: {error}")
                if not ids:
                    raise error from None
                started = sum(len(runs) for batch in self.batches[:number] for runs in batch.jobs)
                before = f"{started} of {len(request.runs)} runs were submitted before and go on"
                raise BackendError(f"{error}; {before}; `run` submits the others") from None
            write_json(self.folder / ARRAY_FILE.format(number), {"id": job})
            ids.append(job)
        return ids

    def _plan(self, request: int) -> JobPlan:
        settings, data = self.settings, {}
        for item in (item for batch in self.batches for runs in batch.jobs for item in runs):
            if item.spec.data_path is not None:
                data[item.run.id] = str(item.spec.data_path.absolute())
        return JobPlan(
            study_dir=self.options.study_dir.absolute(),
            request=request,
            arrays=tuple(
                ArrayPlan(
                    jobs=tuple(tuple(item.run.id for item in runs) for runs in batch.jobs),
                    resources=batch.resources,
                    timeout_min=self._timeout_min(batch),
                )
                for batch in self.batches
            ),
            worker=self.options.worker,
            env={**plain_env(settings), **progress_variables(settings.progress_s)},
            code=self.code.path,
            data=data,
            policy=self.options.policy,
            search=self.options.search,
            signal_before_s=settings.signal_before_s,
            exclude=settings.exclude,
            must_have_nodes=bool(settings.nodelist or settings.reservation or "nodefile" in settings.sbatch),
        )

    @functools.cached_property
    def _budget(self) -> Budget:
        return Budget(self.options.study_dir, self.options.policy)

    def _timeout_min(self, batch: Batch) -> int:
        """Return the time limit of the jobs of an array in minutes: that of the settings, cut to what is left.

        A job that uses up the study's budget alone still has the time to save before its limit.
        """
        limit, in_an_hour = self.settings.timeout_min, hours_of(batch.resources, 3600 * batch.runs_per_job)
        seconds = 3600 * self._budget.times_left(in_an_hour) + self.settings.signal_before_s
        return limit if math.isinf(seconds) else min(limit, 1 + math.ceil(seconds / 60))

    def script(self, number: int, *, after: str | None = None) -> str:
        """Return the script of an array. ``after``: the id of the array before it.

        SLURM limits the jobs of one array alone. If runs at once are limited, each array therefore waits for the one
        before.
        """
        settings, batch, limit = self.settings, self.batches[number], self.settings.max_parallel
        resources = batch.resources
        nodes, ranks_per_node = settings.nodes(resources)
        cpus = (resources.cpus or 1) * batch.runs_per_job * ranks_per_node
        gpus = ranks_per_node if resources.gpus == 1 else 1  # runs that share a GPU are in the same job
        at_once = f"%{max(1, limit // batch.runs_per_job)}" if limit is not None else ""
        options: dict[str, Any] = {
            "array": f"0-{len(batch.jobs) - 1}{at_once}",
            "job-name": f"seqlm-{study_name(self.options.study_dir).replace('/', '-')}",
            "time": self._timeout_min(batch),
            "nodes": nodes,
            "ntasks-per-node": 1,
            "cpus-per-task": cpus,
            "gpus-per-node": gpus if resources.gpus else None,
            "mem": None if settings.mem_gb is None else f"{round(settings.mem_gb * 1024)}M",
            "signal": f"USR2@{settings.signal_before_s}",
            "requeue": True,
            "chdir": self.code.path,
            "output": self.folder / f"array-{number}_%a.out",
            "nice": self._nice(batch),
            "dependency": f"afterany:{after}" if after is not None and limit is not None else None,
            "mail-user": settings.mail_user,
            "mail-type": settings.mail_type,
        }
        path = f"export PYTHONPATH={shlex.quote(str(self.code.path))}${{PYTHONPATH:+:$PYTHONPATH}}"
        python = settings.python or shlex.quote(sys.executable)
        srun = shlex.join(["srun", f"--cpus-per-task={cpus}", f"--wait={END_SECONDS}", *settings.srun_args])
        command = f"{srun} {python} -u -m slurm.job {shlex.quote(str(self.folder / PLAN_FILE))} {number}"
        given = {key: value for key, value in options.items() if value is not None}
        return batch_script(settings, given, command, first=[path])

    def _nice(self, batch: Batch) -> int | None:
        """Return by how much the priority of an array is lowered. ``None``: the settings say."""
        lower = min(max(one.resources.priority for one in self.batches) - batch.resources.priority, 10_000)
        own = self.settings.sbatch.get("nice", 0)
        return lower + (DEFAULT_NICE if own is True else int(own)) if lower else None
