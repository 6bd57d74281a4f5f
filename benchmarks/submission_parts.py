"""Only the call that submits, in a process of its own: ``python -m benchmarks.submission_parts PART ...``.

seqlm MANIFEST STUDY     SlurmBackend.submit, of a launch that is prepared before the clock starts
submitit FOLDER RUNS     submitit's own map_array, of a function that does nothing
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

HELD = {"sbatch": {"hold": True}}
"""``[backend.slurm]`` of a study whose jobs stay in the queue."""


def main() -> int:
    part, first, second = sys.argv[1:]
    seconds = seqlm(Path(first), Path(second)) if part == "seqlm" else submitit(Path(first), int(second))
    print(json.dumps({"seconds": seconds}))
    return 0


def seqlm(manifest: Path, study_dir: Path) -> float:
    from jobs.launch.job import Order, StudySettings
    from jobs.launch.prepare import preparing, resolve_specs
    from jobs.manifests.load import load_manifest
    from slurm.backend import SlurmBackend
    from slurm.settings import read_settings

    site = SlurmBackend(read_settings(HELD, where=manifest.name, environ=os.environ))
    specs = resolve_specs(load_manifest(manifest, []).runs, None)
    command = ["python", "launch.py", "run", manifest.name, "--only"]
    specs = [replace(spec, command=[*command, f"name={spec.name}"]) for spec in specs]
    study = StudySettings(path=study_dir)
    with preparing(study, Order(specs=specs), site) as (planned, work):
        assert work is not None, "there is something to do"
        start = time.perf_counter()
        site.submit(planned, study, work.code, work.request)
        return time.perf_counter() - start


def submitit(folder: Path, runs: int) -> float:
    import submitit

    executor = submitit.SlurmExecutor(folder=folder)
    executor.update_parameters(time=60, gpus_per_node=1, array_parallelism=runs, additional_parameters={"hold": True})
    start = time.perf_counter()
    executor.map_array(nothing, range(runs))
    return time.perf_counter() - start


def nothing(number: int) -> int:
    return number


if __name__ == "__main__":
    sys.exit(main())
