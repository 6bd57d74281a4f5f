from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.attempt.attempt import micro_batches
from seqlm.data.layout import own_columns
from seqlm.ends import most_micro_batches
from seqlm.environment import MICRO_BATCHES
from seqlm.models.language_model import FusedModel
from seqlm.records.attempts import Exit, RankEnd
from seqlm.records.runs import Result
from seqlm.rundir import RunDirectory
from seqlm.training import worker
from seqlm.training.attempt import StopSignal
from tests.seqlm.training.studies import make_config, make_run, write_text


def end(run: RunDirectory, attempt: int, kind: str, parts: int) -> None:
    run.write_exit(attempt, Exit(kind=kind, message="x", micro_batches=parts))


@pytest.mark.parametrize(("batch_size", "ranks", "most"), [(8, 1, 8), (20, 1, 16), (20, 3, 4), (20, 20, 1), (7, 2, 2)])
def test_every_part_of_every_rank_has_a_column(batch_size: int, ranks: int, most: int) -> None:
    assert most_micro_batches(batch_size, ranks) == most
    assert min(len(own_columns(batch_size, rank, ranks)) for rank in range(ranks)) >= most


def test_a_run_keeps_its_number_and_doubles_it_where_memory_was_short(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", make_config())
    assert micro_batches(run, 8, 1) == 1
    end(run, 1, "oom", 1)
    assert micro_batches(run, 8, 1) == 2
    end(run, 2, "node", 2)
    assert micro_batches(run, 8, 1) == 2, "a lost node says nothing about memory"
    end(run, 3, "oom", 2)
    assert micro_batches(run, 8, 1) == 4
    assert micro_batches(run, 8, 4) == 2, "no more than a rank has columns"
    assert micro_batches(run, 8, 1) == 4


def test_a_run_that_had_no_memory_before_its_first_batch_keeps_its_number(tmp_path: Path) -> None:
    """The parts of a step had none of it."""
    run = make_run(tmp_path / "run", make_config())
    run.write_end(1, RankEnd(outcome="failed", kind="oom", message="x", micro_batches=2, before_batch=True))
    assert micro_batches(run, 8, 1) == 2


def test_a_canary_has_the_number_of_the_run_that_it_stands_for(tmp_path: Path) -> None:
    """So that `retry --kind oom` of many runs is not stopped by a canary that fails as they did."""
    run, canary = make_run(tmp_path / "run", make_config()), make_run(tmp_path / "canary" / "run", make_config())
    end(canary, 1, "oom", 1)
    assert micro_batches(canary, 8, 1) == 1, "its own failures count for nothing"
    end(run, 1, "oom", 2)
    assert micro_batches(canary, 8, 1) == 4, "though the run is not launched yet"


def test_a_behaviour_job_takes_no_steps_and_has_one(tmp_path: Path) -> None:
    behaviour = make_run(tmp_path / "behaviour" / "run", make_config())
    behaviour.task_file.write_text("{}")
    end(behaviour, 1, "oom", 1)
    assert micro_batches(behaviour, 8, 1) == 1


@pytest.mark.slow
def test_the_trainer_short_of_memory_ends_done_with_four_micro_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that has room for two columns at once."""
    loss = FusedModel.loss

    def tight(model: FusedModel, tokens: torch.Tensor, *rest: Any) -> Any:
        if 2 < tokens.shape[1] <= 8:  # the batch; the self-check has more columns
            torch.empty(2**50)
        return loss(model, tokens, *rest)

    run = make_run(tmp_path / "run", make_config(epochs=1))
    monkeypatch.setattr(FusedModel, "loss", tight)
    monkeypatch.setattr(StopSignal, "install", lambda self: None)
    monkeypatch.setenv("SEQLM_DATA", str(write_text(tmp_path / "text")))
    monkeypatch.setenv("SEQLM_DEVICE", "cpu")
    for _ in range(3):
        monkeypatch.setenv(MICRO_BATCHES.name, str(micro_batches(run, 8, 1)))
        worker.main([str(run.path)])
    assert (run.read_result() or Result()).micro_batches == 4
    assert [(failed.kind, failed.micro_batches) for failed in run.failures()] == [("oom", 1), ("oom", 2)]
