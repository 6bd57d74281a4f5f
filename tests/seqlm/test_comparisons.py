"""Comparisons of two settings on made-up results in files: replays in any order, kills, bad input."""

import contextlib
import itertools
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqlm import comparisons
from seqlm.comparisons import (
    Compared,
    compared,
    file_declared,
    file_typed,
    is_open_again,
    read_comparisons,
    settle,
    verdict_of,
)
from seqlm.config import RunConfig
from seqlm.errors import UsageError
from seqlm.records.comparisons import ComparisonVerdict
from seqlm.records.runs import Provenance, Result
from seqlm.rundir import RunDirectory
from seqlm.sequential import finding
from tests.facts import fail, launch_again, newest_attempt
from tests.seqlm.training.studies import make_config

A, B = "arch=gru", "arch=rnn"
EPOCHS = 2


def side(arch: str, seeds: Sequence[int], **changes: object) -> dict[str, RunConfig]:
    return {f"{arch}-{seed}": make_config(arch, seed=seed, **changes) for seed in seeds}


def of_sides(gru: Mapping[str, RunConfig], rnn: Mapping[str, RunConfig], margin: float = 0.0) -> Compared:
    return compared((A, B), (gru, rnn), {**gru, **rnn}, margin=margin, error=0.05)


def two(seeds: Sequence[int] = range(1, 21), margin: float = 0.0) -> Compared:
    return of_sides(side("gru", seeds), side("rnn", seeds), margin)


def type_again(study: Path, typed: Compared) -> None:
    file_typed(study, typed, margin=None, error=None)


def settled(run: RunDirectory, attempt: int = 1) -> str | None:
    return settle(run, EPOCHS, attempt)


def make_run(study: Path, run_id: str) -> RunDirectory:
    arch, _, seed = run_id.partition("-")
    run = RunDirectory(study / run_id)
    run.create(make_config(arch, seed=int(seed)), Provenance(name=run_id))
    newest_attempt(run)
    return run


def finish(study: Path, run_id: str, loss: float) -> None:
    run = RunDirectory(study / run_id)
    Result(epochs=EPOCHS, best_val_loss=loss).write(run.path)


def losses_of(differences: Sequence[float]) -> dict[str, float]:
    pairs = ((f"gru-{n}", f"rnn-{n}", difference) for n, difference in enumerate(differences, start=1))
    return dict(itertools.chain(*(((a, 5 + difference), (b, 5.0)) for a, b, difference in pairs)))


def replay(study: Path, order: Sequence[str], losses: dict[str, float]) -> tuple[list[str], ComparisonVerdict]:
    """Let runs come to their epoch in an order, and end unless they leave. Return who left, and the verdict at the end.

    No decision may be made before the verdict on the first seeds of which both runs have ended.
    """
    declared = two(range(1, len(losses) // 2 + 1))
    file_declared(study, "lm.toml", [declared])
    left = []
    for run_id in order:
        run = make_run(study, run_id)
        before = verdict_of(study, declared.record, 1)
        reason = settled(run, 1)
        assert (reason is None) == (before.outcome == "undecided")
        if reason is None:
            finish(study, run_id, losses[run_id])
        else:
            left.append(run_id)
            assert run.observe().state == "stopped"
    return left, verdict_of(study, declared.record, 1)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.01, 0.04]))
def test_the_order_in_which_runs_end_changes_no_verdict(
    tmp_path_factory: pytest.TempPathFactory, seed: int, effect: float
) -> None:
    draws = random.Random(seed)
    differences = [draws.gauss(effect, 0.01) for _ in range(9)]
    losses = losses_of(differences)
    found = [finding(differences[:number], error=0.05) for number in range(10)]
    decided = next((number for number in range(10) if found[number].is_decided), None)
    order = list(losses)
    for _ in range(2):
        draws.shuffle(order)
        left, verdict = replay(tmp_path_factory.mktemp("study"), order, losses)
        assert verdict.decided_after == decided
        assert verdict.seeds[: decided or 0] == tuple(range(1, (decided or 0) + 1))
        assert not {f"{arch}-{seed}" for arch in ("gru", "rnn") for seed in range(1, (decided or 9) + 1)} & set(left)
        if decided is not None:
            assert verdict.outcome == found[decided].outcome


def test_seeds_behind_a_gap_do_not_count(tmp_path: Path) -> None:
    for run_id, loss in losses_of([-0.1] * 9).items():
        make_run(tmp_path, run_id)
        if run_id != "rnn-3":
            finish(tmp_path, run_id, loss)
    verdict = verdict_of(tmp_path, two().record, 1)
    assert (verdict.seeds, verdict.waits_for) == ((1, 2), ("rnn-3",))


def test_all_seeds_of_the_settings_are_compared_whichever_runs_were_chosen() -> None:
    every = side("gru", range(1, 9)) | side("rnn", range(2, 12))
    every |= {f"wide-{run}": config for run, config in side("gru", range(1, 9), hidden_size=32).items()}
    chosen = compared((A, B), (side("gru", [7]), side("rnn", [11])), every, margin=0.0, error=0.05)
    assert [pair.seed for pair in chosen.record.pairs] == list(range(2, 9))


def test_a_pair_with_a_diverged_run_is_named_and_left_out(tmp_path: Path) -> None:
    draws = random.Random(1)
    for run_id, loss in losses_of([draws.gauss(-0.1, 0.01) for _ in range(9)]).items():
        run = make_run(tmp_path, run_id)
        if run_id == "gru-2":
            fail(run, {"kind": "diverged"})
        elif run_id != "rnn-2":
            finish(tmp_path, run_id, loss)
    verdict = verdict_of(tmp_path, two().record, 1)
    assert verdict.left_out == ("gru-2",)
    assert verdict.seeds == (1, 3, 4, 5, 6, 7, 8, 9)
    assert verdict.outcome == "lower"


