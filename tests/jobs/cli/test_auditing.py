"""``audit`` of a study and of archives of it, by its user and by a stranger."""

import json
import os
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from jobs.launch.audit import draw
from jobs.study.folder import observe_study
from seqlm.audit import Stretch, chance_to_miss
from tests import commands
from tests.seqlm.training.studies import runs_in, write_text
from tests.seqlm.training.test_auditor import change_result, change_row, next_float
from tests.small_study import Study

pytestmark = pytest.mark.process
PROGRAM = Path(__file__).parents[3] / "launch.py"
KEEP = "[policy]\nkeep_epochs = [2]"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = Study(tmp_path_factory.mktemp("home"), archs=["rnn", "gru"], epochs=3, head=KEEP)
    done = study("run", "small.toml")
    assert done.returncode == 0, done.stderr
    return study


def archive(study: Study, folder: Path, *, without: str = " ") -> Path:
    """An archive of the study, as the guide makes it."""
    path = folder / "small.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        file.add(study.folder / "runs" / "small", "runs/small", filter=lambda one: None if without in one.name else one)
    return path


def ask(folder: Path, *words: str, **env: str) -> tuple[int, Any, str]:
    """Have a stranger, whose configuration is in ``folder``, run a command; exit code, data or error, and stderr."""
    settings = {**os.environ, "XDG_CONFIG_HOME": str(folder / "config"), **env}
    done = commands.run([sys.executable, PROGRAM, *words, "--json"], cwd=folder, env=settings)
    document = json.loads(done.stdout)
    return done.returncode, document["data"] or document["error"], done.stderr


def verdicts(data: Any) -> dict[tuple[str, str], str]:
    """(architecture, part) -> verdict."""
    return {(run["name"][:3], one["part"]): one["verdict"] for run in data["runs"] for one in run["findings"]}


def test_an_archive_is_audited_by_a_stranger_and_stays_as_it_is(trained: Study, tmp_path: Path) -> None:
    path, text = archive(trained, tmp_path), str(trained.folder / "text")
    code, data, said = ask(tmp_path, "audit", path.name, "--share", "1", "--data", text, "--seed", "5")
    assert code == 0, said
    parts = ("records", "scores", "epoch 1", "epoch 3")
    assert verdicts(data) == {(name, part): "equal" for name in ("rnn", "gru") for part in parts}
    assert (data["seed"], data["code_differs"]) == (5, [])
    assert data["missed"] == pytest.approx(0.9**4)
    (unpacked,) = (tmp_path / "runs").iterdir()
    for run in runs_in(trained.folder / "runs" / "small"):
        for file in run.path.rglob("*"):
            if file.is_file():
                assert (unpacked / file.relative_to(run.path.parent)).read_bytes() == file.read_bytes()


def test_an_archive_without_models_and_text_has_its_records_compared(trained: Study, tmp_path: Path) -> None:
    path = archive(trained, tmp_path, without=".pt")
    code, data, _ = ask(tmp_path, "audit", path.name)
    assert code == 0
    expected = {"records": "equal", "scores": "unknown"}
    assert verdicts(data) == {(name, part): one for name in ("rnn", "gru") for part, one in expected.items()}
    text = str(trained.folder / "text")
    _, data, _ = ask(tmp_path, "audit", path.name, "--only", "arch=gru", "--data", text, "--whole")
    assert verdicts(data) == {("gru", "records"): "equal", ("gru", "scores"): "unknown", ("gru", "epochs 1-3"): "equal"}
    other = write_text(tmp_path / "other", train_lines=10)
    code, data, _ = ask(tmp_path, "audit", path.name, "--share", "1", "--data", str(other), SEQLM_CACHE=str(other))
    assert code == 0
    assert verdicts(data) == {(name, part): one for name in ("rnn", "gru") for part, one in expected.items()}
    assert data["missed"] == 1, "nothing was trained again"


