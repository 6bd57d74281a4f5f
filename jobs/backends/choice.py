"""Which backend a launch uses, and its settings: flag over environment over manifest over default."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.backends.base import Backend
from jobs.backends.local import LocalBackend
from jobs.manifests.load import Manifest
from seqlm.environment import BACKEND
from seqlm.errors import BackendError, UsageError


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
    table: Mapping[str, Any] = field(default_factory=dict)
    """The manifest's table of this backend, as written."""
    where: str = ""
    """The file that has the table, for messages."""
    ray_address: str | None = None
    """The Ray cluster to join. ``None`` means start one on this machine."""

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


def choose_backend(
    manifest: Manifest | None,
    *,
    last: str | None = None,
    kept: Mapping[str, Mapping[str, Any]] | None = None,
    name: str | None,
    max_parallel: int | None,
    retries: int | None,
    ray_address: str | None,
) -> BackendChoice:
    """Return the backend of a launch. ``name`` to ``ray_address`` are flags; ``None``: the flag is not given.

    Without a manifest, ``last`` is the backend of the study's last launch, and ``kept`` its ``[backend.*]`` tables.

    Raises:
        UsageError: ``SEQLM_BACKEND`` names no backend, or a flag belongs to another backend.
    """
    chosen = name or BACKEND.read() or (manifest.backend_name if manifest else last) or default_backend()
    if ray_address is not None and chosen != "ray":
        raise UsageError(f"--ray-address: the backend is {chosen}; add --backend ray, or leave the address out")
    table = (manifest.backend if manifest else kept or {}).get(chosen, {})
    return BackendChoice(
        name=chosen,
        table=table,
        where=manifest.path.name if manifest else "study.json",
        max_parallel=max_parallel or table.get("max_parallel"),
        retries=table.get("retries") if retries is None else retries,
        env=table.get("env", {}),
        env_pass=tuple(table.get("env_pass", ())),
        progress_s=table.get("progress_s"),
        ray_address=(ray_address or os.environ.get("RAY_ADDRESS") or table.get("address")) if chosen == "ray" else None,
    )


def default_backend() -> str:
    """Return ``ray`` if it is installed, else ``local``."""
    return "ray" if importlib.util.find_spec("ray") else "local"
