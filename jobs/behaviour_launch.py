"""Launching behaviour jobs: what a launcher is told of them, and what became of each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.behaviour import BehaviourJob, find_jobs, jobs_dir
from jobs.dispatch import Event, Planned
from jobs.kept import kept_policy, kept_untracked
from jobs.launcher import LaunchOptions, find_data, launch
from jobs.local_backend import LocalBackend
from jobs.spec import RunSpec
from jobs.study import at_work, observe_run, study_name
from jobs.terminal import Progress, launch_progress, tell
from seqlm.rundir import FINGERPRINT_DIGITS

WORKER = "analysis.behaviour"
"""The module that computes the behaviour of one model: ``python -m analysis.behaviour JOB_DIR``."""
FAILED = ("failed", "cancelled", "missing")
"""States in which a run's behaviour is not to be had."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of the behaviour of one run."""

    name: str
    id: str
    state: str
    """That of a run, or ``missing`` (there is no checkpoint to compute it from), or ``kept`` (nor is there, but it was
    computed while there was)."""
    reason: str | None
    judge: str | None
    """Id of the run that judges its samples."""

    @property
    def is_failure(self) -> bool:
        return self.state in FAILED

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "id": self.id, "state": self.state, "reason": self.reason, "judge": self.judge}


@dataclass(frozen=True, kw_only=True)
class BehaviourLaunch:
    """The behaviour jobs of a study, and what is asked of them."""

    study_dir: Path
    jobs: tuple[BehaviourJob, ...]
    given: Mapping[str, Any] | None = None
    """Settings that flags give; none: of each job those that it was given last."""
    force: bool = False
    """Compute everything anew."""
    computed: frozenset[str] = frozenset()
    """Ids of the jobs that were to be done when this was made."""

    @classmethod
    def of(
        cls,
        study_dir: Path,
        *,
        only: Sequence[str] = (),
        exclude: Sequence[str] = (),
        given: Mapping[str, Any] | None = None,
        force: bool = False,
    ) -> BehaviourLaunch:
        """See what a study is to have and what of it is there. Reads checkpoints, writes nothing.

        Raises:
            UsageError: a filter is wrong, or no run passes.
            FileError: a file cannot be read.
        """
        jobs = tuple(find_jobs(study_dir, only=only, exclude=exclude))
        made = cls(study_dir=study_dir, jobs=jobs, given=given, force=force)
        return replace(made, computed=frozenset(job.folder.id for job in jobs if made._is_wanted(job)))

    def _settings(self, job: BehaviourJob) -> Mapping[str, Any]:
        return job.last_settings() if self.given is None else self.given

    def _is_wanted(self, job: BehaviourJob) -> bool:
        return job.checkpoint_sha256 is not None and (self.force or not job.is_current(self._settings(job)))

    @property
    def specs(self) -> list[RunSpec]:
        """What there is to launch."""
        return [job.spec() for job in self.jobs if job.folder.id in self.computed]

    def options(self, tell: Callable[[str], None] = lambda line: None) -> LaunchOptions:
        """What is different in a launch of these jobs from one of runs."""
        jobs = {job.folder.id: job for job in self.jobs}
        return LaunchOptions(
            study_dir=jobs_dir(self.study_dir),
            worker=WORKER,
            code_dir=self.study_dir,
            untracked=kept_untracked(self.study_dir),
            # By the run's own id: its folder may have an older name than the run.
            folders={job.spec().fingerprint[:FINGERPRINT_DIGITS]: job.folder.path for job in self.jobs},
            is_stale=lambda run: self._is_wanted(jobs[run.id]),
            prepare=lambda run: jobs[run.id].prepare(self._settings(jobs[run.id])),
            canary=False,
            policy=replace(kept_policy(self.study_dir, tell), oom=0),  # its steps are not made of micro-batches
        )

    def data_path(self, spec: RunSpec, *, flag: Path | None = None) -> Path | None:
        """Where the corpus of a run lies: ``flag``, over ``SEQLM_DATA``, over where it was for the run itself."""
        recorded = self._job(spec).run.provenance.get("data")
        return find_data(flag, Path(recorded) if recorded else None)

    def command(self, spec: RunSpec) -> list[str]:
        """The command line that computes the behaviour of this run alone."""
        job = self._job(spec)
        flags = [f"--{key}={value}" for key, value in self._settings(job).items()]
        return ["python", "launch.py", "behaviour", str(self.study_dir), "--only", f"id={job.run.run.id}", *flags]

    def _job(self, spec: RunSpec) -> BehaviourJob:
        return next(job for job in self.jobs if job.run.config == spec.config)

    def outcomes(self) -> list[Outcome]:
        """What has become of each job."""
        work = at_work(jobs_dir(self.study_dir))
        found = []
        for job in self.jobs:
            judge = None if job.judge is None else job.judge.run.id
            state, reason = self._gone(job) or (None, None)
            if state is None:
                seen = observe_run(job.folder, work)
                state, reason = seen.state, seen.reason
                if state == "done":
                    reason = "computed" if job.folder.id in self.computed else "up to date"
            found.append(Outcome(name=job.name, id=job.folder.id, state=state, reason=reason, judge=judge))
        return found

    @staticmethod
    def _gone(job: BehaviourJob) -> tuple[str, str] | None:
        if job.checkpoint_sha256 is not None:
            return None
        if job.run.run.behaviour_file.is_file():
            return "kept", "its checkpoints/best.pt is gone; what was computed before stays as it is"
        return "missing", "its checkpoints/best.pt is gone, so there is no model to look at"


def compute_behaviour(study_dir: Path, *, data: Path | None = None) -> list[Outcome]:
    """Compute what is missing of a study's behaviour, on this machine, and wait for it. What happens goes to stderr.

    ``data`` is where the corpus lies, if a flag says so. What was computed before stays as long as its checkpoints do,
    with whatever settings it was asked for. Where nothing is missing, checkpoints are read and that is all.

    Raises:
        RunBusyError: another launcher computes it at this moment.
        BackendError, DataError, FileError: nothing has been started.
        KeyboardInterrupt: interrupted; the workers have stopped.
    """
    wanted = BehaviourLaunch.of(study_dir)
    if wanted.specs:
        progress: list[Progress] = []
        backend = LocalBackend()

        def announce(planned: list[Planned]) -> Callable[[Event], None]:
            todo = sum(item.action != "skip" for item in planned)
            what = study_name(jobs_dir(study_dir))
            tell(f"{what}: {todo} models to look at on {backend.describe()}")
            progress.append(launch_progress(planned, jobs_dir(study_dir)))
            return progress[-1]

        data_path = functools.partial(wanted.data_path, flag=data)
        try:
            launch(
                wanted.specs,
                backend,
                replace(wanted.options(), tell=tell),
                data_path=data_path,
                command=wanted.command,
                progress=announce,
            )
        finally:
            for bar in progress:
                bar.close()
    return wanted.outcomes()
