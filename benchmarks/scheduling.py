"""What the scheduler costs: beside each run, before the first step, and before the first of a thousand runs.

Backend ray, backend local and Ray Tune run the same command lines in turns. See ``benchmarks/README.md``.
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
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.fake_cluster import fake_cluster
from benchmarks.first_step import first_start, launch_command, tune_turn, watch_command, write_manifest
from benchmarks.interleave import Rounds, Spread, interleave
from benchmarks.stand_ins import WORKER, Span, cost_per_run, equal, hand_over, make_study, spans
from benchmarks.turns import load_average, require_tune, rounded, take_turn
from seqlm.errors import SeqlmError, UsageError
from seqlm.files import write_json, write_text
from seqlm.machine import cpu_count

PARTS = ("cost", "first-step", "launch")
Figures = dict[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scheduling", description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="all by default")
    parser.add_argument("--runs", type=int, default=30, help="stand-in runs of a turn; %(default)s")
    parser.add_argument("--seconds", type=float, default=0.5, help="what each takes; %(default)s")
    parser.add_argument("--grid", type=int, default=999, help="runs of the large launch; %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds; %(default)s")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON document to FILE, and a table too")
    options = parser.parse_args(arguments)
    try:
        if min(options.rounds, options.grid) < 1 or options.runs < 2 * cpu_count():
            raise UsageError(f"--rounds, --grid: expected 1 or more; --runs: expected {2 * cpu_count()} or more")
        if {"cost", "first-step"} & {*options.parts}:
            require_tune()
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

    words = f"--parts {' '.join(options.parts)} --runs {options.runs} --seconds {options.seconds}"
    words += f" --grid {options.grid} --rounds {options.rounds}"
    document: dict[str, Any] = {
        "schema_version": 1,
        "benchmark": "scheduling",
        "command": shlex.join(["python", "-m", "benchmarks.scheduling", *words.split()]),
        **circumstances(),
        "load_average_before": load_average(),
    }
    document["versions"]["ray"] = _ray_version()
    parts: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        "cost": measure_cost,
        "first-step": measure_first_step,
        "launch": measure_launch,
    }
    for part in options.parts:
        document[part] = parts[part](options)
        print(f"measured: {part}", file=sys.stderr)
    return {**document, "load_average_after": load_average()}


def _ray_version() -> str:
    import ray

    return str(ray.__version__)


# -- cost of a run -------------------------------------------------------------------------------------------------


def measure_cost(options: argparse.Namespace) -> dict[str, Any]:
    """Stand-ins of one core each on a cluster with this machine's cores, and on the machine without Ray."""
    slots = cpu_count()
    with fake_cluster(slots, 0) as address:

        def ours(backend: str, folder: Path) -> Figures:
            wanted = [asdict(one) for one in equal(options.runs, options.seconds)]
            turn = {"study": str(folder / "study"), "runs": wanted, "backend": backend, "address": address}
            found = take_turn("benchmarks.dispatch_runs", turn)
            return cost(found, slots, [Span(**ranks[0]) for ranks in found["spans"]])

        def tune(reuse: bool, folder: Path) -> Figures:
            planned = make_study(folder / "study", equal(options.runs, options.seconds))
            turn: dict[str, Any] = {"address": address, "reuse": reuse, "cpus": 1, "gpus": 0, "env": {}}
            turn |= {"run_dirs": [str(item.run.path) for item in planned], "argv": list(WORKER)}
            found = take_turn("benchmarks.tune_runs", {**turn, "storage": str(folder / "tune")})
            return cost(found, slots, [ranks[0] for ranks in spans(planned)])

        turns: dict[str, Callable[[Path], Figures]] = {
            "local": functools.partial(ours, "local"),
            "ray": functools.partial(ours, "ray"),
            "tune": functools.partial(tune, False),
            "tune, actors reused": functools.partial(tune, True),
        }
        figures, rounds = in_turns(turns, "seconds_per_run", options.rounds)
    ratios = {name: rounded(rounds.ratio(name, "ray")) for name in turns if name != "ray"}
    return {"slots": slots, "turns": figures, "seconds_per_run_in_those_of_ray": ratios, "rounds": rounds.count}


