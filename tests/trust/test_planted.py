"""A study that somebody else has made: no command runs what it keeps, as the table of trust.md says."""

import contextlib
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import launch
from jobs.cli.arguments import COMMANDS
from seqlm.architectures import CustomConfig
from seqlm.data.corpus import load_corpus
from seqlm.files import write_json
from seqlm.model_files import read_model_files
from seqlm.records.runs import Provenance
from seqlm.resources import Resources
from seqlm.rundir import RunDirectory, study_record_file
from tests.facts import fail
from tests.seqlm.check_model.faulty import INIT, write_model
from tests.seqlm.training.studies import Attempt, make_config, write_text
from tests.small_study import ROOT
from tests.trust import planted

PAGE = ROOT / "docs" / "explanation" / "trust.md"
WORDS = {
    "diff": ["{study}/done", "{study}/failed", "--patch"],
    "compare": ["{study}", "name=done", "name=failed"],
    "generate": ["{study}", "done", "the"],
    "export": ["{study}", "--to", "csv", "--output", "{folder}/exported"],
    "clean": ["{study}", "--yes"],
    "cancel": ["{study}", "--all"],
    "limit": ["{study}", "--max-parallel", "1"],
    "note": ["{study}", "--tag", "good"],
    "list": [],
}
"""What stands after a command. Others take the study alone."""


def rows() -> list[tuple[list[str], str, str]]:
    """Return the table: the commands of each row, what they run, and what they do with what was not launched."""
    _, _, table = PAGE.read_text("utf-8").partition("| command | what it runs of the study |")
    lines = [line.strip("|").split(" | ") for line in table.partition("\n\n")[0].splitlines()[2:]]
    return [(re.findall("`([a-z]+)`", names), runs.strip(), then.strip()) for names, runs, then in lines]


def test_the_table_has_each_command_that_takes_a_study_and_says_where_trust_is_a_flag() -> None:
    named = [name for names, _, _ in rows() for name in names]
    assert sorted(named) == sorted(
        name
        for name, command in COMMANDS.items()
        if name in ("list", "completion")
        or {"study", "any_study", "studies", "a", "words", "audited"} & {*command.takes}
    )
    running = {name for names, runs, _ in rows() if runs != "nothing" for name in names}
    assert running == {name for name, command in COMMANDS.items() if {"trust", "trust_models"} & {*command.takes}}


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "ran"


@pytest.fixture
def study(tmp_path: Path, marker: Path) -> Path:
    """A trained and a failed run of a model that leaves a mark, with commands and settings that do the same."""
    write_model(tmp_path, (INIT, f"open({str(marker)!r}, 'a').close()"))
    files = read_model_files(CustomConfig(arch="custom", source="model.py:Model"), tmp_path)
    model = CustomConfig(arch="custom", source="model.py:Model", sha256=files.sha256)
    study_dir, text = tmp_path / "runs" / "small", write_text(tmp_path / "text")
    for order, (name, epochs) in enumerate({"done": 1, "failed": 2}.items()):
        config = replace(make_config(epochs=epochs, seed=order), model=model)
        run = RunDirectory.locate(study_dir, name, config.fingerprint())
        known = Provenance(name=name, order=order, data=str(text), resources=Resources(cpus=1))
        run.create(config, known, model_files=files)
        if name == "done":
            Attempt(run, load_corpus(config.data, text)).train()
        else:
            fail(run, {})
        for place in ("numpy.py", "__init__.py", "__pycache__/model.cpython-311.pyc"):
            (run.model_dir / place).parent.mkdir(exist_ok=True)
            (run.model_dir / place).write_text(f"open({str(marker)!r}, 'a').close()\n")
    shell = f"touch {marker}"
    record = {
        "version": 3,
        "study": "small",
        "notify": {"command": shell},
        "backend": {"local": {"env": {"PYTHONPATH": str(tmp_path / "planted")}}, "slurm": {"setup": [shell]}},
    }
    write_json(study_record_file(study_dir), record)
    (tmp_path / "planted").mkdir()
    for place in (tmp_path / "planted" / "sitecustomize.py", study_dir / "sitecustomize.py", study_dir / "torch.py"):
        place.write_text(f"open({str(marker)!r}, 'a').close()\n")
    marker.unlink()
    return study_dir


def words_of(name: str, study: Path) -> list[str]:
    words = [word.format(study=study, folder=study.parents[1]) for word in WORDS.get(name, ["{study}"])]
    return [name, *words, "--runs-dir", str(study.parent)]


def ask(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    code = launch.main(list(words))
    return code, capsys.readouterr().err


@pytest.mark.process
@pytest.mark.usefixtures("blank_figures")
def test_no_command_runs_what_somebody_else_has_launched_until_it_is_told_to(
    study: Path, marker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(study.parents[1] / "config"))
    monkeypatch.setenv("SEQLM_BACKEND", "local")
    monkeypatch.chdir(study)
    last = ("cancel", "clean")  # they change what the others look at
    ordered = sorted(rows(), key=lambda row: row[1] == "nothing")
    for names, _, then in ordered:
        for name in sorted(names, key=last.__contains__):
            code, err = ask(words_of(name, study), capsys)
            assert not marker.exists(), name
            assert "Traceback" not in err
            if "refuses" in then:
                (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
                assert code == 2, name
                assert "was not launched by you" in line
                assert "--trust" in line
            else:
                assert code in (0, 1, 2), f"{name}: {err}"


@pytest.mark.process
@pytest.mark.parametrize("name", ["generate", "retry"])
def test_with_trust_it_runs(
    study: Path, marker: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the test above might find nothing to run."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(study.parents[1] / "config"))
    monkeypatch.setenv("SEQLM_BACKEND", "local")
    code, err = ask([*words_of(name, study), "--trust"], capsys)
    assert code == 0, err
    assert marker.exists()


# -- what is no record -------------------------------------------------------------------------------------------------

SECONDS = 60
"""The longest that a command may take. One that waits for a pipe takes for ever."""
MOST_MEMORY = 400 * 2**20
"""Bytes that a command may take beyond what this process has."""


def peak_memory() -> int:
    """Return the most bytes of memory that this process has had since :func:`forget_peak`."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


@contextlib.contextmanager
def in_time(what: str) -> Iterator[None]:
    def give_up(number: int, frame: object) -> None:
        pytest.fail(f"{what} waits")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_pipes_sockets_and_large_files_in_any_place_keep_nobody_waiting_and_take_little_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr("jobs.cli.studying.STOP_SECONDS", 0.1)  # for owners whose records nobody can read
    kinds = (planted.pipe, planted.listener, planted.sparse, planted.deflated, planted.dense, planted.other_kind)
    for what, study_dir, _ in planted.planted_studies(tmp_path, *kinds):
        if os.geteuid() == 0:
            for path in (study_dir, *study_dir.rglob("*")):
                os.lchown(path, 64711, -1)
        exported = tmp_path / f"exported-{study_dir.parent.name}"
        forget_peak()
        before = peak_memory()
        draws = what == planted.OF_RUNS or what.startswith("report")
        with in_time(what):
            answers = planted.ask_all(study_dir, tmp_path / "template", exported, capsys, draws=draws)
        for answer in answers:
            assert answer.code in (0, 1, 2), f"{what}: {answer}"
            assert "Traceback" not in answer.err, f"{what}: {answer}"
        assert peak_memory() - before < MOST_MEMORY, what
        shutil.rmtree(study_dir.parent)
