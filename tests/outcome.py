"""What a run has come to, as far as it does not depend on the day: to compare an interrupted run with a quiet one.

The order in which a sum is taken follows the number of threads and of ranks. So runs are comparable bit for bit where
``resources.cpus`` and ``resources.ranks`` are the same; the backend makes no difference.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from seqlm.rundir import RunDirectory
from seqlm.training.checkpoint import load_checkpoint
from tests import commands
from tests.seqlm.training.studies import runs_in

ROOT = Path(__file__).parent.parent

OF_THE_DAY = ("epoch_seconds", "elapsed_seconds", "train_tokens_per_second", "peak_memory_bytes", "attempt")
"""What ``metrics.jsonl`` says of the machine, not of the training."""
RESULT_OF_THE_DAY = ("elapsed_seconds", "attempt", "finished_at")
"""The same of ``result.json``."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Equal where two runs have come to the same, bit for bit."""

    tensors: dict[str, str]
    """Name of a checkpoint and part of it -> SHA-256 of its bytes, type and shape."""
    metrics: list[dict[str, Any]]
    """Every epoch without :data:`OF_THE_DAY`."""
    result: dict[str, Any]
    """``result.json`` without :data:`RESULT_OF_THE_DAY`."""

    def differences(self, other: Outcome) -> list[str]:
        """The parts in which the two differ, few words each."""
        names = sorted(self.tensors.keys() | other.tensors.keys())
        found = [name for name in names if self.tensors.get(name) != other.tensors.get(name)]
        found += ["metrics.jsonl"] * (self.metrics != other.metrics)
        return found + ["result.json"] * (self.result != other.result)


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
    return Outcome(
        tensors=tensors,
        metrics=[{key: value for key, value in epoch.items() if key not in OF_THE_DAY} for epoch in metrics],
        result={key: value for key, value in (run.read_result() or {}).items() if key not in RESULT_OF_THE_DAY},
    )


def outcomes(study_dir: Path) -> dict[str, Outcome]:
    """The outcome of every run of a study, by run id."""
    return {run.id: outcome(run) for run in runs_in(study_dir)}


def quiet_outcomes(manifest: Path, runs_dir: Path, runs: Collection[RunDirectory]) -> dict[str, Outcome]:
    """What these runs of a manifest come to on this machine when nobody disturbs them, trained below ``runs_dir``.

    Where they run makes no difference, so none is made between GPUs that are fake and none at all. Threads and ranks
    are those of the manifest.
    """
    argv = [sys.executable, str(ROOT / "launch.py"), "run", str(manifest), "--backend", "local", "--no-canary"]
    argv += ["--set", "resources.gpus=0", "--runs-dir", str(runs_dir)]
    argv += ["--only", f"name={','.join(run.read_provenance()['name'] for run in runs)}"]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "RAY_"))}
    answer = commands.run(argv, cwd=manifest.parent, env=env)
    assert answer.returncode == 0, answer.stderr
    (study_dir,) = (path.parent for path in runs_dir.glob("*/study.json"))
    return outcomes(study_dir)


def differences(found: Mapping[str, Outcome], expected: Mapping[str, Outcome]) -> list[str]:
    """What differs between two studies, run by run; nothing where they have come to the same."""
    absent = [f"{run_id}: in one alone" for run_id in found.keys() ^ expected.keys()]
    both = found.keys() & expected.keys()
    return absent + [f"{run_id}: {part}" for run_id in both for part in found[run_id].differences(expected[run_id])]


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
