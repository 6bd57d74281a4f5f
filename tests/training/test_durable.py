"""Checkpoint files that are damaged, cannot be written, or cannot be read back."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest
import torch

from seqlm.data.corpus import Corpus, load_corpus
from seqlm.errors import EXIT_STOPPED, EXIT_STORAGE, CheckpointError, DamagedError, FileError
from seqlm.files import Guard
from seqlm.rundir import RunDirectory
from seqlm.training import checkpoint_files
from seqlm.training.attempt import StopRequested, StopSignal, attempt_number, make_attempt
from seqlm.training.checkpoint import Checkpoint, Position
from seqlm.training.checkpoint_files import CheckpointFiles
from seqlm.training.distributed import Rank
from seqlm.training.perplexity import TokenLoss
from seqlm.training.trainer import Trainer
from tests.faults import LookFaults
from tests.outcome import Outcome, outcome
from tests.training.studies import make_config, make_run, write_text

CONFIG = make_config("gru", optimizer="adam", lr=0.01, epochs=3, keep=0.7)
EPOCH = 17
"""Steps of an epoch."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load_corpus(CONFIG.data, write_text(tmp_path_factory.mktemp("text"), train_lines=110))


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> Outcome:
    folder = tmp_path_factory.mktemp("quiet") / "run"
    trainer_for(folder, corpus).train()
    return outcome(RunDirectory(folder))


def trainer_for(
    folder: Path, corpus: Corpus, *, attempt: int = 1, stop_after: int | None = None, **options: Any
) -> Trainer:
    stop = StopSignal()
    trainer = Trainer(CONFIG, corpus, make_run(folder, CONFIG), rank=Rank(), attempt=attempt, stop=stop, **options)
    step, taken = trainer.step, iter(range(1, 10_000))

    def take(*arguments: Any) -> Any:
        if next(taken) == stop_after:
            stop.request()
        return step(*arguments)

    trainer.step = take  # type: ignore[assignment]
    return trainer


def stopped(folder: Path, corpus: Corpus, after: int = EPOCH + 9) -> RunDirectory:
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_metrics_of_a_run_that_goes_back_an_epoch_hold_each_epoch_once(
    tmp_path: Path, corpus: Corpus, quiet: Outcome
) -> None:
    run = stopped(tmp_path / "run", corpus, after=EPOCH + 1)  # the second epoch has just begun
    trainer = trainer_for(run.path, corpus, attempt=2, stop_after=EPOCH + 1)
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_takes_no_more_ends_the_run_at_the_next_step_with_the_last_good_checkpoint(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, quiet: Outcome, code: int
) -> None:
    run = stopped(tmp_path / "run", corpus, after=EPOCH + 5)
    before = run.last_checkpoint.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(torch, "save", full)
    trainer = trainer_for(run.path, corpus, attempt=2)
    step = trainer.step

    def take_once_the_save_has_ended(*arguments: Any) -> Any:
        if trainer._epoch == 2 and trainer._background._work is not None:
            futures.wait([trainer._background._work])
        return step(*arguments)

    trainer.step = take_once_the_save_has_ended  # type: ignore[assignment]
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


class Killed(BaseException):
    """Ends a worker between two files, as SIGKILL would."""


