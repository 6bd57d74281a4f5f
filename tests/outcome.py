"""What a run has come to, as far as it does not depend on the day: to compare an interrupted run with a quiet one.

The order in which a sum is taken follows the number of threads and of ranks. So runs are comparable bit for bit where
``resources.cpus`` and ``resources.ranks`` are the same; the backend makes no difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from seqlm.environment import SEARCH
from seqlm.records.runs import Result
from seqlm.rundir import RunDirectory
from seqlm.trace import read_trace
from seqlm.training import attempt, worker
from seqlm.training.checkpoint import load_checkpoint
from seqlm.training.records import OF_THE_DAY
from tests.seqlm.training.studies import make_run, runs_in

RESULT_OF_THE_DAY = ("elapsed_seconds", "attempt", "finished_at")
"""What ``result.json`` says of the machine."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Equal where two runs have come to the same, bit for bit."""

    tensors: dict[str, str]
    """Name of a checkpoint and part of it -> SHA-256 of its bytes, type and shape."""
    metrics: list[dict[str, Any]]
    """Every epoch without :data:`seqlm.training.records.OF_THE_DAY`."""
    result: dict[str, Any]
    """``result.json`` without :data:`RESULT_OF_THE_DAY`."""
    trace: list[tuple[float, float]]
    """Loss and gradient norm of every step."""
    token_losses: bytes

    def differences(self, other: Outcome) -> list[str]:
        """The parts in which the two differ, few words each."""
        names = sorted(self.tensors.keys() | other.tensors.keys())
        found = [name for name in names if self.tensors.get(name) != other.tensors.get(name)]
        parts = {"metrics.jsonl": "metrics", "result.json": "result", "steps.f32": "trace", "valid.f32": "token_losses"}
        return found + [name for name, part in parts.items() if getattr(self, part) != getattr(other, part)]


def outcome(run: RunDirectory) -> Outcome:
    """What a run that is done has come to.

    Raises:
        CheckpointError, FileError: a file of it is missing or damaged.
    """
    tensors = {}
    for path in (run.best_checkpoint, run.last_checkpoint):
        checkpoint = load_checkpoint(path, run.read_config().fingerprint())
        for part, content in (("model", checkpoint.model), ("optimizer", checkpoint.optimizer)):
            tensors |= {f"{path.name} {part} {name}": digest for name, digest in _digests(content)}
    metrics, _ = run.read_metrics()
    trace = read_trace(run)
    assert trace is not None
    assert len(trace.rows) == trace.covered == len(metrics) * trace.steps
    return Outcome(
        tensors=tensors,
        metrics=[{key: value for key, value in epoch.items() if key not in OF_THE_DAY} for epoch in metrics],
        result={
            key: value for key, value in vars(run.read_result() or Result()).items() if key not in RESULT_OF_THE_DAY
        },
        trace=[(loss, norm) for loss, norm, _ in trace.rows],
        token_losses=run.token_losses_file.read_bytes(),
    )


def outcomes(study_dir: Path) -> dict[str, Outcome]:
    """The outcome of every run of a study, by run id."""
    return {run.id: outcome(run) for run in runs_in(study_dir)}


def alone(
    runs: Sequence[RunDirectory], text: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Outcome]:
    """What each of these runs comes to if it is trained alone, in this process, and never stopped."""
    with monkeypatch.context() as patch:
        patch.setenv("SEQLM_DATA", str(text))
        patch.setenv("SEQLM_DEVICE", "cpu")
        patch.delenv(SEARCH.name, raising=False)
        patch.setattr(attempt.StopSignal, "install", lambda self: None)  # the handlers of this process stay
        found = {}
        for run in runs:
            own = make_run(folder / run.id, run.read_config())
            assert worker.main([str(own.path)]) == 0
            found[run.id] = outcome(own)
    return found


def _digests(content: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf of nested dictionaries and lists, in order."""
    if isinstance(content, torch.Tensor):
        data = content.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        yield name, hashlib.sha256(repr((content.dtype, content.shape)).encode() + data).hexdigest()
    elif isinstance(content, dict):
        for key in content:
            yield from _digests(content[key], f"{name}.{key}" if name else str(key))
    elif isinstance(content, list | tuple):
        for number, item in enumerate(content):
            yield from _digests(item, f"{name}[{number}]")
    else:
        yield name, repr(content)
