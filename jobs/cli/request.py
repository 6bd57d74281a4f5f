"""Where runs go, and the ways to launch them there.

The launcher waits here, or runs in the background or on a remote cluster, or the runs are submitted to SLURM.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs import terminal
from jobs.attempt.supervisor import progress_variables
from jobs.backends.base import Target
from jobs.backends.choice import BackendChoice, choose_backend
from jobs.backends.ray_job import RayJob, is_remote
from jobs.cli.arguments import LaunchArguments, Placement, PlanArguments, read
from jobs.cli.progress import LaunchProgress, Watcher, tell_skipped, watch, watch_in_lines
from jobs.launch import logout
from jobs.launch.options import LaunchOptions
from jobs.launch.prepare import detach, find_data, launch, preparing
from jobs.manifests import secrets
from jobs.manifests.load import Manifest, load_manifest
from jobs.manifests.reader import find_manifest
from jobs.plan.record import kept_tables
from jobs.spec import RunSpec
from jobs.study.folder import ObservedRun, observe_study, study_name
from seqlm import machine
from seqlm.errors import BackendError, UsageError, printable
from slurm import backend as slurm_backend
from slurm.settings import read_settings

LAUNCH_FILE = Path(__file__).resolve().parents[2] / "launch.py"


def carry_out(
    arguments: LaunchArguments,
    specs: Sequence[RunSpec],
    options: LaunchOptions,
    choice: BackendChoice,
    slurm: slurm_backend.SlurmTarget | None = None,
) -> tuple[dict[str, Any] | None, Collection[str] | None]:
    """Launch ``specs`` where :func:`choose` says, and wait unless ``--no-wait`` says otherwise.

    Returns what runs on without this process (``None``: it has waited), and the ids of the runs (``None``: all of the
    study, on which a remote launcher has reported).

    Raises:
        SeqlmError: nothing has been started, or a canary or the remote launcher has failed.
        KeyboardInterrupt: interrupted while waiting.
    """
    policy = options.policy.with_retries(choice.retries)
    options = replace(options, live_code=arguments.live_code, policy=policy, tell=terminal.tell)
    if slurm is not None:
        return _submit(arguments, specs, options, choice, slurm)
    if choice.ray_address is not None and is_remote(choice.ray_address):
        _advise(choice)
        return _send(arguments, options, choice.ray_address)
    if arguments.no_wait:
        _advise(choice)
        secrets.passed(choice.env_pass, os.environ, f"backend.{choice.name}")  # an error now, not in the background
        return _detach(arguments, options.study_dir), None
    return None, attend(specs, replace(options, canary=arguments.canary), choice)


def attend(specs: Sequence[RunSpec], options: LaunchOptions, choice: BackendChoice) -> Collection[str]:
    """Launch from this process, wait, and return the ids of the runs. Progress goes to stderr.

    Raises:
        SeqlmError: nothing has been started, or a canary has failed.
        KeyboardInterrupt: interrupted; the workers have stopped.
    """
    _advise(choice)
    passed = secrets.passed(choice.env_pass, os.environ, f"backend.{choice.name}")
    backend = choice.make()
    if choice.ray_address is None and (note := machine.order_note()):
        terminal.tell(f"warning: {note}")
    env = {**choice.env, **passed, **progress_variables(choice.progress_s)}
    options = replace(options, max_parallel=choice.max_parallel, env=env)
    try:
        with contextlib.closing(LaunchProgress(options.study_dir, where(backend, choice))) as progress:
            planned = launch(specs, backend, options, progress=progress.start)
    except KeyboardInterrupt:
        terminal.tell("the workers have stopped; the same command goes on from here")
        raise
    return {item.run.id for item in planned}


def _detach(arguments: LaunchArguments, study_dir: Path) -> dict[str, Any]:
    """Start this command line again in the background."""
    pid = detach([str(LAUNCH_FILE), *_attended(arguments)], study_dir)
    terminal.say(f"launched by process {pid}; see: {terminal.program()} status {printable(str(study_dir))}")
    if line := logout.advice([*terminal.program().split(), *arguments.argv]):
        terminal.tell(f"warning: {line}")
    return {"study": study_name(study_dir), "launcher_pid": pid}


def _send(arguments: LaunchArguments, options: LaunchOptions, address: str) -> tuple[dict[str, Any] | None, None]:
    """Have the same command line run on a remote Ray cluster, and wait for it unless ``--no-wait`` says otherwise."""
    if arguments.live_code:
        raise UsageError("--live-code: a remote cluster is sent a copy of the code; leave the flag out")
    jobs_dir, study_dir = options.study_dir, options.code_dir or options.study_dir
    manifest, recorded = None, None
    if isinstance(arguments, PlanArguments):
        manifest = find_manifest(arguments.manifest).absolute()
        recorded = load_manifest(manifest).data_path
        words = _with_argument(_attended(arguments), "manifest", manifest.name)
    else:
        words = _with_argument(_attended(arguments), "study", str(study_dir.absolute()))
    data = find_data(arguments.data, recorded)
    words += ["--runs-dir", str(study_dir.parent.absolute()), "--backend", "ray", "--ray-address", "auto"]
    words += ["--data", str(data.absolute())] if data else []
    job = RayJob(address)
    job.submit(words, jobs_dir, manifest, code_dir=study_dir, untracked=options.untracked, tell=terminal.tell)
    see = f"{terminal.program()} status {printable(str(jobs_dir))}"
    terminal.say(f"launched by Ray job {job.id} on {job.address}; see: {see}")
    if arguments.no_wait:
        return {"study": study_name(jobs_dir), "ray_job": job.id}, None
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
    return None, None


def _submit(
    arguments: LaunchArguments,
    specs: Sequence[RunSpec],
    options: LaunchOptions,
    choice: BackendChoice,
    target: slurm_backend.SlurmTarget,
) -> tuple[dict[str, Any] | None, Collection[str]]:
    """Submit to SLURM, and watch the jobs unless ``--no-wait`` says otherwise; they need no launcher."""
    study_dir, settings = options.study_dir, target.settings
    if arguments.canary:
        raise UsageError("--canary: jobs of SLURM start without canaries so far; leave the flag out")
    slurm_backend.check(study_dir, settings)
    _advise(choice)
    with preparing(specs, target, options) as prepared:
        tell_skipped(prepared.planned)
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
    ids = {item.run.id for item in prepared.planned}
    if arguments.no_wait:
        return {"study": study_name(study_dir), "jobs": arrays}, ids
    watcher = Watcher(study_dir, ids, every_seconds=settings.progress_s)
    try:
        if arguments.quiet:
            for _ in watcher.looks():
                pass
        elif arguments.json:
            watch_in_lines(watcher, sys.stderr)
        else:
            watch(watcher)
    except KeyboardInterrupt:
        terminal.tell("the jobs go on without this terminal; `cancel` stops them")
        raise
    return None, ids


def _advise(choice: BackendChoice) -> None:
    """Warn of values among a backend's variables for workers that look like secrets."""
    for line in secrets.advice(choice.env, f"backend.{choice.name}.env"):
        terminal.tell(f"warning: {line}")


