"""Runs that were submitted to SLURM, without a SLURM."""

from collections.abc import Mapping
from pathlib import Path

from jobs.study.folder import ARRAY_FILE, PLAN_FILE
from seqlm.files import write_json
from seqlm.requests import Request, file_request
from seqlm.rundir import RunDirectory


def write_jobs(study_dir: Path, jobs: Mapping[str, str]) -> Request:
    """Record that runs (by id) are jobs, such as ``12_3``, as a submission does."""
    wanted = {run_id: {"from_attempt": RunDirectory(study_dir / run_id).last_attempt() + 1} for run_id in jobs}
    request = file_request(study_dir, {"kind": "run", "backend": "slurm", "runs": wanted})
    arrays: dict[str, list[list[str]]] = {}
    for run_id, job in jobs.items():
        array, _, index = job.partition("_")
        places = arrays.setdefault(array, [])
        places += [[] for _ in range(int(index) + 1 - len(places))]
        places[int(index)].append(run_id)
    write_json(request.folder / PLAN_FILE, {"arrays": [{"jobs": places} for places in arrays.values()]})
    for number, array in enumerate(arrays):
        write_json(request.folder / ARRAY_FILE.format(number), {"id": array})
    return request
