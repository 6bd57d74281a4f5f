"""Simulate searches: proposals against draws, and orders of starting. See ``benchmarks/README.md``."""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.search import order
from benchmarks.search.methods import METHODS, RUNS, Searched, search
from benchmarks.search.surfaces import Interpolated, Recorded, Surface, Synthetic, record, spread
from jobs.manifests.draws import draw
from jobs.plan.proposals import Evidence, Proposer
from seqlm.errors import SeqlmError, UsageError
from seqlm.files import write_json, write_text

SURFACES = ("smooth", "rough", "pydoc", "pydoc-interpolated")
PARTS = (*SURFACES, "order", "time")
RUNS_OF_TIME = (20, 60, 200, 300)


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate what the command line asks for; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--repetitions", type=int, default=10, help="searches with each method; %(default)s")
    parser.add_argument("--record", type=Path, metavar="STUDY", help="write pydoc.csv from the runs of a study instead")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON document to FILE, and tables too")
    try:
        options = parser.parse_args(words)
        if options.record is not None:
            print(f"{record(options.record)} runs recorded")
            return 0
        if options.repetitions < 1:
            raise UsageError(f"--repetitions: expected 1 or more, got {options.repetitions}")
        unknown = [part for part in options.parts if part not in PARTS]
        if unknown:
            raise UsageError(f"--parts: expected some of {', '.join(PARTS)}, got {unknown[0]}")
        document = simulate(options.parts, options.repetitions)
        if options.out is not None:
            write_json(options.out, document)
            write_text(options.out.with_suffix(".md"), as_markdown(document))
    except SeqlmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(document, indent=1) if options.out is None else as_markdown(document))
    return 0


def simulate(parts: Sequence[str], repetitions: int) -> dict[str, Any]:
    """Return the document."""
    from benchmarks.results import circumstances  # torch

    command = ["python", "-m", "benchmarks.search", "--parts", *parts, "--repetitions", str(repetitions)]
    document: dict[str, Any] = {
        "schema_version": 1,
        "benchmark": "search",
        "command": shlex.join(command),
        **circumstances(),
        "repetitions": repetitions,
        "surfaces": {part: methods_on(part, repetitions) for part in parts if part in SURFACES},
    }
    if "order" in parts:
        document["order"] = orders(10 * repetitions)
    if "time" in parts:
        document["seconds_of_a_proposal"] = seconds_of_a_proposal()
    return document


# -- proposals against draws ---------------------------------------------------------------------------------------


WITHOUT, SHORT, WHOLE = "without stopping", "with stopping", "with stopping, as many epochs as without"
"""How a search goes on: 60 runs; as many epochs as 60 draws take with stopping; as many as 60 runs take without."""


def methods_on(name: str, repetitions: int) -> dict[str, Any]:
    """Return the regrets of each method on a surface, of all repetitions, by how the search goes on.

    A recorded surface has too few runs for the third way: a search would see nearly all of them.
    """
    recorded = Recorded() if name.startswith("pydoc") else None
    real: Surface | None = Interpolated(recorded) if recorded and name == "pydoc-interpolated" else recorded
    found: dict[str, dict[str, list[Searched]]] = {
        mode: {method: [] for method in METHODS} for mode in ((WITHOUT, SHORT) if recorded else (WITHOUT, SHORT, WHOLE))
    }
    for repetition in range(repetitions):
        surface: Surface = real or Synthetic(repetition, rough=name == "rough")
        short = search(surface, METHODS["draws"], repetition, stopping=True).spent
        budgets = {WITHOUT: None, SHORT: short, WHOLE: RUNS * surface.epochs}
        for mode, searches in found.items():
            for method, propose in METHODS.items():
                stopping, epochs = mode != WITHOUT, budgets[mode]
                searches[method].append(search(surface, propose, repetition, stopping=stopping, epochs=epochs))
        print(f"{name}: repetition {repetition + 1} of {repetitions}", file=sys.stderr, flush=True)
    modes = {mode: {method: _regrets(own) for method, own in searches.items()} for mode, searches in found.items()}
    return {"modes": modes, **({"runs": len(recorded.runs), "lowest_loss": recorded.lowest} if recorded else {})}


def _regrets(found: Sequence[Searched]) -> dict[str, Any]:
    numbers = sorted(set.intersection(*(set(one.regrets) for one in found)))
    return {
        "regrets": [round(one.regret, 4) for one in found],
        "regret": spread(one.regret for one in found),
        "median": round(statistics.median(one.regret for one in found), 4),
        "runs": spread(len(one.runs) for one in found),
        "epochs": spread(one.spent for one in found),
        "mean_by_runs": {
            str(number): round(statistics.fmean(one.regrets[number] for one in found), 4) for number in numbers
        },
    }


def wins(
    document: Mapping[str, Any], surface: str, mode: str, method: str = "Gaussian process"
) -> tuple[int, int, int]:
    """Return in how many repetitions a method ended better than draws, equal to them, and worse."""
    found = document["surfaces"][surface]["modes"][mode]
    pairs = list(zip(found[method]["regrets"], found["draws"]["regrets"], strict=True))
    return sum(a < b for a, b in pairs), sum(a == b for a, b in pairs), sum(a > b for a, b in pairs)


# -- orders of starting, and time ------------------------------------------------------------------------------------


