"""Behaviour jobs of a study: choose the models, choose a judge for each, and skip results that are up to date.

    runs/<study>/<run id>/             a finished run with checkpoints/best.pt, behaviour.json and samples.jsonl
    runs/<study>/behaviour/<run id>/   the job that computes these two; its result.json names the checkpoints used

A job is launched like a run, by the same launcher on the same backends. Only its worker module differs.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.launch.options import LaunchOptions
from jobs.launch.prepare import find_data
from jobs.manifests.filters import select
from jobs.plan.record import kept_policy, kept_untracked
from jobs.spec import RunSpec
from jobs.study.folder import AtWork, ObservedRun, at_work, observe_run, observe_study
from seqlm.config import RunConfig
from seqlm.errors import FileError, UsageError
from seqlm.files import file_sha256, read_json
from seqlm.rundir import BEHAVIOUR_FOLDER, RunDirectory, study_record_file

SETTINGS = ("window", "samples", "temperature", "prompt", "seed")
"""Settings that flags can set."""


def jobs_dir(study_dir: Path) -> Path:
    """Return the folder of a study's behaviour jobs."""
    return study_dir / BEHAVIOUR_FOLDER


# -- which runs ----------------------------------------------------------------------------------------------------


def listed_fingerprints(study_dir: Path) -> list[str]:
    """Return the fingerprints listed under ``behaviour`` in ``study.json``; empty if there is no such file.

    Raises:
        FileError: the file is damaged.
    """
    listed = (read_json(study_record_file(study_dir)) or {}).get("behaviour")
    return [text for text in listed if isinstance(text, str)] if isinstance(listed, list) else []


