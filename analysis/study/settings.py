"""Settings: runs that differ in nothing but the seed, with an interval over the seeds and the times they took.

The interval is Student's t for the mean of the best validation losses in nats, then taken to perplexities, so the
centre is the geometric mean of the perplexities. With the two to ten seeds of a study, a bootstrap over seeds is too
narrow (resampling three values can never leave their range); Student's t holds for any number from two on where the
losses of seeds are about normal (Student, 1908; Agarwal et al., 2021, on the trouble with few seeds).
"""

import itertools
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd

from analysis.study import units
from analysis.study.columns import SETTING_KEYS
from analysis.study.comparison import WITHIN, finished
from analysis.study.numbering import RunNumber

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over seeds with its confidence interval, as perplexities."""

    centre: float
    low: float
    """NaN with a single seed, of which nothing is known."""
    high: float
    """Infinity if it is too large for a perplexity."""
    deviation: float
    """Standard deviation of the losses, in nats; NaN with a single seed."""
    n: int
    """Seeds."""


def interval(perplexities: Sequence[float]) -> Interval:
    """The geometric mean of perplexities and the interval around it.

    >>> found = interval([99.0, 100.0, 101.0])
    >>> round(found.centre, 2), round(found.low, 2), round(found.high, 2)
    (100.0, 97.54, 102.51)

    Raises:
        ValueError: there are none, or one is not a positive finite number.
    """
    n = len(perplexities)
    if n == 0 or not all(math.isfinite(value) and value > 0 for value in perplexities):
        raise ValueError(f"perplexities: expected positive finite numbers, got {list(perplexities)}")
    losses = [math.log(value) for value in perplexities]
    mean = sum(losses) / n
    if n == 1:
        return Interval(centre=perplexities[0], low=math.nan, high=math.nan, deviation=math.nan, n=1)
    from scipy.special import stdtrit

    deviation = math.sqrt(sum((loss - mean) ** 2 for loss in losses) / (n - 1))
    reach = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2)) * deviation / math.sqrt(n)
    low, high = _perplexity(mean - reach), _perplexity(mean + reach)
    return Interval(centre=_perplexity(mean), low=low, high=high, deviation=deviation, n=n)


def _perplexity(loss: float) -> float:
    """Return the perplexity of a loss in nats; infinity where the exponential overflows, as an interval's end can."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def geometric_mean(perplexities: Sequence[Any]) -> float:
    """Return the geometric mean over seeds; NaN if one is missing or not above 0."""
    is_known = all(units.is_number(value) and value > 0 for value in perplexities)
    return interval(perplexities).centre if is_known else math.nan


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One configuration but for the seed and the number of epochs, with the finished runs of it."""

    number: RunNumber
    """Number of its first run."""
    name: str
    """Name of its first finished run, without the seed where it has several."""
    arch: str | None
    optimizer: str | None
    text: str
    """What its runs predict; see :func:`analysis.study.comparison.text_names`."""
    runs: list[RunNumber]
    """Numbers of the finished runs."""
    config: Mapping[str, Any]
    """The keys that apply, with their values, of its first finished run."""
    interval: Interval
    """Of the best validation perplexity, over seeds."""
    gap: float
    """Validation less training loss at the best epoch, in nats; like the numbers below the mean over seeds, NaN if one
    of them lacks it."""
    final_gap: float
    """The same after the last epoch."""
    final_val_ppl: float
    """Validation perplexity after the last epoch; like ``test_ppl`` the geometric mean over seeds."""
    test_ppl: float
    machine: str
    """What its runs were trained on; of several machines all."""
    seconds_to_best: float = math.nan
    """From the start to the end of the epoch with the lowest validation perplexity; see :func:`timed_settings`."""
    seconds_to_study_best: float = math.nan
    """To the first epoch within 5 % of the study's best on the same text; NaN if that is never reached."""

    @property
    def val_ppl(self) -> float:
        """Best validation perplexity; the geometric mean over seeds."""
        return self.interval.centre

    @property
    def reference(self) -> str:
        """How a text refers to it: by its runs' numbers and a name."""
        return f"{'/'.join(map(str, self.runs))} {self.name}"

    @property
    def only_run(self) -> RunNumber | None:
        """The run's number, of a setting with one seed."""
        return self.runs[0] if len(self.runs) == 1 else None


def settings_of(runs: pd.DataFrame) -> list[Setting]:
    """Return the settings that have a finished run with a validation perplexity, by number."""
    done = finished(runs).sort_values(["setting", "number"])
    settings = []
    for number, members in itertools.groupby(done.to_dict("records"), key=lambda run: run["setting"]):
        first, *others = rows = list(members)
        name = first["name"]
        settings.append(
            Setting(
                number=number,
                name=re.sub(r"-seed\d+$", "", name) or name if others else name,
                arch=first["arch"],
                optimizer=first["optimizer"],
                text=first["text"],
                runs=[run["number"] for run in rows],
                config=config_of(first),
                interval=interval([run["val_ppl"] for run in rows]),
                gap=statistics.fmean(run["gap"] for run in rows),
                final_gap=statistics.fmean(run["final_gap"] for run in rows),
                final_val_ppl=geometric_mean([run["final_val_ppl"] for run in rows]),
                test_ppl=geometric_mean([run["test_ppl"] for run in rows]),
                machine=" and ".join(dict.fromkeys(run["machine"] or "not recorded" for run in rows)),
            )
        )
    return settings


