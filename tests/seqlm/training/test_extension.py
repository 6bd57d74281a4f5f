"""A run that gets more epochs later ends in the bits of one that trained them all at once."""

from pathlib import Path

import pytest

from seqlm.config import RunConfig
from seqlm.data.corpus import Corpus, load_corpus
from seqlm.models import products
from seqlm.records.runs import Result
from seqlm.rundir import RunDirectory
from seqlm.training import attempt
from seqlm.training.attempt import StopRequested
from seqlm.training.distributed import Rank
from seqlm.training.records import best_epoch
from tests.outcome import outcome
from tests.seqlm.training.lives import position_of
from tests.seqlm.training.studies import Attempt, make_config, make_run, write_text

SHORT, LONG = 1, 3


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"), train_lines=60)


@pytest.fixture(scope="module")
def corpus(text: Path) -> Corpus:
    return load_corpus(make_config().data, text)


def train(folder: Path, config: RunConfig, corpus: Corpus, *epochs: int) -> RunDirectory:
    """One attempt after another at a run, each up to one of ``epochs``."""
    for last in epochs:
        run = make_run(folder, config.with_epochs(last))
        Attempt(run, corpus).train()
    return RunDirectory(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "optimizer", "lr", "library"),
    [("rnn", "sgd_schedule", 0.2, "blas"), ("gru", "adam", 0.001, "onednn"), ("transformer", "sgd", 0.1, "onednn")],
)
def test_a_run_that_is_extended_equals_one_that_went_so_far_at_once(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, arch: str, optimizer: str, lr: float, library: str
) -> None:
    monkeypatch.setattr(products, "fp32_library", lambda: library)
    falls = {"flat_epochs": 1} if optimizer == "sgd_schedule" else {}
    config = make_config(arch, optimizer=optimizer, lr=lr, keep=0.7, optim=falls)
    short = train(tmp_path / "extended", config, corpus, SHORT)
    assert (short.read_result() or Result()).epochs == SHORT
    extended = outcome(train(tmp_path / "extended", config, corpus, LONG))
    at_once = outcome(train(tmp_path / "at once", config, corpus, LONG))
    assert not extended.differences(at_once)
    assert extended.result["epochs"] == LONG
    assert best_epoch(extended.metrics) >= SHORT, "the best checkpoint is one of the extension"


@pytest.mark.slow
def test_a_best_epoch_of_before_stays_the_best_checkpoint(tmp_path: Path, corpus: Corpus) -> None:
    config = make_config("rnn", optimizer="sgd", lr=80.0)  # so high that it gets worse
    run = train(tmp_path / "extended", config, corpus, 2)
    before, best = run.best_checkpoint.read_bytes(), (run.read_result() or Result()).best_epoch
    train(tmp_path / "extended", config, corpus, 3)
    extended = outcome(run)
    assert extended.result["best_epoch"] == best
    assert run.best_checkpoint.read_bytes() == before
    assert not extended.differences(outcome(train(tmp_path / "at once", config, corpus, 3)))


@pytest.mark.slow
def test_a_run_that_has_gone_further_than_requested_ends_where_it_is(tmp_path: Path, corpus: Corpus) -> None:
    config = make_config("gru", optimizer="adam", lr=0.01, keep=0.7)
    stopped_in_the_third_epoch(tmp_path / "run", config, corpus)
    run = train(tmp_path / "run", config, corpus, SHORT)
    assert (run.read_result() or Result()).epochs == 2
    assert position_of(run.path).step > 0, "what is done of the third epoch stays"
    at_once = outcome(train(tmp_path / "at once", config, corpus, LONG))
    assert not outcome(train(tmp_path / "run", config, corpus, LONG)).differences(at_once)


def stopped_in_the_third_epoch(folder: Path, config: RunConfig, corpus: Corpus) -> RunDirectory:
    run = make_run(folder, config.with_epochs(5))
    attempt = Attempt(run, corpus)
    with pytest.raises(StopRequested):
        attempt.stop_after(2 * attempt.trainer.steps + 4).train()
    return run


def test_a_worker_has_nothing_to_do_until_more_is_requested(
    tmp_path: Path, corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path / "run", make_config(), corpus, SHORT)
    done: list[bool] = []
    capsys.readouterr()

    def attempted() -> int:
        return attempt.Attempt(run=run, rank=Rank(), number=2).make(lambda: done.append(True))

    assert attempted() == 0
    assert (capsys.readouterr().out, done) == ("this run is done; nothing to do\n", [])
    make_run(run.path, make_config(epochs=LONG))
    assert attempted() == 0
    assert done == [True]
