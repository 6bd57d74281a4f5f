"""Where runs go, and the ways to launch them there: attended, in the background, or by SLURM."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from jobs import terminal
from jobs.attempt.supervisor import progress_variables
from jobs.backends.base import Backend
from jobs.cli.arguments import Arguments
from jobs.cli.parser import flag_of
from jobs.cli.progress import Watcher, follow_launch, tell_skipped, watch
from jobs.launch.background import detach
from jobs.launch.job import LaunchOptions
from jobs.launch.prepare import launched, preparing, waiting_for_budget
from jobs.manifests import secrets
from jobs.manifests.load import Manifest
from jobs.registry import BACKENDS, backend_class, default_backend
from jobs.spec import RunSpec
from jobs.study.folder import ObservedRun, study_name
from jobs.study.record import StudyRecord
from seqlm import machine
from seqlm.environment import BACKEND, DEVICE
from seqlm.errors import BackendError, UsageError, printable
from seqlm.requests import Requests

LAUNCH_FILE = Path(__file__).resolve().parents[2] / "launch.py"

# -- where runs go -------------------------------------------------------------------------------------------------


def choose(
    arguments: Arguments,
    manifest: Manifest | None = None,
    *,
    last: str | None = None,
    kept: Mapping[str, Mapping[str, Any]] | None = None,
) -> Backend:
    """Return the backend of a launch, with its settings: flags override those of the manifest and the environment.

    Without a manifest, ``last`` is the backend of the study's last launch, and ``kept`` its ``[backend.*]`` tables.

    Raises:
        UsageError: ``SEQLM_BACKEND`` names no backend, ``SEQLM_DEVICE`` no device, or a flag belongs to another
            backend.
        BackendError: ``SEQLM_DEVICE`` is ``cuda`` and this machine, where runs are to go, has no GPU.
        ManifestError: a table or the site file is wrong.
    """
    variable = BACKEND.read(is_valid=lambda name: name in (*BACKENDS, None), expected=", ".join(BACKENDS))
    wanted = arguments.backend or variable or (manifest.backend_name if manifest else last)
    name = wanted if wanted in BACKENDS else default_backend()
    kind: type[Backend] = backend_class(name)
    table = (manifest.backend if manifest else kept or {}).get(name, {})
    where = str(manifest.path) if manifest else "study.json"
    # The names of the keys alone: values of env and setup may be secrets, and a launcher's output goes to a log.
    terminal.detail(f"backend: {name}; set in {where}: {', '.join(table) or 'nothing'}")
    backend = kind(replace(kind.read(table, where=where), **_settings_of(arguments, name)))
    if not backend.is_here or (device := DEVICE.read()) is None:
        return backend
    if device == "cuda" and not machine.gpus():
        raise BackendError(f"{DEVICE.name}=cuda: this machine has no GPU that this process may use")
    return kind(replace(backend.settings, env={DEVICE.name: device, **backend.settings.env}))


def _settings_of(arguments: Arguments, backend: str) -> dict[str, Any]:
    """Return the settings of a backend that flags give."""
    found = {}
    for field in fields(arguments):
        value, (owner, _, key) = getattr(arguments, field.name), field.metadata.get("sets", "").rpartition(".")
        if key and value is not None:
            if owner not in ("", backend):
                raise UsageError(
                    f"{flag_of(field)}: the backend is {backend}; add --backend {owner}, or leave the {key} out"
                )
            found[key] = value
    return found


def choose_again(study_dir: Path, runs: Sequence[ObservedRun], arguments: Arguments) -> Backend:
    """Return where runs of a study go again: to their last backend if it was the same for all, with its settings."""
    newest = Requests(study_dir).by_run()
    names = {newest[one.run.id].record.get("backend") if one.run.id in newest else None for one in runs}
    last = names.pop() if len(names) == 1 else None
    return choose(arguments, last=last, kept=StudyRecord(study_dir, terminal.tell).backends)


# -- the ways to launch --------------------------------------------------------------------------------------------


def carry_out(
    arguments: Arguments, specs: Sequence[RunSpec], options: LaunchOptions, backend: Backend
) -> tuple[dict[str, Any] | None, Collection[str]]:
    """Launch ``specs`` on a backend, and wait unless ``--no-wait`` says otherwise.

    Returns what runs on without this process (``None``: it has waited), and the ids of the runs (none for a launcher
    in the background).

    Raises:
        SeqlmError: nothing has been started, or a canary has failed.
        KeyboardInterrupt: interrupted while waiting.
    """
    settings, name = backend.settings, f"backend.{backend.name}"
    for line in secrets.advice(settings.env, f"{name}.env"):
        terminal.tell(f"warning: {line}")
    options = replace(options, live_code=arguments.live_code, policy=options.policy.with_retries(settings.retries))
    if backend.is_scheduled:
        return _submit(arguments, specs, options, backend)
    if not arguments.no_wait:
        canary = arguments.canary if options.canary is None else options.canary
        return None, attend(specs, replace(options, canary=canary), backend)
    secrets.passed(settings.env_pass, os.environ, name)  # an error now, not in the background
    argv = [word for word in arguments.argv if word not in ("--no-wait", "--json")]
    pid = detach([str(LAUNCH_FILE), *argv], options.study_dir)
    see = f"{terminal.program()} status {printable(str(options.study_dir))}"
    terminal.say(f"launched by process {pid}; see: {see}")
    return {"study": study_name(options.study_dir), "launcher_pid": pid}, ()


def attend(specs: Sequence[RunSpec], options: LaunchOptions, backend: Backend) -> Collection[str]:
    """Launch from this process, wait, and return the ids of the runs. Progress goes to stderr.

    Raises:
        SeqlmError: nothing has been started, or a canary has failed.
        KeyboardInterrupt: interrupted; the workers have stopped.
    """
    settings = backend.settings
    passed = secrets.passed(settings.env_pass, os.environ, f"backend.{backend.name}")
    env = {**settings.env, **passed, **progress_variables(settings.progress_s)}
    options = replace(options, max_parallel=settings.max_parallel, env=env)
    where = backend.where()
    with launched(specs, backend, options) as (planned, dispatch):
        try:
            follow_launch(options.study_dir, where, planned, dispatch)
        except KeyboardInterrupt:
            terminal.tell("the workers have stopped; the same command goes on from here")
            raise
    return {item.run.id for item in planned}


def _submit(
    arguments: Arguments, specs: Sequence[RunSpec], options: LaunchOptions, backend: Any
) -> tuple[dict[str, Any] | None, Collection[str]]:
    """Submit to a scheduler, and watch the jobs unless ``--no-wait`` says otherwise; they need no launcher."""
    study_dir = options.study_dir
    if arguments.canary:
        raise UsageError(f"--canary: jobs of {backend.name} start without canaries so far; leave the flag out")
    backend.check(study_dir)
    with preparing(specs, backend, options) as (planned, prepared):
        tell_skipped(planned)
        jobs: list[str] = []
        if prepared is not None and (why := waiting_for_budget(options)) is not None:
            terminal.tell(f"nothing starts: {why}")
        elif prepared is not None:
            code, request = prepared.code, prepared.request
            jobs = backend.submit(prepared.todo, options, code, request)
            if arguments.then_report:
                job = backend.submit_report(study_dir, request.folder, jobs, code, behaviour=arguments.behaviour)
                terminal.tell(f"the report is written by job {job} after the last run")
    todo = 0 if prepared is None else len(prepared.todo)
    what = f"jobs {', '.join(jobs)}" if jobs else "nothing to submit"
    terminal.tell(f"{study_name(study_dir)}: {todo} of {len(planned)} runs to do: {what}")
    ids = {item.run.id for item in planned}
    if arguments.no_wait:
        return {"study": study_name(study_dir), "jobs": jobs}, ids
    try:
        watch(Watcher(study_dir, ids, every_seconds=backend.settings.progress_s))
    except KeyboardInterrupt:
        terminal.tell("the jobs go on without this terminal; `cancel` stops them")
        raise
    return None, ids
