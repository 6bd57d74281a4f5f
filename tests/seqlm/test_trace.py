"""The trace of a run: a row for each step, as if the run had never been interrupted."""

import math
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias
from unittest.mock import Mock

import pytest

from seqlm.data.corpus import Corpus, load_corpus
from seqlm.errors import DivergedError, LeaseLostError
from seqlm.files import Guard, unguarded, write_json, write_json_lines
from seqlm.rundir import RunDirectory
from seqlm.trace import ROW_BYTES, StepRow, TraceWriter, read_trace
from seqlm.training.attempt import StopRequested
from tests.outcome import outcome
from tests.seqlm.training.studies import Attempt, make_config, make_run, write_text

Made: TypeAlias = Callable[..., TraceWriter]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load_corpus(make_config().data, write_text(tmp_path_factory.mktemp("text"), train_lines=60))


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    made = make_run(tmp_path / "run", make_config())
    write_json_lines(made.metrics_file, [{"epoch": 0, "steps": 4, "val_ppl": 1.0}])
    return made


@pytest.fixture
def made() -> Iterator[Made]:
    """Make a writer, which is closed after the test."""
    writers: list[TraceWriter] = []

    def make(run: RunDirectory, guard: Guard = unguarded) -> TraceWriter:
        writers.append(TraceWriter(run, guard))
        return writers[-1]

    yield make
    for writer in writers:
        writer.close()


def rows_of(run: RunDirectory) -> list[StepRow]:
    found = read_trace(run)
    assert found is not None
    return [*found.rows]


def test_an_epochs_rows_have_its_loss_its_norms_and_its_time(tmp_path: Path, corpus: Corpus) -> None:
    attempt = Attempt(make_run(tmp_path / "run", make_config(epochs=2)), corpus)
    norms: list[float] = []
    take = attempt.trainer.take_step

    def kept(*window: object) -> object:
        result = take(*window)  # type: ignore[arg-type]
        norms.append(result.grad_norm.item())
        return result

    attempt.trainer.take_step = Mock(wraps=take, side_effect=kept)
    attempt.train()
    rows, (epochs, _) = rows_of(attempt.run), attempt.run.read_metrics()
    steps = attempt.trainer.steps
    for epoch in epochs:
        own = rows[epoch["epoch"] * steps :][:steps]
        assert math.fsum(loss for loss, _, _ in own) / steps == pytest.approx(epoch["train_loss"], rel=1e-6)
        assert 0 < math.fsum(seconds for _, _, seconds in own) <= epoch["epoch_seconds"]
    assert [norm for _, norm, _ in rows] == norms


def test_a_diverged_run_keeps_its_rows_up_to_the_step_that_is_not_finite(tmp_path: Path, corpus: Corpus) -> None:
    attempt = Attempt(make_run(tmp_path / "run", make_config()), corpus)
    attempt.made.record_start()
    parameter = next(attempt.trainer.model.parameters())
    attempt.before_each_step(lambda number: number == 4 and parameter.data.fill_(math.nan))
    with pytest.raises(DivergedError):
        attempt.train()
    assert [all(map(math.isfinite, row)) for row in rows_of(attempt.run)] == [True, True, True, False]


def test_a_run_that_goes_back_to_its_previous_checkpoint_forgets_what_came_after_it(
    tmp_path: Path, corpus: Corpus
) -> None:
    config = make_config("gru", epochs=3, keep=0.7)
    quiet, disturbed = make_run(tmp_path / "quiet", config), make_run(tmp_path / "disturbed", config)
    Attempt(quiet, corpus).train()
    first = Attempt(disturbed, corpus)
    with pytest.raises(StopRequested):
        first.stop_after(first.trainer.steps + 3).train()
    disturbed.last_checkpoint.write_bytes(b"damaged")
    begun: list[int] = []
    Attempt(disturbed, corpus).before_each_step(
        lambda number: number == 1 and begun.append(len(rows_of(disturbed)))
    ).train()
    assert begun == [first.trainer.steps], "that checkpoint was made at the end of the first epoch"
    assert outcome(disturbed).differences(outcome(quiet)) == []


