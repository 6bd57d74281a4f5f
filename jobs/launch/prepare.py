"""One launch of a study: find its data, plan its runs, create their folders, keep the code, dispatch."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.attempt.retry import may_go_on
from jobs.backends.base import Backend
from jobs.launch import canary
from jobs.launch.dispatch import Dispatcher, Event
from jobs.manifests.policy import Policy
from jobs.plan.estimate import Estimate, Throughput, earlier_throughput, estimate, training_tokens_per_epoch
from jobs.plan.planned import Planned, plan
from jobs.plan.queue import Work
from jobs.plan.record import write_record
from jobs.spec import Resources, RunSpec
from jobs.study.folder import (
    at_work,
    forget_jobs,
    launcher_of,
    launching,
    observe_run,
    study_name,
    write_queue,
)
from jobs.study.kept_code import Code, keep_code, live_code
from jobs.study.provenance import launch_record, run_record
from seqlm.config import DataConfig
from seqlm.data.corpus import CorpusFacts, load_corpus, resolve_data
from seqlm.data.layout import require_windows
from seqlm.errors import BackendError, DataError
from seqlm.rundir import RunDirectory, append_to, make_directory

TRAINING = "seqlm.training.worker"
"""The module that trains a run."""
WORKER = (sys.executable, "-m", TRAINING)


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """The options of a launch, apart from its runs."""

    study_dir: Path
    """The folder that holds the job folders."""
    worker: str = TRAINING
    """The worker's module: ``python -m WORKER JOB_DIR``."""
    code_dir: Path | None = None
    """The study folder that keeps the code. ``None`` means ``study_dir``."""
    folders: Mapping[str, Path] = field(default_factory=dict)
    """Folders of jobs that are not named after their runs, by the leading digits of the fingerprint."""
    is_stale: Callable[[RunDirectory], bool] | None = None
    """Whether an ended job must run again, however it ended. ``None`` means that ended jobs are left alone."""
    prepare: Callable[[RunDirectory], None] = lambda run: None
    """Called with each job's folder before the job is submitted, with the launch lock held."""
    live_code: bool = False
    """Run workers from the working tree instead of the copy kept with the study."""
    untracked: Sequence[str] = ()
    """Files to keep with the code although git does not track them."""
    retry: bool = False
    """Also launch runs that failed or were cancelled."""
    max_parallel: int | None = None
    """Maximum number of runs at once. ``None`` means as many as the backend has room for."""
    policy: Policy = field(default_factory=Policy)
    """How often failed runs are retried automatically, and how often runs save checkpoints."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables for the workers."""
    canary: bool | None = None
    """Whether canaries run before the grid. ``None`` means that the number of runs decides."""
    record: Mapping[str, Any] | None = None
    """What to write about the manifest in ``study.json``. ``None`` means that no manifest is known."""
    tell: Callable[[str], None] = lambda line: None
    """Called with each line to print: progress of canaries, stopping of runs, a damaged ``study.json``."""


def find_data(flag: Path | None, manifest: Path | None) -> Path | None:
    """Return the path of the corpus: the flag, else ``SEQLM_DATA``, else the manifest's. ``None``: the default path."""
    if flag is not None:
        return flag
    variable = os.environ.get("SEQLM_DATA")
    return Path(variable) if variable else manifest


def resolve_specs(specs: Sequence[RunSpec], data_path: Path | None) -> list[RunSpec]:
    """Return the runs with the digest of their corpus filled in.

    Raises:
        DataError: the text of a ``files`` corpus is missing, or its digest differs from the configuration's.
    """
    resolved: dict[DataConfig, DataConfig] = {}
    for data in dict.fromkeys(spec.config.data for spec in specs):
        resolved[data] = resolve_data(data, data_path)
    return [replace(spec, config=replace(spec.config, data=resolved[spec.config.data])) for spec in specs]


def plan_runs(
    specs: Sequence[RunSpec],
    study_dir: Path,
    *,
    retry: bool = False,
    folders: Mapping[str, Path] | None = None,
    is_stale: Callable[[RunDirectory], bool] | None = None,
) -> list[Planned]:
    """Return what a launch would do with each run. Reads the folders, writes nothing.

    ``folders`` and ``is_stale`` are as in :class:`LaunchOptions`.
    """
    work = at_work(study_dir)
    folders = {**RunDirectory.folders(study_dir), **(folders or {})}
    planned = []
    for spec in specs:
        run = RunDirectory.locate(study_dir, spec.name, spec.fingerprint, folders)
        observation = observe_run(run, work)
        if is_stale is not None and observation.state in ("done", "failed", "cancelled") and is_stale(run):
            observation = replace(observation, state="pending", reason=None, kind=None)
        # Without a failure.json, the scheduler reported the kill: the job could not write the file itself.
        undecided = observation.kind == "oom" and (may_go_on(run) or not run.failure_file.exists())
        has_checkpoint = run.has_checkpoint()
        item = plan(spec, run, observation, has_checkpoint=has_checkpoint, retry=retry, undecided=undecided)
        if item.action == "start" and (reason := run.cannot_go_on(spec.config.train.epochs)):
            item = replace(item, action="skip", reason=reason)
        planned.append(item)
    return planned


