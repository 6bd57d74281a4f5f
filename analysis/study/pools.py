"""How much was used of what jobs had that runs share, from the plans of launches and the times of attempts."""

import math
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from seqlm.reading import listed, moment
from seqlm.records.batch import Batch
from seqlm.resources import Resources


def rooms(study_dir: Path) -> dict[str, tuple[float, float]]:
    """Return the GPUs and cores of each job with room for several runs, by the id of its array.

    A damaged record is left out.
    """
    rooms_by_job = {}
    for folder in listed(study_dir / "launches"):
        batch = Batch.read(folder, tell=lambda line: None) or Batch()
        for array in batch.arrays:
            room = (float(array.nodes * array.gpus), float(array.nodes * array.cpus))
            if array.job is not None and not all(_fills(run, room) for run in array.runs.values()):
                rooms_by_job[array.job] = room
    return rooms_by_job


def _fills(run: Resources, room: tuple[float, float]) -> bool:
    """Return whether a run needs all GPUs and cores of a job."""
    gpus, cores = room
    return run.ranks * (run.gpus or 0) >= gpus and (gpus > 0 or run.ranks * (run.cpus or 1) >= cores)


def used_of_pools(study_dirs: Iterable[Path], attempts: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Return of such jobs the hours that they had and those that their runs used, of GPUs and of cores.

    A job has its GPUs and cores as long as one of its attempts runs. Those of a job with GPUs are not counted as cores.
    """
    known = {job: room for study_dir in study_dirs for job, room in rooms(study_dir).items()}
    had, used = {"GPU": 0.0, "core": 0.0}, {"GPU": 0.0, "core": 0.0}
    rows = attempts.assign(start=attempts["started_at"].map(moment), end=attempts["ended_at"].map(moment))
    for job, of_job in rows.dropna(subset=["job_id", "start", "end"]).sort_values("start").groupby("job_id"):
        gpus, cores = known.get(str(job).partition("_")[0], (math.nan, math.nan))
        if math.isnan(gpus) or math.isnan(cores):
            continue
        unit, room, column = ("GPU", gpus, "gpus") if gpus else ("core", cores, "cores")
        until = -math.inf
        for start, end in of_job[["start", "end"]].itertuples(index=False):
            had[unit] += room * max(0.0, end - max(start, until)) / 3600
            until = max(until, end)
        used[unit] += math.fsum((of_job["end"] - of_job["start"]) * of_job[column].fillna(0)) / 3600
    return {unit: (had[unit], used[unit]) for unit in had if had[unit] > 0}
