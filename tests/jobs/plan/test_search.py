"""What ``plan`` expects of a search."""

import itertools
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import launch
from jobs.plan.planned import PlannedRun
from jobs.plan.search import expectation, expected_to_pass
from jobs.spec import RunSpec
from seqlm.config import RunConfig
from seqlm.files import write_json, write_json_lines
from seqlm.records.runs import Provenance
from seqlm.rundir import RunDirectory
from seqlm.search import Search, goes_on, never_stops
from tests.facts import stop
from tests.fakes import make_planned
from tests.seqlm.training.studies import make_config
from tests.small_study import Study

EPOCHS = 10


@pytest.mark.parametrize("min_runs", [1, 3, 9])
@pytest.mark.parametrize("keep", [0.25, 0.33, 0.5, 0.9])
@pytest.mark.parametrize("before", [0, 2])
def test_the_expected_number_is_the_mean_over_all_orders(keep: float, min_runs: int, before: int) -> None:
    passed = []
    for order in itertools.permutations(range(6)):
        reached = [list(map(float, order[: number + 1])) for number in range(before, 6)]
        passed.append(sum(goes_on(found[-1], found, keep=keep, min_runs=min_runs) for found in reached))
    expected = expected_to_pass(Search(rungs=(1,), keep=keep, min_runs=min_runs), before, 6 - before)
    assert expected == pytest.approx(statistics.mean(passed))


def planned(number: int, arch: str = "rnn", *, first_seed: int | None = None, **changes: Any) -> PlannedRun:
    config = make_config(arch, seed=number, epochs=EPOCHS)
    spec = RunSpec(name=f"run{number}", config=config, order=number, first_seed=first_seed)
    return replace(make_planned(spec, 100.0), **changes)


def test_each_run_is_expected_to_train_the_epochs_that_the_rungs_leave_to_it() -> None:
    search = Search(rungs=(2, 5), keep=0.5, min_runs=1, within=("model.arch",))
    items = [*(planned(number) for number in range(8)), *(planned(number, "gru") for number in range(8, 11))]
    found = expectation(search, items)
    of_eight, of_three = expected_to_pass(search, 0, 8), expected_to_pass(search, 0, 3)
    assert found.reach[2] == 11
    assert found.go_on[2] == pytest.approx(of_eight + of_three) == pytest.approx(found.reach[5])
    for item in items:
        first = (of_eight / 8) if item.spec.config.model.kind == "rnn" else of_three / 3
        assert 2 + first * 3 < EPOCHS * found.shares[item.run.id] < 2 + first * 8
    shortened = found.shortened(items)
    assert sum(item.seconds or 0 for item in shortened) == pytest.approx(100 * sum(found.shares.values()))
    assert expectation(replace(search, min_runs=100), items).shares == dict.fromkeys(found.shares, 1.0)


def test_runs_that_were_at_a_rung_count_there_and_a_final_seed_is_as_likely_as_its_first() -> None:
    search = Search(rungs=(2,), keep=0.5, min_runs=1)
    first = planned(0)
    final = planned(100, first_seed=0, after=first.run)
    found = expectation(search, [first, final])
    assert found.reach[2] == found.shares[first.run.id] == found.shares[final.run.id] == 1
    gone = [planned(number, action="skip") for number in range(1, 9)]
    gone = [replace(item, observation=replace(item.observation, epoch=EPOCHS - 1, state="done")) for item in gone]
    found = expectation(search, [first, final, *gone])
    assert found.go_on[2] == pytest.approx(expected_to_pass(search, 8, 1)) == found.shares[final.run.id]
    assert EPOCHS * found.shares[first.run.id] == pytest.approx(2 + 8 * found.shares[final.run.id])


