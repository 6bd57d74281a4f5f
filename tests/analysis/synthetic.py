"""Study folders made up for tests: curves shaped like the published ones, no training behind them."""

import math
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from seqlm.files import write_json_lines, write_text
from seqlm.rundir import RunDirectory
from tests import facts
from tests.analysis.hand_made import add_run

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

EPOCHS, STEPS = 40, 150


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
    curves = [curve_at(title, first, best, train, epoch) for epoch in range(epochs)]
    val = [val_ppl for val_ppl, _ in curves]
    launched = {"launched_at": f"2026-03-0{1 + order // 5}T09:{order:02d}:00+00:00"}
    test = {"test_loss": math.log(0.96 * min(val)), "test_ppl": 0.96 * min(val)} if val else {}
    run = add_run(
        study_dir,
        order,
        title,
        arch,
        optimizer,
        val,
        train=[train_ppl for _, train_ppl in curves],
        seconds=seconds,
        done=done,
        seed=seed,
        provenance={"name": name or title, **launched, **(provenance or {})},
        record={"steps": STEPS, "train_tokens_per_second": 929_589 / seconds, "peak_memory_bytes": 3_221_225_472},
        result={**test, "parameters": 15_205_100},
        **{"lr": lr, "batch_size": batch, "hidden_size": hidden, "num_layers": layers, "keep": keep},
        epochs=epochs if done else EPOCHS,
    )
    run.attempt_dir(1).mkdir(parents=True, exist_ok=True)
    return run


def add_trace(run: RunDirectory, losses: Iterable[float]) -> None:
    """Write the loss of each step."""
    rows = array("f", [value for loss in losses for value in (loss, 1.0, 0.5)])
    run.trace_file.write_bytes(rows.tobytes())


def curve_at(name: str, first: float, best: float, train: float, epoch: int) -> tuple[float, float]:
    """Perplexities (validation, training) that fall from ``first`` to ``best``.

    Those of the exploding run turn after its third epoch.
    """
    if name == EXPLODING:
        val_ppl = best * math.exp(0.0028 * (epoch - 2) ** 2) + (60.0 if epoch == 0 else 0.0)
        return val_ppl, 3.0 + 300.0 * math.exp(-0.35 * epoch)
    share = epoch / (EPOCHS - 1)
    val_ppl = best + (first - best) * math.exp(-6.5 * share) * (1 - share) + 0.4 * math.sin(epoch)
    return val_ppl, train + (1.3 * first - train) * math.exp(-5 * share) * (1 - share)


def fail(run: RunDirectory, kind: str, message: str) -> None:
    """End a run with a failure and a log."""
    facts.fail(run, {"kind": kind, "message": message, "where": "trainer.py:163 in train_epoch"})
    lines = [f"epoch 7/40  step {100 * step}/1327  ppl {300 + step * step:.2f}" for step in range(1, 20)]
    write_text(run.stderr_log(1), "\n".join([*lines, f"error: {message}"]) + "\n")
