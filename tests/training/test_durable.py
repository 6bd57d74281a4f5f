"""Checkpoint files that are damaged, cannot be written, or cannot be read back."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from seqlm.data.corpus import Corpus, load_corpus
from seqlm.errors import CheckpointError, DamagedError, FileError
from seqlm.rundir import RunDirectory
from seqlm.training import checkpoint_files
from seqlm.training.attempt import StopRequested, StopSignal
from seqlm.training.distributed import Rank
from seqlm.training.trainer import Trainer
from tests.outcome import Outcome, outcome
from tests.training.studies import make_config, make_run, write_text

CONFIG = make_config("gru", optimizer="adam", lr=0.01, epochs=3, keep=0.7)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load_corpus(CONFIG.data, write_text(tmp_path_factory.mktemp("text")))


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> Outcome:
    folder = tmp_path_factory.mktemp("quiet") / "run"
    trainer_for(folder, corpus).train()
    return outcome(RunDirectory(folder))


def trainer_for(folder: Path, corpus: Corpus, *, attempt: int = 1, stop_after: int | None = None) -> Trainer:
    stop = StopSignal()
    trainer = Trainer(CONFIG, corpus, make_run(folder, CONFIG), rank=Rank(), attempt=attempt, stop=stop)
    step, taken = trainer.step, iter(range(1, 10_000))

    def take(*arguments: Any) -> Any:
        if next(taken) == stop_after:
            stop.request()
        return step(*arguments)

    trainer.step = take  # type: ignore[assignment]
    return trainer


def stopped(folder: Path, corpus: Corpus, after: int = 50) -> RunDirectory:
    """A run that was stopped in its second epoch: the end of the first is in ``previous.pt``. Trained once."""
    if after not in _stopped:
        _stopped[after] = folder.parent / "stopped" / folder.name
        with pytest.raises(StopRequested):
            trainer_for(_stopped[after], corpus, stop_after=after).train()
    shutil.copytree(_stopped[after], folder)
    return RunDirectory(folder)


_stopped: dict[int, Path] = {}
"""Steps before it was stopped -> such a run."""


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 200):  # more than lies between two tensors of the file
        content[place] ^= 0x10
    path.write_bytes(content)


def zero_the_end(path: Path) -> None:
    """What a power cut leaves where the length of a file was written before its blocks."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


@pytest.mark.parametrize("damage", [cut, empty, flip, zero_the_end, Path.unlink])
def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, corpus: Corpus, quiet: Outcome, capsys: pytest.CaptureFixture[str], damage: Any
) -> None:
    run = stopped(tmp_path / "run", corpus)
    damage(run.last_checkpoint)
    trainer_for(run.path, corpus, attempt=2).train()
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert said.err.startswith(f"warning: {run.last_checkpoint} ")
    assert "going on from previous.pt, the checkpoint before it" in said.err
    assert "resumed after 1 of 3 epochs\n" in said.out
    assert outcome(run) == quiet


def test_the_metrics_of_a_run_that_goes_back_an_epoch_hold_each_epoch_once(
    tmp_path: Path, corpus: Corpus, quiet: Outcome
) -> None:
    run = stopped(tmp_path / "run", corpus, after=36)  # the second epoch has just begun
    trainer = trainer_for(run.path, corpus, attempt=2, stop_after=36)
    with pytest.raises(StopRequested):
        trainer.train()
    assert [epoch["epoch"] for epoch in run.read_metrics()[0]] == [0, 1]
    cut(run.last_checkpoint)
    run.previous_checkpoint.replace(tmp_path / "end-of-second")
    with pytest.raises(CheckpointError):
        trainer_for(run.path, corpus, attempt=3).train()
    (tmp_path / "end-of-second").replace(run.previous_checkpoint)
    trainer_for(run.path, corpus, attempt=4).train()
    assert outcome(run) == quiet


def test_two_damaged_checkpoints_are_one_line_and_nothing_is_begun_anew(tmp_path: Path, corpus: Corpus) -> None:
    run = stopped(tmp_path / "run", corpus)
    cut(run.last_checkpoint)
    cut(run.previous_checkpoint)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(DamagedError, match=r"previous\.pt is truncated .* move .*checkpoints away to start"):
        trainer_for(run.path, corpus, attempt=2).train()
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_a_checkpoint_of_another_run_is_no_reason_to_go_back(tmp_path: Path, corpus: Corpus) -> None:
    run = stopped(tmp_path / "run", corpus)
    other = make_config("gru", optimizer="adam", lr=0.02, epochs=3, keep=0.7)
    trainer = Trainer(other, corpus, make_run(tmp_path / "other", other), rank=Rank(), attempt=1)
    trainer.train()
    run.last_checkpoint.write_bytes(trainer.run.last_checkpoint.read_bytes())
    with pytest.raises(CheckpointError, match="belongs to another run"):
        trainer_for(run.path, corpus, attempt=2).train()


