"""The files of a run's checkpoints, written and read without a trainer."""

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from seqlm.errors import CheckpointError, DamagedError, FileError, LeaseLostError
from seqlm.files import Guard, unguarded
from seqlm.rundir import RunDirectory
from seqlm.training.attempt import Attempt
from seqlm.training.checkpoint import Checkpoint, Position, weights_digest
from seqlm.training.checkpoint_files import CheckpointFiles
from seqlm.training.distributed import Rank
from tests.seqlm.training.studies import make_config, make_run

CONFIG = make_config()
TEXT = "c" * 64


class Guarded:
    """A guard that counts its calls and refuses once told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.lost = False

    def __call__(self) -> None:
        self.calls += 1
        if self.lost:
            raise LeaseLostError("taken over")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path / "run", CONFIG)


def files_of(run: RunDirectory, *, attempt: int = 1, guard: Guard = unguarded, **options: Any) -> CheckpointFiles:
    options = {"fingerprint": CONFIG.fingerprint(), "corpus_sha256": TEXT, **options}
    return CheckpointFiles(attempt=Attempt(run=run, rank=Rank(), number=attempt, guard=guard), **options)


def checkpoint(weight: float, *, epoch: int = 1, step: int = 0) -> Checkpoint:
    return Checkpoint(
        fingerprint=CONFIG.fingerprint(),
        corpus_sha256=TEXT,
        vocabulary=["<eos>", "the"],
        model={"weight": torch.full((3,), weight)},
        optimizer={"state": {}, "param_groups": [{"lr": 0.1}]},
        history=[{"epoch": number, "val_loss": 10.0 - number, "val_ppl": 10.0 - number} for number in range(epoch)],
        position=Position(epoch=epoch, step=step),
    )


def weight(path: Path) -> float:
    return float(torch.load(path, weights_only=True)["model"]["weight"][0])


def names(run: RunDirectory) -> list[str]:
    return sorted(path.name for path in run.last_checkpoint.parent.iterdir())


def test_the_second_of_two_saves_keeps_the_first_as_the_previous_checkpoint(run: RunDirectory) -> None:
    files = files_of(run)
    assert files.load_last() is None
    files.save(checkpoint(1.0))
    assert names(run) == ["best.pt", "last.pt", "position.json"]
    files.save(checkpoint(2.0, epoch=2))
    assert names(run) == ["best.pt", "last.pt", "position.json", "previous.pt"]
    assert (weight(run.last_checkpoint), weight(run.previous_checkpoint)) == (2.0, 1.0)
    found = files.load_last()
    assert found is not None
    assert found.position.epoch == 2


def test_a_damaged_last_checkpoint_without_a_previous_one_is_an_error(run: RunDirectory) -> None:
    files_of(run).save(checkpoint(1.0))
    run.last_checkpoint.write_bytes(b"damaged")
    with pytest.raises(DamagedError, match=r"last\.pt"):
        files_of(run).load_last()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"fingerprint": "0" * 64}, "belongs to another run"), ({"corpus_sha256": "0" * 64}, "trained on another text")],
)
def test_a_checkpoint_of_another_run_or_text_is_an_error_even_next_to_a_previous_one(
    run: RunDirectory, options: dict[str, str], words: str
) -> None:
    files = files_of(run)
    files.save(checkpoint(1.0))
    files.save(checkpoint(2.0))
    with pytest.raises(CheckpointError, match=rf"last\.pt .*{words}"):
        files_of(run, **options).load_last()


def test_the_best_checkpoint_has_the_parameters_without_the_optimizer(run: RunDirectory) -> None:
    files = files_of(run)
    files.save(checkpoint(1.0))
    files.save(checkpoint(2.0, step=3))
    best, last = files.load(run.best_checkpoint), files.load(run.last_checkpoint)
    assert (best.optimizer, float(best.model["weight"][0])) == (None, 1.0)
    assert last.optimizer == {"state": {}, "param_groups": [{"lr": 0.1}]}


def test_metrics_are_written_at_the_end_of_an_epoch_alone(run: RunDirectory) -> None:
    files = files_of(run)
    files.save(checkpoint(1.0, epoch=1, step=7))
    assert run.read_metrics()[0] == []
    files.save(checkpoint(1.0, epoch=2, step=0))
    epochs, _ = run.read_metrics()
    assert [epoch["epoch"] for epoch in epochs] == [0, 1]


def test_position_json_holds_what_the_last_checkpoint_holds(run: RunDirectory) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    files_of(run, attempt=3).save(checkpoint(1.0, epoch=4, step=7))
    record = json.loads(run.position_file.read_text())
    saved_at = datetime.fromisoformat(record.pop("saved_at"))
    assert record == {"epoch": 4, "step": 7, "attempt": 3}
    assert saved_at.tzinfo is not None
    assert saved_at.microsecond == 0
    assert before <= saved_at <= datetime.now(UTC)


def test_a_worker_that_lost_its_run_changes_none_of_its_files(run: RunDirectory) -> None:
    guard = Guarded()
    files = files_of(run, guard=guard)
    files.save(checkpoint(1.0))
    files.save(checkpoint(2.0))
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    guard.lost = True
    for change in (
        lambda: files.save(checkpoint(3.0)),
        lambda: files.write_metrics([]),
        lambda: files.finish(keep_last=False),
    ):
        with pytest.raises(LeaseLostError):
            change()
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"damaged"), Path.unlink])
def test_the_previous_checkpoint_takes_the_place_of_a_last_one_that_is_damaged_or_missing(
    run: RunDirectory, damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    files = files_of(run)
    files.save(checkpoint(1.0))
    files.save(checkpoint(2.0, step=1))
    damage(run.last_checkpoint)
    found = files.load_last()
    assert found is not None
    assert float(found.model["weight"][0]) == 1.0
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {run.last_checkpoint} is ")
    assert said.count("\n") == 1
    files.save(checkpoint(3.0))
    assert (weight(run.last_checkpoint), weight(run.previous_checkpoint)) == (3.0, 1.0)


def test_whatever_renaming_ends_a_save_there_is_a_checkpoint_to_go_on_from_and_the_best_one(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(run)
    replace = os.replace
    for number in range(1, 20):
        for path in run.last_checkpoint.parent.iterdir():
            path.unlink()
        files.save(checkpoint(1.0))
        renamed: list[Any] = []

        def kill(path: Any, target: Any, renamed: list[Any] = renamed, number: int = number, **folders: Any) -> None:
            renamed.append(path)
            if len(renamed) == number:
                raise KeyboardInterrupt
            replace(path, target, **folders)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", kill)
            with contextlib.suppress(KeyboardInterrupt):
                files.save(checkpoint(2.0, epoch=2))
        found = files.load_last()
        assert found is not None
        epoch = found.position.epoch
        assert float(files.load_best(found.history).model["weight"][0]) == epoch
        if len(renamed) < number:
            break
    assert number > 4, "last.pt twice, best.pt, metrics and position"
    assert epoch == 2


def test_a_checkpoint_that_reads_back_wrong_is_one_line_and_changes_no_file(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(run)
    files.save(checkpoint(1.0))
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    monkeypatch.setattr(torch, "save", lambda content, path: Path(path).write_bytes(b"PK"))
    with pytest.raises(
        FileError, match=r"last\.pt: it was damaged right after it was written \(no archive\); is the disk failing\?$"
    ):
        files.save(checkpoint(2.0))
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def with_epochs(run: RunDirectory, losses: list[float]) -> CheckpointFiles:
    """A run whose epochs have these validation losses, with the checkpoints of a worker that saved each of them."""
    files = files_of(run)
    history: list[dict[str, Any]] = []
    for number, loss in enumerate(losses):
        history = [*history, {"epoch": number, "val_loss": loss, "val_ppl": loss}]
        files.save(replace(checkpoint(loss, epoch=number + 1), history=history))
    return files


@pytest.mark.parametrize("losses", [[5.0, 4.0], [5.0, 4.0, 6.0]], ids=["last.pt", "previous.pt"])
@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"damaged"), Path.unlink])
def test_a_best_checkpoint_is_rebuilt_from_one_that_stands_at_the_end_of_that_epoch(
    run: RunDirectory, losses: list[float], damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    files = with_epochs(run, losses)
    damage(run.best_checkpoint)
    found = files.load_last()
    assert found is not None
    best = files.load(run.best_checkpoint)
    assert (best.history, best.optimizer, float(best.model["weight"][0])) == (found.history[:2], None, 4.0)
    said = capsys.readouterr().err
    assert said.endswith(f"; rebuilt from {'last' if len(losses) == 2 else 'previous'}.pt\n")


def test_a_best_checkpoint_of_another_attempts_epoch_is_not_taken_for_this_one(run: RunDirectory) -> None:
    files = with_epochs(run, [5.0, 4.0, 6.0])
    history = [{**epoch, "val_loss": epoch["val_loss"] / 2} for epoch in files.load(run.last_checkpoint).history]
    with pytest.raises(CheckpointError, match=r"best\.pt does not hold .* best epoch, 2; .* start this run again"):
        files.load_best(history)


def test_a_best_checkpoint_that_cannot_be_rebuilt_is_reported_when_the_run_continues(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    files = with_epochs(run, [4.0, 5.0, 6.0])
    run.best_checkpoint.unlink()
    assert files.load_last() is not None
    assert capsys.readouterr().err.endswith("best epoch, 1; this run needs a better epoch to end well\n")


def test_each_epoch_has_the_digest_of_its_weights_also_after_a_resume_and_within_the_next_epoch(
    run: RunDirectory,
) -> None:
    ended, history = [checkpoint(weight, epoch=epoch) for epoch, weight in enumerate((1.0, 2.0, 3.0), 1)], []
    for attempt, at_end in enumerate(ended, start=1):
        files = files_of(run, attempt=attempt)
        history.append(at_end.history[-1])
        files.save(replace(at_end, history=list(history)))
        within = replace(at_end, model={"weight": torch.zeros(3)}, position=Position(epoch=attempt, step=1))
        files.save(replace(within, history=list(history)))
        last = files.load_last()
        assert last is not None
        history = last.history
    expected = [weights_digest(at_end.model) for at_end in ended]
    assert [epoch["weights"] for epoch in run.read_metrics()[0]] == [epoch["weights"] for epoch in history] == expected
    best = files.load_best(history)
    assert weights_digest(best.model) == history[-1]["weights"]


def test_checkpoints_of_chosen_epochs_stay_as_they_were_also_if_the_worker_is_killed_before_it_keeps_one(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    files_of(run).save(checkpoint(1.0, epoch=1))
    assert run.kept_epochs() == [], "it was killed here"
    monkeypatch.setenv("SEQLM_KEEP_EPOCHS", "1,3,11")
    files = files_of(run)
    assert files.load_last() is not None
    for epoch, step, weights in ((1, 1, 1.5), (2, 0, 2.0), (2, 1, 2.5), (3, 0, 0.0), (3, 0, 3.0), (4, 0, 4.0)):
        files.save(checkpoint(weights, epoch=epoch, step=step))
    files.finish(keep_last=False)
    assert run.kept_epochs() == [1, 3]
    assert [weight(run.epoch_checkpoint(epoch)) for epoch in run.kept_epochs()] == [1.0, 3.0]
    assert files.load(run.epoch_checkpoint(3)).optimizer is not None, "training can go on from it"
