"""Runs that were submitted to SLURM, without a SLURM."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.study.folder import PLAN_FILE, SUBMITTED_FILE
from seqlm.files import write_json
from seqlm.requests import Request, file_request
from seqlm.rundir import RunDirectory


def write_jobs(study_dir: Path, jobs: Mapping[str, str]) -> Request:
    """Record that runs (by id) are jobs, such as ``12_3``, or share those of an array ``12``, as a submission does."""
    wanted = {run_id: {"from_attempt": RunDirectory(study_dir / run_id).last_attempt() + 1} for run_id in jobs}
    request = file_request(study_dir, {"kind": "run", "backend": "slurm", "runs": wanted})
    arrays: dict[str, dict[int, str]] = {}
    for run_id, job in jobs.items():
        array, _, index = job.partition("_")
        arrays.setdefault(array, {})[int(index or len(arrays[array]))] = run_id
    plans: list[Any] = []
    for array, places in arrays.items():
        names = [places.get(index, f"other-{index}") for index in range(max(places) + 1)]
        runs: dict[str, Any] = {name: {} for name in names}
        plans.append({"job": array, "jobs": len(names), "runs": runs, "is_pool": array in jobs.values()})
    write_json(request.folder / PLAN_FILE, {"arrays": plans})
    write_json(request.folder / SUBMITTED_FILE, {})
    return request