def test_a_comparison_counts_once_however_it_is_called_and_makes_others_stricter(tmp_path: Path) -> None:
    draws = random.Random(2)
    for run_id, loss in losses_of([draws.gauss(-0.009, 0.01) for _ in range(12)]).items():
        make_run(tmp_path, run_id)
        finish(tmp_path, run_id, loss)
    first = two(range(1, 13))
    turned = of_sides(side("rnn", range(1, 5)), side("gru", range(1, 5)), margin=0.5)
    longer = of_sides(side("gru", [1], epochs=9), side("rnn", [1], epochs=9))
    for typed in (first, turned, longer):
        type_again(tmp_path, typed)
    assert len(read_comparisons(tmp_path)) == 2
    alone, among = (verdict_of(tmp_path, first.record, number) for number in (1, 500))
    assert (alone.outcome, among.alone, among.outcome) == ("lower", "lower", "undecided")


def test_a_run_that_was_stopped_goes_on_to_its_end_if_a_later_request_says_so(tmp_path: Path) -> None:
    left, _ = replay(tmp_path, list(losses_of([-0.1, -0.11] * 5)), losses_of([-0.1, -0.11] * 5))
    run = RunDirectory(tmp_path / left[0])
    assert not is_open_again(run, EPOCHS, EPOCHS)
    launch_again(run)
    assert run.why_stopped() is None
    assert settled(run, 2) is None


def test_more_comparisons_open_a_decision_again_until_more_seeds_make_it(tmp_path: Path) -> None:
    """The runs that it stopped go on, and stop once it is decided among all comparisons."""
    losses = losses_of([-0.1, -0.13] * 5)
    left, _ = replay(tmp_path, list(losses), losses)
    runs = [RunDirectory(tmp_path / run_id) for run_id in left]
    for width in range(20, 70):
        type_again(tmp_path, of_sides(side("gru", [1], hidden_size=width), side("rnn", [1])))
    assert is_open_again(runs[0], EPOCHS, EPOCHS)
    ended = []
    for run in runs:
        launch_again(run)
        if settled(run, 2) is None:
            finish(tmp_path, run.id, losses[run.id])
            ended.append(run.id)
        else:
            assert not is_open_again(run, EPOCHS, EPOCHS)
    assert 0 < len(ended) < len(left)


def test_a_run_that_goes_to_another_epoch_is_not_stopped(tmp_path: Path) -> None:
    losses = losses_of([-0.1, -0.11] * 5)
    left, _ = replay(tmp_path, list(losses), losses)
    run = RunDirectory(tmp_path / left[0])
    assert is_open_again(run, EPOCHS, EPOCHS + 1)
    assert settle(RunDirectory(tmp_path / "gru-1"), EPOCHS + 1, 2) is None


@pytest.mark.parametrize("write", ["verdict", "settled"])
def test_a_kill_between_a_decision_and_its_file_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    study, other = tmp_path / "study", tmp_path / "other"
    losses = losses_of([-0.1, -0.11] * 3)
    for folder in (study, other):
        file_declared(folder, "lm.toml", [two()])
        for run_id, loss in losses.items():
            make_run(folder, run_id)
            finish(folder, run_id, loss)
        make_run(folder, "gru-7")
    run = RunDirectory(study / "gru-7")
    with monkeypatch.context() as patch:
        patch.setattr(*((comparisons, "file_verdict") if write == "verdict" else (comparisons.Settled, "write")), die)
        with contextlib.suppress(Killed):
            settled(run, 1)
    assert run.why_stopped() is None
    reason = settled(run, 1)
    assert reason is not None
    assert reason == settled(RunDirectory(other / "gru-7")) == run.why_stopped()
    files = [sorted(path.name for path in (folder / "comparisons").rglob("*.json")) for folder in (study, other)]
    assert files[0] == files[1]


def test_a_manifest_without_the_comparison_stops_nothing_and_what_was_typed_never_does(tmp_path: Path) -> None:
    for run_id, loss in losses_of([-0.1, -0.11] * 3).items():
        make_run(tmp_path, run_id)
        finish(tmp_path, run_id, loss)
    type_again(tmp_path, two())
    assert settled(make_run(tmp_path, "gru-7")) is None
    file_declared(tmp_path, "lm.toml", [two()])
    type_again(tmp_path, two(margin=0.3))
    file_declared(tmp_path, "other.toml", [])
    assert settled(make_run(tmp_path, "gru-8")) is not None
    file_declared(tmp_path, "lm.toml", [])
    assert settled(make_run(tmp_path, "gru-9")) is None


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (side("gru", [1, 2]), side("gru", [3])),
        ({**side("gru", [1]), "wide": make_config("gru", hidden_size=32)}, side("rnn", [1])),
        (side("gru", [1]), side("rnn", [2])),
        (side("gru", [1], epochs=3), side("rnn", [1])),
        (side("gru", [1]), {"rnn": make_config("rnn", seed=1, eval={"seq_len": 3})}),
    ],
    ids=["the same setting", "two settings", "no common seed", "epochs", "scoring"],
)
def test_bad_sides_are_one_line(a: dict[str, RunConfig], b: dict[str, RunConfig]) -> None:
    with pytest.raises(UsageError) as caught:
        of_sides(a, b)
    assert len(str(caught.value).splitlines()) == 1