def test_a_rule_that_can_stop_no_run_is_found() -> None:
    configs = [make_config(arch, seed=seed, epochs=EPOCHS) for arch in ("rnn", "gru") for seed in range(4)]
    grouped = Search(rungs=(2,), min_runs=5, within=("model.arch",))
    assert never_stops(grouped, configs)
    assert not never_stops(replace(grouped, within=()), configs)
    assert not never_stops(replace(grouped, min_runs=4), configs)
    assert never_stops(replace(grouped, min_runs=4), [config.with_epochs(2) for config in configs])
    assert never_stops(replace(grouped, min_runs=1, keep=0.9), configs)


def test_plan_has_the_total_with_the_rule_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    study = Study(tmp_path, rates=[0.1, 0.2, 0.3, 0.4], epochs=EPOCHS)
    study.write("[resources]", "cpus = 1", "gpus = 0")

    def ask(*words: str) -> dict[str, Any]:
        assert launch.main(["plan", "small.toml", "--json", *words]) == 0
        data: dict[str, Any] = json.loads(capsys.readouterr().out)["data"]
        return data

    record = ask()["runs"][0]
    run = RunDirectory(Path(record["directory"]).with_name("other-0000000a"))
    run.create(RunConfig.from_dict({**record["config"], "seed": 5}), Provenance(name="other"))
    write_json_lines(run.metrics_file, [{"epoch": 0, "val_ppl": 9.0, "train_tokens_per_second": 1.0}])
    run.path.parent.joinpath("study.json").write_text("{}")
    assert ask()["expected"] is None
    data = ask("--set", "search.rungs=[1]", "--set", "search.min_runs=1")
    assert 0 < data["expected"]["wall_seconds"] < data["totals"]["wall_seconds"]
    (rung,) = data["expected"]["rungs"]
    assert (rung["epochs"], rung["reach"]) == (1, 4)
    assert 1 < rung["go_on"] < 4
    assert not math.isnan(data["totals"]["wall_seconds"])
    assert launch.main(["plan", "small.toml", "--set", "search.rungs=[1]", "--set", "policy.core_hours=1"]) == 0
    printed = capsys.readouterr().out
    assert "at most" in printed


def test_plan_and_run_choose_runs_by_their_state_and_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Study(tmp_path, rates=[0.1, 0.2, 0.3], epochs=EPOCHS)

    def ask(command: str, *words: str) -> list[str]:
        assert launch.main([command, "small.toml", "--json", *words]) == 0
        return [run["name"] for run in json.loads(capsys.readouterr().out)["data"]["runs"]]

    every = ask("plan")
    assert ask("plan", "--only", "state=pending") == every, "before the first launch"
    assert launch.main(["plan", "small.toml", "--json"]) == 0
    good, stopped, _ = json.loads(capsys.readouterr().out)["data"]["runs"]
    for record, value in ((good, 5.0), (stopped, 9.0)):
        run = RunDirectory(Path(record["directory"]))
        run.create(RunConfig.from_dict(record["config"]), Provenance(name=record["name"]))
        write_json_lines(run.metrics_file, [{"epoch": 0, "val_ppl": value}])
        run.attempt_dir(1).mkdir(parents=True)
        if record is good:
            write_json(run.result_file, {"epochs": EPOCHS, "best_val_ppl": value, "test_ppl": 6.0})
        else:
            stop(run, {"rung": 1, "rank": 2, "of": 2})
    (tmp_path / "runs/small/study.json").write_text("{}")
    chosen = {
        "state=done": [0],
        "state=stopped": [1],
        "state=pending": [2],
        "val_ppl<8": [0],
        "val_ppl>8": [1],
        "val_ppl=none": [2],
        "test_ppl<7 state=done": [0],
        "epochs_done>=1": [0, 1],
        "lr>0.15 epochs_done=0": [2],
    }
    for text, places in chosen.items():
        assert ask("plan", "--only", text) == [every[place] for place in places], text
    assert ask("run", "--dry-run", "--only", "state=done") == every[:1]
    assert ask("plan", "--exclude", "state=stopped") == [every[0], every[2]]
    assert launch.main(["plan", "small.toml", "--only", "state=finished"]) == 2
