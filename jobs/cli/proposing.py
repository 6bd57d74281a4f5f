"""``propose``: settings for the next runs of a study, as tables to add to its manifest.

The settings come from Optuna's TPE (Bergstra et al., 2011; multivariate after Falkner et al., 2018), fitted to the runs
of ``[[sample]]`` entries that have finished, were stopped or have diverged. Optuna is imported when it is used.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from jobs import terminal
from jobs.cli.arguments import Arguments
from jobs.manifests.draws import Choice, Distribution, Real, Whole, read_distribution
from jobs.manifests.expand import Entry, config_of, has_several, run_name
from jobs.manifests.load import load_manifest
from jobs.study.folder import ObservedRun, find_study, observe_study
from jobs.study.record import StudyRecord
from seqlm.config import RunConfig
from seqlm.errors import ConfigError, DamagedFileError, UsageError
from seqlm.reading import is_file
from seqlm.rundir import study_record_file
from seqlm.search import Search

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

SAMPLER = "Optuna's TPE"
NOT_A_SETTING = ("seed", "train.epochs", "data.sha256", "data.tokenizer_sha256", "model.sha256")
"""Keys in which runs of one setting may differ: seeds copy it, runs go on, and digests are filled in at the launch."""
NEIGHBOURS = 3
"""Runs of which a predicted value is the mean."""
TRIES = 20
"""Settings asked of Optuna for each one that is wanted. The others were in the study already or are no valid runs."""


Tried: TypeAlias = tuple[dict[str, Any], str, float | None]
"""A run of a space: what was drawn, its name, and its value of the metric; ``None``: it has diverged."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """The settings of a ``[[sample]]``, which is as :attr:`Manifest.samples` and ``study.json`` have it."""

    name: str | None
    written: Mapping[str, Any]
    """Dotted key -> value, list or distribution."""
    drawn: Mapping[str, Distribution]
    """Dotted key -> distribution of each key that varies."""
    defaults: Mapping[str, Any]
    seeds: list[Any]

    @classmethod
    def of(cls, sample: Mapping[str, Any]) -> Space:
        written, name = dict(sample["values"]), sample["name"]
        drawn = {key: value for key, value in written.items() if isinstance(value, dict) or has_several(key, value)}
        return cls(
            name=None if name is None else str(name),
            written=written,
            drawn={key: read_distribution(key, value) for key, value in drawn.items()},
            defaults=dict(sample["defaults"]),
            seeds=list(sample["seeds"]),
        )

    def config(self, drawn: Mapping[str, Any]) -> RunConfig | None:
        """Return the configuration of a run. ``None``: the settings are no valid run."""
        with contextlib.suppress(ConfigError):
            return config_of({**self.written, **drawn}, self.defaults)
        return None

    def distance(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
        """Return the root mean square of the differences of the keys, as shares of their ranges: from 0 to 1."""
        squares = []
        for key, distribution in self.drawn.items():
            match distribution:
                case Choice():
                    squares.append(float(one[key] != other[key]))
                case Real(low, high, log=True):
                    squares.append((math.log(one[key] / other[key]) / math.log(high / low)) ** 2)
                case Real(low, high) | Whole(low, high):
                    squares.append(((one[key] - other[key]) / (high - low)) ** 2)
        return math.sqrt(sum(squares) / len(squares))

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return Optuna's distributions of the keys that are drawn."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        found: dict[str, BaseDistribution] = {}
        for key, distribution in self.drawn.items():
            match distribution:
                case Choice(values):
                    found[key] = CategoricalDistribution(list(dict.fromkeys(values)))
                case Real(low, high, log):
                    found[key] = FloatDistribution(low, high, log=log)
                case Whole(low, high, step):
                    found[key] = IntDistribution(low, high - (high - low) % step, step=step)
        return found


def propose_runs(arguments: Arguments) -> tuple[dict[str, Any], int]:
    """Print a ``[[run]]`` for each proposal, with its reason as a comment."""
    study_dir = find_study(arguments.study, arguments.runs_dir)
    record = StudyRecord(study_dir, terminal.tell)
    path = Path(arguments.study)
    manifest = load_manifest(path) if path.suffix == ".toml" and is_file(path) else None
    search = record.search if manifest is None else manifest.search
    metric = Search.metric if search is None else search.metric
    observed = [run for run in observe_study(study_dir) if run.config is not None]
    try:
        spaces = [Space.of(one) for one in (record.raw.get("samples", []) if manifest is None else manifest.samples)]
        has = [(run.name, run.config.by_key()) for run in observed if run.config is not None]
        has += [(str(one["name"]), dict(one["config"])) for one in record.planned if "config" in one]
        has += [(spec.name, spec.config.by_key()) for spec in manifest.runs] if manifest else []
    except (AttributeError, LookupError, TypeError, ValueError):
        raise DamagedFileError(f"{study_record_file(study_dir)} is damaged; launch the manifest again") from None
    if not spaces:
        raise UsageError(f"{study_dir.name}: no [[sample]] to propose from; add one with ranges to the manifest")
    fitted, counts = _fitted(spaces, observed, metric, arguments.seed or 0)
    if not fitted:
        raise UsageError(f"{study_dir.name}: expected at least one finished run of a [[sample]], found none")
    taken, names = {setting_of(values) for _, values in has}, {name for name, _ in has}
    records: list[dict[str, Any]] = []
    for space, study, tried in itertools.islice(itertools.cycle(fitted), TRIES * arguments.count):
        if len(records) == arguments.count:
            break
        params = study.ask(space.distributions()).params
        drawn = {key: d.rounded(params[key]) if isinstance(d, Real) else params[key] for key, d in space.drawn.items()}
        config = space.config(drawn)
        if config is None or (setting := setting_of(config.by_key())) in taken:
            continue
        lists = {key: [value] for key, value in drawn.items()}
        entry = Entry(kind="sample", number=1, name=space.name, values=lists, space=space.drawn)
        name = run_name(entry, config.by_key())
        while name in names:
            name += "-2"
        taken.add(setting)
        names.add(name)
        seeds = {"seeds": space.seeds} if space.seeds else {}
        values = {**space.written, **drawn, **seeds}
        records.append({"name": name, "values": values, **_reason(space, drawn, tried)})
    if not records:
        raise UsageError(f"{study_dir.name}: every setting in its ranges is in the study already; widen a range")
    if len(records) < arguments.count:
        terminal.tell(f"found only {len(records)} of {arguments.count} settings that are not in the study already")
    ends = {ended: counts[ended] for ended in ("finished", "stopped", "diverged")}
    basis = ", ".join(f"{number} {ended}" for ended, number in ends.items() if number)
    terminal.say(f"# {len(records)} proposals of {SAMPLER}, fitted to {basis} runs of {study_dir.name}")
    for one in records:
        near, table = one["nearest"], {"name": one["name"], **one["values"]}
        value = "diverged" if near["value"] is None else f"{metric} {near['value']:.5g}"
        reason = f"predicted {metric} {one['predicted']:.5g}; nearest run {near['name']} ({value})"
        lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items()]
        terminal.say("", f"# {reason}, distance {near['distance']:.2f}", "[[run]]", *lines)
    return {"study": study_dir.name, "metric": metric, "sampler": SAMPLER, **ends, "proposals": records}, 0


def setting_of(values: Mapping[str, Any]) -> str:
    """Return what distinguishes settings of a study, from the values of a run by dotted key."""
    return json.dumps({key: value for key, value in values.items() if key not in NOT_A_SETTING}, sort_keys=True)


def _reason(space: Space, drawn: Mapping[str, Any], tried: Sequence[Tried]) -> dict[str, Any]:
    """Return the run with the nearest setting, and the value that is predicted from the nearest ones.

    It is their mean, weighted by 1/distance (Shepard, 1968). A diverged run counts with the worst value of all.
    """
    worst = max(value for _, _, value in tried if value is not None)
    ranked = sorted((space.distance(drawn, other), name, value) for other, name, value in tried)[:NEIGHBOURS]
    weighed = [(1 / max(distance, 1e-6), worst if value is None else value) for distance, _, value in ranked]
    predicted = sum(weight * value for weight, value in weighed) / sum(weight for weight, _ in weighed)
    distance, name, value = ranked[0]
    return {"nearest": {"name": name, "value": value, "distance": distance}, "predicted": predicted}


# -- Optuna ------------------------------------------------------------------------------------------------------------


def _fitted(
    spaces: Sequence[Space], runs: Sequence[ObservedRun], metric: str, seed: int
) -> tuple[list[tuple[Space, Study, list[Tried]]], Counter[str]]:
    """Return Optuna's study of each space with a finished run, its runs, and the number of runs by how they ended.

    A finished run counts with its best value, a stopped one as pruned with its last, and a diverged one as worse.
    """
    try:
        import optuna
    except ImportError:
        raise UsageError('propose: the package optuna is not installed; use: pip install "optuna>=4.1,<6"') from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    fitted: list[tuple[Space, Study, list[Tried]]] = []
    results = [(run, found) for run in runs if (found := _result_of(run, metric)) is not None]
    used: dict[str, str] = {}
    for space in spaces:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                n_startup_trials=1,  # the runs of the study are the start
                multivariate=True,
                constant_liar=True,  # settings that were asked for have no value, and are avoided
                seed=seed,
            )
        study, tried = optuna.create_study(sampler=sampler), list[Tried]()
        for run, (ended, values) in results:
            assert run.config is not None, "those without were left out"
            config = run.config.by_key()
            drawn = {key: config.get(key) for key in space.drawn}
            same = space.config(drawn)
            if same is None or setting_of(same.by_key()) != setting_of(config):
                continue
            is_done = ended == "finished"
            value = min(values) if is_done else values[-1] if values else None
            with contextlib.suppress(ValueError):  # a value is outside its range
                trial = optuna.trial.create_trial(
                    state=optuna.trial.TrialState.COMPLETE if is_done else optuna.trial.TrialState.PRUNED,
                    value=value if is_done else None,
                    intermediate_values={} if is_done or value is None else {len(values): value},
                    params=drawn,
                    distributions=space.distributions(),
                )
                study.add_trial(trial)
                used[run.run.id] = ended
                tried.append((drawn, run.name, value))
        if any(trial.state.name == "COMPLETE" for trial in study.trials):
            fitted.append((space, study, tried))
    return fitted, Counter(used.values())


def _result_of(run: ObservedRun, metric: str) -> tuple[str, list[float]] | None:
    """Return how a run ended, and its finite values of the metric. ``None``: it says nothing of its settings."""
    if run.observation.kind == "diverged":
        return "diverged", []
    ended = {"done": "finished", "stopped": "stopped"}.get(run.observation.state)
    values = run.values(metric)
    return (ended, values) if ended and values else None
