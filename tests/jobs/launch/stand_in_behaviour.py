"""A substitute for the worker of behaviour jobs: ``python -m tests.jobs.launch.stand_in_behaviour JOB_DIR``.

It writes the files that the real one writes, in no time, or does what ``stand-in.json`` in the study's folder says:
``fail`` (a list of run ids), ``wait`` (until a signal to stop).
"""

import hashlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from seqlm.files import make_directory, read_json, write_json, write_json_lines
from seqlm.rundir import BEHAVIOUR_VERSION, RunDirectory
from tests.facts import fail, owned


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    job = RunDirectory(Path(sys.argv[1]))
    study_dir = job.path.parent.parent
    run = RunDirectory(study_dir / job.id)
    orders: dict[str, Any] = read_json(study_dir / "stand-in.json") or {}
    make_directory(job.attempt_dir(int(os.environ["SEQLM_ATTEMPT"])))
    with owned(job):
        while orders.get("wait"):
            time.sleep(0.02)
        if job.id in orders.get("fail", []):
            fail(job, {"kind": "code", "message": "as it was told"})
            return 1
        task = read_json(job.task_file)
        assert task is not None
        write_json(run.behaviour_file, {"by": "the stand-in", "data": os.environ.get("SEQLM_DATA")})
        write_json_lines(run.samples_file, [{"text": "the cat"}])
        run.losses_file.write_bytes(b"")
        result = {
            "version": BEHAVIOUR_VERSION,
            "checkpoint_sha256": digest(run),
            "panel_sha256": [digest(RunDirectory(study_dir / member)) for member in task["panel"]],
            "settings": task["settings"],
        }
        write_json(job.result_file, result)
    return 0


def digest(run: RunDirectory) -> str:
    return hashlib.sha256(run.best_checkpoint.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