def trainer_with_losses(run: RunDirectory, corpus: Corpus, losses: list[float], *, attempt: int) -> Trainer:
    """A trainer whose epochs end in these validation losses; an epoch done again under other masks has another one."""
    trainer = trainer_for(run.path, corpus, attempt=attempt)
    evaluate, left = trainer.evaluate, iter(losses)
    trainer.evaluate = lambda split: TokenLoss(next(left), 1) if split == "valid" else evaluate(split)  # type: ignore[method-assign]
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 6), ids=lambda number: f"file {number}")
def test_killed_between_any_two_files_of_a_best_epoch_it_ends_well_even_if_that_epoch_would_not_be_best_again(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    run = make_run(tmp_path / "run", CONFIG)
    first = trainer_with_losses(run, corpus, [5.0, 4.0, 6.0], attempt=1)
    save, saved = first._files.save, []
    replace, put = Path.replace, []

    def begin(checkpoint: Checkpoint, **options: Any) -> None:
        saved.append(checkpoint)
        save(checkpoint, **options)

    def kill(path: Path, target: Path) -> Path:
        # The second epoch is being saved, perhaps for as long as the third one takes.
        if len(saved) >= 2 and "progress" not in path.name:
            put.append(Path(target).name)
            if len(put) >= number:
                raise Killed(put[-1])
        return replace(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(first._files, "save", begin)
        patched.setattr(Path, "replace", kill)
        with pytest.raises(Killed):
            first.train()
    finished = len(first._files.load_last()[1].history)  # type: ignore[index]
    again = trainer_with_losses(run, corpus, [4.0 + 3 * (finished < 2), 6.0], attempt=2)
    result = again.train()
    assert result["best_val_loss"] == min(epoch["val_loss"] for epoch in run.read_metrics()[0])
    best = again._files.load(run.best_checkpoint)
    assert best.history == again.history[: result["best_epoch"] + 1]
    assert best.optimizer is None


def with_epochs(run: RunDirectory, corpus: Corpus, losses: list[float]) -> CheckpointFiles:
    """A run whose epochs have these validation losses, with the checkpoints of a worker that saved each of them."""
    files = CheckpointFiles(run, fingerprint=CONFIG.fingerprint(), corpus_sha256=corpus.sha256, attempt=1)
    history: list[dict[str, Any]] = []
    for number, loss in enumerate(losses):
        history = [*history, {"epoch": number, "val_loss": loss, "val_ppl": loss, "elapsed_seconds": 1.0}]
        checkpoint = Checkpoint(
            fingerprint=CONFIG.fingerprint(),
            corpus_sha256=corpus.sha256,
            vocabulary=[],
            model={"weight": torch.full((2,), loss)},
            optimizer={},
            history=history,
            position=Position(epoch=number + 1),
        )
        files.save(checkpoint, is_best=loss == min(losses[: number + 1]))
    return files


@pytest.mark.parametrize("losses", [[5.0, 4.0], [5.0, 4.0, 6.0]], ids=["last.pt", "previous.pt"])
@pytest.mark.parametrize("damage", [cut, Path.unlink])
def test_a_damaged_best_checkpoint_is_rebuilt_from_one_that_stands_at_the_end_of_that_epoch(
    tmp_path: Path, corpus: Corpus, losses: list[float], damage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", CONFIG)
    files = with_epochs(run, corpus, losses)
    damage(run.best_checkpoint)
    found = files.load_last()
    assert found is not None
    best = files.load(run.best_checkpoint)
    assert (best.history, best.optimizer) == (found[1].history[:2], None)
    assert torch.equal(best.model["weight"], torch.full((2,), 4.0))
    assert files.load_best(found[1].history)[0] == run.best_checkpoint
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {run.best_checkpoint} ")
    assert said.endswith(f"; rebuilt from {'last' if len(losses) == 2 else 'previous'}.pt\n")


def test_a_best_checkpoint_of_another_attempts_epoch_is_not_taken_for_this_one(tmp_path: Path, corpus: Corpus) -> None:
    run = make_run(tmp_path / "run", CONFIG)
    files = with_epochs(run, corpus, [5.0, 4.0, 6.0])
    history = [{**epoch, "val_loss": epoch["val_loss"] / 2} for epoch in files.load(run.last_checkpoint).history]
    with pytest.raises(CheckpointError, match=r"best\.pt is of another attempt at epoch 2, .* start this run again"):
        files.load_best(history)


@pytest.mark.slow
def test_a_best_checkpoint_that_cannot_be_rebuilt_is_told_at_once_and_a_better_epoch_replaces_it(
    tmp_path: Path, corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", CONFIG)
    trainer = trainer_with_losses(run, corpus, [4.0, 5.0], attempt=1)
    evaluate = trainer.evaluate

    def stop_in_the_third(split: str) -> TokenLoss:
        if len(trainer.history) == 2:
            raise StopRequested
        return evaluate(split)

    trainer.evaluate = stop_in_the_third  # type: ignore[method-assign]
    with pytest.raises(StopRequested):
        trainer.train()
    run.best_checkpoint.unlink()
    capsys.readouterr()
    result = trainer_with_losses(run, corpus, [3.0], attempt=2).train()
    said = capsys.readouterr().err
    assert (
        said == f"warning: {run.best_checkpoint} is missing; this run needs a better epoch than epoch 1 to end well\n"
    )
    assert result["best_epoch"] == 2


def test_a_run_that_is_done_keeps_two_checkpoints(tmp_path: Path, corpus: Corpus) -> None:
    run = stopped(tmp_path / "run", corpus)
    trainer_for(run.path, corpus, attempt=2).train()
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == ["best.pt", "last.pt", "position.json"]


@pytest.mark.slow
def test_a_run_that_is_not_to_keep_its_last_checkpoint_keeps_it_until_it_is_done(
    tmp_path: Path, corpus: Corpus, quiet: Outcome
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(StopRequested):
        trainer_for(folder, corpus, stop_after=EPOCH + 9, keep_last=False).train()
    run = RunDirectory(folder)
    assert run.has_checkpoint()
    trainer_for(folder, corpus, attempt=2, keep_last=False).train()
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == ["best.pt", "position.json"]
    result = run.read_result() or {}
    assert {key: result[key] for key in quiet.result} == quiet.result


def test_a_run_whose_last_checkpoint_was_deleted_at_its_end_is_not_trained_again(
    tmp_path: Path, corpus: Corpus
) -> None:
    folder = tmp_path / "run"
    trainer_for(folder, corpus, keep_last=False).train()
    run = RunDirectory(folder)
    run.result_file.unlink()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError) as caught:
        trainer_for(folder, corpus, attempt=2).train()
    expected = f"its last.pt was deleted after the training had ended; move {folder} away to train it again"
    assert str(caught.value) == f"this run cannot go on: {expected}"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_run_that_lost_its_checkpoints_before_its_end_starts_again(
    tmp_path: Path, corpus: Corpus, quiet: Outcome
) -> None:
    run = stopped(tmp_path / "run", corpus)
    run.last_checkpoint.unlink()
    run.previous_checkpoint.unlink()
    trainer_for(run.path, corpus, attempt=2).train()
    assert outcome(run) == quiet


@pytest.mark.slow
def test_a_worker_goes_on_or_leaves_its_run_as_it_was_whichever_file_cannot_be_read_once(
    tmp_path: Path, corpus: Corpus
) -> None:
    codes = set()
    for number in itertools.count(1):
        run = stopped(tmp_path / str(number), corpus)
        run.previous_checkpoint.unlink()  # as after the first save
        run.attempt_dir(1).mkdir(parents=True)
        files = CheckpointFiles(run, fingerprint=CONFIG.fingerprint(), corpus_sha256=corpus.sha256, attempt=2)
        before = files.load(run.last_checkpoint)
        with pytest.MonkeyPatch.context() as patch:
            faults = LookFaults(patch, run.path, number)
            with contextlib.suppress(FileError):
                attempt = attempt_number(run, {})
                assert attempt == 2

                def train(guard: Guard, run: RunDirectory = run) -> None:
                    trainer_for(run.path, corpus, attempt=2, stop_after=1, guard=guard).train()

                codes.add(make_attempt(run, Rank(), attempt, StopSignal(), train))
        found = files.load_last()
        assert found is not None
        assert (found[1].position.epoch, found[1].position.step) >= (before.position.epoch, before.position.step)
        assert found[1].history == before.history
        if not faults.has_failed:
            break
    assert number > 20
    assert codes == {EXIT_STOPPED, EXIT_STORAGE}


def test_a_best_checkpoint_of_another_epoch_is_not_taken_for_the_best(tmp_path: Path, corpus: Corpus) -> None:
    run = stopped(tmp_path / "run", corpus)
    first = run.best_checkpoint.read_bytes()
    trainer_with_losses(run, corpus, [1.0, 5.0], attempt=2).train()
    run.result_file.unlink()
    run.best_checkpoint.write_bytes(first)
    with pytest.raises(CheckpointError, match=r"best\.pt holds epoch 1, the best of this run is epoch 2"):
        trainer_for(run.path, corpus, attempt=3).train()
