"""What it takes to submit 1,000 runs to SLURM: seconds, scheduler calls, memory; beside submitit and a loop of sbatch.

On a real SLURM of 64 nodes on the loopback of this machine; the jobs are held. See ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import functools
import json
import shlex
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.first_step import MANIFEST
from benchmarks.interleave import Rounds, interleave
from benchmarks.scheduler_calls import CallCounter
from benchmarks.turns import ROOT, load_average, rounded, take_turn
from seqlm.errors import BackendError, SeqlmError, UsageError
from seqlm.files import write_json, write_text
from slurm.testcluster import ClusterOptions, LoopbackCluster

GPUS = 8
LARGEST_ARRAY = 1000

SECONDS, CALL_SECONDS, MEMORY = "seconds", "seconds_of_the_call", "peak_memory_mb"
Figures = dict[str, float]
RATIOS: Mapping[str, tuple[tuple[str, str], tuple[str, str]]] = {
    "seqlm's command in those of submitit's": (("seqlm", SECONDS), ("submitit", SECONDS)),
    "seqlm's call in those of submitit's": (("seqlm, the call", CALL_SECONDS), ("submitit", CALL_SECONDS)),
    "the loop in those of seqlm's command": (("sbatch loop", SECONDS), ("seqlm", SECONDS)),
    "seqlm's memory in that of submitit's": (("seqlm", MEMORY), ("submitit", MEMORY)),
}
"""What is compared with what, within each round."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slurm_submission", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=LARGEST_ARRAY, help="%(default)s")
    parser.add_argument("--nodes", type=int, default=64, help="slurmd processes; %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="counted rounds; %(default)s")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON document to FILE, and a table too")
    options = parser.parse_args(arguments)
    try:
        if not 2 <= options.runs <= LARGEST_ARRAY:
            raise UsageError(f"--runs: expected 2 to {LARGEST_ARRAY}, tasks of one array, got {options.runs}")
        if min(options.nodes, options.repeats) < 1:
            raise UsageError("--nodes and --repeats: expected 1 or more")
        document = measure(options)
        if options.out is not None:
            write_json(options.out, document)
            write_text(options.out.with_suffix(".md"), as_markdown(document))
    except SeqlmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(document, indent=1))
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.results import circumstances  # torch

    words = f"--runs {options.runs} --nodes {options.nodes} --repeats {options.repeats}"
    document: dict[str, Any] = {
        "schema_version": 1,
        "benchmark": "slurm_submission",
        "command": shlex.join(["python", "-m", "benchmarks.slurm_submission", *words.split()]),
        **circumstances(),
        "load_average_before": load_average(),
    }
    measured = Measured()
    turns = {name: functools.partial(_on_a_cluster, options, turn, measured) for name, turn in TURNS.items()}
    rounds = interleave(
        turns,
        seconds=0,
        least_rounds=options.repeats,
        warmup_rounds=1,
        on_round=lambda number, _: print(f"round {number} of {options.repeats}", file=sys.stderr, flush=True),
    )
    document["versions"] |= {"submitit": version("submitit"), "slurm": measured.slurm}
    return {**document, **summary(measured, rounds.count), "load_average_after": load_average()}


class Measured:
    """Figures of each round, the first of which does not count; in that alone the calls are counted."""

    def __init__(self) -> None:
        self.figures: defaultdict[str, list[Figures]] = defaultdict(list)
        self.calls: dict[str, dict[str, int]] = {}
        self.slurm: str | None = None
        """Its version."""


def summary(measured: Measured, rounds: int) -> dict[str, Any]:
    """The spreads over the last ``rounds`` of what was measured, the ratios within them, the calls."""
    counted = {name: rows[-rounds:] for name, rows in measured.figures.items()}
    flat = {f"{name} {key}": [row[key] for row in rows] for name, rows in counted.items() for key in rows[0]}
    table = Rounds(flat)
    return {
        "turns": {
            name: {key: rounded(table.spread(f"{name} {key}")) for key in rows[0]} for name, rows in counted.items()
        },
        "scheduler_calls": measured.calls,
        "ratios": {
            title: rounded(table.ratio(" ".join(above), " ".join(below))) for title, (above, below) in RATIOS.items()
        },
        "rounds": rounds,
    }


# -- turns ---------------------------------------------------------------------------------------------------------


class _Turn:
    """One cluster, an empty folder, and what is measured there."""

    def __init__(self, folder: Path, cluster: LoopbackCluster, runs: int, measured: Measured) -> None:
        self.folder = folder
        self.runs = runs
        self._cluster = cluster
        self._measured = measured
        self._counter = CallCounter(folder, cluster.env)

    def take(self, name: str, *argv: str) -> tuple[Figures, str]:
        """The figures of a command, for ``note``, and what it printed."""
        counting = name not in self._measured.calls
        env = {**(self._counter.env if counting else self._cluster.env), "SEQLM_SLURM_CONFIG": "", "SEQLM_BACKEND": ""}
        found = take_turn("benchmarks.command_turn", {"argv": argv, "env": env, "cwd": str(ROOT)})
        if counting:
            self._measured.calls[name] = self._counter.take()
        return {SECONDS: found[SECONDS], MEMORY: found[MEMORY]}, found["stdout"]

    def note(self, name: str, figures: Figures) -> None:
        self._measured.figures[name].append(figures)

    def require_all_in_queue(self, what: str) -> None:
        jobs = self._cluster.run("squeue", "-h", "-r", "-o", "%i").stdout.split()
        if len(jobs) != self.runs:
            raise BackendError(f"{what}: {len(jobs)} jobs in the queue, expected {self.runs}")


