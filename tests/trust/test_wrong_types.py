"""Commands on a study in whose files fields have another type, or are numbers that no run has: lines, no traceback."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

import launch
from analysis.study.study import load_study
from jobs.launch.behaviour import BehaviourLaunch
from jobs.launch.prepare import plan_runs
from jobs.study.folder import launching, observe_study, this_launcher
from seqlm.errors import SeqlmError
from seqlm.files import json_text, write_json, write_json_lines
from seqlm.rundir import RunDirectory
from tests.analysis.attempt_files import write_attempt
from tests.analysis.behaviour_made_up import add_behaviour, add_samples, raw_sample
from tests.analysis.synthetic import fail, make_run
from tests.facts import stop

T = TypeVar("T")

VALUES: list[Any] = [None, True, [], "x", 2**62]
DEEPEST = 4
"""Tables within one another in which fields are changed."""


def changed(document: Any, value: Any, deepest: int = DEEPEST) -> Iterator[Any]:
    """Yield each document that differs from ``document`` in one field, which has ``value``."""
    for key, inner in list(document.items() if isinstance(document, dict) else enumerate(document)):
        others = [] if inner == value and type(inner) is type(value) else [value]
        if deepest and (isinstance(inner, dict) or (isinstance(inner, list) and inner)):
            others += changed(inner, value, deepest - 1)
        for other in others:
            found = copy.copy(document)
            found[key] = other
            yield found


def whole_run(study_dir: Path, seed: int, kind: str) -> RunDirectory:
    """A run with every file that it can have: done, failed, stopped by a search, or interrupted."""
    run = make_run(study_dir, 0, epochs=3, done=kind == "done", seed=seed)
    provenance = run.read_provenance()
    resources = {"ranks": 1, "cpus": 2, "gpus": 0, "priority": 0}
    more = {"resources": resources, "entry": "rnn-adam", "data": "text", "code": {"path": "/x/code/y", "live": False}}
    write_json(run.provenance_file, {**provenance, **more, "order": seed % 1000})
    write_attempt(run, 1, start=0.0, end=9.0, alive=8.0)
    start = {"backend": "local", "job_id": "1", "resources": resources, "code": "/x/code/y"}
    write_json(run.start_file(1), {**start, "launcher": {"pid": 1, "host": "x"}})
    write_json(run.exit_file(1), {"kind": "node", "message": "lost", "ended_at": "2026-01-01"})
    run.position_file.parent.mkdir(exist_ok=True)
    write_json(run.position_file, {"epoch": 3, "step": 0})
    evidence = {"metric": "val_ppl", "rung": 2, "value": 5.0, "rank": 2, "of": 3, "goes_on": 1, "cut": 4.0, "at": "x"}
    write_json(run.rung_file(1), {"decision": "goes on", **evidence})
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


FILES = {
    "done": [
        *(
            "config.json",
            "provenance.json",
            "result.json",
            "attempts/0001/start.json",
            "metrics.jsonl",
            "behaviour.json",
        ),
        *("samples.jsonl", "attempts/0001/worker.json", "attempts/0001/progress.json", "attempts/0001/exit.json"),
    ],
    "failed": ["attempts/0001/end.json", "provenance.json", "checkpoints/position.json"],
    "stopped": ["rung-2.json"],
    "interrupted": ["rung-1.json", "lease/000001.json", "attempts/0001/start.json", "metrics.jsonl"],
}


def damage(run: RunDirectory, file: str, number: int, value: Any) -> bool:
    """Change the field with this number in a file of the run. Return whether the file has so many fields."""
    path = run.path / file
    *before, last = [json.loads(line) for line in path.read_text().splitlines()] if file.endswith("l") else [None]
    document = json.loads(path.read_text()) if last is None else last
    found = next(itertools.islice(changed(document, value), number, None), None)
    if found is None:
        return False
    if last is None:
        path.write_text(json_text(found))
    else:
        write_json_lines(path, [*before, found])
    return True


def commands(study_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Do what commands do with a study's folder, apart from starting workers."""
    for words in ("status --json", "status --only state=done", "list", "logs", "clean --dry-run", "propose"):
        name, *flags = words.split()
        launch.main([name, *([] if name == "list" else [str(study_dir)]), *flags, "--runs-dir", str(study_dir.parent)])
        capsys.readouterr()
    specs = []
    for run in _or_line(lambda: observe_study(study_dir)) or []:
        _or_line(run.facts)
        if run.config is not None:
            specs.append(_or_line(run.to_spec))
    _or_line(lambda: plan_runs([spec for spec in specs if spec is not None], study_dir, retry=True))
    _or_line(lambda: BehaviourLaunch(study_dir).options())
    _or_line(lambda: load_study(study_dir))


def _or_line(work: Callable[[], T]) -> T | None:
    """Return what ``work`` returns, ``None`` if it has a line for the user instead."""
    try:
        return work()
    except SeqlmError:
        return None


@pytest.mark.slow
@pytest.mark.parametrize("value", VALUES, ids=str)
def test_no_field_of_a_runs_files_is_a_traceback(
    tmp_path: Path, value: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    study_dir, seeds = tmp_path / "runs" / "small", itertools.count()
    for kind, file in ((kind, file) for kind, files in FILES.items() for file in files):
        fields = itertools.count()
        while damage(whole_run(study_dir, next(seeds), kind), file, next(fields), value):
            pass
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
    plan, array = {"arrays": [{"jobs": [[ids[-1]]]}]}, {"id": "1"}
    queue = {"launcher": this_launcher(), "waiting": {ids[-1]: "x"}}
    return {"study.json": record, "queue.json": queue} | {
        f"launches/000001/{name}.json": found
        for name, found in (("request", request), ("plan", plan), ("array-0", array))
    }


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("value", VALUES, ids=str)
def test_no_field_of_a_studys_own_files_is_a_traceback(
    tmp_path: Path, value: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no squeue
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    study_dir = tmp_path / "runs" / "small"
    runs = [whole_run(study_dir, seed, kind) for seed, kind in enumerate(FILES)]
    (study_dir / "launches" / "000001").mkdir(parents=True)
    files = study_files([run.id for run in runs])
    for file, document in files.items():
        for found in changed(document, value):
            (study_dir / file).write_text(json.dumps(found))
            with launching(study_dir) if file == "queue.json" else contextlib.nullcontext():
                commands(study_dir, capsys)
        for name, whole in files.items():  # a plan is read only if its request and the ids of its arrays are there
            (study_dir / name).write_text(json.dumps(whole))
