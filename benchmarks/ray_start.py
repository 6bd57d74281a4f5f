"""What a launch pays for a Ray of its own: one tiny run on backends local and ray, and the steps of Ray itself.

See ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.first_step import MILESTONES, launch_command, watch_command, write_manifest
from benchmarks.interleave import Rounds, interleave
from benchmarks.turns import ROOT, load_average, rounded
from seqlm.errors import BackendError, SeqlmError, UsageError
from seqlm.files import write_json, write_text

COMMAND = (*MILESTONES, "end")
"""What is measured of a whole command, in seconds from its start."""
STEPS = ("import", "open", "first run", "close")
"""What is measured of Ray, in seconds each."""
PROGRAM = """
import json, sys, tempfile, time
from pathlib import Path
seconds, before = {}, time.perf_counter()
def lap(step):
    global before
    now = time.perf_counter()
    seconds[step], before = now - before, now
from jobs.backends.ray_executor import RayExecutor
from jobs.spec import Submission
from seqlm.resources import Resources
from jobs.study.kept_code import live_code
lap("import")
executor = RayExecutor()
executor.open(live_code())
lap("open")
with tempfile.TemporaryDirectory() as folder:
    run = Path(folder) / "study" / "run"
    run.mkdir(parents=True)
    resources = Resources(cpus=1, gpus=0)
    job = executor.submit(
        Submission(run_dir=run, attempt=1, argv=(sys.executable, "-c", ""), env={}, cwd=run, resources=resources)
    )
    while executor.poll(job) is None:
        executor.wait(0.1)
lap("first run")
executor.close()
lap("close")
print(json.dumps(seconds))
"""
"""Starts a Ray as a launch does, has it run a program that does nothing, and ends it."""

Figures = dict[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ray_start", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds; %(default)s")
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="another version of seqlm, to compare with")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON document to FILE, and a table too")
    options = parser.parse_args(arguments)
    try:
        if options.rounds < 1:
            raise UsageError(f"--rounds: expected 1 or more, got {options.rounds}")
        document = measure(options.rounds, options.before)
        if options.out is not None:
            write_json(options.out, document)
            write_text(options.out.with_suffix(".md"), as_markdown(document))
    except SeqlmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(document, indent=1))
    return 0


def measure(rounds: int, before: Path | None) -> dict[str, Any]:
    from benchmarks.results import circumstances  # torch

    measured: defaultdict[str, list[Figures]] = defaultdict(list)
    turns: dict[str, Callable[[], float]] = {}
    for name, take in turns_of(before).items():
        turns[name] = functools.partial(_take, take, measured[name])
    words = f"--rounds {rounds}{' --before FOLDER' if before is not None else ''}"
    document: dict[str, Any] = {
        "schema_version": 1,
        "benchmark": "ray_start",
        "command": f"python -m benchmarks.ray_start {words}",
        **circumstances(),
        "load_average_before": load_average(),
    }
    interleave(
        turns,
        seconds=0,
        least_rounds=rounds,
        warmup_rounds=1,
        on_round=lambda number, _: print(f"round {number} of {rounds}", file=sys.stderr, flush=True),
    )
    document["versions"] |= {"ray": version("ray")}
    return {**document, **summary(measured, rounds), "load_average_after": load_average()}


def turns_of(before: Path | None) -> dict[str, Callable[[], Figures]]:
    """Return what is done in each round: whole commands, and the steps of Ray."""
    turns: dict[str, Callable[[], Figures]] = {
        "local": functools.partial(_command, "local", ROOT),
        "ray": functools.partial(_command, "ray", ROOT),
        "steps": functools.partial(_steps, ROOT),
    }
    if before is not None:
        turns["ray before"] = functools.partial(_command, "ray", before.resolve())
        turns["steps before"] = functools.partial(_steps, before.resolve())
    return turns


def summary(measured: Mapping[str, Sequence[Figures]], rounds: int) -> dict[str, Any]:
    """Return the spreads over the last ``rounds`` rounds, and what was compared within each of them."""
    counted = {name: rows[-rounds:] for name, rows in measured.items()}
    table = Rounds({f"{name} {key}": [row[key] for row in rows] for name, rows in counted.items() for key in rows[0]})
    compared = {
        "ray in local's seconds": table.ratio("ray end", "local end"),
        "seconds that ray takes longer than local": table.combined(
            lambda ray, local: ray - local, "ray end", "local end"
        ),
    }
    if "ray before" in counted:
        compared |= {
            "seconds that ray took longer than local before": table.combined(
                lambda ray, local: ray - local, "ray before end", "local end"
            ),
            "ray in its seconds before": table.ratio("ray end", "ray before end"),
            "open in its seconds before": table.ratio("steps open", "steps before open"),
            "close in its seconds before": table.ratio("steps close", "steps before close"),
        }
    return {
        "rounds": rounds,
        "turns": {
            name: {key: rounded(table.spread(f"{name} {key}")) for key in rows[0]} for name, rows in counted.items()
        },
        "compared": {title: rounded(spread) for title, spread in compared.items()},
    }


def _take(take: Callable[[], Figures], rows: list[Figures]) -> float:
    rows.append(take())
    return 0.0  # what counts is in ``rows``


def _command(backend: str, root: Path) -> Figures:
    """Return the seconds from the start of a launch of one tiny run to each milestone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        argv = launch_command(write_manifest(folder, 1), backend, folder / "runs", root=root)
        return watch_command(argv, folder / "runs" / "study")


def _steps(root: Path) -> Figures:
    """Return the seconds of each step of a Ray that the version of seqlm in ``root`` starts.

    Raises:
        BackendError: it has failed.
    """
    argv = [sys.executable, "-c", PROGRAM]
    answer = subprocess.run(argv, cwd=root, env=os.environ, capture_output=True, text=True, check=False)
    if answer.returncode:
        last = (answer.stderr.strip().splitlines() or ["no output"])[-1]
        raise BackendError(f"the steps of Ray ended with exit code {answer.returncode}: {last}")
    found: Figures = json.loads(answer.stdout.splitlines()[-1])
    return found


# -- the table -----------------------------------------------------------------------------------------------------


def as_markdown(document: Mapping[str, Any]) -> str:
    """Return the medians with least and most in brackets."""
    code = (document["git"]["commit"] or "none")[:12] + (" with changes" if document["git"]["dirty"] else "")
    libraries = ", ".join(f"{name} {number}" for name, number in document["versions"].items() if number)
    lines = [f"`{document['command']}`"]
    for what, keys in (("seconds from the start of the command", COMMAND), ("seconds of each step", STEPS)):
        rows = {name: figures for name, figures in document["turns"].items() if set(keys) <= figures.keys()}
        lines += ["", f"| {what} | {' | '.join(keys)} |", f"| --- {'| ---: ' * len(keys)}|"]
        lines += [f"| {name} | {' | '.join(_cell(figures[key]) for key in keys)} |" for name, figures in rows.items()]
    lines += ["", *(f"- {title}: {_cell(spread)}" for title, spread in document["compared"].items())]
    lines += [f"- {document['date']}, commit {code}, {document['processor']}, {document['cores']} cores; {libraries}"]
    before, after = (document[f"load_average_{when}"][0] for when in ("before", "after"))
    lines += [f"- load of the machine: {before} before, {after} after"]
    lines += [f"- interleaved; median of {document['rounds']} rounds (least-most)", ""]
    return "\n".join(lines)


def _cell(spread: Mapping[str, float]) -> str:
    return f"{spread['median']:.3g} ({spread['least']:.3g}-{spread['most']:.3g})"


if __name__ == "__main__":
    sys.exit(main())
