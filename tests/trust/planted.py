"""A study in which something is planted in every place that it has, and the commands that read it.

The places are walked, so that a file which a study gets one day is among them. What is planted is a function
(:data:`Plant`), as is who plants it.
"""

import functools
import hashlib
import io
import itertools
import json
import os
import shutil
import socket
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pytest

import launch
from analysis.study.study import load_study
from seqlm.errors import SeqlmError
from seqlm.files import json_text, read_json, write_json
from seqlm.records.requests import Folder, Folders, RequestFile, Wanted
from seqlm.requests import file_request
from seqlm.rundir import RunDirectory
from tests.facts import fail, newest_attempt
from tests.trust.test_wrong_types import whole_run

SECRET = "of-my-own-file"
"""Text that no command may print or copy."""
KINDS = ("done", "failed", "interrupted")
OF_RUNS = "a place of each run"
"""What is planted in the first of :func:`planted_studies`, in words."""
MANY = ("behaviour", "canary")
"""Folders of a study in which each run has a folder of its own."""

Plant: TypeAlias = Callable[[Path, Path], None]
"""Puts something in the place of a file or folder: its path, and a new path outside of the study for what it needs."""


def link(path: Path, outside: Path) -> None:
    """Move what is there outside, mark it with the secret, and leave a link."""
    shutil.move(path, outside)
    for file in (outside, *outside.rglob("*")):
        if file.is_file():
            _mark(file)
    path.symlink_to(outside)


def _mark(file: Path) -> None:
    """Put the secret where a text may be, so that whatever shows the text shows the secret."""
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr("more.py", SECRET)
    elif file.suffix in (".log", ".py", ".txt"):
        file.write_text(f"{SECRET}\n")
    elif file.suffix in (".json", ".jsonl") and file.name != "config.json":
        *lines, last = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
        texts = dict.fromkeys(("name", "message", "reason", "label", "where", "device", "text", "host", "node"), SECRET)
        record = {**json.loads(last), **texts}
        file.write_text("".join(f"{line}\n" for line in lines) + json.dumps(record) + "\n")


def pipe(path: Path, outside: Path) -> None:
    """Leave a pipe that nobody writes to."""
    _clear(path)
    os.mkfifo(path)


def listener(path: Path, outside: Path) -> None:
    """Leave a socket."""
    _clear(path)
    folder = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{folder}/{path.name}")  # the path of a socket has few characters
    os.close(folder)


def sparse(path: Path, outside: Path) -> None:
    """Leave a file that is larger than any memory, and takes no room."""
    _clear(path)
    with path.open("wb") as file:
        file.truncate(2**40)


def deflated(path: Path, outside: Path) -> None:
    """Leave a small zip file that unpacks to much, with a name in it that PyTorch reads first."""
    _clear(path)
    path.write_bytes(_much())


def dense(path: Path, outside: Path) -> None:
    """Leave JSON whose values take twenty times the memory of their text."""
    _clear(path)
    path.write_bytes(_dense())


def other_kind(path: Path, outside: Path) -> None:
    """Leave a file in place of a folder, and a folder in place of a file."""
    was_folder = path.is_dir()
    _clear(path)
    path.write_text("{}") if was_folder else path.mkdir()


@functools.cache
def _dense() -> bytes:
    return b'{"version": 3, "runs": [' + b"[]," * 5_000_000 + b"[]]}"


@functools.cache
def _much() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("last/data.pkl", bytes(500 * 2**20))
    return made.getvalue()


