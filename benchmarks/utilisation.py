"""How busy 200 short runs keep eight (fake) GPUs, against what no order could beat, and the launcher's memory.

Stand-in workers through the real Dispatcher and backend ray. See ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.fake_cluster import fake_cluster
from benchmarks.interleave import Spread
from benchmarks.stand_ins import Span, free_makespan, hand_over, least_makespan, mixed, utilisation
from benchmarks.turns import load_average, rounded, take_turn
from seqlm.errors import SeqlmError, UsageError
from seqlm.files import write_json


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.utilisation", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200, help="%(default)s")
    parser.add_argument("--gpus", type=int, default=8, help="%(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the runs' lengths; %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="%(default)s")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON document to FILE too")
    options = parser.parse_args(arguments)
    try:
        if options.gpus < 2:
            raise UsageError(f"--gpus: expected 2 or more, since some runs have two ranks, got {options.gpus}")
        if options.runs < 1 or options.repeats < 1:
            raise UsageError("--runs and --repeats: expected 1 or more")
        document = measure(options)
        if options.out is not None:
            write_json(options.out, document)
    except SeqlmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(document, indent=1))
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.results import circumstances  # torch

    words = f"--runs {options.runs} --gpus {options.gpus} --seed {options.seed} --repeats {options.repeats}"
    document: dict[str, Any] = {
        "schema_version": 1,
        "benchmark": "utilisation",
        "command": shlex.join(["python", "-m", "benchmarks.utilisation", *words.split()]),
        **circumstances(),
        "load_average_before": load_average(),
    }
    repeats = [once(options) for _ in range(options.repeats)]
    document["figures"] = {key: rounded(Spread.of([found[key] for found in repeats]), 4) for key in repeats[0]}
    return {**document, "load_average_after": load_average()}


def once(options: argparse.Namespace) -> dict[str, float]:
    wanted = mixed(options.runs, seed=options.seed)
    with fake_cluster(options.gpus, options.gpus) as address, tempfile.TemporaryDirectory() as folder:
        turn = {"study": folder, "runs": [asdict(one) for one in wanted], "backend": "ray", "address": address}
        found = take_turn("benchmarks.dispatch_runs", turn)
    workers = [[Span(**span) for span in ranks] for ranks in found["spans"]]
    flat = [span for ranks in workers for span in ranks]
    return {
        "makespan": found["makespan"],
        "least_makespan_of_any_order": least_makespan(options.gpus, workers),
        "makespan_if_starting_cost_nothing": free_makespan(options.gpus, wanted),
        "utilisation": utilisation(found["makespan"], options.gpus, workers),
        "of_the_best_possible": least_makespan(options.gpus, workers) / found["makespan"],
        "hand_over_seconds": hand_over(options.gpus, flat),
        "seconds_to_first_worker": min(span.start for span in flat) - found["began"],
        "launcher_processor_seconds": found["processor_seconds"],
        **memory(found["resident_mb"]),
    }


def memory(megabytes: Sequence[float]) -> dict[str, float]:
    """Mean resident memory in the first and the last quarter of the time."""
    quarter = max(1, len(megabytes) // 4)
    first, last = statistics.mean(megabytes[:quarter]), statistics.mean(megabytes[-quarter:])
    return {"launcher_mb_first_quarter": first, "launcher_mb_last_quarter": last, "growth": last / first - 1}


if __name__ == "__main__":
    sys.exit(main())
