"""A request to launch, and the three ways to carry it out.

The launcher waits here, or runs in the background or on a remote cluster, or the runs are submitted to SLURM.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs import terminal
from jobs.attempt.supervisor import progress_variables
from jobs.backends.base import Target
from jobs.backends.choice import BackendChoice, choose_backend
from jobs.backends.ray_job import RayJob, is_remote
from jobs.cli.arguments import LaunchArguments, Placement, PlanArguments, read
from jobs.cli.progress import LaunchProgress, Watcher, watch, watch_in_lines
from jobs.launch import logout
from jobs.launch.prepare import LaunchOptions, detach, find_data, launch, preparing
from jobs.manifests import secrets
from jobs.manifests.load import Manifest, load_manifest
from jobs.plan.planned import PlannedRun
from jobs.plan.record import kept_tables
from jobs.spec import RunSpec
from jobs.study.folder import ObservedRun, observe_study, study_name
from seqlm import machine
from seqlm.errors import BackendError, UsageError, printable
from slurm import backend as slurm_backend
from slurm.settings import read_settings

LAUNCH_FILE = Path(__file__).resolve().parents[2] / "launch.py"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be launched, where, and with which options of the command line."""

    arguments: LaunchArguments
    specs: Sequence[RunSpec]
    options: LaunchOptions
    destination: Destination


@dataclass(frozen=True, kw_only=True)
class Launched:
    """What :func:`carry_out` has done."""

    ids: Collection[str] | None = None
    """Ids of the runs that it has waited for. ``None``: all of the study, which a remote launcher has reported on."""
    left: dict[str, Any] | None = None
    """What runs on without this process. ``None``: it has waited."""


def carry_out(request: Request) -> Launched:
    """Launch as asked, and wait unless ``--no-wait`` says otherwise.

    Raises:
        SeqlmError: nothing has been started, or a canary or the remote launcher has failed.
        KeyboardInterrupt: interrupted while waiting.
    """
    request = replace(request, options=replace(request.options, live_code=request.arguments.live_code))
    choice = request.destination.choice
    if request.destination.slurm is not None:
        return _submit(request, request.destination.slurm)
    _advise(choice.env, f"backend.{choice.name}.env")
    if choice.ray_address is not None and is_remote(choice.ray_address):
        return _send(request, choice.ray_address)
    passed = secrets.passed(choice.env_pass, os.environ, f"backend.{choice.name}")
    if request.arguments.no_wait:
        return _detach(request)
    return _attend(request, passed)


def _attend(request: Request, passed: Mapping[str, str]) -> Launched:
    """Launch from this process and wait. ``passed`` are variables of this process that workers get too."""
    options, choice = request.options, request.destination.choice
    study_dir = options.study_dir
    bars: list[LaunchProgress] = []
    backend = choice.make()
    if choice.ray_address is None and (note := machine.order_note()):
        terminal.tell(f"warning: {note}")

    def progress(planned: list[PlannedRun]) -> LaunchProgress:
        todo = sum(item.action != "skip" for item in planned)
        where = request.destination.describe(backend)
        terminal.tell(f"{study_name(study_dir)}: {todo} of {len(planned)} runs to do on {where}")
        _tell_skipped(planned)
        bars.append(LaunchProgress(planned, study_dir))
        return bars[-1]

    options = replace(
        options,
        max_parallel=choice.max_parallel,
        policy=options.policy.with_retries(choice.retries),
        env={**choice.env, **passed, **progress_variables(choice.progress_s)},
        canary=request.arguments.canary,
        tell=terminal.tell,
    )
    try:
        planned = launch(request.specs, backend, options, progress=progress)
    except KeyboardInterrupt:
        _close(bars)
        terminal.tell("the workers have stopped; the same command goes on from here")
        raise
    finally:
        _close(bars)
    return Launched(ids={item.run.id for item in planned})


def _close(bars: Sequence[LaunchProgress]) -> None:
    for bar in bars:
        bar.close()


