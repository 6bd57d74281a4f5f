"""Behaviour jobs of a study: choose the models and who rates their texts, and skip results that are up to date.

A job is launched like a run, by the same launcher on the same backends. Only its worker module differs. Its own folder
is ``runs/<study>/behaviour/<run id>/``; behaviour.json, samples.jsonl and losses.f32 are in the folder of
the run.
"""

import contextlib
import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jobs import terminal
from jobs.launch.job import Order, StudySettings
from jobs.launch.prepare import find_data
from jobs.manifests.filters import select
from jobs.manifests.policy import Policy
from jobs.spec import RunSpec
from jobs.study.folder import ObservedRun, Observer, observe_study
from jobs.study.launched import TASK_SETTINGS
from jobs.study.record import KeptManifests
from seqlm.config import DataConfig, RunConfig
from seqlm.errors import FileError, UsageError, printable
from seqlm.files import file_sha256
from seqlm.reading import is_file
from seqlm.records.runs import BehaviourResult
from seqlm.records.studies import TaskFile
from seqlm.rundir import BEHAVIOUR_FOLDER, BEHAVIOUR_VERSION, RunDirectory
from seqlm.trust import distrusted, table_digest

SETTINGS = ("window", "samples", "temperature", "prompt", "seed")
"""Settings that flags can set."""
WORKER = "analysis.behaviour"
"""The module that computes the behaviour of one model: ``python -m analysis.behaviour JOB_DIR``."""
FAILURES = ("failed", "cancelled", "missing")
"""States of a job without which the behaviour of its run is not available."""


# -- which runs ----------------------------------------------------------------------------------------------------