def choose(
    runs: Sequence[ObservedRun], *, listed: Collection[str] = (), only: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[ObservedRun]:
    """Return the finished runs whose behaviour is to be computed.

    If there are filters, these are the runs that pass them. Else, if ``listed`` is not empty, the runs whose
    fingerprint is listed. Else, for each architecture, the run with the lowest validation perplexity.

    Raises:
        UsageError: a filter is wrong, or no run passes.
    """
    done = [run for run in runs if run.observation.state == "done" and run.config is not None]
    if only or exclude:
        passed, why = select(runs, only, exclude, ObservedRun.facts)
        if why is not None:
            raise UsageError(why)
        passing = {run.run.id for run in passed}
        return [run for run in done if run.run.id in passing]
    if listed:
        return [run for run in done if _config(run).fingerprint() in listed]
    best: dict[str, str] = {}
    for run in sorted(filter(_has_perplexity, done), key=_perplexity):
        best.setdefault(_config(run).model.arch, run.run.id)
    return [run for run in done if run.run.id in best.values()]


def judge_of(run: ObservedRun, runs: Sequence[ObservedRun]) -> ObservedRun | None:
    """Return the best other model of the same text, which scores the samples of ``run``, or ``None`` without one."""
    judges = [
        other
        for other in runs
        if other.run.id != run.run.id
        and other.observation.state == "done"
        and other.config is not None
        and other.config.data == _config(run).data
        and other.run.best_checkpoint.is_file()
    ]
    return min(filter(_has_perplexity, judges), key=_perplexity, default=None)


def _config(run: ObservedRun) -> RunConfig:
    assert run.config is not None, "chosen runs have one"
    return run.config


def _has_perplexity(run: ObservedRun) -> bool:
    return run.observation.best_val_ppl is not None


def _perplexity(run: ObservedRun) -> float:
    found = run.observation.best_val_ppl
    return math.inf if found is None else found


# -- whether a result still holds ----------------------------------------------------------------------------------


def default_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that apply without flags, in the form in which a worker writes them to ``result.json``."""
    seq_len = config.train.seq_len
    return {
        "window": 2 * seq_len,
        "samples": 10,
        "lengths": [seq_len, 2 * seq_len],
        "temperature": 1.0,
        "prompt": None,
        "gradient_columns": 20,
        "seed": config.seed,
    }


def is_current(
    result: Mapping[str, Any] | None,
    config: RunConfig,
    given: Mapping[str, Any],
    *,
    checkpoint_sha256: str | None,
    judge_sha256: str | None,
) -> bool:
    """Return whether a job's ``result.json`` equals what the job would write now. Pure.

    ``given`` holds the settings set by flags. Every other setting must have its default.
    """
    if result is None or checkpoint_sha256 is None:
        return False
    if (result.get("checkpoint_sha256"), result.get("judge_sha256")) != (checkpoint_sha256, judge_sha256):
        return False
    settings = result.get("settings")
    expected = {**default_settings(config), **given}
    return isinstance(settings, Mapping) and all(
        key in settings and settings[key] == value for key, value in expected.items()
    )


@dataclass(frozen=True, kw_only=True)
class BehaviourJob:
    """The job that computes the behaviour of one run."""

    run: ObservedRun
    judge: ObservedRun | None
    folder: RunDirectory
    """The job's own folder."""
    checkpoint_sha256: str | None
    """Digest of the run's ``best.pt``. ``None`` means that this file no longer exists."""
    judge_sha256: str | None

    @property
    def name(self) -> str:
        return self.run.name

    def is_current(self, given: Mapping[str, Any]) -> bool:
        """Return whether the stored result equals what would be computed now."""
        run = self.run.run
        if not (run.behaviour_file.is_file() and run.samples_file.is_file()):
            return False
        result: dict[str, Any] | None = None
        with contextlib.suppress(FileError):  # a damaged result counts as no result
            result = self.folder.read_result()
        return is_current(
            result,
            _config(self.run),
            given,
            checkpoint_sha256=self.checkpoint_sha256,
            judge_sha256=self.judge_sha256,
        )

    def last_settings(self) -> dict[str, Any]:
        """Return the settings that flags set at the job's last launch; empty if it was never launched."""
        task: dict[str, Any] = {}
        with contextlib.suppress(FileError):
            task = read_json(self.folder.task_file) or {}
        settings = task.get("settings")
        return {key: settings[key] for key in SETTINGS if key in settings} if isinstance(settings, dict) else {}

    def task(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the content of the job's task file."""
        return {"judge": None if self.judge is None else self.judge.run.id, "settings": dict(given)}


def find_jobs(study_dir: Path, *, only: Sequence[str] = (), exclude: Sequence[str] = ()) -> list[BehaviourJob]:
    """Return the behaviour jobs of a study, whether or not they have run. Reads checkpoints, writes nothing.

    Raises:
        UsageError: a filter is wrong, or no run passes.
        FileError: ``study.json`` is damaged, or a checkpoint cannot be read.
    """
    runs = observe_study(study_dir)
    chosen = choose(runs, listed=listed_fingerprints(study_dir), only=only, exclude=exclude)
    checksum = functools.cache(file_sha256)  # a judge of several runs is read once
    jobs = []
    for run in chosen:
        judge = judge_of(run, runs)
        jobs.append(
            BehaviourJob(
                run=run,
                judge=judge,
                folder=RunDirectory(jobs_dir(study_dir) / run.run.id),
                checkpoint_sha256=checksum(run.run.best_checkpoint),
                judge_sha256=checksum(judge.run.best_checkpoint) if judge else None,
            )
        )
    return jobs


WORKER = "analysis.behaviour"
"""The module that computes the behaviour of one model: ``python -m analysis.behaviour JOB_DIR``."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one behaviour job, for the command line."""

    name: str
    id: str
    state: str
    """The state of a run, or ``missing`` (no checkpoint, nothing computed), or ``kept`` (no checkpoint any more, but an
    earlier result)."""
    reason: str | None
    judge: str | None
    """Id of the run that judges its samples."""

    @property
    def is_failure(self) -> bool:
        """Whether the run's behaviour is not available."""
        return self.state in ("failed", "cancelled", "missing")

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "id": self.id, "state": self.state, "reason": self.reason, "judge": self.judge}


@dataclass(frozen=True, kw_only=True)
class BehaviourLaunch:
    """The behaviour jobs of a study, with the settings to compute them with."""

    study_dir: Path
    jobs: tuple[BehaviourJob, ...]
    """Every chosen job, whether or not it needs computing."""
    specs: list[RunSpec]
    """The runs to launch: the configuration of each run whose job needs computing, on one rank."""
    tasks: Mapping[str, Mapping[str, Any]]
    """Run id of each job that needs computing -> content of its task file."""

    @classmethod
    def of(
        cls,
        study_dir: Path,
        *,
        only: Sequence[str] = (),
        exclude: Sequence[str] = (),
        given: Mapping[str, Any] | None = None,
        force: bool = False,
        data: Path | None = None,
    ) -> BehaviourLaunch:
        """Find the jobs of a study and those that need computing. Reads checkpoints, writes nothing.

        Args:
            study_dir: the study's folder.
            only: filters of ``--only``.
            exclude: filters of ``--exclude``.
            given: settings set by flags. ``None`` means that each job keeps the settings of its last launch.
            force: recompute every job, even those that are up to date.
            data: path of the corpus. ``None``: ``SEQLM_DATA``, else the path that the run trained with.

        Raises:
            UsageError: a filter is wrong, or no run passes.
            FileError: a file cannot be read.
        """
        jobs = tuple(find_jobs(study_dir, only=only, exclude=exclude))
        specs, tasks = [], {}
        for job in jobs:
            settings = job.last_settings() if given is None else given
            if job.checkpoint_sha256 is None or (job.is_current(settings) and not force):
                continue
            spec, run_id = job.run.to_spec(), job.run.run.id
            flags = [f"--{key}={value}" for key, value in settings.items()]
            command = ["python", "launch.py", "behaviour", str(study_dir), "--only", f"id={run_id}", *flags]
            resources = replace(spec.resources, ranks=1)
            path = find_data(data, spec.data_path)
            specs.append(replace(spec, resources=resources, data_path=path, command=command))
            tasks[run_id] = job.task(settings)
        return cls(study_dir=study_dir, jobs=jobs, specs=specs, tasks=tasks)

    def options(self, tell: Callable[[str], None] = lambda line: None) -> LaunchOptions:
        """Return the options by which a launch of these jobs differs from a launch of runs."""
        return LaunchOptions(
            study_dir=jobs_dir(self.study_dir),
            worker=("-m", WORKER),
            code_dir=self.study_dir,
            untracked=kept_untracked(self.study_dir),
            tasks=self.tasks,
            canary=False,
            policy=replace(kept_policy(self.study_dir, tell), oom=0),  # it has no micro-batches to make smaller
            tell=tell,
        )

    def outcomes(self) -> list[Outcome]:
        """Return the state of each job, read from its folder."""
        work = at_work(jobs_dir(self.study_dir))
        found = []
        for job in self.jobs:
            state, reason = self._state(job, work)
            judge = None if job.judge is None else job.judge.run.id
            found.append(Outcome(name=job.name, id=job.folder.id, state=state, reason=reason, judge=judge))
        return found

    def _state(self, job: BehaviourJob, work: AtWork) -> tuple[str, str | None]:
        """Return the state of a job and its reason, as in :class:`Outcome`."""
        if job.checkpoint_sha256 is None:
            if job.run.run.behaviour_file.is_file():
                return "kept", "its checkpoints/best.pt is gone; the earlier result is kept"
            return "missing", "its checkpoints/best.pt is gone, so there is no model to examine"
        seen = observe_run(job.folder, work)
        if seen.state == "done":
            return seen.state, "computed" if job.folder.id in self.tasks else "up to date"
        return seen.state, seen.reason