def _detach(request: Request) -> Launched:
    """Start this command line again in the background."""
    arguments, study_dir = request.arguments, request.options.study_dir
    pid = detach([str(LAUNCH_FILE), *_without(arguments.argv, "--no-wait", "--json")], study_dir)
    terminal.say(f"launched by process {pid}; see: {terminal.program()} status {printable(str(study_dir))}")
    if line := logout.advice([*terminal.program().split(), *arguments.argv]):
        terminal.tell(f"warning: {line}")
    return Launched(left={"study": study_name(study_dir), "launcher_pid": pid})


def _send(request: Request, address: str) -> Launched:
    """Have the same command line run on a remote Ray cluster, and wait for it unless ``--no-wait`` says otherwise."""
    arguments, options = request.arguments, request.options
    if arguments.live_code:
        raise UsageError("--live-code: a remote cluster is sent a copy of the code; leave the flag out")
    jobs_dir, study_dir = options.study_dir, options.code_dir or options.study_dir
    words = _without(arguments.argv, "--no-wait", "--json")
    manifest, recorded = None, None
    if isinstance(arguments, PlanArguments):
        manifest = Path(arguments.manifest).absolute()
        recorded = load_manifest(manifest).data_path
        words = _with_argument(words, "manifest", manifest.name)
    else:
        words = _with_argument(words, "study", str(study_dir.absolute()))
    data = find_data(arguments.data, recorded)
    words += ["--runs-dir", str(study_dir.parent.absolute()), "--backend", "ray", "--ray-address", "auto"]
    words += ["--data", str(data.absolute())] if data else []
    job = RayJob(address)
    job.submit(words, jobs_dir, manifest, code_dir=study_dir, untracked=options.untracked, tell=terminal.tell)
    see = f"{terminal.program()} status {printable(str(jobs_dir))}"
    terminal.say(f"launched by Ray job {job.id} on {job.address}; see: {see}")
    if arguments.no_wait:
        return Launched(left={"study": study_name(jobs_dir), "ray_job": job.id})
    try:
        if not (arguments.json or arguments.quiet):
            watch(Watcher(jobs_dir))
        while not job.is_over():
            time.sleep(0.5)
    except KeyboardInterrupt:
        job.stop()
        raise
    if not observe_study(jobs_dir) or job.has_failed():
        raise BackendError(f"the launcher on the cluster ended with: {job.last_line()}")
    return Launched()


def _submit(request: Request, target: slurm_backend.SlurmTarget) -> Launched:
    """Submit to SLURM, and watch the jobs unless ``--no-wait`` says otherwise; they need no launcher."""
    arguments, study_dir, settings = request.arguments, request.options.study_dir, target.settings
    if arguments.canary:
        raise UsageError("--canary: jobs of SLURM start without canaries so far; leave the flag out")
    slurm_backend.check(study_dir, settings)
    _advise(settings.env, "backend.slurm.env")
    policy = request.options.policy.with_retries(settings.retries)
    options = replace(request.options, policy=policy, tell=terminal.tell)
    with preparing(request.specs, target, options) as prepared:
        _tell_skipped(prepared.planned)
        arrays: list[str] = []
        if prepared.code is not None:
            arrays = slurm_backend.submit(prepared.todo, options, settings, prepared.code)
            if arguments.then_report:
                report = slurm_backend.submit_report(
                    study_dir, arrays, settings, prepared.code, behaviour=arguments.behaviour
                )
                terminal.tell(f"the report is written by job {report} after the last run")
    what = f"jobs {', '.join(arrays)}" if arrays else "nothing to submit"
    todo = f"{len(prepared.todo)} of {len(prepared.planned)} runs to do"
    terminal.tell(f"{study_name(study_dir)}: {todo}: {what}")
    if arguments.no_wait:
        return Launched(left={"study": study_name(study_dir), "jobs": arrays})
    ids = {item.run.id for item in prepared.planned}
    watcher = Watcher(study_dir, ids, every_seconds=settings.progress_s)
    try:
        if arguments.quiet:
            with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
                watch_in_lines(watcher, nowhere)
        elif arguments.json:
            watch_in_lines(watcher, sys.stderr)
        else:
            watch(watcher)
    except KeyboardInterrupt:
        terminal.tell("the jobs go on without this terminal; `cancel` stops them")
        raise
    return Launched(ids=ids)


