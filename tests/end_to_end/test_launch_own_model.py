"""A study with own models from end to end: the examples at a tiny size, next to an architecture of seqlm's."""

from pathlib import Path

import pytest

from analysis import open_study
from analysis.plots import look, palette
from tests.commands import Ask
from tests.seqlm.check_model.faulty import write_model
from tests.seqlm.training.studies import runs_in, write_text

pytestmark = pytest.mark.process
EXAMPLES = Path(__file__).parents[2] / "examples"

MANIFEST = """
[study]
name = "own"
data = "text"

[defaults]
data.corpus = "files"
train.epochs = 1
train.batch_size = 8
train.seq_len = 5
optim.optimizer = "adam"
optim.lr = 0.01

[[run]]
model.arch = "custom"
model.source = "lstm.py:LSTM"
model.arguments = { hidden_size = 8, num_layers = 1 }

[[run]]
model.arch = "custom"
model.source = "min_gru.py:MinGRU"
model.files = ["causal.py"]
model.arguments = { hidden_size = 8, num_layers = 1, width = 3 }

[[run]]
model.arch = "gru"
model.hidden_size = 8
model.num_layers = 1
model.embedding_size = 8
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEQLM_CACHE", str(tmp_path / "cache"))
    write_text(tmp_path / "text", train_lines=60)
    for file in ("lstm/lstm.py", "min_gru/min_gru.py", "min_gru/causal.py"):
        (tmp_path / Path(file).name).write_bytes((EXAMPLES / file).read_bytes())
    (tmp_path / "own.toml").write_text(MANIFEST)
    return tmp_path


@pytest.mark.usefixtures("blank_figures")
def test_the_examples_train_and_stand_in_the_report(folder: Path, ask: Ask) -> None:
    code, plan, err = ask("plan", "own.toml", "--backend", "local")
    assert code == 0, err
    assert [run["parameters"] for run in plan["runs"]] == [833, 481, 697]
    assert all(run["flops_per_token"] and run["memory_bytes"] for run in plan["runs"])
    code, found, err = ask("run", "own.toml", "--backend", "local")
    assert code == 0, err
    assert "testing" not in err, "plan has tested the models"
    assert [run["state"] for run in found["runs"]] == ["done"] * 3
    lstm, *_ = runs_in(folder / "runs" / "own")
    assert [path.name for path in lstm.model_dir.iterdir()] == ["lstm.py"]

    code, found, err = ask("report", "own")
    assert [one["state"] for one in found["behaviour"]] == ["done"] * 3, err
    study = open_study(folder / "runs" / "own")
    assert study.runs["arch"].tolist() == ["lstm.py:LSTM", "min_gru.py:MinGRU", "gru"]
    assert study.runs["model.hidden_size"].tolist() == [8, 8, 8]
    assert study.runs["model.arguments"].tolist()[1] == "width = 3"
    colours = {look.colour_of(arch) for arch in study.runs["arch"]}
    assert len(colours - {palette.UNKNOWN_COLOUR}) == 3
    assert set(study.behaviour["number"]) == {1, 2, 3}
    text = (folder / "runs" / "own" / "report" / "report.md").read_text("utf-8")
    assert "| LSTM | " in text
    assert "| minGRU | " in text, "its label"

    (folder / "lstm.py").write_text((folder / "lstm.py").read_text() + "\n# edited\n")
    code, found, err = ask("run", "own.toml", "--backend", "local", "--only", "source=lstm.py:LSTM", "--canary")
    assert "warning: lstm.py:LSTM has changed" in err
    assert [run["state"] for run in found["runs"]] == ["done"]
    assert len(runs_in(folder / "runs" / "own")) == 4, "the first one keeps its file"


def test_a_file_that_is_not_there_is_refused_at_once(folder: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.launch.own_models.subprocess.run", lambda *_, **__: pytest.fail("starts a process"))
    code, error, _ = ask("check-model", "none.py:LSTM")
    assert (code, error["message"]) == (2, "model.source: none.py does not exist")
    text = (folder / "own.toml").read_text().replace("lstm.py:LSTM", "none.py:LSTM")
    (folder / "own.toml").write_text(text)
    code, error, _ = ask("run", "own.toml", "--backend", "local")
    assert code == 2
    assert "does not exist" in error["message"]
    assert not (folder / "runs").exists()


def test_a_model_that_breaks_the_contract_starts_nothing(folder: Path, ask: Ask) -> None:
    write_model(folder, ("# hidden", "h = h + h.flip(0)"), name="lstm.py")
    (folder / "lstm.py").write_text((folder / "lstm.py").read_text().replace("class Model", "class LSTM"))
    words = ("own.toml", "--backend", "local", "--set", "model.arguments={ hidden_size = 8 }")
    code, error, _ = ask("run", *words, "--only", "source=lstm.py:LSTM")
    line = error["message"].splitlines()[0]
    assert code == 2
    assert line.startswith("LSTM-adam: model.arguments: LSTM cannot be made with"), line
    code, error, _ = ask("check-model", "lstm.py:LSTM")
    assert code == 2
    assert "causality" in [one["subject"] for one in error["findings"] if one["level"] == "bad"]
    assert not list(folder.glob("runs/own/*/config.json"))