def test_edits_are_found_by_what_the_share_covers_and_the_exit_code_is_1(trained: Study, tmp_path: Path) -> None:
    shutil.copytree(trained.folder / "runs" / "small", tmp_path / "runs" / "small")
    rnn, gru = (run for run in runs_in(tmp_path / "runs" / "small"))
    change_row(rnn, 3, 0, next_float)
    change_result(gru, best_val_ppl=2.0)
    text = str(trained.folder / "text")
    code, data, _ = ask(tmp_path, "audit", "small", "--data", text)
    found = verdicts(data)
    assert code == 1
    assert {key for key, verdict in found.items() if verdict == "differs"} == {("gru", "records")}
    code, data, _ = ask(tmp_path, "audit", "small", "--data", text, "--share", "1", "--only", "arch=rnn")
    assert code == 1
    (finding,) = [one for one in data["runs"][0]["findings"] if one["verdict"] == "differs"]
    assert finding["part"] == "epoch 1"
    assert finding["text"].startswith("from step 4 of epoch 1: loss ")


@pytest.mark.parametrize(("digest", "text"), [(None, "otherwise than b9 and "), ("0" * 64, "all nodes differ")])
def test_a_third_node_says_which_one_computed_otherwise(
    trained: Study, tmp_path: Path, digest: str | None, text: str
) -> None:
    shutil.copytree(trained.folder / "runs" / "small", tmp_path / "runs" / "small")
    run, _ = runs_in(tmp_path / "runs" / "small")
    change_row(run, 3, 0, next_float)
    words = ["audit", "small", "--data", str(trained.folder / "text"), "--share", "1", "--only", "arch=rnn"]
    assert ask(tmp_path, *words)[0] == 1
    earlier = run.path.parent / "audits" / "000001" / run.id / "result.json"
    record = json.loads(earlier.read_text())
    for finding in record["findings"]:
        finding |= {"node": "b9", "digest": digest or finding["digest"]}
    earlier.write_text(json.dumps(record))
    code, data, _ = ask(tmp_path, *words)
    assert code == 1
    (finding,) = [one for one in data["runs"][0]["findings"] if one["verdict"] == "differs"]
    assert text in finding["text"]


@pytest.mark.parametrize("changed", ["library", "instructions"])
def test_another_library_or_processor_gives_equal_losses_up_to_rounding(
    trained: Study, tmp_path: Path, changed: str
) -> None:
    """Two processors may have one name: virtual machines say no more than "AMD EPYC"."""
    (run, _) = runs_in(trained.folder / "runs" / "small")
    other = {"onednn": "blas", "blas": "onednn"}[run.read_worker(1).matmul or ""]
    variables = {"SEQLM_MATMUL": other} if changed == "library" else {"ATEN_CPU_CAPABILITY": "default"}
    words = ["audit", str(archive(trained, tmp_path)), "--data", str(trained.folder / "text"), "--share", "1"]
    code, data, said = ask(tmp_path, *words, **variables)
    assert code == 0, said
    assert set(verdicts(data).values()) <= {"equal", "rounding"}


def test_the_model_of_an_archive_runs_only_if_it_is_trusted(tmp_path: Path) -> None:
    home, away, mark = tmp_path / "home", tmp_path / "away", tmp_path / "it-ran"
    away.mkdir()
    study = Study(home, epochs=1)
    source = (Path(__file__).parents[3] / "examples" / "lstm" / "lstm.py").read_text()
    (home / "lstm.py").write_text(f"{source}\nopen({str(mark)!r}, 'w').close()\n")
    study.manifest.write_text(
        '[study]\nname = "small"\ndata = "text"\n[[run]]\nmodel.arch = "custom"\nmodel.source = "lstm.py:LSTM"\n'
        "model.arguments = {hidden_size = 8, num_layers = 1}\n"
        'data.corpus = "files"\noptim.optimizer = "adam"\noptim.lr = 0.01\n'
        "train.epochs = 1\ntrain.batch_size = 8\ntrain.seq_len = 5\n"
    )
    done = study("run", "small.toml")
    assert done.returncode == 0, done.stderr
    path = archive(study, away)
    mark.unlink()
    words = ["audit", path.name, "--data", str(home / "text"), "--share", "1"]
    code, error, _ = ask(away, *words)
    assert (code, mark.exists()) == (2, False)
    assert "lstm.py:LSTM" in error["message"]
    assert "--trust-models" in error["message"]
    code, data, said = ask(away, *words, "--trust-models")
    assert (code, mark.exists()) == (0, True), said
    assert [one["verdict"] for one in data["runs"][0]["findings"]] == ["equal"] * 3


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside"])
def test_an_archive_writes_nothing_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("{}")
    with tarfile.open(tmp_path / "bad.tar", "w") as file:
        file.add(tmp_path / "file", name)
    code, error, _ = ask(tmp_path, "audit", "bad.tar")
    assert code == 2
    assert "bad.tar" in error["message"]
    assert not (tmp_path.parent / "outside").exists()
    assert not Path("/tmp/outside").exists()
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "right"),
    [(["--whole", "--share", "0.1"], "--whole"), (["--seed", "3"], "--share"), ([], ".tar.gz")],
)
def test_what_audit_would_not_do_is_one_line(tmp_path: Path, words: list[str], right: str) -> None:
    (tmp_path / "notes.txt").write_text("no archive")
    code, error, _ = ask(tmp_path, "audit", "notes.txt", *words)
    assert code == 2
    assert right in error["message"]
    assert len(error["message"].splitlines()) == 1