def check_data(planned: Sequence[Planned], data_path: Mapping[str, Path | None]) -> dict[str, CorpusFacts]:
    """Read and tokenise every corpus before anything starts, so that errors show at once and workers find it cached.

    Returns the facts of each run's corpus, by run id.

    Raises:
        DataError: a corpus is missing, damaged, or too small for a run's batch and window.
    """
    found: dict[tuple[DataConfig, Path | None], CorpusFacts] = {}
    for item in planned:
        config = item.spec.config
        key = (config.data, data_path.get(item.run.id))
        if key not in found:
            found[key] = load_corpus(*key).facts
        for split, tokens in found[key].tokens.items():
            try:
                require_windows(split, tokens, config.train.batch_size, config.train.seq_len)
            except DataError as error:
                raise DataError(f"{item.spec.name}: {error}") from None
    return {item.run.id: found[item.spec.config.data, data_path.get(item.run.id)] for item in planned}


def estimate_left(item: Planned, facts: CorpusFacts, throughput: Throughput) -> Estimate:
    """Return the estimate of a run. For a run that resumes, the time is that of its remaining epochs."""
    config, done = item.spec.config, epochs_done(item)
    found = estimate(config, facts, throughput, item.spec.resources.ranks)
    if not done or found.seconds is None:
        return found
    return replace(found, seconds=found.seconds * (config.train.epochs - done) / config.train.epochs)


def work_left(item: Planned, facts: CorpusFacts, throughput: Throughput) -> Work:
    """Return the remaining work of a run: operations, and seconds if earlier runs measured the speed."""
    found = estimate_left(item, facts, throughput)
    train = item.spec.config.train
    tokens = training_tokens_per_epoch(facts.tokens["train"], train.batch_size, train.seq_len)
    left = train.epochs - epochs_done(item)
    return Work(flops=float(found.flops_per_token * tokens * left), seconds=found.seconds)


def epochs_done(item: Planned) -> int:
    """Return the number of finished epochs that a resumed run does not repeat."""
    if item.action != "resume" or item.observation.epoch is None:
        return 0
    return item.observation.epoch + 1


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A launch after its checks: every run has its folder, and the study's lock is held."""

    planned: list[Planned]
    """All runs, including skipped ones."""
    todo: list[Planned]
    resources: Mapping[str, Resources]
    """Resolved resources of each run in ``todo``, by run id."""
    facts: Mapping[str, CorpusFacts]
    throughput: Throughput
    """Measurements of earlier runs; empty if ``todo`` is empty."""
    paths: Mapping[str, Path | None]
    """Path of the corpus of each run in ``todo``, by run id."""
    code: Code | None
    """The code that workers run. ``None`` if ``todo`` is empty."""
    worker: str = TRAINING
    """The worker's module in ``code``."""


@contextlib.contextmanager
def preparing(
    specs: Sequence[RunSpec],
    options: LaunchOptions,
    *,
    resolve: Callable[[RunSpec, int], Resources],
    data_path: Callable[[RunSpec], Path | None],
    command: Callable[[RunSpec], list[str]],
) -> Iterator[Prepared]:
    """Check everything before the first file is written, then hold the study's launch lock while the block runs.

    ``resolve`` resolves a run's resources, as :meth:`jobs.backends.base.Target.resolve` does. ``data_path`` returns
    the path of a run's corpus. ``command`` returns the command line that launches one run alone.

    Raises:
        RunBusyError: another launcher is running on this study.
        BackendError, DataError, FileError: nothing has been started.
    """
    look = functools.partial(
        plan_runs,
        specs,
        options.study_dir,
        retry=options.retry,
        folders=options.folders,
        is_stale=options.is_stale,
    )
    expected = [item for item in look() if item.action != "skip"]
    paths = {item.run.id: data_path(item.spec) for item in expected}
    facts = check_data(expected, paths)
    at_most = min(len(expected), options.max_parallel or len(expected))
    resources = {item.run.id: resolve(item.spec, at_most) for item in expected}
    with launching(options.study_dir):
        planned = look()
        todo = [item for item in planned if item.action != "skip" and item.run.id in paths]
        throughput = earlier_throughput(options.study_dir.parent) if todo else Throughput()
        _write_record(options, todo, facts, throughput)
        code = None
        if todo:
            write_queue(options.study_dir, {item.run.id: "about to start" for item in todo})
            code = live_code() if options.live_code else _keep_code(options)
            record = launch_record(study_name(options.study_dir), code)
            for item in todo:
                own = run_record(item.spec, command=command(item.spec), data_path=paths[item.run.id])
                item.run.sweep_launch()
                item.run.create(item.spec.config, {**record, **own})
                options.prepare(item.run)
        yield Prepared(
            planned=planned,
            todo=todo,
            resources=resources,
            facts=facts,
            throughput=throughput,
            paths=paths,
            code=code,
            worker=options.worker,
        )


