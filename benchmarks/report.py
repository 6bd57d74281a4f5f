"""How long the report of a large study takes, and how much memory: the whole command, and its parts.

    python -m benchmarks.report --runs 1000 --epochs 40

The study is made up (:mod:`benchmarks.report_study`): every architecture with every optimizer, three seeds of each
setting, some runs failed or exploded. The behaviour of trained models is left out; it is computed by jobs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report_study import make_study
from benchmarks.results import circumstances
from seqlm.files import write_json
from seqlm.records.studies import MAX_RUNS

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    options = _arguments()
    if options.parts is not None:
        print(json.dumps(parts(options.parts)))
        return 0
    words = f"--runs {options.runs} --epochs {options.epochs} --repeats {options.repeats}"
    record: dict[str, Any] = {
        "benchmark": "report",
        "command": f"python -m benchmarks.report {words}",
        **circumstances(),
        "runs": options.runs,
        "epochs": options.epochs,
        "load_average_before": [round(load, 2) for load in os.getloadavg()],
    }
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "large"
        make_study(study, options.runs, options.epochs)
        record["report"] = [whole_command(study) for _ in range(options.repeats)]
        timed = subprocess.run(
            [sys.executable, "-m", "benchmarks.report", "--parts", str(study)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        record["parts_seconds"] = json.loads(timed.stdout)
        report = study / "report"
        sizes = {"index.html": report / "index.html", "results.csv": report / "tables" / "results.csv"}
        record["bytes"] = {name: file.stat().st_size for name, file in sizes.items()}
        record["bytes"]["all svg"] = sum(file.stat().st_size for file in report.glob("figures/*.svg"))
        record["bytes"]["report"] = sum(file.stat().st_size for file in report.rglob("*") if file.is_file())
    record["load_average_after"] = [round(load, 2) for load in os.getloadavg()]
    if options.out is not None:
        write_json(options.out, record)
    print(json.dumps(record, indent=1))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time the report of a made-up study.")
    parser.add_argument("--runs", type=_from_one, default=1000)
    parser.add_argument("--epochs", type=_from_one, default=40)
    parser.add_argument("--repeats", type=_from_one, default=3)
    parser.add_argument("--out", type=Path, help="write the record here too")
    parser.add_argument("--parts", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.runs > MAX_RUNS:
        parser.error(f"argument --runs: expected at most {MAX_RUNS:,}, the most runs of a study, got {options.runs:,}")
    return options


def _from_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {number}")
    return number


def whole_command(study: Path) -> dict[str, float]:
    """One report, as a process of its own: wall clock, processor time, and the peak of its resident memory."""
    command = [sys.executable, "launch.py", "report", str(study), "--no-behaviour"]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, "the report was not written"
    return {
        "wall_seconds": round(wall, 2),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_memory_mb": round(_bytes(usage) / 1e6, 1),
    }


def _bytes(usage: resource.struct_rusage) -> int:
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def parts(study_dir: Path) -> dict[str, float]:
    """Seconds of each part."""
    marks = [("start", time.perf_counter())]
    from analysis.report import report_files, report_page
    from analysis.study.study import load_study

    marks.append(("import", time.perf_counter()))
    study = load_study(study_dir)
    marks.append(("load", time.perf_counter()))
    report_page(study)
    marks.append(("sections", time.perf_counter()))
    report_files(study)
    marks.append(("sections and files", time.perf_counter()))
    return {name: round(at - before, 2) for (_, before), (name, at) in itertools.pairwise(marks)}


if __name__ == "__main__":
    sys.exit(main())
