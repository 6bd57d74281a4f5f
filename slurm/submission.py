"""Submit runs as job arrays: group runs, write each job's plan, and call sbatch through submitit."""

from __future__ import annotations

import functools
import math
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.attempt.supervisor import progress_variables, worker_variables
from jobs.launch.job import LaunchOptions, job_record, next_submission
from jobs.plan.planned import PlannedRun
from jobs.spec import Resources
from jobs.study.budget import Budget, Hours, Ledger, hours_of
from jobs.study.folder import study_name
from jobs.study.kept_code import Code
from jobs.study.squeue import complaint
from seqlm.errors import BackendError, UsageError
from seqlm.files import make_directory, write_json
from seqlm.rundir import RunDirectory
from slurm.environment import first_lines, only, plain_env, sbatch_environment
from slurm.job import JobPlan
from slurm.settings import SlurmSettings
from slurm.task import run_task

DEFAULT_NICE = 100
"""What ``--nice`` without a value means to sbatch."""
UNLIMITED = 100_000
"""Running jobs of an array if only the cluster limits them."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One job array: runs of equal resources, in the order in which they start."""

    jobs: tuple[tuple[PlannedRun, ...], ...]
    """The runs of each job: one, or several that share a GPU."""
    parallelism: int = UNLIMITED
    """Maximum number of running jobs of the array."""
    after: int | None = None
    """Index of the array that must end first. ``None`` means that this array may start at once."""

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
    return take_turns(found, settings.max_parallel)


@dataclass
class _Lane:
    """Arrays that run one after another, with a share of ``max_parallel``."""

    width: int
    """Maximum number of running runs of the lane."""
    arrays: list[int]
    runs: int

    @property
    def load(self) -> float:
        return self.runs / self.width