def choose(
    runs: Sequence[ObservedRun], *, listed: Collection[str] = (), only: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[ObservedRun]:
    """Return the finished runs whose behaviour is to be computed.

    If there are filters, these are the runs that pass them. Else, if ``listed`` is not empty, the runs whose
    fingerprint is listed. Else, for each architecture and text, the run with the lowest validation perplexity.

    Raises:
        UsageError: a filter is wrong, or no run passes.
    """
    done = [run for run in runs if run.observation.state == "done" and run.config is not None]
    if runs and (only or exclude):
        passed, why = select(runs, only, exclude, ObservedRun.facts, runs[0].run.path.parent)
        if why is not None:
            raise UsageError(why)
        passing = {run.run.id for run in passed}
        return [run for run in done if run.run.id in passing]
    if listed:
        return [run for run in done if _config(run).fingerprint() in listed]
    best: dict[tuple[str, DataConfig], str] = {}
    for run in _best_first(done):  # perplexities of different texts do not compare
        best.setdefault((_config(run).model.kind, _config(run).data), run.run.id)
    return [run for run in done if run.run.id in best.values()]


def panel_of(run: ObservedRun, runs: Sequence[ObservedRun]) -> list[ObservedRun]:
    """Return the runs whose models rate all samples of the text of ``run``, by their ids.

    They are the second-best finished run of each architecture on this text: not the best ones, whose samples are shown.
    If its checkpoint no longer exists, the next one is taken. An architecture with a single run has none.
    """
    ranked: dict[str, list[ObservedRun]] = {}
    for other in _best_first(runs):
        if other.observation.state == "done" and other.config is not None and other.config.data == _config(run).data:
            ranked.setdefault(other.config.model.kind, []).append(other)
    found = []
    for same in ranked.values():
        found += [other for other in same[1:] if is_file(other.run.best_checkpoint)][:1]
    return sorted(found, key=lambda other: other.run.id)


def _config(run: ObservedRun) -> RunConfig:
    assert run.config is not None, "chosen runs have one"
    return run.config


def _best_first(runs: Iterable[ObservedRun]) -> list[ObservedRun]:
    """Return the runs that have a validation perplexity, by it."""
    found = [(run.observation.best_val_ppl, run) for run in runs if run.observation.best_val_ppl is not None]
    return [run for _, run in sorted(found, key=lambda pair: pair[0])]


# -- the job of a run ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BehaviourJob:
    """The job that computes the behaviour of one run."""

    run: ObservedRun
    panel: Sequence[ObservedRun]
    """The runs whose models rate its texts."""
    folder: RunDirectory
    """The job's own folder."""
    checkpoint_sha256: str | None
    """Digest of the run's ``best.pt``. ``None`` means that this file no longer exists."""
    panel_sha256: tuple[str | None, ...]
    settings: Mapping[str, Any]
    """The settings set by flags, now or at an earlier launch."""

    @property
    def panel_ids(self) -> list[str]:
        """Run ids of its panel."""
        return [member.run.id for member in self.panel]

    def is_current(self) -> bool:
        """Return whether the stored result has these checkpoints and settings. A damaged result counts as none."""
        run = self.run.run
        with contextlib.suppress(FileError):
            result = BehaviourResult.read(self.folder.path) or BehaviourResult()
            made = (result.version, result.checkpoint_sha256, result.panel_sha256)
            return (
                is_file(run.behaviour_file)
                and is_file(run.samples_file)
                and is_file(run.losses_file)
                and made == (BEHAVIOUR_VERSION, self.checkpoint_sha256, self.panel_sha256)
                and self.settings.items() <= result.settings.items()
            )
        return False


def _last_settings(folder: RunDirectory) -> dict[str, Any]:
    """Return the settings that flags set at a job's last launch; empty if this user has not launched it with them."""
    with contextlib.suppress(FileError):
        task = TaskFile.read(folder.path)
        if task is None or not task.settings:
            return {}
        settings = task.settings
        why = distrusted({table_digest(TASK_SETTINGS, settings): printable(str(folder.task_file))})
        if why is None:
            return {key: settings[key] for key in SETTINGS if key in settings}
        terminal.tell(f"note: {why}; the usual settings are taken")
    return {}


# -- as a launch ---------------------------------------------------------------------------------------------------


class BehaviourLaunch:
    """The behaviour jobs of a study, with the settings to compute them with."""

    def __init__(
        self,
        study_dir: Path,
        *,
        only: Sequence[str] = (),
        exclude: Sequence[str] = (),
        given: Mapping[str, Any] = MappingProxyType({}),
        force: bool = False,
        data: Path | None = None,
    ) -> None:
        """Find the jobs and those that need computing. Reads checkpoints, writes nothing.

        ``given`` are the settings set by flags. Each job keeps the others that its last launch was given.
        With ``force``, jobs that are up to date are computed too. ``data`` is the path of the corpus; ``None``:
        ``SEQLM_DATA``, else the path that the run trained with.

        Raises:
            UsageError: a filter is wrong, no run passes.
            FileError: a file cannot be read.
        """
        self.study_dir = study_dir
        runs, listed = observe_study(study_dir), KeptManifests(study_dir).behaviour
        checksum = functools.cache(file_sha256)  # a member of a panel is read once
        self.jobs: list[BehaviourJob] = []
        """Every chosen job, whether or not it needs computing."""
        for run in choose(runs, listed=listed, only=only, exclude=exclude):
            panel = panel_of(run, runs)
            folder = RunDirectory(study_dir / BEHAVIOUR_FOLDER / run.run.id)
            job = BehaviourJob(
                run=run,
                panel=panel,
                folder=folder,
                checkpoint_sha256=checksum(run.run.best_checkpoint),
                panel_sha256=tuple(checksum(member.run.best_checkpoint) for member in panel),
                settings={**_last_settings(folder), **given},
            )
            self.jobs.append(job)
        self.specs: list[RunSpec] = []
        """The runs to launch: the configuration of each run whose job needs computing, on one rank."""
        self.tasks: dict[str, TaskFile] = {}
        """Run id of each job that needs computing -> content of its task file."""
        for job in self.jobs:
            if job.checkpoint_sha256 is None or (job.is_current() and not force):
                continue
            spec, run_id = job.run.to_spec(), job.run.run.id
            flags = [f"--{key}={value}" for key, value in job.settings.items()]
            command = ["python", "launch.py", "behaviour", str(study_dir), "--only", f"id={run_id}", *flags]
            resources, path = replace(spec.resources, ranks=1), find_data(data, spec.data_path)
            spec = replace(spec, resources=resources, data_path=path, command=command)
            self.specs.append(replace(spec, panel=tuple(_config(member) for member in job.panel)))
            self.tasks[run_id] = TaskFile(panel=tuple(job.panel_ids), settings=dict(job.settings))

    def study(self, retries: int | None = None) -> StudySettings:
        """Return the settings of these jobs, which are a study of their own. ``retries``: those of the backend."""
        policy = KeptManifests(self.study_dir, terminal.tell).policy or Policy()
        return StudySettings(
            path=self.study_dir / BEHAVIOUR_FOLDER,
            worker=("-m", WORKER),
            # It has no micro-batches, and the budget is for training.
            policy=replace(policy, oom=0, gpu_hours=None, core_hours=None).with_retries(retries),
        )

    def order(self, *, live_code: bool = False) -> Order:
        """Return what a launch of these jobs is asked to do."""
        return Order(specs=self.specs, tasks=self.tasks, canary=False, live_code=live_code)

    def outcomes(self) -> list[dict[str, Any]]:
        """Return each job as ``behaviour --json`` shows it: name, id, state, reason, panel and file of its texts.

        The state is that of a run, or ``missing`` (no checkpoint, nothing computed), or ``kept`` (no checkpoint any
        more, but an earlier result).
        """
        observer = Observer(self.study_dir / BEHAVIOUR_FOLDER)
        found = []
        for job in self.jobs:
            if job.checkpoint_sha256 is not None:
                seen = observer.observe(job.folder)
                state, reason = str(seen.state), seen.reason
                if state == "done":
                    reason = "computed" if job.folder.id in self.tasks else "up to date"
                    result = BehaviourResult.read(job.folder.path)
                    if result is not None and result.unknown:
                        reason += f"; not in its vocabulary: {', '.join(result.unknown)}"
            elif is_file(job.run.run.behaviour_file):
                state, reason = "kept", "its checkpoints/best.pt is gone; the earlier result is kept"
            else:
                state, reason = "missing", "its checkpoints/best.pt is gone, so there is no model to examine"
            texts = str(job.run.run.samples_file) if is_file(job.run.run.samples_file) else None
            record = {"name": job.run.name, "id": job.folder.id, "state": state, "reason": reason}
            found.append({**record, "panel": job.panel_ids, "samples": texts})
        return found
