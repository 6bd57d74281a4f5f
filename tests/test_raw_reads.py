"""Files of a study are read through the records of ``seqlm/records`` alone."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
READS = {"read_json", "read_json_lines", "parse_json", "loads", "load"}
"""Functions that parse JSON. Of ``loads`` and ``load`` those of the module ``json``."""
STAY = {
    "seqlm/files.py": (3, "what the records, config.json and metrics.jsonl are read with"),
    "seqlm/records/base.py": (2, "the reader of the records"),
    "seqlm/check_model/__main__.py": (1, "the request of another process of seqlm, in a temporary folder"),
    "seqlm/data/cache.py": (1, "an index of the user's cache"),
    "seqlm/data/corpus.py": (1, "a vocabulary in the user's cache"),
    "seqlm/data/tokenizer.py": (1, "a tokenizer, in the format of its library"),
    "seqlm/gpus.py": (1, "bookings of this machine's GPUs"),
    "seqlm/rundir.py": (2, "config.json, which is a table, and metrics.jsonl, which is columns"),
    "seqlm/search.py": (2, "a variable, and a group of runs in memory"),
    "seqlm/training/distributed.py": (1, "where the ranks meet: it is deleted at once"),
    "seqlm/training/witness.py": (1, "what PyTorch's flight recorder answers"),
    "seqlm/trust.py": (2, "records in the user's own folder, and a table in memory"),
    "jobs/cli/doctor.py": (1, "what another process prints"),
    "jobs/launch/own_models.py": (1, "the answer of another process of seqlm, in a temporary folder"),
    "jobs/study/format_1.py": (2, "files of version 0.2.0, from which it makes records"),
    "jobs/study/upgrade.py": (1, "study.json of format 2, which gets another version and stays as it is otherwise"),
    "analysis/export.py": (1, "exported.json, in a folder that the user has named"),
    "analysis/study/behaviour.py": (1, "the lines of samples.jsonl, which are records"),
    "slurm/scheduler.py": (1, "what scontrol prints"),
    "slurm/doctor.py": (1, "what a job prints"),
    "slurm/testcluster/processes.py": (1, "a test cluster's own files"),
    "slurm/testcluster/supervisor.py": (1, "a test cluster's own files"),
}
"""File -> how often it parses JSON, and what that is."""


def reads_of(path: Path) -> int:
    """Return how often a file names a function that parses JSON."""
    found = 0
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Name(id=name, ctx=ast.Load()) if name in READS - {"load", "loads"}:
                found += 1
            case ast.Attribute(attr=name, value=ast.Name(id="json")) if name in READS:
                found += 1
    return found


def test_nothing_but_the_records_parses_the_json_of_a_study() -> None:
    paths = [ROOT / "launch.py"]
    for package in ("seqlm", "jobs", "slurm", "analysis"):
        paths += sorted((ROOT / package).rglob("*.py"))
    found = {path.relative_to(ROOT).as_posix(): reads_of(path) for path in paths}
    assert {name: number for name, number in found.items() if number} == {name: one for name, (one, _) in STAY.items()}
