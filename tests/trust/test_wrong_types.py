"""Commands on a study in whose files fields have another type, or are numbers that no run has: lines, no traceback."""

import contextlib
import copy
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest

import launch
from analysis.study.study import load_study
from jobs.launch.behaviour import BehaviourLaunch
from jobs.launch.prepare import plan_runs
from jobs.study.folder import launching, observe_study, this_launcher
from seqlm.errors import SeqlmError
from seqlm.files import json_text, read_json, write_json, write_json_lines
from seqlm.records.batch import Batch
from seqlm.rundir import RunDirectory
from tests.analysis.attempt_files import write_attempt
from tests.analysis.behaviour_made_up import add_behaviour, add_samples, raw_sample
from tests.analysis.synthetic import fail, make_run
from tests.facts import stop
from tests.slurm_jobs import array_of

T = TypeVar("T")

VALUES: list[Any] = [None, True, [], "x", 2**62]
DEEPEST = 5
"""Tables within one another in which fields are changed."""
MANY = 12
"""Fields."""


def changed(document: Any, value: Any, deepest: int = DEEPEST) -> Iterator[Any]:
    """Yield each document that differs from ``document`` in one field, which has ``value``."""
    for key, inner in list(document.items() if isinstance(document, dict) else enumerate(document)):
        others = [value]
        if deepest and (isinstance(inner, dict) or (isinstance(inner, list) and inner)):
            others += changed(inner, value, deepest - 1)
        for other in others:
            found = copy.copy(document)
            found[key] = other
            yield found


def variants(document: Any) -> list[Any]:
    """Return the document with each value in each of its fields: each field once, then each with the next value."""
    by_value = [list(changed(document, value)) for value in VALUES]
    fields = range(len(by_value[0]))
    return [by_value[(field + turn) % len(VALUES)][field] for turn in range(len(VALUES)) for field in fields]


