"""Propose settings from the runs of a search: a Gaussian process for each ``[[sample]]``. Pure: no files are read.

The process and the search for its best setting are Optuna's ``GPSampler``: a Matern 5/2 kernel, and the logarithm of
the expected improvement (Ament et al., 2023). Everything here is in losses, in nats per token. Lower is better.

Optuna brings torch and takes a second to import, so it is imported when something is proposed.
"""

import contextlib
import json
import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, final

from jobs.manifests.constraints import are_met, parse_constraint
from jobs.manifests.draws import Choice, Distribution, Real, Whole, draw, number_of_settings, read_distribution
from jobs.manifests.expand import Entry, applying, config_of, has_several, run_name
from seqlm.config import RunConfig
from seqlm.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

SAMPLER = "Optuna's Gaussian process"
NEEDS_OPTUNA = 'propose: expected the package optuna, version 5; use: pip install "optuna>=5,<6"'
NOT_A_SETTING = ("seed", "train.epochs", "data.sha256", "data.tokenizer_sha256", "model.sha256")
"""Keys in which runs of one setting may differ: seeds copy it, runs go on, and digests are filled in at the launch."""
OF_A_TEXT = ("data.", "eval.")
"""Beginnings of keys whose values make losses incomparable."""
OPTUNA_VERSION = 5
"""Earlier versions of its Gaussian process ignore running trials."""
LARGEST_VOCABULARY = 1_000_000
"""Vocabulary size that limits losses if a run's configuration has none."""
NEIGHBOURS = 3
"""Runs of which a predicted loss is the mean."""
ASKS = 3
"""Settings asked of the process for a proposal, before a draw near the first of them takes its place."""
MOST_FITTED = 300
"""Runs with a loss to which the process is fitted. Its time grows with their number cubed."""
MOST_RUNNING = 100
"""Runs without a loss from which proposals keep away."""
FIRST_DRAWS, MOST_DRAWS = 256, 4096
"""Draws among which a setting is looked for: at first, and if none of these is free."""

Ended: TypeAlias = Literal["finished", "stopped", "diverged", "running"]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a run says of its setting."""

    name: str
    drawn: Mapping[str, Any]
    """Dotted key -> value, of the keys that its ``[[sample]]`` draws."""
    ended: Ended
    """``running`` is every run whose result is still to come."""
    losses: Mapping[int, float]
    """Number of finished epochs -> loss then. Epochs without a finite loss are left out."""
    epochs: int = 0
    """Number of finished epochs; of a stopped run, its rung."""


def loss_limit(vocab_size: int | None) -> float:
    """Return the loss of a model that expects every token alike. A loss above it says no more than it does."""
    return math.log(vocab_size or LARGEST_VOCABULARY)


def end_losses(runs: Sequence[Evidence]) -> list[float | None]:
    """Return the loss that each run counts with. ``None``: the run is still to end.

    A finished run counts with its lowest loss. A stopped run counts with the loss at its rung, less the median over the
    finished runs of their fall from that rung to their lowest loss. A run that diverged counts as the worst of these.
    """
    finished = [run for run in runs if run.ended == "finished" and run.losses]
    found: list[float | None] = []
    for run in runs:
        if run.ended == "finished" and run.losses:
            found.append(min(run.losses.values()))
        elif run.ended == "stopped" and run.epochs in run.losses:
            found.append(run.losses[run.epochs] - _median_fall(finished, run.epochs))
        else:
            found.append(None)
    worst = max((loss for loss in found if loss is not None), default=None)
    return [worst if loss is None and run.ended != "running" else loss for run, loss in zip(runs, found, strict=True)]


def _median_fall(finished: Sequence[Evidence], epochs: int) -> float:
    """Return the median fall of the loss of the finished runs from a number of epochs to their lowest; 0 if unknown."""
    falls = [run.losses[epochs] - min(run.losses.values()) for run in finished if epochs in run.losses]
    return statistics.median(falls) if falls else 0.0


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A setting to try next."""

    drawn: Mapping[str, Any]
    is_draw: bool
    """Whether it is a draw near what the process asked for, which the study has or which is no valid run."""
    predicted: float
    """Loss: the mean of the nearest runs, weighted by 1/distance (Shepard, 1968)."""
    nearest: Evidence
    nearest_loss: float
    """What the nearest run counts with."""
    distance: float
    """Distance of the nearest run, from 0 to 1."""