def test_what_is_kept_is_on_disk_when_asked_and_nowhere_before(run: RunDirectory, made: Made) -> None:
    writer = made(run)
    writer.begin(0)
    writer.add([(1.0, 2.0, 0.5), (3.0, 4.0, 0.5)])
    write = writer.take()
    writer.add([(5.0, 6.0, 0.5)])
    assert rows_of(run) == []
    write()
    assert rows_of(run) == [(1.0, 2.0, 0.5), (3.0, 4.0, 0.5)]
    writer.take()()
    assert rows_of(run)[2:] == [(5.0, 6.0, 0.5)]
    again = made(run)
    again.begin(1)
    assert rows_of(run) == [(1.0, 2.0, 0.5)]


def test_a_worker_that_has_lost_the_run_writes_nothing(run: RunDirectory, made: Made) -> None:
    made(run).begin(3)

    def lost() -> None:
        raise LeaseLostError("another worker's")

    with pytest.raises(LeaseLostError):
        made(run, lost).begin(0)
    assert len(rows_of(run)) == 3


FIRST, SECOND = (1.0, 2.0, 0.5), (3.0, 4.0, 0.5)


def test_a_worker_that_learns_late_that_it_has_lost_the_run_changes_nothing(run: RunDirectory, made: Made) -> None:
    """Its last look at the lease was just before another worker took the run over."""
    late, new = made(run), made(run)
    late.begin(0)
    late.add([FIRST])
    write = late.take()
    new.begin(0)
    new.add([FIRST, SECOND])
    new.take()()
    write()
    assert rows_of(run) == [FIRST, SECOND]


def test_a_worker_that_begins_the_trace_while_it_loses_the_run_changes_nothing(run: RunDirectory, made: Made) -> None:
    new, has_begun = made(run), False

    def taken_over() -> None:
        nonlocal has_begun
        if has_begun:
            raise LeaseLostError("another worker's")
        has_begun = True
        run.sweep(2)
        new.begin(0)
        new.add([FIRST, SECOND])
        new.take()()

    late = made(run, taken_over)
    with pytest.raises(LeaseLostError):
        late.begin(0)
    assert rows_of(run) == [FIRST, SECOND]


def test_a_trace_with_holes_or_a_cut_row_shows_what_it_has(run: RunDirectory, made: Made) -> None:
    writer = made(run)
    writer.begin(1)  # of a run that an earlier version has begun
    writer.add([(1.0, 2.0, 0.5), (7.0, 8.0, 0.5)])
    writer.take()()
    os.truncate(run.trace_file, 2 * ROW_BYTES + 5)
    missing, kept = rows_of(run)
    assert all(map(math.isnan, missing))
    assert kept == (1.0, 2.0, 0.5)


@pytest.mark.parametrize(("position", "covered"), [({"epoch": 1, "step": 2}, 6), ({"epoch": 9, "step": 0}, 8), ({}, 4)])
def test_covered_rows_are_those_of_the_newest_checkpoint(
    run: RunDirectory, position: dict[str, int], covered: int
) -> None:
    run.trace_file.write_bytes(struct.pack("<3f", 1.0, 2.0, 0.5) * 8)
    write_json(run.position_file, position)
    found = read_trace(run)
    assert found is not None
    assert (found.steps, found.covered) == (4, covered)


def test_a_run_without_a_trace_or_without_the_steps_of_an_epoch_has_none(run: RunDirectory) -> None:
    assert read_trace(run) is None
    run.trace_file.write_bytes(bytes(ROW_BYTES))
    run.metrics_file.write_text('{"epoch": 0, "val_ppl": 1.0}\n')
    assert read_trace(run) is None
