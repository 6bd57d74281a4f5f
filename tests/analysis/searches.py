"""A search made up for tests: sampled runs whose curves are formulas, stopped by the rule of its manifest."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from seqlm.files import write_json
from seqlm.rundir import RunDirectory
from tests import facts
from tests.analysis.attempt_files import at, write_attempt, write_job
from tests.analysis.hand_made import add_run

RULE = {"metric": "val_ppl", "rungs": [3, 9], "keep": 0.34, "min_runs": 3, "within": ["model.arch"]}
ARCHS = {"rnn": 150.0, "gru": 110.0, "transformer": 130.0}


def stop(run: RunDirectory, rung: int, value: float, *, rank: int, of: int, cut: float) -> None:
    """Stop a run as the worker does."""
    goes_on = math.ceil(0.34 * of)
    evidence = {"metric": "val_ppl", "rung": rung, "value": value, "rank": rank, "of": of, "keep": 0.34}
    facts.stop(run, {**evidence, "goes_on": goes_on, "cut": cut, "min_runs": 3, "at": at(0)})


def make_search(study_dir: Path, *, each: int = 9, epochs: int = 12, rule: dict[str, Any] | None = None) -> Path:
    """``each`` runs of each architecture with sampled learning rates, sizes and keeps, launched one after another."""
    draw = random.Random(7)
    reached: dict[tuple[str, int], list[float]] = {}
    clock = 0.0
    for order in range(3 * each):
        arch = list(ARCHS)[order % 3]
        keys: dict[str, Any] = {
            "lr": float(f"{10 ** draw.uniform(-4, -1):.4g}"),
            "hidden_size": 16 * draw.randint(4, 64),
            "keep": round(draw.uniform(0.2, 0.9), 4),
        }
        name = f"{arch}-adam-hidden{keys['hidden_size']}-keep{keys['keep']}-lr{keys['lr']}"
        if arch == "transformer":
            keys["num_heads"] = 2
        floor = ARCHS[arch] * (1 + 0.08 * (math.log10(keys["lr"]) + 2.5) ** 2 + 40 / keys["hidden_size"])
        val = [floor * (1 + 3 * math.exp(-0.45 * epoch * (1.3 - keys["keep"]))) for epoch in range(epochs)]
        gone, stopped = epochs, None
        for rung in RULE["rungs"]:
            values = reached.setdefault((arch, rung), [])
            values.append(value := val[rung - 1])
            rank, places = 1 + sum(other < value for other in values), math.ceil(0.34 * len(values))
            if len(values) >= 3 and rank > places:
                gone, stopped = rung, (rung, value, rank, len(values), sorted(values)[places - 1])
                break
        seconds = 20.0 + keys["hidden_size"] / 20
        run = add_run(
            study_dir,
            order,
            name,
            arch,
            "adam",
            val[:gone],
            train=[0.8 * value for value in val[:gone]],
            seconds=seconds,
            done=stopped is None,
            epochs=epochs,
            provenance={"study": study_dir.name},
            **keys,
        )
        if stopped:
            rung, value, rank, of, cut = stopped
            stop(run, rung, value, rank=rank, of=of, cut=cut)
        ran = {"start": clock, "end": clock + gone * seconds + 5, "outcome": "rung" if stopped else "done"}
        write_attempt(run, 1, **ran, gpus=("0",), device="NVIDIA H100 80GB HBM3")
        write_job(run, 1, gpus=1.0)
        clock += 0.5 * gone * seconds
    write_json(study_dir / "study.json", {"planned": [], "search": rule or RULE})
    return study_dir
