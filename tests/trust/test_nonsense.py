"""Numbers that no run has, and names that would forge lines, in every field of a study's records."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import launch
from tests.trust.test_terminal import harmless
from tests.trust.test_wrong_types import KINDS, whole_run, write_study_files

NUMBERS: list[float] = [float("inf"), 1e308, 1e-320, -1, 2**62]
"""JSON as Python writes it has infinities."""
MARK = "FORGED"
NAME = f"a\n{MARK} b\r{MARK}\x1b[2J\x9b31m\u2028{MARK}\u202e{'long' * 100}"
COMMANDS = (
    *("status small", "status small --json", "why small", "results small", "results small --csv", "list", "logs small"),
    *("note small", "propose small", "clean small --dry-run", "export small --to csv --output exported"),
)


def changed(document: Any, kind: type | tuple[type, ...], value: Any) -> Any:
    """Return a document in which each value of a kind is another one, but for what names a file or its version."""
    if isinstance(document, dict):
        kept = ("version", "epoch", "decision", "kind", "id", "fingerprint", "sha256", "state", "backend")
        return {
            key: inner if key in kept or key.endswith("sha256") else changed(inner, kind, value)
            for key, inner in document.items()
        }
    if isinstance(document, list):
        return [changed(inner, kind, value) for inner in document]
    return value if isinstance(document, kind) and not isinstance(document, bool) else document


def change(path: Path, work: Callable[[Any], Any]) -> None:
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    path.write_text("".join(json.dumps(work(json.loads(line))) + "\n" for line in lines))


@pytest.fixture
def study_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study with a run of each kind, and one that stays as it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setenv("PATH", str(tmp_path))  # no squeue
    study_dir = tmp_path / "runs" / "small"
    ids = [whole_run(study_dir, seed, kind).id for seed, kind in enumerate([*KINDS, "done"])]
    write_study_files(study_dir, ids[:4])
    return study_dir


def records(study_dir: Path) -> Iterator[Path]:
    """Yield the records that are changed: not the configurations, of which another one is another run."""
    return (path for path in study_dir.rglob("*.json*") if path.name not in ("config.json", "submitted.json"))


def said(study_dir: Path, capsys: pytest.CaptureFixture[str], *more: str) -> Iterator[str]:
    """Yield what each command prints."""
    runs = sorted(path.name for path in study_dir.glob("*-*"))
    of_runs = [f"why small {run}" for run in runs] + [f"diff small/{runs[0]} small/{run}" for run in runs[1:]]
    for words in (*COMMANDS, *of_runs, *more):
        launch.main(words.split())  # raises what is no error of seqlm
        done = capsys.readouterr()
        yield done.out + done.err


@pytest.mark.process  # it calls squeue, since the record of a job can be read
@pytest.mark.slow
@pytest.mark.parametrize(("number", "together"), [*((number, True) for number in NUMBERS), (NUMBERS[0], False)])
def test_no_number_in_a_record_is_a_traceback(
    study_dir: Path, capsys: pytest.CaptureFixture[str], number: float, together: bool
) -> None:
    for place, path in enumerate(sorted(records(study_dir))):
        if together or place % 3 == 0:
            change(path, lambda document: changed(document, (int, float), number))
    for text in said(study_dir, capsys, "report small --no-behaviour"):
        assert "Traceback" not in text


@pytest.mark.slow
def test_no_name_in_a_record_makes_a_line_or_drives_a_terminal(
    study_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in records(study_dir):
        change(path, lambda document: changed(document, str, NAME))
    for text in said(study_dir, capsys):
        assert harmless(text)
        assert not [line for line in text.splitlines() if line.startswith(MARK)]


@pytest.mark.slow
def test_files_far_below_any_folder_are_a_line_at_most(study_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = next(study_dir.glob("*-*"))
    places = (run, run / "attempts" / "0001", study_dir / "launches", study_dir / "notes" / "000001")
    for place in places:
        deep = os.open(place, os.O_DIRECTORY)
        for _ in range(1500):
            os.mkdir("deep", dir_fd=deep)
            deep, above = os.open("deep", os.O_DIRECTORY, dir_fd=deep), deep
            os.close(above)
        os.close(deep)
    try:
        for text in said(study_dir, capsys, "report small --no-behaviour"):
            assert "Traceback" not in text
    finally:
        for place in places:  # shutil.rmtree goes less deep
            while (place / "deep" / "deep").exists():
                (place / "deep" / "deep").rename(place / "next")
                (place / "deep").rmdir()
                (place / "next").rename(place / "deep")