def timed_settings(runs: pd.DataFrame, epochs: pd.DataFrame) -> list[Setting]:
    """Return every setting with a finished run, by number, with the times that follow from its epochs."""
    settings = settings_of(runs)
    if not settings:
        return []
    best = dict(zip(runs["id"], runs["best_epoch"].astype(float), strict=True))
    at_best = epochs[epochs["epoch"].astype(float) == epochs["id"].map(best).astype(float)]
    lowest = {setting.text: setting.val_ppl for setting in reversed(by_perplexity(settings))}
    limits = {run: WITHIN * lowest[setting.text] for setting in settings for run in setting.runs}
    at_study_best = epochs[epochs["val_ppl"] <= epochs["number"].map(limits).astype(float)].drop_duplicates("id")
    to_best, to_study_best = (
        dict(zip(e["number"], e["elapsed_seconds"], strict=True)) for e in (at_best, at_study_best)
    )

    def mean(seconds: Mapping[RunNumber, float], setting: Setting) -> float:
        return statistics.fmean(seconds.get(number, math.nan) for number in setting.runs)

    return [
        replace(setting, seconds_to_best=mean(to_best, setting), seconds_to_study_best=mean(to_study_best, setting))
        for setting in settings
    ]


def config_of(run: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the keys of a setting that apply to a run, with their values. None is a value; NaN: it does not apply."""
    return {key: value for key in SETTING_KEYS if not (isinstance(value := run[key], float) and math.isnan(value))}


def by_perplexity(settings: Iterable[Setting]) -> list[Setting]:
    """Return settings by validation perplexity, the lowest first; of several alike the first by number."""
    return sorted(settings, key=lambda setting: (setting.val_ppl, setting.number))


def best_of(settings: Iterable[Setting]) -> Setting:
    """Return the setting with the lowest validation perplexity; the first of several alike."""
    return by_perplexity(settings)[0]


def best_settings(settings: Iterable[Setting]) -> list[Setting]:
    """Return the best of each architecture on each text, in the report's order of architectures.

    Settings are ranked by their means over seeds, so more seeds have no more chances to be low.
    """
    best: dict[tuple[str, Any], Setting] = {}
    for setting in by_perplexity(settings):
        best.setdefault((setting.text, setting.arch), setting)
    return sorted(best.values(), key=lambda setting: units.rank(units.ARCHITECTURES, setting.arch))


def on_one_machine(settings: Sequence[Setting]) -> list[Setting]:
    """Return the settings on the machine of the most, since times compare only between equal machines."""
    machines = Counter(setting.machine for setting in settings)
    return [setting for setting in settings if setting.machine == max(machines, key=lambda one: machines[one])]


# -- rows of the runs table ----------------------------------------------------------------------------------------


def repeats_seeds(runs: pd.DataFrame) -> bool:
    """Whether some setting has been finished with more than one seed."""
    return bool(finished(runs)["setting"].duplicated().any())


def in_report_order(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs by architecture (RNN, GRU, Transformer), then optimizer, then number."""
    ranks = {"arch": units.ARCHITECTURES, "optimizer": units.OPTIMIZERS}
    return runs.sort_values(
        ["arch", "optimizer", "number"],
        key=lambda column: column.map(partial(units.rank, ranks[column.name])) if column.name in ranks else column,
    )


def best_runs(runs: pd.DataFrame, settings: Iterable[Setting]) -> pd.DataFrame:
    """Return the lowest run of the best setting of each architecture on each text."""
    numbers = [run for setting in best_settings(settings) for run in setting.runs]
    found = runs[runs["number"].isin(numbers)].sort_values(["val_ppl", "number"])
    return in_report_order(found.drop_duplicates("setting"))


def places_of(runs: pd.DataFrame) -> dict[str, int]:
    """Return for each run, by its id, the place of its setting among those of its architecture and optimizer.

    The setting with the lowest validation perplexity of a run is at 0; those without one come last, by number.
    """
    kind = ["arch", "optimizer"]
    lowest = runs.groupby("setting", sort=False)["val_ppl"].transform("min").astype(float)
    settings = runs.assign(lowest=lowest).sort_values(["lowest", "setting"]).drop_duplicates("setting")
    places = dict(zip(settings["setting"], settings.groupby(kind, dropna=False).cumcount(), strict=True))
    return {run: int(places[setting]) for run, setting in zip(runs["id"], runs["setting"], strict=True)}
