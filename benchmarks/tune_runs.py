"""One turn: Ray Tune runs the same command lines. ``python -m benchmarks.tune_runs TURN.json``, from others.

What a user of Tune would write around workers that are programs: a trainable that starts one and waits for it.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

ROOT = Path(__file__).resolve().parent.parent


def worker(config: dict[str, Any]) -> None:
    """The trainable."""
    attempt = Path(config["run_dir"]) / "attempts" / "0001"
    attempt.mkdir(parents=True, exist_ok=True)
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with (attempt / "stdout.log").open("ab") as stdout, (attempt / "stderr.log").open("ab") as stderr:
        subprocess.run(
            [*config["argv"], config["run_dir"]],
            cwd=config["cwd"],
            env={**env, **config["env"]},
            stdout=stdout,
            stderr=stderr,
            check=True,
        )


def main() -> int:
    turn = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    if turn["reuse"]:
        os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    import ray
    from ray import tune

    start = time.time()
    if turn["address"]:
        ray.init(address=turn["address"], log_to_driver=False, logging_level=logging.ERROR)
    else:
        options: dict[str, Any] = {"num_cpus": os.cpu_count(), "include_dashboard": False, "address": "local"}
        ray.init(**options, object_store_memory=80 * 2**20, log_to_driver=False, logging_level=logging.ERROR)
    opened = time.time()
    resources = {"cpu": turn["cpus"], "gpu": turn["gpus"]}
    tuner = tune.Tuner(
        tune.with_resources(worker, resources),
        param_space={
            "run_dir": tune.grid_search(turn["run_dirs"]),
            "argv": turn["argv"],
            "cwd": str(ROOT),
            "env": turn["env"],
        },
        tune_config=tune.TuneConfig(reuse_actors=turn["reuse"]),
        run_config=tune.RunConfig(storage_path=turn["storage"], verbose=0),
    )
    results = tuner.fit()
    end = time.time()
    ray.shutdown()
    errors = [str(error) for error in results.errors]
    if errors:
        print(errors[0], file=sys.stderr)
        return 1
    print(json.dumps({"open_seconds": opened - start, "began": opened, "makespan": end - opened}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
