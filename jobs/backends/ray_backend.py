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

from jobs.backends.base import Backend, Executor, Finding, Room, SharedTable
from jobs.backends.local import require_device, require_left, room_of, this_machine
from jobs.backends.ray_growth import Largest
from jobs.plan.capacity import Capacity
from jobs.spec import RunSpec
from seqlm.errors import BackendError
from seqlm.resources import Resources
from seqlm.schema import Valid


@dataclass(frozen=True, kw_only=True)
class RayTable(SharedTable):
    """``[backend.ray]``."""

    address: Annotated[str, Valid('an address, such as "auto"', least=1)] | None = None
    """Ray cluster to join, such as `"auto"`. By default, or with `"local"`, seqlm starts Ray here. `--ray-address` and
    `RAY_ADDRESS` override it."""
    largest: Largest | None = None
    """Nodes that the autoscaler may add: `{nodes = 4, cpus = 16, gpus = 4}`. Without it, a run that does not fit on
    present nodes is an error."""


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
        try:
            if backend.is_here:
                from jobs.backends import ray_private

                ray_private.require(starts=True)
                return [Finding("ok", "Ray", "installed; one is started on this machine for each launch")]
            return [Finding("ok", "Ray", backend.describe())]
        except BackendError as error:
            return [Finding("bad", "Ray", str(error))]

    def describe(self) -> str:
        place = "Ray on this machine" if self.is_here else f"the Ray cluster at {self.settings.address}"
        grows = "" if self._largest is None else f"; at its largest {self.capacity().describe()}"
        return f"{place} ({self._now.describe()}{grows})"

    @property
    def _largest(self) -> Largest | None:
        return None if self.is_here else self.settings.largest

    @functools.cached_property
    def _now(self) -> Capacity:
        if self.is_here:
            return this_machine()
        from jobs.backends.ray_cluster import RayCluster

        return RayCluster(self.settings.address, asks_memory=self._asks_memory).capacity()

    def capacity(self) -> Capacity:
        return self._now.copy() if self._largest is None else self._largest.grown(self._now)

    def resolve(self, spec: RunSpec, at_most: int) -> Resources:
        if spec.resources.gpu_memory_gb is not None and not self._asks_memory:
            self._asks_memory = True
            self.__dict__.pop("_now", None)  # which is without it
        try:
            resources = self.capacity().resolve(spec.resources, at_most)
        except BackendError as error:
            if self.is_here or self._largest is not None:
                raise
            hint = "if an autoscaler adds nodes, `largest` in [backend.ray] says which"
            raise BackendError(f"{error}; {hint}") from None
        require_left(resources, self.capacity(), self.settings.leave_gpus)
        if self.is_here:
            require_device(spec, resources)
        return resources

    def room(self, resources: Resources) -> Room | None:
        return room_of(self._now, resources) if self.is_here else None

    def executor(self, study_dir: Path) -> Executor:
        if not find_spec("ray"):
            raise BackendError("Ray is not installed; use: pip install ray, or --backend local")
        from jobs.backends.ray_executor import RayExecutor

        return RayExecutor(
            address=self.settings.address,
            asks_memory=self._asks_memory,
            largest=self._largest,
            study_dir=study_dir,
            leave=self.settings.leave_gpus,
        )
