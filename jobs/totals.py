"""What a launch costs as a whole: GPU hours, time on the clock, and disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jobs.backend import Site
from jobs.dispatch import Planned
from jobs.estimate import Estimate
from jobs.queue import Waiting, Work
from jobs.schedule import wall_seconds
from jobs.spec import RunSpec


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums over the runs of a plan."""

    gpu_hours: float | None
    """Hours times GPUs held, over the runs to do."""
    wall_seconds: float | None
    """From the first start to the last end of the runs to do."""
    disk_bytes: int
    """Checkpoints of all runs, those that exist already included."""
    unknown: str | None
    """Why hours and time are not known, where they are not."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def totals(
    specs: Mapping[str, RunSpec],
    planned: Sequence[Planned],
    estimates: Sequence[Estimate],
    backend: Site,
    *,
    max_parallel: int | None,
) -> Totals:
    """Add up the estimates of the planned runs.

    ``specs`` are the runs to do with resolved resources, by run id. The seconds of an estimate are those still to do.
    """
    waiting = [
        Waiting(
            id=item.run.id,
            spec=specs[item.run.id],
            work=Work(flops=float(found.flops_per_token), seconds=found.seconds),
        )
        for item, found in zip(planned, estimates, strict=True)
        if item.action != "skip"
    ]
    unknown = [run.spec for run in waiting if run.work.seconds is None]
    reason = None
    if unknown:
        archs = " or ".join(dict.fromkeys(spec.config.model.arch for spec in unknown))
        reason = f"no {archs} has been trained here yet; `doctor --calibrate` measures its speed"
    gpu_seconds = sum(
        (run.work.seconds or 0.0) * run.spec.resources.ranks * (run.spec.resources.gpus or 0) for run in waiting
    )
    return Totals(
        gpu_hours=None if unknown else gpu_seconds / 3600,
        wall_seconds=None if unknown else wall_seconds(waiting, backend.capacity(), max_parallel=max_parallel),
        disk_bytes=sum(found.disk_bytes for found in estimates),
        unknown=reason,
    )
