"""How long a decision at a rung of a large search takes: from the decisions of other runs, or from their metrics.

python -m benchmarks.rung_decisions --runs 10000
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.interleave import Spread, interleave
from benchmarks.status import make_runs
from jobs.study.kept_code import live_code
from seqlm.files import write_json_lines
from seqlm.machine import cpu_count, cpu_model
from seqlm.rundir import RunDirectory
from seqlm.search import Search, decide, values_at

RUNG = 9
EPOCHS = 40
SEARCH = Search(rungs=(RUNG,), within=("model.arch",))
VOCAB_SIZE = 10_000


def main() -> int:
    parser = argparse.ArgumentParser(description="Time a decision at a rung that all other runs have reached.")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    code = live_code()
    with tempfile.TemporaryDirectory() as folder:
        studies = {name: made(Path(folder) / name, options.runs) for name in ("metrics", "decisions")}
        own = {name: runs[0] for name, runs in studies.items()}
        # Deciding about one of 10,000 takes seconds, so each record is that of one decision with the run's own value.
        decide(own["decisions"], SEARCH, RUNG, 1, vocab_size=VOCAB_SIZE)
        record = json.loads(own["decisions"].rung_file(RUNG).read_text())
        own["decisions"].rung_file(RUNG).unlink()
        for run in studies["decisions"][1:]:
            arch = {"model.arch": run.read_config().model.kind}
            decision = {**record, "value": value_of(run), "group": {**record["group"], **arch}}
            run.rung_file(RUNG).write_text(json.dumps(decision, indent=1))
        assert values_at(own["metrics"], SEARCH, RUNG).keys() == values_at(own["decisions"], SEARCH, RUNG).keys()
        turns = {name: timed(run) for name, run in own.items()}
        rounds = interleave(turns, seconds=0.0, least_rounds=options.rounds, warmup_rounds=1)
        found: dict[str, Any] = {
            "benchmark": "rung_decisions",
            "command": f"python -m benchmarks.rung_decisions --runs {options.runs} --rounds {options.rounds}",
            "commit": code.commit,
            "dirty": code.dirty,
            "processor": cpu_model(),
            "python": platform.python_version(),
            "runs": options.runs,
            "epochs": EPOCHS,
            "cores": cpu_count(),
            "load_average": [round(load, 2) for load in os.getloadavg()],
            "seconds": {name: shown(rounds.spread(name)) for name in turns},
            "ratio": shown(rounds.ratio("metrics", "decisions")),
        }
    print(json.dumps(found, indent=1))
    return 0


def made(study: Path, number: int) -> list[RunDirectory]:
    """Make runs that have finished all their epochs."""
    runs = make_runs(study, number)
    for run in runs:
        records = [
            {
                "epoch": epoch,
                "train_loss": 5.104278564453125,
                "val_loss": 5.204278564453125,
                "train_ppl": 164.7231231,
                "val_ppl": value_of(run) + RUNG - 1 - epoch,
                "epoch_seconds": 10.123456789,
                "train_tokens_per_second": 93123.4567,
                "attempt": 1,
            }
            for epoch in range(EPOCHS)
        ]
        write_json_lines(run.metrics_file, records)
    return runs


def value_of(run: RunDirectory) -> float:
    """Return a run's validation perplexity at the rung."""
    return 100 + int(run.id[-4:], 16) / 1000


def timed(run: RunDirectory) -> Callable[[], float]:
    """Return a turn: a decision about a run, which is forgotten again."""

    def turn() -> float:
        start = time.perf_counter()
        decide(run, SEARCH, RUNG, 1, vocab_size=VOCAB_SIZE)
        seconds = time.perf_counter() - start
        run.rung_file(RUNG).unlink()
        return seconds

    return turn


def shown(spread: Spread) -> dict[str, float]:
    return {key: round(value, 3) for key, value in dataclasses.asdict(spread).items()}


if __name__ == "__main__":
    sys.exit(main())