def test_the_checkpoint_before_is_kept_until_the_new_one_has_been_read_back(tmp_path: Path, corpus: Corpus) -> None:
    """A stop has no time to read back: what it wrote replaces nothing but what it goes on from."""
    run = stopped(tmp_path / "run", corpus)
    end_of_first = run.previous_checkpoint.read_bytes()
    written = run.last_checkpoint.read_bytes()
    other = checkpoint_files.CheckpointFiles(
        run, fingerprint=CONFIG.fingerprint(), corpus_sha256=corpus.sha256, attempt=2
    )
    checkpoint = other.load(run.last_checkpoint)
    unread = checkpoint_files.CheckpointFiles(
        run, fingerprint=CONFIG.fingerprint(), corpus_sha256=corpus.sha256, attempt=2
    )
    unread.save(checkpoint, read_back=False)
    assert run.previous_checkpoint.read_bytes() == end_of_first, "nobody of this process has read last.pt"
    assert other.load_last() is not None
    written = run.last_checkpoint.read_bytes()
    other.save(checkpoint, read_back=False)
    assert run.previous_checkpoint.read_bytes() == written, "it has been read whole, and steps back"


def test_a_file_that_reads_back_wrong_stops_the_run_with_the_one_before_intact(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, quiet: Outcome
) -> None:
    save = checkpoint_files.save_checkpoint

    def write_badly(path: Path, *arguments: Any, **options: Any) -> None:
        save(path, *arguments, **options)
        if path.name == "last.pt" and run.previous_checkpoint.exists():
            flip(path)

    run = stopped(tmp_path / "run", corpus, after=2)
    monkeypatch.setattr(checkpoint_files, "save_checkpoint", write_badly)
    with pytest.raises(FileError, match="right after it was written; is the disk failing"):
        trainer_for(run.path, corpus, attempt=2).train()
    monkeypatch.undo()
    trainer_for(run.path, corpus, attempt=3).train()
    assert outcome(run) == quiet


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_takes_no_more_ends_the_run_at_the_next_step_with_the_last_good_checkpoint(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, quiet: Outcome, code: int
) -> None:
    run = stopped(tmp_path / "run", corpus, after=40)
    before = run.last_checkpoint.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(torch, "save", full)
    trainer = trainer_for(run.path, corpus, attempt=2)
    with pytest.raises(FileError, match=os.strerror(code)):
        trainer.train()
    assert trainer._epoch == 2, "while the next epoch was under way"
    assert run.last_checkpoint.read_bytes() == before
    assert not list(run.path.rglob("*.tmp"))
    monkeypatch.undo()
    trainer_for(run.path, corpus, attempt=3).train()
    assert outcome(run) == quiet


def test_where_files_have_one_name_only_the_checkpoint_before_is_kept_too(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    run = stopped(tmp_path / "run", corpus)
    files = checkpoint_files.CheckpointFiles(
        run, fingerprint=CONFIG.fingerprint(), corpus_sha256=corpus.sha256, attempt=2
    )
    assert files.load(run.previous_checkpoint).position.epoch == 1
    assert files.load(run.last_checkpoint).position.step > 0


def test_a_run_that_is_done_keeps_two_checkpoints(tmp_path: Path, corpus: Corpus) -> None:
    run = stopped(tmp_path / "run", corpus)
    trainer_for(run.path, corpus, attempt=2).train()
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == ["best.pt", "last.pt", "position.json"]


def test_a_best_checkpoint_of_another_epoch_is_not_taken_for_the_best(tmp_path: Path, corpus: Corpus) -> None:
    run = stopped(tmp_path / "run", corpus)
    first = run.best_checkpoint.read_bytes()
    trainer_for(run.path, corpus, attempt=2).train()
    run.result_file.unlink()
    run.best_checkpoint.write_bytes(first)
    with pytest.raises(CheckpointError, match=r"best\.pt holds epoch 1, the best of this run is epoch 2"):
        trainer_for(run.path, corpus, attempt=3).train()
