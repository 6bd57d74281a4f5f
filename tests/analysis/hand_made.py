"""Runs with results chosen by hand, for studies whose right answers are known."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seqlm.config import RunConfig
from seqlm.files import make_directory, write_json, write_json_lines
from seqlm.records.runs import GitState, Provenance
from seqlm.rundir import RunDirectory
from tests.facts import fail

OPTIM_KEYS = "lr schedule decay flat_epochs decay_epochs warmup_steps weight_decay momentum nesterov"


def add_run(
    study_dir: Path,
    order: int,
    name: str,
    arch: str,
    optimizer: str,
    val: Sequence[float],
    *,
    train: Sequence[float] | float = 50.0,
    seconds: Sequence[float] | float = 10.0,
    device: str | None = None,
    failure: str | None = None,
    done: bool = True,
    seed: int = 1111,
    provenance: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    record: dict[str, Any] | None = None,
    result: dict[str, Any] | None = None,
    **keys: Any,
) -> RunDirectory:
    """A run with these validation perplexities, epoch by epoch; ``keys`` such as ``lr`` or ``hidden_size`` are set.

    ``record`` and ``result`` replace keys of each epoch's record and of the result.
    """
    values = {"hidden_size": 64, "lr": 0.1, "epochs": max(1, len(val)), **keys}
    config = RunConfig.from_dict(
        {
            "model": {"arch": arch, **_part(values, "hidden_size num_layers keep embedding_size num_heads mlp_size")},
            "data": {"corpus": "ptb", **(data or {})},
            "optim": {"optimizer": optimizer, **_part(values, OPTIM_KEYS)},
            "train": _part(values, "epochs batch_size seq_len clip_norm"),
            "eval": values.get("eval", {}),
            "seed": seed,
        }
    )
    run = RunDirectory.locate(study_dir, name, config.fingerprint())
    known = make_provenance(name, order)
    run.create(config, known)
    if provenance:
        write_json(run.provenance_file, {**known.to_plain(), **provenance})
    trains = [train] * len(val) if isinstance(train, int | float) else list(train)
    times = [seconds] * len(val) if isinstance(seconds, int | float) else list(seconds)
    records = [
        {
            "epoch": epoch,
            "train_loss": math.log(train_ppl),
            "val_loss": math.log(ppl) if math.isfinite(ppl) else None,
            "train_ppl": train_ppl,
            "val_ppl": ppl if math.isfinite(ppl) else None,
            "lr": values["lr"],
            "epoch_seconds": times[epoch],
            "elapsed_seconds": sum(times[: epoch + 1]),
            "train_tokens_per_second": 1000.0,
            "peak_memory_bytes": 1_000_000,
            "attempt": 1,
            **(record or {}),
        }
        for epoch, (ppl, train_ppl) in enumerate(zip(val, trains, strict=True))
    ]
    if records:
        write_json_lines(run.metrics_file, records)
    if device is not None:
        run.attempt_dir(1).mkdir(parents=True)
        worker = {"rank": 0, "ranks": 1, "device": device, "gpu": None, "threads": 2, "environment": "e" * 64}
        write_json(run.worker_file(1), worker)
        make_directory(run.environment("e" * 64).parent)
        packages = {"seqlm": "0.1.0", "torch": "2.13.0", "pandas": "3.1.1"}
        write_json(run.environment("e" * 64), {"python": "3.12.3", "driver": None, "packages": packages})
    if failure is not None:
        fail(run, {"kind": failure, "message": f"it ended by {failure}", "where": "worker.py:1"})
    elif done:
        write_json(run.result_file, {**result_of(records), **(result or {})})
    return run


def digits(run: RunDirectory) -> str:
    """The fingerprint's first digits, by which ``study.json`` knows a run."""
    return run.path.name.rpartition("-")[2]


def make_provenance(name: str, order: int) -> Provenance:
    return Provenance(
        study="optimizers",
        name=name,
        order=order,
        command=("python", "launch.py", "run", "jobs/manifests/optimizers.toml", "--only", f"name={name}"),
        host="node07",
        git=GitState(commit="3f1c9a7be2d04586b1aa7733c5e0f98d21764b0e", dirty=True),
    )


def result_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    """A result whose test perplexity is the best validation perplexity."""
    best, final = min(records, key=lambda record: record["val_ppl"] or math.inf), records[-1]
    return {
        "epochs": len(records),
        "best_epoch": best["epoch"],
        "best_val_loss": best["val_loss"],
        "best_val_ppl": best["val_ppl"],
        "best_train_ppl": best["train_ppl"],
        "final_epoch": final["epoch"],
        "final_train_ppl": final["train_ppl"],
        "final_val_ppl": final["val_ppl"],
        "test_loss": math.log(best["val_ppl"]),
        "test_ppl": best["val_ppl"],
        "parameters": 1000,
        "elapsed_seconds": final["elapsed_seconds"],
    }


def _part(values: dict[str, Any], names: str) -> dict[str, Any]:
    return {name: values[name] for name in names.split() if name in values}