def _on_a_cluster(options: argparse.Namespace, turn: Callable[[_Turn], None], measured: Measured) -> float:
    """One turn on a fresh cluster, which ends its jobs at its end."""
    size = ClusterOptions(nodes=options.nodes, gpus=GPUS, cpus=GPUS)
    with tempfile.TemporaryDirectory() as folder, LoopbackCluster(size) as cluster:
        measured.slurm = cluster.run("sbatch", "--version").stdout.split()[-1]
        turn(_Turn(Path(folder), cluster, options.runs, measured))
    return 0.0  # what counts is in ``measured``


def _command(turn: _Turn) -> None:
    runs_dir = turn.folder / "runs"
    words = ["run", str(_manifest(turn)), "--backend", "slurm", "--no-wait", "--no-canary", "--runs-dir", str(runs_dir)]
    figures, _ = turn.take("seqlm", sys.executable, str(ROOT / "launch.py"), *words)
    turn.require_all_in_queue("seqlm")
    turn.note("seqlm", figures)
    figures, said = turn.take("status", sys.executable, str(ROOT / "launch.py"), "status", str(runs_dir / "study"))
    if said.count("queued") < turn.runs:
        raise BackendError("status: not all runs are queued")
    turn.note("status", figures)


def _call(turn: _Turn) -> None:
    argv = ["-m", "benchmarks.submission_parts", "seqlm", str(_manifest(turn)), str(turn.folder / "runs" / "study")]
    _, said = turn.take("seqlm, the call", sys.executable, *argv)
    turn.require_all_in_queue("seqlm, the call")
    turn.note("seqlm, the call", {CALL_SECONDS: _seconds(said)})


def _submitit(turn: _Turn) -> None:
    argv = ["-m", "benchmarks.submission_parts", "submitit", str(turn.folder / "submitit"), str(turn.runs)]
    figures, said = turn.take("submitit", sys.executable, *argv)
    turn.require_all_in_queue("submitit")
    turn.note("submitit", {**figures, CALL_SECONDS: _seconds(said)})


def _loop(turn: _Turn) -> None:
    script = turn.folder / "job.sh"
    script.write_text("#!/bin/bash\ntrue\n", "ascii")
    loop = 'for number in $(seq "$1"); do sbatch --parsable --hold --time=60 --gpus-per-node=1 "$2" || exit; done'
    figures, _ = turn.take("sbatch loop", "bash", "-c", loop, "loop", str(turn.runs), str(script))
    turn.require_all_in_queue("sbatch loop")
    turn.note("sbatch loop", figures)


TURNS: Mapping[str, Callable[[_Turn], None]] = {
    "seqlm": _command,
    "seqlm, the call": _call,
    "submitit": _submitit,
    "sbatch loop": _loop,
}


def _manifest(turn: _Turn) -> Path:
    """A grid of equal needs, whose jobs stay in the queue."""
    rates = [round(0.001 + number * 1e-6, 6) for number in range(turn.runs)]
    path = turn.folder / "study.toml"
    text = MANIFEST.format(name="study", architectures='["rnn"]', rates=rates)
    path.write_text(f"{text}\n[backend.slurm]\nsbatch = {{hold = true}}\n", "utf-8")
    return path


def _seconds(said: str) -> float:
    return float(json.loads(said.splitlines()[-1])["seconds"])


# -- the table -----------------------------------------------------------------------------------------------------

_COLUMNS = {SECONDS: "command, s", CALL_SECONDS: "its call that submits, s", MEMORY: "largest process, MB"}


def as_markdown(document: Mapping[str, Any]) -> str:
    """The medians with least and most in brackets."""
    code = (document["git"]["commit"] or "none")[:12] + (" with changes" if document["git"]["dirty"] else "")
    libraries = ", ".join(f"{name} {number}" for name, number in document["versions"].items() if number)
    header = ["", *_COLUMNS.values(), "scheduler calls"]
    rows = []
    for name, figures in document["turns"].items():
        calls = document["scheduler_calls"][name]
        rows.append([name, *(_cell(figures.get(key)) for key in _COLUMNS), _calls(calls)])
    rule = ["---", *["---:"] * len(_COLUMNS), "---"]
    lines = [f"`{document['command']}`", ""]
    lines += [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]
    lines += ["", *(f"- {title}: {_cell(spread)}" for title, spread in document["ratios"].items())]
    lines += [f"- {document['date']}, commit {code}, {document['processor']}, {document['cores']} cores; {libraries}"]
    before, after = (document[f"load_average_{when}"][0] for when in ("before", "after"))
    lines += [f"- load of the machine, the cluster's own included: {before} before, {after} after"]
    lines += ["- interleaved; median of the rounds (least-most); what is measured is in benchmarks/README.md", ""]
    return "\n".join(lines)


def _calls(calls: Mapping[str, int]) -> str:
    each = ", ".join(f"{number} {name}" for name, number in calls.items())
    return f"{sum(calls.values())}: {each}" if calls else "0"


def _cell(spread: Mapping[str, float] | None) -> str:
    return "-" if spread is None else f"{spread['median']:.3g} ({spread['least']:.3g}-{spread['most']:.3g})"


if __name__ == "__main__":
    sys.exit(main())
