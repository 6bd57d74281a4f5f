"""``run STUDY`` and ``plan STUDY``: the manifest as it was launched, with ``--set`` on top."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.cli.arguments import read
from jobs.cli.launching import prepared
from jobs.study.launched import trust_study
from seqlm.rundir import study_record_file
from tests.commands import Ask
from tests.small_study import Study

SMALL = Path("runs/small")


def launched(*words: str) -> None:
    """Leave in the study's folder what a launch of ``small.toml`` keeps of it."""
    arguments = read(["run", "small.toml", *words])
    assert arguments is not None
    study, order, _ = prepared(arguments)
    study.path.mkdir(parents=True, exist_ok=True)
    assert order.record is not None
    order.record.write(study.path)
    trust_study(study.path, pytest.fail)


def plan_of(ask: Ask, *words: str) -> Any:
    code, document, _ = ask("plan", *words)
    assert code == 0, document
    return document


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    return Study(tmp_path, stub=True, archs=("rnn", "gru"))


WAYS = {
    "nothing": (),
    "changes": ("--set", "train.epochs=1", "--set", "seed=7"),
    "flags": ("--max-parallel", "1", "--backend", "local", "--data", "text"),
}


@pytest.mark.parametrize("words", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("name", ["small", "runs/small"])
@pytest.mark.parametrize("now", [(), ("--set", "train.epochs=3"), ("--only", "arch=gru")])
def test_a_study_is_its_manifest_as_launched_whatever_became_of_the_file(
    study: Study, ask: Ask, words: tuple[str, ...], name: str, now: tuple[str, ...]
) -> None:
    wanted = plan_of(ask, "small.toml", *words, *now)
    launched(*words)
    assert plan_of(ask, name, *now) == wanted
    study.write("[[run]]", 'model.arch = "transformer"', 'optim.optimizer = "adam"', "optim.lr = 0.01")
    assert plan_of(ask, name, *now) == wanted
    assert "small.toml has changed" in ask("plan", name, *now)[2]
    study.manifest.unlink()
    assert plan_of(ask, name, *now) == wanted


def test_flags_of_one_backend_go_to_no_other(study: Study, ask: Ask) -> None:
    launched("--max-parallel", "1", "--backend", "ray", "--ray-address", "127.0.0.1:1")
    totals = plan_of(ask, "small", "--backend", "local")["totals"]
    assert (totals["backend"], totals["max_parallel"]) == ("local", None)


def test_a_study_in_a_renamed_folder_stays_there(study: Study, ask: Ask) -> None:
    launched()
    SMALL.rename("runs/other")
    for name in ("other", "runs/other"):
        assert [Path(run["directory"]).parent for run in plan_of(ask, name)["runs"]] == [Path("runs/other")] * 2


def test_a_manifest_that_is_not_mine_is_not_run(study: Study, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    launched()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(study.folder / "somebody"))
    for command in ("plan", "run"):
        code, error, _ = ask(command, "small")
        assert code == 2
        assert "was not launched by you" in error["message"]


def test_a_study_without_a_manifest_says_which_one_to_run(study: Study, ask: Ask) -> None:
    launched()
    record = study_record_file(SMALL)
    kept = json.loads(record.read_text())
    record.write_text(json.dumps({key: value for key, value in kept.items() if key != "launched"}))
    code, error, _ = ask("run", "small")
    assert (code, str(study.manifest) in error["message"]) == (2, True)


def test_a_folder_that_is_no_study_is_refused(study: Study, ask: Ask) -> None:
    launched()
    (study.folder / "runs/empty").mkdir()
    for name in ("runs/empty", "empty"):
        code, error, _ = ask("plan", name)
        assert (code, "found no runs in it" in error["message"]) == (2, True)


def test_no_secret_is_kept(study: Study) -> None:
    study.write("[backend.local]", 'env = { HUB_TOKEN = "tell nobody", PLAIN = "said" }')
    launched()
    text = study_record_file(SMALL).read_text()
    assert "tell nobody" not in text
    assert "said" in text


@pytest.mark.process
def test_a_launch_by_name_goes_on_and_starts_nothing_twice(study: Study) -> None:
    assert study("run", "small.toml", "--set", "train.epochs=1").returncode == 0
    study.manifest.rename(study.folder / "away.toml")
    again = study("run", "small")
    assert (again.returncode, "0 of 2 runs to do" in again.stderr) == (0, True), again.stderr
    longer = study("run", "small", "--set", "train.epochs=3")
    assert (longer.returncode, study.epochs()) == (0, [[0, 1, 2]] * 2), longer.stderr
    third = study("run", "small")
    assert (third.returncode, "0 of 2 runs to do" in third.stderr) == (0, True), third.stderr