def rounds(documents: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield variants of all documents at once: two for each field of the longest, all if it has few."""
    found = {name: variants(document) for name, document in documents.items()}
    fields = max(map(len, found.values())) // len(VALUES)
    for number in range(fields * (len(VALUES) if fields < MANY else 2)):
        yield {name: several[number % len(several)] for name, several in found.items()}


def whole_run(study_dir: Path, seed: int, kind: str) -> RunDirectory:
    """A run with every file that it can have: done, failed, stopped by a search, or interrupted."""
    run = make_run(study_dir, 0, epochs=3, done=kind == "done", seed=seed)
    provenance = run.read_provenance().to_plain()
    resources = {"ranks": 1, "cpus": 2, "gpus": 0, "priority": 0}
    more = {"resources": resources, "entry": "rnn-adam", "data": "text", "code": {"path": "/x/code/y", "live": False}}
    write_json(run.provenance_file, {**provenance, **more, "order": seed % 1000})
    write_attempt(run, 1, start=0.0, end=9.0, alive=8.0)
    used = {"seconds": 9.0, "cpu_seconds": 8.0, "peak_resident_bytes": 2**30, "gpu": {"busy": 0.5, "joules": 1.0}}
    write_json(
        run.worker_file(1), {**(read_json(run.worker_file(1)) or {}), "environment": "e" * 64, "resources": used}
    )
    start = {"backend": "local", "job_id": "1", "resources": resources, "code": "/x/code/y"}
    write_json(run.start_file(1), {**start, "launcher": {"pid": 1, "host": "x"}})
    write_json(run.exit_file(1), {"kind": "node", "message": "lost", "ended_at": "2026-01-01"})
    run.position_file.parent.mkdir(exist_ok=True)
    write_json(run.position_file, {"epoch": 3, "step": 0})
    evidence = {"metric": "val_ppl", "rung": 2, "value": 5.0, "rank": 2, "of": 3, "goes_on": 1, "cut": 4.0, "at": "x"}
    write_json(run.rung_file(1), {"decision": "goes on", **evidence})
    verdict = {"a": "x", "b": "y", "outcome": "lower", "seeds": [1], "differences": [0.1], "left_out": ["z"]}
    write_json(run.settled_file, {"reason": "decided", "verdicts": [verdict], "attempt": 0, "at": "x"})
    run.lease_dir.mkdir()
    write_json(run.lease_dir / "000001.json", {"pid": 1, "host": "x", "attempt": 1, "released": False})
    if kind == "done":
        add_behaviour(run)
        add_samples(run, [raw_sample(0, ["the", "cat"])])
    elif kind == "failed":
        fail(run, "oom", "no memory")
    elif kind == "stopped":
        stop(run, evidence)
    return run


FILES = [
    ("done", ["config.json"]),
    ("done", ["provenance.json"]),
    ("done", ["result.json"]),
    (
        "done",
        [
            *("metrics.jsonl", "behaviour.json", "samples.jsonl", "attempts/0001/start.json"),
            *("attempts/0001/worker.json", "attempts/0001/progress.json", "attempts/0001/exit.json"),
        ],
    ),
    ("failed", ["attempts/0001/end.json"]),
    ("failed", ["checkpoints/position.json"]),
    ("stopped", ["rung-2.json"]),
    *(
        ("interrupted", [file])
        for file in ("rung-1.json", "settled.json", "lease/000001.json", "attempts/0001/start.json")
    ),
    ("interrupted", ["metrics.jsonl"]),
]
"""Files of a run of this kind. Reports read each, whatever is wrong with those in the same list."""
KINDS = ("done", "failed", "stopped", "interrupted")


def last_object(path: Path) -> Any:
    return json.loads(path.read_text().splitlines()[-1] if path.suffix == ".jsonl" else path.read_text())


def replace_last_object(path: Path, document: Any) -> None:
    if path.suffix == ".jsonl":
        write_json_lines(path, [*map(json.loads, path.read_text().splitlines()[:-1]), document])
    else:
        path.write_text(json_text(document))


def commands(study_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Do what commands do with a study's folder, apart from starting workers."""
    of_study = ("status --json", "status --only tag=good", "why", "logs", "note", "clean --dry-run", "propose")
    for words in (*of_study, "list"):
        name, *flags = words.split()
        launch.main([name, *([] if name == "list" else [str(study_dir)]), *flags, "--runs-dir", str(study_dir.parent)])
        capsys.readouterr()
    specs = []
    for run in _or_line(lambda: observe_study(study_dir)) or []:
        _or_line(run.facts)
        if run.config is not None:
            specs.append(_or_line(run.to_spec))
    _or_line(lambda: plan_runs([spec for spec in specs if spec is not None], study_dir, retry=True))
    _or_line(lambda: BehaviourLaunch(study_dir).study())
    _or_line(lambda: load_study(study_dir))


def _or_line(work: Callable[[], T]) -> T | None:
    """Return what ``work`` returns, ``None`` if it has a line for the user instead."""
    try:
        return work()
    except SeqlmError:
        return None


@pytest.mark.slow
def test_no_field_of_a_runs_files_is_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    study_dir, seeds = tmp_path / "runs" / "small", itertools.count()
    for kind, files in FILES:
        whole = whole_run(tmp_path / "whole", next(seeds), kind)
        for damaged in rounds({file: last_object(whole.path / file) for file in files}):
            run = whole_run(study_dir, next(seeds), kind)
            for file, document in damaged.items():
                replace_last_object(run.path / file, document)
    commands(study_dir, capsys)


def study_files(ids: list[str]) -> dict[str, Any]:
    """The files of a study with these runs."""
    digits = [run_id.rpartition("-")[2] for run_id in ids]
    config = {"model.arch": "rnn", "model.sha256": "x", "train.epochs": 3, "data.tokenizer": "t"}
    planned = {"name": "rnn-adam", "arch": "rnn", "optimizer": "adam", "config": config, "manifest": "o.toml"}
    published = {"epochs": 3, "val_ppl": 1.0, "replications": [1.0, 2.0]}
    record = {
        "planned": [{**planned, "number": 1, "fingerprint": digits[0], "published": published}],
        "excluded": [{"name": "a", "arch": "gru", "optimizer": "sgd", "manifest": "o.toml"}],
        "expectations": [{"text": "t", "metric": "val_ppl", "lower": digits[:1], "higher": digits[1:2], "why": "w"}],
        "groups": [{"title": "G", "runs": digits, "manifest": "o.toml"}],
        "notes": [{"part": "results", "text": "n", "manifest": "o.toml"}],
        "samples": [{"name": "s", "values": {"optim.lr": {"uniform": [0.1, 0.2]}}, "defaults": {}, "seeds": [1]}],
        "behaviour": digits[:1],
        "policy": {"gpu_hours": 1.0},
        "search": {"rungs": [1, 2], "metric": "val_ppl", "keep": 0.5, "min_runs": 2, "within": []},
        "backend": {"local": {"env": {"A": "b"}}},
        "estimates": {digits[0]: {"seconds": 1.0, "epochs": 3}},
    }
    request = {"kind": "run", "backend": "slurm", "launcher": {"pid": 1, "host": "x"}, "runs": {ids[-1]: {"epochs": 3}}}
    plan = Batch(arrays=(array_of(ids[-1], job="1", why="x"),)).to_plain()
    queue = {"launcher": this_launcher().to_plain(), "waiting": {ids[1]: "x"}}
    note = {"at": "x", "runs": ids, "tags": ["good"], "text": "t"}
    pairs = [{"seed": seed, "a": ids[0], "b": ids[seed]} for seed in (1, 2)]
    compared = {"a": "x", "b": "y", "pairs": pairs, "epochs": 3, "margin": 0.0, "error": 0.05, "manifest": "o.toml"}
    of_study = {"notes/000001/note.json": note, "comparisons/x/comparison.json": compared}
    return {"study.json": record, "queue.json": queue, **of_study} | {
        f"launches/000001/{name}.json": found
        for name, found in (("request", request), ("plan", plan), ("submitted", {"at": "x"}))
    }


def write_study_files(study_dir: Path, ids: list[str]) -> dict[str, Any]:
    """Write the files of a study with these runs, and return them."""
    files = study_files(ids)
    for name, document in files.items():
        (study_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (study_dir / name).write_text(json.dumps(document))
    return files


@pytest.mark.process
@pytest.mark.slow
def test_no_field_of_a_studys_own_files_is_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no squeue
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    study_dir = tmp_path / "runs" / "small"
    runs = [whole_run(study_dir, seed, kind) for seed, kind in enumerate(KINDS)]
    files = write_study_files(study_dir, [run.id for run in runs])  # a plan is read only if its request is submitted
    for name, document in files.items():
        sections = {key: {key: found} for key, found in document.items()} if name == "study.json" else {"": document}
        for damaged in rounds(sections):
            (study_dir / name).write_text(
                json.dumps({key: found for part in damaged.values() for key, found in part.items()})
            )
            with launching(study_dir) if name == "queue.json" else contextlib.nullcontext():
                commands(study_dir, capsys)
        (study_dir / name).write_text(json.dumps(document))
