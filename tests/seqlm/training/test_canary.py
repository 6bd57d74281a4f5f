import itertools
import json
import sys
import time
from pathlib import Path

import pytest
import torch

from seqlm.config import RunConfig
from seqlm.data.corpus import load_corpus
from seqlm.errors import DivergedError, UsageError
from seqlm.records.runs import CanaryResult
from seqlm.rundir import RunDirectory
from seqlm.training import worker
from seqlm.training.attempt import StopRequested
from seqlm.training.train import UNTIMED_STEPS, canary_steps, run_canary
from tests import commands
from tests.seqlm.training.studies import Attempt, make_config, make_run, write_text
from tests.seqlm.training.test_distributed import env_of_two


def attempt_at(folder: Path, config: RunConfig, *, train_lines: int = 60) -> Attempt:
    corpus = load_corpus(config.data, write_text(folder / "text", train_lines=train_lines))
    return Attempt(make_run(folder / "study" / "canary" / "run", config), corpus, attempt=1)


def try_steps(attempt: Attempt, steps: int) -> CanaryResult:
    return run_canary(attempt.trainer, attempt.made, steps)


def test_a_canary_writes_what_it_has_measured_and_nothing_else(tmp_path: Path) -> None:
    attempt = attempt_at(tmp_path, make_config("gru", optimizer="adam"))
    before = {path.name for path in attempt.run.path.rglob("*")}
    record = try_steps(attempt, 8)
    assert {path.name for path in attempt.run.path.rglob("*")} - before == {"canary.json"}
    assert attempt.run.read_canary() == record
    assert (record.steps, record.ranks, record.device_memory_bytes) == (8, 1, None)
    assert record.train_tokens_per_second == pytest.approx(5 * 8 / record.step_seconds)
    assert record.peak_memory_bytes > 10 * 2**20
    assert attempt.run.observe().state == "done"


def test_its_steps_are_the_first_of_the_training(tmp_path: Path) -> None:
    config = make_config("gru", keep=0.5, epochs=1)
    tried, trained = attempt_at(tmp_path / "a", config), attempt_at(tmp_path / "b", config)
    try_steps(tried, tried.trainer.steps)
    trained.train()
    for name, parameter in trained.trainer.model.state_dict().items():
        assert torch.equal(parameter, tried.trainer.model.state_dict()[name]), name


def test_a_text_with_fewer_windows_is_begun_again(tmp_path: Path) -> None:
    attempt, taken = attempt_at(tmp_path, make_config(epochs=1), train_lines=20), list[int]()
    assert attempt.trainer.steps < 8
    attempt.before_each_step(taken.append)
    try_steps(attempt, 8)
    assert taken == [*range(1, 9)]


def test_the_median_leaves_out_the_steps_that_warm_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt, clock = attempt_at(tmp_path, make_config()), itertools.count()
    seconds = [100] * UNTIMED_STEPS + [1, 2, 9]
    attempt.before_each_step(lambda number: [next(clock) for _ in range(seconds[number - 1] - 1)])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert try_steps(attempt, len(seconds)).step_seconds < 50


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_rate_that_no_training_survives_is_diverged(tmp_path: Path, optimizer: str) -> None:
    attempt = attempt_at(tmp_path, make_config("gru", optimizer=optimizer, lr=3e38))
    with pytest.raises(DivergedError):
        try_steps(attempt, 8)
    assert not attempt.run.canary_file.exists()


def test_a_canary_stops_between_two_steps(tmp_path: Path) -> None:
    attempt, taken = attempt_at(tmp_path, make_config()), list[int]()
    attempt.before_each_step(taken.append).stop_after(2)
    with pytest.raises(StopRequested):
        try_steps(attempt, 8)
    assert taken == [1, 2]
    assert not attempt.run.canary_file.exists()


def test_a_variable_left_in_the_shell_cuts_no_run_short(tmp_path: Path) -> None:
    env = {"SEQLM_CANARY": "8"}
    assert canary_steps(RunDirectory(tmp_path / "study" / "run"), env) is None
    folder = RunDirectory.canary(tmp_path / "study", "run")
    assert canary_steps(folder, env) == 8
    assert canary_steps(folder, {}) is None


@pytest.mark.parametrize("text", ["many", "-1", "0", "4"])
def test_a_wrong_number_of_steps_is_one_clear_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=f'SEQLM_CANARY: expected a whole number above 4, got "{text}"'):
        canary_steps(RunDirectory.canary(tmp_path, "run"), {"SEQLM_CANARY": text})


def test_the_worker_takes_a_canary_as_often_as_it_is_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = attempt_at(tmp_path, make_config())
    monkeypatch.setenv("SEQLM_CANARY", "5")
    monkeypatch.setenv("SEQLM_DATA", str(tmp_path / "text"))
    monkeypatch.setenv("SEQLM_DEVICE", "cpu")
    for number in (1, 2):
        assert worker.main([str(attempt.run.path)]) == 0
        record = attempt.run.read_canary()
        assert record is not None
        assert record.attempt == number
        assert not attempt.run.metrics_file.exists()


@pytest.mark.process
def test_all_ranks_take_part(tmp_path: Path) -> None:
    attempt = attempt_at(tmp_path, make_config())
    env = env_of_two(tmp_path, SEQLM_CANARY="8")
    command = [sys.executable, "-m", "seqlm.training.worker", str(attempt.run.path)]
    ranks = [commands.start(command, env={**env, "RANK": str(rank)}) for rank in range(2)]
    errors = [commands.finish(process)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], errors
    assert json.loads(attempt.run.canary_file.read_text())["ranks"] == 2
