"""Checkpoint files that are damaged, cannot be written, or cannot be read back."""

import contextlib
import errno
import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from seqlm.data.corpus import Corpus, load_corpus
from seqlm.errors import EXIT_STOPPED, EXIT_STORAGE, CheckpointError, DamagedError, FileError
from seqlm.rundir import RunDirectory
from seqlm.training import attempt as attempts
from seqlm.training.attempt import StopRequested, attempt_number
from seqlm.training.checkpoint_files import CheckpointFiles
from seqlm.training.distributed import Rank
from seqlm.training.saving import Saving
from tests.faults import LookFaults
from tests.outcome import Outcome, outcome
from tests.seqlm.training.studies import Attempt, make_config, make_run, write_text
from tests.waiting import wait_for

CONFIG = make_config("gru", optimizer="adam", lr=0.01, epochs=3, keep=0.7)
EPOCH = 17
"""Steps of an epoch."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load_corpus(CONFIG.data, write_text(tmp_path_factory.mktemp("text"), train_lines=110))


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> Outcome:
    folder = tmp_path_factory.mktemp("quiet") / "run"
    attempt_at(folder, corpus).train()
    return outcome(RunDirectory(folder))


def attempt_at(folder: Path, corpus: Corpus, *, stop_after: int = 0) -> Attempt:
    return Attempt(make_run(folder, CONFIG), corpus).stop_after(stop_after)


def stopped(folder: Path, corpus: Corpus, after: int = EPOCH + 9) -> RunDirectory:
    """A run that was stopped in its second epoch: the end of the first is in ``previous.pt``. Trained once."""
    if after not in _stopped:
        _stopped[after] = folder.parent / "stopped" / folder.name
        with pytest.raises(StopRequested):
            attempt_at(_stopped[after], corpus, stop_after=after).train()
    shutil.copytree(_stopped[after], folder)
    return RunDirectory(folder)


_stopped: dict[int, Path] = {}
"""Steps before it was stopped -> such a run."""


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.slow
def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, corpus: Corpus, quiet: Outcome, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stopped(tmp_path / "run", corpus)
    cut(run.last_checkpoint)
    attempt_at(run.path, corpus).train()
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert said.err.startswith(f"warning: {run.last_checkpoint} ")
    assert "going on from previous.pt, the checkpoint before it" in said.err
    assert "resumed after 1 of 3 epochs\n" in said.out
    assert outcome(run) == quiet
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == ["best.pt", "last.pt", "position.json"]


@pytest.mark.slow
def test_the_metrics_of_a_run_that_goes_back_an_epoch_hold_each_epoch_once(
    tmp_path: Path, corpus: Corpus, quiet: Outcome
) -> None:
    run = stopped(tmp_path / "run", corpus, after=EPOCH + 1)  # the second epoch has just begun
    with pytest.raises(StopRequested):
        attempt_at(run.path, corpus, stop_after=EPOCH + 1).train()
    assert [epoch["epoch"] for epoch in run.read_metrics()[0]] == [0, 1]
    cut(run.last_checkpoint)
    run.previous_checkpoint.replace(tmp_path / "end-of-second")
    with pytest.raises(CheckpointError):
        attempt_at(run.path, corpus).train()
    (tmp_path / "end-of-second").replace(run.previous_checkpoint)
    attempt_at(run.path, corpus).train()
    assert outcome(run) == quiet


def test_two_damaged_checkpoints_are_one_line_and_nothing_is_begun_anew(tmp_path: Path, corpus: Corpus) -> None:
    run = stopped(tmp_path / "run", corpus)
    cut(run.last_checkpoint)
    cut(run.previous_checkpoint)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(DamagedError, match=r"previous\.pt is truncated.* move .*checkpoints away to start"):
        attempt_at(run.path, corpus).train()
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_disk_that_takes_no_more_ends_the_run_at_the_next_step_with_the_last_good_checkpoint(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, quiet: Outcome
) -> None:
    run = stopped(tmp_path / "run", corpus, after=EPOCH + 5)
    before = run.last_checkpoint.read_bytes()

    savings: list[Saving] = []
    save = Saving.save

    def noted(saving: Saving) -> None:
        savings.append(saving)
        save(saving)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def wait(_: int) -> None:
        if attempt.trainer.epoch == 2:
            wait_for(lambda: not savings[-1].is_writing, "the writer to fail")

    monkeypatch.setattr(Saving, "save", noted)
    monkeypatch.setattr(torch, "save", full)
    attempt = attempt_at(run.path, corpus)
    attempt.before_each_step(wait)
    with pytest.raises(FileError, match=os.strerror(errno.ENOSPC)):
        attempt.train()
    assert attempt.trainer.epoch == 2, "while the next epoch was under way"
    assert run.last_checkpoint.read_bytes() == before
    assert not list(run.path.rglob("*.tmp"))
    monkeypatch.undo()
    attempt_at(run.path, corpus).train()
    assert outcome(run) == quiet


@pytest.mark.slow
def test_a_run_that_is_not_to_keep_its_last_checkpoint_keeps_it_until_it_is_done_and_is_not_trained_again(
    tmp_path: Path, corpus: Corpus, quiet: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEQLM_KEEP_LAST", "0")
    run = stopped(tmp_path / "run", corpus)
    attempt_at(run.path, corpus).train()
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == ["best.pt", "position.json"]
    result = vars(run.read_result())
    assert {key: result[key] for key in quiet.result} == quiet.result
    run.result_file.unlink()
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError) as caught:
        attempt_at(run.path, corpus).train()
    expected = f"its last.pt was deleted after the training had ended; move {run.path} away to train it again"
    assert str(caught.value) == f"this run cannot go on: {expected}"
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_run_that_lost_its_checkpoints_before_its_end_starts_again(
    tmp_path: Path, corpus: Corpus, quiet: Outcome
) -> None:
    run = stopped(tmp_path / "run", corpus)
    run.last_checkpoint.unlink()
    run.previous_checkpoint.unlink()
    attempt_at(run.path, corpus).train()
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
        files = CheckpointFiles(
            attempt=attempts.Attempt(run=run, rank=Rank(), number=2),
            fingerprint=CONFIG.fingerprint(),
            corpus_sha256=corpus.sha256,
        )
        before = files.load(run.last_checkpoint)
        with pytest.MonkeyPatch.context() as patch:
            faults = LookFaults(patch, run.path, number)
            with contextlib.suppress(FileError):
                attempt = attempt_number(run, {})
                assert attempt == 2

                made = attempts.Attempt(run=run, rank=Rank(), number=attempt)

                def train(made: attempts.Attempt = made) -> None:
                    stopping = attempt_at(made.run.path, corpus, stop_after=1)
                    stopping.made.guard = made.guard
                    stopping.train()

                codes.add(made.make(train))
        found = files.load_last()
        assert found is not None
        assert (found.position.epoch, found.position.step) >= (before.position.epoch, before.position.step)
        assert found.history == before.history
        if not faults.has_failed:
            break
    assert number > 20
    assert codes == {EXIT_STOPPED, EXIT_STORAGE}
