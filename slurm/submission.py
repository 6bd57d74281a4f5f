"""Submit runs as job arrays: group runs, write each job's plan, and call sbatch through submitit."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.attempt.retry import micro_batches
from jobs.attempt.supervisor import progress_variables, worker_variables
from jobs.manifests.policy import Policy
from jobs.plan.planned import Planned
from jobs.spec import Resources
from jobs.study.folder import study_name
from jobs.study.kept_code import Code
from seqlm.errors import BackendError, UsageError
from seqlm.rundir import make_directory, write_json
from slurm.environment import first_lines, only, plain_env, sbatch_environment
from slurm.job import JobPlan
from slurm.settings import SlurmSettings
from slurm.task import run_task


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One job array: runs of equal resources, in the order in which they start."""

    resources: Resources
    jobs: tuple[tuple[Planned, ...], ...]
    """The runs of each job: one, or several that share a GPU."""

    @property
    def runs_per_job(self) -> int:
        return max(len(runs) for runs in self.jobs)


def batches(
    todo: Sequence[Planned], resources: Mapping[str, Resources], settings: SlurmSettings, max_array_size: int
) -> list[Batch]:
    """Group runs of equal resources into arrays. ``todo`` is in queue order, and arrays keep that order.

    ``max_array_size`` is the cluster's MaxArraySize, the maximum number of jobs of an array.
    """
    groups: dict[Resources, list[Planned]] = {}
    for item in todo:
        groups.setdefault(resources[item.run.id], []).append(item)
    found = []
    for wanted, items in groups.items():
        jobs = [tuple(chunk) for chunk in _chunks(items, settings.runs_per_job(wanted))]
        found += [Batch(resources=wanted, jobs=tuple(chunk)) for chunk in _chunks(jobs, max_array_size)]
    return found


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def require_plain_path(path: Path) -> None:
    """Check that SLURM can use a folder.

    A directive of a script is one line. In names of log files SLURM expands ``%`` as a pattern and a backslash as an
    escape, even within quotes. All other characters, including quotes and ``$(...)``, are taken literally.

    Raises:
        UsageError: the path has a control character, ``%`` or a backslash.
    """
    if not str(path).isprintable() or set(str(path)) & set("%\\"):
        raise UsageError(
            f"{path}: SLURM accepts no folder with a control character, % or a backslash in its name; rename it, or "
            "use another --runs-dir"
        )


