"""``note``: what is noted about runs, in every command that takes filters, in the report and in the API."""

from pathlib import Path
from typing import Any

import pytest

import launch
from analysis.report import write_report
from analysis.study.study import load_study
from tests import commands
from tests.analysis.example_study import make_examples

pytestmark = pytest.mark.slow  # pandas

MANIFEST = """
[study]
name = "optimizers"
[[grid]]
name = "new"
model.arch = ["rnn", "gru"]
model.hidden_size = 8
data.corpus = "pydoc"
optim.optimizer = "adam"
optim.lr = 1e-3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_examples(tmp_path / "runs")
    (tmp_path / "new.toml").write_text(MANIFEST)
    ask(tmp_path, "note", "optimizers", "--only", "arch=gru", "--tag", "good", "--tag", "wide", "--text", "a <b> c")
    return tmp_path


def ask(folder: Path, *words: str) -> Any:
    return commands.ask(words, folder=folder, env={})


@pytest.mark.parametrize("command", ["status", "results", "logs", "cancel", "note"])
def test_tags_choose_runs_wherever_filters_are_taken(folder: Path, command: str) -> None:
    tagged, over = {"gru-sgd", "gru-adam", "gru-schedule"}, {"gru-sgd", "gru-adam"}
    found = {run["name"] for run in ask(folder, command, "optimizers", "--only", "tag=wi*")["runs"]}
    assert found == (tagged - over if command == "cancel" else tagged)
    assert not ask(folder, command, "optimizers", "--exclude", "tag=good,none")["runs"]
    assert not ask(folder, command, "optimizers", "--only", "tag=good arch=rnn")["runs"]


def test_tags_choose_runs_of_a_manifest_and_none_chooses_those_without(folder: Path) -> None:
    runs = ask(folder, "plan", "new.toml", "--backend", "local", "--only", "tag=none")["runs"]
    assert [run["name"] for run in runs] == ["new-rnn", "new-gru"]
    with pytest.raises(AssertionError, match="no run passes"):
        ask(folder, "plan", "new.toml", "--backend", "local", "--only", "tag=good")


@pytest.mark.usefixtures("blank_figures")
def test_notes_are_in_the_api_and_the_report_and_a_damaged_one_is_a_warning(folder: Path) -> None:
    study_dir = folder / "runs" / "optimizers"
    study = load_study(study_dir)
    noted = study.runs.dropna(subset="tags")[["name", "tags", "note"]].to_numpy().tolist()
    names = ("gru-sgd", "gru-adam", "gru-schedule")
    assert sorted(noted) == sorted([name, "good wide", "a <b> c"] for name in names)
    page = write_report(study_dir).read_text()
    assert "a &lt;b&gt; c" in page
    assert "a <b> c" not in page
    (study_dir / "notes" / "000001" / "note.json").write_text("{")
    assert any("note.json" in line for line in load_study(study_dir).warnings)


def test_a_tag_that_no_filter_could_name_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for tag in ("a,b", "a b", "", "a=b", "*"):
        words = ["note", "optimizers", "--tag", tag, "--runs-dir", str(folder / "runs")]
        assert launch.main(words) == 2
        assert "--tag" in capsys.readouterr().err


def test_added_tags_come_to_those_that_each_run_has(folder: Path) -> None:
    ask(folder, "note", "optimizers", "--only", "name=gru-adam,rnn-adam", "--tag", "late", "--tag", "good", "--add")
    tags = {run["name"]: run["tags"] for run in ask(folder, "note", "optimizers")["runs"]}
    assert tags["gru-adam"] == ["good", "wide", "late"]
    assert tags["rnn-adam"] == ["late", "good"]
    assert tags["gru-sgd"] == ["good", "wide"]
    for words in (["--add"], ["--add", "--tag", "none"]):
        with pytest.raises(AssertionError, match="--tag"):
            ask(folder, "note", "optimizers", *words)