def take_turns(found: Sequence[Batch], max_parallel: int | None) -> list[Batch]:
    """Return the arrays with their turns, such that at most ``max_parallel`` runs of all arrays run at once.

    SLURM can only limit the jobs of a single array. So each array gets a share of the limit. If there are too many
    arrays for that, some wait for others to end. No job of ``found`` has more runs than ``max_parallel``.
    """
    if max_parallel is None:
        return list(found)
    runs_per_job = [batch.runs_per_job for batch in found]
    lanes: list[_Lane] = []
    spare = max_parallel
    for number in sorted(range(len(found)), key=lambda number: -runs_per_job[number]):
        width, runs = runs_per_job[number], sum(map(len, found[number].jobs))
        if width <= spare:
            lanes.append(_Lane(width, [number], runs))
            spare -= width
        else:  # every lane is wide enough, since arrays come in order of decreasing width
            lane = min(lanes, key=lambda lane: lane.load)
            lane.arrays.append(number)
            lane.runs += runs
    while wanting := [lane for lane in lanes if lane.load > 1 and runs_per_job[lane.arrays[0]] <= spare]:
        lane = max(wanting, key=lambda lane: lane.load)
        lane.width += runs_per_job[lane.arrays[0]]
        spare -= runs_per_job[lane.arrays[0]]
    made = list(found)
    for lane in lanes:
        before = None
        for number in sorted(lane.arrays):
            made[number] = replace(found[number], parallelism=lane.width // runs_per_job[number], after=before)
            before = number
    return made


def _chunks(items: Sequence[Any], size: int) -> list[tuple[Any, ...]]:
    return [tuple(items[start : start + size]) for start in range(0, len(items), size)]


def require_plain_path(path: Path) -> None:
    """Check that SLURM can use a folder.

    A directive of a script is one line. In names of log files SLURM expands ``%`` as a pattern and a backslash as an
    escape, even within quotes. All other characters, including quotes and ``$(...)``, are taken literally.

    Raises:
        UsageError: the path has a control character, ``%`` or a backslash, or another name for a job, which reads and
            writes paths as UTF-8.
    """
    if os.fsencode(path) != str(path).encode("utf-8", "surrogateescape"):
        raise UsageError(f"{path}: jobs of SLURM look for it in UTF-8, which this locale is not; set LC_ALL=C.UTF-8")
    if not str(path).isprintable() or set(str(path)) & set("%\\"):
        raise UsageError(
            f"{path}: SLURM accepts no folder with a control character, % or a backslash in its name; rename it, or "
            "use another --runs-dir"
        )


@dataclass(frozen=True, kw_only=True)
class Submitter:
    """Submits the batches of one study."""

    options: LaunchOptions
    settings: SlurmSettings
    code: Code

    def plans(self, batch: Batch, submission: str) -> list[JobPlan]:
        """Return the plan of each job of an array.

        ``submission`` is the name of the array's folder.

        Raises:
            FileError: the earlier failures of a run cannot be read.
        """
        settings, policy = self.settings, self.options.policy
        env = {
            **plain_env(settings),
            **worker_variables(policy, self.options.search),
            **progress_variables(settings.progress_s),
        }
        prepare = functools.partial(next_submission, argv=self.options.worker, code=self.code, env=env)
        return [
            JobPlan(
                submission=submission,
                runs=tuple(prepare(item) for item in runs),
                policy=policy,
                timeout_min=self.timeout_min(batch),
                signal_before_s=settings.signal_before_s,
                exclude=settings.exclude,
                must_have_nodes=bool(settings.nodelist or settings.reservation or "nodefile" in settings.sbatch),
            )
            for runs in batch.jobs
        ]

    def submit(
        self, batch: Batch, plans: Sequence[JobPlan], folder: Path, *, nice: int = 0, after: str | None = None
    ) -> list[str]:
        """Submit one array, whose jobs have these plans, and return the id of each job. ``folder`` is a new one.

        ``nice`` is how much lower its priority is. ``after`` is the id of the array that must end first.

        Raises:
            BackendError: sbatch rejected the array. The message quotes sbatch's error.
            UsageError: a variable named by ``env_pass`` is not set.
        """
        environ = sbatch_environment(self.settings, os.environ)
        make_directory(folder)
        executor = self._executor(batch, folder, nice=nice, after=after)
        files = [folder / f"job-{number}.json" for number in range(len(plans))]
        for plan, file in zip(plans, files, strict=True):
            plan.write(file)
        try:
            with only(environ), executor.batch():
                jobs = [executor.submit(run_task, str(file)) for file in files]
        except Exception as error:  # submitit's own exceptions, and subprocess's
            text = getattr(error, "stderr", None) or str(error)
            text = text.decode(errors="replace") if isinstance(text, bytes) else text
            raise BackendError(f"sbatch rejected the job: {complaint(text) or type(error).__name__}") from None
        return [str(job.job_id) for job in jobs]

    @functools.cached_property
    def _spent(self) -> Hours:
        return Ledger(self.options.study_dir).spent()

    def timeout_min(self, batch: Batch) -> int:
        """Return the time limit of the jobs of an array in minutes: that of the settings, cut to what is left.

        A job that uses up the study's budget alone still has the time to save before its limit.
        """
        budget, limit = Budget.of(self.options.policy), self.settings.timeout_min
        if not budget:
            return limit
        rate = hours_of(batch.resources, 3600) * batch.runs_per_job
        seconds = 3600 * budget.times_left(self._spent, rate) + self.settings.signal_before_s
        return limit if math.isinf(seconds) else min(limit, 1 + math.ceil(seconds / 60))

    def script(self, batch: Batch, folder: Path, *, nice: int = 0, after: str | None = None) -> str:
        """Return the sbatch script that :meth:`submit` would submit."""
        executor = self._executor(batch, folder, nice=nice, after=after)
        if len(batch.jobs) > 1:
            executor.parameters["map_count"] = len(batch.jobs)
        return str(executor._make_submission_file_text(executor._submitit_command_str, "plan"))

    def _executor(self, batch: Batch, folder: Path, *, nice: int, after: str | None) -> Any:
        import submitit  # here, since it takes half a second

        settings, resources = self.settings, batch.resources
        nodes, ranks_per_node = settings.nodes(resources)
        gpus_per_node = ranks_per_node if resources.gpus == 1 else 1  # runs that share a GPU are in the same job
        try:
            executor = submitit.SlurmExecutor(folder=folder, python=settings.python or shlex.quote(sys.executable))
        except RuntimeError:
            raise BackendError("srun is not on PATH; run this on a login node of the cluster") from None
        path = f"export PYTHONPATH={shlex.quote(str(self.code.path))}${{PYTHONPATH:+:$PYTHONPATH}}"
        more: dict[str, Any] = {
            # Run in the kept code: Python searches the working directory first, which is by default that of sbatch.
            "chdir": str(self.code.path),
            "requeue": True,
            **settings.sbatch,
        }
        if nice:
            own = settings.sbatch.get("nice", 0)
            more["nice"] = nice + (DEFAULT_NICE if own is True else int(own))
        if after is not None:
            more["dependency"] = f"afterany:{after}"
        if settings.reservation:
            more["reservation"] = settings.reservation
        same = ("partition", "account", "qos", "constraint", "nodelist", "exclude", "mail_user", "mail_type")
        executor.update_parameters(
            job_name=f"seqlm-{study_name(self.options.study_dir).replace('/', '-')}",
            time=self.timeout_min(batch),
            nodes=nodes,
            ntasks_per_node=ranks_per_node,
            cpus_per_task=(resources.cpus or 1) * batch.runs_per_job,
            gpus_per_node=gpus_per_node if resources.gpus else None,
            mem=None if settings.mem_gb is None else f"{round(settings.mem_gb * 1024)}M",
            signal_delay_s=settings.signal_before_s,
            array_parallelism=batch.parallelism,
            setup=[*first_lines(settings), path, *settings.setup],
            srun_args=["--kill-on-bad-exit=1", *settings.srun_args],
            additional_parameters=more,
            **{key: getattr(settings, key) for key in same},
        )
        return executor


def record(jobs: Sequence[str], plans: Sequence[JobPlan]) -> None:
    """Write ``job.json`` of each submitted run."""
    for job, plan in zip(jobs, plans, strict=True):
        for run in plan.runs:
            content = job_record("slurm", job, run, has_launcher=False)
            write_json(RunDirectory(run.run_dir).job_file, content, sync=False)
