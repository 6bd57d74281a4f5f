"""The files of a run's checkpoints, written and read without a trainer."""

from __future__ import annotations

import errno
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from seqlm.errors import CheckpointError, DamagedError, FileError, LeaseLostError
from seqlm.files import Guard
from seqlm.rundir import RunDirectory
from seqlm.training import checkpoint_files
from seqlm.training.checkpoint import Checkpoint, Position
from seqlm.training.checkpoint_files import CheckpointFiles
from tests.training.studies import make_config, make_run

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


def files_of(run: RunDirectory, *, attempt: int = 1, **options: Any) -> CheckpointFiles:
    options = {"fingerprint": CONFIG.fingerprint(), "corpus_sha256": TEXT, **options}
    return CheckpointFiles(run, attempt=attempt, **options)


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


def test_a_run_without_checkpoints_has_none_to_go_on_from(run: RunDirectory) -> None:
    assert files_of(run).load_last() is None


def test_the_second_of_two_saves_keeps_the_first_as_the_previous_checkpoint(run: RunDirectory) -> None:
    files = files_of(run)
    files.save(checkpoint(1.0))
    assert names(run) == ["last.pt", "position.json"]
    files.save(checkpoint(2.0, epoch=2))
    assert names(run) == ["last.pt", "position.json", "previous.pt"]
    assert (weight(run.last_checkpoint), weight(run.previous_checkpoint)) == (2.0, 1.0)
    found = files.load_last()
    assert found is not None
    assert (found[0], found[1].position.epoch) == (run.last_checkpoint, 2)


def test_a_checkpoint_that_was_not_read_back_never_becomes_the_previous_one(run: RunDirectory) -> None:
    files = files_of(run)
    for value, read_back in ((1.0, True), (2.0, False), (3.0, True)):
        files.save(checkpoint(value), read_back=read_back)
    assert (weight(run.last_checkpoint), weight(run.previous_checkpoint)) == (3.0, 1.0)


def test_a_damaged_last_checkpoint_that_gave_way_does_not_overwrite_the_previous_one(run: RunDirectory) -> None:
    files = files_of(run)
    files.save(checkpoint(1.0), is_best=True)
    files.save(checkpoint(2.0))
    run.last_checkpoint.write_bytes(b"damaged")
    warnings: list[str] = []
    again = files_of(run, warn=warnings.append)
    found = again.load_last()
    assert found is not None
    assert (found[0], float(found[1].model["weight"][0])) == (run.previous_checkpoint, 1.0)
    (line,) = warnings
    assert line.startswith(f"{run.last_checkpoint} is truncated")
    assert line.endswith("; going on from previous.pt, the checkpoint before it")
    again.save(checkpoint(3.0), read_back=False)
    assert weight(run.previous_checkpoint) == 1.0


def test_a_missing_last_checkpoint_gives_way_to_the_previous_one(run: RunDirectory) -> None:
    files = files_of(run)
    files.save(checkpoint(1.0))
    files.save(checkpoint(2.0))
    run.last_checkpoint.unlink()
    found = files_of(run, warn=lambda line: None).load_last()
    assert found is not None
    assert found[0] == run.previous_checkpoint


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
    files.save(checkpoint(1.0), is_best=True)
    files.save(checkpoint(2.0))
    best, last = files.load(run.best_checkpoint), files.load(run.last_checkpoint)
    assert (best.optimizer, float(best.model["weight"][0])) == (None, 1.0)
    assert last.optimizer == {"state": {}, "param_groups": [{"lr": 0.1}]}


