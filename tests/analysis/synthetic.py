"""Study folders made up for tests: curves shaped like the published ones, no training behind them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from seqlm.config import RunConfig
from seqlm.files import write_json, write_json_lines, write_text
from seqlm.rundir import RunDirectory
from tests import facts

PUBLISHED = [
    # name, arch, optimizer, lr, batch, hidden, layers, keep, first val_ppl, best val_ppl, best train_ppl, s/epoch
    ("rnn-adam", "rnn", "adam", 0.0001, 20, 1500, 2, 0.35, 480.0, 156.2, 120.4, 95.0),
    ("rnn-sgd", "rnn", "sgd", 0.0001, 20, 1500, 2, 0.35, 8600.0, 2210.5, 3010.0, 88.0),
    ("rnn-sgd-schedule", "rnn", "sgd_schedule", 1.0, 20, 512, 2, 0.35, 520.0, 196.3, 230.1, 41.0),
    ("gru-adam", "gru", "adam", 0.0001, 20, 1500, 2, 0.35, 420.0, 111.4, 60.2, 190.0),
    ("gru-sgd", "gru", "sgd", 10.0, 20, 1500, 2, 0.35, 360.0, 113.1, 50.3, 184.0),
    ("gru-sgd-schedule", "gru", "sgd_schedule", 10.0, 20, 1500, 2, 0.35, 350.0, 103.2, 66.1, 183.0),
    ("transformer-adam", "transformer", "adam", 0.001, 128, 512, 2, 0.9, 190.0, 131.3, 90.2, 27.0),
    ("transformer-sgd", "transformer", "sgd", 20.0, 128, 512, 6, 0.9, 620.0, 167.2, 24.4, 52.0),
    ("transformer-sgd-schedule", "transformer", "sgd_schedule", 20.0, 128, 512, 6, 0.9, 600.0, 143.3, 60.5, 52.0),
]

EXPLODING, DIVERGED, INTERRUPTED, CUT = "transformer-adam", "rnn-sgd-schedule", "gru-sgd", "transformer-sgd"
"""The runs of ``make_study`` that did not go well: past 5,000; ended by NaN; waiting to resume; metrics file cut."""

EPOCHS = 40


def make_study(study_dir: Path) -> Path:
    """Nine runs: seven done, one diverged with ``failure.json``, one interrupted."""
    for order, (name, *_) in enumerate(PUBLISHED):
        if name == DIVERGED:
            run = make_run(study_dir, order, epochs=7, done=False)
            records, _ = run.read_metrics()
            write_json_lines(run.metrics_file, [*records[:-1], {**records[-1], "train_ppl": None, "val_ppl": None}])
            fail(run, "diverged", "the loss of step 4,711 in epoch 7 is not a finite number")
        elif name == INTERRUPTED:
            make_run(study_dir, order, epochs=23, done=False)
        else:
            run = make_run(study_dir, order)
            if name == CUT:
                write_text(run.metrics_file, run.metrics_file.read_text("utf-8")[:-60])
    return study_dir


def make_run(
    study_dir: Path,
    order: int,
    *,
    name: str | None = None,
    epochs: int = EPOCHS,
    done: bool = True,
    seed: int = 1111,
    provenance: dict[str, Any] | None = None,
) -> RunDirectory:
    """Run ``order`` of ``PUBLISHED``, with ``epochs`` finished epochs."""
    title, arch, optimizer, lr, batch, hidden, layers, keep, first, best, train, seconds = PUBLISHED[order]
    config = RunConfig.from_dict(
        {
            "model": {"arch": arch, "hidden_size": hidden, "num_layers": layers, "keep": keep},
            "data": {"corpus": "ptb"},
            "optim": {"optimizer": optimizer, "lr": lr},
            "train": {"epochs": epochs if done else EPOCHS, "batch_size": batch},
            "seed": seed,
        }
    )
    run = RunDirectory.locate(study_dir, title, config.fingerprint())
    run.create(config, {**make_provenance(name or title, order), **(provenance or {})})
    run.attempt_dir(1).mkdir(parents=True, exist_ok=True)
    records = make_epochs(title, first, best, train, seconds, lr, epochs)
    if records:
        write_json_lines(run.metrics_file, records)
    if done:
        write_json(run.result_file, make_result(records))
    return run


def fail(run: RunDirectory, kind: str, message: str) -> None:
    """End a run with a failure and a log."""
    facts.fail(run, {"kind": kind, "message": message, "where": "trainer.py:163 in train_epoch"})
    lines = [f"epoch 7/40  step {100 * step}/1327  ppl {300 + step * step:.2f}" for step in range(1, 20)]
    write_text(run.stderr_log(1), "\n".join([*lines, f"error: {message}"]) + "\n")


def make_provenance(name: str, order: int) -> dict[str, Any]:
    return {
        "study": "optimizers",
        "name": name,
        "order": order,
        "command": ["python", "launch.py", "run", "jobs/manifests/optimizers.toml", "--only", f"name={name}"],
        "launched_at": f"2026-03-0{1 + order // 5}T09:{order:02d}:00+00:00",
        "host": "node07",
        "devices": ["NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3"],
        "git": {"commit": "3f1c9a7be2d04586b1aa7733c5e0f98d21764b0e", "dirty": True},
        "versions": {"seqlm": "0.1.0", "python": "3.12.3", "torch": "2.13.0", "pandas": "3.1.1"},
    }


def make_epochs(
    name: str, first: float, best: float, train: float, seconds: float, lr: float, epochs: int
) -> list[dict[str, Any]]:
    """Curves that fall from ``first`` to ``best``; that of the exploding run turns after its third epoch."""
    records = []
    for epoch in range(epochs):
        share = epoch / (EPOCHS - 1)
        val_ppl = best + (first - best) * math.exp(-6.5 * share) * (1 - share) + 0.4 * math.sin(epoch)
        train_ppl = train + (1.3 * first - train) * math.exp(-5 * share) * (1 - share)
        if name == EXPLODING:
            val_ppl = best * math.exp(0.0028 * (epoch - 2) ** 2) + (60.0 if epoch == 0 else 0.0)
            train_ppl = 3.0 + 300.0 * math.exp(-0.35 * epoch)
        records.append(
            {
                "epoch": epoch,
                "train_loss": math.log(train_ppl),
                "val_loss": math.log(val_ppl),
                "train_ppl": train_ppl,
                "val_ppl": val_ppl,
                "lr": lr,
                "epoch_seconds": seconds,
                "elapsed_seconds": seconds * (epoch + 1),
                "train_tokens_per_second": 929_589 / seconds,
                "peak_memory_bytes": 3_221_225_472,
                "attempt": 1,
            }
        )
    return records


def make_result(records: list[dict[str, Any]]) -> dict[str, Any]:
    best, final = min(records, key=lambda record: record["val_ppl"] or math.inf), records[-1]
    return {
        "epochs": final["epoch"] + 1,
        "best_epoch": best["epoch"],
        "best_val_loss": best["val_loss"],
        "best_val_ppl": best["val_ppl"],
        "best_train_ppl": best["train_ppl"],
        "final_epoch": final["epoch"],
        "final_train_ppl": final["train_ppl"],
        "final_val_ppl": final["val_ppl"],
        "test_loss": math.log(0.96 * best["val_ppl"]),
        "test_ppl": 0.96 * best["val_ppl"],
        "parameters": 15_205_100,
        "elapsed_seconds": final["elapsed_seconds"],
    }