def _tell_skipped(planned: Sequence[PlannedRun]) -> None:
    for item in planned:
        if item.action == "skip":
            tell = terminal.detail if item.reason == "done" else terminal.tell
            tell(f"skipped {item.spec.name}: {item.reason}")


def _advise(env: Mapping[str, str], where: str) -> None:
    for line in secrets.advice(env, where):
        terminal.tell(f"warning: {line}")


def _without(words: Sequence[str], *flags: str) -> list[str]:
    return [word for word in words if word not in flags]


def _with_argument(words: Sequence[str], name: str, value: str) -> list[str]:
    """Return a command line with ``value`` for its argument ``name``. Equal words with another meaning stay.

    Raises:
        UsageError: ``value`` cannot stand in that place of a command line.
    """
    before = read(words)
    assert before is not None, "it has a command"
    change: dict[str, Any] = {name: value}
    after = replace(before, **change)
    for place, word in enumerate(words):
        changed = [*words[:place], value, *words[place + 1 :]]
        with contextlib.suppress(UsageError):
            if word == getattr(before, name) and read(changed) == after:
                return changed
    raise UsageError(f"{printable(value)}: cannot be sent as the {name} of a command line; rename it")


# -- where runs go -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Destination:
    """A backend with the settings that hold for this command."""

    choice: BackendChoice
    """Its limits include those of SLURM's site file."""
    slurm: slurm_backend.SlurmTarget | None = None

    @property
    def target(self) -> Target:
        """What can be asked of the backend before anything starts.

        Raises:
            BackendError: it does not exist here.
        """
        return self.slurm or self.choice.make()

    def describe(self, target: Target) -> str:
        limit = f", at most {self.choice.max_parallel} at once" if self.choice.max_parallel else ""
        return f"{target.describe()}{limit}"


def choose(
    arguments: Placement,
    manifest: Manifest | None,
    *,
    last: str | None = None,
    kept: Mapping[str, Mapping[str, Any]] | None = None,
) -> Destination:
    """Return where runs go. SLURM's site file is read here and nowhere else.

    Without a manifest, ``last`` is the backend of the last launch and ``kept`` its tables ``[backend.*]``.

    Raises:
        UsageError, ManifestError: a flag, a variable, a table or the site file is wrong.
    """
    choice = choose_backend(
        manifest,
        last=last,
        kept=kept,
        name=arguments.backend,
        max_parallel=arguments.max_parallel,
        retries=arguments.max_stalled_retries,
        ray_address=arguments.ray_address,
    )
    # The names of the keys alone: values of env and setup may be secrets, and a launcher's output goes to a log.
    terminal.detail(f"backend: {choice.name}; set in {choice.where}: {', '.join(choice.table) or 'nothing'}")
    if choice.name != "slurm":
        return Destination(choice=choice)
    settings = read_settings(choice.table, where=choice.where, environ=os.environ)
    limit = choice.max_parallel or settings.max_parallel
    retries = settings.retries if choice.retries is None else choice.retries
    settings = replace(settings, max_parallel=limit, retries=retries)
    choice = replace(choice, max_parallel=limit, retries=retries)
    return Destination(choice=choice, slurm=slurm_backend.SlurmTarget(settings))


def choose_again(study_dir: Path, runs: Sequence[ObservedRun], arguments: Placement) -> Destination:
    """Return where runs of a study go again: to their last backend if it was the same for all, with its settings."""
    names = {(one.run.read_job() or {}).get("backend") for one in runs}
    last = names.pop() if len(names) == 1 else None
    return choose(arguments, None, last=last, kept=kept_tables(study_dir, terminal.tell))
