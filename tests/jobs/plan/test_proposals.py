"""Proposals from runs: what each run counts with, and what is proposed."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

import pytest

from jobs.manifests.draws import Choice, Distribution, Real, Whole, draw
from jobs.plan import proposals
from jobs.plan.proposals import Ended, Evidence, Proposer, distance, end_losses, is_inside, loss_limit
from seqlm.errors import UsageError

SPACE: Mapping[str, Distribution] = {
    "model.arch": Choice(("rnn", "gru")),
    "model.hidden_size": Whole(32, 96, 16),
    "model.keep": Real(0.6, 1.0, log=False),
    "optim.lr": Real(1e-4, 1e-1, log=True),
}


def loss_of(drawn: Mapping[str, Any]) -> float:
    """Lowest, 4, for a GRU of 64 units with a learning rate of 3e-3 and 0.8 kept."""
    rate = (math.log10(drawn["optim.lr"]) + 2.5) ** 2 / 3
    return 4 + rate + (drawn["model.arch"] != "gru") / 10 + (drawn["model.keep"] - 0.8) ** 2 + _width(drawn)


def _width(drawn: Mapping[str, Any]) -> float:
    return abs(drawn["model.hidden_size"] - 64) / 200


def run_of(drawn: Mapping[str, Any], ended: Ended = "finished", name: str = "run") -> Evidence:
    """Nine epochs, in which the loss falls by 1; a stopped run has the first three."""
    curve = {epoch: loss_of(drawn) + (9 - epoch) / 8 for epoch in range(1, 10)}
    epochs = {"finished": 9, "stopped": 3, "diverged": 1, "running": 0}[ended]
    losses = {epoch: loss for epoch, loss in curve.items() if epoch <= epochs}
    return Evidence(name=name, drawn=drawn, ended=ended, losses=losses, epochs=epochs)


def runs_of(number: int) -> list[Evidence]:
    ends: Sequence[Ended] = ("finished", "stopped", "finished", "diverged", "running", "stopped")
    drawn = draw(SPACE, number, 1)
    return [run_of(one, ends[place % len(ends)], f"run{place}") for place, one in enumerate(drawn)]


def proposed(runs: Sequence[Evidence], count: int, seed: int = 0) -> list[Mapping[str, Any]]:
    proposer = Proposer(SPACE, runs, seed=seed)
    found = [proposer.ask(lambda drawn: True) for _ in range(count)]
    return [one.drawn for one in found if one is not None]


# -- what a run counts with ----------------------------------------------------------------------------------------


def curve(ended: Ended, losses: Mapping[int, float], epochs: int = 4) -> Evidence:
    return Evidence(name="run", drawn={}, ended=ended, losses=losses, epochs=epochs)


def test_a_stopped_run_counts_with_the_loss_at_its_rung_less_the_median_fall() -> None:
    runs = [
        curve("finished", {1: 6.0, 2: 5.0, 4: 4.0}),  # falls by 2 and 1
        curve("finished", {1: 7.0, 2: 5.5, 4: 4.5}),  # by 2.5 and 1
        curve("finished", {1: 9.0, 2: 8.0, 3: 5.0, 4: 5.2}),  # by 4 and 3, to its lowest
        curve("stopped", {1: 8.0}, epochs=1),
        curve("stopped", {1: 7.0, 2: 6.5}, epochs=2),
        curve("diverged", {1: 7.0}, epochs=1),
        curve("running", {1: 3.0}, epochs=1),
    ]
    assert end_losses(runs) == pytest.approx([4.0, 4.5, 5.0, 8.0 - 2.5, 6.5 - 1.0, 5.5, None])


def test_a_run_without_a_finite_loss_at_its_rung_counts_as_the_worst() -> None:
    runs = [curve("finished", {1: 6.0, 4: 4.0}), curve("finished", {4: 5.0}), curve("stopped", {}, epochs=1)]
    assert end_losses(runs) == [4.0, 5.0, 5.0]


def test_the_limit_of_losses_is_that_of_a_model_that_has_learned_nothing() -> None:
    assert loss_limit(1000) == pytest.approx(math.log(1000))
    assert loss_limit(None) > loss_limit(100_000)


# -- what is proposed ----------------------------------------------------------------------------------------------


def test_the_order_of_the_runs_does_not_matter_but_the_seed_does() -> None:
    runs = runs_of(30)
    found = proposed(runs, 4)
    for seed in range(3):
        random.Random(seed).shuffle(runs)
        assert proposed(runs, 4) == found
    assert proposed(runs, 4, seed=1) != found


def test_proposals_are_better_than_draws_and_lie_in_the_space() -> None:
    runs = runs_of(30)
    found = proposed(runs, 8)
    assert all(is_inside(SPACE, one) for one in found)
    assert mean(map(loss_of, found)) < mean(loss_of(run.drawn) for run in runs) - 0.2
    best = min(loss_of(run.drawn) for run in runs)
    for number in range(8):
        runs.append(run_of(proposed(runs, 1)[0], name=f"proposal{number}"))
    assert min(loss_of(run.drawn) for run in runs) < best


def test_proposals_keep_away_from_running_settings_and_from_each_other() -> None:
    runs = runs_of(30)
    (first,) = proposed(runs, 1)
    for number in range(3):
        (following,) = proposed([*runs, *[run_of(first, "running", f"live{n}") for n in range(number + 1)]], 1)
        assert distance(SPACE, first, following) > 0.01
    found = proposed(runs, 6)
    assert len({tuple(sorted(one.items())) for one in found}) == 6


def test_proposals_of_whole_numbers_with_a_logarithm_keep_to_their_steps() -> None:
    space = {"model.hidden_size": Whole(16, 500, 16, log=True), "model.keep": Real(0.6, 1.0, log=False)}
    runs = [
        Evidence(name=f"run{n}", drawn=one, ended="finished", losses={1: abs(math.log2(one["model.hidden_size"] / 64))})
        for n, one in enumerate(draw(space, 12, 1))
    ]
    proposer = Proposer(space, runs)
    found = [proposer.ask(lambda drawn: True) for _ in range(6)]
    assert all(one is not None and is_inside(space, one.drawn) for one in found)
    small, middle, large = ({"model.hidden_size": size, "model.keep": 0.8} for size in (32, 64, 128))
    assert distance(space, small, middle) == pytest.approx(distance(space, middle, large))


def test_every_setting_of_a_small_space_is_proposed_once() -> None:
    space = {"model.arch": Choice(("rnn", "gru")), "model.hidden_size": Whole(32, 96, 16)}
    drawn = draw(space, 10, 1)
    runs = [
        Evidence(name=f"run{n}", drawn=one, ended="finished", losses={1: _width(one)}, epochs=1)
        for n, one in enumerate(drawn[:4])
    ]
    taken = [dict(run.drawn) for run in runs]
    proposer = Proposer(space, runs)
    while (found := proposer.ask(lambda one: dict(one) not in taken)) is not None:
        taken.append(dict(found.drawn))
    assert len(taken) == 10
    assert all(one in taken for one in drawn)


def test_what_cannot_be_run_is_replaced_by_something_near_it() -> None:
    """Here three quarters of the space are no valid runs, and the best setting is one of them."""
    runs = runs_of(30)
    proposer = Proposer(SPACE, runs)
    found = [proposer.ask(lambda drawn: drawn["model.hidden_size"] == 32) for _ in range(6)]
    assert all(one is not None and one.drawn["model.hidden_size"] == 32 for one in found)
    losses = [loss_of(one.drawn) - _width(one.drawn) for one in found if one is not None]
    assert mean(losses) < mean(loss_of(run.drawn) - _width(run.drawn) for run in runs) - 0.2


def test_a_predicted_loss_lies_among_those_of_the_runs() -> None:
    runs = runs_of(30)
    losses = [loss for loss in end_losses(runs) if loss is not None]
    proposer = Proposer(SPACE, runs)
    for _ in range(6):
        found = proposer.ask(lambda drawn: True)
        assert found is not None
        assert min(losses) - 1e-9 <= found.predicted <= max(losses) + 1e-9


def test_of_many_runs_the_best_and_some_of_the_others_are_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals, "MOST_FITTED", 20)
    runs = runs_of(60)
    found = proposed(runs, 4)
    assert min(map(loss_of, found)) < median(loss_of(run.drawn) for run in runs)
    random.Random(1).shuffle(runs)
    assert proposed(runs, 4) == found


@pytest.mark.parametrize("runs", [[], [run_of(draw(SPACE, 1, 1)[0], "running")]], ids=["no run", "a running one"])
def test_without_a_loss_nothing_can_be_proposed(runs: list[Evidence]) -> None:
    with pytest.raises(UsageError):
        Proposer(SPACE, runs)