# -- interrupted audits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--seed", "5"], []])
def test_an_interrupted_audit_goes_on_with_the_parts_that_are_left(
    trained: Study, tmp_path: Path, words: list[str]
) -> None:
    shutil.copytree(trained.folder / "runs" / "small", tmp_path / "runs" / "small")
    asked = ["audit", "small", "--data", str(trained.folder / "text"), "--share", "1"]
    code, whole, said = ask(tmp_path, *asked, "--seed", "5")
    assert code == 0, said
    audit = Path(whole["audit"])
    audit = tmp_path / audit
    (audit / "end.json").unlink()
    first, second = (audit / run["id"] for run in whole["runs"])
    (first / "result.json").unlink()
    kept = first / "findings" / "2.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "text": "of an earlier attempt"}))
    (first / "findings" / "3.json").unlink()
    before = (second / "result.json").read_bytes()
    code, data, said = ask(tmp_path, *asked, *words)
    assert code == 0, said
    assert (data["audit"], data["seed"], data["missed"]) == (whole["audit"], 5, whole["missed"])
    texts = {one["part"]: one["text"] for one in data["runs"][0]["findings"]}
    assert texts[json.loads(kept.read_text())["part"]] == "of an earlier attempt", "it was not trained again"
    assert verdicts(data) == verdicts(whole)
    assert (second / "result.json").read_bytes() == before
    assert ask(tmp_path, *asked, "--only", "arch=rnn")[1]["audit"] != whole["audit"], "it has ended"


def test_an_unfinished_audit_of_other_epochs_or_records_is_left(trained: Study, tmp_path: Path) -> None:
    shutil.copytree(trained.folder / "runs" / "small", tmp_path / "runs" / "small")
    asked = ["audit", "small", "--data", str(trained.folder / "text"), "--only", "arch=rnn"]
    audits = []
    for words in ([], [], ["--seed", "5", "--share", "0.1"], ["--seed", "6", "--share", "0.1"]):
        audits.append(ask(tmp_path, *asked, *words)[1]["audit"])
        (tmp_path / audits[-1] / "end.json").unlink()
    run, _ = runs_in(tmp_path / "runs" / "small")
    change_result(run, best_val_ppl=2.0)
    audits.append(ask(tmp_path, *asked, "--seed", "6", "--share", "0.1")[1]["audit"])
    assert len(set(audits)) == 4, audits
    assert audits[0] == audits[1]


# -- the draw ----------------------------------------------------------------------------------------------------------


def test_a_draw_follows_its_seed_and_takes_as_many_steps_as_its_share_says(trained: Study) -> None:
    runs = observe_study(trained.folder / "runs" / "small")
    draws = [draw(runs, 0.3, seed, whole=False) for seed in range(50)]
    assert all(drawn.number == 2 for drawn in draws), "0.3 of 6 epochs, of which 4 can be trained again"
    assert draws[7] == draw(runs, 0.3, 7, whole=False)
    counts = {(run.run.id, start): 0 for run in runs for start in (0, 2)}
    for drawn in draws:
        for run_id, stretches in drawn.stretches.items():
            for one in stretches:
                counts[run_id, one.start] += 1
    assert min(counts.values()) > 10, "each of four comes in half of the draws"
    everything = draw(runs, 1.0, 0, whole=False)
    assert (everything.number, everything.possible, everything.epochs) == (4, 4, 6)
    assert draw(runs, 0.0, 0, whole=True).stretches == {run.run.id: [Stretch(0, 3)] for run in runs}


def test_thirty_stretches_miss_one_false_in_ten_in_four_per_cent_of_cases() -> None:
    assert chance_to_miss(30) == pytest.approx(0.042, abs=5e-4)
