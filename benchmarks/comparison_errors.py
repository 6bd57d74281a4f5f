"""How often comparisons of settings err, and how many seeds they take: simulated, through the files of studies.

python -m benchmarks.comparison_errors --studies 100 --simulated 20000
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jobs.study.kept_code import live_code
from seqlm.comparisons import compared, file_typed, file_verdict, read_comparisons, verdict_of
from seqlm.config import RunConfig
from seqlm.records.runs import Result
from seqlm.rundir import RunDirectory
from seqlm.sequential import finding

SEEDS = 20
DEVIATION = 0.01
"""Of the loss of a run, in nats."""
DIFFERENCES = (0.0, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05)


def main() -> int:
    parser = argparse.ArgumentParser(description="Count the claims of comparisons of settings with known losses.")
    parser.add_argument("--studies", type=int, default=100, help="studies whose runs are files")
    parser.add_argument("--simulated", type=int, default=20_000, help="studies that are only numbers")
    options = parser.parse_args()
    draws = random.Random(59)
    claims = {margin: [study_claims(draws, margin) for _ in range(options.studies)] for margin in (0.0, 0.02)}
    code = live_code()
    found = {
        "benchmark": "comparison_errors",
        "command": " ".join(["python -m benchmarks.comparison_errors", *sys.argv[1:]]),
        "commit": code.commit,
        "dirty": code.dirty,
        "seeds": SEEDS,
        "deviation": DEVIATION,
        "through_files": {
            "studies": options.studies,
            **{f"false_claims_margin_{margin:g}": sum(which) for margin, which in claims.items()},
        },
        "simulated": [row(draws, options.simulated, difference) for difference in DIFFERENCES],
    }
    print(json.dumps(found, indent=1))
    return 0


def study_claims(draws: random.Random, margin: float) -> bool:
    """Return whether a study of two equal settings ever claims a difference, looked at after each seed."""
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder)
        sides = [
            {f"{side}-{seed}": config(seed, width) for seed in range(SEEDS)} for side, width in (("a", 8), ("b", 9))
        ]
        typed = compared(("a", "b"), (sides[0], sides[1]), sides[0] | sides[1], margin=margin, error=0.05)
        file_typed(study, typed, margin=margin, error=0.05)
        for seed in range(SEEDS):
            for side in ("a", "b"):
                run = RunDirectory(study / f"{side}-{seed}")
                run.path.mkdir()
                Result(epochs=1, best_val_loss=draws.gauss(5, DEVIATION)).write(run.path, sync=False)
            verdict = verdict_of(study, typed.record, len(read_comparisons(study)))
            file_verdict(study, typed.key, verdict)
            assert len(verdict.seeds) == seed + 1
            if verdict.outcome in ("lower", "higher"):
                return True
        return False


def config(seed: int, width: int) -> RunConfig:
    """Return the configuration of a run of a setting."""
    return RunConfig.from_dict(
        {
            "model": {"arch": "rnn", "hidden_size": width},
            "data": {"corpus": "ptb"},
            "optim": {"optimizer": "sgd", "lr": 1.0},
            "train": {"epochs": 1},
            "seed": seed,
        }
    )


def row(draws: random.Random, studies: int, difference: float) -> dict[str, float]:
    """Return how many studies decide, and after how many seeds they end, without a margin."""
    ends = [end_of(draws, difference) for _ in range(studies)]
    return {
        "difference": difference,
        "studies": studies,
        "decided": sum(is_decided for is_decided, _ in ends) / studies,
        "seeds": statistics.fmean(seeds for _, seeds in ends),
    }


def end_of(draws: random.Random, difference: float) -> tuple[bool, int]:
    """Return whether a study decides with the most seeds, and after how many."""
    differences: Sequence[float] = [
        draws.gauss(difference, DEVIATION) - draws.gauss(0, DEVIATION) for _ in range(SEEDS)
    ]
    found = finding(differences, error=0.05)
    return found.is_decided, found.decided_after or SEEDS


if __name__ == "__main__":
    sys.exit(main())