def _keep_code(options: LaunchOptions) -> Code:
    return keep_code(options.code_dir or options.study_dir, untracked=options.untracked, tell=options.tell)


def _write_record(
    options: LaunchOptions, todo: Sequence[Planned], facts: Mapping[str, CorpusFacts], throughput: Throughput
) -> None:
    """Write ``study.json`` with the current estimate of each run."""
    if options.record is None:
        return

    def now(item: Planned) -> Estimate:
        return estimate_left(item, facts[item.run.id], throughput)

    write_record(options.study_dir, options.record, todo, now, options.tell)


def launch(
    specs: Sequence[RunSpec],
    backend: Backend,
    options: LaunchOptions,
    *,
    data_path: Callable[[RunSpec], Path | None],
    command: Callable[[RunSpec], list[str]],
    progress: Callable[[list[Planned]], Callable[[Event], None]],
) -> list[Planned]:
    """Launch the runs and wait for them. ``progress`` receives the plan and returns the handler of events.

    Raises:
        RunBusyError: another launcher is running on this study.
        BackendError, DataError, FileError: nothing has been started.
        CanaryError: a canary failed; nothing else has been started.
        KeyboardInterrupt: the workers have stopped, and their runs can be resumed.
    """
    with preparing(specs, options, resolve=backend.resolve, data_path=data_path, command=command) as prepared:
        if prepared.code is None:
            progress(prepared.planned)
            return prepared.planned
        todo, throughput = prepared.todo, prepared.throughput
        forget_jobs(options.study_dir, [item.run.id for item in todo])
        try:
            backend.open(prepared.code)
            dispatcher = functools.partial(
                Dispatcher,
                backend,
                code=prepared.code,
                argv=(sys.executable, "-m", prepared.worker),
                data_path=prepared.paths,
                max_parallel=options.max_parallel,
                tell=options.tell,
            )
            if canary.wanted(options.canary, todo):
                write_queue(options.study_dir, {item.run.id: "waits for the canaries" for item in todo})
                trials = [
                    canary.Trial(
                        planned=item, resources=prepared.resources[item.run.id], facts=prepared.facts[item.run.id]
                    )
                    for item in todo
                ]
                canary.check(trials, options.study_dir, backend.name, dispatcher, options.env, options.tell)
                todo = [item for item in todo if not _cancelled_meanwhile(item)]
                throughput = earlier_throughput(options.study_dir.parent)
                _write_record(options, todo, prepared.facts, throughput)
            work = {item.run.id: work_left(item, prepared.facts[item.run.id], throughput) for item in todo}
            dispatcher(
                on_event=progress(prepared.planned),
                work=work,
                policy=options.policy,
                env=options.env,
                tell_queue=functools.partial(write_queue, options.study_dir),
            ).dispatch(todo)
        finally:
            backend.close()
        return prepared.planned


def _cancelled_meanwhile(item: Planned) -> bool:
    """Return whether a run was cancelled after it was planned. One cancelled before is being retried."""
    return item.observation.state != "cancelled" and item.run.is_cancelled()


def detach(argv: Sequence[str], study_dir: Path) -> int:
    """Start a background launcher that outlives this process (``--no-wait``), and return its pid.

    Its output goes to ``launch-NNNN.log`` in the study's folder.

    Raises:
        BackendError: it exited before it acquired the study's lock. The message has the last line of its log.
    """
    make_directory(study_dir)
    log = study_dir / f"launch-{len(list(study_dir.glob('launch-*.log'))) + 1:04d}.log"
    with append_to(log) as output:
        child = subprocess.Popen(
            [sys.executable, *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    while True:
        holder = launcher_of(study_dir)
        if holder is not None and holder.pid == child.pid:
            return child.pid
        if child.poll() is not None:
            if child.returncode == 0:  # it finished before its lock was seen
                return child.pid
            lines = log.read_text("utf-8", errors="replace").strip().splitlines()
            raise BackendError(f"the launcher exited at once: {lines[-1] if lines else 'no output'} (see {log})")
        time.sleep(0.05)
