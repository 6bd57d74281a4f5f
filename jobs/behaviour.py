"""Behaviour jobs of a study: of which models, judged by which other model, and whether what they have left still holds.

    runs/<study>/<run id>/             a run that is done, its checkpoints/best.pt; behaviour.json and samples.jsonl
    runs/<study>/behaviour/<run id>/   the job that computes them; result.json says from which checkpoints

A job is launched like a run, by the same launcher on the same backends (``jobs.behaviour_launch``); only its worker is
another one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.retry import put_failure_aside
from jobs.spec import RunSpec
from jobs.study import ObservedRun, observe_study, select_runs
from seqlm.config import RunConfig
from seqlm.errors import FileError, UsageError
from seqlm.rundir import BEHAVIOUR_FOLDER, RunDirectory, file_sha256, read_json, study_record_file, write_json

SETTINGS = ("window", "samples", "temperature", "prompt", "seed")
"""What flags can set."""


def jobs_dir(study_dir: Path) -> Path:
    """The folder of a study's behaviour jobs."""
    return study_dir / BEHAVIOUR_FOLDER


# -- which runs ----------------------------------------------------------------------------------------------------


def listed_fingerprints(study_dir: Path) -> list[str]:
    """The runs that ``study.json`` asks for; none where there is no such file.

    Raises:
        FileError: the file is damaged.
    """
    listed = (read_json(study_record_file(study_dir)) or {}).get("behaviour")
    return [text for text in listed if isinstance(text, str)] if isinstance(listed, list) else []


def choose(
    runs: Sequence[ObservedRun], *, listed: Collection[str] = (), only: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[ObservedRun]:
    """The runs whose behaviour is computed, all of them done.

    Those that pass the filters where there are any, else those whose fingerprint is listed, else the one with the
    lowest validation perplexity of each architecture.

    Raises:
        UsageError: a filter is wrong, or no run passes.
    """
    done = [run for run in runs if run.observation.state == "done" and run.config is not None]
    if only or exclude:
        passed, why = select_runs(list(runs), only, exclude)
        if why is not None:
            raise UsageError(why)
        passing = {run.run.id for run in passed}
        return [run for run in done if run.run.id in passing]
    if listed:
        return [run for run in done if run.config is not None and run.config.fingerprint() in listed]
    best: dict[str, ObservedRun] = {}
    for run in done:
        assert run.config is not None, "asked above"
        known = best.get(run.config.model.arch)
        if _perplexity(run) is not None and (known is None or _lower(run, known)):
            best[run.config.model.arch] = run
    chosen = {run.run.id for run in best.values()}
    return [run for run in done if run.run.id in chosen]


def judge_of(run: ObservedRun, runs: Sequence[ObservedRun]) -> ObservedRun | None:
    """The best other model of the same text, which tells how likely it finds what this one writes; none without one."""
    assert run.config is not None, "chosen runs have one"
    judge: ObservedRun | None = None
    for other in runs:
        if other.run.id == run.run.id or other.observation.state != "done" or other.config is None:
            continue
        if other.config.data != run.config.data or not other.run.best_checkpoint.is_file():
            continue
        if _perplexity(other) is not None and (judge is None or _lower(other, judge)):
            judge = other
    return judge


def _perplexity(run: ObservedRun) -> float | None:
    return run.observation.best_val_ppl


def _lower(run: ObservedRun, than: ObservedRun) -> bool:
    mine, other = _perplexity(run), _perplexity(than)
    return mine is not None and (other is None or mine < other)


# -- whether a result still holds ----------------------------------------------------------------------------------


def default_settings(config: RunConfig) -> dict[str, Any]:
    """What applies where no flag says otherwise, as a worker writes it into ``result.json``."""
    seq_len = config.train.seq_len
    return {
        "window": 2 * seq_len,
        "samples": 10,
        "lengths": [seq_len, 2 * seq_len],
        "temperature": 1.0,
        "prompt": None,
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
    """Whether a job's ``result.json`` is what the job would write now. Pure.

    ``given`` are the settings that flags give; each other one must be the default.
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
    """The behaviour of one run, as a job."""

    run: ObservedRun
    judge: ObservedRun | None
    folder: RunDirectory
    """Of the job."""
    checkpoint_sha256: str | None
    """Of the run's ``best.pt``; none: it is gone."""
    judge_sha256: str | None

    @property
    def name(self) -> str:
        return self.run.name

    def spec(self) -> RunSpec:
        """What is launched: the run itself, by its configuration, on one rank."""
        spec = self.run.to_spec()
        return replace(spec, resources=replace(spec.resources, ranks=1))

    def is_current(self, given: Mapping[str, Any]) -> bool:
        """Whether what was computed before is what would be computed now."""
        config, run = self.run.config, self.run.run
        assert config is not None, "chosen runs have one"
        if not (run.behaviour_file.is_file() and run.samples_file.is_file()):
            return False
        result: dict[str, Any] | None = None
        with contextlib.suppress(FileError):  # a damaged result is none
            result = self.folder.read_result()
        checksums = {"checkpoint_sha256": self.checkpoint_sha256, "judge_sha256": self.judge_sha256}
        return is_current(result, config, given, **checksums)

    def last_settings(self) -> dict[str, Any]:
        """The settings that flags gave when it was last launched; none before."""
        task: dict[str, Any] = {}
        with contextlib.suppress(FileError):
            task = read_json(self.folder.task_file) or {}
        settings = task.get("settings")
        return {key: settings[key] for key in SETTINGS if key in settings} if isinstance(settings, dict) else {}

    def prepare(self, given: Mapping[str, Any]) -> None:
        """Write down what is to be done, and put away what an earlier job has said."""
        self.folder.result_file.unlink(missing_ok=True)
        put_failure_aside(self.folder, by_hand=True)
        judge = None if self.judge is None else self.judge.run.id
        write_json(self.folder.task_file, {"judge": judge, "settings": dict(given)})


def find_jobs(study_dir: Path, *, only: Sequence[str] = (), exclude: Sequence[str] = ()) -> list[BehaviourJob]:
    """The behaviour jobs that a study is to have, whatever has been computed. Reads checkpoints, writes nothing.

    Raises:
        UsageError: a filter is wrong, or no run passes.
        FileError: ``study.json`` is damaged, or a checkpoint cannot be read.
    """
    runs = observe_study(study_dir)
    chosen = choose(runs, listed=listed_fingerprints(study_dir), only=only, exclude=exclude)
    checksum = _checksums()
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


def _checksums() -> Callable[[Path], str | None]:
    """SHA-256 of files, none where there is none; each file is read once."""
    known: dict[Path, str | None] = {}

    def checksum(path: Path) -> str | None:
        if path not in known:
            known[path] = file_sha256(path)
        return known[path]

    return checksum
