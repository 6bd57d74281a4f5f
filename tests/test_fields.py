"""docs/reference/files.md and json.md have every file and every field that there is, with its type.

The samples are the files of ``tests/end_to_end/stored/format-3.zip``, a study that was really run, and what commands
answer about it.
"""

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import launch
from seqlm.machine import Card, Gpu
from seqlm.rundir import RunDirectory
from tests.seqlm.training.studies import write_text

ROOT = Path(__file__).parent.parent
FILES, OUTPUTS = (ROOT / "docs" / "reference" / name for name in ("files.md", "json.md"))
STORED = zipfile.ZipFile(ROOT / "tests" / "end_to_end" / "stored" / "format-3.zip")
COMMANDS = {
    "plan": ["plan", "stored.toml", "--backend", "local"],
    "status": ["status", "stored"],
    "status --machine": ["status", "--machine"],
    "results": ["results", "stored"],
    "note": ["note", "stored", "--tag", "good", "--text", "a"],
    "diff": ["diff", "stored/rnn-adam", "stored/gru-adam", "--patch"],
    "audit": ["audit", "stored", "--share", "0.1", "--data", "text", "--live-code"],
    "compare": ["compare", "stored", "name=gru-adam", "name=rnn-adam"],
    "export": ["export", "stored", "--to", "csv", "--output", "exported"],
    "list": ["list"],
    "logs": ["logs", "stored"],
    "why": ["why", "stored"],
    "cancel": ["cancel", "stored", "--only", "name=rnn-adam"],
    "notify": ["notify", "told.toml"],
    "clean": ["clean", "stored", "--dry-run"],
}
ROW = re.compile(r"^\| `([^`]+)` \| ([^|]+) \|", re.M)
"""A line of a table: the name, and the next cell, which is a field's type."""
KINDS = {type(None): "null", bool: "boolean", int: "number", float: "number", str: "text", list: "list"}

Fields = dict[str, str]
"""Path of a field -> its types. ``runs[].name`` is the field ``name`` of each object in the list ``runs``."""


def tables(page: Path) -> dict[str, Fields]:
    """Return the table of each section of a page by the section's title."""
    sections = re.split(r"^#+ ", page.read_text("utf-8"), flags=re.M)
    found = {section.partition("\n")[0].strip("`"): dict(ROW.findall(section)) for section in sections}
    return {title: fields for title, fields in found.items() if fields}


DESCRIBED = {page: tables(page) for page in (FILES, OUTPUTS)}


def fields_of(value: Any, described: Fields, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield path and type of each field; one whose parts are not described is described as a whole."""
    below: list[tuple[str, Any]] = []
    if isinstance(value, dict) and (not path or any(key.startswith(f"{path}.") for key in described)):
        below = [(f"{path}.{name}" if path else name, inner) for name, inner in value.items()]
    elif isinstance(value, list) and any(key.startswith(f"{path}[].") for key in described):
        below = [(f"{path}[].{name}", inner) for each in value for name, inner in each.items()]
    if path in described or not below:
        yield path, KINDS.get(type(value), "object")
    for name, inner in below:
        yield from fields_of(inner, described, name)


def check(described: Fields, *samples: Any) -> None:
    for sample in samples:
        for path, kind in fields_of(sample, described):
            assert path in described, f"{path} is not described"
            assert kind in described[path].split(" or "), f"{path} is {kind}, described as {described[path]}"


@pytest.mark.parametrize("name", sorted(DESCRIBED[FILES].keys() - {"A study", "A run"}))
def test_every_field_of_a_stored_file_is_described_with_its_type(name: str) -> None:
    stored = [file for file in STORED.namelist() if re.fullmatch(f"runs/stored/([^/]+/)?{name}", file)]
    texts = [STORED.read(file).decode() for file in stored]
    documents = [line for text in texts for line in (text.splitlines() if name.endswith(".jsonl") else [text])]
    check(DESCRIBED[FILES][name], *map(json.loads, documents))


@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=[pytest.mark.process] if name == "audit" else []) for name in COMMANDS]
)
def test_every_field_of_an_answer_is_described_with_its_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    STORED.extractall(tmp_path)
    write_text(tmp_path / "text", train_lines=220)
    told = (tmp_path / "stored.toml").read_text()
    (tmp_path / "told.toml").write_text(told + '\n[notify]\ncommand = "true"\n')
    monkeypatch.chdir(tmp_path)
    card = Card(index=0, whole=Gpu("GPU-0", "Fake"))
    monkeypatch.setattr("seqlm.machine.cards", lambda: [card])
    monkeypatch.setattr("seqlm.gpus.Survey.wait", lambda survey: None)
    assert launch.main([*COMMANDS[command], "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    check(DESCRIBED[OUTPUTS]["JSON outputs"], document)
    check(DESCRIBED[OUTPUTS][command], document["data"])


def test_every_described_field_is_a_word_of_the_code() -> None:
    packages = [path for name in ("seqlm", "jobs", "slurm", "analysis") for path in (ROOT / name).rglob("*.py")]
    words = {word for path in [ROOT / "launch.py", *packages] for word in re.findall(r"\w+", path.read_text("utf-8"))}
    fields = {field for page in DESCRIBED.values() for table in page.values() for field in table if "/" not in field}
    parts = {part for field in fields for part in re.findall(r"[a-z_]\w*(?![\w.]*(?:\.jsonl?|\.lock))", field)}
    assert not parts - words


def test_every_file_of_a_run_and_of_a_study_is_described() -> None:
    run = RunDirectory(Path("RUN"))
    ends, others = ("_file", "_dir", "_log", "_checkpoint"), ("kept_dir", "has_checkpoint", "study_dir")
    members = [getattr(run, name) for name in vars(RunDirectory) if name.endswith(ends) and name not in others]
    paths = [member(1) if callable(member) else member for member in members]
    assert {name.rstrip("/") for name in DESCRIBED[FILES]["A run"]} == {
        path.relative_to("RUN").as_posix() for path in paths
    }
    places = [Path(name).relative_to("runs/stored").parts for name in STORED.namelist() if name.startswith("runs/")]
    runs = {parts[0] for parts in places if parts[1:] == ("config.json",)}
    in_study = {parts[0] for parts in places if parts} - runs
    in_study -= {"launch.lock"}  # of the version that has trained it
    assert in_study <= {name.rstrip("/") for name in DESCRIBED[FILES]["A study"]}
