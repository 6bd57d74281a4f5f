"""Which hyperparameters decide whether a setting is among the best: PED-ANOVA, tested against shuffled losses.

PED-ANOVA (Watanabe, Bansal and Hutter, 2023) compares the values of each hyperparameter among the best settings with
those among all. It finds some difference in pure noise too. So a hyperparameter is only said to matter if its
difference is larger than in nearly all shuffles of the losses.

Optuna computes it. It is an optional package, and imported when it is used.
"""

import math
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

BEST = 0.25
"""Share of the settings that count as the best."""
FEWEST_SETTINGS = 40
"""With fewer, nothing is said: ten are the best of them."""
CHANCE = 0.05
"""Largest p of a hyperparameter that is said to matter."""
LOG_FROM = 10
"""A number whose highest value is at least this multiple of its lowest is taken by its logarithm."""


@dataclass(frozen=True, kw_only=True)
class Importance:
    """What a hyperparameter has to do with being among the best."""

    key: str
    """Keys that always vary together, as linked ones do, are one hyperparameter: their names with commas between."""
    share: float
    """Of the importance of all hyperparameters that vary; from 0 to 1."""
    p: float
    """Share of the shuffles, the real order among them, in which it is as important, times the number of
    hyperparameters (Bonferroni); at most 1."""

    @property
    def is_shown(self) -> bool:
        """Whether it matters beyond chance."""
        return self.p <= CHANCE


def importances(settings: Sequence[Mapping[str, Any]], losses: Sequence[float]) -> list[Importance] | None:
    """Return the importance of each key that varies, the largest first. ``None``: Optuna is not installed.

    Keys that only some settings have are left out. Infinite losses are the worst. The same settings in any order give
    the same importances.
    """
    order = sorted(range(len(settings)), key=lambda place: (str(sorted(settings[place].items())), losses[place]))
    settings, losses = [settings[place] for place in order], [losses[place] for place in order]
    keys = [key for key in settings[0] if len({str(one.get(key, "")) for one in settings}) > 1] if settings else []
    keys = [key for key in keys if all(key in one for one in settings)]
    if not keys:
        return []
    names = _together(settings, keys)
    keys = list(names)
    try:
        study = _study([{key: one[key] for key in keys} for one in settings])
    except ImportError:
        return None
    finite = [loss for loss in losses if math.isfinite(loss)]
    worst = max(finite, default=0.0) + 1.0
    values = [loss if math.isfinite(loss) else worst for loss in losses]
    found = _raw(study, values)
    as_large = dict.fromkeys(keys, 1)
    rng = random.Random(0)
    shuffles = math.ceil(2 * len(keys) / CHANCE) - 1
    for _ in range(shuffles):
        rng.shuffle(values)
        shuffled = _raw(study, values)
        for key in keys:
            as_large[key] += shuffled[key] >= found[key]
    whole = sum(found.values()) or 1.0
    chances = {key: min(1.0, len(keys) * as_large[key] / (shuffles + 1)) for key in keys}
    rows = [Importance(key=names[key], share=found[key] / whole, p=chances[key]) for key in keys]
    return sorted(rows, key=lambda row: (-row.share, row.key))


def _together(settings: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> dict[str, str]:
    """Return by the first of the keys that tell the same settings apart the names of all of them."""
    found: dict[tuple[int, ...], list[str]] = {}
    for key in keys:
        values = [str(one[key]) for one in settings]
        first = {value: place for place, value in reversed(list(enumerate(values)))}
        found.setdefault(tuple(first[value] for value in values), []).append(key)
    return {together[0]: ", ".join(together) for together in found.values()}


def _study(settings: Sequence[Mapping[str, Any]]) -> "Study":
    import optuna
    from optuna.trial import create_trial

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    columns = {key: [one[key] for one in settings] for key in settings[0]}
    distributions = {key: _distribution(values) for key, values in columns.items()}
    is_number = {key: _is_numeric(values) for key, values in columns.items()}
    study = optuna.create_study()
    study.add_trials(
        [
            create_trial(
                value=0.0,
                params={key: float(value) if is_number[key] else str(value) for key, value in one.items()},
                distributions=distributions,
            )
            for one in settings
        ]
    )
    return study


def _is_numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _distribution(values: Sequence[Any]) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if not _is_numeric(values):
        return CategoricalDistribution(sorted({str(value) for value in values}))
    low, high = float(min(values)), float(max(values))
    return FloatDistribution(low, high, log=low > 0 and high >= LOG_FROM * low)


def _raw(study: "Study", values: Sequence[float]) -> dict[str, float]:
    """Return the divergence of each key for these losses of the settings, in the order of the trials."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the lowest values are the best, which they are; that it is experimental
        evaluator = PedAnovaImportanceEvaluator(target_quantile=BEST)
        return get_param_importances(
            study, evaluator=evaluator, target=lambda trial: values[trial.number], normalize=False
        )
