"""Searches on a surface: what proposes settings, and rounds of runs with and without stopping.

Rungs decide by :func:`seqlm.search.goes_on`, and the Gaussian process is :class:`jobs.plan.proposals.Proposer`: what
seqlm itself uses. TPE is what ``propose`` used before.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from benchmarks.search.surfaces import Surface
from jobs.manifests.draws import Choice, Distribution, Real, Whole, draw
from jobs.plan.proposals import Ended, Evidence, Proposer, loss_limit
from seqlm.search import goes_on

ROUND = 6
"""Runs of a round, which train at once."""
FIRST = 12
"""Draws with which every search begins."""
RUNS = 60
"""Runs of a search without stopping."""
RUNGS = {9: (1, 3), 6: (1, 3)}
"""Epochs of a run -> its rungs."""
KEEP = 0.33
MIN_RUNS = 3


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run of a search."""

    drawn: Mapping[str, Any]
    losses: Sequence[float]
    """After each epoch that it trained."""
    ended: Ended

    @property
    def lowest(self) -> float:
        return min(self.losses)

    def evidence(self, name: str) -> Evidence:
        most = loss_limit(None)
        losses = {epoch: min(loss, most) for epoch, loss in enumerate(self.losses, 1) if math.isfinite(loss)}
        return Evidence(name=name, drawn=self.drawn, ended=self.ended, losses=losses, epochs=len(self.losses))


Method: TypeAlias = Callable[[Mapping[str, Distribution], Sequence[Trained], int], list[Mapping[str, Any]]]
"""From a space, the runs so far and a seed to the settings of the next round."""


def draws(space: Mapping[str, Distribution], runs: Sequence[Trained], seed: int) -> list[Mapping[str, Any]]:
    """Return the next settings that a ``[[sample]]`` with a higher ``count`` draws."""
    return list(draw(space, len(runs) + ROUND, seed)[len(runs) :])


def gaussian_process(space: Mapping[str, Distribution], runs: Sequence[Trained], seed: int) -> list[Mapping[str, Any]]:
    """Return what ``propose`` prints."""
    taken = {_text(run.drawn) for run in runs}
    proposer = Proposer(space, [run.evidence(str(number)) for number, run in enumerate(runs)], seed=seed)
    found: list[Mapping[str, Any]] = []
    while len(found) < ROUND:
        proposal = proposer.ask(lambda drawn: _text(drawn) not in taken)
        if proposal is None:
            break
        taken.add(_text(proposal.drawn))
        found.append(proposal.drawn)
    return found


def tpe(space: Mapping[str, Distribution], runs: Sequence[Trained], seed: int) -> list[Mapping[str, Any]]:
    """Return what ``propose`` printed until 1 December 2026: Optuna's TPE, with stopped runs as pruned trials."""
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.trial import TrialState, create_trial

    distributions: dict[str, Any] = {}
    for key, one in space.items():
        match one:
            case Choice(values):
                distributions[key] = CategoricalDistribution(list(values))
            case Real(low, high, log):
                distributions[key] = FloatDistribution(low, high, log=log)
            case Whole(low, high, step):
                distributions[key] = IntDistribution(low, high, step=step)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(n_startup_trials=1, multivariate=True, constant_liar=True, seed=seed)
    study = optuna.create_study(sampler=sampler)
    for run in runs:
        is_done = run.ended == "finished"
        last = {len(run.losses): math.exp(run.losses[-1])} if run.ended == "stopped" else {}
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE if is_done else TrialState.PRUNED,
                value=math.exp(run.lowest) if is_done else None,
                intermediate_values=last,
                params=dict(run.drawn),
                distributions=distributions,
            )
        )
    taken = {_text(run.drawn) for run in runs}
    found: list[Mapping[str, Any]] = []
    for _ in range(20 * ROUND):
        if len(found) == ROUND:
            break
        params = study.ask(distributions).params
        drawn = {key: one.rounded(params[key]) if isinstance(one, Real) else params[key] for key, one in space.items()}
        if _text(drawn) not in taken:
            taken.add(_text(drawn))
            found.append(drawn)
    return found


METHODS: Mapping[str, Method] = {"draws": draws, "TPE": tpe, "Gaussian process": gaussian_process}


def _text(drawn: Mapping[str, Any]) -> str:
    return str(sorted(drawn.items()))


# -- a search ------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Searched:
    """A search that is over."""

    runs: list[Trained] = field(default_factory=list)
    spent: int = 0
    """Epochs of all runs."""
    regrets: dict[int, float] = field(default_factory=dict)
    """Number of runs after each round -> regret of the best of them."""

    @property
    def regret(self) -> float:
        return self.regrets[len(self.runs)]


def search(surface: Surface, method: Method, seed: int, *, stopping: bool, epochs: int | None = None) -> Searched:
    """Search in rounds of :data:`ROUND`. The first :data:`FIRST` settings are draws, whatever the method.

    ``epochs``: the search begins no round when its runs have trained as many. ``None``: it has :data:`RUNS` runs.
    """
    found = Searched()
    reached: dict[int, list[float]] = {rung: [] for rung in RUNGS[surface.epochs]} if stopping else {}
    while len(found.runs) < RUNS if epochs is None else found.spent < epochs:
        chosen = (draws if len(found.runs) < FIRST else method)(surface.space, found.runs, seed)
        if not chosen:
            break
        trained = _train(surface, chosen, reached)
        found.runs += trained
        found.spent += sum(len(run.losses) for run in trained)
        found.regrets[len(found.runs)] = _regret(surface, found.runs)
    return found


def _regret(surface: Surface, runs: Sequence[Trained]) -> float:
    """Return the regret of the run with the lowest measured loss; infinite before one has finished."""
    finished = [run for run in runs if run.ended == "finished"]
    if not finished:
        return math.inf
    return surface.end(min(finished, key=lambda run: run.lowest).drawn) - surface.lowest


def _train(surface: Surface, chosen: Sequence[Mapping[str, Any]], reached: Mapping[int, list[float]]) -> list[Trained]:
    """Train the runs of a round epoch by epoch. ``reached``: rung -> values of all runs that came there; it grows."""
    curves = [surface.curve(drawn) for drawn in chosen]
    epochs: dict[int, int] = {}
    """Place in the round -> epochs, of a run that has ended."""
    ended: dict[int, Ended] = {}
    for epoch in range(1, surface.epochs + 1):
        for place, curve in enumerate(curves):
            if place in ended:
                continue
            loss = curve[epoch - 1]
            if not math.isfinite(loss):
                epochs[place], ended[place] = epoch, "diverged"
            elif epoch in reached:
                reached[epoch].append(loss)
                if not goes_on(loss, reached[epoch], keep=KEEP, min_runs=MIN_RUNS):
                    epochs[place], ended[place] = epoch, "stopped"
    return [
        Trained(
            drawn=drawn,
            losses=curve[: epochs.get(place, surface.epochs)],
            ended=ended.get(place, "finished"),
        )
        for place, (drawn, curve) in enumerate(zip(chosen, curves, strict=True))
    ]