def _clear(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


# -- the study -----------------------------------------------------------------------------------------------------


def add_run(study_dir: Path, seed: int, kind: str) -> RunDirectory:
    """Add a run with every file that one has, with a canary and a behaviour job."""
    run = whole_run(study_dir, seed, kind)
    write_json(run.lease_dir / "000001.json", {**(read_json(run.lease_dir / "000001.json") or {}), "released": True})
    run.stdout_log(1).write_text("a line\n")
    run.stderr_log(1).write_text("another line\n")
    run.older_log.write_text("an old line\n")
    for checkpoint in (run.last_checkpoint, run.best_checkpoint, run.previous_checkpoint):
        checkpoint.write_bytes(b"no checkpoint")
    run.trace_file.write_bytes(bytes(12 * 450))
    run.tokenizer_file.write_text("{}")
    run.model_dir.mkdir()
    (run.model_dir / "own.py").write_text("x = 1\n")
    write_json(run.hang_file(1), {"where": "a line", "collectives": []})
    if kind == "interrupted":
        run.exit_file(1).unlink()  # it resumes
    for folder in MANY:
        other = RunDirectory(study_dir / folder / run.id)
        other.create(run.read_config(), run.read_provenance())
        newest_attempt(other)
        other.stderr_log(1).write_text("a line\n")
        fail(other, {"message": "it fails"})
    write_json(RunDirectory(study_dir / "behaviour" / run.id).task_file, {"settings": {}})
    return run


def add_records(study_dir: Path, runs: Sequence[RunDirectory]) -> None:
    """Add what a study has besides its runs."""
    folders = {run.id: Folder(config=run.read_config().to_dict()) for run in runs}
    request = RequestFile(kind="run", backend="local", runs={run.id: Wanted() for run in runs})
    file_request(study_dir, request, Folders(runs=folders))
    files: Mapping[str, object] = {
        "study.json": {"version": 3, "name": "small", "planned": [], "policy": {"gpu_hours": 100.0}},
        "queue.json": {"launcher": {"pid": 1, "host": "x"}, "waiting": {}},
        "launcher/000001.json": {"pid": 1, "host": "x", "released": True},
        "notes/000001/note.json": {"at": "x", "runs": [runs[0].id], "tags": ["good"], "text": "t"},
        f"comparisons/{'c' * 16}/comparison.json": {"pairs": [{"seed": 1, "a": runs[0].id, "b": runs[1].id}]},
        f"environments/{'e' * 64}.json": {"python": "3.12", "packages": {"torch": "2"}},
        f"kept/{'d' * 64}/tokenizer.json": {},
        "report/report.md": {},
        "report/index.html": {},
        "report/data/runs.json": {},
        "launch-0001.log": {},
    }
    for name, record in files.items():
        path = study_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json_text(record))  # type: ignore[arg-type]
    (study_dir / "code").mkdir()
    (study_dir / "code" / ".draft.tmp").write_text("a name that a launch clears up\n")
    with zipfile.ZipFile(study_dir / "code" / "y.zip", "w") as archive:
        archive.writestr("launch.py", "x = 1\n")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A place of a study, in which something is planted."""

    path: Path
    """From the study's folder; of a place that each run has, with ``*`` for the run's id."""
    kind: str | None
    """Of its run. ``None``: the study has the place once."""


def places(folder: Path) -> list[Place]:
    """Return every place of a study with one run of each kind, which is made in ``folder``."""
    runs = {kind: add_run(folder, seed, kind) for seed, kind in enumerate(KINDS)}
    add_records(folder, list(runs.values()))
    kind_of = {run.id: kind for kind, run in runs.items()}
    found = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        ids = [part for part in relative.parts if part in kind_of]
        at = Path(*("*" if part in kind_of else part for part in relative.parts))
        if not ids or ids[0] not in {run.id for run in runs.values()}:
            found.append(Place(path=at, kind=None))
        elif at.parts[0] not in MANY or kind_of[ids[0]] == KINDS[0]:
            found.append(Place(path=at, kind=kind_of[ids[0]]))
    return found


def planted_studies(folder: Path, *plants: Plant) -> Iterator[tuple[str, Path, list[str]]]:
    """Yield what is planted in words, a study below ``folder`` in which it is, and the ids of its runs.

    ``folder/outside`` has what is outside, and ``folder/template`` is a study in which nothing is planted.

    In the first one, two of ``plants``, or all if there are fewer, are planted in each place that a run has, in a run
    of its own: what opens a file is the same everywhere. Each of the others has one place of those that a study has
    once, with one of ``plants`` after the other.
    """
    every, outside = places(folder / "template"), folder / "outside"
    ids = [path.name for path in (folder / "template" / MANY[0]).glob("*-*")]
    outside.mkdir()
    each = [place for place in every if place.kind is not None]
    step = max(len(plants) // 2, 1)
    of_runs = [(place, plant) for number, place in enumerate(each) for plant in plants[number % step :: step]]
    study_dir = folder / "runs" / "small"
    runs = [add_run(study_dir, seed, str(place.kind)) for seed, (place, _) in enumerate(of_runs)]
    add_records(study_dir, runs)
    for number, ((place, plant), run) in enumerate(zip(of_runs, runs, strict=True)):
        plant(study_dir / str(place.path).replace("*", run.id), outside / f"run-{number}{place.path.suffix}")
    yield OF_RUNS, study_dir, [run.id for run in runs]
    once = (place for place in every if place.kind is None)
    for number, (place, plant) in enumerate(zip(once, itertools.cycle(plants), strict=False)):
        study_dir = folder / f"runs-{number}" / "small"
        shutil.copytree(folder / "template", study_dir)
        plant(study_dir / place.path, outside / f"{number}{place.path.suffix}")
        yield f"{place.path} {plant.__name__}", study_dir, ids


# -- what is done with it ------------------------------------------------------------------------------------------


def commands(study_dir: Path, sound: Path, exported: Path) -> list[list[str]]:
    """Return the commands that read a study, and those that change what is not to be changed by a stranger."""
    name = str(study_dir)
    return [
        ["status", name],
        ["status", name, "--json"],
        ["status", name, "--only", "tag=good"],
        ["why", name],
        ["logs", name],
        ["diff", str(sound), name, "--patch"],
        ["compare", name, "name=done-*", "name=failed-*"],
        ["results", name, "--csv"],
        ["audit", name],
        ["propose", name],
        ["list"],
        ["note", name, "--tag", "seen"],
        ["export", name, "--to", "csv", "--output", str(exported)],
        ["report", name, "--no-behaviour"],
        ["clean", name, "--yes"],
        ["cancel", name, "--all"],
        ["clean", name, "--runs", "--only", "state=cancelled", "--yes"],
    ]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a command has said."""

    words: Sequence[str]
    code: int
    out: str
    err: str


