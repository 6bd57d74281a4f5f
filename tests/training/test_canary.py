from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from seqlm.config import RunConfig
from seqlm.data.corpus import load_corpus
from seqlm.errors import DivergedError, UsageError
from seqlm.rundir import RunDirectory
from seqlm.training import worker
from seqlm.training.attempt import StopRequested
from seqlm.training.canary import UNTIMED_STEPS, canary_steps, run_canary
from seqlm.training.distributed import Rank
from seqlm.training.trainer import Trainer
from tests import commands
from tests.training.studies import make_config, make_run, write_text

KEYS = {
    *("steps", "step_seconds", "train_tokens_per_second", "peak_memory_bytes", "reserved_memory_bytes", "device"),
    *("device_memory_bytes", "ranks", "threads", "attempt", "finished_at"),
}


def trainer_for(folder: Path, config: RunConfig, *, train_lines: int = 220, **options: Any) -> Trainer:
    corpus = load_corpus(config.data, write_text(folder / "text", train_lines=train_lines))
    run = make_run(folder / "study" / "canary" / "run", config)
    return Trainer(config, corpus, run, rank=Rank(), attempt=1, **options)


def test_a_canary_writes_what_it_has_measured_and_nothing_else(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, make_config("gru", optimizer="adam"))
    before = {path.name for path in trainer.run.path.rglob("*")}
    record = run_canary(trainer, 8)
    assert {path.name for path in trainer.run.path.rglob("*")} - before == {"canary.json"}
    assert trainer.run.read_canary() == record
    assert record.keys() == KEYS
    assert (record["steps"], record["ranks"], record["device_memory_bytes"]) == (8, 1, None)
    assert record["train_tokens_per_second"] == pytest.approx(5 * 8 / record["step_seconds"])
    assert record["peak_memory_bytes"] > 10 * 2**20
    assert trainer.run.observe().state == "done"


def test_its_steps_are_the_first_of_the_training(tmp_path: Path) -> None:
    config = make_config("gru", keep=0.5, epochs=1)
    tried, trained = trainer_for(tmp_path / "a", config), trainer_for(tmp_path / "b", config)
    tried.try_steps(tried._steps, 1)
    trained.train()
    for name, parameter in trained._files.load(trained.run.last_checkpoint).model.items():
        assert torch.equal(parameter, tried.model.state_dict()[name]), name


def test_a_text_with_fewer_windows_is_begun_again(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, make_config(), train_lines=20)
    assert trainer._steps < 8
    assert len(trainer.try_steps(8, 1)) == 8


def test_the_median_leaves_out_the_steps_that_warm_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_for(tmp_path, make_config())
    monkeypatch.setattr(Trainer, "try_steps", lambda self, steps, windows: [100.0] * UNTIMED_STEPS + [1.0, 2.0, 9.0])
    assert run_canary(trainer, UNTIMED_STEPS + 3)["step_seconds"] == 2.0


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_rate_that_no_training_survives_is_diverged(tmp_path: Path, optimizer: str) -> None:
    trainer = trainer_for(tmp_path, make_config("gru", optimizer=optimizer, lr=3e38))
    with pytest.raises(DivergedError):
        run_canary(trainer, 8)
    assert not trainer.run.canary_file.exists()


def test_a_last_step_that_ruins_the_parameters_shows_in_the_validation_loss(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, make_config("gru", lr=3e38))
    with pytest.raises(DivergedError, match="after 1 steps the validation loss"):
        trainer.try_steps(1, 1)


def test_a_canary_stops_between_two_steps(tmp_path: Path) -> None:
    taken: list[None] = []

    def take(*arguments: Any) -> Any:
        taken.append(None)
        if len(taken) == 2:
            trainer.stop.request()
        return step(*arguments)

    trainer = trainer_for(tmp_path, make_config())
    step, trainer.step = trainer.step, take  # type: ignore[assignment]
    with pytest.raises(StopRequested):
        run_canary(trainer, 8)
    assert len(taken) == 2
    assert not trainer.run.canary_file.exists()


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
    trainer = trainer_for(tmp_path, make_config())
    monkeypatch.setenv("SEQLM_CANARY", "5")
    monkeypatch.setenv("SEQLM_DATA", str(tmp_path / "text"))
    monkeypatch.setenv("SEQLM_DEVICE", "cpu")
    for attempt in (1, 2):
        assert worker.main([str(trainer.run.path)]) == 0
        record = trainer.run.read_canary()
        assert record is not None
        assert record["attempt"] == attempt
        assert not trainer.run.metrics_file.exists()


@pytest.mark.process
def test_all_ranks_take_part(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, make_config())
    env = {
        **os.environ,
        "SEQLM_CANARY": "8",
        "SEQLM_DATA": str(tmp_path / "text"),
        "SEQLM_DEVICE": "cpu",
        "SEQLM_ATTEMPT": "1",
        "SEQLM_RENDEZVOUS": (tmp_path / "meeting").as_uri(),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, "-m", "seqlm.training.worker", str(trainer.run.path)]
    ranks = [commands.start(command, env={**env, "RANK": str(rank), "WORLD_SIZE": "2"}) for rank in range(2)]
    errors = [commands.finish(process)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], errors
    assert json.loads(trainer.run.canary_file.read_text())["ranks"] == 2
