"""Whether a study that was disturbed has come to what the quiet one has, and has left nothing behind."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

from seqlm.errors import SeqlmError
from seqlm.rundir import RunDirectory
from seqlm.training.checkpoint import load_checkpoint
from tests.chaos.quiet import Quiet
from tests.chaos.study import Study, processes
from tests.outcome import outcome

FAILING = "Input/output error"
"""What a disk says that fails under one run (:func:`tests.chaos.faults.failing_run`)."""
ENDING_SECONDS = 30.0
"""How long a process may take to end once the last launcher has."""


@dataclass
class Findings:
    """What is wrong; all of it empty where nothing is."""

    lost_runs: list[str] = field(default_factory=list)
    """Not done, or absent."""
    different: list[str] = field(default_factory=list)
    """Weights, metrics or results that are not those of the quiet study."""
    epochs: list[str] = field(default_factory=list)
    """Runs in which an epoch stands twice or is missing."""
    damaged_files: list[str] = field(default_factory=list)
    temporary_files: list[str] = field(default_factory=list)
    processes: list[str] = field(default_factory=list)
    """Still alive :data:`ENDING_SECONDS` after the last launcher has ended."""
    tracebacks: list[str] = field(default_factory=list)
    """Of launchers: what goes wrong in the world is one line."""
    launchers: list[str] = field(default_factory=list)
    """Launchers that stopped all runs because the disk under one of them failed."""

    def __bool__(self) -> bool:
        return any(asdict(self).values())

    def add(self, other: Findings) -> None:
        for name, found in asdict(other).items():
            getattr(self, name).extend(found)


def check(study: Study, quiet: Quiet, log: Path) -> Findings:
    """Look at a study whose launchers have all ended; ``log`` is what they have said.

    A job that is killed as its last run ends has ``srun`` for some seconds, which waits for other tasks of its step.
    """
    deadline = time.monotonic() + ENDING_SECONDS
    while any(processes(study.folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    lines = log.read_text("utf-8", errors="replace").splitlines()
    found = Findings(
        processes=[" ".join(process.words) for process in processes(study.folder)],
        temporary_files=[str(path.relative_to(study.folder)) for path in study.study_dir.rglob(".*.tmp*")],
        tracebacks=[line for line in lines if "Traceback" in line],
        launchers=[line for stop, line in pairwise(lines) if stop.startswith("stopping ") and FAILING in line],
    )
    runs = {run.id: run for run in study.runs()}
    for run_id, expected in quiet.outcomes.items():
        run = runs.pop(run_id, None)
        if run is None or not run.result_file.exists():
            found.lost_runs.append(f"{run_id}: {_last_word(run)}")
            continue
        found.damaged_files += damaged_files(run)
        epochs = [record["epoch"] for record in run.read_metrics()[0]]
        if epochs != list(range(quiet.epochs)):
            found.epochs.append(f"{run_id}: {epochs}")
        try:
            found.different += [f"{run_id}: {part}" for part in outcome(run).differences(expected)]
        except SeqlmError as error:
            found.damaged_files.append(str(error))
    found.lost_runs += [f"{run_id}: a run that the quiet study has not" for run_id in runs]
    return found


def damaged_files(run: RunDirectory) -> list[str]:
    """The files of a run that do not read: JSON that does not parse, checkpoints that do not load."""
    found = []
    for path in sorted(path for path in run.path.rglob("*") if path.is_file() and not path.name.startswith(".")):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text("utf-8"))
            elif path.suffix == ".jsonl":
                [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            elif path.suffix == ".pt":
                load_checkpoint(path, run.read_config().fingerprint())
        except (SeqlmError, ValueError) as error:
            found.append(f"{path}: {error}")
    return found


def _last_word(run: RunDirectory | None) -> str:
    if run is None:
        return "absent"
    observed = run.observe()
    return f"{observed.state}, {observed.reason}"
