"""From a command to its first training step: whole commands, watched through the files of their run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.turns import ROOT
from jobs.attempt.supervisor import rank_variables
from jobs.launch.job import StudySettings
from jobs.launch.prepare import resolve_specs
from jobs.manifests.load import load_manifest
from jobs.spec import Submission
from seqlm.errors import BackendError
from seqlm.machine import cpu_count
from seqlm.records.runs import Provenance
from seqlm.resources import Resources
from seqlm.rundir import RunDirectory

LOOK_SECONDS = 0.005
STOP_SECONDS = 120.0

MANIFEST = """[study]
name = "{name}"
[defaults.model]
hidden_size = 64
num_layers = 1
embedding_size = 64
num_heads = 4
mlp_size = 128
keep = 0.9
[defaults.data]
corpus = "pydoc"
vocab_size = 1500
[defaults.train]
epochs = 1
[[grid]]
model.arch = {architectures}
optim.optimizer = "adam"
optim.lr = {rates}
"""

MILESTONES: Mapping[str, str] = {
    "process": "attempts/0001/stdout.log",
    "torch imported": "attempts/0001/worker.json",
    "first step": "attempts/0001/progress.json",
}
"""What has happened once a file of the run is there."""


def write_manifest(folder: Path, runs: int) -> Path:
    """A study of tiny runs: one RNN, or as many of three architectures."""
    architectures = '["rnn"]' if runs == 1 else '["rnn", "gru", "transformer"]'
    rates = [round(0.001 + number * 1e-6, 6) for number in range(-(-runs // 3))]
    path = folder / "study.toml"
    path.write_text(MANIFEST.format(name="study", architectures=architectures, rates=rates), "utf-8")
    return path


def launch_command(manifest: Path, backend: str, runs_dir: Path, *, root: Path = ROOT) -> list[str]:
    words = ["run", str(manifest), "--backend", backend, "--runs-dir", str(runs_dir), "--no-canary"]
    return [sys.executable, str(root / "launch.py"), *words]


def tune_turn(manifest: Path, study: Path) -> dict[str, Any]:
    """The same run for the script that uses Ray Tune, with its folder made, which ``launch.py`` does itself."""
    (spec,) = resolve_specs(load_manifest(manifest, []).runs, None)
    run = RunDirectory.locate(study, spec.name, spec.fingerprint, {})
    run.create(spec.config, Provenance(name=spec.name, order=0))
    worker, cores = (sys.executable, *StudySettings(path=study).worker), cpu_count()
    submission = Submission(
        run_dir=run.path,
        attempt=1,
        argv=worker,
        env={"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "SEQLM_ATTEMPT": "1"},
        cwd=ROOT,
        resources=Resources(cpus=cores, gpus=0),
    )
    return {
        "address": None,
        "reuse": True,
        "cpus": cores,
        "gpus": 0,
        "run_dirs": [str(run.path)],
        "argv": list(worker),
        "env": rank_variables(submission, 0, None),
        "storage": str(study.parent / "tune"),
    }


def watch_command(argv: Sequence[str], study: Path) -> dict[str, float]:
    """Seconds from the start of a command to each milestone of the study's only run, and to the command's end.

    Raises:
        BackendError: it has failed.
    """
    start = time.perf_counter()
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    found: dict[str, float] = {}
    while process.poll() is None:
        now = time.perf_counter() - start
        for name, file in MILESTONES.items():
            if name not in found and any(study.glob(f"*/{file}")):
                found[name] = now
        time.sleep(LOOK_SECONDS)
    found["end"] = time.perf_counter() - start
    _, stderr = process.communicate()
    if process.returncode or found.keys() < {*MILESTONES, "end"}:
        raise BackendError(f"{argv[1]} ended with {process.returncode}: {(stderr.splitlines() or [''])[-1]}")
    return found


def first_start(argv: Sequence[str], study: Path) -> dict[str, float]:
    """Seconds to the first run that is handed to the backend, and the launcher's peak memory by then; then Ctrl-C.

    Raises:
        BackendError: the command has ended before.
    """
    start = time.perf_counter()
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0)
    try:
        while not any(study.glob("*/attempts/*/start.json")):
            if process.poll() is not None:
                raise BackendError(f"{argv[1]} ended with {process.returncode} before a run had started")
            time.sleep(LOOK_SECONDS)
        seconds = time.perf_counter() - start
        memory = _peak_memory_mb(process.pid)
        os.kill(process.pid, signal.SIGINT)
        process.wait(STOP_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return {"seconds": seconds, "peak_memory_mb": memory}


def _peak_memory_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:"))