def _attended(arguments: LaunchArguments) -> list[str]:
    """Return the command line with which another launcher waits for the same runs."""
    return [word for word in arguments.argv if word not in ("--no-wait", "--json")]


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


def where(target: Target, choice: BackendChoice) -> str:
    """Return a few words about where runs go and how many at once."""
    limit = f", at most {choice.max_parallel} at once" if choice.max_parallel else ""
    return f"{target.describe()}{limit}"


def choose(
    arguments: Placement,
    manifest: Manifest | None,
    *,
    last: str | None = None,
    kept: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[BackendChoice, slurm_backend.SlurmTarget | None]:
    """Return the backend, and for SLURM the target. SLURM's site file is read here and nowhere else.

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
        return choice, None
    settings = read_settings(choice.table, where=choice.where, environ=os.environ)
    limit = choice.max_parallel or settings.max_parallel
    retries = settings.retries if choice.retries is None else choice.retries
    settings = replace(settings, max_parallel=limit, retries=retries)
    choice = replace(choice, max_parallel=limit, retries=retries, env=settings.env)
    return choice, slurm_backend.SlurmTarget(settings)


def choose_again(
    study_dir: Path, runs: Sequence[ObservedRun], arguments: Placement
) -> tuple[BackendChoice, slurm_backend.SlurmTarget | None]:
    """Return where runs of a study go again: to their last backend if it was the same for all, with its settings."""
    names = {(one.run.read_job() or {}).get("backend") for one in runs}
    last = names.pop() if len(names) == 1 else None
    return choose(arguments, None, last=last, kept=kept_tables(study_dir, terminal.tell))