def ask_all(
    study_dir: Path, sound: Path, exported: Path, capsys: pytest.CaptureFixture[str], *, draws: bool
) -> list[Answer]:
    """Run each of :func:`commands` in this process. An exception is that of the command.

    Drawing a report takes as long as all else. Unless ``draws``, what a report is made of is read in its place.
    """
    found = []
    for words in commands(study_dir, sound, exported):
        capsys.readouterr()
        if words[0] == "report" and not draws:
            code, out = _read_all(study_dir)
            err = capsys.readouterr().err
        else:
            code = launch.main([*words, "--runs-dir", str(study_dir.parent)])
            out, err = capsys.readouterr()
        found.append(Answer(words=words, code=code, out=out, err=err))
    return found


def _read_all(study_dir: Path) -> tuple[int, str]:
    try:
        return 0, repr(vars(load_study(study_dir)))
    except SeqlmError as error:
        return error.exit_code, str(error)


def digests(folder: Path) -> dict[Path, tuple[object, ...]]:
    """Return what tells each file and folder from itself after a change: its kind, and a file's time and content."""
    found: dict[Path, tuple[object, ...]] = {}
    for path in folder.rglob("*"):
        state = path.lstat()
        is_file = stat.S_ISREG(state.st_mode)
        content = hashlib.sha256(path.read_bytes()).hexdigest() if is_file else None
        found[path] = state.st_mode, state.st_uid, state.st_mtime_ns if is_file else None, content
    return found


def holds(folder: Path, text: str) -> list[Path]:
    """Return the files below a folder that hold a text, without those behind links."""
    files = (path for path in folder.rglob("*") if stat.S_ISREG(path.lstat().st_mode))
    return [path for path in files if text.encode() in path.read_bytes()]
