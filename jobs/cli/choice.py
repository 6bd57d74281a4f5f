"""Which backend a launch uses, and its settings: flag over environment over manifest over default."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs import terminal
from jobs.backends.base import Backend, Target
from jobs.backends.local import LocalBackend
from jobs.cli.arguments import Placement
from jobs.manifests.load import Manifest
from jobs.plan.record import kept_tables
from jobs.study.folder import ObservedRun
from seqlm.environment import BACKEND
from seqlm.errors import BackendError, UsageError
from slurm.backend import SlurmTarget
from slurm.settings import read_settings


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
    slurm: SlurmTarget | None = None
    """The partition of SLURM, whose jobs need no launcher. ``None``: another backend."""

    def make(self) -> Backend:
        """Return the backend. Nothing is started yet.

        Raises:
            BackendError: it has no launcher that waits for its runs.
        """
        if self.name == "local":
            return LocalBackend()
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
    """Return the backend of a launch. SLURM's site file is read here and nowhere else.

    Without a manifest, ``last`` is the backend of the study's last launch, and ``kept`` its ``[backend.*]`` tables.

    Raises:
        UsageError: ``SEQLM_BACKEND`` names no backend, or a flag belongs to another backend.
        ManifestError: a table or the site file is wrong.
    """
    name = arguments.backend or BACKEND.read() or (manifest.backend_name if manifest else last) or default_backend()
    if arguments.ray_address is not None and name != "ray":
        raise UsageError(f"--ray-address: the backend is {name}; add --backend ray, or leave the address out")
    table = (manifest.backend if manifest else kept or {}).get(name, {})
    where = manifest.path.name if manifest else "study.json"
    # The names of the keys alone: values of env and setup may be secrets, and a launcher's output goes to a log.
    terminal.detail(f"backend: {name}; set in {where}: {', '.join(table) or 'nothing'}")
    flag = arguments.max_stalled_retries
    choice = BackendChoice(
        name=name,
        max_parallel=arguments.max_parallel or table.get("max_parallel"),
        retries=table.get("retries") if flag is None else flag,
        env=table.get("env", {}),
        env_pass=tuple(table.get("env_pass", ())),
        progress_s=table.get("progress_s"),
    )
    if name == "ray":
        address = arguments.ray_address or os.environ.get("RAY_ADDRESS") or table.get("address")
        return replace(choice, ray_address=address)
    if name != "slurm":
        return choice
    settings = read_settings(table, where=where, environ=os.environ)
    limit = choice.max_parallel or settings.max_parallel
    retries = settings.retries if choice.retries is None else choice.retries
    target = SlurmTarget(replace(settings, max_parallel=limit, retries=retries))
    return replace(choice, max_parallel=limit, retries=retries, env=settings.env, slurm=target)


def choose_again(study_dir: Path, runs: Sequence[ObservedRun], arguments: Placement) -> BackendChoice:
    """Return where runs of a study go again: to their last backend if it was the same for all, with its settings."""
    names = {(one.run.read_job() or {}).get("backend") for one in runs}
    last = names.pop() if len(names) == 1 else None
    return choose(arguments, last=last, kept=kept_tables(study_dir, terminal.tell))


def default_backend() -> str:
    """Return ``ray`` if it is installed, else ``local``."""
    return "ray" if importlib.util.find_spec("ray") else "local"
