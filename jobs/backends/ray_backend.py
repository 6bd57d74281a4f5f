"""Backend ``ray``: a Ray cluster, or a Ray of its own that a launch starts on this machine and ends.

Ray itself, which takes half a second to import, is imported to ask a cluster and to start runs
(:mod:`jobs.backends.ray_executor`).
"""

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, final

from jobs.backends.base import Backend, Executor, Finding, SharedTable
from jobs.backends.local import require_device, require_left, this_machine
from jobs.plan.capacity import Capacity
from jobs.spec import Resources, RunSpec
from seqlm.errors import BackendError
from seqlm.schema import Valid


@dataclass(frozen=True, kw_only=True)
class RayTable(SharedTable):
    """``[backend.ray]``."""

    address: Annotated[str, Valid('an address, such as "auto"', least=1)] | None = None
    """The Ray cluster to join, such as `"auto"`; without it, or with `"local"`, seqlm starts Ray on this machine.
    `--ray-address` and `RAY_ADDRESS` override it."""


@final
class RayBackend(Backend):
    """Placement groups of a Ray cluster; without an address, of a Ray on this machine, which has what that has."""

    name = "ray"
    TABLE = RayTable
    _asks_memory = False
    """Whether a run asks for the memory of a GPU, which the nodes of a cluster are then asked for."""

    @property
    def is_here(self) -> bool:  # type: ignore[override]
        return self.settings.address is None

    @classmethod
    def read(cls, table: Mapping[str, Any], *, where: str) -> RayTable:
        settings: RayTable = super().read(table, where=where)
        address = os.environ.get("RAY_ADDRESS") or settings.address
        # To Ray, "local" is a Ray of its own. Started by seqlm, it is closed to other users.
        return replace(settings, address=None if address == "local" else address)

    @classmethod
    def doctor(
        cls, *, runs_dir: Path, is_asked: bool, wait_s: float, site: Path | None = None, record: Path | None = None
    ) -> list[Finding]:
        """Check that Ray is installed, and that the cluster of ``RAY_ADDRESS`` answers."""
        if not find_spec("ray"):
            return [Finding("note", "Ray", "not installed; runs go to backend local")]
        backend = cls(cls.read({}, where=""))
        if backend.is_here:
            return [Finding("ok", "Ray", "installed; one is started on this machine for each launch")]
        try:
            return [Finding("ok", "Ray", backend.describe())]
        except BackendError as error:
            return [Finding("bad", "Ray", str(error))]

    def describe(self) -> str:
        place = "Ray on this machine" if self.is_here else f"the Ray cluster at {self.settings.address}"
        return f"{place} ({self.capacity().describe()})"

    @functools.cached_property
    def _capacity(self) -> Capacity:
        if self.is_here:
            return this_machine()
        from jobs.backends.ray_cluster import RayCluster

        return RayCluster(self.settings.address, asks_memory=self._asks_memory).capacity()

    def capacity(self) -> Capacity:
        return self._capacity.copy()

    def resolve(self, spec: RunSpec, at_most: int) -> Resources:
        if spec.resources.gpu_memory_gb is not None and not self._asks_memory:
            self._asks_memory = True
            self.__dict__.pop("_capacity", None)  # which is without it
        resources = self.capacity().resolve(spec.resources, at_most)
        require_left(resources, self._capacity, self.settings.leave_gpus)
        if self.is_here:
            require_device(spec, resources)
        return resources

    def executor(self, study_dir: Path) -> Executor:
        if not find_spec("ray"):
            raise BackendError("Ray is not installed; use: pip install ray, or --backend local")
        from jobs.backends.ray_executor import RayExecutor

        return RayExecutor(
            address=self.settings.address,
            asks_memory=self._asks_memory,
            study_dir=study_dir,
            leave=self.settings.leave_gpus,
        )
