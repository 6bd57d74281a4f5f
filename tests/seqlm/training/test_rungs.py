"""A worker at the rungs of a search: it leaves or goes on, and a run that goes on later is as if it had never left."""

from pathlib import Path
from typing import Any

import pytest

from seqlm.comparisons import Compared, file_declared, settle
from seqlm.errors import EXIT_RUNG, EXIT_STORAGE, EXIT_USAGE, FileError
from seqlm.files import write_json_lines
from seqlm.records.comparisons import Comparison, Pair
from seqlm.records.runs import Provenance, Result
from seqlm.rundir import RunDirectory
from seqlm.search import Search
from seqlm.training import attempt, worker
from tests.facts import failure_of, launch_again
from tests.outcome import outcome
from tests.seqlm.training.studies import make_config, make_run, write_text

EPOCHS = 4


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study in which two better runs have come to the rungs 1 and 2."""
    monkeypatch.setenv("SEQLM_DATA", str(write_text(tmp_path / "text", train_lines=60)))
    monkeypatch.setenv("SEQLM_DEVICE", "cpu")
    monkeypatch.setattr(attempt.StopSignal, "install", lambda self: None)  # the handlers of this process stay
    for number in (1, 2):
        other = make_run(tmp_path / "study" / f"better-{number:08x}", make_config(seed=number, epochs=EPOCHS))
        write_json_lines(other.metrics_file, [{"epoch": epoch, "val_ppl": 1.5} for epoch in range(2)])
    return tmp_path / "study"


def train(run: RunDirectory, search: Search | None, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("SEQLM_SEARCH", search.to_text() if search else "")
    return worker.main([str(run.path)])


def epochs_of(run: RunDirectory) -> list[int]:
    return [record["epoch"] for record in run.read_metrics()[0]]


def own(study: Path, name: str = "own") -> RunDirectory:
    return make_run(study / f"{name}-0000000a", make_config("gru", optimizer="adam", lr=0.01, keep=0.7, epochs=EPOCHS))


@pytest.mark.slow
def test_a_run_that_is_stopped_ends_at_its_rung_and_goes_on_exactly_when_a_user_wants_it(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    search, run, alone = Search(rungs=(1, 2), keep=0.34), own(study), own(study.parent / "alone")
    more = alone.read_config().with_epochs(EPOCHS + 1)
    alone.create(more, Provenance())
    assert train(alone, None, monkeypatch) == 0
    assert train(run, search, monkeypatch) == EXIT_RUNG
    assert "stopped at epoch 1: 3rd of 3, keeps 2" in capsys.readouterr().out
    assert (epochs_of(run), run.observe().state, run.has_checkpoint()) == ([0], "stopped", True)
    assert failure_of(run) is None
    assert train(run, search, monkeypatch) == EXIT_RUNG, "it stays stopped if its worker is started again"
    assert epochs_of(run) == [0]
    launch_again(run)
    assert train(run, search, monkeypatch) == EXIT_RUNG
    assert (epochs_of(run), run.observe().reason) == ([0, 1], "stopped at epoch 2: 3rd of 3, keeps 2")
    launch_again(run)
    run.create(more, Provenance())  # as a launch does that asks for more epochs
    assert train(run, search, monkeypatch) == 0
    assert [entry.decision for entry in run.read_rungs().values()] == ["stopped", "stopped"]
    assert outcome(run) == outcome(alone)


@pytest.mark.slow
def test_a_run_that_goes_on_ends_as_it_does_alone(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, alone = own(study), own(study.parent / "alone")
    assert train(run, Search(rungs=(1, 2), min_runs=4), monkeypatch) == 0
    assert train(alone, None, monkeypatch) == 0
    assert outcome(run) == outcome(alone)
    assert {rung: entry.decision for rung, entry in run.read_rungs().items()} == {1: "goes on", 2: "goes on"}


def test_a_decision_that_could_not_be_made_is_made_by_the_next_attempt_and_no_epoch_is_done_again(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, run = Search(rungs=(1, 3)), own(study)

    def refuse(*_: object, **__: object) -> None:
        raise FileError("cannot read the study: Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr("seqlm.training.train.decide", refuse)
        assert train(run, search, monkeypatch) == EXIT_STORAGE
    assert epochs_of(run) == [0], "it was saved before"
    before = run.last_checkpoint.read_bytes()
    assert train(run, search, monkeypatch) == EXIT_RUNG
    assert (run.last_checkpoint.read_bytes() == before, run.observe().state) == (True, "stopped")


@pytest.mark.slow
def test_a_wrong_rule_is_an_error_of_its_launcher_and_a_damaged_record_is_made_again(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = own(study)
    monkeypatch.setenv("SEQLM_SEARCH", "[3]")
    assert worker.main([str(run.path)]) == EXIT_USAGE
    run.rung_file(1).write_text("{")
    assert train(run, Search(rungs=(1,), min_runs=4), monkeypatch) == 0, "a lost record of a rung is made again"
    assert run.read_rungs()[1].decision == "goes on"


@pytest.mark.slow
def test_a_worker_leaves_before_an_epoch_once_the_comparisons_of_its_run_are_decided(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not before: while they are undecided, it trains. A later request lets it go on, to the same weights."""
    run, alone = own(study), own(study.parent / "alone")
    pairs = [Pair(seed=seed, a=f"a-{seed}", b=f"b-{seed}") for seed in range(6)] + [Pair(seed=7, a=run.id, b="b-7")]
    record = Comparison(a="a", b="b", pairs=tuple(pairs), epochs=EPOCHS)
    file_declared(study, "lm.toml", [Compared(key="0", record=record)])
    for pair in pairs[:6]:
        for other, loss in ((pair.a, 5.0 + pair.seed / 1000), (pair.b, 6.0)):
            make_run(study / other, make_config(seed=pair.seed, epochs=EPOCHS))
            if pair.seed:
                Result(epochs=EPOCHS, best_val_loss=loss).write(study / other)
    looks: list[str] = []
    ended = [Result(epochs=EPOCHS, best_val_loss=loss) for loss in (5.0, 6.0)]

    def decide_after_two_epochs(*arguments: Any, **more: Any) -> str | None:
        looks.append(run.id)
        if len(looks) == 3:
            for side, result in zip("ab", ended, strict=True):
                result.write(study / f"{side}-0")
        return settle(*arguments, **more)

    monkeypatch.setattr("seqlm.training.train.settle", decide_after_two_epochs)
    assert train(alone, None, monkeypatch) == 0
    assert train(run, None, monkeypatch) == EXIT_RUNG
    assert (epochs_of(run), run.observe().state, failure_of(run)) == ([0, 1], "stopped", None)
    assert train(run, None, monkeypatch) == EXIT_RUNG, "it stays stopped if its worker is started again"
    launch_again(run)
    assert train(run, None, monkeypatch) == 0
    assert outcome(run) == outcome(alone)