def cost(found: Mapping[str, Any], slots: int, workers: Sequence[Span]) -> Figures:
    return {
        "seconds_per_run": cost_per_run(found["makespan"], slots, workers),
        "hand_over_seconds": hand_over(slots, workers),
        "seconds_to_first_worker": min(span.start for span in workers) - found["began"],
        "makespan": found["makespan"],
    }


def in_turns(
    turns: Mapping[str, Callable[[Path], Figures]], main_figure: str, rounds: int
) -> tuple[dict[str, dict[str, Any]], Rounds]:
    """Each turn in a folder of its own; the spread of every figure, and the rounds of the main one."""
    kept: defaultdict[str, list[Figures]] = defaultdict(list)

    def take(name: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            kept[name].append(turns[name](Path(folder)))
        return kept[name][-1][main_figure]

    taken = {name: functools.partial(take, name) for name in turns}
    measured = interleave(taken, seconds=0, least_rounds=rounds, warmup_rounds=1)
    spreads: dict[str, dict[str, Any]] = {}
    for name, found in kept.items():
        counted = found[-measured.count :]
        spreads[name] = {key: rounded(Spread.of([row[key] for row in counted]), 4) for key in counted[0]}
    return spreads, measured


# -- whole commands ------------------------------------------------------------------------------------------------


def measure_first_step(options: argparse.Namespace) -> dict[str, Any]:
    def ours(backend: str, folder: Path) -> Figures:
        command = launch_command(write_manifest(folder, 1), backend, folder / "runs")
        return watch_command(command, folder / "runs" / "study")

    def tune(folder: Path) -> Figures:
        turn = folder / "turn.json"
        write_json(turn, tune_turn(write_manifest(folder, 1), folder / "runs" / "study"))
        return watch_command([sys.executable, "-m", "benchmarks.tune_runs", str(turn)], folder / "runs" / "study")

    turns: dict[str, Callable[[Path], Figures]] = {
        "local": functools.partial(ours, "local"),
        "ray": functools.partial(ours, "ray"),
        "tune": tune,
    }
    figures, rounds = in_turns(turns, "first step", options.rounds)
    ratios = {name: rounded(rounds.ratio(name, "ray")) for name in turns if name != "ray"}
    return {"seconds_from_the_command": figures, "first_step_in_those_of_ray": ratios, "rounds": rounds.count}


def measure_launch(options: argparse.Namespace) -> dict[str, Any]:
    def ours(backend: str, folder: Path) -> Figures:
        command = launch_command(write_manifest(folder, options.grid), backend, folder / "runs")
        return first_start(command, folder / "runs" / "study")

    turns = {backend: functools.partial(ours, backend) for backend in ("local", "ray")}
    figures, rounds = in_turns(turns, "seconds", options.rounds)
    return {"runs": -(-options.grid // 3) * 3, "to_the_first_started_run": figures, "rounds": rounds.count}


# -- the tables ----------------------------------------------------------------------------------------------------


def as_markdown(document: Mapping[str, Any]) -> str:
    """The medians with least and most in brackets."""
    code = (document["git"]["commit"] or "none")[:12] + (" with changes" if document["git"]["dirty"] else "")
    libraries = ", ".join(f"{name} {version}" for name, version in document["versions"].items() if version)
    lines = [f"`{document['command']}`", ""]
    if "cost" in document:
        lines += [*_table("seconds", document["cost"]["turns"]), ""]
    if "first-step" in document:
        lines += [*_table("seconds from the command to", document["first-step"]["seconds_from_the_command"]), ""]
    if "launch" in document:
        runs = document["launch"]["runs"]
        lines += [*_table(f"to the first of {runs} runs", document["launch"]["to_the_first_started_run"]), ""]
    lines += [f"- {document['date']}, commit {code}, {document['processor']}, {document['cores']} cores; {libraries}"]
    lines += ["- interleaved; median of the rounds (least-most); what is measured is in benchmarks/README.md", ""]
    return "\n".join(lines)


def _table(title: str, turns: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    columns = list(next(iter(turns.values())))
    rows = [[name, *(_cell(figures[column]) for column in columns)] for name, figures in turns.items()]
    header = [title, *(column.replace("_", " ") for column in columns)]
    rule = ["---", *["---:"] * len(columns)]
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]


def _cell(spread: Mapping[str, float]) -> str:
    return f"{spread['median']:.3g} ({spread['least']:.3g}-{spread['most']:.3g})"


if __name__ == "__main__":
    sys.exit(main())
