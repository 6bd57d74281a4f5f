"""How long `status` takes on a large study, as a whole command with the start of the interpreter.

python -m benchmarks.status --runs 1000
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.launch.prepare import launch_record, run_record
from jobs.spec import RunSpec
from jobs.study.folder import launching, write_queue
from jobs.study.kept_code import live_code
from seqlm.config import RunConfig
from seqlm.files import write_json, write_json_lines
from seqlm.lease import claim
from seqlm.machine import cpu_count, cpu_model
from seqlm.records.attempts import Start
from seqlm.rundir import RunDirectory

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = ("rnn", "gru", "transformer")
EPOCHS = 40


def main() -> int:
    options = _arguments()
    code = live_code()
    record: dict[str, Any] = {
        "benchmark": "status",
        "command": f"python -m benchmarks.status --runs {options.runs} --repeats {options.repeats}",
        "commit": code.commit,
        "dirty": code.dirty,
        "processor": cpu_model(),
        "python": platform.python_version(),
        "runs": options.runs,
        "epochs": EPOCHS,
        "cores": cpu_count(),
        "load_average_before": [round(load, 2) for load in os.getloadavg()],
        "seconds": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for state, make in (("queued", make_queued), ("done", make_done)):
            study = Path(folder) / state
            runs = make_runs(study, options.runs)
            with make(study, runs):
                for flags in ([], ["--json"]):
                    command = [sys.executable, str(ROOT / "launch.py"), "status", str(study), *flags]
                    name = " ".join(["status", *flags, f"of {state} runs"])
                    record["seconds"][name] = timed(command, state, options.repeats)
    record["load_average_after"] = [round(load, 2) for load in os.getloadavg()]
    print(json.dumps(record, indent=1))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time `status` and `status --json` on a synthetic study.")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=15)
    return parser.parse_args()


def make_runs(study: Path, number: int) -> list[RunDirectory]:
    record = launch_record(study.name, live_code())
    runs = []
    for order in range(number):
        arch = ARCHITECTURES[order % len(ARCHITECTURES)]
        config = RunConfig.from_dict(
            {
                "model": {"arch": arch, "hidden_size": 512},
                "data": {"corpus": "ptb"},
                "optim": {"optimizer": "adam", "lr": 0.001},
                "train": {"epochs": EPOCHS},
                "seed": order,
            }
        )
        name = f"{arch}-adam-seed{order}"
        command = ["python", "launch.py", "run", "study.toml", "--only", f"name={name}"]
        spec = RunSpec(name=name, config=config, order=order, command=command)
        run = RunDirectory.locate(study, spec.name, spec.fingerprint, {})
        run.create(config, run_record(spec).of_launch(record))
        runs.append(run)
    return runs


@contextlib.contextmanager
def make_queued(study: Path, runs: list[RunDirectory]) -> Iterator[None]:
    """This process is the live launcher that the runs wait for."""
    with launching(study):
        write_queue(study, {run.id: "at most 2 at once" for run in runs})
        yield


@contextlib.contextmanager
def make_done(study: Path, runs: list[RunDirectory]) -> Iterator[None]:
    epochs = [
        {
            "epoch": epoch,
            "train_loss": 5.104278564453125,
            "val_loss": 5.204278564453125,
            "train_ppl": 164.7231231,
            "val_ppl": 182.0521312 - epoch,
            "lr": 0.001,
            "epoch_seconds": 10.123456789,
            "elapsed_seconds": 10.123456789 * (epoch + 1),
            "train_tokens_per_second": 93123.4567,
            "peak_memory_bytes": 1_234_567_890,
            "attempt": 1,
        }
        for epoch in range(EPOCHS)
    ]
    for run in runs:
        run.attempt_dir(1).mkdir(parents=True)
        Start(backend="local").write(run.attempt_dir(1))
        claim(run.lease_dir, attempt=1, busy="busy").release()
        write_json_lines(run.metrics_file, epochs)
        write_json(run.result_file, {"epochs": EPOCHS, "best_epoch": EPOCHS - 1, "best_val_ppl": 143.0521312})
    yield


def check(command: list[str], state: str) -> None:
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert state in answer.stdout


def timed(command: list[str], state: str, repeats: int) -> dict[str, dict[str, float]]:
    check(command, state)  # the files are in memory from here on
    wall, processor = [], []
    for _ in range(repeats):
        start, start_processor = time.perf_counter(), processor_seconds_of_children()
        check(command, state)
        wall.append(time.perf_counter() - start)
        processor.append(processor_seconds_of_children() - start_processor)
    return {"wall": spread(wall), "processor": spread(processor)}


def processor_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def spread(values: list[float]) -> dict[str, float]:
    found = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {name: round(value, 3) for name, value in found.items()}


if __name__ == "__main__":
    sys.exit(main())
