"""Where runs go, and the ways to launch them there: attended, in the background, or by SLURM."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs import terminal
from jobs.attempt.supervisor import progress_variables
from jobs.backends.base import Backend, Target
from jobs.backends.local import LocalBackend
from jobs.cli.arguments import LaunchArguments, Placement
from jobs.cli.progress import LaunchProgress, Watcher, tell_skipped, watch, watch_in_lines
from jobs.launch.background import detach
from jobs.launch.job import LaunchOptions
from jobs.launch.prepare import launched, preparing, waiting_for_budget
from jobs.manifests import secrets
from jobs.manifests.load import Manifest
from jobs.plan.record import kept_tables
from jobs.spec import RunSpec
from jobs.study.folder import ObservedRun, study_name
from seqlm import machine
from seqlm.environment import BACKEND, DEVICE
from seqlm.errors import BackendError, UsageError, printable
from slurm import backend as slurm_backend
from slurm.settings import read_settings

LAUNCH_FILE = Path(__file__).resolve().parents[2] / "launch.py"

# -- where runs go -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BackendChoice:
    """A backend by name, with its settings."""

    name: str
    max_parallel: int | None = None
    """Most runs at once."""
    retries: int | None = None
    """Overrides ``max_stalled_retries`` of the policy. ``None``: no override."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables for the workers."""
    env_pass: tuple[str, ...] = ()
    """Names of variables of this process that are passed to workers."""
    progress_s: float | None = None
    """Least seconds between two writes of a worker's progress. ``None``: the backend's default."""
    ray_address: str | None = None
    """The Ray cluster to join. ``None`` means start one on this machine."""
    slurm: slurm_backend.SlurmTarget | None = None
    """The partition of SLURM, whose jobs need no launcher. ``None``: another backend."""

    @property
    def is_here(self) -> bool:
        """Whether runs go to this machine alone."""
        return self.name == "local" or (self.name == "ray" and self.ray_address is None)

    def target(self) -> Target:
        """Return where runs would go. Ray is imported to ask a cluster alone: a Ray of this machine has what it has."""
        if self.name == "ray" and self.ray_address is None:
            return LocalBackend(described="Ray on this machine")
        return self.slurm or self.make()

    def make(self, study_dir: Path | None = None) -> Backend:
        """Return the backend, for runs of a study. Nothing is started yet.

        Raises:
            BackendError: it has no launcher that waits for its runs.
        """
        if self.name == "local":
            return LocalBackend(study_dir)
        if self.name == "ray":
            from jobs.backends.ray_backend import RayBackend  # importing Ray takes half a second

            return RayBackend(address=self.ray_address)
        raise BackendError(f"backend {self.name} has no launcher that waits for its runs")

    def where(self, target: Target) -> str:
        """Return a few words about where runs go and how many at once."""
        limit = f", at most {self.max_parallel} at once" if self.max_parallel else ""
        return f"{target.describe()}{limit}"


def choose(
    arguments: Placement,
    manifest: Manifest | None = None,
    *,
    last: str | None = None,
    kept: Mapping[str, Mapping[str, Any]] | None = None,
) -> BackendChoice:
    """Return the backend of a launch, with its settings: on SLURM those of the manifest and the site file.

    Without a manifest, ``last`` is the backend of the study's last launch, and ``kept`` its ``[backend.*]`` tables.

    Raises:
        UsageError: ``SEQLM_BACKEND`` names no backend, ``SEQLM_DEVICE`` no device, or a flag belongs to another
            backend.
        BackendError: ``SEQLM_DEVICE`` is ``cuda`` and this machine, where runs are to go, has no GPU.
        ManifestError: a table or the site file is wrong.
    """
    name = arguments.backend or BACKEND.read() or (manifest.backend_name if manifest else last) or default_backend()
    if arguments.ray_address is not None and name != "ray":
        raise UsageError(f"--ray-address: the backend is {name}; add --backend ray, or leave the address out")
    table = (manifest.backend if manifest else kept or {}).get(name, {})
    where = manifest.path.name if manifest else "study.json"
    # The names of the keys alone: values of env and setup may be secrets, and a launcher's output goes to a log.
    terminal.detail(f"backend: {name}; set in {where}: {', '.join(table) or 'nothing'}")
    settings = read_settings(table, where=where, environ=os.environ) if name == "slurm" else None
    table = table if settings is None else vars(settings)
    flag, limit = arguments.max_stalled_retries, arguments.max_parallel or table.get("max_parallel")
    retries = table.get("retries") if flag is None else flag
    address = arguments.ray_address or os.environ.get("RAY_ADDRESS") or table.get("address")
    target = None
    if settings is not None:
        target = slurm_backend.SlurmTarget(replace(settings, max_parallel=limit, retries=retries))
    choice = BackendChoice(
        name=name,
        max_parallel=limit,
        retries=retries,
        env=table.get("env", {}),
        env_pass=tuple(table.get("env_pass", ())),
        progress_s=table.get("progress_s"),
        ray_address=address if name == "ray" else None,
        slurm=target,
    )
    if not choice.is_here or (device := DEVICE.read()) is None:
        return choice
    if device == "cuda" and not machine.gpus():
        raise BackendError(f"{DEVICE.name}=cuda: this machine has no GPU that this process may use")
    return replace(choice, env={DEVICE.name: device, **choice.env})