@final
class Proposer:
    """Proposes settings of one space. The same runs in any order, and the same seed, give the same proposals."""

    def __init__(self, space: Mapping[str, Distribution], runs: Sequence[Evidence], *, seed: int = 0) -> None:
        """Fit to the runs whose drawn values are in ``space``, which has at least one key.

        Raises:
            UsageError: Optuna is not installed, or no run has a loss.
        """
        self._space, self._seed = space, seed
        inside = [run for run in runs if is_inside(space, run.drawn)]
        # The order must not matter: a sum of floats depends on it.
        ordered = sorted(inside, key=lambda run: (_text(run.drawn), run.ended, sorted(run.losses.items()), run.name))
        ends = list(zip(ordered, end_losses(ordered), strict=True))
        self._known = [(run, loss) for run, loss in ends if loss is not None]
        if not self._known:
            raise UsageError("expected at least one run with a loss, found none")
        self._study = self._fit([run.drawn for run, loss in ends if loss is None][:MOST_RUNNING])

    def ask(self, is_free: Callable[[Mapping[str, Any]], bool]) -> Proposal | None:
        """Return a setting for which ``is_free`` holds, and count it as running. ``None``: no more were found."""
        asked = [self._asked()]
        while not is_free(asked[-1]):
            if len(asked) == ASKS:
                return self._nearest_draw(asked[0], is_free)
            asked.append(self._asked())
        return self._proposal(asked[-1], is_draw=False)

    def _nearest_draw(self, asked: Mapping[str, Any], is_free: Callable[[Mapping[str, Any]], bool]) -> Proposal | None:
        """Return the free draw that is nearest to a setting, of the first draws. ``None``: none is free."""
        most = min(number_of_settings(self._space) or MOST_DRAWS, MOST_DRAWS)
        count = min(FIRST_DRAWS, most)
        while True:
            found = draw(self._space, count, self._seed)
            free = [drawn for drawn in found if is_free(drawn)]
            if free:
                nearest = min(free, key=lambda drawn: distance(self._space, asked, drawn))
                self._study.add_trial(self._trial(nearest, None))
                return self._proposal(nearest, is_draw=True)
            if len(found) < count or count == most:
                return None
            count = min(2 * count, most)

    def _proposal(self, drawn: Mapping[str, Any], *, is_draw: bool) -> Proposal:
        ranked = sorted(
            ((distance(self._space, drawn, run.drawn), place) for place, (run, _) in enumerate(self._known))
        )[:NEIGHBOURS]
        weights = [1 / max(apart, 1e-6) for apart, _ in ranked]
        losses = [self._known[place][1] for _, place in ranked]
        predicted = sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) / sum(weights)
        apart, place = ranked[0]
        nearest, loss = self._known[place]
        return Proposal(
            drawn=drawn, is_draw=is_draw, predicted=predicted, nearest=nearest, nearest_loss=loss, distance=apart
        )

    # -- Optuna --------------------------------------------------------------------------------------------------------

    def _fit(self, running: Sequence[Mapping[str, Any]]) -> "Study":
        try:
            import optuna
            from optuna.samplers import GPSampler
        except ImportError:
            raise UsageError(NEEDS_OPTUNA) from None
        if int(optuna.__version__.partition(".")[0]) < OPTUNA_VERSION:
            raise UsageError(f"{NEEDS_OPTUNA}; found {optuna.__version__}")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with _quiet():
            sampler = GPSampler(seed=self._seed, n_startup_trials=1, warn_independent_sampling=False)
        study = optuna.create_study(sampler=sampler)
        study.add_trials([self._trial(run.drawn, loss) for run, loss in _most_telling(self._known)])
        study.add_trials([self._trial(drawn, None) for drawn in running])
        return study

    def _trial(self, drawn: Mapping[str, Any], loss: float | None) -> "FrozenTrial":
        from optuna.trial import TrialState, create_trial

        return create_trial(
            state=TrialState.RUNNING if loss is None else TrialState.COMPLETE,
            value=loss,
            params=dict(drawn),
            distributions=_optuna_distributions(self._space),
        )

    def _asked(self) -> dict[str, Any]:
        with _quiet(), _one_thread():
            params = self._study.ask(_optuna_distributions(self._space)).params
        return {key: _rounded(one, params[key]) for key, one in self._space.items()}


def _rounded(distribution: Distribution, value: Any) -> Any:
    match distribution:
        case Real():
            return distribution.rounded(value)
        case Whole(low, _, step):
            return low + step * round((value - low) / step)
        case Choice():
            return value


