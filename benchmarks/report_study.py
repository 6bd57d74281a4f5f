"""A study folder made up for `benchmarks.report`: many runs with curves of the usual shapes, no training behind them.

Every architecture with every optimizer, in settings of three seeds each that differ in learning rate and width. Of each
hundred runs five have failed (diverged, out of memory, a node lost), one waits to resume, and one has exploded.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.shapes import built_in
from seqlm.config import RunConfig
from seqlm.files import write_json, write_text
from seqlm.records.attempts import Start
from seqlm.records.runs import GitState, Provenance
from seqlm.rundir import RunDirectory

SEEDS = 3
ARCHITECTURES = {"rnn": 155.0, "gru": 108.0, "transformer": 130.0}
"""About the best validation perplexity of each."""
OPTIMIZERS = {"adam": 0.001, "sgd": 1.0, "sgd_schedule": 10.0}
"""The middle of the learning rates of each."""
STEPS = (1.0, 0.3, 3.0, 0.1, 0.5, 2.0, 5.0, 0.2, 0.7, 1.5, 4.0, 7.0)
WIDTH = 512
"""Widths are its multiples, as many as the runs need."""
FAILURES = {13: "diverged", 37: "oom", 58: "node", 71: "diverged", 94: "timeout"}
"""Place within a hundred and kind of each failure."""
WAITING, EXPLODING = 45, 22


def make_study(study: Path, runs: int, epochs: int) -> None:
    """Write ``runs`` run folders below ``study``; the same ones each time. More runs are these, and further ones."""
    for order, config in enumerate(itertools.islice(_configs(epochs), runs)):
        _make_run(study, order, config, epochs)


def _configs(epochs: int) -> Iterator[RunConfig]:
    """Yield configurations without end."""
    for width in itertools.count(WIDTH, WIDTH):
        for step, arch, optimizer, seed in itertools.product(STEPS, ARCHITECTURES, OPTIMIZERS, range(SEEDS)):
            yield RunConfig.from_dict(
                {
                    "model": {"arch": arch, "hidden_size": width},
                    "data": {"corpus": "ptb"},
                    "optim": {"optimizer": optimizer, "lr": step * OPTIMIZERS[optimizer]},
                    "train": {"epochs": epochs},
                    "seed": 1111 + seed,
                }
            )


def _make_run(study: Path, order: int, config: RunConfig, epochs: int) -> None:
    rng = random.Random(order)
    arch, optimizer = config.model.arch, config.optim.optimizer
    name = f"{arch}-{optimizer}-lr{config.optim.lr:g}-h{built_in(config).hidden_size}-seed{config.seed}"
    run = RunDirectory.locate(study, name, config.fingerprint())
    run.create(config, _provenance(name, order))
    run.attempt_dir(1).mkdir(parents=True)
    failure, place = FAILURES.get(order % 100), order % 100
    done = 0 if failure == "oom" else epochs // 3 if failure or place == WAITING else epochs
    records = _epochs(rng, config, done, explodes=place == EXPLODING)
    if failure == "diverged" and records:
        records[-1] |= dict.fromkeys(("train_ppl", "val_ppl", "train_loss", "val_loss"))
    Start(backend="slurm", job_id=f"{order}").write(run.attempt_dir(1))
    write_json(run.worker_file(1), _worker(order, records), sync=False)
    write_text(run.metrics_file, "".join(json.dumps(record) + "\n" for record in records), sync=False)
    if failure:
        write_json(run.end_file(1), {"kind": failure, "message": f"{failure} in epoch {done}"}, sync=False)
        lines = [f"epoch {done}/{epochs}  step {step}  ppl {300 + step}" for step in range(20)]
        write_text(run.stderr_log(1), "\n".join([*lines, f"error: {failure}"]) + "\n", sync=False)
    elif place != WAITING:
        write_json(run.result_file, _result(records), sync=False)


def _provenance(name: str, order: int) -> Provenance:
    return Provenance(
        study="large",
        name=name,
        order=order,
        command=("python", "launch.py", "run", "large.toml", "--only", f"name={name}"),
        launched_at=f"2026-03-01T09:{order // 60 % 60:02d}:{order % 60:02d}+00:00",
        host=f"node{order % 8:02d}",
        git=GitState(commit="3f1c9a7be2d04586b1aa7733c5e0f98d21764b0e"),
    )


def _worker(order: int, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Runs go eight at once, each on a node of its own, for an hour and what their epochs take."""
    started = datetime(2026, 3, 1, 9, tzinfo=UTC) + timedelta(hours=2.5 * (order // 8), seconds=order % 8)
    seconds = records[-1]["elapsed_seconds"] + 20 if records else 15.0
    return {
        "host": f"node{order % 8:02d}",
        "node": None,
        "pid": 1000 + order,
        "rank": 0,
        "ranks": 1,
        "device": "NVIDIA H100 80GB HBM3",
        "gpu": "0",
        "started_at": started.isoformat(timespec="seconds"),
        "ended_at": (started + timedelta(seconds=seconds)).isoformat(timespec="seconds"),
    }


def _epochs(rng: random.Random, config: RunConfig, epochs: int, *, explodes: bool) -> list[dict[str, Any]]:
    """Curves that fall to a best perplexity, lower for steps near the middle; an exploding one turns early."""
    away = abs(math.log(config.optim.lr / OPTIMIZERS[config.optim.optimizer]))
    best = ARCHITECTURES[config.model.arch] * math.exp(0.12 * away + 0.15 * (config.optim.optimizer == "sgd"))
    best *= math.exp(rng.gauss(0, 0.01) - 0.02 * math.log2(built_in(config).hidden_size / 512))
    seconds = {"rnn": 95.0, "gru": 190.0, "transformer": 40.0}[config.model.arch] * built_in(config).hidden_size / 1024
    records = []
    elapsed = 0.0
    for epoch in range(epochs):
        share = epoch / config.train.epochs
        val_ppl = best * (1 + 3.2 * math.exp(-7 * share)) * math.exp(rng.gauss(0, 0.003))
        train_ppl = 0.6 * best * (1 + 6 * math.exp(-6 * share))
        if explodes and epoch > 2:
            val_ppl = best * math.exp(0.0028 * (epoch - 2) ** 2)
        taken = seconds * (1 + 0.02 * rng.random())
        elapsed += taken
        records.append(
            {
                "epoch": epoch,
                "train_loss": math.log(train_ppl),
                "val_loss": math.log(val_ppl),
                "train_ppl": train_ppl,
                "val_ppl": val_ppl,
                "steps": 1327,
                "lr": config.optim.lr,
                "epoch_seconds": taken,
                "elapsed_seconds": elapsed,
                "train_tokens_per_second": 929_589 / taken,
                "peak_memory_bytes": 3_221_225_472,
                "attempt": 1,
            }
        )
    return records


def _result(records: list[dict[str, Any]]) -> dict[str, Any]:
    best, final = min(records, key=lambda record: record["val_ppl"]), records[-1]
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