def orders(repetitions: int) -> dict[str, Any]:
    """Return what each rule keeps of the best runs, by how slowly these start. Means of the repetitions."""
    found: dict[str, Any] = {}
    for slow, slowness in order.SLOWNESS.items():
        found[slow] = {}
        for name, rule in order.RULES.items():
            pairs = [(jobs, rule(jobs)) for jobs in (order.jobs_of(seed, slowness) for seed in range(repetitions))]
            found[slow][name] = {
                "best run kept": round(statistics.fmean(order.share_kept(*pair, 1) for pair in pairs), 3),
                "best six kept": round(statistics.fmean(order.share_kept(*pair, order.BEST) for pair in pairs), 3),
                "regret": round(statistics.fmean(order.regret(*pair) for pair in pairs), 4),
                "time": round(statistics.fmean(kept.spent for _, kept in pairs), 3),
                "finished": round(statistics.fmean(len(kept.finished) for _, kept in pairs), 1),
            }
    return found


def seconds_of_a_proposal() -> dict[str, float]:
    """Return the median seconds of a proposal, of nine, by the number of runs that have finished."""
    surface = Synthetic(0, rough=True)
    found = {}
    for number in RUNS_OF_TIME:
        runs = []
        for place, drawn in enumerate(draw(surface.space, number, 0)):
            losses = {epoch: min(loss, 10.0) for epoch, loss in enumerate(surface.curve(drawn), 1)}
            runs.append(Evidence(name=str(place), drawn=drawn, ended="finished", losses=losses, epochs=surface.epochs))
        proposer, seconds = Proposer(surface.space, runs), []
        for _ in range(9):
            start = time.perf_counter()
            proposer.ask(lambda drawn: True)
            seconds.append(time.perf_counter() - start)
        found[str(number)] = round(statistics.median(seconds), 3)
    return found


# -- tables --------------------------------------------------------------------------------------------------------

METHOD_COLUMNS = ("method", "mean", "median", "least-most", "runs", "epochs")
ORDER_COLUMNS = (
    "wide models start slowly",
    "rule",
    "best run kept",
    f"best {order.BEST} kept",
    "regret",
    "time",
    "runs that finished",
)


def as_markdown(document: Mapping[str, Any]) -> str:
    """Return the tables."""
    lines = [f"`{document['command']}`"]
    for name, surface in document["surfaces"].items():
        of = f" ({surface['runs']} recorded runs)" if "runs" in surface else ""
        for mode, found in surface["modes"].items():
            lines += ["", f"{name}{of}, {mode}: regret in nats.", "", *_regret_table(found)]
            lines += ["", *_comparison(document, name, mode)]
        lines += ["", f"{name}, {WITHOUT}: mean regret by the number of runs.", ""]
        lines += _table_by_runs(surface["modes"][WITHOUT])
    if "order" in document:
        runs = f"{order.RUNS} runs, {order.WORKERS} at once, {10 * document['repetitions']} repetitions"
        lines += ["", f"Orders of starting, {runs}. Time: of that of all runs without stopping.", ""]
        lines += _order_table(document["order"])
    if "seconds_of_a_proposal" in document:
        lines += ["", "Seconds of a proposal, median of nine.", ""]
        rows = [[number, str(seconds)] for number, seconds in document["seconds_of_a_proposal"].items()]
        lines += _table(["finished runs", "seconds"], rows, texts=0)
    code = (document["git"]["commit"] or "none")[:12] + (" with changes" if document["git"]["dirty"] else "")
    libraries = ", ".join(f"{name} {number}" for name, number in document["versions"].items() if number)
    machine = f"{document['processor']}, {document['cores']} cores"
    return "\n".join([*lines, "", f"- {document['date']}, commit {code}, {machine}; {libraries}", ""])


def _regret_table(found: Mapping[str, Any]) -> list[str]:
    rows = []
    for method, one in found.items():
        of, runs, epochs = one["regret"], one["runs"], one["epochs"]
        around = f"{_nats(of['least'])}-{_nats(of['most'])}"
        row = [method, _nats(of["mean"]), _nats(one["median"]), around]
        rows.append([*row, f"{runs['mean']:.0f}", f"{epochs['mean']:.0f}"])
    return _table(METHOD_COLUMNS, rows)


def _comparison(document: Mapping[str, Any], name: str, mode: str) -> list[str]:
    """Return the process against draws: the number of repetitions in which it was better, and all of them."""
    found = document["surfaces"][name]["modes"][mode]
    better, equal, worse = wins(document, name, mode)
    pairs = zip(found["Gaussian process"]["regrets"], found["draws"]["regrets"], strict=True)
    each = ", ".join(f"{_nats(process)} against {_nats(draws)}" for process, draws in pairs)
    of = f"of {document['repetitions']} repetitions"
    return [f"The process ended better than draws in {better}, equal in {equal} and worse in {worse} {of}: {each}."]


def _table_by_runs(found: Mapping[str, Any]) -> list[str]:
    numbers = list(found["draws"]["mean_by_runs"])
    rows = [[method, *(_nats(one["mean_by_runs"][n]) for n in numbers)] for method, one in found.items()]
    return _table(["method", *numbers], rows)


def _nats(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"  # without the sign of a negative zero


def _order_table(found: Mapping[str, Any]) -> list[str]:
    rows = []
    for slow, rules in found.items():
        for name, row in rules.items():
            kept = [f"{row['best run kept']:.0%}", f"{row['best six kept']:.0%}"]
            rows.append([slow, name, *kept, f"{row['regret']:.3f}", f"{row['time']:.0%}", f"{row['finished']:.1f}"])
    return _table(ORDER_COLUMNS, rows, texts=2)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> list[str]:
    rule = ["---"] * texts + ["---:"] * (len(header) - texts)
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]


if __name__ == "__main__":
    sys.exit(main())
