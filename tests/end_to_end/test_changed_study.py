"""A study in which something has changed since it was launched: its text, a model, its manifest, its folders."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import launch
from jobs.launch import dispatch
from jobs.launch.job import StudySettings, next_submission
from jobs.spec import Submission
from tests.commands import Ask
from tests.seqlm.check_model.faulty import write_model
from tests.small_study import STUB_WORKER, Study

pytestmark = [pytest.mark.process, pytest.mark.slow]

OWN = """
[defaults]
data.corpus = "files"
train = { epochs = 1, batch_size = 8, seq_len = 5 }
optim = { optimizer = "adam", lr = 0.01 }

[[run]]
model = { arch = "custom", source = "mine.py:Model" }
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A manifest of an RNN and a GRU, not launched yet, in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEQLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SEQLM_BACKEND", "local")
    return Study(tmp_path, epochs=1, archs=("rnn", "gru"), lines=60)


@pytest.fixture(autouse=True)
def stub(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Launches of this process start the stub in the place of the worker. Call it with what happens in its attempts."""
    monkeypatch.setitem(StudySettings.__init__.__kwdefaults__, "worker", (str(STUB_WORKER),))
    return lambda what: monkeypatch.setenv("SEQLM_TEST_STUB", what)


def states(ask: Ask) -> dict[str, tuple[str, str | None]]:
    """Id -> state and reason, as ``status`` has them."""
    return {run["id"]: (run["state"], run["reason"]) for run in ask("status", "small")[1]["runs"]}


def test_a_run_with_a_damaged_configuration_blocks_no_other_and_is_made_whole(study: Study, ask: Ask) -> None:
    assert ask("run", "small.toml", "--only", "arch=gru")[0] == 0
    (gru,) = study.runs()
    whole, results = json.loads(gru.config_file.read_bytes()), gru.metrics_file.read_bytes()
    gru.config_file.write_text("{")
    code, found, err = ask("run", "small.toml")
    assert code == 1
    assert {run["state"] for run in found["runs"]} == {"failed", "done"}, "the RNN has trained"
    assert f"{gru.config_file.relative_to(study.folder)} is damaged" in err
    assert "move it away" in err
    gru.config_file.unlink()  # as the message says
    assert states(ask)[gru.id] == ("done", None), "the request of its launch has the configuration too"
    assert ask("run", "small.toml", "--set", "train.epochs=3", "--only", "arch=gru")[0] == 0
    assert json.loads(gru.config_file.read_bytes()) == {**whole, "train": {**whole["train"], "epochs": 3}}
    assert gru.metrics_file.read_bytes().startswith(results), "not trained again"


def test_a_changed_text_is_named_before_anything_starts(study: Study, ask: Ask) -> None:
    assert ask("run", "small.toml")[0] == 0
    digest = study.runs()[0].read_config().data.sha256
    with (study.folder / "text" / "train.txt").open("a") as file:
        file.write("ab\n")
    _, plan, err = ask("plan", "small.toml")
    (line,) = plan["changes"]
    assert line in err
    assert "text" in line
    assert "2 runs" in line
    assert str(digest)[:12] in line
    before, after = map(int, re.findall(r"train ([\d,]+) -> ([\d,]+) tokens", line)[0])
    assert before < after
    assert "valid" not in line
    assert plan["totals"]["unknown"] is None, "the runs on the text of before have been timed"
    assert line.partition(" since")[0] in ask("run", "small.toml", "--only", "arch=gru")[2]
    assert ask("plan", "small.toml", "--only", "arch=gru")[1]["changes"] == [], "it has run with this text"


def test_a_model_that_was_corrected_is_trained_by_run_and_its_copy_by_retry_if_that_is_asked_for(
    study: Study, ask: Ask, stub: Callable[[str], None]
) -> None:
    study.manifest.write_text(study.manifest.read_text().split("[defaults.model]")[0] + OWN)
    write_model(study.folder, ("# hidden", "pass"), name="mine.py")
    stub('{"1/0": "code", "2/0": "code"}')
    code, found, err = ask("run", "small.toml")
    assert (code, found["runs"][0]["state"]) == (1, "failed"), err
    name = found["runs"][0]["name"]
    assert ask("retry", "small")[0] == 1, "the file is as it was, and fails as it did"
    (run,) = study.runs()
    kept = (run.model_dir / "mine.py").read_bytes()
    advice = ask("why", "small", name)[1]["runs"][0]["details"]["do"]
    assert f"`run {study.manifest}`" in advice
    assert "retry" not in advice
    write_model(study.folder, name="mine.py")
    stub("{}")
    for more in ([], ["--dry-run"]):
        code, error, _ = ask("retry", "small", "--runs-dir", str(study.folder / "runs"), *more)
        assert (code, run.attempts()) == (2, [1, 2]), "nothing has started"
        assert "mine.py:Model has changed" in error["message"]
    corrected, earlier = (shlex.split(command) for command in re.findall(r"`(.*?)`", error["message"]))
    code, found, err = ask(*earlier)
    assert (code, found["runs"][0]["state"]) == (0, "done"), err
    assert (run.model_dir / "mine.py").read_bytes() == kept, "the copy that the run began with"
    code, found, err = ask(*corrected)
    assert (code, found["runs"][0]["state"], len(study.runs())) == (0, "done", 2)
    assert "+1 -1 lines" in err


def origins(ask: Ask) -> dict[str, str]:
    return {run["id"]: run["origin"] for run in ask("status", "small")[1]["runs"]}


def test_status_tells_runs_of_another_text_manifest_or_none_apart(
    study: Study, ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    expected: dict[str, str] = {}

    def launched(manifest: str, *words: str) -> str:
        """The id of the one run that a launch adds."""
        code, _, err = ask("run", manifest, *words)
        assert code == 0, err
        (new,) = {run.id for run in study.runs()} - set(expected)
        return new

    manifest = study.folder / "small.toml"
    expected[launched("small.toml", "--only", "arch=gru")] = "text"
    lines = (study.folder / "text" / "valid.txt").read_text().splitlines()
    (study.folder / "text" / "valid.txt").write_text("\n".join([*lines, lines[0]]))
    expected[launched("small.toml", "--only", "arch=gru")] = "planned"
    expected[launched("small.toml", "--only", "arch=gru", "--set", "seed=3")] = "planned"
    (study.folder / "other.toml").write_text(manifest.read_text() + "train.seq_len = 4\n")
    expected[launched("other.toml", "--only", "arch=gru")] = "manifest"
    manifest.write_text(manifest.read_text().replace('"rnn"', '"transformer"'))
    rnn = launched("small.toml", "--only", "arch=transformer")
    expected[rnn] = "orphaned"
    manifest.write_text(manifest.read_text().replace('"transformer"', '"rnn"'))
    expected[launched("small.toml", "--only", "arch=rnn")] = "planned"
    assert origins(ask) == expected
    assert launch.main(["status", "small", "--only", "origin=manifest"]) == 0
    assert "of another manifest" in capsys.readouterr().out
    assert [run["id"] for run in ask("status", "small", "--only", "origin=orphaned")[1]["runs"]] == [rnn]


def test_a_run_whose_folder_was_deleted_is_pending_until_it_runs_again(study: Study, ask: Ask) -> None:
    assert ask("run", "small.toml")[0] == 0
    (gru,) = (run for run in study.runs() if run.id.startswith("gru"))
    shutil.rmtree(gru.path)
    assert states(ask)[gru.id] == ("pending", None)
    assert ask("list")[1]["studies"][0]["states"] == {"done": 1, "pending": 1}
    assert ask("run", "small.toml")[0] == 0
    assert states(ask)[gru.id] == ("done", None)


def test_a_failed_canary_is_the_reason_of_the_runs_that_wait_and_logs_show_its_log(
    study: Study, ask: Ask, capsys: pytest.CaptureFixture[str], stub: Callable[[str], None]
) -> None:
    stub('{"1/0": "code"}')
    code, error, _ = ask("run", "small.toml", "--canary")
    assert code != 0
    assert "canary rnn-adam" in error["message"]
    assert not any(run.attempts() for run in study.runs())
    for state, reason in states(ask).values():
        assert state == "pending"
        assert "canary" in str(reason)
        assert "an error of the model" in str(reason)
    assert launch.main(["status", "small"]) == 0
    _, first, second = capsys.readouterr().out.splitlines()
    assert "an error of the model" in first
    assert second.endswith("as rnn-adam"), "a long reason is said once"
    records = ask("logs", "small")[1]["runs"]
    assert any("an error of the model" in line for line in records[0]["stderr"]), "of its canary"
    stub("{}")
    assert ask("run", "small.toml", "--no-canary", "--only", "arch=gru")[0] == 0
    assert sorted(state for state, _ in states(ask).values()) == ["done", "pending"]


def test_a_cache_that_is_cleared_before_each_start_fails_no_run(
    study: Study, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clear_first(*arguments: Any) -> Submission:
        shutil.rmtree(study.folder / "cache" / "code")
        return next_submission(*arguments)

    monkeypatch.setattr(dispatch, "next_submission", clear_first)
    assert ask("run", "small.toml", "--max-parallel", "1")[0] == 0
    assert [run.last_attempt() for run in study.runs()] == [1, 1]