def _most_telling(known: Sequence[tuple[Evidence, float]]) -> list[tuple[Evidence, float]]:
    """Return at most :data:`MOST_FITTED` runs with their losses, in their order.

    Of more runs, these are the best ones and, as many, an even choice of the others.
    """
    if len(known) <= MOST_FITTED:
        return list(known)
    best = MOST_FITTED // 2
    ranked = sorted(range(len(known)), key=lambda place: known[place][1])
    others, wanted = ranked[best:], MOST_FITTED - best
    chosen = {*ranked[:best], *(others[number * len(others) // wanted] for number in range(wanted))}
    return [one for place, one in enumerate(known) if place in chosen]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ignore warnings that a part of Optuna is experimental."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread: sums over several depend on the machine, and the matrices are small."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _optuna_distributions(space: Mapping[str, Distribution]) -> dict[str, "BaseDistribution"]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for key, distribution in sorted(space.items()):
        match distribution:
            case Choice(values):
                found[key] = CategoricalDistribution(list(dict.fromkeys(values)))
            case Real(low, high, log):
                found[key] = FloatDistribution(low, high, log=log)
            case Whole(low, high, step, log=False):
                found[key] = IntDistribution(low, high - (high - low) % step, step=step)
            case Whole(low, high, step, log=True):
                found[key] = IntDistribution(low, high - (high - low) % step, log=True)  # steps are rounded to
    return found


# -- settings of a space -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Space:
    """The settings of a ``[[sample]]``, which is as :attr:`Manifest.samples` and ``study.json`` have it."""

    name: str | None
    written: Mapping[str, Any]
    """Dotted key -> value, list or distribution."""
    drawn: Mapping[str, Distribution]
    """Dotted key -> distribution of each key that varies."""
    defaults: Mapping[str, Any]
    seeds: Sequence[Any]
    only: Sequence[str] = ()
    """Constraints that a setting has to meet."""

    @classmethod
    def of(cls, sample: Mapping[str, Any]) -> "Space":
        written, name = dict(sample["values"]), sample["name"]
        drawn = {key: value for key, value in written.items() if isinstance(value, dict) or has_several(key, value)}
        return cls(
            name=None if name is None else str(name),
            written=written,
            drawn={key: read_distribution(key, value) for key, value in drawn.items()},
            defaults=dict(sample["defaults"]),
            seeds=list(sample["seeds"]),
            only=[str(one) for one in sample.get("only", ())],
        )

    @property
    def text_keys(self) -> list[str]:
        """Keys that vary and whose values make losses incomparable."""
        return [key for key in self.drawn if key.startswith(OF_A_TEXT)]

    def at_text(self, values: Mapping[str, Any]) -> "Space":
        """Return the part of the space with these values of :attr:`text_keys`."""
        drawn = {key: one for key, one in self.drawn.items() if key not in values}
        return replace(self, written={**self.written, **values}, drawn=drawn)

    def config(self, drawn: Mapping[str, Any]) -> RunConfig | None:
        """Return the configuration of a run. ``None``: the settings are no valid run."""
        own = {**self.written, **drawn}
        with contextlib.suppress(ConfigError):
            return config_of(own, self.defaults)
        return None

    def allows(self, drawn: Mapping[str, Any]) -> bool:
        """Return whether a setting meets the constraints of the ``[[sample]]``."""
        own = {**self.written, **drawn}
        merged = applying({**self.defaults, **own}, own, {})
        constraints = [parse_constraint(text) for text in self.only]
        return are_met(constraints, merged, lambda: config_of(own, self.defaults))

    def has(self, values: Mapping[str, Any]) -> bool:
        """Return whether a draw could have made the run with these values, by dotted key."""
        drawn = {key: values.get(key) for key in self.drawn}
        same = self.config(drawn) if is_inside(self.drawn, drawn) else None
        return same is not None and setting_of(same.by_key()) == setting_of(values)

    def run_name(self, drawn: Mapping[str, Any], values: Mapping[str, Any]) -> str:
        """Return the name of the run of a proposal, whose configuration has ``values``."""
        lists = {key: [value] for key, value in drawn.items()}
        return run_name(Entry(kind="sample", number=1, name=self.name, values=lists, space=self.drawn), values)


def setting_of(values: Mapping[str, Any]) -> str:
    """Return what distinguishes settings of a study, from the values of a run by dotted key."""
    return json.dumps({key: value for key, value in values.items() if key not in NOT_A_SETTING}, sort_keys=True)


def is_inside(space: Mapping[str, Distribution], drawn: Mapping[str, Any]) -> bool:
    """Return whether a space has a setting."""
    return all(_holds(distribution, drawn.get(key)) for key, distribution in space.items())


def _holds(distribution: Distribution, value: Any) -> bool:
    if isinstance(distribution, Choice):
        return value in distribution.values
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    is_between = distribution.low <= value <= distribution.high
    if isinstance(distribution, Real):
        return is_between
    return is_between and isinstance(value, int) and (value - distribution.low) % distribution.step == 0


def distance(space: Mapping[str, Distribution], one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Return the root mean square of the differences of the keys, as shares of their ranges: from 0 to 1."""
    squares = []
    for key, distribution in space.items():
        match distribution:
            case Choice():
                squares.append(float(one[key] != other[key]))
            case Real(low, high, log=True) | Whole(low, high, log=True):
                squares.append((math.log(one[key] / other[key]) / math.log(high / low)) ** 2)
            case Real(low, high) | Whole(low, high):
                squares.append(((one[key] - other[key]) / (high - low)) ** 2)
    return math.sqrt(sum(squares) / len(squares))


def _text(drawn: Mapping[str, Any]) -> str:
    return json.dumps(dict(drawn), sort_keys=True)
