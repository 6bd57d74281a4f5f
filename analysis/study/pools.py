"""How much of what the jobs of pools had was used, from the plans of launches and the times of attempts."""

import math
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from seqlm.reading import listed, moment
from seqlm.records.batch import Batch


def rooms(study_dir: Path) -> dict[str, tuple[float, float]]:
    """Return the GPUs and cores of each job of a pool, by the id of its array. A damaged record is left out."""
    rooms_by_job = {}
    for folder in listed(study_dir / "launches"):
        batch = Batch.read(folder, tell=lambda line: None) or Batch()
        for array in batch.arrays:
            if array.is_pool and array.job is not None:
                rooms_by_job[array.job] = (float(array.gpus), float(array.cpus))
    return rooms_by_job


def used_of_pools(study_dirs: Iterable[Path], attempts: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Return of the jobs of pools the hours that they had and those that their runs used, of GPUs and of cores.

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
