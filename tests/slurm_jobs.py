"""Runs that were submitted to SLURM, without a SLURM."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqlm.records.batch import ArrayPlan, Batch, Submitted
from seqlm.records.requests import RequestFile, Wanted
from seqlm.requests import Request, file_request
from seqlm.resources import Resources
from seqlm.rundir import RunDirectory


def write_jobs(study_dir: Path, jobs: Mapping[str, str]) -> Request:
    """Record that runs (by id) are jobs, such as ``12_3``, or share those of an array ``12``, as a submission does."""
    wanted = {run_id: Wanted(from_attempt=RunDirectory(study_dir / run_id).last_attempt() + 1) for run_id in jobs}
    request = file_request(study_dir, RequestFile(kind="run", backend="slurm", runs=wanted))
    arrays: dict[str, dict[int, str]] = {}
    for run_id, job in jobs.items():
        array, _, index = job.partition("_")
        arrays.setdefault(array, {})[int(index or len(arrays[array]))] = run_id
    plans = []
    for array, places in arrays.items():
        names = [places.get(index, f"other-{index}") for index in range(max(places) + 1)]
        if array in jobs.values():  # runs that wait behind the first one of a single job
            plans.append(array_of("first", *names, job=array, jobs=1))
        else:
            plans.append(array_of(*names, job=array, jobs=len(names)))
    Batch(arrays=tuple(plans)).write(request.folder)
    Submitted().write(request.folder)
    return request


def array_of(*run_ids: str, **fields: Any) -> ArrayPlan:
    """An array of runs on one core each, with these fields."""
    size = {"jobs": 1, "nodes": 1, "cpus": 1, "gpus": 0, "at_once": 1, "timeout_min": 60}
    return ArrayPlan(runs={run_id: Resources() for run_id in run_ids}, **{**size, **fields})