@dataclass(frozen=True, kw_only=True)
class Submitter:
    """Submits the batches of one study."""

    study_dir: Path
    settings: SlurmSettings
    code: Code
    paths: Mapping[str, Path | None]
    """Path of each run's corpus, by run id."""
    worker: str
    """The worker's module."""
    policy: Policy = field(default_factory=Policy)
    """How jobs handle failures."""

    def submit(self, batch: Batch, folder: Path, *, parallelism: int, nice: int, after: str | None = None) -> list[str]:
        """Submit one array and return the id of each of its jobs. ``folder`` is a new folder for this array.

        The array starts once the array ``after`` has ended. ``None`` means that it may start at once.

        Raises:
            BackendError: sbatch rejected the array. The message quotes sbatch's error.
            UsageError: a variable named by ``env_pass`` is not set.
        """
        environ = sbatch_environment(self.settings, os.environ)
        make_directory(folder)
        executor = self._executor(batch, folder, parallelism=parallelism, nice=nice, after=after)
        plans = []
        for number, runs in enumerate(batch.jobs):
            plans.append(folder / f"job-{number}.json")
            self._plan(batch, runs, folder.name).write(plans[-1])
        try:
            with only(environ), executor.batch():
                jobs = [executor.submit(run_task, str(plan)) for plan in plans]
        except Exception as error:  # submitit's own exceptions, and subprocess's
            text = getattr(error, "stderr", None) or str(error)
            text = text.decode(errors="replace") if isinstance(text, bytes) else text
            lines = [line for line in text.strip().splitlines() if "sbatch" in line] or text.strip().splitlines()
            raise BackendError(f"sbatch rejected the job: {lines[-1] if lines else type(error).__name__}") from None
        return [str(job.job_id) for job in jobs]

    def script(self, batch: Batch, folder: Path, *, parallelism: int, after: str | None = None) -> str:
        """Return the sbatch script that :meth:`submit` would submit."""
        executor = self._executor(batch, folder, parallelism=parallelism, nice=0, after=after)
        if len(batch.jobs) > 1:
            executor.parameters["map_count"] = len(batch.jobs)
        return str(executor._make_submission_file_text(executor._submitit_command_str, "plan"))

    def _executor(self, batch: Batch, folder: Path, *, parallelism: int, nice: int, after: str | None) -> Any:
        import submitit  # here, since it takes half a second

        settings, resources = self.settings, batch.resources
        nodes, ranks_per_node = settings.nodes(resources)
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
            more["nice"] = nice
        if after:
            more["dependency"] = f"afterany:{after}"
        if settings.reservation:
            more["reservation"] = settings.reservation
        executor.update_parameters(
            job_name=f"seqlm-{study_name(self.study_dir).replace('/', '-')}",
            time=settings.timeout_min,
            nodes=nodes,
            ntasks_per_node=ranks_per_node,
            cpus_per_task=(resources.cpus or 1) * batch.runs_per_job,
            gpus_per_node=_gpus_per_node(resources, ranks_per_node),
            mem=None if settings.mem_gb is None else f"{round(settings.mem_gb * 1024)}M",
            partition=settings.partition,
            account=settings.account,
            qos=settings.qos,
            constraint=settings.constraint,
            nodelist=settings.nodelist,
            exclude=settings.exclude,
            mail_user=settings.mail_user,
            mail_type=settings.mail_type,
            signal_delay_s=settings.signal_before_s,
            array_parallelism=parallelism,
            setup=[*first_lines(settings), path, *settings.setup],
            srun_args=["--kill-on-bad-exit=1", *settings.srun_args],
            additional_parameters=more,
        )
        return executor

    def _plan(self, batch: Batch, runs: Sequence[Planned], submission: str) -> JobPlan:
        return JobPlan(
            submission=submission,
            runs=tuple(item.run.path.absolute() for item in runs),
            attempts=tuple(item.run.last_attempt() + 1 for item in runs),
            env=tuple(self._env(item) for item in runs),
            argv=worker_argv(self.worker),
            code=self.code.path.absolute(),
            resources=batch.resources,
            policy=self.policy,
            timeout_min=self.settings.timeout_min,
            signal_before_s=self.settings.signal_before_s,
            exclude=self.settings.exclude,
            must_have_nodes=bool(
                self.settings.nodelist or self.settings.reservation or "nodefile" in self.settings.sbatch
            ),
        )

    def _env(self, item: Planned) -> dict[str, str]:
        own = {**worker_variables(self.policy), **progress_variables(self.settings.progress_s)}
        env = {**plain_env(self.settings), "PYTHONUNBUFFERED": "1", **own}
        data = self.paths.get(item.run.id)
        if data is not None:
            env["SEQLM_DATA"] = str(data.absolute())
        return env


def _gpus_per_node(resources: Resources, ranks_per_node: int) -> int | None:
    """Return the whole GPUs of a job per node. Runs that share a GPU are in the same job."""
    if not resources.gpus:
        return None
    return ranks_per_node if resources.gpus == 1 else 1


def worker_argv(worker: str) -> tuple[str, ...]:
    """Return a worker's command line, without the interpreter (the job's own) and the run's folder."""
    return ("-m", worker)


def record(batch: Batch, jobs: Sequence[str], code: Code, attempts: Mapping[str, int], worker: str) -> None:
    """Write ``job.json`` of each submitted run."""
    for job, runs in zip(jobs, batch.jobs, strict=True):
        for item in runs:
            job_record = {
                "backend": "slurm",
                "job_id": job,
                "launcher": None,
                "resources": batch.resources.to_dict(),
                "attempt": attempts[item.run.id],
                "micro_batches": micro_batches(item.run, item.spec.config.train.batch_size, batch.resources.ranks),
                "argv": [*worker_argv(worker), str(item.run.path.absolute())],
                "code": str(code.path),
                "submitted_at": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            write_json(item.run.job_file, job_record, sync=False)
