"""Propose settings for the next runs of a study from the results of its runs. Needs Optuna, imported when it is used.

The settings come from Optuna's TPE (Bergstra et al., 2011; multivariate after Falkner et al., 2018), fitted to the runs
that have finished, were stopped, or have diverged. The value predicted for a setting is no part of TPE: it is the mean
of the nearest runs (Shepard, 1968).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.manifests.draws import Choice, Distribution, Real, Whole, read_distribution
from jobs.manifests.expand import Entry, config_of, has_several, run_name
from seqlm.config import RunConfig, valid_keys
from seqlm.errors import ConfigError, UsageError

if TYPE_CHECKING:
    import optuna

NEIGHBOURS = 3
"""Runs of which a predicted value is the mean."""
_NOT_A_SETTING = ("seed", "train.epochs", "data.sha256", "data.tokenizer_sha256", "model.sha256")
"""Keys in which runs of one setting may differ: seeds copy it, runs go on, and digests are filled in at the launch."""
NEAR = 0.02
"""Distance from a trained run, or from another proposal, below which a setting is not worth a run."""
_PATIENCE = 5
"""Settings in a row that are left out, after which further ones count as bad, so that the sampler looks elsewhere."""
_TRIES = 20
"""Settings asked of Optuna for each one that is wanted. The others were in the study already or are no valid runs."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run that shows how good a setting is."""

    name: str
    config: RunConfig
    value: float | None
    """Its value of the metric; lower is better. ``None``: it has diverged."""
    epochs: int
    """Number of its finished epochs."""
    finished: bool
    """Whether it has gone all its epochs. Else it was stopped or has diverged."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """Settings that an entry of a manifest may have."""

    name: str | None
    """Name of the entry, with which the names of its runs begin."""
    values: Mapping[str, Any]
    """Dotted key -> value of each key that does not vary."""
    keys: Mapping[str, Distribution]
    """Dotted key -> distribution of each key that varies."""
    defaults: Mapping[str, Any]
    """Dotted key -> value that the manifest gives to all its runs."""
    seeds: Sequence[int] = ()
    """Seeds of the entry. Empty: the manifest's."""

    @classmethod
    def of_sample(cls, sample: Mapping[str, Any]) -> Space:
        """Return the space of a ``[[sample]]``, as :attr:`Manifest.samples` and ``study.json`` have it."""
        written = sample["values"]
        drawn = {key: value for key, value in written.items() if isinstance(value, dict) or has_several(key, value)}
        return cls(
            name=sample["name"],
            values={key: value for key, value in written.items() if key not in drawn},
            keys={key: read_distribution(key, value) for key, value in drawn.items()},
            defaults=sample["defaults"],
            seeds=sample["seeds"],
        )

    def settings_of(self, config: RunConfig) -> dict[str, Any] | None:
        """Return the values of the varying keys of a run. ``None``: it is no run of this space."""
        found = config.by_key()
        settings = {key: distribution.find(found.get(key)) for key, distribution in self.keys.items()}
        own = None if None in settings.values() else self.config(settings)
        return settings if own is not None and setting_of(own.by_key()) == setting_of(found) else None

    def config(self, settings: Mapping[str, Any]) -> RunConfig | None:
        """Return the configuration of a run of this space. ``None``: the settings are no valid run."""
        with contextlib.suppress(ConfigError):
            return config_of({**self.values, **settings}, self.defaults)
        return None

    def distance(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
        """Return the root mean square of the differences of each key: 0 for equal settings, at most 1."""
        squares = [key.distance(one[name], other[name]) ** 2 for name, key in self.keys.items()]
        return math.sqrt(sum(squares) / len(squares))

    def run_name(self, settings: Mapping[str, Any], config: RunConfig) -> str:
        """Return the name of a run: that of the entry, with a suffix for each key that varies."""
        one_each = {key: [value] for key, value in settings.items()}
        entry = Entry(kind="sample", number=1, name=self.name, values=one_each, space=self.keys)
        return run_name(entry, config.by_key())


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A setting to try next, and why."""

    name: str
    values: Mapping[str, Any]
    """Dotted key -> value of the ``[[run]]``; also ``seeds``."""
    config: RunConfig
    nearest: Trained
    """The trained run with the nearest setting."""
    distance: float
    """Distance of that setting (:meth:`Space.distance`)."""
    predicted: float
    """Mean of the nearest runs, weighted by 1/distance. A diverged run counts with the worst value of all."""


def setting_of(values: Mapping[str, Any]) -> str:
    """Return what distinguishes settings of a study, from the values of a run by dotted key."""
    return json.dumps({key: value for key, value in values.items() if key not in _NOT_A_SETTING}, sort_keys=True)


def spaces_of_runs(runs: Sequence[Trained], known: Sequence[Mapping[str, Any]]) -> list[Space]:
    """Return the ranges of the numbers in which runs differ: a space for the runs that share all texts.

    ``known`` are the values by dotted key of all runs that the study has or plans: a key that has its default in all of
    them is left out of a space.

    The bounds are the lowest and the highest value. A range over a factor of 10 is logarithmic. Whole numbers go in
    the largest step that reaches all values.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    seeds = {run.config.seed for run in runs}
    ignored = {*_NOT_A_SETTING} - ({"seed"} if len(seeds) == 1 else set())
    for run in runs:
        values = {key: v for key, v in run.config.by_key().items() if v is not None and key not in ignored}
        others = {key: value for key, value in values.items() if not _is_number(value)}
        groups.setdefault(json.dumps([others, sorted(values)], sort_keys=True), []).append(values)
    spaces = []
    for found in groups.values():
        numbers = {key: sorted({values[key] for values in found}) for key, v in found[0].items() if _is_number(v)}
        keys = {key: _range(different) for key, different in numbers.items() if len(different) > 1}
        if keys:
            needed = _without_defaults(found[0], known)
            values = {key: value for key, value in needed.items() if key not in keys}
            spaces.append(Space(name=None, values=values, keys=keys, defaults={}))
    return spaces


def _without_defaults(values: Mapping[str, Any], known: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    needed = dict(values)
    for key, value in values.items():
        rest = {other: needed[other] for other in needed if other != key}
        with contextlib.suppress(ConfigError):  # a key without a default is needed
            if all(other.get(key, value) == value for other in [config_of(rest, {}).by_key(), *known]):
                needed = rest
    return needed


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _range(values: Sequence[Any]) -> Distribution:
    low, high = values[0], values[-1]
    if all(isinstance(value, int) for value in values):
        return Whole(low=low, high=high, step=math.gcd(*(value - low for value in values)))
    return Real(low=low, high=high, log=low > 0 and high > 10 * low)


def propose(
    spaces: Sequence[Space],
    runs: Iterable[Trained],
    count: int,
    seed: int,
    *,
    taken: Collection[str],
    names: Collection[str],
) -> list[Proposal]:
    """Return ``count`` settings that the study does not have, in the order of TPE; fewer if none are left.

    A setting nearer than :data:`NEAR` to a trained run or another proposal is left out, and so are spaces in which no
    run was trained. ``taken`` are the settings that the study has, as :func:`setting_of` returns them, and ``names``
    the names of its runs. The same arguments, with the ``seed`` of the sampler, give the same proposals.

    Raises:
        UsageError: no run is in one of the spaces, or Optuna is not installed.
    """
    known: dict[int, list[tuple[dict[str, Any], Trained]]] = {}
    for run in runs:
        for number, space in enumerate(spaces):
            if (settings := space.settings_of(run.config)) is not None:
                known.setdefault(number, []).append((settings, run))
                break
    worst = max((run.value for pairs in known.values() for _, run in pairs if run.value is not None), default=None)
    if worst is None:
        raise UsageError("no run with a result has settings within the ranges of [[sample]]; finish some of its runs")
    sampler = _Sampler(spaces, known, seed)
    found: list[Proposal] = []
    proposed: dict[int, list[dict[str, Any]]] = {number: [] for number in known}
    misses = 0
    for _ in range(_TRIES * count):
        if len(found) == count:
            break
        number, settings = sampler.ask()
        space = spaces[number]
        ranked = [(space.distance(settings, other), run) for other, run in known[number]]
        ranked.sort(key=lambda one: one[0])
        nearest = min([ranked[0][0], *(space.distance(settings, other) for other in proposed[number])])
        config = space.config(settings)
        if config is None or nearest < NEAR or setting_of(config.by_key()) in taken:
            misses += 1
            if config is None or misses > _PATIENCE:
                sampler.tell(None)
            continue
        misses = 0
        proposed[number].append(settings)
        predicted = _mean_of_nearest([(d, worst if run.value is None else run.value) for d, run in ranked])
        sampler.tell(predicted)
        values = {**space.values, **settings, **({"seeds": list(space.seeds)} if space.seeds else {})}
        order = [*valid_keys(), *values]
        found.append(
            Proposal(
                name=_new_name(space.run_name(settings, config), {*names, *(one.name for one in found)}),
                values={key: values[key] for key in sorted(values, key=order.index)},
                config=config,
                nearest=ranked[0][1],
                distance=ranked[0][0],
                predicted=predicted,
            )
        )
    return found


def _new_name(name: str, names: Collection[str]) -> str:
    """Return the name, with a number if it is in use."""
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return next(one for one in itertools.chain([name], numbered) if one not in names)


def _mean_of_nearest(neighbours: Sequence[tuple[float, float]]) -> float:
    """Return the mean of the values of the nearest, given as (distance, value), each weighted by 1/distance."""
    nearest = neighbours[:NEIGHBOURS]
    weights = [1 / max(distance, 1e-6) for distance, _ in nearest]
    return sum(w * value for w, (_, value) in zip(weights, nearest, strict=True)) / sum(weights)


class _Sampler:
    """Optuna's TPE over several spaces: which space is a choice of its own, and each space has its own parameters."""

    def __init__(
        self, spaces: Sequence[Space], known: Mapping[int, Sequence[tuple[dict[str, Any], Trained]]], seed: int
    ) -> None:
        try:
            import optuna
        except ImportError:
            raise UsageError(
                'propose: the package optuna is not installed; use: pip install "optuna>=4.1,<6"'
            ) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._spaces = spaces
        self._which = optuna.distributions.CategoricalDistribution(sorted(known))
        self._distributions = {number: _distributions(spaces[number], number) for number in known}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                n_startup_trials=1,  # the runs of the study are the start
                multivariate=True,
                group=True,  # parameters that only some spaces have
                constant_liar=False,  # proposals count with their predicted values instead (kriging believer)
                seed=seed,
            )
        self._study = optuna.create_study(sampler=sampler)
        for number, pairs in sorted(known.items()):
            for settings, run in pairs:
                self._study.add_trial(self._trial(number, settings, run))

    def _trial(self, number: int, settings: Mapping[str, Any], run: Trained) -> optuna.trial.FrozenTrial:
        """Return a run as Optuna's trial. A stopped run is pruned at its epoch, a diverged one before all epochs."""
        import optuna

        done = run.finished and run.value is not None
        reached = {} if done or run.value is None else {run.epochs: run.value}
        return optuna.trial.create_trial(
            state=optuna.trial.TrialState.COMPLETE if done else optuna.trial.TrialState.PRUNED,
            value=run.value if done else None,
            intermediate_values=reached,
            params={"space": number, **{_parameter(number, key): value for key, value in settings.items()}},
            distributions={"space": self._which, **self._distributions[number]},
        )

    def ask(self) -> tuple[int, dict[str, Any]]:
        """Return the number of a space and settings in it."""
        self._last = trial = self._study.ask()
        number = int(trial.suggest_categorical("space", sorted(self._distributions)))
        settings: dict[str, Any] = {}
        for key, distribution in self._spaces[number].keys.items():
            name = _parameter(number, key)
            match distribution:
                case Choice(values):
                    settings[key] = trial.suggest_categorical(name, list(dict.fromkeys(values)))
                case Real(low, high, log):
                    settings[key] = distribution.rounded(trial.suggest_float(name, low, high, log=log))
                case Whole(low, _, step):
                    settings[key] = trial.suggest_int(name, low, distribution.last, step=step)
        return number, settings

    def tell(self, value: float | None) -> None:
        """Let the settings of the last :meth:`ask` count as a run with this value; ``None``: as the worst of all."""
        import optuna

        state = optuna.trial.TrialState.PRUNED if value is None else optuna.trial.TrialState.COMPLETE
        self._study.tell(self._last, value, state=state)


def _parameter(number: int, key: str) -> str:
    return f"{number}/{key}"


def _distributions(space: Space, number: int) -> dict[str, optuna.distributions.BaseDistribution]:
    import optuna

    found: dict[str, optuna.distributions.BaseDistribution] = {}
    for key, distribution in space.keys.items():
        name = _parameter(number, key)
        match distribution:
            case Choice(values):
                found[name] = optuna.distributions.CategoricalDistribution(list(dict.fromkeys(values)))
            case Real(low, high, log):
                found[name] = optuna.distributions.FloatDistribution(low, high, log=log)
            case Whole(low, _, step):
                found[name] = optuna.distributions.IntDistribution(low, distribution.last, step=step)
    return found