def test_the_last_checkpoint_is_in_place_before_the_best_one(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[str] = []
    monkeypatch.setattr(checkpoint_files, "save_checkpoint", lambda path, *_, **__: saved.append(path.name))
    files_of(run).save(checkpoint(1.0), is_best=True, read_back=False)
    assert saved == ["last.pt", "best.pt"]


def test_metrics_are_written_at_the_end_of_an_epoch_alone(run: RunDirectory) -> None:
    files = files_of(run)
    files.save(checkpoint(1.0, epoch=1, step=7))
    assert run.read_metrics()[0] == []
    files.save(checkpoint(1.0, epoch=2, step=0))
    assert run.read_metrics()[0] == checkpoint(1.0, epoch=2).history


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
    files.save(checkpoint(1.0), is_best=True)
    files.save(checkpoint(2.0))
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    guard.lost = True
    for change in (
        lambda: files.save(checkpoint(3.0)),
        lambda: files.save(checkpoint(3.0), is_best=True),
        lambda: files.write_metrics([]),
        files.drop_previous,
    ):
        with pytest.raises(LeaseLostError):
            change()
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_every_file_of_a_save_is_guarded(run: RunDirectory) -> None:
    guard = Guarded()
    files_of(run, guard=guard).save(checkpoint(1.0), is_best=True)
    assert guard.calls == 4, "last.pt, best.pt, metrics.jsonl and position.json"


def test_a_checkpoint_that_reads_back_wrong_is_one_line_and_never_becomes_the_previous_one(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_badly(path: Path, _: Checkpoint, *, guard: Guard) -> None:
        guard()
        path.unlink()  # the file is previous.pt by now, too
        path.write_bytes(b"x")

    files = files_of(run)
    files.save(checkpoint(1.0))
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_files, "save_checkpoint", write_badly)
        with pytest.raises(FileError) as caught:
            files.save(checkpoint(2.0))
    expected = f"{run.last_checkpoint} is truncated or not a seqlm checkpoint, right after it was written; "
    assert str(caught.value) == f"{expected}is the disk failing?"
    files.save(checkpoint(3.0))
    assert weight(run.previous_checkpoint) == 1.0


def test_the_previous_checkpoint_of_a_run_that_is_done_goes(run: RunDirectory) -> None:
    files = files_of(run)
    files.drop_previous()  # nothing to remove is no error
    files.save(checkpoint(1.0))
    files.save(checkpoint(2.0))
    files.drop_previous()
    assert names(run) == ["last.pt", "position.json"]


def test_last_pt_exists_at_every_moment_of_a_save_where_files_may_have_two_names(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(run)
    files.save(checkpoint(1.0))
    replace, seen = os.replace, []

    def watched(source: Path, target: Path) -> None:
        seen.append(run.last_checkpoint.exists())
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    monkeypatch.setattr(Path, "replace", watched)
    files.save(checkpoint(2.0))
    assert len(seen) >= 2
    assert all(seen)


def test_a_link_left_by_a_killed_worker_is_not_taken_for_the_previous_checkpoint(run: RunDirectory) -> None:
    files = files_of(run)
    files.save(checkpoint(1.0))
    (run.previous_checkpoint.parent / ".previous.pt.tmp").write_bytes(b"of another time")
    files.save(checkpoint(2.0))
    assert weight(run.previous_checkpoint) == 1.0
    assert names(run) == ["last.pt", "position.json", "previous.pt"]


def test_where_files_have_one_name_only_the_last_checkpoint_is_moved(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    files = files_of(run)
    files.save(checkpoint(1.0))
    files.save(checkpoint(2.0))
    assert (weight(run.last_checkpoint), weight(run.previous_checkpoint)) == (2.0, 1.0)


def test_a_worker_killed_between_the_two_renamings_leaves_no_link_to_its_successor(run: RunDirectory) -> None:
    """``last.pt`` and ``previous.pt`` are then one file, and renaming one name of a file to another does nothing."""
    files_of(run).save(checkpoint(1.0))
    run.previous_checkpoint.hardlink_to(run.last_checkpoint)
    files = files_of(run, attempt=2)
    assert files.load_last() is not None
    files.save(checkpoint(2.0, epoch=2))
    assert names(run) == ["best.pt", "last.pt", "position.json", "previous.pt"]
    assert (weight(run.last_checkpoint), weight(run.previous_checkpoint)) == (2.0, 1.0)


def test_a_last_checkpoint_that_was_loaded_becomes_the_previous_one_of_the_next_save(run: RunDirectory) -> None:
    files_of(run).save(checkpoint(1.0), read_back=False)
    files = files_of(run, attempt=2)
    assert files.load_last() is not None
    files.save(checkpoint(2.0), read_back=False)
    assert weight(run.previous_checkpoint) == 1.0


def test_a_checkpoint_that_was_passed_over_is_one_line_on_standard_error_unless_somebody_else_listens(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    files = files_of(run)
    files.save(checkpoint(1.0), is_best=True)
    files.save(checkpoint(2.0))
    run.last_checkpoint.write_bytes(b"damaged")
    files_of(run).load_last()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"warning: {run.last_checkpoint} is truncated")
    assert said.err.count("\n") == 1