def choose_again(study_dir: Path, runs: Sequence[ObservedRun], arguments: Placement) -> BackendChoice:
    """Return where runs of a study go again: to their last backend if it was the same for all, with its settings."""
    names = {(one.run.read_job() or {}).get("backend") for one in runs}
    last = names.pop() if len(names) == 1 else None
    return choose(arguments, last=last, kept=kept_tables(study_dir, terminal.tell))


def default_backend() -> str:
    """Return ``ray`` if it is installed, else ``local``."""
    return "ray" if importlib.util.find_spec("ray") else "local"


# -- the ways to launch --------------------------------------------------------------------------------------------


def carry_out(
    arguments: LaunchArguments, specs: Sequence[RunSpec], options: LaunchOptions, choice: BackendChoice
) -> tuple[dict[str, Any] | None, Collection[str]]:
    """Launch ``specs`` on the chosen backend, and wait unless ``--no-wait`` says otherwise.

    Returns what runs on without this process (``None``: it has waited), and the ids of the runs (none for a launcher
    in the background).

    Raises:
        SeqlmError: nothing has been started, or a canary has failed.
        KeyboardInterrupt: interrupted while waiting.
    """
    for line in secrets.advice(choice.env, f"backend.{choice.name}.env"):
        terminal.tell(f"warning: {line}")
    options = replace(options, live_code=arguments.live_code, policy=options.policy.with_retries(choice.retries))
    if choice.slurm is not None:
        return _submit(arguments, specs, options, choice.slurm)
    if not arguments.no_wait:
        return None, attend(specs, replace(options, canary=arguments.canary), choice)
    secrets.passed(choice.env_pass, os.environ, f"backend.{choice.name}")  # an error now, not in the background
    pid = detach([str(LAUNCH_FILE), *_attended(arguments)], options.study_dir)
    see = f"{terminal.program()} status {printable(str(options.study_dir))}"
    terminal.say(f"launched by process {pid}; see: {see}")
    return {"study": study_name(options.study_dir), "launcher_pid": pid}, ()


def attend(specs: Sequence[RunSpec], options: LaunchOptions, choice: BackendChoice) -> Collection[str]:
    """Launch from this process, wait, and return the ids of the runs. Progress goes to stderr.

    Raises:
        SeqlmError: nothing has been started, or a canary has failed.
        KeyboardInterrupt: interrupted; the workers have stopped.
    """
    passed = secrets.passed(choice.env_pass, os.environ, f"backend.{choice.name}")
    backend = choice.make(options.study_dir)
    if choice.ray_address is None and (note := machine.order_note()):
        terminal.tell(f"warning: {note}")
    env = {**choice.env, **passed, **progress_variables(choice.progress_s)}
    options = replace(options, max_parallel=choice.max_parallel, env=env)
    where = choice.where(backend)
    try:
        with (
            launched(specs, backend, options) as (planned, events),
            contextlib.closing(LaunchProgress(options.study_dir, where, planned)) as progress,
        ):
            for event in events:
                progress.show(event)
    except KeyboardInterrupt:
        terminal.tell("the workers have stopped; the same command goes on from here")
        raise
    return {item.run.id for item in planned}


def _submit(
    arguments: LaunchArguments, specs: Sequence[RunSpec], options: LaunchOptions, target: slurm_backend.SlurmTarget
) -> tuple[dict[str, Any] | None, Collection[str]]:
    """Submit to SLURM, and watch the jobs unless ``--no-wait`` says otherwise; they need no launcher."""
    study_dir, settings = options.study_dir, target.settings
    if arguments.canary:
        raise UsageError("--canary: jobs of SLURM start without canaries so far; leave the flag out")
    slurm_backend.check(study_dir, settings)
    with preparing(specs, target, options) as (planned, todo, code):
        tell_skipped(planned)
        arrays: list[str] = []
        why = waiting_for_budget(options)
        if why is not None and todo:
            terminal.tell(f"nothing starts: {why}")
        elif code is not None:
            arrays = slurm_backend.submit(todo, options, settings, code)
            if arguments.then_report:
                job = slurm_backend.submit_report(study_dir, arrays, settings, code, behaviour=arguments.behaviour)
                terminal.tell(f"the report is written by job {job} after the last run")
    what = f"jobs {', '.join(arrays)}" if arrays else "nothing to submit"
    terminal.tell(f"{study_name(study_dir)}: {len(todo)} of {len(planned)} runs to do: {what}")
    ids = {item.run.id for item in planned}
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


def _attended(arguments: LaunchArguments) -> list[str]:
    """Return the command line with which another launcher waits for the same runs."""
    return [word for word in arguments.argv if word not in ("--no-wait", "--json")]
